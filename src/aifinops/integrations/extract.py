"""From a provider's answer (JSON or SDK object) to disjoint usage and what decides its price, by the paths of its row."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from copy import copy
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from aifinops.errors import ImpossibleUsage
from aifinops.integrations.paths import (
    MOST,
    Expression,
    Getter,
    Names,
    compiled,
    count,
    getter,
    number,
    plain,
    simple,
    split,
    twin,
    word,
)
from aifinops.integrations.provider import TOTALS, WHOLES, Parts, Route
from aifinops.meters import METERS
from aifinops.reading import Part, Reading
from aifinops.usage import Quantity, leaves

__all__ = ["Reader", "added", "dig", "drift", "plain_copy"]

_Tree = tuple[tuple[str, str, Any], ...]
_Counts = dict[str, Quantity]
_Split = tuple[str, str, tuple[str, ...]]
_ANY: frozenset[str] = frozenset()
"""Of an expression: it may find something whatever the usage object has."""
_OUTPUT, _REASONING, _CACHED = "output_tokens", "reasoning_tokens", "cache_read_tokens"


def dig(value: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of names into dicts and objects; None when anything on the way is missing."""
    return plain(value, tuple((name, twin(name)) for name in path))


def _texts(value: Any, path: Names) -> Iterator[str]:
    """Every text at a path; lists on the way are walked through."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, path)
    elif not path:
        text = word(value)
        if text:
            yield text
    elif (ask := getter(value)) is not None:
        (name, other), *rest = path
        inner = ask(name)
        yield from _texts(ask(other) if inner is None and other else inner, tuple(rest))


class _Counter:
    """The usage paths of a row, compiled once into a tree so that each object on the way is asked once."""

    def __init__(self, usage: Mapping[str, str]) -> None:
        self._usage = usage
        first = {meter: text.split("|")[0].strip() for meter, text in usage.items()}
        self._tree = _tree({meter: text for meter, text in first.items() if simple(text)})
        self._level: _Level | None = None
        self._splits: dict[tuple[str, ...], list[_Split]] = {}
        # What one plain path does not say: sums, tests, and alternatives of a path that was not there.
        self._late = [(meter, compiled(text), _ANY) for meter, text in usage.items() if not simple(text)]
        kept = {WHOLES[name][0] if name in WHOLES else TOTALS.get(name, name) for name in usage}
        # (inclusive count, the meter that keeps its rest, the meters that are parts of it); inner wholes come first.
        self._wholes = [
            (whole, rest, inside)
            for whole, (rest, parts) in WHOLES.items()
            if whole in usage and (inside := tuple(name for name in parts if name in kept))
        ] + [
            (total, rest, tuple(name for name in sorted(kept) if name != rest and _direction(name) == direction))
            for total, direction, rest in (
                ("input_total", "input", "input_tokens"),
                ("output_total", "output", _OUTPUT),
            )
            if total in usage
        ]
        split_up = {name for name, _, _ in self._wholes}
        self._renamed = [
            (whole, WHOLES[whole][0])
            for whole in usage
            if whole in WHOLES and whole not in split_up and whole != WHOLES[whole][0]
        ]

    def below(self, root: str, known: _Known) -> _Counter | None:
        """The same for what is below a name of the body, when all plain paths begin with it.

        Args:
            known: every name that some path of the route reads there.
        """
        if [name for name, _, _ in self._tree] != [root]:
            return None
        inner = copy(self)
        inner._tree = self._tree[0][2]
        kept = frozenset({*(name for name, _, _ in self._wholes), *(meter for meter, _, _ in self._late)})
        inner._level = _Level(inner._tree, known, kept)
        inner._late = [(meter, expression, expression.needs(root) or _ANY) for meter, expression, _ in self._late]
        return inner

    def counts(self, body: Any) -> _Counts | None:
        """Disjoint counts, without zeros; None when the body reports none at all.

        Args:
            body: the answer, or an entry of a list in it.

        Raises:
            ImpossibleUsage: when parts are above their whole, or a count is no count.
        """
        found: _Counts = {}
        _walk(body, self._tree, found)
        return self._disjoint(found, body, _NOTHING)

    def counts_within(self, usage: dict[str, Any], body: Any) -> tuple[_Counts | None, bool]:
        """(`counts` of a body whose usage object this is, whether every name in it is known); of the counter of `below`."""
        found: _Counts = {}
        level = self._level
        known = level is None or level.read(usage, found)
        counts = self._disjoint(found, body, usage)
        if counts is None:  # no count, or zeros only
            _walk(usage, self._tree, found)
            counts = {} if found else None
        return counts, known

    def _disjoint(self, found: _Counts, body: Any, within: dict[str, Any]) -> _Counts | None:
        for meter, expression, needs in self._late:
            if meter not in found and (needs is _ANY or not needs.isdisjoint(within)):
                value = expression.number(meter, body)
                if value is not None:
                    found[meter] = value
        if not found:
            return None
        for whole, name in self._renamed:
            if whole in found:
                found[name] = found.pop(whole)
        said = tuple(found)
        for whole, rest_of_it, names in self._splits.get(said) or self._split(said):
            rest = total = found.pop(whole)
            for name in names:
                rest -= found[name]
            if rest < 0 and self._overlap(found, names, -rest):
                rest = 0
            if rest < 0:  # raises, naming the numbers
                leaves(total, {name: found[name] for name in names}, whole_name=self._usage[whole].split(" |")[0])
            found[rest_of_it] = rest
        if 0 in found.values():
            return {name: value for name, value in found.items() if value}
        return found

    def _split(self, said: tuple[str, ...]) -> list[_Split]:
        """What is to be taken from what, when these were counted; worked out once for each set of them."""
        names, splits = set(said), []
        for whole, rest_of_it, parts in self._wholes:
            if whole in names:
                names.remove(whole)
                splits.append((whole, rest_of_it, tuple(name for name in parts if name in names)))
                names.add(rest_of_it)
        if len(self._splits) < _MOST_PLANS:
            self._splits[said] = splits
        return splits

    def _overlap(self, found: _Counts, names: tuple[str, ...], excess: Quantity) -> bool:
        """Cached tokens that are not told by modality may be those of audio or images: as many are as must be."""
        for modality in ("audio", "image", "video"):
            fresh, cached = f"input_{modality}_tokens", f"cache_read_{modality}_tokens"
            if fresh in names and cached not in found and min(found.get(fresh, 0), found.get(_CACHED, 0)) >= excess:
                found[fresh] -= excess
                found[_CACHED] -= excess
                found[cached] = excess
                return True
        return False


class _Parts:
    """The compiled form of `provider.Parts`; `root` is the name of the usage object."""

    def __init__(self, row: Parts, root: str) -> None:
        self.row = row
        self._path = compiled(row.path)
        self.roots, self.needs = self._path.roots(), self._path.needs(root)
        self._counter = _Counter(row.usage)
        self._kind = split(row.kind)
        self._model = split(row.model)
        self._model_in_body = compiled(row.model_in_body) if row.model_in_body else None

    def read(self, body: Any, own_model: str) -> list[tuple[bool, Part]]:
        """(whether it is inside the counts of the answer itself, the part) for each billed entry."""
        entries = [
            entry
            for found in self._path.values(body)
            for entry in (found if isinstance(found, (list, tuple)) else (found,))
        ]
        if not entries:
            return []
        row = self.row
        kinds = [word(plain(entry, self._kind)) for entry in entries]
        # A model that is not named must stay unknown: it is not the answer's own.
        named = self._model_in_body.word(body, _NO_NAMES) or row.path if self._model_in_body else own_model
        read = []
        for kind, entry in zip(kinds, entries, strict=True):
            counts = self._counter.counts(entry)
            if not counts:
                continue
            model = word(plain(entry, self._model)) or named
            billed = (
                kind != row.unbilled or row.served not in kinds or any(_direction(name) == "output" for name in counts)
            )
            inside = "*" in row.inside or kind in row.inside
            read.append((inside, Part(counts if billed else {}, model, kind, counts)))
        return read

    def strange(self, found: list[tuple[bool, Part]]) -> list[Part]:
        """Parts of a kind that the row does not know."""
        return [part for inside, part in found if not inside and part.kind not in self.row.beside]


class Reader:
    """One route's row, compiled.

    Args:
        route: the row. provider: whose answers these are, for counting what no path knows.
    """

    def __init__(self, route: Route, provider: str = "") -> None:
        self.route = route
        self._provider = provider
        self._counter = _Counter(route.usage)
        self._known = _known(route)
        self._below = self._counter.below(route.raw, self._known)
        self._has_late = bool(self._counter._late)
        self._tools = _tools(route.tools, route.raw)
        self._tools_of = [(begin, _tools(tools, route.raw)) for begin, tools in route.tools_of.items()]
        self._offered = route.offered
        self._parts = [_Parts(row, route.raw) for row in route.parts]
        self._model = _place(route.model)
        self._id = _place(route.response_id)
        self._tier = _place(route.tier)
        self._region = _place(route.region)
        self._options = [(name, compiled(text)) for name, text in sorted(route.options.items())]
        self._reported = compiled(route.reported) if route.reported else None
        self._notes = [(compiled(text), note, compiled(text).needs(route.raw)) for text, note in route.notes.items()]
        self._more = self._region is not None or self._reported is not None or bool(self._options or self._notes)
        self._created = compiled(route.created) if route.created else None
        self._created_name = route.created if _place(route.created) == route.created else ""
        self._finish = split(route.finish)
        self._event = split(route.event)
        self._text = tuple(split(text) for text in route.text)
        self._raw = split(route.raw)
        self._raw_name = route.raw if self._raw == ((route.raw, ""),) else ""
        self._also = [(path, split(path) if "." in path else None) for path in route.also]
        self.otherwise = None if route.otherwise is None else Reader(route.otherwise, provider)
        roots = [route.raw.rpartition(".")[2]] if route.raw else _first_names(route.usage)
        self.marks = tuple(f'"{name}"'.encode() for name in roots)
        """In an event without any of these there is no usage."""

    def read(self, body: Any, *, brief: bool = False) -> Reading | None:
        """What a body says, or None when it has no usage.

        Args:
            body: the answer. brief: leave out what decides no price: the id, why it ended, and a copy of the usage object.

        Raises:
            ImpossibleUsage: when parts are above their whole, or a count is no count.
        """
        ask = body.get if type(body) is dict else getter(body)
        return None if ask is None else self._read(ask, body, self._kept(ask, body, brief=brief), brief=brief)

    def tolerant(self, body: Any) -> Reading | None:
        """`read`, but counts that contradict each other are a problem of the reading: cost unknown, raw usage kept."""
        ask = body.get if type(body) is dict else getter(body)
        if ask is None:
            return None
        raw = self._kept(ask, body)
        try:
            return self._read(ask, body, raw)
        except ImpossibleUsage as error:
            return self._complete(Reading(raw=raw, problem=str(error)), ask, body)

    def _read(self, ask: Getter, body: Any, raw: dict[str, Any] | None, *, brief: bool = False) -> Reading | None:
        if self._below is None:
            counts = self._counter.counts(body)
        elif raw is None and not self._has_late:
            return None
        else:  # the kept copy is plain dicts: reading that is faster than asking the SDK's objects a second time
            counts, known = self._below.counts_within(_NOTHING if raw is None else raw, body)
            if not known and raw is not None:
                self._known.count(self._provider, raw)
        if counts is None:
            return None
        reading = self._complete(Reading(counts, raw), ask, body, brief=brief)
        if (self._tools or self._parts) and (not self._offered or ask(self._offered) != []):
            self._beside(reading, counts, ask, body)
        return reading

    def _beside(self, reading: Reading, counts: _Counts, ask: Getter, body: Any) -> None:
        """What is counted outside the usage object: tools, and parts of several models."""
        kept = reading.raw or _NOTHING
        for meter, expression, roots, needs in self._tools_for(reading.model):
            if any(map(ask, roots)) if needs is None else not needs.isdisjoint(kept):
                value = expression.number(meter, body)
                if value:
                    counts[meter] = value
        found = [
            part
            for parts in self._parts
            if (any(map(ask, parts.roots)) if parts.needs is None else not parts.needs.isdisjoint(kept))
            for part in parts.read(body, reading.model)
        ]
        if found:
            _join(reading, found)
            strange = {part.kind for parts in self._parts if parts.row.beside for part in parts.strange(found)}
            if strange:
                note = f"counted beside the rest, being of a kind that is not known: {', '.join(sorted(strange))}"
                reading.notes = (*reading.notes, note)

    def most_tools(self, reading: Reading, events: list[Any]) -> Reading:
        """Count tools over the events of a stream, of which any may tell them: of each the most, since events repeat."""
        for meter, expression, roots, _ in self._tools_for(reading.model):
            for event in events:
                ask = getter(event)
                if ask is not None and any(map(ask, roots)) and (value := expression.number(meter, event)):
                    reading.quantities = {**reading.quantities, meter: max(value, reading.quantities.get(meter, 0))}
        return reading

    def _tools_for(self, model: str) -> _Tools:
        """How the tools of a model are counted, by the model that answered: one that is asked for by an alias may be of any generation."""
        if self._tools_of:
            name = model.rpartition("/")[2]
            for begin, tools in self._tools_of:
                if name.startswith(begin):
                    return tools
        return self._tools

    def describe(self, body: Any) -> Reading:
        """Model, id and tier of a body without usage."""
        ask = getter(body)
        return Reading() if ask is None else self._complete(Reading(), ask, body)

    def created(self, body: Any) -> int | None:
        """When the answer says that it was made, nanoseconds since the epoch; None when it does not."""
        if self._created is None:
            return None
        if self._created_name and type(body) is dict:
            found = body.get(self._created_name)
        else:
            found = next(self._created.values(body), None)
        if isinstance(found, str):
            found = _seconds(found)
        if isinstance(found, (int, float)) and not isinstance(found, bool) and _FIRST <= found <= _LAST:
            return int(found) * 1_000_000_000
        return None

    def _complete(self, reading: Reading, ask: Getter, body: Any, *, brief: bool = False) -> Reading:
        route = self.route
        reading.model = _said(self._model, ask, body, _NO_NAMES)
        if self._id is not None and not brief:
            reading.response_id = _said(self._id, ask, body, _NO_NAMES)
        if self._tier is not None:
            reading.tier = _said(self._tier, ask, body, route.tiers)
        if self._finish and not brief:
            reading.finish_reasons = _finishes(self._finish, ask, body)
        if self._more:
            self._complete_more(reading, ask, body)
        return reading

    def _complete_more(self, reading: Reading, ask: Getter, body: Any) -> None:
        """What only some providers have."""
        if self._region is not None:
            reading.region = _said(self._region, ask, body, self.route.regions)
        if self._reported is not None:
            reading.reported = _money(self._reported, body)
        if self._options:
            found = ((name, expression.word(body, _NO_NAMES)) for name, expression in self._options)
            reading.options = tuple((name, value) for name, value in found if value)
        reading.notes = tuple(
            [
                note
                for expression, note, needs in self._notes
                if (needs is None or not needs.isdisjoint(reading.raw or _NOTHING)) and expression.any(body)
            ]
        )

    def _kept(self, ask: Getter, body: Any, *, brief: bool = False) -> dict[str, Any] | None:
        """The provider's usage object as a dict; `brief`: the object itself where it is one. What no path knows is counted here when
        the counts are not read from it alone."""
        if self._raw_name:
            raw = ask(self._raw_name)
            if brief and type(raw) is dict and self._below is not None:
                return (self._with_more(ask, body, raw.copy()) if self._also else raw) or None
            raw = plain_copy(raw)
        else:
            raw = plain_copy(plain(body, self._raw)) if self._raw else _roots(body, self._known)
        if type(raw) is not dict:
            raw = {}
        elif self._below is None and not self._known.covers(raw):
            self._known.count(self._provider, raw)
        return (self._with_more(ask, body, raw) if self._also else raw) or None

    def _with_more(self, ask: Getter, body: Any, raw: dict[str, Any]) -> dict[str, Any]:
        for name, path in self._also:
            more = ask(name) if path is None else plain(body, path)
            if more is not None:
                raw[name] = plain_copy(more)
        return raw

    def event_body(self, event: Any) -> Any:
        """The body inside a stream's event: the event itself, or the object that it carries."""
        return plain(event, self._event) if self._event else event

    def begun(self, event: Any) -> Reading:
        """What the first event of a stream that broke off says: model, id and, where events add to one another, the input."""
        body = next((plain(event, split(source)) for source, target in self.route.merge if not target), None)
        if body is None:
            return self.describe(self.event_body(event) or {})
        told = self.tolerant(body)
        if told is None or told.problem:
            return self.describe(body)
        told.quantities = {name: count for name, count in told.quantities.items() if _direction(name) == "input"}
        return told

    def text(self, body: Any) -> str:
        """All generated text of a body or a stream event."""
        return "".join(text for path in self._text for text in _texts(body, path))


