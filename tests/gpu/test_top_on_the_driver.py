"""`aifinops gpu top` on a machine with a driver: the real NVML binding on the fake library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nvml_scene import FakeNvml

import aifinops as af
from aifinops.cli import main
from aifinops.ledger import open_ledger


def test_the_devices_of_this_machine(fake: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    """Every device that the driver has is listed with its UUID; how busy it was is told, or said to be unknown, never 0 for nothing."""
    af.init(ledger="memory")
    with pytest.raises(SystemExit) as left:
        main(["gpu", "top", "--watch", "0.1", "--json"])
    assert not left.value.code
    found = json.loads(capsys.readouterr().out)["devices"]
    assert [one["index"] for one in found] == [0, 1]
    assert all(one["uuid"].startswith("GPU-") and "H100" in one["name"] for one in found)
    assert all(one["busy_share"] is None or 0 <= one["busy_share"] <= 1 for one in found)
    with pytest.raises(SystemExit):
        main(["gpu", "top", "--watch", "0.1"])
    assert "Devices of this machine" in capsys.readouterr().out


def test_the_devices_are_in_the_live_view(fake: FakeNvml, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`aifinops top --once` watches them for half a second; each is told with how busy it was."""
    ledger = tmp_path / "ledger.db"
    open_ledger(ledger).close()
    af.init(ledger=str(ledger))
    with pytest.raises(SystemExit) as left:
        main(["top", "--once", "--format", "json"])
    assert not left.value.code
    found = json.loads(capsys.readouterr().out)["devices"]
    assert [one["index"] for one in found] == [0, 1]
    assert all(one["busy_share"] is None or 0 <= one["busy_share"] <= 1 for one in found)
    with pytest.raises(SystemExit):
        main(["top", "--once"])
    assert capsys.readouterr().out.count("H100") >= 2
