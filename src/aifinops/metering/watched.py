"""Calls that are seen only by their answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aifinops.errors import swallow
from aifinops.metering.invocation import Invocation
from aifinops.reading import Reading

if TYPE_CHECKING:
    from aifinops import runtime
    from aifinops.metering.call import Call
    from aifinops.scope import Scope
    from aifinops.tags import Tags

__all__ = ["Watched", "Watcher"]


class Watched(Invocation):
    """A request that may cost nothing: a poll, a download, an endpoint that nobody knows. Nothing is held for it, no span is begun, and
    its end only goes to `read`, which may `charge`. `early` is given the transport's answer before the library has begun to read it; `path`
    is what it asks for."""

    __slots__ = ("early", "path", "read")

    def __init__(self, engines: runtime.Runtime, call: Call, scope: Scope, tags: Tags, read: Watcher) -> None:
        super().__init__(engines, call, scope, tags)
        self.read = read
        self.path = ""
        self.early: Callable[[Any], None] | None = None

    def settle(self, reading: Reading, status: str = "ok", error: BaseException | None = None) -> None:
        """Hand over what was read, once."""
        if self._end():
            self.read(self, reading, "")

    def settle_estimated(self, output_text: str, chunks: int, reading: Reading, status: str) -> None:
        """Hand over an answer without usage."""
        if self._end():
            self.read(self, reading, output_text)

    def lose(self, error: BaseException) -> bool:
        """A try that cost nothing."""
        return False

    def fail(self, error: BaseException, *, refused: bool = False) -> None:
        """The call raised, and costs nothing."""
        self.leave()
        self._end()

    def charge(self, reading: Reading, *, id: str = "", at: int = 0) -> None:
        """Charge what an answer said, to whoever asked for it.

        Args:
            reading: with usage. id: of the ledger entry, which ignores one that it has. at: when it was made, by default now.
        """
        late = Invocation(
            self.engines, replace(self.call, model=self.call.model or reading.model), self.scope, self.tags
        )
        late.id, late.wall, late.started = id or late.id, at or self.wall, self.started
        late.budgets = self.engines.budgets(self.scope, self.tags)
        try:
            late.enter()
            late.leave()
        except Exception as failure:  # without a span it is charged all the same
            swallow("metering.charge", failure)
        late.settle(reading)


Watcher = Callable[[Watched, Reading, str], None]
"""What is to be done with the end of a watched call: the call, what was read, and the text that came without a usage."""