_Tools = list[tuple[str, Expression, tuple[str, ...], frozenset[str] | None]]


def _tools(paths: Mapping[str, str], raw: str) -> _Tools:
    """(meter, where, names of the body and of the usage object of which one must be there) of each tool."""
    found = ((meter, compiled(text)) for meter, text in paths.items())
    return [(meter, expression, expression.roots(), expression.needs(raw)) for meter, expression in found]


_NO_NAMES: Mapping[str, str] = {}
_NOTHING: dict[str, Any] = {}
_FIRST, _LAST = 1_500_000_000, 10_000_000_000
"""Seconds since the epoch that can be the moment of an answer: 2017 to 2286, which no count of milliseconds falls into."""


def _seconds(text: str) -> int | None:
    """Seconds since the epoch of a moment in ISO 8601; None for what is none."""
    try:
        said = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp())


def _place(text: str) -> str | Names | Expression | None:
    """Where a word stands: one name or a plain path, which are the fast ways, or an expression."""
    if not text:
        return None
    if not simple(text):
        return compiled(text)
    path = split(text)
    return text if path == ((text, ""),) else path


def _said(place: str | Names | Expression | None, ask: Getter, body: Any, names: Mapping[str, str]) -> str:
    if type(place) is str:
        found = ask(place)
        text = found if type(found) is str else word(found)
    elif type(place) is tuple:
        text = word(plain(body, place))
    else:
        return place.word(body, names) if isinstance(place, Expression) else ""
    return names.get(text, text) if names else text


