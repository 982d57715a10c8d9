"""A collector that is down: `python tests/faults/outage.py [--receiver plain|oteltap|rotel] [--charges 120000] [--rate 200] [--json FILE]`.

Workers put charges into one spool folder, each as fast as it can or at its part of the rate, and note on a bill of their own what `put` has
returned for. In front of the receiver stands a gate, which refuses connections, answers 503, resets them, takes a request and dies before it
answers (the receiver has it then), or takes it and never answers. Workers are killed with SIGKILL meanwhile and started again. In the end the
gate opens: every charge that is on a bill must be at the receiver, equal to what was put, and after de-duplication once.

120,000 charges are ten minutes at 200 calls a second. `--rate 200` takes these ten minutes; without it the same charges come as fast as they
can, and the pauses of the spool are a tenth of what they are by default.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TROUBLES = ("refuse", "503", "reset", "die", "hang")
HANG_S = 1.0
"""How long a worker waits for an answer, seconds."""


@dataclass
class Verdict:
    """What is left when the dust has settled.

    `billed`: charges for which `put` has returned. `missing`: of those, not at the receiver. `wrong`: not equal there to what was put.
    `again`: records that came more than once. `left`: files in the spool.
    """

    receiver: str
    billed: int
    arrived: int
    missing: int
    wrong: int
    again: int
    left: int
    dropped: int
    refused: int
    kills: int
    down_s: float
    catch_up_s: float
    spool_bytes: int
    put_us: float
    put_us_p99: float
    memory_mib: float
    troubles: dict[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Every charge arrived, as it was, and nothing is left."""
        return not (self.missing or self.wrong or self.left or self.dropped or self.refused)


