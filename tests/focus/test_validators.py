"""Our FOCUS files before validators that are not ours: the official one on 1.2, and another's on 1.4, to which it converts them."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.analytics.focus import export_focus
from aifinops.analytics.focus_rules import lint
from aifinops.charges import LISTED
from aifinops.ledger.base import DAY_NS, Ledger
from aifinops.ledger.memory import MemoryLedger
from aifinops.testing.ledger import START, example_charge, random_charges

CRITERIA = (
    "ACCOUNT_NAMING_SUPPORTED", "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED", "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "PRICING_BILLING_CURRENCY_DIFFERENCES_SUPPORTED", "PUBLIC_PRICE_LIST_SUPPORTED", "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "SUB_ACCOUNT_SUPPORTED", "TAGGING_SUPPORTED", "UNIT_PRICING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
)  # fmt: skip
"""What our files support; rules of other features are skipped."""

FALSE_FAILURES = {"InvoiceId-C-005-C"}
"""Rules of model 1.2.0.1 that lack their condition: this one demands an invoice of rows that have none."""

NOT_ALL_DATA_SETS = 3
"""The toolkit's exit status where it made some data sets of FOCUS 1.4 and not all."""

LEAST_PASSED = 250
"""So many rules must have been judged: a validator that skips everything would pass everything."""

_TOTAL = re.compile(r"Total:\s*(\d+) \| Pass:\s*(\d+) \| Fail:\s*(\d+) \| Skipped:\s*(\d+)")


def program(name: str) -> Path:
    """A validator in this environment or on the path; the test is skipped without it."""
    here = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --group focus (the official one needs Python 3.12)")
    return Path(found)


