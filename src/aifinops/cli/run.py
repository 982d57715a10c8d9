"""`aifinops run`: a Python program, metered, without a line of code in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aifinops import config
from aifinops.charges import new_id
from aifinops.integrations import auto

__all__ = ["command_of", "run", "with_separator"]


def run(program: Sequence[str], *, module: str | None, summary: bool) -> NoReturn:
    """Become that program: Python itself runs it, so arguments, exit status, signals, `__main__` and `sys.path[0]` are its own.

    Raises:
        ConfigurationError: for settings that are wrong; nothing was started.
    """
    config.load()
    run_id = new_id()[:20]
    command = command_of(program, module)
    environment = auto.environment(run_id, summary=summary)
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # exec gives the console back at once there
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603 - it is what was typed
    os.execvpe(command[0], command, environment)  # noqa: S606 - the same


def command_of(program: Sequence[str], module: str | None) -> list[str]:
    """What is executed: a script or module by this Python, another command as it is (its own Python processes are metered)."""
    if module is not None:
        return [sys.executable, "-m", module, *program]
    name = program[0]
    if not Path(name).exists() and not name.endswith(".py") and shutil.which(name):
        return list(program)
    return [sys.executable, *program]


def with_separator(words: Sequence[str]) -> list[str]:
    """The words after `run`, with `--` where those of the program begin: behind `-m MODULE` everything is the module's own, also `--help`."""
    if words[:1] != ["run"]:
        return list(words)
    for position, word in enumerate(words[1:], start=1):
        if word == "-m":
            return [*words[: position + 2], "--", *words[position + 2 :]]
        if word == "--" or not word.startswith("-"):
            break
    return list(words)
