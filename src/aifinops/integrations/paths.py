"""The small language in which a provider's row says where a number or a word stands in an answer.

    usage.prompt_tokens                               names, through JSON objects and SDK objects alike
    usageMetadata.promptTokenCount                    a name in camelCase is looked for in snake_case as well (Python SDKs rename)
    usage.a | usage.b                                 the first that is there
    usage.a + usage.b                                 the sum of those that are there
    details[modality=AUDIO].tokenCount                entries of a list (or one object) that satisfy a test, added up
    output[type=web_search_call][action.type=search]  both tests; `!=` also holds where the field is missing
    choices[].text                                    every entry
    #output[type=file_search_call]                    how many
    ?candidates[].groundingMetadata.webSearchQueries  1 when there is any
    usage.total_ms / 1000                             in another unit
    =batch                                            the word itself

`|` binds least, then `+`, then `/`. Values of tests are compared without regard to case.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from aifinops.errors import ImpossibleUsage
from aifinops.meters import METERS

__all__ = ["MOST", "Expression", "Getter", "compiled", "count", "getter", "number", "plain", "split", "twin", "word"]

MOST = 2**53
"""No answer counts more than this of anything: above it a number is damaged (and no longer exact in JSON)."""

Getter = Callable[[str], Any]
Names = tuple[tuple[str, str], ...]
Test = tuple[Names, bool, str]

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_SPLIT = re.compile(r"\.(?![^\[]*\])")
_STEP = re.compile(r"(?P<name>\w+)(?P<tests>(?:\[[^\]]*\])*)")
_TEST = re.compile(r"\[(?:(?P<path>[\w.]+)(?P<not>!?)=(?P<value>[^\]]*))?\]")
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_SIMPLE = re.compile(r"\w+(?:\.\w+)*")
_BARE = (int, float, str, bytes, list, tuple, type(None))


def twin(name: str) -> str:
    """The spelling of a camelCase name in Python; empty for a name that has no other."""
    return _CAMEL.sub(r"_\1", name).lower() if name != name.lower() else ""


def split(path: str) -> Names:
    """A plain path as (name, other spelling) pairs."""
    return tuple((name, twin(name)) for name in path.split(".")) if path else ()


def getter(value: Any) -> Getter | None:
    """How to ask a dict or an object for a name; None for what has no names.

    A pydantic model answers for a name that it does not have by raising, which takes longer than all the rest of reading an answer;
    its fields are in `__dict__`, and what its class does not know is in `__pydantic_extra__`.
    """
    if type(value) is dict:
        return value.get
    extra = getattr(value, "__pydantic_extra__", _NOTHING)
    if extra is _NOTHING:
        if isinstance(value, Mapping):
            return value.get
        return None if isinstance(value, _BARE) else lambda name: getattr(value, name, None)
    inner: Getter = value.__dict__.get
    return (lambda name: inner(name) if (found := extra.get(name)) is None else found) if extra else inner


def plain(value: Any, path: Names) -> Any:
    """The value at a plain path; None when anything on the way is missing."""
    for name, other in path:
        ask = getter(value)
        if ask is None:
            return None
        value = ask(name)
        if value is None and other:
            value = ask(other)
    return value


def word(value: Any) -> str:
    """A text, or the value of an enumeration of texts, as a plain text; empty for anything else."""
    if type(value) is str:
        return value
    inner = value.value if isinstance(value, Enum) else value
    return str(inner) if isinstance(inner, str) else ""


def number(value: Any) -> int | float | None:
    """A number of a database or a numerical library as one of JSON; None for what is none."""
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(str(value).lstrip("s"))
    if isinstance(value, float):
        return float(value)
    return operator.index(value) if hasattr(type(value), "__index__") else None


def count(meter: str, value: Any) -> int | Decimal | None:
    """A reported number as a quantity: whole, except for time and the like. None for an SDK's mark of an absent field.

    Raises:
        ImpossibleUsage: for a bool, a text, a negative, fractional, infinite or absurdly large number; it names meter and value.
    """
    if type(value) not in _PLAIN and (other := number(value)) is not None:
        value = other
    if type(value) is int:
        if 0 <= value <= MOST:
            return value
    elif isinstance(value, float) and value == value and 0 <= value <= MOST:  # noqa: PLR0124 (NaN is not itself)
        if value == int(value):
            return int(value)
        if meter not in METERS or METERS[meter].family not in _WHOLE:
            return Decimal(repr(value))
    elif type(value).__name__ == "Unset":
        return None
    raise ImpossibleUsage(f"{meter}={_shown(value)} is no count")


_WHOLE = frozenset({"tokens", "calls"})
_PLAIN = frozenset({int, float, str, bool, dict, list})


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, str, bool, Decimal)) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True, slots=True)
class _Term:
    """One path with its tests, how its values count, and what they are divided by.

    Attributes:
        lead: the names up to the first test: most answers have nothing there, and that is seen fast.
        direct: True when the path has no tests, so that its value is what `lead` leads to.
    """

    steps: tuple[tuple[str, str, tuple[Test, ...]], ...]
    mode: str
    per: int
    lead: Names
    direct: bool

    def values(self, body: Any) -> Iterator[Any]:
        """Every value at the path."""
        first = plain(body, self.lead)
        if first is None:
            return iter(())
        return iter((first,)) if self.direct else self.reach(body)

    def reach(self, value: Any, at: int = 0) -> Iterator[Any]:
        """Every value at the path."""
        if at == len(self.steps):
            yield value
            return
        ask = getter(value)
        if ask is None:
            return
        name, other, tests = self.steps[at]
        inner = ask(name)
        if inner is None and other:
            inner = ask(other)
        if inner is None:
            return
        if not tests:
            yield from self.reach(inner, at + 1)
            return
        for entry in inner if isinstance(inner, (list, tuple)) else (inner,):
            if all(_holds(test, entry) for test in tests):
                yield from self.reach(entry, at + 1)

    def number(self, meter: str, body: Any) -> int | Decimal | None:
        """What is there, added up or counted; None when nothing is, except that nothing is counted as 0."""
        if self.mode and len(self.steps) == 1:
            return self._tally(body)
        first = plain(body, self.lead)
        if first is None:
            return 0 if self.mode else None
        if self.direct and not self.mode and self.per == 1:
            return count(meter, first)
        values = self.reach(body)
        if self.mode:
            there = sum(len(value) if isinstance(value, (list, tuple)) else 1 for value in values)
            return min(there, 1) if self.mode == "?" else there
        total: int | Decimal | None = None
        for value in values:
            quantity = count(meter, value) if value is not None else None
            if quantity is not None:
                total = quantity if total is None else total + quantity
        if total is None or self.per == 1:
            return total
        exact = Decimal(total) / self.per
        return int(exact) if exact == int(exact) else exact

    def _tally(self, body: Any) -> int:
        """How many entries of a list of the body hold the tests: asked of every answer with output items, so without generators."""
        ask = getter(body)
        name, other, tests = self.steps[0]
        entries = None if ask is None else ask(name) or (ask(other) if other else None)
        if not isinstance(entries, (list, tuple)):
            return 0
        number = len(entries) if not tests else sum([_all_hold(tests, entry) for entry in entries])
        return min(number, 1) if self.mode == "?" else number


def _all_hold(tests: tuple[Test, ...], entry: Any) -> bool:
    """Whether an entry satisfies every test; most fail the first, which is mostly of one name that every entry has."""
    path, equal, wanted = tests[0]
    if equal and len(path) == 1:
        name = path[0][0]
        found = entry.get(name) if type(entry) is dict else getattr(entry, name, None)
        if type(found) is str and found != wanted and found.casefold() != wanted:
            return False
    return all(_holds(test, entry) for test in tests)


def _holds(test: Test, entry: Any) -> bool:
    path, equal, wanted = test
    if not path:
        return True
    found = plain(entry, path)
    if found == wanted:
        return equal
    text = str(found) if isinstance(found, (bool, int)) else word(found)
    return (text.casefold() == wanted) is equal


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled text of the language.

    Attributes:
        text: as written. alternatives: sums in order. literal: the word that it is.
    """

    text: str
    alternatives: tuple[tuple[_Term, ...], ...]
    literal: str = ""

    def number(self, meter: str, body: Any) -> int | Decimal | None:
        """The first alternative that has a number; None when none has.

        Raises:
            ImpossibleUsage: for a value that is no count.
        """
        for terms in self.alternatives:
            values = [value for term in terms if (value := term.number(meter, body)) is not None]
            if values:
                return values[0] if len(values) == 1 else sum(values)
        return None

    def any(self, body: Any) -> bool:
        """Whether there is a value anywhere."""
        for terms in self.alternatives:
            for term in terms:
                if plain(body, term.lead) is not None and (term.direct or next(term.reach(body), None) is not None):
                    return True
        return False

    def roots(self) -> tuple[str, ...]:
        """The names of the body that any path begins with, in every spelling: without one of them nothing is there."""
        first = [term.steps[0][:2] for terms in self.alternatives for term in terms]
        return tuple(dict.fromkeys(name for spellings in first for name in spellings if name))

    def needs(self, root: str) -> frozenset[str] | None:
        """The names below `root` of which one must be there for anything to be found; None when paths begin elsewhere too."""
        names: set[str] = set()
        for terms in self.alternatives:
            for term in terms:
                if term.mode or len(term.steps) < 2 or term.steps[0] != (root, twin(root), ()):
                    return None
                names.update(filter(None, term.steps[1][:2]))
        return frozenset(names)

    def values(self, body: Any) -> Iterator[Any]:
        """Every value, in the order of the alternatives."""
        for terms in self.alternatives:
            for term in terms:
                yield from (value for value in term.values(body) if value is not None)

    def first(self, body: Any) -> list[Any]:
        """The values of the first alternative that has any."""
        for terms in self.alternatives:
            found = [value for term in terms for value in term.values(body) if value is not None]
            if found:
                return found
        return []

    def word(self, body: Any, names: Mapping[str, str]) -> str:
        """The first value that is a text and is not empty under its standard name."""
        if self.literal:
            return self.literal
        for terms in self.alternatives:
            for term in terms:
                for value in (plain(body, term.lead),) if term.direct else term.values(body):
                    text = word(value)
                    text = names.get(text, text)
                    if text:
                        return text
        return ""


