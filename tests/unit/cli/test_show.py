"""What a report looks like."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aifinops.analytics.reports import report
from aifinops.charges import Charge, new_id
from aifinops.cli import show
from aifinops.cli.doctor import Finding
from aifinops.ledger.memory import MemoryLedger
from aifinops.tags import make_tags


def charge(team: str, cents: int | None, **more: object) -> Charge:
    """A charge of whole cents; None has no price."""
    fields = {
        "model": "gpt-4o",
        "quantities": {"input_tokens": 1000, "output_tokens": 10},
        "basis": "unknown" if cents is None else "priced",
        **more,
    }
    return Charge(
        id=new_id(),
        at=1,
        provider="openai",
        operation="chat",
        amount=None if cents is None else cents * 10_000_000,
        tags=make_tags({"team": team}),
        **fields,  # type: ignore[arg-type]
    )


def printed(*charges: Charge, by: str = "team", encoding: str = "utf-8", width: int = 120) -> str:
    """The report over these charges, as text."""
    ledger = MemoryLedger()
    ledger.append_many(charges)
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width, highlight=False)
    show.report(report(ledger, by=by, now_ns=2), out, "Spend")
    out.file.flush()
    return raw.getvalue().decode(encoding)


def test_rows_totals_and_shares() -> None:
    """The dearest comes first, shares are of the total, and the total is at the foot."""
    lines = printed(charge("search", 25), charge("support", 75)).splitlines()
    body = [line for line in lines if "%" in line]
    assert [line.split()[0] for line in body] == ["support", "search"]
    assert [line.split()[-1] for line in body] == ["75%", "25%"]
    assert body[0].count("█") == 12
    foot = lines[-1].split()
    assert (foot[0], foot[-1]) == ("total", "$1.00")


def test_unpriced_calls_are_apart() -> None:
    """What has no price is in a table of its own and in no amount."""
    text = printed(charge("search", 25), charge("lab", None), charge("search", None))
    above, below = text.split("Without a price")
    assert "lab" not in above
    assert [line.split() for line in below.splitlines()[2:]] == [["search", "1", "1,010"], ["lab", "1", "1,010"]]
    assert "$0.25" in above
    assert above.split("total")[1].split()[:2] == ["2", "2,000"]


def test_nothing_but_unpriced_calls() -> None:
    """No table of costs is shown when there are none."""
    text = printed(charge("lab", None))
    assert "$" not in text
    assert "Without a price" in text


def test_estimates_are_marked() -> None:
    """An estimated amount has a tilde, and the bounds of the total are told."""
    text = printed(charge("search", 30, basis="estimated", lower=10**8, upper=5 * 10**8))
    assert "~$0.30" in text
    assert "between $0.10 and $0.50" in text


def test_gpu_seconds_have_a_column_when_there_are_any() -> None:
    """GPU time is shown beside tokens."""
    assert "GPU s" not in printed(charge("search", 1))
    assert "7.5" in printed(charge("search", 1, quantities={"gpu_seconds": Decimal("7.5")}))


def test_currencies_are_never_added() -> None:
    """Each currency has its own total and its own shares."""
    text = printed(charge("search", 100), charge("search", 300, currency="EUR"))
    assert text.count("100%") == 2
    assert "$1.00" in text
    assert "€3.00" in text
    assert "4.00" not in text


def test_empty() -> None:
    """An empty ledger is said to be empty."""
    assert "No calls" in printed()


@pytest.mark.parametrize("team", ["[red]x[/red]", "a\x1b[31mb", "line\nbreak", ""])
def test_tags_are_harmless(team: str) -> None:
    """Markup and escape sequences in a tag are shown as text."""
    text = printed(charge(team, 1))
    assert "\x1b" not in text
    wanted = "".join(letter if letter.isprintable() else "?" for letter in team) or "(none)"
    assert wanted in text


def test_plain_terminals() -> None:
    """Where block characters cannot be written, the bars are made of `#`."""
    text = printed(charge("search", 25), charge("support", 75), encoding="ascii")
    assert "############ " in text


@given(st.decimals(0, 1, places=6))
def test_bars(share: Decimal) -> None:
    """A bar is as long as its share, never longer than its width, and never empty for what is there."""
    text = show.bar(share)
    eighths = text.count("█") * 8 + sum("▏▎▍▌▋▊▉".index(letter) + 1 for letter in text if letter != "█")
    assert abs(eighths - share * 128) <= 1
    assert (eighths > 0) == (share > 0)
    assert len(show.bar(share, blocks=False)) <= 16


def test_findings() -> None:
    """Each finding has its line and its mark."""
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=120)
    show.findings([Finding("ledger", "good", "fine"), Finding("prices", "bad", "broken [x]")], out)
    out.file.flush()
    assert [" ".join(line.split()) for line in raw.getvalue().decode().splitlines()] == [
        "+ ledger fine",
        "! prices broken [x]",
    ]


LONG = "bedrock/eu-central-1/anthropic.claude-sonnet-4-5-20250929-v1:0 of the search team"


def test_a_narrow_terminal_shortens_names_and_no_number() -> None:
    """A name that does not fit ends in an ellipsis; every row stays one line, and amounts are whole."""
    text = printed(charge(LONG, 123_456_789), charge(LONG, None), width=80)
    rows = [line for line in text.splitlines() if line.lstrip().startswith("bedrock")]
    assert len(rows) == 2
    assert all("…" in row and len(row) <= 80 for row in rows)
    assert "$1,234,567.89" in rows[0]
    assert "100%" in rows[0]


def test_a_file_gets_whole_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks at a terminal no name is broken or shortened, whatever COLUMNS says."""
    monkeypatch.setenv("COLUMNS", "40")
    ledger = MemoryLedger()
    ledger.append_many([charge(LONG * 3, 25), charge(LONG * 3, None)])
    show.report(report(ledger, by="team", now_ns=2), show.console())
    text = capsys.readouterr().out
    assert text.count(LONG * 3) == 2
    assert max(map(len, text.splitlines())) < 600


