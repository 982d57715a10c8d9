"""What the benchmarks share: an environment of its own for every system, and workers that are asked line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def environment(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment, made and filled on first use; this project in it is installed again each time."""
    target = folder / name
    python = target / "bin" / "python"
    stamp = target / "installed.json"
    if not (stamp.exists() and json.loads(stamp.read_text()) == list(packages)):
        venv.create(target, with_pip=True, clear=True)
        _pip(python, "--upgrade", "pip")  # the one that comes with Python 3.11 gives up on what OpenLIT asks for
        _pip(python, *packages)
        stamp.write_text(json.dumps(list(packages)))
    elif str(ROOT) in packages:
        _pip(python, "--no-deps", "--force-reinstall", str(ROOT))
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)


class Worker:
    """A process that says what it is in its first line of JSON, then answers each line with one line of JSON."""

    def __init__(self, python: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [python, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)  # type: ignore[no-any-return]

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"a worker ended with {self.process.wait(timeout=30)}")

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def stop(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # one that has ended already, with a line that it has not read
            self.process.stdin.close()
        self.process.wait(timeout=30)


def left_out(name: str, error: Exception) -> None:
    """Say that a system is not in the figures, and why."""
    print(f"{name}: left out, {error}", file=sys.stderr)
