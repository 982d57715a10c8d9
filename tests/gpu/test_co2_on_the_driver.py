"""CO2 of a whole run on the fake driver: by the device's own counter of energy, on the run, its span, its charges and in `aifinops gpu`."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from nvml_scene import FakeNvml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aifinops import gpu, runtime
from aifinops.cli import main
from aifinops.gpu import sampler
from aifinops.gpu.usage import span_values
from aifinops.gpu.where import Place
from aifinops.telemetry import names

FRANKFURT = "cloud.provider=aws,cloud.region=eu-central-1,host.type=p5.48xlarge"
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")


@pytest.fixture
def machine(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvml:
    """Two GPUs of 500 W each in Frankfurt; time is the driver's."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sampler, "PATIENCE_S", 60.0)  # the thread is real, and this machine may be busy
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", FRANKFURT)
    runtime.init(ledger=tmp_path / "ledger.db", clock=fake)
    for number in (0, 1):
        fake.from_now(number, 1.0, watts=500)
    return fake


def a_run(machine: FakeNvml, seconds: int = 120, **arguments: Any) -> gpu.Run:
    with gpu.track("finetune", price="3.60", team="nlp", **arguments) as run:
        for _ in range(seconds // 10):
            machine.advance(10)
            run.step()
    return run


def test_joules_of_the_devices_become_kilograms_with_their_basis(machine: FakeNvml) -> None:
    """1000 W for 120 s are 120 kJ: 0.0333 kWh, 0.038 with AWS's PUE of 1.14, at 381 g in Germany."""
    run = a_run(machine)
    used, found = run.usage(), run.co2
    assert used.energy_j == pytest.approx(120_000)
    assert found == used.co2
    assert found is not None
    assert float(found.energy_kwh) == pytest.approx(120_000 / 3.6e6 * 1.14)
    assert float(found.kg) == pytest.approx(120_000 / 3.6e6 * 1.14 * 0.381)
    assert (found.country, found.year, found.grams_per_kwh, found.pue) == ("DEU", 2023, 381, Decimal("1.14"))
    runtime.get().writer.flush()
    charged = [Decimal(row.raw["gpu"]["co2"]["kg"]) for row in runtime.get().ledger.rows() if row.raw is not None]
    assert len(charged) == 2
    assert float(sum(charged)) == pytest.approx(float(found.kg))


def test_the_span_has_it(machine: FakeNvml) -> None:
    """Mass, energy, intensity, country, year, sources, PUE, on the span that is exported."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engines = runtime.get()
    assert engines.spans is not None
    engines.spans._get_provider = lambda: provider
    found = a_run(machine, 60).usage()
    assert found.co2 is not None
    (span,) = exporter.get_finished_spans()
    values = dict(span.attributes or {})
    assert values[names.CO2_KG] == float(found.co2.kg)
    assert values[names.ENERGY_KWH] == float(found.co2.energy_kwh)
    assert (values[names.CO2_INTENSITY], values[names.CO2_COUNTRY], values[names.CO2_YEAR]) == (381, "DEU", 2023)
    assert (values[names.CO2_SOURCE], values[names.ENERGY_PUE]) == (found.co2.source, 1.14)
    assert str(values[names.ENERGY_PUE_SOURCE]).startswith("AWS")


def test_unknown_region_or_energy_is_unknown_and_never_zero(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """No region: energy is known, CO2 is not. No counter of energy (a named device): neither is. No attribute on the span then."""
    named = a_run(machine, devices={"NVIDIA H100 80GB HBM3": 1}).usage()
    assert (named.energy_j, named.co2) == (None, None)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "")
    monkeypatch.setattr("aifinops.gpu.metadata.firmware", Place)
    found = a_run(machine).usage()
    assert found.energy_j is not None
    assert found.co2 is None
    assert names.CO2_KG not in span_values(found, 2)
    runtime.get().writer.flush()
    assert all(row.raw is not None and "co2" not in row.raw["gpu"] for row in runtime.get().ledger.rows())


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["gpu", *arguments])
    assert not left.value.code
    return capsys.readouterr().out


def test_the_command_shows_it_with_its_basis(machine: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table, below it by which figures, and as JSON with how much of the time it is of."""
    run = a_run(machine)
    assert run.co2 is not None
    runtime.get().writer.flush()
    text = shown(capsys, "idle", "--since", "24h")
    assert f"{run.co2.kg * 1000:.1f} g" in text
    assert f"CO2e: {run.co2.basis}" in text
    (facts,) = json.loads(shown(capsys, "idle", "--since", "24h", "--json"))
    assert float(facts["co2_kg"]) == pytest.approx(float(run.co2.kg))
    assert float(facts["energy_kwh"]) == pytest.approx(float(run.co2.energy_kwh))
    assert facts["co2_of_gpu_hours"] == facts["gpu_hours"]
    assert facts["co2_basis"] == [run.co2.basis]
    a_run(machine, devices={"NVIDIA H100 80GB HBM3": 1})
    runtime.get().writer.flush()
    assert "g of 0.07 GPU-h" in shown(capsys, "idle", "--since", "24h")


def test_where_nothing_is_known_there_is_no_column(machine: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    """Of devices that were only named nobody knows the energy: null, and not a word of CO2 in the table."""
    a_run(machine, devices={"NVIDIA H100 80GB HBM3": 1})
    runtime.get().writer.flush()
    assert "CO2" not in shown(capsys, "idle", "--since", "24h")
    (facts,) = json.loads(shown(capsys, "idle", "--since", "24h", "--json"))
    assert (facts["co2_kg"], facts["energy_kwh"], facts["co2_of_gpu_hours"]) == (None, None, "0")
