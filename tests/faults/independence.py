"""What money must survive, and the judge of it: a provider that bills, a collector, and programs that make calls with the real client.

A stand has a provider and a collector on the loopback interface. Programs below it write one ledger, send copies to the collector and export
metrics there. Whatever happens to them: for every answer that the provider has billed there is one charge in the ledger, of the amount that
follows from the provider's usage object and prices that are written out here; after de-duplication there is the same charge at the collector.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[2] / "src"

# https://openai.com/api/pricing/, 24 November 2026, gpt-5-mini: nano-USD a token.
INPUT, CACHED, OUTPUT = 250, 25, 2000

HEAD = """
import contextlib, glob, os, signal, ssl, sys, time
import openai
import aifinops

aifinops.instrument("openai")

# Made once: OpenSSL takes locks for it, and a child that is forked while another thread holds one waits for ever.
CONTEXT = ssl.create_default_context()

def call(times=1):
    # A client of its own each time: one that is shared with a forked child would share its connections.
    for _ in range(times):
        wire = openai.DefaultHttpxClient(verify=CONTEXT)
        with openai.OpenAI(base_url=os.environ["PROVIDER"], api_key="test", max_retries=0, http_client=wire) as client:
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])

def be_quiet():
    # The C library's fork leaves the interpreter's lock as it is. If any thread is waiting for it right then, CPython hangs in the child: it gives
    # the lock to that thread, which is not there, and waits until it has taken it. Python's own fork makes the lock anew. So: before each bare fork
    # all threads sleep. Who waits for that lock looks again every 5 ms, which counts as a switch, and who waits for a processor is no sleeper.
    while True:
        aifinops.flush()
        began, before = time.monotonic(), threads()
        time.sleep(0.1)
        # The spool looks again a second after a flush.
        if threads() == before and all("S" in said for said in before) and time.monotonic() - began < 0.5:
            return

def threads():
    # Of each other thread, as Linux says it: what it does, and how often it was given a processor. Elsewhere nothing is known.
    found = []
    for status in glob.glob("/proc/self/task/*/status"):
        if f"/{os.getpid()}/" not in status:
            with contextlib.suppress(FileNotFoundError), open(status) as file:
                found.append([line.split()[1] for line in file if line.startswith(("State", "voluntary", "nonvoluntary"))])
    return found


"""


class Collector:
    """Keeps what is posted, by path. `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: dict[str, list[bytes]] = {"/v1/logs": [], "/v1/metrics": [], "/v1/traces": []}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.status == 200:
                    zipped = self.headers.get("content-encoding") == "gzip"
                    collector.bodies[self.path].append(gzip.decompress(body) if zipped else body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A program that was killed."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.port = self.server.server_address[1]

    def charges(self) -> list[Any]:
        from aifinops.ledger.otlp import charges_of

        return [charge for body in self.bodies["/v1/logs"] for charge in charges_of(body)]

    def sums(self) -> Counter[str]:
        """Metric -> sum over all deltas of all processes; of a histogram, how many under `<name>.count`."""
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found: Counter[str] = Counter()
        for body in list(self.bodies["/v1/metrics"]):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.HasField("sum"):
                            assert metric.sum.aggregation_temporality == 1, "delta"
                            points = metric.sum.data_points
                            assert all(point.as_double >= 0 and point.as_int >= 0 for point in points), metric
                            found[metric.name] += sum(point.as_double + point.as_int for point in points)  # type: ignore[assignment]
                        elif metric.HasField("histogram"):
                            found[f"{metric.name}.count"] += sum(point.count for point in metric.histogram.data_points)
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Stand:
    def __init__(self, folder: Path) -> None:
        from aifinops.testing.server import FakeProvider

        self.folder = folder
        self.ledger = folder / "ledger.db"
        self.provider = FakeProvider(words=8).start()
        self.collector = Collector()
        self.log = (folder / "log.txt").open("w+")

    def environ(self, **more: str) -> dict[str, str]:
        collector = f"http://127.0.0.1:{self.collector.port}"
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIFINOPS", "OTEL"))},
            "PYTHONPATH": str(SOURCES), "PROVIDER": self.provider.base_url,
            "AIFINOPS_LEDGER": str(self.ledger), "AIFINOPS_COPY_TO": "otlp", "AIFINOPS_SPOOL": str(self.folder / "spool"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
            "OTEL_METRIC_EXPORT_INTERVAL": "500", "AIFINOPS_CONFIG": "", "HOME": str(self.folder), **more,
        }  # fmt: skip

    def write(self, code: str, name: str = "program.py") -> Path:
        path = self.folder / name
        path.write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
        return path

    @contextlib.contextmanager
    def running(self, code: str | list[Any], **environ: str) -> Iterator[subprocess.Popen[str]]:
        """A program that makes calls, or a command line."""
        command = code if isinstance(code, list) else [sys.executable, self.write(code)]
        process = subprocess.Popen(
            command,
            env=self.environ(**environ),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)
            for file in (process.stdin, process.stdout):
                if file is not None:
                    file.close()

    def run(self, code: str, **environ: str) -> float:
        """Let a program run to its good end; how long it took, seconds."""
        began = time.monotonic()
        with self.running(code, **environ) as process:
            assert process.wait(120) == 0, self.said()
        return time.monotonic() - began

    def said(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def truth(self) -> dict[str, int]:
        """Id of an answer -> nano-USD."""
        found = {}
        for served in self.provider.bill:
            totals = served.totals
            fresh = totals["input_tokens"] - totals["cached_tokens"]
            found[served.id] = fresh * INPUT + totals["cached_tokens"] * CACHED + totals["output_tokens"] * OUTPUT
        return found

    def rows(self) -> list[Any]:
        """What is in the ledger."""
        from aifinops.ledger import open_ledger

        source = open_ledger(self.ledger)
        try:
            return list(source.rows())
        finally:
            source.close()

    def judge(self, *, metrics: bool = True, copies: bool = True) -> None:
        """Compare everything with the bill.

        Args:
            metrics: whether all processes ended in a way that lets them export. copies: whether copies can have arrived.
        """
        truth = self.truth()
        assert truth, "nothing was billed"
        rows = self.rows()
        found = Counter(row.response_id for row in rows)
        assert found == Counter(list(truth)), (found - Counter(list(truth)), Counter(list(truth)) - found, self.said())
        assert {row.response_id: row.amount for row in rows} == truth
        if copies:
            self.run("aifinops.init()\nassert aifinops.flush(20)")  # the next process delivers what was left
            arrived = {charge.id: charge for charge in self.collector.charges()}
            assert sorted(arrived) == sorted(row.id for row in rows)
            assert all(arrived[row.id] == row for row in rows)
        sums = self.collector.sums()
        if metrics:
            assert sums["aifinops.calls"] == len(truth), self.said()
            assert sums["aifinops.client.operation.cost.count"] == len(truth)
            assert abs(sums["aifinops.cost"] - sum(truth.values()) / 1e9) < 1e-9
        else:
            assert sums["aifinops.calls"] <= len(truth)
            assert sums["aifinops.client.operation.cost.count"] <= len(truth)

    def close(self) -> None:
        self.provider.stop()
        self.collector.close()
        self.log.close()
