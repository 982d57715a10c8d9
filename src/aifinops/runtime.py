"""The parts, put together once per process: settings, prices, ledger, budgets, telemetry.

Nothing here happens at import. `init()` builds everything that can fail before it replaces what was there, so a wrong setting
changes nothing; without `init()` the first use builds the same from the environment and the configuration file.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifinops import _version, config
from aifinops.clock import Clock, SystemClock
from aifinops.errors import ConfigurationError, swallow
from aifinops.forking import in_child, untold
from aifinops.tags import EMPTY, Tags, matches, merge
from aifinops.telemetry import names
from aifinops.telemetry.content import wanted
from aifinops.telemetry.resource import ResourceTags
from aifinops.telemetry.setup import Export, set_up

if TYPE_CHECKING:
    from aifinops.budgets.alerts import Alert
    from aifinops.budgets.audit import Audit
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.budgets.guard import Guard
    from aifinops.budgets.stores.base import Store
    from aifinops.charges import Charge
    from aifinops.ledger.base import Ledger
    from aifinops.ledger.presence import Presence
    from aifinops.ledger.writer import Writer
    from aifinops.pricing.book import PriceBook
    from aifinops.pricing.learned import Learned
    from aifinops.pricing.lists import PriceList
    from aifinops.scope import Scope
    from aifinops.telemetry.metrics import BudgetState, Metrics
    from aifinops.telemetry.spans import Spans

__all__ = [
    "Runtime",
    "approval_key",
    "flush",
    "get",
    "init",
    "on_flush",
    "open_ledger",
    "register_price",
    "reset",
    "shared_store",
    "shutdown",
]

EXIT_FLUSH_S = 2.0
"""The most that leaving the process may wait for an exporter, in seconds."""

_LEAST_S = 0.1
_ENGINES = frozenset({"guard", "learned", "metrics", "policies", "presence", "spans"})

_HOST = {"off": 3, "emit": 2, "auto": 1, "enrich": 0}
"""How sure (`Call.host`) it must be that somebody else makes a call's span for us to make none."""