# --- the receiver and the gate before it ----------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    owner: Any

    def handle_error(self, *_: object) -> None:
        """A client that has gone is what this is about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.owner.take(self, body)

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", "0")
        self.end_headers()


def serve(owner: Any, port: int = 0) -> Server:
    server = Server(("127.0.0.1", port), Handler)
    server.owner = owner
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class Receiver:
    """A receiver of our own: keeps the bodies, and reads them when all is over."""

    name = "plain"

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.server = serve(self)
        self.port = self.server.server_address[1]

    def take(self, handler: Handler, body: bytes) -> None:
        self.bodies.append(gzip.decompress(body) if handler.headers.get("content-encoding") == "gzip" else body)
        handler.answer(200, content_type="application/x-protobuf")

    def charges(self) -> Iterator[Any]:
        from aifinops.ledger.otlp import charges_of

        for body in self.bodies:
            yield from charges_of(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Rotel(Receiver):
    """`rotel` reads the records, batches them in its own way and sends them on to a receiver of ours."""

    name = "rotel"

    def __init__(self) -> None:
        super().__init__()
        behind, self.port, grpc = self.port, free_port(), free_port()
        import rotel

        self.process = subprocess.Popen(
            [Path(rotel.__file__).parent / "rotel-agent", "start", "--otlp-http-endpoint", f"127.0.0.1:{self.port}",
             "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--exporter", "otlp", "--otlp-exporter-protocol", "http",
             "--otlp-exporter-endpoint", f"http://127.0.0.1:{behind}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        listening(self.port)

    def charges(self) -> Iterator[Any]:
        before = -1
        while before != len(self.bodies):  # it sends on after a moment
            before = len(self.bodies)
            time.sleep(2)
        yield from super().charges()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        super().close()


class OtelTap:
    """`oteltap` reads the records and hands them out one by one."""

    name = "oteltap"

    def __init__(self) -> None:
        self.port = free_port()
        self.records: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _run(self) -> None:
        from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=self.port)) as tap:
            reading = asyncio.create_task(self._read(tap))
            self._ready.set()
            await self._over.wait()
            reading.cancel()

    async def _read(self, tap: Any) -> None:
        async for record in tap.stream_logs():
            self.records.append(record.SerializeToString())

    def charges(self) -> Iterator[Any]:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        from aifinops.ledger.otlp import charges_of

        before = -1
        while before != len(self.records):
            before = len(self.records)
            time.sleep(2)
        request = ExportLogsServiceRequest()
        logs = request.resource_logs.add().scope_logs.add()
        for record in self.records:
            logs.log_records.add().ParseFromString(record)
        yield from charges_of(request)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)


RECEIVERS = {"plain": Receiver, "oteltap": OtelTap, "rotel": Rotel}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listening(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class Gate:
    """What the workers see: as `mode` says."""

    def __init__(self, behind: int) -> None:
        self._behind, self.port = behind, free_port()
        self.mode = "refuse"
        self.met: Counter[str] = Counter()
        self._server: Server | None = None

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse" and self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            self._server = serve(self, self.port)

    def take(self, handler: Handler, body: bytes) -> None:
        mode = self.mode
        self.met[mode] += 1
        if mode == "503":
            handler.answer(503, retry_after="0.2")
        elif mode == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
        elif mode == "hang":
            time.sleep(3 * HANG_S)
            handler.close_connection = True
        elif mode == "refuse":  # it came on a connection from before
            handler.close_connection = True
        else:
            self._pass_on(handler, body, answer=mode == "open")

    def _pass_on(self, handler: Handler, body: bytes, *, answer: bool) -> None:
        connection = HTTPConnection("127.0.0.1", self._behind, timeout=30)
        try:
            connection.request("POST", handler.path, body, dict(handler.headers))
            status = connection.getresponse().status
        except (OSError, HTTPException):
            status = 502
        finally:
            connection.close()
        if answer:
            handler.answer(status)
        else:
            handler.close_connection = True

    def close(self) -> None:
        self.set("refuse")


# --- the workers ---------------------------------------------------------------------------------------------------------


def charge_of(worker: int, number: int) -> Any:
    """The charge that this worker puts at this place, always the same."""
    from aifinops.testing.ledger import example_charge

    chance = random.Random(worker * 10**9 + number)
    amount = chance.randrange(10**9)
    return example_charge(
        worker * 10**8 + number, model=f"model-{chance.randrange(5)}", amount=amount, lower=amount, upper=amount,
        lines=(("input_tokens", amount),), tags={"team": chance.choice("abc"), "worker": str(worker)},
    )  # fmt: skip


def work(url: str, folder: str, bill: str, worker: int, count: int, rate: float, scale: float) -> None:
    """Put charges, note each on the bill once `put` has returned, and end as a program ends."""
    from aifinops.ledger.otlp import OtlpLedger
    from aifinops.ledger.spool import Spooled

    ledger = Spooled(OtlpLedger(url, timeout_s=HANG_S), folder, backoff_s=(0.5 * scale, 30 * scale), adopt_every_s=2)
    file = os.open(bill, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    begun = Path(bill).stat().st_size // 4
    took, at = [], time.perf_counter()
    for number in range(begun, count):
        charge = charge_of(worker, number)
        before = time.perf_counter_ns()
        ledger.enqueue(charge)
        took.append(time.perf_counter_ns() - before)
        os.write(file, struct.pack("<I", number))
        if rate:
            time.sleep(max(0.0, at + (number - begun + 1) / rate - time.perf_counter()))
    while not ledger.flush(60):
        """The outage is not over."""
    facts = {"took": sorted(took), "dropped": ledger.dropped, "refused": ledger.spool.refused,
             "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # fmt: skip
    Path(f"{bill}.json").write_text(json.dumps(facts), encoding="utf-8")
    ledger.close()


class Workers:
    def __init__(
        self, url: str, folder: Path, bills: Path, count: int, workers: int, rate: float, scale: float
    ) -> None:
        self.bills = [bills / f"bill-{worker}" for worker in range(workers)]
        share = [count // workers + (worker < count % workers) for worker in range(workers)]
        self._arguments = [
            ["--worker", url, str(folder), str(bill), str(worker), str(share[worker]), str(rate / workers), str(scale)]
            for worker, bill in enumerate(self.bills)
        ]
        self.processes = list(map(self._start, self._arguments))
        self.kills = 0

    @staticmethod
    def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, *arguments])

    def kill(self, worker: int) -> None:
        """With SIGKILL, and start it again."""
        if self.processes[worker].poll() is None:
            self.processes[worker].send_signal(signal.SIGKILL)
            self.kills += 1
        self.processes[worker].wait()
        self.processes[worker] = self._start(self._arguments[worker])

    def billed(self) -> list[int]:
        """How many charges each has put."""
        return [bill.stat().st_size // 4 if bill.exists() else 0 for bill in self.bills]

    def wait(self) -> None:
        for process in self.processes:
            assert process.wait(900) == 0

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


# --- the whole -----------------------------------------------------------------------------------------------------------


def outage(
    receiver: str = "plain",
    *,
    charges: int = 120_000,
    workers: int = 4,
    kills: int = 4,
    rate: float = 0.0,
    say: Any = lambda _: None,
) -> Verdict:
    """Let it happen, and judge."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        base = Path(name)
        behind = RECEIVERS[receiver]()
        stack.callback(behind.close)
        gate = Gate(behind.port)
        stack.callback(gate.close)
        team = Workers(
            f"otlp://127.0.0.1:{gate.port}", base / "spool", base, charges, workers, rate, 1.0 if rate else 0.1
        )
        stack.callback(team.end)
        began = time.monotonic()
        _trouble(gate, team, charges, kills, say)
        used = sum(path.stat().st_size for path in (base / "spool").rglob("*"))
        opened = time.monotonic()
        say(f"down for {opened - began:.1f} s, {used / 2**20:.1f} MiB wait")
        gate.set("open")
        team.wait()
        _adopt_rest(gate, base / "spool")
        caught_up = time.monotonic()
        facts = [json.loads(Path(f"{bill}.json").read_text(encoding="utf-8")) for bill in team.bills]
        took = sorted(each for one in facts for each in one["took"]) or [0]
        verdict = Verdict(
            receiver, sum(team.billed()), 0, 0, 0, 0, len(list((base / "spool").rglob("*.spool"))),
            sum(one["dropped"] for one in facts), sum(one["refused"] for one in facts), team.kills, opened - began, caught_up - opened, used,
            statistics.median(took) / 1e3, took[len(took) * 99 // 100] / 1e3, max(one["memory_kib"] for one in facts) / 1024, dict(gate.met),
        )  # fmt: skip
        _judge(verdict, behind, team.billed())
        return verdict


def _trouble(gate: Gate, team: Workers, charges: int, kills: int, say: Any) -> None:
    """Every trouble in turn until all is put; kills at even distances, half-way between two troubles too."""
    points = [charges * (kill + 1) // (kills + 1) for kill in range(kills)]
    stages = iter([*TROUBLES, *TROUBLES])
    edges = [charges * stage // 10 for stage in range(10)]
    while (done := sum(team.billed())) < charges:
        if edges and done >= edges[0]:
            edges.pop(0)
            gate.set(next(stages))
            say(f"{done:,} charges put: {gate.mode}")
        if points and done >= points[0]:
            points.pop(0)
            team.kill(len(points) % len(team.processes))
        time.sleep(0.02)
    for mode in TROUBLES[1:]:  # each is met, whatever the pauses between two attempts are
        before, until = gate.met[mode], time.monotonic() + 40
        gate.set(mode)
        while gate.met[mode] == before and time.monotonic() < until:
            time.sleep(0.02)


def _adopt_rest(gate: Gate, folder: Path) -> None:
    """What nobody has taken over: a process that was killed last."""
    from aifinops.ledger.otlp import OtlpLedger
    from aifinops.ledger.spool import Spooled

    ledger = Spooled(OtlpLedger(f"otlp://127.0.0.1:{gate.port}"), folder)
    assert ledger.flush(120)
    ledger.close()


def _judge(verdict: Verdict, behind: Any, billed: list[int]) -> None:
    seen: Counter[str] = Counter()
    wanted = {
        charge_of(worker, number).id: (worker, number) for worker, count in enumerate(billed) for number in range(count)
    }
    for charge in behind.charges():
        verdict.arrived += 1
        seen[charge.id] += 1
        if charge.id not in wanted:
            verdict.wrong += 1
        elif seen[charge.id] == 1:
            verdict.wrong += charge != charge_of(*wanted[charge.id])
    verdict.missing = len(wanted.keys() - seen.keys())
    verdict.again = sum(seen.values()) - len(seen)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        url, folder, bill, worker, count, rate, scale = sys.argv[2:]
        work(url, folder, bill, int(worker), int(count), float(rate), float(scale))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receiver", choices=RECEIVERS, default="plain")
    parser.add_argument("--charges", type=int, default=120_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    verdict = outage(
        asked.receiver, charges=asked.charges, workers=asked.workers, kills=asked.kills, rate=asked.rate, say=print
    )
    text = json.dumps({**asdict(verdict), "holds": verdict.holds}, indent=1)
    sys.stdout.write(text + "\n")
    if asked.json:
        asked.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if verdict.holds else 1)


if __name__ == "__main__":
    main()
