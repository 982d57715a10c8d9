"""The price book: usage in, exact and explained cost out; and bounds before the call.

    book = PriceBook()                                   # the bundled lists
    book = PriceBook([from_file("contract.toml"), *bundled_lists()])   # the first list that knows the model wins
    book.price(usage).explain()

Unknown is never zero: a model, tier or meter without a price gives a `Cost` of basis `unknown`, whose notes say what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from aifinops.charges import Amounts, Basis, Cost, CostLine
from aifinops.clock import Clock, SystemClock
from aifinops.errors import UnknownModel
from aifinops.meters import METERS
from aifinops.pricing.lists import PriceList, bundled_lists, from_file, load_bundled
from aifinops.pricing.match import provider_id
from aifinops.pricing.prices import PROVISIONED, Entry, Options, tier_name
from aifinops.pricing.sheet import UNBOUNDED, Sheet, make_cost
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Sku, Usage

if TYPE_CHECKING:
    from aifinops.pricing.contract import Capacity, Commitment, Contract, Volume

__all__ = ["PriceBook", "bundled_lists", "from_file", "load_bundled"]

_CACHE = 4096
_ZERO = Decimal(0)
_EXACT = Context(prec=60)
_EXPECTED_OUTPUT = 1_000
"""Output tokens that are expected when a request names no limit. Only the middle of an estimate depends on it, no bound."""

_WITHOUT_OUTPUT = frozenset({"embeddings"})
_NO_NOTES: tuple[str, ...] = ()
_NO_NAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True, eq=False, repr=False)
class _Missing:
    """A model that no list knows: the error to raise and the cost to return."""

    error: UnknownModel
    cost: Cost


@dataclass(slots=True, eq=False, repr=False)
class _Dearest:
    """The highest rates of a provider: currency units for one input token, one output token, one request; and its window."""

    input: Decimal
    output: Decimal
    request: Decimal
    window: int


class PriceBook:
    """Price lists in order of authority: contract over user over bundled. Immutable; make a new one to change prices.

    Args:
        lists: asked in this order; None is the bundled lists, which are read at the first call.
        clock: gives the moment for usage that has none (`at == 0`).
        model_map: declared name -> model that it stands for; a key may begin with its provider (`azure/gpt-4`).
    """

    def __init__(
        self,
        lists: Sequence[PriceList] | None = None,
        *,
        clock: Clock | None = None,
        model_map: Mapping[str, str] = _NO_NAMES,
    ) -> None:
        self._names = {name.lower(): target for name, target in model_map.items()}
        self._given = None if lists is None else tuple(lists)
        self._clock = clock or SystemClock()
        self._found: dict[tuple[str | None, str], Entry | _Missing] = {}
        self._dearest: dict[str | None, _Dearest] = {}

    @property
    def lists(self) -> tuple[PriceList, ...]:
        """The lists in order of authority, each with `id`, `version`, `date`, `source` and `count`."""
        if self._given is None:
            self._given = bundled_lists()
        return self._given

    def over(self, lists: Sequence[PriceList]) -> PriceBook:
        """The same declared names and clock over other lists."""
        return PriceBook(lists, clock=self._clock, model_map=self._names)

    def resolve(self, provider: str | None, model: str) -> Entry:
        """What the first list that knows the model says about it.

        Raises:
            UnknownModel: naming the lists asked and the nearest names.
        """
        found = self._lookup(provider, model)
        if isinstance(found, _Missing):
            raise found.error
        return found

    def _lookup(self, provider: str | None, model: str) -> Entry | _Missing:
        key = (provider, model)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _CACHE:
                # Names can come from users of the application: the cache must not grow without end.
                self._found.clear()
            found = self._found[key] = self._named(provider, model) if self._names else self._asked(provider, model)
        return found

    def _asked(self, provider: str | None, model: str) -> Entry | _Missing:
        return self._find(provider, model) or self._missing(provider, model)

    def _named(self, provider: str | None, model: str) -> Entry | _Missing:
        """The same, of the model that a declared name stands for: at its provider, else at the one that it names."""
        name = model.lower()
        target = self._names.get(f"{provider_id(provider)}/{name}") or self._names.get(name)
        if target is None:
            return self._asked(provider, model)
        found = self._find(provider, target) or ("/" in target and self._find(None, target))
        if not found:
            return self._missing(provider, target)
        return replace(found, notes=(*found.notes, f"{model} is {target} by model_map"))

    def _find(self, provider: str | None, model: str) -> Entry | None:
        for number, one in enumerate(self.lists):
            entry = one.find(provider, model)
            if entry is not None:
                return self._under_contract(entry, number, provider, model)
        return None

    def _under_contract(self, entry: Entry, number: int, provider: str | None, model: str) -> Entry:
        """The entry with what the contracts say about it; `number` is the place of its list."""
        contracts = self._contracts(self.lists)
        if not contracts:
            return entry
        from aifinops.pricing.contract import Terms  # most processes have no contract

        terms = Terms.of(
            contracts,
            self._contracts(self.lists[:number]),
            # A reseller's discount is not that of the maker, whose entry it shares.
            provider=provider_id(provider) or entry.provider,
            models=(entry.model, model),
            service=entry.service,
            currency=entry.currency,
        )
        return entry if terms is None else replace(entry, terms=terms)

    @staticmethod
    def _contracts(lists: Sequence[PriceList]) -> tuple[Contract, ...]:
        return tuple(one.contract for one in lists if one.contract is not None)

    @property
    def commitments(self) -> tuple[Commitment, ...]:
        """What is paid for whether it is used or not, with `.amortised(start, end)`: it is in no cost of a call."""
        return tuple(item for one in self._contracts(self.lists) for item in one.commitments)

    @property
    def capacity(self) -> tuple[Capacity, ...]:
        """Commitments and provisioned throughput, in order of authority: what `aifinops.analytics.amortise` spreads over calls."""
        found: list[Capacity] = []
        for one in self._contracts(self.lists):
            found += one.provisioned
            found += one.commitments
        return tuple(found)

    def _missing(self, provider: str | None, model: str) -> _Missing:
        near: dict[str, None] = {}
        for one in self.lists:
            near.update(dict.fromkeys(one.nearest(provider, model)))
        ids = [one.id for one in self.lists]
        error = UnknownModel(model, provider=provider or None, lists=ids, nearest=list(near)[:3])
        notes = [str(error)]
        if provider and not any(provider_id(provider) in one.providers for one in self.lists):
            notes.append(f"no list has a provider {provider!r}")
        return _Missing(error, Cost(None, basis="unknown", model=model, notes=tuple(notes)))

    # After the call ---------------------------------------------------------------------------------------------------

    def cost(
        self,
        provider: str,
        model: str,
        quantities: Quantities,
        *,
        at: int,
        tier: str = "",
        region: str = "",
        options: Options = (),
    ) -> Cost:
        """`price` of usage that was reported, without making a `Usage` of it first.

        Args:
            provider, model, tier, region, options: as in `Sku`. quantities, at: as in `Usage`.
        """
        found = self._found.get((provider, model)) or self._lookup(provider, model)
        if not isinstance(found, _Missing):
            sheet = found.sheet(at or self._clock.time_ns(), tier_name(tier) if tier else "", region, options)
            quick = None if isinstance(sheet, str) else sheet.cost(quantities)
            if quick is not None:
                return quick
        return self.price(Usage(quantities, Sku(provider, model, "llm", tier, region, options), at))

    def price(self, usage: Usage, so_far: Quantities = EMPTY_QUANTITIES) -> Cost:
        """What this usage cost.

        The provider, the model, the served tier, the region and the options of `usage.sku` and the moment `usage.at` choose the
        price. The basis is `priced`; `estimated` with bounds when the usage is; `free` when the list says so; `committed` when it
        was served by capacity that is paid for anyway; `unknown` when the model, the tier or a meter has no price: then `lower` is
        what is known of it, and the notes say what is not.

        Args:
            usage: disjoint quantities of one SKU.
            so_far: what the period of a graduated price or of a discount by volume had before: meter -> quantity, and `spend` ->
                money at list prices. Nobody but the caller knows it; without it this usage is priced as the first of its period.
        """
        sku = usage.sku
        found = self._found.get((sku.provider, sku.model)) or self._lookup(sku.provider, sku.model)
        if isinstance(found, _Missing):
            return found.cost if tier_name(sku.tier) != PROVISIONED else _committed(found.cost)
        sheet = found.sheet(
            usage.at or self._clock.time_ns(), tier_name(sku.tier) if sku.tier else "", sku.region, sku.options
        )
        if isinstance(sheet, str):
            return _unpriced(found, sheet)
        quantities = usage.quantities
        lines, amount, missing = sheet.lines(quantities, so_far)
        if missing:
            return _partial(sheet, lines, amount, missing)
        listed: Decimal | None = amount
        if sheet.listed is not None or sheet.free:
            listed = sheet.list_amount(quantities, amount, so_far)
        if usage.estimated:
            return _estimated(self._bounded(usage), sheet, lines, amount, listed, so_far)
        return make_cost(sheet, amount, sheet.basis, amount, amount, tuple(lines), listed)

    def volume(self, usage: Usage) -> Volume | None:
        """The discount by volume that this usage is under, if any: the same object for everything that counts towards it."""
        sku = usage.sku
        found = self._lookup(sku.provider, sku.model)
        if isinstance(found, _Missing):
            return None
        sheet = found.sheet(usage.at or self._clock.time_ns(), tier_name(sku.tier), sku.region, sku.options)
        return None if isinstance(sheet, str) else sheet.volume

    def amounts(
        self,
        provider: str,
        model: str,
        quantities: Quantities,
        *,
        at: int,
        tier: str = "",
        region: str = "",
        options: Options = (),
    ) -> Amounts | None:
        """`price` in the integers of the ledger, without its explanation, for usage that was reported.

        Args:
            provider, model, tier, region, options: as in `Sku`. quantities, at: as in `Usage`.

        Returns:
            None where only `price` can say it: fees, minimums, graduated prices, discounts by volume, and everything unknown.
        """
        found = self._found.get((provider, model)) or self._lookup(provider, model)
        if isinstance(found, _Missing):
            return None
        sheet = found.sheet(at, tier_name(tier) if tier else "", region, options)
        if isinstance(sheet, str):
            return None
        counted = sheet.nanos(quantities)
        if counted is None:
            return None
        amount, lines = counted
        listed = None
        if sheet.listed is not None:
            full = sheet.listed.nanos(quantities)
            if full is None:
                return None
            listed = full[0] if full[0] != amount else None
        return Amounts(
            amount,
            sheet.currency,
            "priced",
            amount,
            amount,
            lines,
            sheet.price_id,
            sheet.as_of_text,
            sheet.source,
            listed,
        )

    def _bounded(self, usage: Usage) -> Usage:
        """The same with the context window for what could not be bounded from the request."""
        if not any(quantity >= UNBOUNDED for quantity in usage.upper.values()):
            return usage
        limit = self.input_limit(usage.sku.provider, usage.sku.model)
        upper = {meter: limit if quantity >= UNBOUNDED else quantity for meter, quantity in usage.upper.items()}
        return replace(usage, upper=upper)

    # Before the call --------------------------------------------------------------------------------------------------

    def estimate(
        self,
        provider: str | None,
        model: str,
        *,
        input_tokens_upper: int,
        output_tokens_upper: int | None,
        at: int,
        operation: str = "chat",
        tier: str = "",
        region: str = "",
        options: Options = (),
    ) -> Cost:
        """What a request will cost: an expected amount, and a bound that the call cannot pass.

        The upper bound takes the dearest rate at which an input token can be billed (fresh, written to a cache, of any modality,
        above any cliff that the prompt can reach), and likewise for output; what tools of the provider cost is not in it.

        Args:
            provider, model, tier, region, options: as asked.
            input_tokens_upper: bound of the prompt; `tokens.UNBOUNDED` stands for the model's context window.
            output_tokens_upper: the request's limit (times the number of answers), or None when it names none: then the most that
                the model can write, else its context window.
            at: wall clock, nanoseconds; 0 is now.
            operation: OpenTelemetry's `gen_ai.operation.name`; `embeddings` has no output.
        """
        found = self._lookup(provider, model)
        if isinstance(found, _Missing):
            return found.cost
        sheet = found.sheet(at or self._clock.time_ns(), tier_name(tier), region, options)
        if isinstance(sheet, str):
            return _unpriced(found, sheet)
        if sheet.free:
            return make_cost(sheet, _ZERO, sheet.basis, _ZERO, _ZERO)
        prompt, answer, upper = self._most(found, sheet, input_tokens_upper, output_tokens_upper, operation)
        if upper is None:
            return _unpriced(found, f"{found.provider}/{found.model} is not priced by tokens: no bound before the call")
        expected = answer if output_tokens_upper is not None else min(answer, _EXPECTED_OUTPUT)
        lines, amount, _ = sheet.lines({"input_tokens": prompt, "output_tokens": expected})
        notes = _NO_NOTES if output_tokens_upper is not None or not answer else (self._answer_note(found, answer),)
        return make_cost(sheet, amount, "estimated", _ZERO, max(upper, amount), tuple(lines), notes=notes)

    def bound(
        self,
        provider: str | None,
        model: str,
        *,
        input_tokens_upper: int,
        output_tokens_upper: int | None,
        at: int,
        operation: str = "chat",
        tier: str = "",
        region: str = "",
        options: Options = (),
    ) -> tuple[Decimal | None, str]:
        """The `upper` and the currency of `estimate`, in a third of its time; (None, "USD") where there is no bound."""
        found = self._found.get((provider, model)) or self._lookup(provider, model)
        sheet = None
        if not isinstance(found, _Missing):
            sheet = found.sheet(at, tier_name(tier) if tier else "", region, options)
        if sheet is None or isinstance(sheet, str) or isinstance(found, _Missing):
            return None, "USD"
        if sheet.free:
            return _ZERO, sheet.currency
        return self._most(found, sheet, input_tokens_upper, output_tokens_upper, operation)[2], sheet.currency

    def _most(
        self, entry: Entry, sheet: Sheet, input_tokens_upper: int, output_tokens_upper: int | None, operation: str
    ) -> tuple[int, int, Decimal | None]:
        """The most prompt tokens, the most output tokens, and what they cost at most: None when not priced by tokens."""
        prompt = input_tokens_upper
        if prompt >= UNBOUNDED:
            prompt = entry.context_window or self._window(entry.provider)
        rate_in, rate_out = sheet.ceiling(prompt)
        if rate_in is None:
            return prompt, 0, None
        answer = 0
        if rate_out is not None and operation not in _WITHOUT_OUTPUT:
            answer = output_tokens_upper if output_tokens_upper is not None else self._answer(entry)
        upper = _bound(sheet.fee, (prompt, rate_in), (answer, rate_out or _ZERO))
        return prompt, answer, max(upper, sheet.minimum_charge) if sheet.minimum_charge else upper

    def _answer(self, entry: Entry) -> int:
        """The most that a model can write in one answer, tokens."""
        return entry.max_output or entry.context_window or self._window(entry.provider)

    def _answer_note(self, entry: Entry, answer: int) -> str:
        if entry.max_output:
            return f"no output limit: the model writes at most {answer:,} tokens"
        whose = "the context window" if entry.context_window else f"the largest context window of {entry.provider}"
        return f"no output limit: at most {whose}, {answer:,} tokens"

    def dearest(
        self,
        provider: str | None,
        *,
        input_tokens_upper: int,
        output_tokens_upper: int | None,
    ) -> Decimal:
        """What such a request costs at most at the dearest rates of the provider, whatever the model, tier and moment.

        It serves `budget(..., unknown="reserve")`. A provider that no list knows is taken at the dearest rates of any.

        Args:
            provider: any spelling, or None.
            input_tokens_upper, output_tokens_upper: bounds; None or `tokens.UNBOUNDED` is the largest context window.

        Returns:
            Currency units.
        """
        rates = self._rates(provider)
        window = rates.window or self._rates(None).window
        prompt = input_tokens_upper if input_tokens_upper < UNBOUNDED else window
        answer = window if output_tokens_upper is None else output_tokens_upper
        return _bound(rates.request, (prompt, rates.input), (answer, rates.output))

    def input_limit(self, provider: str | None, model: str) -> int:
        """The most prompt tokens that the model can read: its context window, else the largest of its provider or of any."""
        found = self._lookup(provider, model)
        known = None if isinstance(found, _Missing) else found.context_window
        return known or self._window(provider)

    def output_limit(self, provider: str | None, model: str) -> int | None:
        """The most tokens that the model can write in one answer; None for a model that no list knows."""
        found = self._lookup(provider, model)
        if isinstance(found, _Missing):
            return None
        return self._answer(found)

    def _window(self, provider: str | None) -> int:
        """The largest context window of a provider, else of any: what bounds a model whose own is not in the list."""
        return self._rates(provider).window or self._rates(None).window

    def _rates(self, provider: str | None) -> _Dearest:
        key = provider_id(provider)
        if key is not None and not any(key in one.providers for one in self.lists):
            key = None
        found = self._dearest.get(key)
        if found is None:
            found = self._dearest[key] = _dearest(entry for one in self.lists for entry in one.entries(key))
        return found


def _estimated(
    usage: Usage,
    sheet: Sheet,
    lines: Sequence[CostLine],
    amount: Decimal,
    listed: Decimal | None,
    so_far: Quantities,
) -> Cost:
    lower = sheet.lines({**usage.quantities, **usage.lower}, so_far)[1]
    _, upper, open_end = sheet.lines({**usage.quantities, **usage.upper}, so_far)
    basis: Basis = sheet.basis if sheet.free else "estimated"
    highest = None if open_end else max(upper, amount)
    return make_cost(sheet, amount, basis, min(lower, amount), highest, tuple(lines), listed)


def _partial(sheet: Sheet, lines: Sequence[CostLine], known: Decimal, missing: Sequence[str]) -> Cost:
    """Some meter has no rate: the whole is unknown, and at least what is known of it."""
    notes = (f"no rate for {', '.join(missing)}",)
    return make_cost(sheet, None, "unknown", known, None, tuple(lines), notes=notes)


def _committed(cost: Cost) -> Cost:
    """Provisioned throughput of a model that no list knows: one more call costs nothing whatever its price would be."""
    note = "provisioned throughput: one more call costs nothing; what is paid for the capacity is apart"
    return replace(
        cost, amount=_ZERO, basis="committed", lower=_ZERO, upper=_ZERO, source="the served tier", notes=(note,)
    )


def _unpriced(entry: Entry, why: str) -> Cost:
    return Cost(
        None,
        entry.currency,
        "unknown",
        price_id=f"{entry.list_id}/{entry.provider}/{entry.model}",
        as_of=entry.as_of,
        source=entry.source,
        model=entry.model,
        notes=(why, *entry.notes),
        confidence=entry.confidence,
        url=entry.url,
    )


def _bound(fixed: Decimal, *parts: tuple[int, Decimal]) -> Decimal:
    for count, rate in parts:
        fixed = _EXACT.add(fixed, _EXACT.multiply(count, rate))
    return fixed


def _dearest(entries: Iterable[Entry]) -> _Dearest:
    best = {"input": _ZERO, "output": _ZERO, "requests": _ZERO}
    window = 0
    for entry in entries:
        window = max(window, entry.context_window or 0)
        worst = _worst(entry)
        for price in (*entry.prices, *entry.variants):
            best["requests"] = max(best["requests"], price.minimum_charge)
            for name, rate in price.rates.items():
                kind = METERS[name].direction if METERS[name].family == "tokens" else name
                if kind in best:
                    best[kind] = max(best[kind], _EXACT.multiply(rate.dearest, worst))
    return _Dearest(best["input"], best["output"], best["requests"], window)


def _worst(entry: Entry) -> Decimal:
    """The most that adjustments can multiply a price by: each for a thing of its own, all at once."""
    worst: dict[object, Decimal] = {}
    for one in entry.adjust:
        kind = (bool(one.tier), bool(one.region), tuple(name for name, _ in one.options))
        worst[kind] = max(worst.get(kind, Decimal(1)), one.multiply)
    found = Decimal(1)
    for factor in worst.values():
        found = _EXACT.multiply(found, factor)
    return found