def _finishes(path: Names, ask: Getter, body: Any) -> tuple[str, ...]:
    """Why each answer ended; the usual list of choices is gone through without generators."""
    if len(path) == 2:
        entries = ask(path[0][0])
        if type(entries) is list:
            name = path[1][0]
            asked = [inner(name) for entry in entries if (inner := getter(entry)) is not None]
            return tuple([found if type(found) is str else text for found in asked if (text := word(found))])
    elif len(path) == 1 and ask(path[0][0]) is True:
        return ("true",)
    return tuple(_texts(body, path))


def _money(expression: Expression, body: Any) -> Decimal | None:
    """What the provider says it charged; None when it does not, or when it is no amount."""
    try:
        found = expression.number("reported", body)
    except ImpossibleUsage:
        return None
    return None if found is None else Decimal(found)


def _join(reading: Reading, found: list[tuple[bool, Part]]) -> None:
    """Put parts into a reading: what they do not account for of the answer's own counts stays a part of its own model."""
    own = dict(reading.quantities)
    inside = [part for is_inside, part in found if is_inside]
    if inside:
        _spread_reasoning(
            own, [part for part in inside if part.quantities and part.model in {reading.model, ""}] or inside
        )
        for part in inside:
            for name, value in part.counted.items():
                own[name] = max(own.get(name, 0) - value, 0)
    rest = {name: value for name, value in own.items() if value}
    parts = [*([Part(rest, reading.model)] if rest else []), *(part for _, part in found if part.quantities)]
    reading.parts = tuple(parts)
    reading.quantities = added(part.quantities for part in parts)


