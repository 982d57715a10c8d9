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
from hypothesis import given
from hypothesis import strategies as st

from aifinops.pricing import lists
from aifinops.pricing.compiling import genai as compiling
from aifinops.pricing.compiling import own

BUNDLED = Path(lists.BUNDLED)

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
FILES = ["LICENSE-genai-prices", "gpu.jsonl", "llm.jsonl", "storage.jsonl", "vector.jsonl"]


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
    assert compiling.compiled(header["date"]) == compiling.compiled(header["date"])


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
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_check_covers_every_generated_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is gone, or one byte more in one of the lists, fails the check, which names it."""
    monkeypatch.setattr(compiler, "DATA", tmp_path)
    monkeypatch.setattr(compiler, "TARGET", tmp_path / "llm.jsonl")
    monkeypatch.setattr(compiler, "NOTICE", tmp_path / "LICENSE-genai-prices")
    assert compiler.main(["--date", "2026-01-01"]) == 0
    if name.endswith(".jsonl"):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        assert compiler.main(["--check", "--date", "2026-01-01"]) == 1
        assert name in capsys.readouterr().err
    (tmp_path / name).unlink()
    assert compiler.main(["--check", "--date", "2026-01-01"]) == 1
    assert name in capsys.readouterr().err


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
    with pytest.raises(compiling.UnknownStructure):
        compiling.model_row("p", model(**strange))


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
    row = compiling.model_row("p", model(prices=[dated, night], price_variants=variants, context_window=5))
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


# Our own lists ------------------------------------------------------------------------------------------------------------

SOURCE = {"name": "page", "url": "https://example.com", "as_of": date(2026, 1, 2), "confidence": "high"}
TOLD = {"source": "page", "as_of": "2026-01-02", "confidence": "high", "url": "https://example.com"}


def document(**given: Any) -> dict[str, Any]:
    return {
        "id": "mine",
        "version": "1",
        "date": date(2026, 1, 3),
        "currency": "USD",
        "source": "mine",
        "providers": {"p": "P", "accelerator": "any"},
        "sources": {"page": SOURCE},
        **given,
    }


def service(**given: Any) -> dict[str, Any]:
    return {"provider": "p", "model": "m", "source": "page", "rates": {"gb_months": "0.5"}, **given}


def instances(**given: Any) -> dict[str, Any]:
    return {"provider": "p", "source": "page", "accelerator": "H", "hourly": {"h8": [8, "4"]}, **given}


def lines(monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[dict[str, Any]]:
    monkeypatch.setattr(own, "read", lambda path: document(**given))
    compiled: list[dict[str, Any]] = own.compiled(Path("any.toml"), compiling.USUAL)
    return compiled


def test_a_price_of_a_service_carries_its_source_and_its_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, units of 10**9 bytes, dates and the price of the first region come through as they were written."""
    other = {**SOURCE, "as_of": date(2026, 1, 1), "confidence": "low"}
    graduated = {"gb_months": {"base": "0.50", "graduated": {"10": "0.4"}}, "write_units": {"base": "5", "per": 1000}}
    header, provider, row = lines(
        monkeypatch,
        sources={"page": SOURCE, "old": other},
        services=[
            service(region="r1", until=date(2026, 2, 1)),
            service(region="r1", **{"from": date(2026, 2, 1)}, rates=graduated, note="sale"),
            service(region="r2", source="old", rates={"gb_months": {"base": "1", "bytes": 1_000_000_000}}),
        ],
    )
    assert header["models"] == 1
    assert header["date"] == "2026-01-03"
    assert provider == {"provider": "p", "name": "P", "models": 1, "home": {"regex": "(?!)"}}
    steps = {"gb_months": {"base": "0.5", "graduated": {"10": "0.4"}}, "write_units": {"base": "5", "per": 1000}}
    assert row == {
        "model": "m",
        **TOLD,
        "prices": [
            {"until": "2026-02-01", "rates": {"gb_months": "0.5"}, "note": "where no region is named: the price of r1"},
            {"from": "2026-02-01", "rates": steps, "note": "sale; where no region is named: the price of r1"},
        ],
        "variants": [
            {"region": "r1", "until": "2026-02-01", "rates": {"gb_months": "0.5"}},
            {"region": "r1", "from": "2026-02-01", "rates": steps, "note": "sale"},
            {"region": "r2", "rates": {"gb_months": "1.073741824"}, "as_of": "2026-01-01", "confidence": "low"},
        ],
    }


