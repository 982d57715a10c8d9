"""OTLP export, only when somebody named an endpoint, and never in place of a provider that the application has set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aifinops.errors import ConfigurationError, swallow

__all__ = ["Export", "endpoint", "set_up"]

_SIGNALS = ("TRACES", "METRICS")
_PROTOCOLS = ("http/protobuf", "grpc")


@dataclass(slots=True, eq=False, repr=False)
class Export:
    """The providers that we made (those of the application are not in here, and are not ours to shut down).

    Attributes:
        endpoint: where to, or None when nothing is exported by us.
        notes: what was left alone and why, for `aifinops doctor`.
    """

    endpoint: str | None = None
    providers: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def flush(self, timeout_s: float) -> bool:
        """Push out what waits, within `timeout_s` seconds for each provider; False when something did not make it."""
        done = [self._guarded("force_flush", provider, int(timeout_s * 1000)) for provider in self.providers]
        return all(done)  # a list first: one that fails must not keep the others from being flushed

    def shutdown(self) -> None:
        """Flush and stop our providers."""
        for provider in self.providers:
            self._guarded("shutdown", provider)
        self.providers.clear()

    @staticmethod
    def _guarded(method: str, provider: Any, *args: Any) -> bool:
        try:
            return getattr(provider, method)(*args) is not False
        except Exception as failure:  # the exporter's failure is not the caller's: the ledger has everything
            swallow(f"telemetry.setup.{method}", failure)
            return False


def endpoint(argument: str | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The OTLP endpoint in force: the argument, else the standard environment variables; None for no export."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    keys = ("OTEL_EXPORTER_OTLP_ENDPOINT", *(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT" for signal in _SIGNALS))
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
    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} is unknown; use {' or '.join(_PROTOCOLS)}")
    export = Export(endpoint=target)
    _set_tracer_provider(export, argument, protocol, dialects)
    _set_meter_provider(export, argument, protocol)
    return export


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
    provider = TracerProvider()
    from aifinops.telemetry.exporting import DialectExporter, counting

    exporter = counting(OTLPSpanExporter(**_arguments(argument, protocol, "v1/traces")), "traces")
    provider.add_span_processor(BatchSpanProcessor(DialectExporter(exporter, dialects)))
    trace.set_tracer_provider(provider)
    export.providers.append(provider)


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
    provider = MeterProvider(metric_readers=[reader])
    metrics.set_meter_provider(provider)
    export.providers.append(provider)


def _arguments(argument: str | None, protocol: str, path: str) -> dict[str, Any]:
    # Without an argument the exporter reads the standard variables itself. HTTP wants the signal's path in the argument.
    if argument is None:
        return {}
    if protocol == "grpc":
        return {"endpoint": argument, "insecure": argument.startswith("http://")}
    return {"endpoint": argument if argument.rstrip("/").endswith(path) else f"{argument.rstrip('/')}/{path}"}
