"""Processes: a fork repeats no sums, and without the SDK there is no SDK, no provider and no thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aifinops


def run(program: str, *arguments: str, **variables: str) -> Any:
    """What a program prints as JSON, one value a line."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "AIFINOPS_"))}
    environment = {**kept, "PYTHONPATH": str(Path(aifinops.__file__).parents[1]), **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=90, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


FORK = """
import json, os, sys, warnings
from opentelemetry import metrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
import aifinops as af
from aifinops import runtime

warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # of Python 3.12 about forks with threads, which is what this is about
how, folder = sys.argv[1:]
kinds = (Counter, Histogram, ObservableCounter)
reader = InMemoryMetricReader(dict.fromkeys(kinds, AggregationTemporality[how]))
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
af.init(ledger=os.path.join(folder, "ledger.db"), spans="off")

def call(number):
    af.record(cost=f"{number / 1000:.3f} USD", model="gpt-4o", provider="openai", operation="chat", service="llm")

def told():
    data, found = reader.get_metrics_data(), {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = sum(getattr(point, "value", getattr(point, "sum", 0)) for point in metric.data.data_points)
    return [found.get("aifinops.calls", 0), found.get("aifinops.cost", 0), found.get("aifinops.client.operation.cost", 0)]

for number in (1, 2, 3):
    call(number)
if how == "DELTA":
    before = told()
    print(json.dumps(before), flush=True)
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        for number in range(child + 1):
            call(100 * (child + 1) + number)
        print(json.dumps(told()), flush=True)
        af.flush()
        os._exit(0)
    os.waitpid(pid, 0)
call(4)
print(json.dumps(told()), flush=True)
af.flush()
rows = list(runtime.get().ledger.rows())
print(json.dumps([len(rows), float(sum(row.amount for row in rows)) / 1e9]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("temporality", ["CUMULATIVE", "DELTA"])
def test_what_all_processes_export_adds_up_to_the_truth(temporality: str, tmp_path: Path) -> None:
    """A parent with sums of its own and four children: calls and costs of all exports are those of the ledger, none told twice."""
    *exports, (rows, cost) = run(FORK, temporality, str(tmp_path))
    assert rows == 3 + (1 + 2 + 3 + 4) + 1
    assert [sum(export[place] for export in exports) for place in range(3)] == [
        rows,
        pytest.approx(cost),
        pytest.approx(cost),
    ]


ALONE = """
import json, sys, threading

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusing())
import aifinops as af
for name in sorted(set(af.__all__) - {"DialectExporter", "SpanPricer"}):
    getattr(af, name)
print(json.dumps([threading.active_count(), [name for name in sys.modules if name.startswith("opentelemetry.sdk")]]))
from opentelemetry import metrics, trace
with af.track("answer", team="search"), af.budget("$1"):
    charge = af.record(cost="0.02 USD")
print(json.dumps([type(trace.get_tracer_provider()).__name__, "Proxy" in type(metrics.get_meter_provider()).__name__]))
print(json.dumps([charge.amount, af.flush(), [name for name in sys.modules if name.startswith("opentelemetry.sdk")]]))
"""


def test_with_the_api_alone_there_is_no_sdk_no_provider_and_no_thread() -> None:
    """Loading every public name, and metering: the API is all of OpenTelemetry that is needed."""
    (threads, loaded), providers, (amount, flushed, later) = run(ALONE, AIFINOPS_LEDGER="memory")
    assert (threads, loaded) == (1, [])
    assert providers == ["ProxyTracerProvider", True]
    assert (amount, flushed, later) == (20_000_000, True, [])