class Runtime:
    """One process's engines. Make it through `init()` or `get()`.

    Attributes:
        config: the settings in force. clock: where time comes from. book: the price lists. policies: standing budgets with their `match`.
        compat, latest: whether `gen_ai.usage.cost` is put on spans, and whether the newest conventions are followed. schema_url: of those.
        spans: span maker, or None when spans are off. host: from which `Call.host` on a call is a guest under a foreign span.
        metrics: metric sums. export: the OTLP providers that we made. presence: calls in flight, for others to see.
        capture: True when what is said goes onto spans. learned: what calls of a kind have used.
    """

    book: PriceBook
    guard: Guard
    learned: Learned
    metrics: Metrics
    policies: tuple[ActiveBudget, ...]
    presence: Presence
    spans: Spans | None

    def __init__(self, settings: config.Config, clock: Clock | None = None) -> None:
        self.config = settings
        self.clock: Clock = clock or SystemClock()
        self.compat = "compat" in settings.dialects
        self.latest = settings.semconv == "latest"
        self.schema_url = names.SCHEMA_URL_LATEST if self.latest else names.SCHEMA_URL
        self.capture = wanted()
        self.host = _HOST[settings.spans]
        self.export = Export()
        self._resource = ResourceTags(settings.resource_tags) if settings.resource_tags else None
        self._lock = threading.RLock()
        self._files: tuple[PriceList, ...] | None = None
        self._writer: Writer | None = None
        self._stores: dict[str, Store] = {}
        self._audits: dict[str | None, Audit] = {}
        if settings.prices:
            self.book = self._make_book()  # a malformed price file is an error now, not at the first call
        if settings.budgets or settings.alerts:
            self._make_engines()  # likewise

    def __getattr__(self, name: str) -> Any:
        # Made when it is first asked for, and an ordinary attribute from then on. What only metering needs is not loaded to price.
        if name != "book" and name not in _ENGINES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with self._lock:
            if name not in self.__dict__:
                if name == "book":
                    self.book = self._make_book()
                else:
                    self._make_engines()
        return self.__dict__[name]

    def _make_engines(self) -> None:
        # All that a budget may need later, too: a child of a process that forked while a thread was loading a module waits for it for ever.
        import aifinops.budgets.audit
        import aifinops.budgets.stores.leases
        import aifinops.budgets.stores.sqlite  # noqa: F401 - loaded, not used here
        from aifinops.budgets.alerts import Alerts, sinks
        from aifinops.budgets.guard import Guard
        from aifinops.budgets.stores.memory import MemoryStore
        from aifinops.budgets.witness import Witness
        from aifinops.ledger.presence import Presence
        from aifinops.pricing.learned import Learned
        from aifinops.telemetry.metrics import Metrics
        from aifinops.telemetry.spans import Spans

        self.policies = tuple(_policy(entry) for entry in self.config.budgets)
        mode = self.config.spans
        self.spans = (
            None if mode == "off" else Spans(_version.__version__, alone=mode == "emit", schema_url=self.schema_url)
        )
        self.metrics = Metrics(
            _version.__version__,
            self.config.metric_tags,
            self._dropped,
            dialects=self.config.dialects,
            latest=self.latest,
            budgets=self._budget_states,
            decisions=self._decisions,
        )
        self.metrics.full = mode in {"auto", "emit"}
        self.learned = Learned()
        self.presence = Presence(self._where)
        told = sinks(self.config.alerts, self.config.smtp)
        alerts = Alerts(told if mode == "off" else [*told, _event])
        witness = Witness(self.audit_of, alerts)
        self.guard = Guard(
            MemoryStore(),
            self.clock,
            on_soft=[alerts.soft],
            store_of=self._store_of,
            witness=witness,
            approval_key=approval_key(self.config),
        )

    def _store_of(self, active: ActiveBudget) -> Store:
        """Where a budget has its balances: what it says itself, this process without a name, else what is set up."""
        target = active.budget.store
        if target is None and not active.shared:
            return self.guard.store
        return self.store_at(shared_store(self.config) if target is None else target)

    def store_at(self, target: Any) -> Store:
        """The store that is meant by what people write; each is opened once.

        Raises:
            ConfigurationError: when it cannot be opened.
        """
        if target == "memory":
            return self.guard.store
        if not isinstance(target, (str, os.PathLike)):
            from aifinops.budgets.stores import open_store

            return open_store(target)
        with self._lock:
            key = os.fspath(target)
            if key not in self._stores:
                from aifinops.budgets.stores import open_store
                from aifinops.budgets.stores.leases import LeasedStore

                opened = self._journaled(open_store(key), lambda: self._stores[key])
                self._stores[key] = LeasedStore(opened, self.clock, on_crossed=self.guard.report)
            return self._stores[key]

    def _journaled(self, store: Store, outermost: Callable[[], Store]) -> Store:
        """The store behind a journal, where it is one that tells what it has lost."""
        if not hasattr(store, "journal"):
            return store
        from aifinops.budgets.stores.journaled import JournaledStore

        return JournaledStore(
            store, self.clock, on_reset=lambda reset: self.guard.witness.store_reset(outermost(), reset)
        )

    def audit_of(self, store: Store) -> Audit:
        """The log of what is decided about the balances of a store: beside its file, else beside the ledger; nowhere for one in memory."""
        from aifinops.budgets.audit import Audit

        path = audit_path(self.config, store)
        with self._lock:
            if path not in self._audits:
                self._audits[path] = Audit(path, self.clock)
            return self._audits[path]

    def _make_book(self) -> PriceBook:
        from aifinops.pricing import refresh
        from aifinops.pricing.book import PriceBook

        if self._files is None:
            bundled = refresh.in_use(refresh.place(self.config.price_folder), self.clock.time_ns())
            self._files = (*_price_files(self.config.prices), *bundled)
        code = _state.prices
        lists = self._files if code is None else (code, *self._files)
        return PriceBook(lists, model_map=self.config.model_map)

    def renew_book(self) -> None:
        """Make a new book of the same files and the prices that are registered now; calls in flight keep the old one."""
        with self._lock:
            if "book" in self.__dict__:
                self.book = self._make_book()

    @property
    def writer(self) -> Writer:
        """The way into the ledger, opened at first use.

        Raises:
            ConfigurationError: when the ledger cannot be opened.
        """
        if self._writer is None:
            with self._lock:
                if self._writer is None:
                    from aifinops.ledger.writer import Writer

                    self._writer = Writer(open_ledger(self.config))
        return self._writer

    @property
    def ledger(self) -> Ledger:
        """The ledger itself, for reading."""
        return self.writer.ledger

    def tags(self, scope: Scope) -> Tags:
        """Tags of the process, over them (where that is asked for) those of the resource and those that callers sent, over all those of the
        scope."""
        base = self.config.tags
        if self._resource is not None:
            base = merge(base, self._resource.tags())
        if self.config.baggage:
            from aifinops.telemetry import baggage

            base = merge(base, baggage.read())
        return merge(base, scope.tags)

    def budgets(self, scope: Scope, tags: Tags) -> tuple[ActiveBudget, ...]:
        """Every budget that a call made here needs room in: standing policies that match, then blocks, outermost first."""
        if not self.policies:
            return scope.budgets
        standing = [item for item in self.policies if matches(tags, item.budget.match or EMPTY)]
        keys = {item.key for item in standing}
        return (*standing, *(item for item in scope.budgets if item.key not in keys))

    def flush(self, timeout_s: float) -> bool:
        """Write what waits and push out telemetry; True when nothing is left behind."""
        written = self._writer is None or self._writer.flush(timeout_s)
        began = self.clock.monotonic_ns()
        told = "guard" not in self.__dict__ or self.guard.flush()
        sent = self.export.flush(timeout_s)
        # What exporters have left of the time: alerts go out meanwhile.
        left = max(_LEAST_S, timeout_s - (self.clock.monotonic_ns() - began) / 1e9)
        alerted = "guard" not in self.__dict__ or self.guard.witness.alerts.flush(left)
        return sent and written and told and alerted

    def close(self) -> None:
        """Flush and let go of files and exporters."""
        self.export.shutdown()
        if "guard" in self.__dict__:
            self.guard.close()
        for store in self._stores.values():
            store.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if "presence" in self.__dict__:
            self.presence.close()

    def reset_after_fork(self) -> None:
        """In a forked child: nothing of the parent's is ours to write, to hold or to export."""
        self._lock = threading.RLock()
        if "presence" in self.__dict__:
            self.presence.reset_after_fork()
        self.export.reset_after_fork()
        for audit in self._audits.values():
            audit.reset_after_fork()
        if "guard" in self.__dict__:
            self.metrics.reset_after_fork()
            self.guard.reset_after_fork()
        if self._writer is not None:
            self._writer.reset_after_fork()

    def _where(self) -> Path | None:
        """Where calls in flight are shown."""
        from aifinops.ledger import path_of
        from aifinops.ledger.presence import folder_of

        path = path_of(self.config.ledger)
        return None if path is None else folder_of(path)

    def _budget_states(self, most: int) -> list[BudgetState]:
        """How budgets with a name stand, for the gauges; a standing one also where nothing was asked of it yet."""
        if "guard" not in self.__dict__:
            return []
        from aifinops.budgets.figures import states
        from aifinops.telemetry.metrics import BudgetState

        return [BudgetState(*figures) for figures in states(self.guard, self.policies, most)]

    def _decisions(self) -> dict[tuple[str, str], int]:
        if "guard" not in self.__dict__:
            return {}
        from aifinops.budgets.figures import by_name

        return by_name(self.guard.witness.decisions())

    def _dropped(self) -> int:
        return 0 if self._writer is None else self._writer.dropped