def _spread_reasoning(own: _Counts, parts: list[Part]) -> None:
    """Entries tell output without saying what of it was reasoning; the answer says it for all: the first ones take it."""
    left = own.get(_REASONING, 0)
    for part in parts:
        if not left or _REASONING in part.quantities:
            return
        moved = min(left, part.quantities.get(_OUTPUT, 0))
        if moved:
            counts = {**part.quantities, _OUTPUT: part.quantities[_OUTPUT] - moved, _REASONING: moved}
            part.quantities = part.counted = {name: value for name, value in counts.items() if value}
            left -= moved


def added(counts: Any) -> _Counts:
    """The sum of several quantities, meter by meter."""
    total: _Counts = {}
    for one in counts:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total


def _direction(name: str) -> str:
    return METERS[name].direction if name in METERS and METERS[name].family == "tokens" else ""


def _tree(usage: Mapping[str, str]) -> _Tree:
    root: dict[str, Any] = {}
    for name, path in usage.items():
        node = root
        *outer, last = path.split(".")
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = name
    return _freeze(root)


def _freeze(node: dict[str, Any]) -> _Tree:
    return tuple(
        (name, twin(name), child if isinstance(child, str) else _freeze(child)) for name, child in node.items()
    )


def _walk(value: Any, tree: _Tree, found: _Counts) -> None:
    ask = value.get if type(value) is dict else getter(value)
    if ask is None:
        return
    for name, other, node in tree:
        inner = ask(name)
        if inner is None and (not other or (inner := ask(other)) is None):
            continue
        if type(node) is not str:
            _walk(inner, node, found)
        elif type(inner) is int and 0 <= inner <= MOST:
            found[node] = inner
        else:
            counted = count(node, inner)
            if counted is not None:
                found[node] = counted


