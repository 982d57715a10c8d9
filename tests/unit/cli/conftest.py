"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aifinops.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Type a command: (exit status, standard output, standard error)."""

    def typed(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return typed