@lru_cache(maxsize=1024)
def compiled(text: str) -> Expression:
    """The expression of a text.

    Raises:
        ValueError: for a text that is not of the language: a row is wrong, which a test of the rows shows.
    """
    if text.startswith("="):
        return Expression(text, (), text[1:])
    alternatives = tuple(tuple(map(_term, part.split(" + "))) for part in text.split("|"))
    return Expression(text, alternatives)


def simple(text: str) -> bool:
    """Whether a text is one plain path."""
    return _SIMPLE.fullmatch(text) is not None


def _term(text: str) -> _Term:
    path, _, divisor = text.strip().partition(" / ")
    mode = path[0] if path[:1] in {"#", "?"} else ""
    steps = []
    for part in _SPLIT.split(path.removeprefix(mode)):
        found = _STEP.fullmatch(part)
        if found is None:
            raise ValueError(f"{part!r} in {text!r} is no step of a path")
        tests = tuple(
            (split(test["path"] or ""), not test["not"], (test["value"] or "").casefold())
            for test in _TEST.finditer(found["tests"])
        )
        steps.append((found["name"], twin(found["name"]), tests))
    tested = next((number for number, (_, _, tests) in enumerate(steps, 1) if tests), 0)
    lead = tuple((name, other) for name, other, _ in steps[: tested or len(steps)])
    return _Term(tuple(steps), mode, int(divisor) if divisor else 1, lead, not tested)
