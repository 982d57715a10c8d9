"""Every query of every dashboard, and every rule, asked of a real Prometheus that scrapes a program that makes real calls."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aifinops
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.money import NANO
from aifinops.testing import FakeProvider

pytest.importorskip("opentelemetry.exporter.prometheus", reason="pip install --group receivers")
PROMETHEUS = shutil.which("prometheus")
if PROMETHEUS is None:
    pytest.skip("prometheus is not installed (Debian: apt install prometheus)", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "dashboards"
BOARDS = sorted((FOLDER / "grafana").glob("*.json"))
SECONDS = 12
SHORT = {
    "$__rate_interval": "6s",
    "$__range": "10s",
    "$currency": "USD",
    "$team": ".*",
    "$model": ".*",
    "$provider": ".*",
    "$budget": ".*",
}
SILENT = ("offset 1w", "offset 1d")
"""A program of twelve seconds has no week ago."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(port: int, path: str, **arguments: str) -> Any:
    query = f"?{urllib.parse.urlencode(arguments)}" if arguments else ""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}{query}", timeout=10) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a Prometheus that has watched a program for a while, and the program's ledger."""
    folder = tmp_path_factory.mktemp("stack")
    shown, port = free_port(), free_port()
    rules = (FOLDER / "prometheus" / "aifinops-rules.yaml").read_text(encoding="utf-8")
    (folder / "rules.yaml").write_text(rules.replace("interval: 1m", "interval: 1s"))
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{folder}/rules.yaml]\n"
        f"scrape_configs:\n- job_name: desk\n  static_configs: [{{targets: ['127.0.0.1:{shown}']}}]\n"
    )
    watch = [str(PROMETHEUS), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]  # fmt: skip
    with FakeProvider() as desk, ended(watch):
        wait_for(port)
        program = [
            sys.executable,
            str(Path(__file__).with_name("desk.py")),
            str(shown),
            str(folder),
            desk.base_url,
            str(SECONDS),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}
        with ended(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"worked\n"
            time.sleep(2.5)  # two more scrapes see the last of it
            yield port, folder / "ledger.db"


@contextmanager
def ended(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the block."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.terminate()
        process.wait(10)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("prometheus did not start")


def queries() -> Iterator[Any]:
    for path in BOARDS:
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for number, target in enumerate(panel.get("targets", ())):
                yield pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {number}")


@pytest.mark.parametrize("expression", list(queries()))
def test_every_query_of_every_dashboard_has_an_answer(stack: tuple[int, Path], expression: str) -> None:
    """It is PromQL, and it finds what the program did: a label or a metric that has another name would find nothing."""
    for name, value in SHORT.items():
        expression = expression.replace(name, value)
    answer = fetch(stack[0], "/api/v1/query", query=expression)
    assert answer["status"] == "success"
    if any(words in expression for words in SILENT):
        return
    values = [float(one["value"][1]) for one in answer["data"]["result"]]
    assert values, "nothing is found"
    assert any(math.isfinite(value) for value in values)


def test_every_rule_is_evaluated_without_an_error(stack: tuple[int, Path]) -> None:
    """And the alert about calls without a price has seen the model that nobody knows."""
    groups = fetch(stack[0], "/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 17
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    (missing,) = [rule for rule in rules if rule["name"] == "AICallsWithoutPrice"]
    assert [alert["labels"]["gen_ai_request_model"] for alert in missing["alerts"]] == ["nobody-knows-this"]


def test_prometheus_has_the_sum_of_the_ledger(stack: tuple[int, Path]) -> None:
    """To a millionth of a cent: the counter is a float, the ledger is not."""
    ledger = SqliteLedger(stack[1], create=False)
    wanted = sum(charge.amount or 0 for charge in ledger.rows())
    ledger.close()
    (found,) = fetch(stack[0], "/api/v1/query", query='sum(aifinops_cost_total{aifinops_cost_currency="USD"})')["data"][
        "result"
    ]
    assert wanted > 0
    assert float(found["value"][1]) == pytest.approx(wanted / NANO, abs=1e-8)
