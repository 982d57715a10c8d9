"""Rows of other people's distributions: found by their entry points, metered like ours, and harmless when they are broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")

import aifinops
from aifinops import runtime
from aifinops.errors import ConfigurationError
from aifinops.integrations import registry
from aifinops.integrations.provider import Provider, Route
from aifinops.testing import ScriptedProvider

CANARY = "canary-7c1f the weather is fine"
ANSWER = {"id": "a-1", "model": "acme-1", "text": CANARY, "usage": {"in": 12, "out": 5}}

SDK = """
import httpx

class Client:
    def __init__(self, base_url):
        self._http = httpx.Client(base_url=base_url)

    def _send(self, path, body):
        return self._http.post(path, json=body).raise_for_status().json()

    def say(self, text):
        return self._send("/v1/say", {"model": "acme-1", "prompt": text})
"""
ROW = """
import sys
from aifinops.integrations.provider import Provider, Route

assert "acme_sdk" not in sys.modules
SAY = Route(
    "chat", {"input_tokens": "usage.in", "output_tokens": "usage.out"}, ("text", "usage.in"), text=("text",), created="", tier="",
)
ACME = Provider(
    "acme", module="acme_sdk", package="acme-sdk", minimum="1", seam="http", routes={"/v1/say": SAY},
    senders={"acme_sdk:Client._send": "_http"}, connections=("_http",),
)
"""
USE = f"""
import sys
import aifinops as af
from aifinops import errors, runtime
from aifinops.integrations import registry

af.instrument(*sys.argv[2:])
import acme_sdk

with acme_sdk.Client(sys.argv[1])._http as http:
    client = acme_sdk.Client.__new__(acme_sdk.Client)
    client._http = http
    client.say({CANARY!r})
af.flush()
rows = [(row.provider, row.operation, row.response_model, dict(row.quantities)) for row in runtime.get().ledger.rows()]
priced = af.price_response({{"model": "acme-1", "text": "", "usage": {{"in": 3, "out": 1}}}}, "acme").basis if rows else ""
import json
print(json.dumps([rows, sorted(errors.failures()), registry.state(), priced]))
"""


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider({"/v1/say": ANSWER}) as running:
        yield running


def distribution(folder: Path, name: str, points: str, modules: dict[str, str]) -> None:
    """Lay out what pip would: modules, metadata and entry points."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[aifinops.providers]\n{points}\n", encoding="utf-8")


def used(folder: Path, server: ScriptedProvider, *names: str) -> tuple[list[Any], str]:
    """(what a program that has these distributions prints, what it logs)."""
    program = folder / "use.py"
    program.write_text(USE, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(Path(aifinops.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "AIFINOPS_LEDGER": "memory"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), server.url, *names], env=environment, cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_row_of_another_distribution_is_metered(tmp_path: Path, server: ScriptedProvider) -> None:
    """`instrument()` finds it, its calls are rows, its answers can be priced, and its SDK is not imported by it."""
    distribution(tmp_path, "aifinops_acme", "acme = acme_row:ACME", {"acme_sdk": SDK, "acme_row": ROW})
    (rows, failures, state, priced), _ = used(tmp_path, server)
    assert rows == [["acme", "chat", "acme-1", {"input_tokens": 12, "output_tokens": 5}]]
    assert failures == []
    assert state["acme"] == "active"
    assert priced == "unknown"


def test_it_can_be_named(tmp_path: Path, server: ScriptedProvider) -> None:
    """`instrument("acme")` is its row alone."""
    distribution(tmp_path, "aifinops_acme", "acme = acme_row:ACME", {"acme_sdk": SDK, "acme_row": ROW})
    (rows, _, state, _), _ = used(tmp_path, server, "acme")
    assert len(rows) == 1
    assert [name for name in state if name != "threads"] == ["acme"]


BROKEN = {
    "no module": "broken = not_there:ROW",
    "no name": "broken = broken_row:MISSING",
    "no row": "broken = broken_row:TEXT",
    "raises": "broken = raising_row:ROW",
    "a taken name": "openai = acme_row:ACME",
    "a seam that is not there": "broken = broken_row:SEAM",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_one_is_one_warning_and_no_more(fault: str, tmp_path: Path, server: ScriptedProvider) -> None:
    """A row that cannot be loaded is told once; every other is metered, and nothing is raised."""
    distribution(tmp_path, "aifinops_acme", "acme = acme_row:ACME", {"acme_sdk": SDK, "acme_row": ROW})
    modules = {
        "broken_row": "from aifinops.integrations.provider import Provider\nTEXT = 'no row'\n"
        "SEAM = Provider('broken', {}, module='broken', seam='nothing')\n",
        "raising_row": "raise SystemError('at import')\n",
    }
    distribution(tmp_path, "aifinops_broken", BROKEN[fault], modules)
    (rows, failures, _, _), logged = used(tmp_path, server)
    assert len(rows) == 1
    assert failures == [f"integrations.entry_point.{BROKEN[fault].split(' ')[0]}"]
    assert logged.count("internal failure") == 1


def test_a_row_can_be_given_as_it_is(server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """`instrument(row)` meters a row of the program's own; a name that is taken is refused at set-up."""
    httpx = pytest.importorskip("httpx")
    module = types.ModuleType("given_sdk")
    exec(SDK, vars(module))
    monkeypatch.setitem(sys.modules, "given_sdk", module)
    monkeypatch.setattr(registry, "PROVIDERS", dict(registry.PROVIDERS))
    monkeypatch.setattr(registry, "ANSWERS", dict(registry.ANSWERS))
    say = Route("chat", {"input_tokens": "usage.in", "output_tokens": "usage.out"}, ("text",), created="", tier="")
    senders = {"given_sdk:Client._send": "_http"}
    row = Provider("given", {"/v1/say": say}, module="given_sdk", package="given", seam="http", senders=senders)
    aifinops.instrument(row)
    try:
        client = module.Client(server.url)
        client.say(CANARY)
        client._http.close()
        with pytest.raises(ConfigurationError, match="already"):
            aifinops.instrument(replace(row, minimum="2"))
    finally:
        aifinops.uninstrument()
        registry._given.clear()
    aifinops.flush()
    (charge,) = runtime.get().ledger.rows()
    assert (charge.provider, dict(charge.quantities)) == ("given", {"input_tokens": 12, "output_tokens": 5})
    assert not hasattr(httpx.Client.send, "__wrapped__")