class _Level:
    """A usage object, or an object in it: which of its names are counts.

    Objects of one endpoint have the same few sets of names, so what is to be done with each set is worked out once. A loop over what
    is there takes half the time of asking for all that could be there.
    """

    __slots__ = ("_known", "_plans", "_tree", "_zeros")

    def __init__(self, tree: _Tree, known: _Known | None, zeros: frozenset[str]) -> None:
        self._tree = tree
        self._known = known
        self._zeros = zeros  # counts of which 0 says something
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def read(self, usage: dict[str, Any], found: _Counts) -> bool:
        """Put the counts into `found`; whether every name is known.

        Raises:
            ImpossibleUsage: for a count that is none.
        """
        names, zeros = tuple(usage), self._zeros
        leaves, inner, known = self._plans.get(names) or self._plan(names)
        for name, meter in leaves:
            value = usage[name]
            if type(value) is int and 0 <= value <= MOST:
                if value or meter in zeros:
                    found[meter] = value
            elif value is not None and (counted := count(meter, value)) is not None and (counted or meter in zeros):
                found[meter] = counted
        for name, level in inner:
            value = usage[name]
            if type(value) is dict:
                known = level.read(value, found) and known
            elif value is not None:
                _walk(value, level._tree, found)
        return known

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        leaves: list[tuple[str, str]] = []
        below: dict[str, _Tree] = {}
        for name, other, node in self._tree:
            if (said := name if name in names else other) in names:
                if isinstance(node, str):
                    leaves.append((said, node))
                else:
                    below[said] = node
        known = self._known
        if known is not None:
            below.update((name, ()) for name in names if name in known.inner and name not in below)
        inner = tuple(
            (name, _Level(tree, known.inner.get(name) if known is not None else None, self._zeros))
            for name, tree in below.items()
        )
        plan = tuple(leaves), inner, known is None or known.names.issuperset(names)
        if len(self._plans) < _MOST_PLANS:  # the names come from outside
            self._plans[names] = plan
        return plan


