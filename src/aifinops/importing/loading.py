"""Records into the ledger: priced as metered calls are, at their own moment, each once however often it is imported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from aifinops.charges import Amounts, Charge, Cost, make_charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError, StoreError
from aifinops.importing.readers import FORMATS, Reader, reader_for
from aifinops.importing.records import Left, Malformed, Record
from aifinops.importing.sources import Source
from aifinops.ledger.base import Ledger, Query
from aifinops.money import to_nanos
from aifinops.reading import amounts_of, believed, price
from aifinops.tags import Tags, make_tags, merge
from aifinops.usage import Quantities, Sku, Usage, input_total

if TYPE_CHECKING:
    from aifinops.pricing.book import PriceBook

__all__ = ["TAG", "Outcome", "import_files"]

TAG = "import"
"""Key of the tag that says which form an entry was imported from."""

_BATCH = 1_000
_MARGIN_NS = 3_600_000_000_000  # two clocks tell the beginning of one call; an hour is more than they can differ
_LONGEST_NS = 86_400_000_000_000
"""Totals are of a day at most; one that began before a call may hold it."""
_TOTALS = frozenset(name for name, form in FORMATS.items() if form.totals)

Progress = Callable[[Path, int, int], None]
"""Is told the file, the bytes of it that are done, and all of them; each file is read twice, so they are twice its size."""


@dataclass(slots=True)
class Outcome:
    """What an import did.

    Attributes:
        read: rows that were understood. written: entries that are new in the ledger. known: those that were in it already.
        unpriced, estimated: new entries whose cost is unknown, and those that have bounds.
        amounts: currency -> sum of the new entries, nano-units. first, last: moments of the rows, nanoseconds, None without any.
        malformed: (file, place, why) of rows that could not be read. left: why -> rows that were left out on purpose.
        ignored: file -> columns that mean nothing. formats: file -> name of its form.
    """

    read: int = 0
    written: int = 0
    known: int = 0
    unpriced: int = 0
    estimated: int = 0
    amounts: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None
    malformed: list[tuple[str, str, str]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)


def import_files(
    paths: Sequence[Path],
    ledger: Ledger,
    book: PriceBook,
    *,
    form: str | None = None,
    mapping: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    write: bool = True,
    anyway: bool = False,
    theirs: bool = False,
    strict: bool = False,
    progress: Progress = lambda path, done, total: None,
) -> Outcome:
    """Read exports into a ledger.

    Every file is read twice: first to see that it can be, what it is, and that it does not count again what the ledger has; then to
    write. Memory holds the ids of one batch and what is told about malformed rows, never the file (a single JSON document is
    held as a whole).

    Args:
        paths: the files. ledger: where to. book: prices, each at the moment of the row.
        form: name of the form, for all; None looks at each file. mapping, constants: for tables, as in `Table`.
        tags: for every entry, over what the rows say. write: False only looks.
        anyway: write although the ledger has other entries of the same provider and period, where either side is totals.
        theirs: take the amount that an export says over our price; without it only where we have no price.
        strict: write nothing when any row is malformed.

    Raises:
        ConfigurationError: for files, names or tags that are wrong, an overlap, and malformed rows under `strict`.
        StoreError: when the ledger fails; what was written before stays, and the same import writes the rest.
    """
    outcome, fixed = Outcome(), make_tags(tags or {})
    readers: list[tuple[Path, Source, Reader]] = []
    for path in paths:
        source = Source(path)
        reader = reader_for(source, form, mapping or {}, constants or {})
        outcome.formats[str(path)] = reader.form.name
        if reader.ignored:
            outcome.ignored[str(path)] = reader.ignored
        readers.append((path, source, reader))
    for path, source, reader in readers:
        _look(reader, str(path), outcome, ledger, anyway, _steps(progress, path, source.size, 0))
    if strict and outcome.malformed:
        file, place, why = outcome.malformed[0]
        raise ConfigurationError(
            f"{len(outcome.malformed)} malformed rows, nothing is written; the first: {file}, {place}: {why}"
        )
    for path, source, reader in readers:
        loader = _Loader(ledger, book, reader.form.name, fixed, write=write, theirs=theirs, outcome=outcome)
        loader.load(reader, _steps(progress, path, source.size, source.size))
    return outcome


def _steps(progress: Progress, path: Path, size: int, before: int) -> Callable[[int], None]:
    """Tells of every hundredth of a file, and of its end."""
    next_at = 0

    def told(read: int) -> None:
        nonlocal next_at
        if read >= next_at or read >= size:
            next_at = read + size // 100
            progress(path, before + min(read, size), 2 * size)

    return told


def _look(
    reader: Reader, file: str, outcome: Outcome, ledger: Ledger, anyway: bool, progress: Callable[[int], None]
) -> None:
    """Count what is there and refuse what the ledger has in another form."""
    periods: dict[str, tuple[int, int]] = {}
    for place, found in reader.rows(progress):
        if isinstance(found, Malformed):
            outcome.malformed.append((file, place, str(found)))
        elif isinstance(found, Left):
            outcome.left[str(found)] += 1
        elif isinstance(found, Record):
            outcome.read += 1
            ends = found.at + (found.duration if found.requests is not None else 1)
            first, last = periods.get(found.provider, (found.at, ends))
            periods[found.provider] = (min(first, found.at), max(last, ends))
    for first, last in periods.values():
        outcome.first = first if outcome.first is None else min(outcome.first, first)
        outcome.last = last if outcome.last is None else max(outcome.last, last)
    if not anyway:
        for provider, (first, last) in periods.items():
            _refuse_twice(reader.form.name, provider, first, last, ledger)


def _refuse_twice(form: str, provider: str, first: int, last: int, ledger: Ledger) -> None:
    """Totals of an organisation hold the calls that others are a part of: the two are never added without being told to.

    Raises:
        ConfigurationError: where the ledger has entries of the other kind.
    """
    where = {"provider": provider} if provider else {}
    found = {
        group.key[0]: group.calls for group in ledger.summarize(Query(first, last, where), by=[TAG]) if group.calls
    }
    totals = FORMATS[form].totals
    if not totals:
        reaching = Query(max(first - _LONGEST_NS, 0), first, {**where, TAG: sorted(_TOTALS)})
        for one in ledger.rows(reaching):
            if one.at + one.duration > first:
                found[one.tags[TAG]] = found.get(one.tags[TAG], 0) + 1
    others = {name: calls for name, calls in found.items() if name != form and (totals or name in _TOTALS)}
    if others:
        what = ", ".join(f"{calls:,} {name or 'metered'}" for name, calls in sorted(others.items()))
        raise ConfigurationError(
            f"the ledger has {what} entries of {provider or 'the same period'} between {to_datetime(first):%Y-%m-%d %H:%M} and"
            f" {to_datetime(last):%Y-%m-%d %H:%M}, and {form} would count the same calls again; import into another ledger"
            " (--ledger FILE), or write --add-anyway if they are others"
        )


class _Loader:
    """Makes entries of one file's rows and writes them by the batch."""

    def __init__(
        self, ledger: Ledger, book: PriceBook, form: str, tags: Tags, *, write: bool, theirs: bool, outcome: Outcome
    ) -> None:
        self._ledger, self._book, self._form = ledger, book, form
        self._tags = merge(make_tags({TAG: form}), tags)
        self._write, self._theirs, self._outcome = write, theirs, outcome
        self._seen: Counter[str] = Counter()
        self._answers: set[str] = set()

    def load(self, reader: Reader, progress: Callable[[int], None]) -> None:
        """All rows of a file."""
        batch: list[Charge] = []
        for _, found in reader.rows(progress):
            if isinstance(found, Record):
                batch.append(self._charge(found))
                if len(batch) >= _BATCH:
                    self._put(batch)
                    batch = []
        self._put(batch)

    def _put(self, batch: Sequence[Charge]) -> None:
        new = list(self._unknown(batch))
        outcome = self._outcome
        outcome.known += len(batch) - len(new)
        written = self._append(new) if self._write else new
        for charge in written:
            outcome.written += 1
            outcome.unpriced += charge.amount is None
            outcome.estimated += charge.basis == "estimated"
            outcome.amounts[charge.currency] += charge.amount or 0

    def _append(self, charges: list[Charge]) -> list[Charge]:
        try:
            self._ledger.append_many(charges)
        except StoreError as error:
            raise StoreError(
                f"{error}; {self._outcome.written:,} entries were written before, and the same import writes the rest"
            ) from error
        return charges

    def _unknown(self, batch: Sequence[Charge]) -> Iterator[Charge]:
        """Those that the ledger has neither by their id nor, metered or imported from somewhere else, by the id of their answer."""
        if not batch:
            return
        first, last = min(one.at for one in batch), max(one.at for one in batch)
        ids = {one.id for one in batch}
        known = {found.id for found in self._ledger.rows(Query(first, last + 1, {"id": sorted(ids)}))}
        answers = sorted({one.response_id for one in batch if one.response_id})
        told: set[str] = set()
        if answers:
            asked = Query(max(first - _MARGIN_NS, 0), last + _MARGIN_NS, {"response_id": answers})
            told = {found.response_id for found in self._ledger.rows(asked)}
        for one in batch:
            if one.id in known or (one.response_id and (one.response_id in told or one.response_id in self._answers)):
                continue
            known.add(one.id)
            if one.response_id:
                self._answers.add(one.response_id)
            yield one

    def _charge(self, record: Record) -> Charge:
        if record.whole is not None:
            return record.whole
        reading = record.reading
        amounts = self._amounts(record)
        provider = record.provider or _seller(amounts.price_id)
        raw = dict(reading.raw or {})
        if record.theirs is not None and not record.paid:
            raw["import.cost"] = str(record.theirs)
        return make_charge(
            id=self._id(record), at=record.at, provider=provider, operation=record.operation, model=record.model,
            quantities=reading.quantities, amount=amounts.amount, currency=amounts.currency, basis=amounts.basis, lower=amounts.lower,
            upper=amounts.upper, lines=amounts.lines, price_id=amounts.price_id, price_as_of=amounts.as_of, price_source=amounts.source,
            response_model=reading.model, response_id=reading.response_id, service=record.service, tier=reading.tier,
            region=reading.region, duration=record.duration, stream=record.stream, status="error" if record.error else "ok",
            error=record.error, tags=merge(record.tags, self._tags), trace_id=record.trace_id, span_id=record.span_id, corrects="",
            raw=raw or None,
        )  # fmt: skip

    def _id(self, record: Record) -> str:
        """The same row has the same id in every import: its moment, and a digest of what makes it itself.

        Rows without anything of that kind may be alike and yet be two calls: the first of them is told from the second by its number, so
        that a file that has grown brings in only what is new.
        """
        key = record.key
        if not key:
            key = json.dumps(
                [record.provider, record.model, record.at, dict(record.reading.quantities), record.theirs, dict(record.tags)],
                default=str, sort_keys=True,
            )  # fmt: skip
            self._seen[key] += 1
            key = f"{key}#{self._seen[key]}"
        return f"{record.at:016x}{sha256(f'{self._form}|{key}'.encode()).hexdigest()[:16]}"

    # --- prices -------------------------------------------------------------------------------------------------------

    def _amounts(self, record: Record) -> Amounts:
        given = record.theirs
        if given is not None and (record.paid or self._theirs or not record.reading.quantities):
            return _given(given, record.currency, self._form, exact=record.paid)
        amounts = self._priced(record)
        if amounts.amount is None and given:
            return _given(given, record.currency, self._form, exact=False)
        return amounts

    def _priced(self, record: Record) -> Amounts:
        reading = record.reading
        if record.requests is not None:
            return _of_many(self._book, record)
        cost = price(self._book, _usage(record, reading.quantities), reading.parts, asked=record.model)
        return amounts_of(cost, believed(cost, reading.reported, record.model, reading.model))


