"""Metrics of every call, also of those whose trace is sampled out.

Counters are summed in a table of our own and read by observable instruments: an addition costs a fraction of what one
`Counter.add` does, and a forked child starts from zero instead of exporting its parent's sums again. Histogram points wait in
a bounded queue that the collection drains, so that the thread that makes calls does not pay for bucketing.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aifinops.charges import Charge
from aifinops.errors import failures, swallow
from aifinops.money import NANO
from aifinops.telemetry import names
from aifinops.telemetry.histograms import record_all
from aifinops.telemetry.spans import is_placeholder
from aifinops.usage import Quantities, input_total, output_total

__all__ = ["Metrics"]

MAX_SERIES = 1_900
"""The SDK folds an instrument's attribute sets into an overflow point beyond 2,000; we stop adding series before that."""

BATCH = 512
"""Calls that wait to be added up."""

MAX_POINTS = 65_536
"""Calls whose histogram points may wait for a collection; beyond it they are recorded at once."""

_TOKEN_TYPES = {"cache_read": "cache_read", "cache_write": "cache_write", "input": "input_fresh", "output": "output"}


class _Series:
    """Sums of one attribute set, and the histogram points that no collection has taken yet, by error type."""

    __slots__ = ("attributes", "calls", "cost", "currency", "points", "tokens", "unpriced")

    def __init__(self, attributes: dict[str, Any], currency: str) -> None:
        self.attributes = attributes
        self.currency = currency
        self.calls: Counter[str] = Counter()
        self.unpriced = 0
        self.cost: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.points: dict[str, _Points] = {}

    def count(self, error: str, lines: Any, quantities: Quantities, *, unpriced: bool) -> None:
        """Add one call."""
        self.calls[error] += 1
        if unpriced:
            self.unpriced += 1
        cost, tokens, component = self.cost, self.tokens, names.component
        for meter_name, amount in lines:
            cost[component(meter_name)] += amount
        for meter_name, quantity in quantities.items():
            if meter_name == "reasoning_tokens":
                tokens["reasoning"] += int(quantity)
                tokens["output"] += int(quantity)
            elif meter_name.endswith("_tokens"):
                tokens[_TOKEN_TYPES[component(meter_name)]] += int(quantity)