def _policy(entry: Any) -> ActiveBudget:
    from aifinops.budgets.budget import ActiveBudget, Budget

    try:
        budget = Budget.parse(**entry)
    except TypeError as error:
        raise ConfigurationError(f"budget {dict(entry)!r}: {error}") from None
    if budget.name is None:
        raise ConfigurationError(f'budget {dict(entry)!r} has no name; a standing budget needs one (name = "search")')
    return ActiveBudget(budget)


def open_ledger(settings: config.Config, *, create: bool = True) -> Ledger:
    """The ledger of these settings, with what its log records say besides a charge, and with its copies.

    Args:
        settings: where it is. create: False refuses a file that is not there.

    Raises:
        ConfigurationError: naming the path and what to type, when it cannot be opened.
    """
    from aifinops import ledger

    latest, compat = settings.semconv == "latest", "compat" in settings.dialects

    def beside(charge: Charge) -> Mapping[str, Any]:
        return inference(charge, {}, compat=compat, latest=latest)

    from aifinops.telemetry.attributes import inference

    journey = ledger.Journey(
        settings.spool, settings.spool_bytes, beside, names.SCHEMA_URL_LATEST if latest else names.SCHEMA_URL
    )
    return ledger.open_ledger(settings.ledger, create=create, journey=journey, copy_to=settings.copy_to)


def shared_store(settings: config.Config) -> str:
    """Where balances of named budgets live: what is set, else the file that belongs to the ledger."""
    return settings.store or _beside(settings.ledger, "budgets.db") or "memory"


