"""The compiler of the bundled list: the file is up to date, and nothing unknown is dropped in silence."""

from __future__ import annotations

import importlib.util
import json
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from aifinops.meters import METERS
from aifinops.pricing.lists import BUNDLED

genai = pytest.importorskip("genai_prices.types", reason="the source of the bundled list is not installed")

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "compile_prices.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_prices", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compiler = load()


def model(**given: Any) -> Any:
    return genai.ModelInfo(
        **{"id": "m", "match": genai.ClauseEquals("m"), "prices": genai.ModelPrice(input_mtok=Decimal(1)), **given}
    )


def test_the_bundled_file_is_what_the_installed_source_gives() -> None:
    """`--check` passes, twice over, for the version that the header names."""
    header = json.loads(BUNDLED.read_text("utf-8").partition("\n")[0])
    if compiler.distribution("genai-prices").version != header["version"]:
        pytest.skip("another version of genai-prices is installed than was compiled")
    assert compiler.main(["--check"]) == 0
    assert compiler.compiled(header["date"]) == compiler.compiled(header["date"])


def test_an_outdated_file_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another date is another file; writing it makes the check pass again."""
    monkeypatch.setattr(compiler, "DATA", tmp_path)
    monkeypatch.setattr(compiler, "TARGET", tmp_path / "llm.jsonl")
    monkeypatch.setattr(compiler, "NOTICE", tmp_path / "LICENSE-genai-prices")
    assert compiler.main(["--check", "--date", "2026-01-01"]) == 1
    assert compiler.main(["--date", "2026-01-01"]) == 0
    assert compiler.main(["--check"]) == 0
    assert compiler.main(["--check", "--date", "2026-01-02"]) == 1
    assert "Permission is hereby granted" in (tmp_path / "LICENSE-genai-prices").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSE-genai-prices", "llm.jsonl"]


def test_a_new_version_needs_a_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day is never taken from the clock."""
    monkeypatch.setattr(compiler, "TARGET", tmp_path / "llm.jsonl")
    with pytest.raises(SystemExit, match="--date YYYY-MM-DD"):
        compiler.main([])


def test_licence_and_source_travel_with_the_data() -> None:
    """The header names source, version, date and licence, and the notice lies beside the file."""
    header = json.loads(BUNDLED.read_text("utf-8").partition("\n")[0])
    assert {"schema", "id", "version", "date", "source", "license", "currency", "models"} <= header.keys()
    assert "Pydantic Services Inc." in (BUNDLED.parent / "LICENSE-genai-prices").read_text("utf-8")


def test_customary_quantities_are_those_of_the_meters() -> None:
    """The script stands alone, so its table must agree with ours."""
    assert {name: METERS[name].per for name in compiler.USUAL} == compiler.USUAL


@pytest.mark.parametrize(
    "strange",
    [
        {"prices": genai.ModelPrice(new_unit_mtok=Decimal(1))},
        {"prices": genai.ModelPrice(audio_hours=Decimal(1), input_audio_hours=Decimal(2))},
        {
            "prices": [
                genai.ConditionalPrice(prices=genai.ModelPrice()),
                genai.ConditionalPrice(prices=genai.ModelPrice(input_mtok=Decimal(1))),
            ]
        },
        {
            "prices": [
                genai.ConditionalPrice(
                    genai.TimeOfDateConstraint(time(1, 0, 30), time(2)), prices=genai.ModelPrice(input_mtok=Decimal(1))
                )
            ]
        },
        {"prices": [genai.ConditionalPrice(SimpleNamespace(), prices=genai.ModelPrice(input_mtok=Decimal(1)))]},
        {"match": SimpleNamespace()},
    ],
    ids=["unit", "two prices of one meter", "empty among dated", "window with seconds", "constraint", "clause"],
)
def test_an_unknown_structure_stops_the_compiler(strange: dict[str, Any]) -> None:
    """A price that we could not read must not become a wrong one."""
    with pytest.raises(compiler.UnknownStructure):
        compiler.model_row("p", model(**strange))


def test_everything_that_is_known_comes_through() -> None:
    """Cliffs, dates, windows, tiers and contexts have their place in the row."""
    cliff = genai.TieredPrices(base=Decimal("1.50"), tiers=[genai.Tier(start=10, price=Decimal(3))])
    dated = genai.ConditionalPrice(
        genai.StartDateConstraint(date(2026, 1, 2)), prices=genai.ModelPrice(input_mtok=cliff)
    )
    night = genai.ConditionalPrice(
        genai.TimeOfDateConstraint(time(22), time(6, 30)), prices=genai.ModelPrice(audio_hours=Decimal("0.36"))
    )
    variants = [
        genai.PriceVariant({"processing": "batch"}, genai.ModelPrice(input_mtok=Decimal("0.5"))),
        genai.PriceVariant({"service_tier": "default"}, genai.ModelPrice()),
        genai.PriceVariant({"route": "eu"}, genai.ModelPrice(input_mtok=Decimal(9))),
    ]
    row = compiler.model_row("p", model(prices=[dated, night], price_variants=variants, context_window=5))
    assert row == {
        "model": "m",
        "context_window": 5,
        "prices": [
            {"from": "2026-01-02", "rates": {"input_tokens": {"base": "1.5", "above": {"10": "3"}}}},
            {"hours": ["22:00", "06:30"], "rates": {"audio_seconds": {"base": "0.36", "per": 3600}}},
        ],
        "variants": [
            {"tier": "batch", "rates": {"input_tokens": "0.5"}},
            {"when": {"route": "eu"}, "rates": {"input_tokens": "9"}},
        ],
    }
