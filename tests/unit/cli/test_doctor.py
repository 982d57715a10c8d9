"""`aifinops doctor`."""

from __future__ import annotations

import os
import socket
import sys
import types
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from aifinops import errors
from aifinops.cli.doctor import Finding, address_of, examine, reachable
from aifinops.errors import ConfigurationError
from aifinops.ledger import open_ledger


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    """The last finding about each subject."""
    return {finding.subject: finding for finding in findings}


def test_everything_is_looked_at(tmp_path: Path) -> None:
    """On a sound machine nothing is bad, each part has its finding, and a trial call was recorded."""
    pytest.importorskip("openai", reason="the trial call goes through the real openai client")
    open_ledger(tmp_path / "l.db").close()
    found = by_subject(examine(str(tmp_path / "l.db")))
    assert {"aifinops", "settings", "openai", "ledger", "prices", "exporter", "GPUs", "failures"} <= set(found)
    assert [item for item in found.values() if item.status == "bad"] == []
    assert "recorded once" in found["openai"].text
    assert str(tmp_path) in found["ledger"].text
    assert "0 entries" in found["ledger"].text
    assert "models" in found["prices"].text
    assert found["exporter"].status == "note"


def test_the_trial_leaves_no_trace(tmp_path: Path) -> None:
    """The trial call is not in the ledger, the client is as it was, and the environment too."""
    openai = pytest.importorskip("openai", reason="the trial call goes through the real openai client")
    before = (dict(os.environ), vars(openai.OpenAI.__mro__[1]).get("request"))
    book = open_ledger(tmp_path / "l.db")
    examine(str(tmp_path / "l.db"))
    assert book.info().entries == 0
    assert (dict(os.environ), vars(openai.OpenAI.__mro__[1]).get("request")) == before
    book.close()


def test_broken_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that cannot be read are a finding, and the only one besides the version."""
    monkeypatch.setenv("AIFINOPS_SPANS", "maybe")
    *_, last = examine()
    assert (last.subject, last.status) == ("settings", "bad")
    assert "maybe" in last.text


def test_what_is_on_its_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many charges wait for a ledger elsewhere, and that some were refused."""
    from aifinops.cli.doctor import _spools
    from aifinops.config import load
    from aifinops.ledger import spool_of
    from aifinops.ledger.spool import PartlyRefused, Spool
    from aifinops.testing.ledger import example_charge

    environ = {"AIFINOPS_COPY_TO": "otlp://me:secret@127.0.0.1:9", "AIFINOPS_SPOOL": str(tmp_path)}
    settings = load({}, environ, tmp_path)
    assert [item.status for item in _spools(settings)] == ["good"]

    def partly(_: object) -> None:
        raise PartlyRefused(1, "too old")

    folder = spool_of(environ["AIFINOPS_COPY_TO"], str(tmp_path))
    assert folder is not None
    spool = Spool(folder, partly, thread=False)
    spool.put(example_charge(1))
    spool.flush(1)
    spool.put(example_charge(2))
    spool.put(example_charge(3))
    (found,) = _spools(settings)
    assert (found.status, found.text) == (
        "bad", f"2 charges wait in {folder}; 1 were refused and are in quarantine.jsonl there"
    )  # fmt: skip
    spool.close(0)


def test_a_broken_ledger(tmp_path: Path) -> None:
    """A ledger that is no database is a bad finding that names it, and it is left as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk")
    found = by_subject(examine(str(path)))["ledger"]
    assert found.status == "bad"
    assert "notes.txt" in found.text
    assert path.read_text() == "remember the milk"


def test_no_ledger_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no ledger, the doctor says where it will be, and makes none."""
    monkeypatch.delenv("AIFINOPS_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = by_subject(examine())["ledger"]
    assert found.status == "note"
    assert list(tmp_path.rglob("*.db")) == []


def test_a_broken_price_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A price list that cannot be read is a bad finding that names it."""
    monkeypatch.setenv("AIFINOPS_PRICES", str(tmp_path / "mine.toml"))
    found = by_subject(examine())["prices"]
    assert found.status == "bad"
    assert "mine.toml" in found.text


def test_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that accepts connections is good, a closed one is bad."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        assert by_subject(examine())["exporter"] == Finding("exporter", "good", f"{url} accepts connections")
    assert "nothing answers" in reachable(url)
    assert by_subject(examine())["exporter"].status == "bad"


@pytest.mark.parametrize(
    ("installed", "status", "told"), [(None, "note", "pip install openai"), ("0.27.8", "bad", "0.27.8 is older than")]
)
def test_libraries(monkeypatch: pytest.MonkeyPatch, installed: str | None, status: str, told: str) -> None:
    """A library that is missing is a note with the command to type; one that is too old is bad."""

    def version(package: str) -> str:
        if installed is None:
            raise PackageNotFoundError(package)
        return installed

    monkeypatch.setattr("aifinops.cli.doctor.version", version)
    found = by_subject(examine())["openai"]
    assert found.status == status
    assert told in found.text


def test_a_trial_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot make a call is a bad finding with its error."""
    openai = pytest.importorskip("openai", reason="the trial call goes through the real openai client")

    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("no sockets left")

    monkeypatch.setattr(openai, "OpenAI", broken)
    found = by_subject(examine())["openai"]
    assert found.status == "bad"
    assert "OSError: no sockets left" in found.text


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU that the driver reports has a line; those that this process may not use are said to be hidden."""

    class NVMLError(Exception):
        pass

    driver = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda index: types.SimpleNamespace(total=80 * 2**30),
        nvmlDeviceGetUUID=lambda index: f"GPU-{index}",
        nvmlDeviceGetName=lambda index: "NVIDIA H100 80GB HBM3",
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [finding.text for finding in examine() if finding.subject == "GPUs"] == [
        "0: NVIDIA H100 80GB HBM3, 80 GiB, driver 580.1 (hidden from this process)",
        "1: NVIDIA H100 80GB HBM3, 80 GiB, driver 580.1",
    ]


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metering that is off is a bad finding: no budget holds then."""
    monkeypatch.setenv("AIFINOPS_ENABLED", "false")
    assert "nothing is metered" in by_subject(examine())["settings"].text


@pytest.mark.parametrize(
    ("endpoint", "environ", "address"),
    [
        ("http://localhost:4318", {}, ("localhost", 4318)),
        ("http://collector", {}, ("collector", 4318)),
        ("http://collector", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("collector", 4317)),
        ("https://otlp.example.com/v1/traces", {}, ("otlp.example.com", 443)),
        ("http://[::1]:99", {}, ("::1", 99)),
    ],
)
def test_addresses(endpoint: str, environ: Mapping[str, str], address: tuple[str, int]) -> None:
    """The port is the one given, else that of the scheme or the protocol."""
    assert address_of(endpoint, environ) == address


@pytest.mark.parametrize("endpoint", ["localhost:4318", "http://", "http://x:99999", "http://x:0"])
def test_no_addresses(endpoint: str) -> None:
    """What is no URL is refused by name."""
    with pytest.raises(ConfigurationError, match="OTLP endpoint"):
        address_of(endpoint, {})


def test_own_failures_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was swallowed in this process is a bad finding, by place."""
    monkeypatch.setattr(errors._failures, "counts", Counter({"ledger.append": 3}))
    assert by_subject(examine())["failures"] == Finding("failures", "bad", "ledger.append: 3")
