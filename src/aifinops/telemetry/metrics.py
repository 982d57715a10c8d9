"""Metrics of every call, also of those whose trace is sampled out.

Counters are summed in a table of our own and read by observable instruments: an addition costs a fraction of what one
`Counter.add` does, and a forked child starts from zero instead of exporting its parent's sums again. Histogram points wait in
a bounded queue that the collection drains, so that the thread that makes calls does not pay for bucketing.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aifinops.charges import Charge
from aifinops.errors import failures, swallow
from aifinops.money import NANO
from aifinops.telemetry import names
from aifinops.usage import input_total, output_total

__all__ = ["Metrics"]

MAX_SERIES = 1_900
"""The SDK folds an instrument's attribute sets into an overflow point beyond 2,000; we stop adding series before that."""

MAX_WAITING = 65_536
"""Histogram points that may wait for a collection; beyond it they are recorded at once."""

_TOKEN_TYPES = {"cache_read": "cache_read", "cache_write": "cache_write", "input": "input_fresh", "output": "output"}


class _Series:
    """Sums of one attribute set."""

    __slots__ = ("attributes", "calls", "cost", "currency", "tokens", "unpriced")

    def __init__(self, attributes: dict[str, Any], currency: str) -> None:
        self.attributes = attributes
        self.currency = currency
        self.calls: Counter[str] = Counter()
        self.unpriced = 0
        self.cost: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()


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
        self._waiting: deque[tuple[dict[str, Any], float, int, int, float | None, float | None]] = deque()
        self._provider: Any = None
        self._get_provider = get_provider
        self._histograms: dict[str, Any] = {}
        self.full = True
        """False leaves out the official `gen_ai.client.*` metrics (somebody else emits them)."""

    def record(self, charge: Charge, error: str = "", first_chunk: float | None = None, kind: str = "llm") -> None:
        """Add one settled or failed call; `first_chunk` in seconds."""
        live = self._ready()
        series = self._find(charge, kind)
        with self._lock:
            series.calls[error] += 1
            if charge.amount is None and not error:
                series.unpriced += 1
            for meter_name, amount in charge.lines:
                series.cost[names.component(meter_name)] += amount
            for meter_name, quantity in charge.quantities.items():
                if meter_name == "reasoning_tokens":
                    series.tokens["reasoning"] += int(quantity)
                    series.tokens["output"] += int(quantity)
                elif meter_name.endswith("_tokens"):
                    series.tokens[_TOKEN_TYPES[names.component(meter_name)]] += int(quantity)
        if live:
            self._enqueue(series, charge, error, first_chunk)

    def _enqueue(self, series: _Series, charge: Charge, error: str, first_chunk: float | None) -> None:
        attributes = {**series.attributes, names.ERROR_TYPE: error} if error else series.attributes
        self._waiting.append(
            (
                attributes,
                charge.duration / NANO,
                input_total(charge.quantities),
                output_total(charge.quantities),
                None if charge.amount is None else charge.amount / NANO,
                first_chunk,
            )
        )
        if len(self._waiting) > MAX_WAITING:
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
        return "Proxy" not in type(provider).__name__ and self._connect(provider)

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
        observable(names.METRIC_LEDGER_DROPPED, [self._observe_dropped], "{record}", "Records that could not be kept")
        observable(
            names.METRIC_FAILURES, [self._observe_failures], "{failure}", "Internal failures that were swallowed"
        )
        self._histograms = {
            name: _histogram(meter, name, unit, text, buckets) for name, unit, text, buckets in _HISTOGRAMS
        }
        return True

    def _drain(self) -> None:
        waiting, record = self._waiting, {name: item.record for name, item in self._histograms.items()}
        while waiting:
            try:
                attributes, seconds, tokens_in, tokens_out, cost, first_chunk = waiting.popleft()
            except IndexError:  # another collection took the last one
                return
            if cost is not None:
                record[names.METRIC_OPERATION_COST](cost, attributes)
            if not self.full:
                continue
            record[names.METRIC_DURATION](seconds, attributes)
            if tokens_in:
                record[names.METRIC_TOKEN_USAGE](tokens_in, {**attributes, names.TOKEN_TYPE: "input"})
            if tokens_out:
                record[names.METRIC_TOKEN_USAGE](tokens_out, {**attributes, names.TOKEN_TYPE: "output"})
            if first_chunk is not None:
                record[names.METRIC_TIME_TO_FIRST_CHUNK](first_chunk, attributes)

    def _snapshot(self) -> list[_Series]:
        with self._lock:
            return list(self._series.values())

    def _observe_cost(self, _options: Any) -> Iterable[Any]:
        try:
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
