"""A stream that began with a small hold: what has come of it is counted as it passes, and held for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifinops.errors import BudgetExceeded
from aifinops.integrations.streams import collected, read_events
from aifinops.pricing.tokens import count_tokens
from aifinops.usage import output_total

if TYPE_CHECKING:
    from aifinops.integrations.extract import Reader
    from aifinops.integrations.streams import StreamText
    from aifinops.metering import Invocation
    from aifinops.reading import Reading

__all__ = ["Growth"]

EVERY = 1024
"""Bytes between two looks at what has come. Each byte is looked at once."""


class Growth:
    """Counts the output of one stream.

    A stream is ended one piece after there was no room for it, so that one whose text is complete gets to say so.

    Args:
        invocation: whose hold grows. reader: of its answer.
    """

    __slots__ = ("_counted", "_invocation", "_new", "_over", "_reader", "_refused", "_size")

    def __init__(self, invocation: Invocation, reader: Reader) -> None:
        self._invocation = invocation
        self._reader = reader
        self._new: list[bytes] = []
        self._size = 0
        self._counted = 0
        self._over = False
        self._refused: BudgetExceeded | None = None

    def take(self, chunk: bytes) -> None:
        """Some more has come.

        Raises:
            BudgetExceeded: when there was no room for what came before: the stream is to be ended.
        """
        if self._over:
            return
        self._new.append(chunk)
        self._size += len(chunk)
        if self._size >= EVERY or self._refused is not None:
            self._look()

    def _look(self) -> None:
        data = b"".join(self._new)
        lines, newline, rest = data.rpartition(b"\n")
        self._new, self._size = [rest] if rest else [], 0
        came = collected(lines + newline, self._reader)
        if came.finished:
            self._over = True
            return
        if self._refused is not None:
            if read_events(lines + newline, self._reader)[0] is None:
                raise self._refused
            self._over = True  # it has told its usage
            return
        self._more(came, 0)

    def took(self, reading: Reading | None, came: StreamText) -> None:
        """An event of a stream of objects has come.

        Args:
            reading: the usage that it tells, if any. came: the text that is in it.

        Raises:
            BudgetExceeded: as `take`. What shows no output costs none, so such an event ends nothing.
        """
        if self._over:
            return
        told = 0
        if reading is not None:
            if reading.finish_reasons or not self._reader.route.running:
                self._over = True
                return
            told = int(output_total(reading.quantities))
        if self._refused is None:
            self._more(came, told)
        elif came.pieces or told > self._counted:
            raise self._refused

    def _more(self, came: StreamText, told: int) -> None:
        more = max(came.pieces, _most(came.text, self._invocation.call.model))
        self._counted = max(self._counted + more, told)
        try:
            self._invocation.grow(self._counted)
        except BudgetExceeded as refusal:
            self._refused = refusal


def _most(text: str, model: str) -> int:
    """Tokens of a text: exact where a tokenizer is on disk, else never more than one a byte."""
    exact = count_tokens(text, model) if text else 0
    return len(text.encode()) if exact is None else exact
