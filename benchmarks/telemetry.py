"""CPU time that telemetry takes of a call, part by part: metrics (recorded, added up, collected), attributes of a span, dialects at export.

    python benchmarks/telemetry.py [--rounds 200]

Medians over rounds, in one process, without a client: `run.py` measures whole calls. A round is 200 calls and one collection by a reader in
memory. Exemplars are what the calls' span contexts add; `latest` and the dialects stand beside the default.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aifinops.charges import Charge
from aifinops.telemetry import attributes
from aifinops.telemetry.dialects import DIALECTS
from aifinops.telemetry.exporting import DialectExporter
from aifinops.telemetry.metrics import Metrics

CALLS = 200
CHARGE = Charge(
    id="r", at=1, provider="openai", operation="chat", model="gpt-4o", amount=3_000_000, basis="priced", duration=2 * 10**9,
    quantities={"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 80, "reasoning_tokens": 120},
    lines=(("input_tokens", 1_000_000), ("cache_read_tokens", 500_000), ("output_tokens", 1_000_000), ("reasoning_tokens", 500_000)),
    tags={"team": "search"},
)  # fmt: skip
FACTS = {"server.address": "api.openai.com", "openai.api.type": "chat_completions"}
SPAN = trace.SpanContext(1, 1, is_remote=False, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


def metrics(rounds: int, context: Any = None, **options: Any) -> tuple[float, float, float]:
    """Microseconds a call: while it is made, when it is added up, when it is collected."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    made = Metrics("0", ("team", "project", "feature"), get_provider=lambda: provider, **options)
    found = []
    for _ in range(rounds + 20):
        began = time.process_time()
        for _ in range(CALLS):
            made.record(CHARGE, context=context)
        recorded = time.process_time()
        made._add_up()
        added = time.process_time()
        reader.get_metrics_data()
        found.append((recorded - began, added - recorded, time.process_time() - added))
    medians = [statistics.median(one[place] for one in found[20:]) / CALLS * 1e6 for place in range(3)]
    return medians[0], medians[1], medians[2]


def each(rounds: int, function: Callable[[], object]) -> float:
    """Microseconds a time."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(CALLS):
            function()
        found.append((time.process_time() - began) / CALLS * 1e6)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    print("| metrics | recorded us | added up us | collected us |\n|---|---|---|---|")
    shapes: dict[str, dict[str, Any]] = {
        "without dialect": {}, "compat (default)": {"dialects": ("compat",)}, "compat, with exemplars": {"dialects": ("compat",), "context": SPAN},
        "latest, with exemplars": {"latest": True, "context": SPAN},
    }  # fmt: skip
    for name, options in shapes.items():
        print(f"| {name} | {' | '.join(f'{one:.2f}' for one in metrics(rounds, **options))} |")
    print("\n| attributes of a span | us |\n|---|---|")
    for latest in (False, True):
        took = each(rounds, lambda latest=latest: attributes.inference(CHARGE, FACTS, compat=True, latest=latest))  # type: ignore[misc]
        print(f"| {'latest' if latest else 'compat'} | {took:.2f} |")
    print("\n| dialects at export | us a span |\n|---|---|")
    values = attributes.inference(CHARGE, FACTS, compat=True)
    span = ReadableSpan("chat gpt-4o", context=SPAN, attributes=values)
    for name in DIALECTS:
        kept = InMemorySpanExporter()
        exporter = DialectExporter(kept, [name])
        took = each(max(rounds // 10, 3), lambda exporter=exporter: exporter.export([span]))  # type: ignore[misc]
        print(f"| {name} | {took:.2f} |")


if __name__ == "__main__":
    main()