def audit_path(settings: config.Config, store: Any = None) -> str | None:
    """Where the log lies of a store: beside its file, else beside the ledger; None where neither is on disk.

    Args:
        store: an open store, or the path of its file; None for one that is no file.
    """
    file = store if isinstance(store, (str, os.PathLike)) else getattr(getattr(store, "inner", store), "path", None)
    place = file or _beside(settings.ledger, "budgets.db")
    return None if place is None else f"{os.fspath(place)}.audit"


def approval_key(settings: config.Config) -> str | None:
    """The file of the key that signs approvals; None where there is no ledger on disk that it could be beside."""
    return settings.approval_key or _beside(settings.ledger, "approvals.key")


def _beside(ledger: str | None, name: str) -> str | None:
    from aifinops.ledger import path_of

    path = path_of(ledger)
    return None if path is None else str(path.with_name(name))


def _event(alert: Alert) -> None:
    """An alert as an event of telemetry."""
    from aifinops.telemetry import events

    events.alert(alert.fields(), alert.text, get().schema_url)


def _price_files(paths: tuple[str, ...]) -> list[PriceList]:
    """The lists of the user, contracts first whatever the order of the setting: their terms are over all other lists."""
    from aifinops.pricing.book import from_file

    return sorted((from_file(path) for path in paths), key=lambda one: one.contract is None)


