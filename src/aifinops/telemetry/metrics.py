"""Sums and distributions of every call, also of those whose trace is sampled out.

Counters are summed in a table of our own and read by observable instruments: an addition costs a fraction of what one
`Counter.add` does, and a forked child starts from zero instead of exporting its parent's sums again. Histogram points wait in
a bounded queue that the collection drains, so that the thread that makes calls does not pay for bucketing. Of what waits for one
attribute set the largest point is recorded in the context of its call: its exemplar leads to the trace.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from aifinops.charges import Charge
from aifinops.errors import failures, swallow
from aifinops.meters import METERS
from aifinops.money import NANO
from aifinops.telemetry import names
from aifinops.telemetry.afresh import begin_afresh
from aifinops.telemetry.delivery import lost
from aifinops.telemetry.histograms import record_all
from aifinops.telemetry.spans import is_placeholder
from aifinops.usage import Quantities, input_total, output_total

__all__ = ["BudgetState", "DeviceState", "Metrics"]

MAX_SERIES = 1_900
"""The SDK folds an instrument's attribute sets into an overflow point beyond 2,000; we stop adding to an instrument before that."""

MAX_BUDGETS = 200
"""Budgets of which there are gauges."""

BATCH = 512
"""Calls that wait to be added up."""

MAX_POINTS = 65_536
"""Calls whose histogram points may wait for a collection; beyond it they are recorded at once."""

_TOKEN_TYPES = {"cache_read": "cache_read", "cache_write": "cache_write", "input": "input_fresh", "output": "output"}


class BudgetState(NamedTuple):
    """How a budget stands, in units of its own.

    Attributes:
        id: its name. period: kind of its window. unit: currency or meter. limit, spent, remaining: of the present window.
        burn_rate: spending rate over the rate that just uses up the limit in the window; None where there is no telling.
    """

    id: str
    period: str
    unit: str
    limit: float | None
    spent: float
    remaining: float | None
    burn_rate: float | None


class DeviceState(NamedTuple):
    """What a device does at present, as far as it is known.

    Attributes:
        id, model, vendor, parent: which. utilization: busy part of the time since the last look, 0 to 1. memory, memory_limit: bytes.
        energy_j: joules since it is watched. power_w: mean since the last look.
    """

    id: str
    model: str
    vendor: str
    parent: str = ""
    utilization: float | None = None
    memory: float | None = None
    memory_limit: float | None = None
    energy_j: float | None = None
    power_w: float | None = None


class _Series:
    """Sums of one attribute set, and the histogram points that no collection has taken yet, by error type.

    `sums` has a table for each instrument: `calls` by error type, `cost` by component, `tokens` by type, `usage` by metric and modality.
    """

    __slots__ = ("attributes", "currency", "operation", "points", "sums")

    def __init__(self, attributes: dict[str, Any], currency: str, operation: str) -> None:
        self.attributes = attributes
        self.currency = currency
        self.operation = operation
        self.sums: dict[str, Counter[Any]] = {
            "calls": Counter(),
            "cost": Counter(),
            "tokens": Counter(),
            "unpriced": Counter(),
        }
        self.points: dict[str, list[_Point]] = {}


_Point = tuple[Any, ...]
"""Of one call: cost, seconds, tokens in, tokens out, seconds to the first chunk, whether the official metrics are ours, span context, and
its quantities where their parts are asked for."""
_COST, _SECONDS, _IN, _OUT, _FIRST, _OFFICIAL, _CONTEXT, _QUANTITIES = range(8)

_Waiting = tuple[_Series, str, tuple[tuple[str, int], ...], Quantities, int | None, int, float | None, bool, Any]
"""What of a call is still to be added up: series, error, lines, quantities, amount, duration, first chunk, whether the official
metrics are ours to tell, context of its span. A plain tuple, since one is made in every call."""