def test_what_was_amortised_leaves_room_for_names() -> None:
    """In a terminal of 90 columns the bars go first; names, amounts and shares stay whole."""
    ledger = MemoryLedger()
    ledger.append(charge("the search team", 25))
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="utf-8"), width=90, highlight=False)
    show.report(report(ledger, by="team", now_ns=2, capacity=()), out)
    out.file.flush()
    (row,) = (line for line in raw.getvalue().decode().splitlines() if "the search team" in line)
    assert row.split()[-4:] == ["$0.25", "$0.00", "$0.25", "100%"]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_what_does_not_fit_is_left_out_whole(width: int) -> None:
    """Names, calls, cost, change and trend stay in any terminal; no line is longer than it, and no number is cut."""
    ledger = MemoryLedger()
    day = 86_400 * 10**9
    ledger.append_many(
        [
            charge("the search team", 12_345_678, quantities={"input_tokens": 10**9, "output_tokens": 10**8}),
            charge("support", 25),
        ]
    )
    ledger.append_many([replace(one, id=new_id(), at=one.at - 8 * day) for one in ledger.rows()])
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="utf-8"), width=width, highlight=False)
    made = report(ledger, by="team", since=1 - 6 * day, now_ns=2, compare=True, trend=True)
    show.report(made, out, unit_cost=width == 200)
    out.file.flush()
    lines = raw.getvalue().decode().splitlines()
    assert all(len(line) <= width for line in lines[:4])
    (row,) = (line for line in lines if "$123,456.78" in line and "total" not in line)
    assert row.startswith(" the search team") or width < 80
    assert ("1,000,000,000" in row) == (width >= 100)
    assert ("█" * 5 in row) == (width >= 140)


def test_sparks() -> None:
    """Each mark is as high as its share of the highest; nothing is a dot, unknown a question mark; long ones are added up in pieces."""
    one, none = Decimal(1), None
    assert show.spark([one, one / 2, one / 1000, Decimal(0), none]) == "█▄▁·?"
    assert show.spark([one, one / 2, one / 1000, Decimal(0), none], blocks=False) == "%=._?"
    assert show.spark([one] * 64, width=31) == "█" * 21 + "▃"
    assert show.spark([]) == ""
    assert show.spark([none, one, none, none], width=2) == "█?"
