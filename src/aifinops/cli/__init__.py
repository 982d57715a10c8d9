"""The command line. Typer and rich are imported when a command runs, not before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]

WRONG_INPUT = 2
"""Exit status for wrong settings or arguments, as for unknown options. 1 is a run that worked and has bad news."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `aifinops` and leave with its exit status.

    Args:
        arguments: words after the program's name; None for those of this process.

    Raises:
        SystemExit: always; 0, 1 for bad news (an unknown model, a bill that does not add up), 2 for wrong input.
    """
    from aifinops.cli.app import app
    from aifinops.cli.run import with_separator
    from aifinops.errors import AIFinOpsError, ConfigurationError

    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(with_separator(words) if words[:1] == ["run"] else with_default_endpoint(words), prog_name="aifinops")
    except AIFinOpsError as error:
        print(f"aifinops: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT if isinstance(error, ConfigurationError) else 1)
    sys.exit(0)


DEFAULT_ENDPOINT = "http://localhost:4318"


def with_default_endpoint(words: Sequence[str]) -> list[str]:
    """`--otlp` alone means the collector on this machine: typer has no options whose value may be left out."""
    filled: list[str] = []
    for position, word in enumerate(words):
        filled.append(word)
        following = words[position + 1 : position + 2]
        if word == "--otlp" and (not following or following[0].startswith("-")):
            filled.append(DEFAULT_ENDPOINT)
    return filled
