"""The conformance suite of ledgers: whatever passes it can stand behind `aifinops`. Needs no test framework.

>>> from aifinops.ledger.memory import MemoryLedger
>>> check_ledger(MemoryLedger)
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from aifinops.charges import BASES, Charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Group, Ledger, Query
from aifinops.meters import METERS

__all__ = ["CHECKS", "check_ledger", "example_charge", "random_charges"]

MakeLedger = Callable[[], Ledger]
Check = Callable[[MakeLedger], None]

CHECKS: dict[str, Check] = {}
"""Every check by name; each takes a function that makes an empty ledger."""

START = 1_763_950_000_000_000_000
"""The moment at which examples begin: 2025-11-24, shortly after 02:00 UTC."""

HOUR = 3_600_000_000_000


def check_ledger(make_ledger: MakeLedger) -> None:
    """Run every check.

    Args:
        make_ledger: makes a ledger that is empty, every time.

    Raises:
        AssertionError: for the first promise of `aifinops.ledger.base.Ledger` that is not kept.
    """
    for check in CHECKS.values():
        check(make_ledger)


def example_charge(number: int = 0, **changes: Any) -> Charge:
    """A charge with something in every field; `number` makes id and time, ascending."""
    charge = Charge(
        id=f"{START + number:016x}{number:016x}",
        at=START + number,
        provider="openai",
        operation="chat",
        model="gpt-5-mini",
        quantities={"input_tokens": 900, "cache_read_tokens": 100, "output_tokens": 40, "reasoning_tokens": 8},
        amount=350_500,
        currency="USD",
        basis="priced",
        lower=350_500,
        upper=350_500,
        lines=(("input_tokens", 225_000), ("output_tokens", 125_500)),
        price_id="list/openai/gpt-5-mini",
        price_as_of="2025-11-01",
        price_source="list 1.0",
        response_model="gpt-5-mini-2025-08-07",
        response_id=f"chatcmpl-{number}",
        service="llm",
        tier="flex",
        region="eu",
        duration=1_234_567,
        stream=True,
        status="ok",
        error="",
        tags={"team": "search", "customer": "acme", "cost_center": "42", "x.y-z": "dotted"},
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "2",
        raw={"prompt_tokens": 1000, "details": {"cached": 100, "list": [1, 2.5, None, True, "é"]}},
    )
    return replace(charge, **changes)


def random_charges(seed: int, count: int) -> list[Charge]:
    """Charges of every kind: known, estimated and unknown, several currencies, fractions, corrections, odd names."""
    source = random.Random(seed)  # noqa: S311 - test material
    charges: list[Charge] = []
    for number in range(count):
        earlier = source.choice(charges).id if charges and source.random() < 0.2 else ""
        charges.append(_random_charge(source, number, earlier))
    return charges


def _random_charge(source: random.Random, number: int, corrects: str) -> Charge:
    amount = source.choice([None, 0, source.randrange(-(10**6), 10**12)])
    bounds = sorted(source.randrange(10**9) for _ in range(2))
    return example_charge(
        number,
        at=START + source.randrange(60 * 24 * HOUR),
        model=source.choice(["gpt-5", "claude", "'; DROP TABLE charges; --", "模型", ""]),
        quantities={name: _random_quantity(source) for name in source.sample(sorted(METERS), source.randrange(5))},
        amount=amount,
        lines=() if amount is None else (("input_tokens", amount - 7), ("output_tokens", 7)),
        currency=source.choice(["USD", "USD", "EUR"]),
        basis="unknown" if amount is None else source.choice([basis for basis in BASES if basis != "unknown"]),
        lower=source.choice([None, bounds[0]]),
        upper=source.choice([None, bounds[1]]),
        duration=source.randrange(10**10),
        status="correction" if corrects else source.choice(["ok", "error", "abandoned"]),
        tags={key: source.choice("abc") for key in source.sample(["team", "run", "user", "a.b"], source.randrange(4))},
        corrects=corrects,
    )


def _random_quantity(source: random.Random) -> int | Decimal:
    kinds: list[int | Decimal] = [
        source.randrange(1, 10**6),
        Decimal(source.randrange(1, 10**9)) / Decimal(10**7),
        source.randrange(2**53, 2**64),
    ]
    return source.choice(kinds)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(function: Check) -> Check:
    CHECKS[function.__name__.removeprefix("_")] = function
    return function


def _same(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


@_check
def _a_new_ledger_is_empty(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    info = ledger.info()
    _same((list(ledger.rows()), ledger.summarize()), ([], []), "an empty ledger's rows and sums")
    _same((info.entries, info.first_at, info.last_at), (0, None, None), "an empty ledger's info")
    ledger.close()


@_check
def _every_field_comes_back(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    charges = [*_edges(), *random_charges(1, 50)]
    for charge in charges:
        _same(ledger.append(charge), True, "append of a new entry")
    _same(list(ledger.rows()), _in_order(charges), "entries as read back")
    ledger.close()


def _edges() -> list[Charge]:
    plain = Charge(id="0" * 32, at=0, provider="", operation="", model="")
    big = {"input_tokens": 2**70, "output_tokens": Decimal("1E-30"), "gpu_seconds": Decimal("3599.999999999")}
    return [
        plain,
        example_charge(1001),
        example_charge(1002, at=2**63 - 1, amount=2**63 - 1, lower=-(2**63 - 1), upper=0, quantities=big),
        example_charge(1003, raw={}, tags={"team": "", "odd": "a\"b'c\\d\n\0é😀"}, lines=(), model="a\"b'c\n\0é😀"),
        example_charge(
            1004, amount=None, basis="unknown", lower=None, upper=None, error="TimeoutError", status="error"
        ),
    ]


@_check
def _text_without_utf8_form_loses_no_entry(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    _same(ledger.append(example_charge(1, model="half \ud83d", tags={"team": "\udc00"})), True, "append")
    _same(ledger.append_many([example_charge(2, model="half \ud83d")]), 1, "append_many")
    _same([charge.amount for charge in ledger.rows()], [350_500, 350_500], "amounts")
    ledger.close()


@_check
def _a_known_id_is_ignored(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    first = example_charge(1)
    second = replace(first, amount=999, model="other", at=first.at + 5)
    _same([ledger.append(first), ledger.append(first), ledger.append(second)], [True, False, False], "append twice")
    _same(ledger.append_many([second, example_charge(2), example_charge(2), first]), 1, "append_many with known ids")
    _same(list(ledger.rows()), [first, example_charge(2)], "entries: the first of an id stays")
    _same(ledger.append_many([]), 0, "append_many of nothing")
    ledger.close()


@_check
def _rows_follow_the_query(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    charges = random_charges(2, 120)
    ledger.append_many(charges)
    for query in _queries():
        wanted = [charge for charge in _in_order(charges) if _matches(charge, query)]
        if query.newest_first:
            wanted.reverse()
        wanted = wanted if query.limit is None else wanted[: query.limit]
        _same(list(ledger.rows(query)), wanted, f"rows of {query}")
    ledger.close()


def _queries() -> list[Query]:
    middle = START + 30 * 24 * HOUR
    return [
        Query(),
        Query(since_ns=middle),
        Query(until_ns=middle),
        Query(since_ns=middle - 90 * HOUR, until_ns=middle + 90 * HOUR, newest_first=True, limit=7),
        Query(where={"team": "a"}),
        Query(where={"team": ""}),
        Query(where={"user": ["a", "b"], "currency": "USD"}),
        Query(where={"tag:a.b": "c", "status": ("ok", "error")}),
        Query(where={"model": "'; DROP TABLE charges; --"}),
        Query(where={"month": "2025-12", "basis": []}),
        Query(where={"month": "2025-12"}, limit=0),
        Query(where={"day": to_datetime(middle).date().isoformat()}),
    ]


@_check
def _long_answers_come_whole(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    charges = [example_charge(number, at=START + number // 1500) for number in range(2500)]
    ledger.append_many(charges)
    _same(list(ledger.rows()), charges, "2,500 rows, many of the same moment")
    _same(list(ledger.rows(Query(newest_first=True, limit=2100))), charges[:-2101:-1], "2,100 newest rows")
    ledger.close()


_BYS: tuple[tuple[str, ...], ...] = (
    (),
    ("model",),
    ("team", "model"),
    ("user", "day"),
    ("tag:a.b", "month", "currency"),
    ("provider", "response_model", "operation", "service", "tier", "region", "status", "basis", "error"),
    ("run", "hour"),
    ("nobody_uses_this",),
)


@_check
def _sums_are_the_sums_of_the_rows(make_ledger: MakeLedger) -> None:
    for seed in range(2):
        ledger = make_ledger()
        charges = random_charges(seed, 120)
        for charge in charges[:60]:
            ledger.append(charge)
        ledger.append_many(charges[60:])
        for query in _queries():
            for by in _BYS:
                _same_groups(ledger.summarize(query, by), charges, query, by)
        ledger.close()


def _same_groups(found: Sequence[Group], charges: Sequence[Charge], query: Query, by: Sequence[str]) -> None:
    matching = [charge for charge in charges if _matches(charge, query)]
    places = sorted({(_key(charge, by), charge.currency) for charge in matching})
    _same([(group.key, group.currency) for group in found], places, f"groups of {query} by {by}")
    sure = {charge.corrects for charge in charges if charge.corrects and charge.amount is not None}
    for group in found:
        own = [charge for charge in matching if (_key(charge, by), charge.currency) == (group.key, group.currency)]
        _same_sums(group, own, sure)


def _same_sums(group: Group, own: Sequence[Charge], sure: set[str]) -> None:
    calls = [charge for charge in own if not charge.corrects]
    unsure = {charge.id for charge in own if charge.amount is None or charge.basis == "estimated"} - sure
    unpriced = [charge for charge in calls if charge.amount is None and charge.id in unsure]
    known = [charge.amount for charge in own if charge.amount is not None]
    open_end = any(charge.id in unsure and charge.amount is None and charge.upper is None for charge in own)
    _same(group.calls, len(calls), "calls")
    _same(group.corrections, len(own) - len(calls), "corrections")
    _same(group.errors, sum(charge.status == "error" for charge in calls), "errors")
    _same(group.amount, sum(known) if known else None, "amount")
    _same(group.estimated, sum(charge.amount or 0 for charge in own if charge.id in unsure), "estimated part")
    _same(group.lower, sum(_bound(charge, charge.lower, unsure) for charge in own), "lower bound")
    upper = None if open_end else sum(_bound(charge, charge.upper, unsure) for charge in own)
    _same(group.upper, upper, "upper bound")
    _same(group.unpriced_calls, len(unpriced), "unpriced calls")
    _same(group.unpriced_tokens, int(sum(_tokens(unpriced))), "unpriced tokens")
    _same(group.duration, sum(charge.duration for charge in own), "duration")
    for name in {name for charge in own for name in charge.quantities} | group.quantities.keys():
        wanted = sum(Fraction(charge.quantities.get(name, 0)) for charge in own)
        _same(Fraction(group.quantities.get(name, -1)), wanted, f"sum of {name}")


def _bound(charge: Charge, bound: int | None, unsure: set[str]) -> int:
    return bound if bound is not None and charge.id in unsure else charge.amount or 0


def _tokens(charges: Iterable[Charge]) -> list[Fraction]:
    return [
        Fraction(value)
        for charge in charges
        for name, value in charge.quantities.items()
        if METERS[name].family == "tokens"
    ]


def _key(charge: Charge, by: Sequence[str]) -> tuple[str, ...]:
    return tuple(_value(charge, name) for name in by)


def _value(charge: Charge, name: str) -> str:
    forms = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}
    if name in forms:
        return to_datetime(charge.at).strftime(forms[name])
    if hasattr(charge, name):
        return str(getattr(charge, name))
    return charge.tags.get(name.removeprefix("tag:"), "")


def _matches(charge: Charge, query: Query) -> bool:
    wanted = {name: [value] if isinstance(value, str) else list(value) for name, value in query.where.items()}
    return (
        (query.since_ns is None or query.since_ns <= charge.at)
        and (query.until_ns is None or charge.at < query.until_ns)
        and all(_value(charge, name) in values for name, values in wanted.items())
    )


def _in_order(charges: Iterable[Charge]) -> list[Charge]:
    return sorted(charges, key=lambda charge: (charge.at, charge.id))


@_check
def _sums_beyond_64_bits_are_exact(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    most = 2**63 - 1
    ledger.append_many([example_charge(number, amount=most, duration=most) for number in range(5)])
    (group,) = ledger.summarize()
    _same((group.amount, group.duration), (5 * most, 5 * most), "five times the largest amount")
    ledger.close()


@_check
def _a_correction_settles_what_was_unknown(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    unknown = example_charge(1, amount=None, basis="unknown", lower=0, upper=None)
    ledger.append(unknown)
    (before,) = ledger.summarize()
    ledger.append(example_charge(2, corrects=unknown.id, status="correction", amount=70, quantities={}))
    (after,) = ledger.summarize()
    _same((before.amount, before.unpriced_calls, before.upper), (None, 1, None), "before the correction")
    _same((after.amount, after.unpriced_calls, after.upper, after.calls), (70, 0, 70, 1), "after the correction")
    ledger.close()


@_check
def _a_wrong_key_is_named(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    asks: list[Callable[[], object]] = [
        lambda: ledger.summarize(by=["model; DROP TABLE charges"]),
        lambda: ledger.summarize(by=["tag:"]),
        lambda: ledger.summarize(by="model"),
        lambda: ledger.summarize(Query(where={"a b": "x"})),
        lambda: list(ledger.rows(Query(where={"": "x"}))),
    ]
    for ask in asks:
        try:
            ask()
        except ConfigurationError:
            continue
        raise AssertionError("a key that is none was accepted")
    ledger.close()


DAY = 24 * HOUR


@_check
def _compaction_keeps_sums_and_ids(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    if not ledger.capabilities.compacts:
        ledger.close()
        return
    charges = random_charges(6, 200)
    ledger.append_many(charges)
    boundary = START - START % DAY + 30 * DAY
    asks = [(query, by) for query in _kept_queries(boundary) for by in _KEPT_BYS]
    before = [ledger.summarize(query, by) for query, by in asks]
    done = ledger.compact(boundary + HOUR)
    old = [charge for charge in charges if charge.at < boundary]
    left = list(ledger.rows())
    _same(done.until_ns, boundary, "the end of what was compacted: a whole day")
    _same((done.entries > 0, done.entries + done.kept), (True, len(old)), "entries compacted and kept")
    _same(len(left), len(charges) - done.entries, "detailed entries after a compaction")
    _same(left, [charge for charge in _in_order(charges) if charge in left], "detailed entries, as they were")
    _same((ledger.info().entries, ledger.info().compacted), (len(charges), done.entries), "entries in info")
    _same([ledger.summarize(query, by) for query, by in asks], before, "sums after a compaction")
    _same(ledger.append_many(charges), 0, "entries that are new although they were compacted")
    _same([ledger.append(charge) for charge in old[:3]], [False] * 3, "append of compacted entries")
    _same([ledger.summarize(query, by) for query, by in asks], before, "sums after late duplicates")
    _same(ledger.compact(boundary).entries, 0, "a second compaction")
    _refuses_what_is_gone(ledger, boundary)
    ledger.close()


_KEPT_BYS: tuple[tuple[str, ...], ...] = (
    (),
    ("team", "model", "day"),
    ("month", "status", "basis"),
    ("provider", "feature"),
)


def _kept_queries(boundary: int) -> list[Query]:
    return [
        Query(),
        Query(since_ns=boundary - 3 * DAY, until_ns=boundary + 3 * DAY),
        Query(until_ns=boundary - DAY, where={"team": ["a", "b"]}),
        Query(since_ns=boundary, where={"status": "ok"}),
    ]


def _refuses_what_is_gone(ledger: Ledger, boundary: int) -> None:
    lost = [
        (Query(), ["user"]),
        (Query(), ["hour"]),
        (Query(where={"run": "a"}), []),
        (Query(until_ns=boundary - HOUR), []),
    ]
    for query, by in lost:
        try:
            ledger.summarize(query, by)
        except ConfigurationError as error:
            _same("team" in str(error) and "environment" in str(error), True, f"what is kept, named in {str(error)!r}")
            continue
        raise AssertionError(f"{query} by {by} was answered although its entries are compacted")
    ledger.summarize(Query(since_ns=boundary), ["user", "hour"])


@_check
def _a_compacted_entry_may_be_corrected(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    if ledger.capabilities.compacts:
        unsure = example_charge(2, amount=9, basis="estimated", lower=5, upper=20, lines=())
        ledger.append_many([example_charge(1, amount=70, lines=()), unsure])
        _same((ledger.compact(START + 2 * DAY).entries, ledger.info().compacted), (1, 1), "an unsure entry stays")
        fixes = [
            example_charge(number, amount=-2, lines=(), corrects=example_charge(number - 10).id, status="correction")
            for number in (11, 12)
        ]
        ledger.append_many(fixes)
        (group,) = ledger.summarize()
        _same((group.amount, group.estimated, group.lower, group.upper), (75, 0, 75, 75), "after late corrections")
        _same(ledger.compact(START + 2 * DAY).entries, 3, "what is sure now, and what made it sure")
        _same(ledger.summarize(), [group], "sums after a second compaction")
    ledger.close()


@_check
def _a_sound_ledger_is_found_sound(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    if ledger.capabilities.verifies:
        ledger.append_many(random_charges(7, 120))
        ledger.enqueue(example_charge(1000))
        found = ledger.verify()
        _same((found.problems, found.entries), ((), 121), "problems of a sound ledger, and entries looked at")
        if ledger.capabilities.compacts:
            ledger.compact(START + 30 * DAY)
            _same(ledger.verify().problems, (), "problems after a compaction")
        ledger.append(example_charge(2000, amount=1))
        wrong = [(problem.kind, problem.where) for problem in ledger.verify().problems]
        _same(wrong, [("lines", example_charge(2000).id)], "problems of an entry whose lines do not add up")
    ledger.close()


@_check
def _many_threads_may_write_and_read(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(50):
                ledger.append(example_charge(worker * 1000 + number, amount=1))
            ledger.summarize(by=["team"])
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _same(errors, [], "errors in threads")
    _same((ledger.info().entries, ledger.summarize()[0].amount), (200, 200), "entries of four threads")
    ledger.close()


@_check
def _closing_is_not_the_end(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    ledger.append(example_charge(1))
    ledger.close()
    ledger.close()
    _same(ledger.append(example_charge(2)), True, "append after close")
    _same(ledger.info().entries, 2, "entries after close")
    ledger.reset_after_fork()
    _same(ledger.append(example_charge(3)), True, "append after reset_after_fork")
    ledger.close()