def official(path: Path, folder: Path) -> tuple[int, set[str]]:
    """How many rules passed, and which failed. Its exit status says nothing: it is 0 in any case."""
    validator = program("focus-validator")
    (package,) = validator.resolve().parent.parent.glob("lib/python3*/site-packages/focus_validator")
    folder.mkdir()
    # It opens a file of its own by a path that begins in the working directory, and writes a log there.
    (folder / "focus_validator").symlink_to(package)
    done = subprocess.run(
        [validator, "--data-file", path, "--validate-version", "1.2", "--block-download", "--focus-dataset", "CostAndUsage",
         "--applicability-criteria", ",".join(CRITERIA)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    total = _TOTAL.search(done.stdout)
    assert total is not None, done.stdout[-2000:] + done.stderr[-2000:]
    failed = set(re.findall(r"^❌ (\S+?):", done.stdout, re.MULTILINE))
    assert len(failed) == int(total[3])
    return int(total[2]), failed


def realistic() -> Ledger:
    """A week of several teams: priced calls of three providers, a discount, credits, GPU time, storage, a tool, an unknown model."""
    af.init()
    for day in range(7):
        at = START + day * DAY_NS
        for team in ("search", "support"):
            tags = {"team": team, "project": f"{team}-prod", "environment": "prod", "customer": f"c{day}"}
            tokens = {"input_tokens": 1_234_567 + day, "cache_read_tokens": 70_000, "output_tokens": 33_333}
            for provider, model in (
                ("openai", "gpt-5-mini"),
                ("anthropic", "claude-sonnet-4-5"),
                ("openai", "nobody-knows"),
            ):
                af.record(model=model, provider=provider, operation="chat", service="llm", usage=tokens, tags=tags, at=at)  # fmt: skip
            af.record(
                provider="pinecone",
                operation="query",
                service="vector",
                usage={"read_units": 12},
                cost="$0.0002",
                at=at,
            )
    ledger = runtime.get().ledger
    ledger.append_many(
        [
            example_charge(1, raw={LISTED: 400_000}),
            example_charge(2, amount=-1_000_000_000, lines=(), quantities={}, basis="reported"),
            example_charge(3, corrects=example_charge(1).id, status="correction", amount=-500, lines=(), quantities={}),
            example_charge(4, amount=0, basis="committed", lines=(), lower=0, upper=0, raw={LISTED: 350_500}),
            example_charge(
                5, provider="aws", service="gpu", operation="gpu", model="NVIDIA H100", response_model="", tier="", amount=1_366_666_667,
                quantities={"gpu_seconds": 1200}, lines=(("gpu_seconds", 1_366_666_667),),
            ),
        ]
    )  # fmt: skip
    return ledger


def odd() -> Ledger:
    """Charges of every kind, with names, amounts and quantities that no real ledger has."""
    made = MemoryLedger()
    made.append_many(random_charges(8, 400))
    return made


def converted(path: Path, out: Path) -> Path:
    """Our file as the toolkit makes it FOCUS 1.4, inventing nothing: its other data sets need what only a provider knows."""
    done = subprocess.run(
        [program("focus-toolkit"), "convert", "--cost-and-usage", path, "--out", out],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    found = out / "focus_1_4_cost_and_usage.csv"
    assert done.returncode in {0, NOT_ALL_DATA_SETS}, done.stdout + done.stderr
    assert found.exists(), done.stdout + done.stderr
    return found


def judged(path: Path) -> tuple[int, str]:
    """What the toolkit says of a Cost and Usage file of FOCUS 1.4: exit status and text."""
    done = subprocess.run(
        [program("focus-toolkit"), "validate", "--dataset", "cost-and-usage", path],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


LEDGERS = {"realistic": realistic, "odd": odd}


@pytest.mark.parametrize("name", list(LEDGERS))
def test_the_official_validator_passes_our_files(name: str, tmp_path: Path) -> None:
    """No rule of FOCUS 1.2 fails but the one that is known to be wrong, and most that can be judged were."""
    program("focus-validator")
    done = export_focus(LEDGERS[name](), tmp_path / "f.csv", tags=None)
    assert done.rows > 20
    passed, failed = official(tmp_path / "f.csv", tmp_path / "run")
    assert failed - FALSE_FAILURES == set()
    assert passed >= LEAST_PASSED


def test_the_official_validator_judges(tmp_path: Path) -> None:
    """A file with a wrong currency, a wrong unit and a quantity without one fails by just these columns."""
    program("focus-validator")
    export_focus(odd(), tmp_path / "f.csv")
    text = (tmp_path / "f.csv").read_text(encoding="ascii")
    broken = text.replace(",EUR,", ",UDS,").replace(",1000000 Tokens,", ",1M Tokens!,").replace(",Tokens,", ",,")
    (tmp_path / "broken.csv").write_text(broken, encoding="ascii")
    _, failed = official(tmp_path / "broken.csv", tmp_path / "run")
    columns = {rule.split("-")[0] for rule in failed}
    assert columns >= {"BillingCurrency", "ConsumedUnit", "PricingUnit"}


@pytest.mark.parametrize("name", list(LEDGERS))
def test_another_validator_passes_our_files_as_of_1_4(name: str, tmp_path: Path) -> None:
    """It takes our file for FOCUS 1.2, converts every row of it to 1.4, and finds nothing wrong."""
    program("focus-toolkit")
    path = tmp_path / "f.csv"
    done = export_focus(LEDGERS[name](), path, tags=None)
    newer = converted(path, tmp_path / "out")
    status, said = judged(newer)
    assert status == 0, said
    with newer.open(encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == done.rows


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("AI and Machine Learning", "AI"), ("x_ProcessingTier", "ProcessingTier"), ("T00:00:00Z", " 00:00:00")],
)
def test_the_other_validator_judges(right: str, wrong: str, tmp_path: Path) -> None:
    """What the official one does not see: a category that is none, a key without x_, a date in another form."""
    program("focus-toolkit")
    export_focus(odd(), tmp_path / "f.csv")
    newer = converted(tmp_path / "f.csv", tmp_path / "out")
    text = newer.read_text(encoding="utf-8")
    assert right in text
    newer.write_text(text.replace(right, wrong), encoding="utf-8")
    assert judged(newer)[0] == 1


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_our_lint_has_nothing_to_say_of_files_of_others(provider: str, tmp_path: Path) -> None:
    """Files as the clouds write them, with commitments, taxes, credits and purchases, made by the toolkit."""
    done = subprocess.run(
        [program("focus-toolkit"), "generate", "--provider", provider, "--focus-version", "1.2", "--rows", "300", "--out", tmp_path],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert len({row["ChargeCategory"] for row in rows}) > 1
    assert list(lint(path)) == []
