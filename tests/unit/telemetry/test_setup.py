"""Which signals are exported where: standard variables decide, each signal for itself, and nothing of the application is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import aifinops
from aifinops import files, runtime
from aifinops.errors import ConfigurationError
from aifinops.telemetry.setup import Export, endpoint, set_up

PROGRAM = """
import json, sys
from opentelemetry import metrics, trace
from aifinops.telemetry.setup import set_up
argument, dialects = json.loads(sys.argv[1])
export = set_up(argument, dialects=dialects)
found = {"endpoint": export.endpoint, "notes": export.notes}
for provider in export.providers:
    name = type(provider).__name__
    if name == "TracerProvider":
        (processor,) = provider._active_span_processor._span_processors
        wrapped = processor._batch_processor._exporter if hasattr(processor, "_batch_processor") else processor.span_exporter
        found["spans"] = [type(wrapped).__name__, list(wrapped._dialects), wrapped._exporter._endpoint, type(wrapped._exporter).__module__]
    else:
        found["metrics"] = [reader._exporter._endpoint for reader in provider._all_metric_readers]
print(json.dumps(found))
export.shutdown()
"""


def installed(argument: str | None, environ: dict[str, str], dialects: tuple[str, ...] = ("compat",)) -> dict[str, Any]:
    """What `set_up` installs in a process of its own: providers are set once for each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "AIFINOPS_"))}
    environment = {
        **kept,
        "PYTHONPATH": str(Path(aifinops.__file__).parents[1]),
        **environ,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([argument, dialects])],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)  # type: ignore[no-any-return]


HERE = "http://127.0.0.1:9"


def test_an_endpoint_is_for_every_signal() -> None:
    """The argument, or the variable for all, with the path of each signal."""
    for argument, environ in ((HERE, {}), (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE})):
        found = installed(argument, environ)
        assert found["endpoint"] == HERE
        assert found["spans"][:3] == ["DialectExporter", ["compat"], f"{HERE}/v1/traces"]
        assert found["metrics"] == [f"{HERE}/v1/metrics"]


def test_an_endpoint_of_one_signal_is_for_that_alone() -> None:
    """Whoever names a receiver of traces has not asked for metrics to be sent to some default address."""
    found = installed(None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{HERE}/t"})
    assert found["spans"][2] == f"{HERE}/t"
    assert "metrics" not in found
    found = installed(None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{HERE}/m"})
    assert found["metrics"] == [f"{HERE}/m"]
    assert "spans" not in found


@pytest.mark.parametrize(("signal", "left"), [("TRACES", "metrics"), ("METRICS", "spans")])
def test_a_signal_without_an_exporter_is_not_exported(signal: str, left: str) -> None:
    """`OTEL_TRACES_EXPORTER=none` means none, whatever the endpoint."""
    found = installed(HERE, {f"OTEL_{signal}_EXPORTER": "none"})
    assert {"spans", "metrics"} & found.keys() == {left}


def test_each_signal_has_its_protocol() -> None:
    """The variable of a signal wins over that for all."""
    found = installed(
        HERE, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"}
    )
    assert ".grpc." in found["spans"][3]
    assert found["metrics"] == [f"{HERE}/v1/metrics"]


def test_spans_are_exported_in_the_dialects_that_were_asked_for() -> None:
    """Those that add attributes; those of metrics alone are no matter of spans."""
    assert installed(HERE, {}, ("langfuse", "openlit"))["spans"][1] == ["langfuse"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL='http/json' is unknown"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "udp"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='udp' is unknown"),
    ],
)
def test_an_unknown_protocol_is_an_error_that_names_its_variable(environ: dict[str, str], said: str) -> None:
    """Before anything is installed."""
    with pytest.raises(ConfigurationError, match=said):
        set_up(HERE, environ)
    with pytest.raises(ConfigurationError, match="has no scheme"):
        set_up("localhost:4318", {})


def test_what_cannot_be_set_up_leaves_no_ledger_open(tmp_path: Path) -> None:
    """The ledger is opened first; where the endpoint is wrong, what was in force stays so, and the file is let go of."""
    before = aifinops.init(ledger="memory")
    with pytest.raises(ConfigurationError, match="has no scheme"):
        aifinops.init(ledger=tmp_path / "ledger.db", otlp="collector:4318")
    assert runtime.get() is before
    assert not [
        one for one in files.forks._open if getattr(one, "path", None) == tmp_path / "ledger.db" and one.connection
    ]


def test_nothing_is_installed_without_an_endpoint_or_with_the_sdk_disabled() -> None:
    """No provider, no thread."""
    assert set_up(None, {}).providers == []
    assert set_up(HERE, {"OTEL_SDK_DISABLED": "true"}).providers == []
    assert endpoint(None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": HERE}) == HERE


class Slow:
    """A provider whose exporter tries again and again."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def force_flush(self, _: int) -> bool:
        return self.over.wait(60)

    def shutdown(self) -> None:
        self.over.wait(60)


class Failing:
    def force_flush(self, _: int) -> bool:
        raise OSError("no network")


def test_an_exporter_that_does_not_end_is_left_to_itself() -> None:
    """Flush and shutdown take the time that they are given, for all providers together."""
    slow = [Slow(), Slow()]
    export = Export(providers=[*slow])
    begun = time.monotonic()
    assert not export.flush(0.1)
    export.shutdown(0.1)
    assert time.monotonic() - begun < 20
    assert not export.providers
    for one in slow:
        one.over.set()


def test_an_exporter_that_fails_keeps_no_other_from_its_turn() -> None:
    """The failure is swallowed (and raised here, where tests want to see it); the other has been flushed."""
    other = Slow()
    other.over.set()
    export = Export(providers=[Failing(), other])
    with pytest.raises(OSError, match="no network"):
        export.flush(5)


def test_a_child_opens_connections_of_its_own() -> None:
    """The pool of the exporter's session is a new one, with the settings of the old; what is no such exporter is left alone."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces")
    client: Any = getattr(exporter, "_client", None)
    session: Any = getattr(exporter, "_session", None) or client._transport._session
    adapter = session.get_adapter("http://127.0.0.1:9")
    pool, size = adapter.poolmanager, adapter._pool_maxsize
    Export(exporters=[exporter, object()]).reset_after_fork()
    assert adapter.poolmanager is not pool
    assert adapter._pool_maxsize == size
    exporter.shutdown()
