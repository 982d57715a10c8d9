"""Files as what they hold: lines of JSON, one document, or rows of a table; each with its place, and told apart by looking at them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from aifinops.errors import ConfigurationError
from aifinops.importing.records import Malformed

__all__ = ["Item", "Source"]

_LOOK = 1 << 16
_FIELD = 1 << 27  # bytes of one field of a table: the prompts that some exports hold are above the default of 128 KiB

Progress = Callable[[int], None]
"""Is told how many bytes of a file have been read."""


@dataclass(slots=True)
class Item:
    """Something in a file: a mapping, and where it stands (`line 3`, `item 7`); or why it could not be read."""

    place: str
    value: Any = None
    problem: str = ""


class Source:
    """One file, gzipped or not.

    Attributes:
        path: of it. table: True when it is rows under a heading. head: the columns of the heading.
        size: bytes as stored. lines: True for a document a line.

    Args:
        path: of it.

    Raises:
        ConfigurationError: when it cannot be opened, or is empty or no text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with self._open() as stream:
                look = stream.read(_LOOK)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path} is no text in UTF-8; write a CSV, JSON or JSON-lines file") from None
        self.table = not look.lstrip().startswith(("{", "["))
        self.lines = not self.table and _are_lines(look)
        self.head: list[str] = []
        if not look.strip():
            raise ConfigurationError(f"{path} is empty")
        if self.table:
            self._dialect = _dialect(look)
            self.head = [name.strip() for name in next(csv.reader(io.StringIO(look), self._dialect))]

    def items(self, progress: Progress = lambda read: None) -> Iterator[Item]:
        """What it holds, from the beginning."""
        if self.table:
            yield from self._rows(progress)
        elif self.lines:
            yield from self._json_lines(progress)
        else:
            yield from self._document()
        progress(self.size)

    def _rows(self, progress: Progress) -> Iterator[Item]:
        csv.field_size_limit(_FIELD)
        with self._reading() as (stream, told):
            rows = csv.reader(stream, self._dialect)
            next(rows)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Item(f"line {rows.line_num}", problem=str(error))
                    continue
                progress(told())
                if not any(row):
                    continue
                place = f"line {rows.line_num}"
                if len(row) != len(self.head):
                    yield Item(place, problem=f"has {len(row)} fields where the heading has {len(self.head)}")
                else:
                    yield Item(place, dict(zip(self.head, row, strict=True)))

    def _json_lines(self, progress: Progress) -> Iterator[Item]:
        with self._reading() as (stream, told):
            for number, line in enumerate(stream, 1):
                progress(told())
                if not line.strip():
                    continue
                try:
                    value = _json(line)
                except Malformed as error:
                    yield Item(f"line {number}", problem=str(error))
                else:
                    yield from _spread(f"line {number}", value)

    def _document(self) -> Iterator[Item]:
        with self._reading() as (stream, _):
            content = stream.read()
        try:
            value = _json(content)
        except Malformed as error:
            raise ConfigurationError(f"{self.path} is neither JSON nor JSON lines: {error}") from None
        yield from _spread("", value)

    @contextmanager
    def _reading(self) -> Iterator[tuple[IO[str], Callable[[], int]]]:
        """The text, in which what is no UTF-8 is a mark, and how many bytes of the file are read."""
        with ExitStack() as stack:
            raw = stack.enter_context(self.path.open("rb"))
            data = stack.enter_context(gzip.GzipFile(fileobj=raw)) if self._packed() else raw
            text = io.TextIOWrapper(cast("IO[bytes]", data), encoding="utf-8-sig", errors="replace", newline="")
            yield stack.enter_context(text), raw.tell

    def _open(self) -> IO[str]:
        if self._packed():
            return gzip.open(self.path, "rt", encoding="utf-8-sig")
        return self.path.open(encoding="utf-8-sig", newline="")

    def _packed(self) -> bool:
        with self.path.open("rb") as raw:
            return raw.read(2) == b"\x1f\x8b"


def _are_lines(look: str) -> bool:
    """Whether each line is a document of its own: the first or the second of several is."""
    lines = [line for line in look.split("\n")[:3] if line.strip()]
    if len(lines) < 2 or lines[0].strip() == "[":
        return False
    return any(_is_json(line) for line in lines[:2] if line.lstrip().startswith(("{", "[{")))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _json(content: str) -> Any:
    """JSON whose numbers are exact.

    Raises:
        Malformed: where it is none; it says where.
    """
    try:
        return json.loads(content, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON: {error}") from None


def _spread(place: str, value: Any) -> Iterator[Item]:
    """Each element of a list is an item; so is what a page of an API holds under `data` where that is not read as a whole."""
    if isinstance(value, list):
        for number, one in enumerate(value, 1):
            yield from _spread(f"{place}, item {number}".removeprefix(", "), one)
    elif isinstance(value, Mapping):
        yield Item(place or "item 1", value)
    else:
        yield Item(place or "item 1", problem=f"is {type(value).__name__}, not an object")


def _dialect(look: str) -> type[csv.Dialect]:
    heading = look.partition("\n")[0]

    class Found(csv.excel):
        delimiter = max((",", ";", "\t", "|"), key=heading.count)

    return Found
