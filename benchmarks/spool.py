"""What the spool costs, and how fast it delivers: `python benchmarks/spool.py [--charges 20000]`.

The charges are those of the tests: something in every field. `put`: on the thread of the caller, while the target is down and nothing is
delivered meanwhile; `copied`: a charge in the ledger file and in the spool. `delivered`: from the spool over OTLP to a receiver on the loopback
interface that only counts, in this process; the sender and the receiver share the interpreter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aifinops.charges import Charge
from aifinops.errors import StoreError
from aifinops.ledger.copies import Copied
from aifinops.ledger.otlp import OtlpLedger, export_request
from aifinops.ledger.spool import Spool, Spooled
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import example_charge


def timed(way: Callable[[Charge], object], charges: list[Charge]) -> dict[str, float]:
    """Microseconds: median, the best hundred in a row on average (what it costs when nobody disturbs), and the 99th of a hundred."""
    took = []
    for charge in charges:
        begun = time.perf_counter_ns()
        way(charge)
        took.append(time.perf_counter_ns() - begun)
    best = min(sum(took[place : place + 100]) for place in range(0, len(took) - 100, 100)) / 100
    took.sort()
    return {"median_us": took[len(took) // 2] / 1e3, "best_us": best / 1e3, "p99_us": took[len(took) * 99 // 100] / 1e3}


def down(_: object) -> None:
    raise StoreError("down")


class Counting(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


def delivered(folder: Path, charges: list[Charge]) -> dict[str, float]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ledger = Spooled(OtlpLedger(f"otlp://127.0.0.1:{server.server_address[1]}", environ={}), folder, thread=False)
    for charge in charges:
        ledger.enqueue(charge)
    begun, worked = time.perf_counter(), time.process_time()
    assert ledger.flush(600)
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    ledger.close()
    server.shutdown()
    server.server_close()
    return {
        "a_second": len(charges) / seconds,
        "cpu_us_a_record": worked / len(charges) * 1e6,
        "bytes_a_record": export_request(charges[:500]).ByteSize() / 500,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--charges", type=int, default=20_000)
    charges = list(map(example_charge, range(parser.parse_args().charges)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = Spool(folder / "put", down, thread=False)
        copied = Copied(
            SqliteLedger(folder / "ledger.db"),
            Spooled(SqliteLedger(folder / "other.db"), folder / "copied", thread=False),
        )
        found = {
            "put": timed(spool.put, charges),
            "copied": timed(copied.enqueue, charges),
            "bytes_a_charge_on_disk": sum(path.stat().st_size for path in (folder / "put").iterdir()) / len(charges),
            "delivered": delivered(folder / "delivered", charges),
        }
        copied.close()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