class _State:
    """The one process-wide variable."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runtime: Runtime | None = None
        self.flush_hooks: list[Callable[[], None]] = []
        self.registered = False
        self.price_rows: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.prices: PriceList | None = None


_state = _State()


def get() -> Runtime:
    """The runtime in force; built from environment and file when nobody called `init()`.

    Raises:
        ConfigurationError: when environment or file are wrong.
    """
    untold()
    runtime = _state.runtime
    return runtime if runtime is not None else _install({}, None, only_if_missing=True)


def init(
    *,
    ledger: str | os.PathLike[str] | None = None,
    copy_to: str | None = None,
    spool: str | os.PathLike[str] | None = None,
    spool_bytes: int | str | None = None,
    store: str | os.PathLike[str] | None = None,
    approval_key: str | os.PathLike[str] | None = None,
    prices: Any = None,
    price_folder: str | os.PathLike[str] | None = None,
    model_map: Any = None,
    tags: Any = None,
    budgets: Any = None,
    alerts: Any = None,
    smtp: str | None = None,
    otlp: str | None = None,
    spans: str | None = None,
    dialects: Any = None,
    semconv: str | None = None,
    resource_tags: Any = None,
    baggage: bool | None = None,
    metric_tags: Any = None,
    threads: bool | None = None,
    stream_usage: bool | str | None = None,
    enabled: bool | None = None,
    egress: bool | None = None,
    gpu_usd_per_hour: Any = None,
    gpu_term: str | None = None,
    gpu_idle_minutes: float | None = None,
    gpu_metadata: bool | None = None,
    gpu_owned: Mapping[str, Any] | None = None,
    cpu_owned: Mapping[str, Any] | None = None,
    gpu_grid: Any = None,
    gpu_pue: Any = None,
    gpu_quotas: str | os.PathLike[str] | None = None,
    instrument: Any = None,
    summary: bool | None = None,
    clock: Clock | None = None,
    **unknown: Any,
) -> Runtime:
    """Set up this process. Optional: without it the environment and the configuration file decide.

    Args:
        ledger: `"memory"`, a file, `sqlite:///file`, or `otlp://collector:4318`; default: `ledger.db` in the user's data directory.
        copy_to: a ledger elsewhere that is given a copy of every charge, `otlp://collector:4318`.
        spool: folder of charges on their way to a ledger elsewhere. spool_bytes: the most that they may take there, such as `"2 GiB"`.
        store: where balances of named budgets live: `"memory"`, a file, `sqlite:///file`, or the URL of a Valkey, Redis or PostgreSQL
            server; default: `budgets.db` beside the ledger.
        approval_key: file of the key that signs approvals, made when there is none; default: `approvals.key` beside the ledger.
        prices: paths of price lists and contracts (TOML, JSON or YAML) that are asked before the bundled one.
        price_folder: where `aifinops prices update` keeps a refreshed list; default: the user's data directory.
        model_map: which models your own names are, e.g. `{"my-deployment": "gpt-4o"}`.
        tags: tags of everything in this process, e.g. `{"team": "search"}`.
        budgets: standing budgets, each a mapping with the arguments of `budget()` and a `name`; `match` selects by tags.
        alerts: who is told about soft limits, overruns, forfeits, forecasts and idle GPUs: addresses of webhooks, `mailto:` addresses, callables that are
            given an `Alert`. smtp: the server that sends mail, `smtp://user:password@host:587?from=address`.
        otlp: OTLP endpoint; without it `OTEL_EXPORTER_OTLP_*` decides, and without those nothing is exported.
        spans: `"auto"`, `"emit"`, `"enrich"` or `"off"`. dialects: attribute and metric names of backends beside ours, default `("compat",)`.
        semconv: `"compat"` for the semantic conventions 1.41.1, `"latest"` for those of semantic-conventions-genai.
        resource_tags: attributes of the OpenTelemetry resource that become tags, e.g. `["service.name"]`.
        baggage: True takes tags from baggage that callers of this program sent.
        metric_tags: tags that become metric attributes. threads: carry scopes into `ThreadPoolExecutor` threads.
        stream_usage: whether streams are asked for their usage where the caller did not, unseen by him: at hosts that are known to take
            the question (default), `"always"`, or False for never.
        enabled: False turns metering off. clock: for tests.
        egress: True counts the bytes that storage sends as egress to the internet.
        gpu_usd_per_hour: what an hour of one GPU costs, whatever the price lists say. gpu_term: `"spot"`, `"reserved"`, `"owned"` ...
        gpu_idle_minutes: after how many minutes a run says that devices which it holds do nothing, default 15; 0 for never.
        gpu_metadata: whether the metadata service of the cloud may be asked where this is. gpu_owned: hardware of your own, written off;
            cpu_owned: machines of your own without accelerators, likewise.
        gpu_grid: whose electricity it is, for the CO2 of runs: a country such as `"SWE"`, `"world"`, or grams for one kWh. gpu_pue: power usage
            effectiveness of the room.
        gpu_quotas: file of the quotas of teams.
        instrument, summary: for programs that run without a line of code, so they are customary in the environment or the file.
        **unknown: there is no other setting; a misspelt one is answered with the nearest name.

    Returns:
        The runtime. A tracer or meter provider that the application has set is used and never replaced.

    Raises:
        ConfigurationError: naming the value, the place and what to type; nothing is applied then.
    """
    arguments = {
        "ledger": ledger, "copy_to": copy_to, "spool": spool, "spool_bytes": spool_bytes, "store": store, "approval_key": approval_key, "prices": prices, "price_folder": price_folder, "model_map": model_map, "tags": tags, "budgets": budgets, "alerts": alerts, "smtp": smtp, "otlp": otlp, "spans": spans,
        "dialects": dialects, "semconv": semconv, "resource_tags": resource_tags, "baggage": baggage, "metric_tags": metric_tags, "threads": threads, "stream_usage": stream_usage, "enabled": enabled, "egress": egress,
        "gpu_usd_per_hour": gpu_usd_per_hour, "gpu_term": gpu_term, "gpu_idle_minutes": gpu_idle_minutes, "gpu_metadata": gpu_metadata, "gpu_owned": gpu_owned, "cpu_owned": cpu_owned, "gpu_grid": gpu_grid, "gpu_pue": gpu_pue, "gpu_quotas": gpu_quotas,
        "instrument": instrument, "summary": summary, **unknown,
    }  # fmt: skip
    return _install(arguments, clock, only_if_missing=False)


def _install(arguments: dict[str, Any], clock: Clock | None, *, only_if_missing: bool) -> Runtime:
    with _state.lock:
        if only_if_missing and _state.runtime is not None:
            return _state.runtime
        runtime = Runtime(config.load(arguments), clock)
        if not only_if_missing:
            _ = runtime.writer  # an unreadable ledger is an error now, not in the first call
        runtime.export = set_up(runtime.config.otlp, dialects=runtime.config.dialects)
        old, _state.runtime = _state.runtime, runtime
        if not _state.registered:
            _state.registered = True
            atexit.register(_at_exit)
            in_child(_after_fork)
            _finish_with_pools()
            _finish_with_pools_later()
    if old is not None:
        # Providers that we installed stay the global ones, so they stay ours to flush.
        runtime.export.providers.extend(old.export.providers)
        old.export.providers.clear()
        old.close()
    return runtime


def register_price(
    model: str,
    *,
    provider: str,
    rates: Mapping[str, Any] | None = None,
    prices: Sequence[Mapping[str, Any]] = (),
    variants: Sequence[Mapping[str, Any]] = (),
    adjust: Sequence[Mapping[str, Any]] = (),
    names: Sequence[str] = (),
    currency: str = "USD",
    source: str = "register_price()",
    as_of: date | str | None = None,
    **more: Any,
) -> None:
    """Give a model a price in code: `register_price("llama-house", provider="local", rates={"output_tokens": "0.30"})`.

    It is asked before every price file and holds from now on, for every thread, until `shutdown()`; another call with the same
    provider and model takes its place. Calls that are being priced at this moment keep the price they have.

    Args:
        model, provider: as calls name them. names: other names of it.
        rates: meter -> price of its customary quantity (1,000,000 tokens, 1,000 requests, an hour of GPU), or
            `{"base": ..., "per": ..., "above": {...}, "graduated": {...}}`. Money is a text, an int or a Decimal.
        prices: instead, several sets of rates with dates and hours. variants, adjust: of tiers, regions and options.
        currency: ISO 4217. source, as_of: provenance; the date is that of today (UTC) when none is given.
        **more: every other key of `[[models]]` in a price file: `free=True`, `match`, `context_window`, `max_output`, `url` ...

    Raises:
        ConfigurationError: naming the key, the value and what to type; nothing is registered then.
    """
    from aifinops.pricing.lists import from_table
    from aifinops.pricing.schema import read_row

    given = {
        **more, "model": model, "provider": provider, "rates": rates, "prices": list(prices), "variants": list(variants),
        "adjust": list(adjust), "names": list(names), "currency": currency, "source": source,
        "as_of": datetime.now(UTC).date() if as_of is None else as_of,
    }  # fmt: skip
    key, row = read_row(given, f"register_price({model!r})")
    with _state.lock:
        # The newest first: of two rows that claim a name, the earlier one of a list has it.
        rows = {key: row, **{other: old for other, old in _state.price_rows.items() if other != key}}
        table = {"id": "code", "version": "", "date": None, "currency": "USD", "source": "register_price()"}
        _state.price_rows, _state.prices = rows, from_table({**table, "models": list(rows.values())})
        if _state.runtime is not None:
            _state.runtime.renew_book()


def on_flush(hook: Callable[[], None]) -> None:
    """Have `hook` called before every flush (for work that waits in a queue above this floor)."""
    _state.flush_hooks.append(hook)


def flush(timeout: float = 5.0) -> bool:
    """Settle abandoned streams, write what waits and push out telemetry, within `timeout` seconds for each exporter.

    Returns:
        False when a record could not be written or an exporter did not finish.
    """
    untold()
    _run_hooks()
    return _state.runtime is None or _state.runtime.flush(timeout)


def shutdown() -> None:
    """Flush and let go of everything; the next use starts afresh."""
    flush()
    reset()


def reset() -> None:
    """Forget the runtime without flushing exporters (for tests)."""
    untold()
    with _state.lock:
        runtime, _state.runtime = _state.runtime, None
        _state.price_rows, _state.prices = {}, None
    if runtime is not None:
        runtime.close()


def _run_hooks() -> None:
    for hook in _state.flush_hooks:
        try:
            hook()
        except Exception as failure:  # one hook's failure must not keep the others from flushing
            swallow("runtime.flush_hook", failure)


def _at_exit() -> None:
    untold()  # a child that has never made a call must not close what is its parent's
    _run_hooks()
    runtime = _state.runtime
    if runtime is None:
        return
    try:
        runtime.flush(EXIT_FLUSH_S)
        runtime.close()
    except Exception as failure:  # nothing may make the user's process fail at its end
        swallow("runtime.exit", failure)


_POOLS = ("multiprocessing", "billiard")
"""Modules whose child processes end with `os._exit` after finalizers of their own; the second is that of Celery."""


def _finish_with_pools() -> None:
    """Have the end of a child process of `multiprocessing` be an end of ours, too: `atexit` is not called there."""
    for name in _POOLS:
        util, process = sys.modules.get(f"{name}.util"), sys.modules.get(f"{name}.process")
        if util is not None and process is not None and getattr(process.current_process(), "_parent_pid", None):
            util.Finalize(None, _at_exit, exitpriority=0)


def _finish_with_pools_later() -> None:
    """The same in a child that has yet to begin: it forgets finalizers first, and then calls what was registered like this."""
    for name in _POOLS:
        util = sys.modules.get(f"{name}.util")
        if util is not None:
            util.register_after_fork(_state, lambda _: _finish_with_pools())


def _after_fork() -> None:
    _state.lock = threading.RLock()
    _finish_with_pools_later()
    if _state.runtime is not None:
        _state.runtime.reset_after_fork()