def test_an_instance_is_priced_by_the_accelerator_and_an_accelerator_by_the_median(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six accelerators whose sixth has no end keep the price of all; the median counts each provider once, spot not at all."""
    header, _, eight, six, _, own_h, _, chip = lines(
        monkeypatch,
        providers={"p": "P", "q": "Q", "accelerator": "any"},
        accelerators=[{"id": "H", "names": ["NVIDIA H"]}],
        instances=[
            instances(hourly={"h8": [8, "4"], "h6": [6, "10"]}),
            instances(tier="spot", region="r", hourly={"h8": [8, "1"]}),
            instances(provider="q", hourly={"H": [1, "3"]}),
        ],
    )
    assert header["models"] == 4
    assert eight["count"] == 8
    assert eight["prices"] == [{"rates": {"gpu_seconds": "0.5"}}]
    assert eight["variants"] == [
        {"tier": "spot", "rates": {"gpu_seconds": "0.125"}, "note": "where no region is named: the price of r"},
        {"tier": "spot", "region": "r", "rates": {"gpu_seconds": "0.125"}},
    ]
    assert six["prices"] == [{"rates": {"gpu_seconds": {"base": "10", "per": 21600}}}]
    assert own_h["names"] == ["NVIDIA H"]
    # p asks (0.5 + 10/6) / 2 = 1.08333 on average, q 3: the median of both is 2.04167.
    assert chip["prices"][0]["rates"] == {"gpu_seconds": "2.0417"}
    assert chip["confidence"] == "low"
    assert chip["as_of"] == "2026-01-02"


@given(price=st.decimals("0.01", "500", places=6), count=st.integers(1, 16))
def test_all_accelerators_of_an_instance_cost_what_it_costs(price: Decimal, count: int) -> None:
    """Whatever the price and the number: an hour of all of them is exactly the price of the instance."""
    found = own.hourly(price, count)
    base, per = (Decimal(found), 3600) if isinstance(found, str) else (Decimal(found["base"]), found["per"])
    assert base * 3600 * count / per == price


WRONG_LISTS = {
    "no price": ({"services": [service(rates={"gb_months": "cheap"})]}, "'cheap' is no price"),
    "a float": ({"services": [service(rates={"gb_months": 0.5})]}, "0.5 is no price; write it as text"),
    "below zero": ({"services": [service(rates={"gb_months": "-1"})]}, "'-1' is no price"),
    "meter": ({"services": [service(rates={"gb_month": "1"})]}, "unknown meter 'gb_month'"),
    "key": ({"services": [service(rates={"gb_months": {"base": "1", "step": 1}})]}, r"unknown keys \['step'\]"),
    "source": ({"services": [service(source="page 2")]}, "no source 'page 2' among page"),
    "date": ({"sources": {"page": {**SOURCE, "as_of": "2026"}}, "services": [service()]}, "needs a name, a date"),
    "confidence": (
        {"sources": {"page": {**SOURCE, "confidence": "sure"}}, "services": [service()]},
        "high, low, medium",
    ),
    "unused": ({"sources": {"page": SOURCE, "b": SOURCE}, "services": [service()]}, "nothing is from b"),
    "twice": ({"services": [service(), service()]}, "two prices of tier '' and region ''"),
    "name": ({"services": [service(), service(model="n", names=["M"])]}, "both claim 'M'"),
    "count": (
        {
            "accelerators": [{"id": "H", "names": []}],
            "instances": [instances(), instances(tier="spot", hourly={"h8": [4, "1"]})],
        },
        "cannot all be true",
    ),
    "accelerator": ({"accelerators": [], "instances": [instances()]}, "no accelerator 'H' in the table"),
    "unsold": (
        {"accelerators": [{"id": "H", "names": []}, {"id": "X", "names": []}], "instances": [instances()]},
        "accelerator 'X': nobody sells it",
    ),
}


@pytest.mark.parametrize(("given", "named"), WRONG_LISTS.values(), ids=WRONG_LISTS)
def test_a_wrong_list_stops_the_compiler(given: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no source, no date or no meaning never becomes a price."""
    with pytest.raises(own.WrongList, match=named):
        lines(monkeypatch, **given)


def genai_rows() -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    rates = {"input_tokens": "1", "web_search_requests": "10"}
    batch = {"tier": "batch", "rates": {"input_tokens": "0.5"}}
    return [
        (
            {"provider": "p", "models": 2},
            [
                {"model": "a", "names": ["a-1"], "prices": [{"unknown": "why"}, {"rates": rates}], "variants": [batch]},
                {"model": "b", "prices": [{"rates": {"images": "1"}}]},
            ],
        )
    ]


def laid(monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    written = {"overlays": [], "models": [], "sources": {"page": SOURCE}, **given}
    monkeypatch.setattr(own, "read", lambda path: written)
    rows = genai_rows()
    assert own.overlay(rows, compiling.USUAL) == {"page": TOLD}
    return rows


def test_an_overlay_adds_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meters, variants and adjustments are added to every dated price; what genai-prices says stays as it was."""
    overlay = {
        "provider": "p",
        "source": "page",
        "having": "web_search_requests",
        "rates": {"output_tokens": "2.0"},
        "variants": [{"options": {"quality": "hd"}, "rates": {"images": "3"}}],
        "provisioned": "paid for",
        "adjust": [{"region": "us", "multiply": "1.10", "meters": "tokens", "from": date(2026, 3, 5)}],
    }
    new = {"provider": "p", "source": "page", "model": "c", "names": ["c-1"], "note": "n", "rates": {"images": "4"}}
    [(provider, [first, second, third])] = laid(monkeypatch, overlays=[overlay], models=[new])
    assert provider["models"] == 3
    assert second == genai_rows()[0][1][1]
    assert first == {
        "model": "a",
        "names": ["a-1"],
        "prices": [
            {"unknown": "why"},
            {"rates": {"input_tokens": "1", "output_tokens": "2", "web_search_requests": "10"}},
        ],
        "variants": [
            {"tier": "batch", "rates": {"input_tokens": "0.5"}},
            {"options": {"quality": "hd"}, "rates": {"images": "3"}},
            {"tier": "provisioned", "rates": {"input_tokens": "0", "output_tokens": "0"}, "note": "paid for"},
        ],
        "adjust": [
            {
                "region": "us",
                "multiply": "1.1",
                "meters": "tokens",
                "from": "2026-03-05",
                "source": "page",
                "as_of": "2026-01-02",
            },
        ],
        "overlays": ["page"],
    }
    assert third == {
        "model": "c",
        "names": ["c-1"],
        **TOLD,
        "prices": [{"rates": {"images": "4"}, "note": "n"}],
    }


OVER = {"provider": "p", "source": "page"}
WRONG_OVERLAYS = {
    "provider": ({**OVER, "provider": "q", "models": ["a"]}, "no provider 'q' any more"),
    "model": ({**OVER, "models": ["a", "gone"]}, "no gone of p any more"),
    "pattern": ({**OVER, "like": "^z"}, "no model of p is meant by it any more"),
    "all": ({**OVER}, "no model of p is meant by it any more"),
    "rates": ({**OVER, "models": ["a"], "rates": {"input_tokens": "1"}}, "has input_tokens now"),
    "variant": ({**OVER, "models": ["a"], "variants": [{"tier": "batch", "rates": {}}]}, "has such a variant now"),
    "variant key": ({**OVER, "models": ["a"], "variants": [{"tiers": "x", "rates": {}}]}, "unknown keys"),
    "adjust key": ({**OVER, "models": ["a"], "adjust": [{"regions": "x", "multiply": "1"}]}, "unknown keys"),
    "source": ({**OVER, "models": ["a"], "source": "elsewhere"}, "no source 'elsewhere'"),
}


@pytest.mark.parametrize(("overlay", "named"), WRONG_OVERLAYS.values(), ids=WRONG_OVERLAYS)
def test_an_overlay_that_no_longer_fits_stops_the_compiler(
    overlay: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is gone, or a price that genai-prices has learnt, is an error and never skipped."""
    with pytest.raises(own.WrongList, match=named):
        laid(monkeypatch, overlays=[overlay])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"model": "a"}, "genai-prices has a now"),
        ({"model": "c", "names": ["A-1"]}, "genai-prices has A-1 now"),
        ({"model": "c", "provider": "q"}, "no provider 'q'"),
    ],
)
def test_a_model_that_genai_prices_has_learnt_stops_the_compiler(
    given: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An added model never hides one of the source."""
    with pytest.raises(own.WrongList, match=named):
        laid(monkeypatch, models=[{**OVER, "rates": {"images": "1"}, **given}])


def test_an_update_takes_the_sources_word_where_an_overlay_no_longer_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer source may have learnt what we added: then ours is left out, said, and the rest is still laid on."""
    good = {**OVER, "models": ["b"], "rates": {"pages": "2"}}
    bad = {**OVER, "models": ["a"], "rates": {"input_tokens": "1"}}
    written = {
        "overlays": [bad, good],
        "models": [{**OVER, "model": "a", "rates": {"images": "1"}}],
        "sources": {"page": SOURCE},
    }
    monkeypatch.setattr(own, "read", lambda path: written)
    rows, skipped = genai_rows(), list[str]()
    own.overlay(rows, compiling.USUAL, skipped)
    assert ["has input_tokens now" in skipped[0], "genai-prices has a now" in skipped[1]] == [True, True]
    assert rows[0][1][0]["prices"][1]["rates"]["input_tokens"] == "1"
    assert rows[0][1][1]["prices"][0]["rates"]["pages"] == "2"