class _Points:
    """Histogram points that wait, one list for each histogram."""

    __slots__ = ("cost", "first_chunk", "seconds", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.seconds: list[float] = []
        self.tokens_in: list[int] = []
        self.tokens_out: list[int] = []
        self.first_chunk: list[float] = []

    def add_official(self, duration: int, quantities: Quantities, first_chunk: float | None) -> None:
        """What `gen_ai.client.*` tells of one call; `duration` in nanoseconds, `first_chunk` in seconds."""
        self.seconds.append(duration / NANO)
        tokens_in, tokens_out = input_total(quantities), output_total(quantities)
        if tokens_in:
            self.tokens_in.append(tokens_in)
        if tokens_out:
            self.tokens_out.append(tokens_out)
        if first_chunk is not None:
            self.first_chunk.append(first_chunk)


_Waiting = tuple[_Series, str, tuple[tuple[str, int], ...], Quantities, int | None, int, float | None, bool]
"""What of a call is still to be added up: series, error, lines, quantities, amount, duration, first chunk, whether the official
metrics are ours to tell. A plain tuple, since one is made in every call."""


class Metrics:
    """Sums calls and feeds the meter provider that the application has set."""

    def __init__(
        self,
        version: str,
        tags: Sequence[str],
        dropped: Callable[[], int] = lambda: 0,
        get_provider: Callable[[], Any] | None = None,
    ) -> None:
        self._version = version
        self._tags = tuple(tags)
        self._dropped = dropped
        self._lock = threading.RLock()
        self._series: dict[tuple[Any, ...], _Series] = {}
        self._waiting: deque[_Waiting] = deque()
        self._gpu: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._points = 0
        self._provider: Any = None
        self._get_provider = get_provider
        self._histograms: dict[str, Any] = {}
        self.full = True
        """False leaves out the official `gen_ai.client.*` metrics (somebody else emits them)."""

    def record(
        self,
        charge: Charge,
        error: str = "",
        first_chunk: float | None = None,
        kind: str = "llm",
        official: bool = True,
    ) -> None:
        """Add one settled or failed call; `first_chunk` in seconds, `official` False where somebody else tells `gen_ai.client.*` of it."""
        self._ready()
        self._waiting.append(
            (
                self._find(charge, kind),
                error,
                charge.lines,
                charge.quantities,
                charge.amount,
                charge.duration,
                first_chunk,
                official,
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

    def _add_up(self) -> None:
        """Take in what waits. In a batch it costs half of what it does call by call, between the work of the application."""
        with self._lock:
            live, waiting = self._provider is not None, self._waiting
            while True:
                try:
                    waited = waiting.popleft()
                except IndexError:  # also where a call of a signal handler has taken in the last one
                    break
                series, error, lines, quantities, amount, duration, first_chunk, official = waited
                series.count(error, lines, quantities, unpriced=amount is None and not error)
                if live:
                    points = series.points.get(error) or series.points.setdefault(error, _Points())
                    if amount is not None:
                        points.cost.append(amount / NANO)
                    self._points += 1
                    if official:
                        points.add_official(duration, quantities, first_chunk)
            if self._points >= MAX_POINTS:
                self._drain()

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
        attributes: dict[str, Any] = {names.PROVIDER: charge.provider, names.OPERATION: charge.operation}
        if len(self._series) >= MAX_SERIES:
            key = ("overflow", charge.currency)
            found = self._series.get(key)
            if found is not None:
                return found
            attributes = {"otel.metric.overflow": True}
        else:
            if charge.model:
                attributes[names.REQUEST_MODEL] = charge.model
            attributes[names.COST_KIND] = kind
            for tag, value in zip(self._tags, values, strict=False):
                if value is not None:
                    attributes[names.TAGS.get(tag, names.TAG_PREFIX + tag)] = value
        series = self._series[key] = _Series(attributes, charge.currency)
        return series

    def reset_after_fork(self) -> None:
        """The child counts from zero: its parent exports the parent's sums."""
        self._lock = threading.RLock()
        self._series = {}
        self._waiting = deque()
        self._gpu = Counter()
        self._points = 0

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
        meter = provider.get_meter(names.SCOPE, self._version, names.SCHEMA_URL)
        self._provider = provider
        observable = meter.create_observable_counter
        observable(
            names.METRIC_COST, [self._observe_cost], "{currency}", "Cost by component, in aifinops.cost.currency"
        )
        observable(
            names.METRIC_TOKENS,
            [self._observe_tokens],
            "{token}",
            "Tokens by disjoint type; reasoning is part of output",
        )
        observable(names.METRIC_CALLS, [self._observe_calls], "{call}", "Metered calls")
        observable(names.METRIC_PRICE_MISSING, [self._observe_unpriced], "{call}", "Calls whose price is unknown")
        observable(
            names.METRIC_GPU_TIME,
            [self._observe_gpu],
            "s",
            "Device time by state; busy and idle are known for part of it",
        )
        observable(names.METRIC_LEDGER_DROPPED, [self._observe_dropped], "{record}", "Records that could not be kept")
        observable(
            names.METRIC_FAILURES, [self._observe_failures], "{failure}", "Internal failures that were swallowed"
        )
        self._histograms = {
            name: _histogram(meter, name, unit, text, buckets) for name, unit, text, buckets in _HISTOGRAMS
        }
        return True

    def _drain(self) -> None:
        """Give the points that wait to the histograms."""
        with self._lock:
            ready = [
                (series, error, series.points.pop(error)) for series in self._all() for error in list(series.points)
            ]
            self._points = 0
        for series, error, points in ready:
            attributes = {**series.attributes, names.ERROR_TYPE: error} if error else series.attributes
            self._record(names.METRIC_OPERATION_COST, points.cost, attributes)
            if not self.full:
                continue
            self._record(names.METRIC_DURATION, points.seconds, attributes)
            self._record(names.METRIC_TOKEN_USAGE, points.tokens_in, {**attributes, names.TOKEN_TYPE: "input"})
            self._record(names.METRIC_TOKEN_USAGE, points.tokens_out, {**attributes, names.TOKEN_TYPE: "output"})
            self._record(names.METRIC_TIME_TO_FIRST_CHUNK, points.first_chunk, attributes)

    def _record(self, name: str, values: Sequence[float], attributes: Mapping[str, Any]) -> None:
        record_all(self._histograms[name], values, attributes)

    def _all(self) -> list[_Series]:
        return list(self._series.values())

    def _snapshot(self) -> list[_Series]:
        with self._lock:
            self._add_up()
            return self._all()

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
            for item in self._snapshot()
            for part, amount in list(item.cost.items())
        ]

    def _observe_tokens(self, _options: Any) -> Iterable[Any]:
        return [
            _observation(count, {**item.attributes, names.OWN_TOKEN_TYPE: kind})
            for item in self._snapshot()
            for kind, count in list(item.tokens.items())
        ]

    def _observe_calls(self, _options: Any) -> Iterable[Any]:
        return [
            _observation(count, {**item.attributes, names.ERROR_TYPE: error} if error else item.attributes)
            for item in self._snapshot()
            for error, count in list(item.calls.items())
        ]

    def _observe_unpriced(self, _options: Any) -> Iterable[Any]:
        return [_observation(item.unpriced, item.attributes) for item in self._snapshot() if item.unpriced]

    def _observe_gpu(self, _options: Any) -> Iterable[Any]:
        with self._lock:
            found = list(self._gpu.items())
        return [_observation(seconds, dict(attributes)) for attributes, seconds in found]

    def _observe_dropped(self, _options: Any) -> Iterable[Any]:
        return [_observation(self._dropped(), {})]

    def _observe_failures(self, _options: Any) -> Iterable[Any]:
        return [_observation(count, {"aifinops.place": place}) for place, count in failures().items()]


_HISTOGRAMS = (
    (names.METRIC_OPERATION_COST, "{currency}", "Cost of one call", names.COST_BUCKETS),
    (names.METRIC_DURATION, "s", "GenAI operation duration", names.SECONDS_BUCKETS),
    (names.METRIC_TOKEN_USAGE, "{token}", "Number of input and output tokens used", names.TOKEN_BUCKETS),
    (names.METRIC_TIME_TO_FIRST_CHUNK, "s", "Time to receive the first chunk of a stream", names.SECONDS_BUCKETS),
)


def _histogram(meter: Any, name: str, unit: str, text: str, buckets: Sequence[float]) -> Any:
    return meter.create_histogram(name, unit=unit, description=text, explicit_bucket_boundaries_advisory=buckets)


def _observation(value: float, attributes: dict[str, Any]) -> Any:
    from opentelemetry.metrics import Observation

    return Observation(value, attributes)