_Plan = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, _Level], ...], bool]
_MOST_PLANS = 100


# --- raw usage, and what in it no path knows ----------------------------------------------------------------------------

_SCALARS = frozenset({int, str, float, bool})
_FLAT = _SCALARS | {type(None)}
_DEEP = 8


def plain_copy(value: Any, depth: int = 0) -> Any:
    """A copy as plain JSON: perhaps the user's own dict, which may change before it is in the ledger."""
    fields = value if type(value) is dict else _fields(value)
    if fields is None:
        return _plain_other(value, depth)
    if depth >= _DEEP:
        return None
    if fields is value:
        copied = dict(fields)
        for name, inner in fields.items():
            if type(inner) not in _FLAT:
                copied[name] = plain_copy(inner, depth + 1)
        return copied
    return {
        name: inner if type(inner) in _SCALARS else plain_copy(inner, depth + 1)
        for name, inner in fields.items()
        if inner is not None
    }


def _plain_other(value: Any, depth: int) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, (list, tuple)):
        return [plain_copy(item, depth + 1) for item in value] if depth < _DEEP else None
    # A count that is dropped here is a count that is not billed: databases and numerical libraries have numbers of their own.
    counted = number(value)
    return (word(value) or None) if counted is None else counted


def _fields(value: Any) -> Mapping[str, Any] | None:
    """The named values of an SDK's object; None for what has none, and for its mark of an absent field."""
    extra = getattr(value, "__pydantic_extra__", _NO_NAMES)
    if extra is not _NO_NAMES:
        inner: dict[str, Any] = value.__dict__
        if extra:
            return {**inner, **extra}
        return inner if inner or type(value).__name__ != "Unset" else None
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (str, int, float, list, tuple, bytes, Decimal, Enum)) or hasattr(type(value), "__index__"):
        return None
    found = getattr(value, "__dict__", None)
    return {name: inner for name, inner in found.items() if name[:1] != "_"} if isinstance(found, dict) else None