def _usage(record: Record, quantities: Quantities) -> Usage:
    reading = record.reading
    sku = Sku(
        record.provider,
        reading.model or record.model,
        record.service,
        reading.tier,
        reading.region,
        tuple(sorted(reading.options)),
    )
    return Usage(quantities, sku, record.at, reading.raw)


def _given(amount: Decimal, currency: str, form: str, *, exact: bool) -> Amounts:
    """An amount that the export says: what was billed is `reported`; what another tool worked out is an estimate of which it is all we know."""
    nanos = to_nanos(amount)
    if exact:
        return Amounts(nanos, currency, "reported" if nanos else "free", nanos, nanos, source=form)
    return Amounts(nanos, currency, "estimated", 0, None, source=form)


def _of_many(book: PriceBook, record: Record) -> Amounts:
    """The cost of a row that sums up many requests.

    A price may depend on how long a prompt is. Nobody knows that of each: with all of them short it is the least, with all in one the
    most; what is taken is the average prompt. Where the three are one, it is simply the price.
    """
    whole = record.reading.quantities
    requests = record.requests or 0
    longest = _linear(book, record, 1)
    shortest = _linear(book, record, 10**9)
    if record.prompts:
        return amounts_of(longest if record.prompts == "long" else shortest, None)
    if longest.amount == shortest.amount or longest.amount is None or shortest.amount is None:
        return amounts_of(shortest, None)
    middle = _linear(book, record, requests) if requests and input_total(whole) else shortest
    lower, upper = sorted((shortest.amount, longest.amount))
    return amounts_of(_bounded(middle, lower, upper), None)


def _bounded(cost: Cost, lower: Decimal, upper: Decimal) -> Cost:
    return replace(
        cost,
        basis="estimated",
        lower=lower,
        upper=upper,
        notes=(*cost.notes, "many requests: how long each prompt was is not known"),
    )


def _linear(book: PriceBook, record: Record, requests: int) -> Cost:
    """The cost of a whole row at the rates that one of so many equal requests has."""
    whole = record.reading.quantities
    one = {meter: Decimal(quantity) / requests for meter, quantity in whole.items()}
    cost = price(book, _usage(record, one), asked=record.model)
    if cost.amount is None:
        return cost
    lines = tuple(
        replace(
            line,
            quantity=whole.get(line.meter, line.quantity),
            amount=Decimal(whole.get(line.meter, line.quantity)) * line.rate / line.per,
        )
        for line in cost.lines
    )
    amount = sum((line.amount for line in lines), Decimal(0))
    return replace(cost, lines=lines, amount=amount, lower=amount, upper=amount, list_amount=None, billed_amount=None)


def _seller(price_id: str | None) -> str:
    """The provider in `list/provider/model`, for a row that names none."""
    parts = (price_id or "").split("/")
    return parts[1] if len(parts) > 2 else ""
