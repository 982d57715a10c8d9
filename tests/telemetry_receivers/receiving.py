"""rotel's agent as a receiver that prints all it gets, in the format of the OpenTelemetry Collector's debug exporter, and reading that."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import aifinops
from aifinops.testing import FakeProvider

PROGRAM = Path(__file__).parent / "program.py"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_program(endpoint: str, provider: FakeProvider, **variables: str) -> list[dict[str, Any]]:
    """The rows of the ledger of a run of the program that sends to `endpoint`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_", "AIFINOPS_"))}
    environment = {
        **kept, "AIFINOPS_LEDGER": "memory", "AIFINOPS_PRICE_FOLDER": os.devnull + "/none", "OPENAI_BASE_URL": provider.base_url,
        "OTEL_SERVICE_NAME": "shop", "PYTHONPATH": str(Path(aifinops.__file__).parents[1]), **variables,
    }  # fmt: skip
    command = [sys.executable, "-W", "error", str(PROGRAM), endpoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    flushed, rows = done.stdout.splitlines()
    assert flushed == "True"
    return json.loads(rows)  # type: ignore[no-any-return]


@dataclass
class Item:
    """A span, a data point or a log record as the agent has printed it.

    Attributes:
        kind: `span`, `point` or `log`. facts: `Name`, `Trace ID`, `Value` ... of it, and of the metric of a point. attributes: of itself.
        resource, scope: of what it came in. exemplars: facts of each.
    """

    kind: str
    facts: dict[str, Any]
    resource: dict[str, Any]
    scope: str
    attributes: dict[str, Any] = field(default_factory=dict)
    exemplars: list[dict[str, Any]] = field(default_factory=list)


_BEGIN = re.compile(r"(Span|NumberDataPoints|HistogramDataPoints|LogRecord) #\d+")
_VALUE = re.compile(r"\s+-> (?P<name>[^:]+): (?P<type>Str|Int|Double|Bool|Slice)\((?P<value>.*)\)")
_FACT = re.compile(r"\s*(?:-> )?(?P<name>[A-Z][\w ]*?)\s*: (?P<value>.*)")
_SCHEMA, _SCOPE = re.compile(r"Scope\w+ SchemaURL: (.*)"), re.compile(r"InstrumentationScope (.*)")


def read(text: str) -> list[Item]:
    """Everything that was printed, in order."""
    found: list[Item] = []
    resource: dict[str, Any] = {}
    metric: dict[str, Any] = {}
    scope, schema, into = "", "", resource
    facts: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("Resource attributes"):
            resource = into = {}
        elif found_schema := _SCHEMA.match(line):
            schema = found_schema[1]
        elif found_scope := _SCOPE.match(line):
            scope = f"{found_scope[1]} {schema}"
        elif line.startswith("Metric #"):
            metric = facts = {}
        elif begin := _BEGIN.match(line):
            kind = {"Span": "span", "LogRecord": "log"}.get(begin[1], "point")
            found.append(Item(kind, dict(metric) if kind == "point" else {}, resource, scope))
            facts, into = found[-1].facts, found[-1].attributes
        elif line.startswith("Exemplar #"):
            facts = {}
            found[-1].exemplars.append(facts)
        elif value := _VALUE.match(line):
            into[value["name"]] = _typed(value["type"], value["value"])
        elif fact := _FACT.match(line):
            facts[fact["name"]] = fact["value"]
    return found


def _typed(kind: str, text: str) -> Any:
    if kind == "Slice":
        return [_typed(one[1], one[2]) for one in re.finditer(r"(\w+)\(([^()]*)\)", text)]
    return {"Int": int, "Double": float, "Str": str, "Bool": lambda said: said == "true"}[kind](text)


class Rotel:
    """A running agent.

    Attributes:
        endpoints: protocol -> address for `init(otlp=...)`.
    """

    def __init__(self, agent: Path, folder: Path) -> None:
        self.grpc, self.http = free_port(), free_port()
        self.endpoints = {
            "grpc": f"http://127.0.0.1:{self.grpc}",
            "http/protobuf": f"http://127.0.0.1:{self.http}",
        }
        self._output = folder / "rotel.out"
        command = [str(agent), "start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"]
        for signal in ("traces", "metrics", "logs"):
            command += ["--debug-log", signal]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc}", "--otlp-http-endpoint", f"127.0.0.1:{self.http}"]
        self._command = [*command, "--pid-file", str(folder / "rotel.pid")]

    @staticmethod
    def find() -> Path | None:
        """The agent of the package, as far as it runs here."""
        spec = find_spec("rotel")
        if spec is None or spec.origin is None:
            return None
        agent = Path(spec.origin).parent / "rotel-agent"
        return agent if agent.exists() else None

    def __enter__(self) -> Self:
        with self._output.open("w") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        for port in (self.grpc, self.http):
            self._wait_for(port)
        return self

    def _wait_for(self, port: int) -> None:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert self._process.poll() is None, self._output.read_text()
            time.sleep(0.02)
        raise AssertionError(self._output.read_text())

    def received(self) -> list[Item]:
        """All that has arrived; the agent is stopped first, so that it has printed it all."""
        self.stop()
        return read(self._output.read_text())

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)

    def __exit__(self, *_error: object) -> None:
        self.stop()
