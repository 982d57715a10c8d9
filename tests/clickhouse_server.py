"""ClickHouse's HTTP interface in front of the engine in a process of its own, as much of it as the driver uses: for tests on loopback.

No server program can be had from a package index, so that this stands in for it: statements, formats, settings and errors are the
engine's own; what is ours is reading a request and giving the answer back (https://clickhouse.com/docs/interfaces/http).

Run as a program: `python clickhouse_server.py DIRECTORY`, which prints its port.
"""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HAVE_ENGINE = importlib.util.find_spec("chdb") is not None
HAVE_DRIVER = importlib.util.find_spec("clickhouse_connect") is not None
_OURS = {"database", "query", "session_id", "compress", "decompress", "client_protocol_version", "role", "user", "password", "query_id", "wait_end_of_query", "send_progress_in_http_headers", "http_headers_progress_interval_ms", "enable_http_compression", "cancel_http_readonly_queries_on_client_close"}  # fmt: skip


class Server:
    """The stand-in in a process of its own, which can be killed and started again on the same port and data."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="aifinops-clickhouse-"))
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.home / "data"), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def url(self, database: str) -> str:
        return f"clickhouse://127.0.0.1:{self.port}/{database}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.home)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Any
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        self._answer(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

    def _chunks(self) -> Any:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, body: bytes) -> None:
        given = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        statement = "\n".join(part for part in (given.get("query", ""), body.decode()) if part)
        settings = {name: value for name, value in given.items() if name not in _OURS and not name.startswith("param_")}
        try:
            found = self._run(statement, given.get("database", ""), settings)
        except Exception as error:  # the engine's, which is told as the server tells it
            self._send(500, str(error).encode(), error.args[0] if error.args else "")
        else:
            self._send(200, found, "")

    def _run(self, statement: str, database: str, settings: dict[str, str]) -> bytes:
        with self.lock:
            if database and database != "__default__":
                self.engine.query(f"USE `{database}`")
            changed = [name for name in settings if name.replace("_", "").isalnum()]
            for name in changed:
                self.engine.query(f"SET {name} = '{settings[name]}'")
            try:
                head = self.headers.get("X-ClickHouse-Format", "TabSeparated")
                result: bytes = self.engine.query(statement, head).bytes()
                return result
            finally:
                for name in changed:
                    self.engine.query(f"SET {name} = DEFAULT")

    def _send(self, status: int, body: bytes, error: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("Transfer-Encoding", "chunked")  # as the server does; older drivers insist on it
        self.send_header("X-ClickHouse-Summary", '{"read_rows":"0","written_rows":"0"}')
        self.send_header("X-ClickHouse-Timezone", "UTC")
        if error:
            self.send_header("X-ClickHouse-Exception-Code", error.partition("Code: ")[2].partition(".")[0] or "1")
        self.end_headers()
        chunks = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
        self.wfile.writelines(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    import chdb

    _Handler.engine = chdb.connect(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
