"""What is known of a call before it is made, and how a seam makes another one of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aifinops.tags import EMPTY
from aifinops.usage import EMPTY_QUANTITIES, Quantities

__all__ = ["BYTES_PER_TOKEN_MOST", "NO_OUTPUT", "UNSAID", "Call", "Changer"]

BYTES_PER_TOKEN_MOST = 16
"""A token is hardly ever more UTF-8 bytes than so many."""

UNSAID = 16
"""Tokens of a whole answer that are no text of it: its ends, and what marks a tool's call."""

NO_OUTPUT = frozenset({"embeddings", "moderation", "rerank"})
"""Operations whose answers have no tokens."""


@dataclass(slots=True)
class Call:
    """What is known of a call before it is made.

    Attributes:
        provider, operation, model: OpenTelemetry's names (`openai`, `chat`, `gpt-5-mini`).
        body: the request as it will be sent, for the upper bound of its input; read only when a budget needs it.
        stream: True when the answer comes in pieces.
        max_output: the output limit that the caller stated, tokens; None for none. choices: answers asked for.
        service: `llm` and so on. facts: further span attributes.
        region: that the request was sent to, where its address says so; the answer's own word wins.
        counts: what the request alone says will be billed (`{"characters": 12}`), where that is all. most: the most of it, where
            `counts` is only expected.
        options: whatever else the request says that decides the price. hidden: True when `body` does not show all of the input.
        alone: True when what `counts` has is billed in no other way, so that it is kept also where no price is known.
        host: who else makes a span of this call: 0 nobody, 1 somebody who can be kept from it, 2 somebody who cannot.
        unseen: True for a model that thinks in tokens which are billed and not shown.
        loose: tells of the body whether more may be billed than its output limit says; None where the limit holds for all of it.
        change: makes another request of this one, where its seam can still send that; else None. sent: request field -> what is sent in it
            in place of what the caller asked.
        start: output tokens that are held for a stream so far, over all choices, where its hold grows; None for all of them.
    """

    provider: str
    operation: str
    model: str
    body: Any = None
    stream: bool = False
    max_output: int | None = None
    choices: int = 1
    tier: str = ""
    service: str = "llm"
    facts: dict[str, Any] = field(default_factory=dict)
    region: str = ""
    counts: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    most: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    options: tuple[tuple[str, str], ...] = ()
    hidden: bool = False
    alone: bool = False
    host: int = 0
    unseen: bool = False
    loose: Callable[[Any], bool] | None = None
    change: Changer | None = None
    sent: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    start: int | None = None

    def output_bound(self) -> int | None:
        """The most output tokens, over all choices; None when the request states no limit."""
        if self.operation in NO_OUTPUT:
            return 0
        return None if self.max_output is None else self.max_output * self.choices

    def output_cap(self, text: str = "") -> int | None:
        """The most output tokens that can have been billed by the caller's own limit; None where that does not bind.

        Args:
            text: what came. Far more than the limit has room for was written by a server that does not heed it.
        """
        bound = self.output_bound()
        if not bound or (self.loose is not None and self.loose(self.body)):
            return None
        return bound if len(text.encode()) <= BYTES_PER_TOKEN_MOST * (bound + UNSAID) else None


class Changer(Protocol):
    """Makes another request of the one of a call, before it is sent."""

    def with_model(self, call: Call, model: str, *, features: bool) -> Call | str:
        """The same call of another model, or why not: without `features` only one that asks for text by text."""
        ...

    def with_output(self, call: Call, most: int) -> Call | str:
        """The same call with another output limit, tokens an answer; or why not."""
        ...

    def least_output(self, call: Call) -> int:
        """The output limit of an answer has to be above this."""
        ...

    def streams(self, call: Call) -> str:
        """Why what comes of a stream does not show what it costs; empty where it does, and where its seam can end it."""
        ...
