"""The quota file: what it says, and what is said of mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifinops.errors import ConfigurationError
from aifinops.gpu.quota import FairShare, Quota, Quotas, read_quotas, read_table

LAB = """
name = "research"

[pools.h100]
gpus = 64
accelerator = "H100 SXM"
labels = { "nvidia.com/gpu.product" = "NVIDIA-H100-80GB-HBM3" }

[pools.l4]
gpus = 8

[cohorts.lab]
h100 = 8

[priorities]
batch = 0
urgent = 1000

[fair_share]
half_life_hours = 24
entry_penalty_minutes = 10
patience_hours = 6

[teams.nlp]
cohort = "lab"
weight = 2
h100 = { nominal = 24, borrowing_limit = 16, lending_limit = 12 }

[teams.vision]
cohort = "lab"
h100 = 16
l4 = 4

[teams.ops]
l4 = 4
"""


@pytest.fixture
def lab(tmp_path: Path) -> Quotas:
    file = tmp_path / "quotas.toml"
    file.write_text(LAB)
    return read_quotas(file)


def test_a_file(lab: Quotas) -> None:
    """Every key of the file has its place, and what is left out its default."""
    assert (lab.name, lab.pools["h100"].gpus, lab.pools["h100"].accelerator) == ("research", 64, "H100 SXM")
    assert lab.fair_share == FairShare(86_400, 600, 21_600)
    assert lab.quota("nlp", "h100") == Quota(24, 16, 12)
    assert lab.quota("vision", "h100") == Quota(16)
    assert lab.teams["nlp"].weight == 2
    assert (lab.rank("urgent"), lab.rank("normal"), lab.rank(7)) == (1000, 100, 7)
    assert lab.pool("l4").gpus == 8


def test_hard_limits(lab: Quotas) -> None:
    """A team never holds more than its own and what it may borrow of what others lend and the cohort shares."""
    assert lab.hard_limit("nlp", "h100") == 40  # 24 + min(16, 16 of vision + 8 shared)
    assert lab.hard_limit("vision", "h100") == 36  # 16 + 12 of nlp + 8 shared
    assert lab.hard_limit("ops", "l4") == 4  # no cohort
    assert lab.hard_limit("ops", "h100") == 0
    assert lab.hard_limit("nlp", "l4") == 0  # no row there: it may not borrow either


def test_names_that_are_not_there(lab: Quotas) -> None:
    """A wrong name is answered with the nearest one and what to type."""
    with pytest.raises(ConfigurationError, match=r"has no team 'npl'\. Did you mean nlp\? Write \[teams\.npl\]"):
        lab.team("npl")
    with pytest.raises(ConfigurationError, match=r"no priority 'urgnt'\. Did you mean urgent\? Write urgnt = 100"):
        lab.rank("urgnt")
    with pytest.raises(ConfigurationError, match=r"has the pools h100, l4; say which one: pool='h100'"):
        lab.pool()


WRONG = {
    "pools = 3": r"pools = 3: write a table: \[pools\]",
    "[pools.a]\ngpus = 0\n[teams.t]\na = 0": "pools.a.gpus = 0: write a whole number, 1 or more",
    "[pools.a]\ngpu = 1": r"pools.a = \{'gpu': 1\}: write \[pools.a\] and below it gpus = 64",
    "[pools.a]\ngpus = 1\ncolor = 1": r"no key pools.a.color\. (Did you mean|Known)",
    "[teams.t]\na = 1": r"pools = 'nothing': write a pool",
    "[pools.a]\ngpus = 1": r"teams = 'nothing': write a team: \[teams.nlp\] and below it a = 8",
    "[pools.a]\ngpus = 1\n[teams.t]\nb = 1": r"no key teams.t.b\.",
    "[pools.a]\ngpus = 1\n[teams.t]\na = -1": "teams.t.a.nominal = -1: write a whole number, 0 or more",
    "[pools.a]\ngpus = 1\n[teams.t]\na = true": "teams.t.a = True: write { nominal = 16",
    "[pools.a]\ngpus = 1\n[teams.t]\na = { nominal = 1, lending_limit = 2 }": r"lending_limit = 2: write 1 \(all of it\) at most",
    "[pools.a]\ngpus = 1\n[teams.t]\na = { nominal = 1, borrow = 2 }": r"no key teams.t.a.borrow\. Did you mean borrowing_limit",
    "[pools.a]\ngpus = 1\n[teams.t]\nweight = 0": "teams.t.weight = 0: write a number above 0",
    "[pools.a]\ngpus = 9\n[cohorts.c]\na = 2\n[teams.t]\na = 5\n[teams.u]\na = 4": (
        "pools.a.gpus = 9: write 11 or more, or less nominal quota: promised are t 5, u 4 and 2 shared by cohorts"
    ),
    "[pools.a]\ngpus = 1\n[teams.t]\na = 1\n[fair_share]\nhalf_life = 1": r"no key fair_share.half_life\. Did you mean half_life_hours",
    "[pools.a]\ngpus = 1\n[cohorts]\nc = 3": r"cohorts.c = 3: write \[cohorts.c\] and below it a = 8",
    "[pools.a]\ngpus = 1\n[teams]\nt = 3": r"teams.t = 3: write \[teams.t\] and below it a = 8",
    "[teams": "is no valid TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes(text: str, tmp_path: Path) -> None:
    """Every mistake is named with its place, its value and what to type."""
    file = tmp_path / "quotas.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=WRONG[text]) as caught:
        read_quotas(file)
    assert str(file) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read: No such file"):
        read_quotas(tmp_path / "none.toml")


def test_short_forms() -> None:
    """A number is a pool of so many, and a quota without limits."""
    quotas = read_table({"pools": {"a": 8}, "teams": {"t": {"a": 8}}})
    assert quotas.pool().gpus == 8
    assert quotas.quota("t", "a") == Quota(8)