class Metrics:
    """Sums calls and feeds the meter provider that the application has set.

    Args:
        version: of the package. tags: that become attributes. dropped: says how many records the ledger could not keep.
        get_provider: finds the meter provider; default the global one. dialects: with metrics of their own.
        latest: the metrics of semantic-conventions-genai in place of those of 1.41.1.
        budgets: says how budgets stand. decisions: (name of a budget, what it did) -> how often.

    Attributes:
        full: False leaves out the official `gen_ai.client.*` metrics (somebody else emits them).
        devices: says what the GPUs do that are watched; None while there are none.
    """

    def __init__(
        self,
        version: str,
        tags: Sequence[str],
        dropped: Callable[[], int] = lambda: 0,
        get_provider: Callable[[], Any] | None = None,
        *,
        dialects: Sequence[str] = (),
        latest: bool = False,
        budgets: Callable[[int], Iterable[BudgetState]] = lambda most: (),
        decisions: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        self._version = version
        self._tags = tuple(tags)
        self._dropped = dropped
        self._dialects = tuple(dialects)
        self._latest = latest
        self._budgets = budgets
        self._decisions = decisions
        self.devices: Callable[[], Iterable[DeviceState]] | None = None
        self._lock = threading.RLock()
        self._series: dict[tuple[Any, ...], _Series] = {}
        self._overflows: dict[str, _Series] = {}
        self._cells: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()
        self._gpu: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._points = 0
        self._provider: Any = None
        self._get_provider = get_provider
        self._histograms: dict[str, Any] = {}
        self._cost_histograms: tuple[tuple[str, str], ...] = ()
        self._columns = _COLUMNS
        self._warned = False
        self._energy: dict[str, float] = {}
        self._seen_budgets: tuple[BudgetState, ...] = ()
        self._seen_devices: tuple[DeviceState, ...] = ()
        self.full = True

    def record(
        self,
        charge: Charge,
        error: str = "",
        first_chunk: float | None = None,
        kind: str = "llm",
        official: bool = True,
        context: Any = None,
    ) -> None:
        """Add one settled or failed call.

        Args:
            charge: the ledger entry. error: type of the failure, empty for none. first_chunk: seconds to the first piece of a stream.
            kind: service. official: False where somebody else tells `gen_ai.client.*` of it. context: of the span of the call.
        """
        self._ready()
        self._waiting.append(
            (
                self._find(charge, kind),
                error,
                charge.lines or _undivided(charge, kind),
                charge.quantities,
                charge.amount,
                charge.duration,
                first_chunk,
                official,
                context,
            )
        )
        if len(self._waiting) >= BATCH:
            self._add_up()

    def gpu_time(self, charge: Charge, states: Mapping[str, float]) -> None:
        """Add device time.

        Args:
            charge: whose time it is. states: `allocated`, `busy`, `idle`, `stall` -> device-seconds; one that is unknown is left out.
        """
        self._ready()
        with self._lock:
            attributes = tuple(self._find(charge, charge.service).attributes.items())
            for state, seconds in states.items():
                self._gpu[(*attributes, (names.GPU_STATE, state))] += seconds  # type: ignore[assignment]  # a sum of floats

    # --- adding up ----------------------------------------------------------------------------------------------------

    def _add_up(self) -> None:
        """Take in what waits. In a batch it costs half of what it does call by call, between the work of the application."""
        with self._lock:
            live, waiting = self._provider is not None, self._waiting
            while True:
                try:
                    waited = waiting.popleft()
                except IndexError:  # also where a call of a signal handler has taken in the last one
                    break
                series, error, lines, quantities, amount, duration, first_chunk, official, context = waited
                self._count(series, error, lines, quantities, unpriced=amount is None and not error)
                if self._latest and official and self.full and series.operation in names.INFERENCE:
                    self._count_usage(series, quantities)
                if live:
                    points = series.points.get(error)
                    if points is None:
                        points = series.points[error] = []
                    cost = None if amount is None else amount / NANO
                    if official:
                        tokens_in, tokens_out = input_total(quantities) or None, output_total(quantities) or None
                        points.append(
                            (cost, duration / NANO, tokens_in, tokens_out, first_chunk, True, context, quantities)
                        )
                    else:
                        points.append((cost, 0.0, None, None, None, False, context, None))
                    self._points += 1
            if self._points >= MAX_POINTS:
                self._drain()

    def _count(self, series: _Series, error: str, lines: Any, quantities: Quantities, *, unpriced: bool) -> None:
        """Add one call to the sums."""
        sums, component = series.sums, names.component
        calls, cost, tokens = sums["calls"], sums["cost"], sums["tokens"]
        (calls if error in calls else self._room(series, "calls"))[error] += 1
        if unpriced:
            unknown = sums["unpriced"]
            (unknown if "" in unknown else self._room(series, "unpriced"))[""] += 1
        for meter_name, amount in lines:
            part = component(meter_name)
            (cost if part in cost else self._room(series, "cost"))[part] += amount
        for meter_name, quantity in quantities.items():
            if meter_name == "reasoning_tokens":
                (tokens if "reasoning" in tokens else self._room(series, "tokens"))["reasoning"] += int(quantity)
                (tokens if "output" in tokens else self._room(series, "tokens"))["output"] += int(quantity)
            elif meter_name.endswith("_tokens"):
                kind = _TOKEN_TYPES[component(meter_name)]
                (tokens if kind in tokens else self._room(series, "tokens"))[kind] += int(quantity)

    def _count_usage(self, series: _Series, quantities: Quantities) -> None:
        """Add one inference to the counters of the newest conventions; one without usage is a 0 of unknown modality."""
        usage = series.sums.get("usage")
        if usage is None:
            usage = series.sums["usage"] = Counter()
        told = False
        for name, quantity in quantities.items():
            for cell in _USAGE.get(name, ()):
                told = True
                (usage if cell in usage else self._room(series, "usage"))[cell] += int(quantity)
        if not told:
            for cell in _NO_USAGE:
                (usage if cell in usage else self._room(series, "usage"))[cell] += 0

    def _room(self, series: _Series, sums: str) -> Counter[Any]:
        """Where a part of a series is summed that is new: in its own table, or among what the instrument has no room for."""
        if series.attributes is _OVERFLOW:
            return series.sums.setdefault(sums, Counter())
        self._cells[sums] += 1
        if self._cells[sums] <= MAX_SERIES:
            return series.sums[sums]
        self._warn()
        return self._overflow(series.currency).sums.setdefault(sums, Counter())

    def _overflow(self, currency: str) -> _Series:
        return self._overflows.get(currency) or self._overflows.setdefault(currency, _Series(_OVERFLOW, currency, ""))

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        import logging

        logging.getLogger("aifinops").warning(
            "aifinops: more than %d attribute sets of one metric; further ones are summed up as otel.metric.overflow, so totals stay exact. "
            "The tags on metrics are %s: leave out those with many values (metric_tags, AIFINOPS_METRIC_TAGS).",
            MAX_SERIES,
            ", ".join(self._tags) or "none",
        )

    def _find(self, charge: Charge, kind: str) -> _Series:
        tags = charge.tags
        values = tuple([tags.get(tag) for tag in self._tags]) if tags else ()
        key = (charge.provider, charge.operation, charge.model, charge.currency, kind, values)
        series = self._series.get(key)
        if series is None:
            with self._lock:
                series = self._series.get(key) or self._new_series(key, charge, kind, values)
        return series

    def _new_series(self, key: tuple[Any, ...], charge: Charge, kind: str, values: tuple[Any, ...]) -> _Series:
        if len(self._series) >= MAX_SERIES:
            self._warn()
            return self._overflow(charge.currency)
        attributes: dict[str, Any] = {names.PROVIDER: charge.provider, names.OPERATION: charge.operation}
        if charge.model:
            attributes[names.REQUEST_MODEL] = charge.model
        attributes[names.COST_KIND] = kind
        for tag, value in zip(self._tags, values, strict=False):
            if value is not None:
                attributes[names.TAGS.get(tag, names.TAG_PREFIX + tag)] = value
        series = self._series[key] = _Series(attributes, charge.currency, charge.operation)
        return series

    def reset_after_fork(self) -> None:
        """The child counts from zero: its parent exports the parent's sums."""
        self._lock = threading.RLock()
        self._series, self._overflows = {}, {}
        self._cells = Counter()
        self._waiting = deque()
        self._gpu = Counter()
        self._energy = {}
        self._points = 0
        if self._provider is not None:
            begin_afresh(self._provider, names.SCOPE)

    # --- the OpenTelemetry side ---------------------------------------------------------------------------------------

    def _ready(self) -> bool:
        if self._get_provider is None:
            if "opentelemetry.metrics" not in sys.modules:
                return False
            from opentelemetry.metrics import get_meter_provider

            self._get_provider = get_meter_provider
        provider = self._get_provider()
        if provider is self._provider:
            return True
        return not is_placeholder(provider) and self._connect(provider)

    def _connect(self, provider: Any) -> bool:
        from aifinops.telemetry.dialects import DIALECTS
        from aifinops.telemetry.tables import METRICS

        schema = names.SCHEMA_URL_LATEST if self._latest else names.SCHEMA_URL
        meter = provider.get_meter(names.SCOPE, self._version, schema)
        self._provider = provider
        observed = self._observed()
        for row in METRICS:
            if row.name in observed:
                make = getattr(meter, _MAKERS[row.kind])
                make(row.name, [observed[row.name]], row.unit, row.text)
        self._histograms = {
            row.name: _histogram(meter, row.name, row.unit, row.text, row.buckets)
            for row in METRICS
            if row.kind == "histogram" and (row.name.startswith("aifinops.") or _is_official(row.name, self._latest))
        }
        rows = [DIALECTS[name] for name in self._dialects]
        self._columns = (*_COLUMNS, *_PARTS) if any(row.token_types for row in rows) else _COLUMNS
        more = {one.name: one for row in rows for one in row.histograms}
        for one in more.values():
            self._histograms[one.name] = _histogram(meter, one.name, one.unit, "Cost of one call", names.COST_BUCKETS)
        self._cost_histograms = tuple((one.name, one.currency) for one in more.values())
        return True

    def _observed(self) -> dict[str, Callable[[Any], Iterable[Any]]]:
        """Observable instrument -> what it says at a collection, in the order in which they are asked."""
        found: dict[str, Callable[[Any], Iterable[Any]]] = {
            names.METRIC_COST: self._observe_cost,
            names.METRIC_TOKENS: self._observe_tokens,
            names.METRIC_CALLS: self._observe_calls,
            names.METRIC_PRICE_MISSING: self._observe_unpriced,
            names.METRIC_GPU_TIME: self._observe_gpu,
            names.METRIC_LEDGER_DROPPED: lambda _options: [_observation(self._dropped(), {})],
            names.METRIC_EXPORT_ERRORS: lambda _options: [
                _observation(count, {names.SIGNAL: signal}) for signal, count in lost.counts().items()
            ],
            names.METRIC_FAILURES: lambda _options: [
                _observation(count, {names.PLACE: place}) for place, count in failures().items()
            ],
            names.METRIC_BUDGET_DECISIONS: self._observe_decisions,
        }
        for name, figure in _BUDGET_GAUGES.items():
            found[name] = lambda _options, name=name, figure=figure: self._observe_budgets(name, figure)  # type: ignore[misc]
        for name, reading in _DEVICE_GAUGES.items():
            found[name] = lambda _options, name=name, reading=reading: self._observe_devices(name, reading)  # type: ignore[misc]
        if self._latest:
            for name in _USAGE_ALL:
                found[name] = lambda _options, name=name: self._observe_usage(name)  # type: ignore[misc]
        return found

    def _drain(self) -> None:
        """Give the points that wait to the histograms."""
        with self._lock:
            ready = [
                (series, error, series.points.pop(error)) for series in self._all() for error in list(series.points)
            ]
            self._points = 0
        for series, error, points in ready:
            attributes = {**series.attributes, names.ERROR_TYPE: error} if error else series.attributes
            self._drain_cost(series, points, attributes)
            official = [point for point in points if point[_OFFICIAL]] if self.full else []
            if official:
                self._drain_official(series, official, attributes)

    def _drain_cost(self, series: _Series, points: list[_Point], attributes: Mapping[str, Any]) -> None:
        told = {**attributes, names.COST_CURRENCY: series.currency}
        self._record(names.METRIC_OPERATION_COST, points, _COST, told)
        for name, currency in self._cost_histograms:
            if currency:
                self._record(name, points, _COST, {**attributes, currency: series.currency})
            elif series.currency == "USD":
                self._record(name, points, _COST, attributes)

    def _drain_official(self, series: _Series, points: list[_Point], attributes: Mapping[str, Any]) -> None:
        columns = _columns_latest(series.operation) if self._latest else self._columns
        for name, column, more in columns:
            self._record(name, points, column, {**attributes, **more} if more else attributes)

    def _record(self, name: str, points: list[_Point], column: int | str, attributes: Mapping[str, Any]) -> None:
        """One figure of many calls; the largest one whose trace is kept is recorded in the context of its span."""
        if isinstance(column, str):
            record_all(self._histograms[name], _parts(points, column), attributes)
            return
        values = [point[column] for point in points if point[column] is not None]
        if not values:
            return
        traced = [point for point in points if point[_CONTEXT] is not None and point[column] is not None]
        best = max(traced, key=itemgetter(column)) if traced else None
        record_all(self._histograms[name], values, attributes, None if best is None else (best[column], best[_CONTEXT]))

    def _all(self) -> list[_Series]:
        return [*self._series.values(), *self._overflows.values()]

    def _snapshot(self) -> list[_Series]:
        with self._lock:
            self._add_up()
            return self._all()

    def _cells_of(self, sums: str) -> Iterable[tuple[_Series, Any, int]]:
        for item in self._snapshot():
            for part, value in list(item.sums.get(sums, _NONE).items()):
                yield item, part, value

    def _observe_cost(self, _options: Any) -> Iterable[Any]:
        try:
            self._add_up()
            self._drain()  # collection visits observable instruments before it reads the histograms
        except Exception as failure:  # a broken instrument of the application must not stop the collection
            swallow("telemetry.metrics.drain", failure)
        return [
            _observation(
                amount / NANO, {**item.attributes, names.COST_COMPONENT: part, names.COST_CURRENCY: item.currency}
            )
            for item, part, amount in self._cells_of("cost")
        ]

    def _observe_tokens(self, _options: Any) -> Iterable[Any]:
        return [
            _observation(count, {**item.attributes, names.OWN_TOKEN_TYPE: kind})
            for item, kind, count in self._cells_of("tokens")
        ]

    def _observe_calls(self, _options: Any) -> Iterable[Any]:
        return [
            _observation(count, {**item.attributes, names.ERROR_TYPE: error} if error else item.attributes)
            for item, error, count in self._cells_of("calls")
        ]

    def _observe_unpriced(self, _options: Any) -> Iterable[Any]:
        return [_observation(count, item.attributes) for item, _, count in self._cells_of("unpriced")]

    def _observe_usage(self, name: str) -> Iterable[Any]:
        return [
            _observation(count, {**item.attributes, names.TOKEN_MODALITY_LATEST: cell.rpartition(" ")[2]})
            for item, cell, count in self._cells_of("usage")
            if cell.partition(" ")[0] == name
        ]

    def _observe_gpu(self, _options: Any) -> Iterable[Any]:
        with self._lock:
            found = list(self._gpu.items())
        return [_observation(seconds, dict(attributes)) for attributes, seconds in found]

    def _observe_decisions(self, _options: Any) -> Iterable[Any]:
        return [
            _observation(count, {names.BUDGET_ID: id, names.BUDGET_ACTION: action} if id else dict(_OVERFLOW))
            for (id, action), count in self._decisions().items()
        ]

    def _observe_budgets(self, name: str, figure: Callable[[BudgetState], float | None]) -> Iterable[Any]:
        if name == names.METRIC_BUDGET_LIMIT:  # the first of them that a collection asks for
            try:
                self._seen_budgets = tuple(self._budgets(MAX_BUDGETS))
            except Exception as failure:  # a gauge without a value is a gap in a chart
                self._seen_budgets = ()
                swallow("telemetry.metrics.budgets", failure)
        return [
            _observation(value, {names.BUDGET_ID: one.id, names.BUDGET_PERIOD: one.period, names.BUDGET_UNIT: one.unit})
            for one in self._seen_budgets
            if (value := figure(one)) is not None
        ]

    def _observe_devices(self, name: str, figure: Callable[[DeviceState], float | None]) -> Iterable[Any]:
        if name == names.METRIC_HW_UTILIZATION:  # likewise
            try:
                self._seen_devices = () if self.devices is None else tuple(self.devices())
            except Exception as failure:  # as above
                self._seen_devices = ()
                swallow("telemetry.metrics.devices", failure)
        more = {names.HW_GPU_TASK: "general"} if name == names.METRIC_HW_UTILIZATION else {}
        return [
            _observation(value, {**_device(one), **more})
            for one in self._seen_devices
            if (value := figure(one)) is not None
        ]


_NONE: Counter[Any] = Counter()
_OVERFLOW: dict[str, Any] = {"otel.metric.overflow": True}
_MAKERS = {
    "counter": "create_observable_counter",
    "updowncounter": "create_observable_up_down_counter",
    "gauge": "create_observable_gauge",
}

_BUDGET_GAUGES: dict[str, Callable[[BudgetState], float | None]] = {
    names.METRIC_BUDGET_LIMIT: lambda one: one.limit,
    names.METRIC_BUDGET_SPENT: lambda one: one.spent,
    names.METRIC_BUDGET_REMAINING: lambda one: one.remaining,
    names.METRIC_BUDGET_UTILIZATION: lambda one: one.spent / one.limit if one.limit else None,
    names.METRIC_BUDGET_BURN_RATE: lambda one: one.burn_rate,
}
_DEVICE_GAUGES: dict[str, Callable[[DeviceState], float | None]] = {
    names.METRIC_HW_UTILIZATION: lambda one: one.utilization,
    names.METRIC_HW_MEMORY_USAGE: lambda one: one.memory,
    names.METRIC_HW_MEMORY_LIMIT: lambda one: one.memory_limit,
    names.METRIC_HW_MEMORY_UTILIZATION: lambda one: (
        None if one.memory is None or not one.memory_limit else one.memory / one.memory_limit
    ),
    names.METRIC_HW_ENERGY: lambda one: one.energy_j,
    names.METRIC_HW_POWER: lambda one: one.power_w,
}


def _device(one: DeviceState) -> dict[str, Any]:
    known = {names.HW_ID: one.id, names.HW_TYPE: "gpu", names.HW_MODEL: one.model, names.HW_VENDOR: one.vendor}
    return {**known, names.HW_PARENT: one.parent} if one.parent else known


# --- the metrics of the conventions --------------------------------------------------------------------------------------

_Columns = tuple[tuple[str, int | str, dict[str, str]], ...]

_COLUMNS: _Columns = (
    (names.METRIC_DURATION, _SECONDS, {}),
    (names.METRIC_TOKEN_USAGE, _IN, {names.TOKEN_TYPE: "input"}),
    (names.METRIC_TOKEN_USAGE, _OUT, {names.TOKEN_TYPE: "output"}),
    (names.METRIC_TIME_TO_FIRST_CHUNK, _FIRST, {}),
)
"""Histogram, which figure of a call, or the kind of its tokens, and further attributes."""
_PARTS: _Columns = tuple(
    (names.METRIC_TOKEN_USAGE, part, {names.TOKEN_TYPE: part}) for part in ("cache_read", "cache_write", "reasoning")
)
"""Of dialect `agento11y`: parts of the input and the output as further types."""
_INFERENCE_LATEST: _Columns = (
    (names.METRIC_DURATION_LATEST, _SECONDS, {}),
    (names.METRIC_CALL_INPUT_LATEST, _IN, {}),
    (names.METRIC_CALL_OUTPUT_LATEST, _OUT, {}),
    (names.METRIC_TIME_TO_FIRST_CHUNK_LATEST, _FIRST, {}),
)
_EMBEDDINGS_LATEST: _Columns = (
    (names.METRIC_EMBEDDINGS_DURATION_LATEST, _SECONDS, {}),
    (names.METRIC_EMBEDDINGS_INPUT_LATEST, _IN, {}),
)
_OTHERS_LATEST: _Columns = ((names.METRIC_DURATION, _SECONDS, {}),)


def _undivided(charge: Charge, kind: str) -> tuple[tuple[str, int], ...]:
    """An amount that no meter tells (reported by the provider, recorded by hand) as one line; none for what is unknown or free."""
    return ((f"{kind}_seconds" if kind in {"gpu", "cpu"} else "", charge.amount),) if charge.amount else ()


def _parts(points: Iterable[_Point], kind: str) -> list[int]:
    """Tokens of one kind in each call that has some."""
    found = [
        sum(int(count) for name, count in point[_QUANTITIES].items() if name.startswith(kind) and name in _USAGE)
        for point in points
    ]
    return [count for count in found if count]


def _columns_latest(operation: str) -> _Columns:
    if operation in names.INFERENCE:
        return _INFERENCE_LATEST
    return _EMBEDDINGS_LATEST if operation == "embeddings" else _OTHERS_LATEST


def _is_official(name: str, latest: bool) -> bool:
    rows = (*_INFERENCE_LATEST, *_EMBEDDINGS_LATEST, *_OTHERS_LATEST) if latest else _COLUMNS
    return any(name == row[0] for row in rows)


def _usage_cells(name: str) -> tuple[str, ...]:
    """The counters of the newest conventions that a meter adds to, each with its modality after a blank: a text knows its hash."""
    meter = METERS[name]
    if meter.family != "tokens":
        return ()
    modality = meter.modality if meter.modality in names.MODALITIES_LATEST else "unknown"
    found = [names.METRIC_INPUT_LATEST if meter.direction == "input" else names.METRIC_OUTPUT_LATEST]
    if meter.cache:
        found.append(names.METRIC_CACHE_READ_LATEST if meter.cache == "read" else names.METRIC_CACHE_WRITE_LATEST)
    if name == "reasoning_tokens":
        found.append(names.METRIC_REASONING_LATEST)
    return tuple(f"{metric} {modality}" for metric in found)


_USAGE = {name: cells for name in METERS if (cells := _usage_cells(name))}
_USAGE_TOTALS = (names.METRIC_INPUT_LATEST, names.METRIC_OUTPUT_LATEST)
_NO_USAGE = tuple(f"{name} unknown" for name in _USAGE_TOTALS)
_USAGE_ALL = (
    *_USAGE_TOTALS,
    names.METRIC_CACHE_READ_LATEST,
    names.METRIC_CACHE_WRITE_LATEST,
    names.METRIC_REASONING_LATEST,
)


def _histogram(meter: Any, name: str, unit: str, text: str, buckets: Sequence[float]) -> Any:
    return meter.create_histogram(name, unit=unit, description=text, explicit_bucket_boundaries_advisory=buckets)


def _observation(value: float, attributes: dict[str, Any]) -> Any:
    from opentelemetry.metrics import Observation

    return Observation(value, attributes)