def _roots(body: Any, known: _Known) -> dict[str, Any] | None:
    """Of an answer that has its counts among everything else, the fields that are counts."""
    found = {name: value for name in known.names if type(value := plain(body, ((name, twin(name)),))) in {int, float}}
    return found or None


class _Known:
    """Names that some path reads, level by level below the usage object."""

    __slots__ = ("inner", "names")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.inner: dict[str, _Known] = {}

    def add(self, path: list[str]) -> None:
        name, *rest = path
        for spelling in {name, twin(name) or name}:
            self.names.add(spelling)
            if rest:
                self.inner.setdefault(spelling, _Known()).add(rest)

    def covers(self, raw: dict[str, Any]) -> bool:
        """Whether every name is known; cheap, since it is asked of every answer."""
        names = raw.keys()
        if not names <= self.names:
            return False
        for name, known in self.inner.items():
            if name in names and type(value := raw[name]) is dict and not known.covers(value):
                return False
        return True

    def count(self, provider: str, raw: dict[str, Any]) -> None:
        """Count the numbers that no path reads."""
        for path in self._strange(raw, ""):
            key = (provider, path)
            with _lock:
                if key in _drift or len(_drift) < _MOST_PATHS:
                    _drift[key] = _drift.get(key, 0) + 1

    def _strange(self, raw: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, value in raw.items():
            known = self.inner.get(name)
            if isinstance(value, dict):
                if known is not None:
                    yield from known._strange(value, f"{prefix}{name}.")
                elif name not in self.names:
                    yield from _Known()._strange(value, f"{prefix}{name}.")
            elif name not in self.names and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{prefix}{name}"


_drift: dict[tuple[str, str], int] = {}
_lock = threading.RLock()  # a finalizer may settle a stream in the middle of it
_MOST_PATHS = 1000
"""Names come from outside: a server that makes them up must not fill the memory."""


def drift() -> Mapping[tuple[str, str], int]:
    """(provider, path below the usage object) -> how often a number stood there that no path of the row reads.

    Such numbers are kept in `raw`; that there are any means that a provider counts something new.
    """
    with _lock:
        return dict(_drift)


def _known(route: Route) -> _Known:
    """Every path of a row that lies below its usage object."""
    known = _Known()
    texts = [*route.usage.values(), *route.tools.values(), *route.known, route.reported, route.tier, route.region]
    texts += [text for tools in route.tools_of.values() for text in tools.values()]
    texts += [*(row.path for row in route.parts), *route.notes, *route.options.values()]
    known.names.update(route.also)  # kept with it
    prefix = [*route.raw.split(".")] if route.raw else []
    for text in texts:
        for path in _paths(text):
            if path[: len(prefix)] == prefix and len(path) > len(prefix):
                known.add(path[len(prefix) :])
    return known


def _first_names(usage: Mapping[str, str]) -> list[str]:
    """The names that paths of a usage begin with, each once."""
    return list(dict.fromkeys(path[0] for text in usage.values() for path in _paths(text)))


def _paths(text: str) -> Iterator[list[str]]:
    if not text or text.startswith("="):
        return
    for terms in compiled(text).alternatives:
        for term in terms:
            yield [name for name, _, _ in term.steps]
