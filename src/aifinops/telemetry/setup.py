"""OTLP export, only when somebody named an endpoint, and never in place of a provider that the application has set."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aifinops.errors import ConfigurationError, swallow
from aifinops.telemetry.afresh import renew_connections

__all__ = ["Export", "endpoint", "set_up"]

_SIGNALS = ("TRACES", "METRICS")
_PROTOCOLS = ("http/protobuf", "grpc")
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass(slots=True, eq=False, repr=False)
class Export:
    """The providers that we made (those of the application are not in here, and are not ours to shut down).

    Attributes:
        endpoint: where to, or None when nothing is exported by us.
        notes: what was left alone and why, for `aifinops doctor`. exporters: of those providers.
    """

    endpoint: str | None = None
    providers: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exporters: list[Any] = field(default_factory=list)

    def flush(self, timeout_s: float) -> bool:
        """Push out what waits, of all providers at once; False when something did not make it in `timeout_s` seconds."""
        return self._each("force_flush", timeout_s, int(timeout_s * 1000))

    def shutdown(self, timeout_s: float = 2.0) -> None:
        """Flush and stop our providers, in `timeout_s` seconds; one that takes longer (it tries again and again) is left to itself."""
        self._each("shutdown", timeout_s)
        self.providers.clear()
        self.exporters.clear()

    def reset_after_fork(self) -> None:
        """In a forked child: connections of its own. Two processes that write on one would mix up their requests."""
        for exporter in self.exporters:
            renew_connections(exporter)

    def _each(self, method: str, timeout_s: float, *arguments: Any) -> bool:
        """Call a method of every provider. In threads: an exporter whose collector is down takes half a minute, whatever it is told."""
        done: dict[int, bool] = {}
        failures: list[Exception] = []

        def work(place: int, provider: Any) -> None:
            try:
                done[place] = getattr(provider, method)(*arguments) is not False
            except Exception as failure:
                failures.append(failure)

        until = time.monotonic() + timeout_s
        for thread in [_started(work, place, provider) for place, provider in enumerate(self.providers)]:
            if thread is not None:
                thread.join(max(0.0, until - time.monotonic()))
        for failure in failures:  # the exporter's failure is not the caller's: the ledger has everything
            swallow(f"telemetry.setup.{method}", failure)
        return len(done) == len(self.providers) and all(done.values())


def _started(work: Callable[..., None], *arguments: Any) -> threading.Thread | None:
    thread = threading.Thread(target=work, args=arguments, name="aifinops-export", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is about to end and has no threads any more
        work(*arguments)
        return None
    return thread


def endpoint(argument: str | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The OTLP endpoint in force: the argument, else the standard environment variables; None for no export."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    keys = (_ENDPOINT, *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in _SIGNALS))
    return argument or next((environ[key] for key in keys if environ.get(key)), None)


def set_up(
    argument: str | None = None, environ: Mapping[str, str] = os.environ, *, dialects: Sequence[str] = ("compat",)
) -> Export:
    """Install tracer and meter providers that export over OTLP, where an endpoint is given and none is set yet.

    Args:
        argument: the endpoint; None where the standard variables say it. environ: the environment.
        dialects: that the spans are exported in.

    Raises:
        ConfigurationError: for an endpoint without a scheme or an unknown protocol.
    """
    target = endpoint(argument, environ)
    if target is None:
        return Export()
    if "://" not in target:
        raise ConfigurationError(f"OTLP endpoint {target!r} has no scheme; write http://{target} or https://{target}")
    protocols = {signal: _protocol(signal, environ) for signal in _SIGNALS if _is_wanted(signal, argument, environ)}
    export = Export(endpoint=target)
    if "TRACES" in protocols:
        _set_tracer_provider(export, argument, protocols["TRACES"], dialects)
    if "METRICS" in protocols:
        _set_meter_provider(export, argument, protocols["METRICS"])
    return export


def _is_wanted(signal: str, argument: str | None, environ: Mapping[str, str]) -> bool:
    """Whether a signal goes out: it has an endpoint, and nobody has said that it has no exporter."""
    places = (argument, environ.get(_ENDPOINT), environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
    return any(places) and environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _protocol(signal: str, environ: Mapping[str, str]) -> str:
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        said = environ.get(name)
        if said and said not in _PROTOCOLS:
            raise ConfigurationError(f"{name}={said!r} is unknown; use {' or '.join(_PROTOCOLS)}")
        if said:
            return said
    return _PROTOCOLS[0]


def _set_tracer_provider(export: Export, argument: str | None, protocol: str, dialects: Sequence[str]) -> None:
    from opentelemetry import trace

    from aifinops.telemetry.spans import is_placeholder

    if not is_placeholder(trace.get_tracer_provider()):
        note = "the application has set a tracer provider: spans go there"
        others = [name for name in dialects if name != "compat"]
        if others:
            note += f"; for {', '.join(others)} wrap its exporter: aifinops.DialectExporter(exporter, {others!r})"
        export.notes.append(note)
        return
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]
            OTLPSpanExporter,
        )
    provider = TracerProvider(shutdown_on_exit=False)  # we do it, in bounded time
    from aifinops.telemetry.exporting import DialectExporter, counting

    exporter = counting(OTLPSpanExporter(**_arguments(argument, protocol, "v1/traces")), "traces")
    provider.add_span_processor(BatchSpanProcessor(DialectExporter(exporter, dialects)))
    trace.set_tracer_provider(provider)
    export.providers.append(provider)
    export.exporters.append(exporter)


def _set_meter_provider(export: Export, argument: str | None, protocol: str) -> None:
    from opentelemetry import metrics

    from aifinops.telemetry.spans import is_placeholder

    if not is_placeholder(metrics.get_meter_provider()):
        export.notes.append("the application has set a meter provider: metrics go there")
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # type: ignore[assignment]
            OTLPMetricExporter,
        )
    from aifinops.telemetry.exporting import counting

    exporter = counting(OTLPMetricExporter(**_arguments(argument, protocol, "v1/metrics")), "metrics")
    reader = PeriodicExportingMetricReader(exporter)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)  # as above
    metrics.set_meter_provider(provider)
    export.providers.append(provider)
    export.exporters.append(exporter)


def _arguments(argument: str | None, protocol: str, path: str) -> dict[str, Any]:
    # Without an argument the exporter reads the standard variables itself. HTTP wants the signal's path in the argument.
    if argument is None:
        return {}
    if protocol == "grpc":
        return {"endpoint": argument, "insecure": argument.startswith("http://")}
    return {"endpoint": argument if argument.rstrip("/").endswith(path) else f"{argument.rstrip('/')}/{path}"}
