"""A program to watch: calls of two teams, streams, caches, a refused call, a model without a price, and a GPU that is half idle.

    desk.py PORT FOLDER BASE_URL SECONDS

Shows its metrics for scraping at PORT on loopback, writes its ledger and budgets into FOLDER, works for SECONDS, says `worked` and
goes on showing its metrics until its standard input is closed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import openai
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

import aifinops as af
from aifinops import runtime
from aifinops.telemetry.metrics import DeviceState


def main() -> None:
    port, folder, base_url, seconds = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))
    start_http_server(port, addr="127.0.0.1")
    af.init(ledger=folder / "ledger.db", store=str(folder / "budgets.db"), metric_tags=["team", "feature"])
    af.instrument("openai")
    client = openai.OpenAI(api_key="test", base_url=base_url, max_retries=0)
    runtime.get().metrics.devices = lambda: [
        DeviceState("GPU-1", "H100", "nvidia", "", 0.5, 40e9, 80e9, time.time() % 1e6, 400.0)
    ]
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turn += 1
        with af.tags(team=("search", "support")[turn % 2], feature="rerank"):
            work(client, turn)
        time.sleep(0.15)
    client.close()
    sys.stdout.write("worked\n")
    sys.stdout.flush()
    sys.stdin.read()
    af.shutdown()


def work(client: openai.OpenAI, turn: int) -> None:
    with af.budget("$5", per="day", name="desk"):
        ask(client, stream=turn % 3 == 0)
    try:
        with af.budget("$0.0000001", name="nothing"):
            ask(client)
    except af.BudgetExceeded:
        pass  # as it should be
    af.record(usage={"input_tokens": 10}, model="nobody-knows-this", provider="custom", service="llm")
    cached = {"input_tokens": 100, "cache_read_tokens": 900, "cache_write_tokens": 50, "output_tokens": 40}
    af.record(usage=cached, model="claude-sonnet-4-5", provider="anthropic", service="llm", operation="chat")
    held = af.record(
        usage={"gpu_seconds": 1}, cost="0.001", model="H100", provider="local", service="gpu", operation="training"
    )
    runtime.get().metrics.gpu_time(held, {"allocated": 1.0, "busy": 0.5, "idle": 0.5, "stall": 0.1})


def ask(client: openai.OpenAI, *, stream: bool = False) -> None:
    asked: Any = {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": "hi " * 50}],
        "max_completion_tokens": 50,
    }
    if not stream:
        client.chat.completions.create(**asked)
        return
    for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        pass


if __name__ == "__main__":
    main()
