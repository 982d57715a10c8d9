"""The page of a report and the table in a notebook: what they show, and that no text from a call does anything."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import browser
import pytest

from aifinops.analytics.charts import _ticks
from aifinops.analytics.markup import compact, element
from aifinops.analytics.reports import Report, report
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard
from aifinops.budgets.standing import Standing, present
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.charges import Charge
from aifinops.clock import to_ns
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import NANO
from aifinops.testing.clock import FakeClock
from aifinops.testing.ledger import example_charge

NOW = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
DAY = 86_400 * NANO
EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>&amp;"


def charge(number: int, dollars: str | None, days_ago: float, team: str = "search", **changes: Any) -> Charge:
    amount = None if dollars is None else int(Decimal(dollars) * NANO)
    basis = "unknown" if amount is None else "priced"
    values: dict[str, Any] = {
        "amount": amount,
        "basis": basis,
        "lower": amount,
        "upper": amount,
        "tags": {"team": team},
    }
    return example_charge(number, **(values | {"at": NOW - int(days_ago * DAY)} | changes))


CHARGES = [
    *(charge(n, f"{n}.5", n, "search", model="gpt-5") for n in range(1, 12)),
    *(charge(100 + n, "2", n / 2, "support", model="claude-sonnet-4-5") for n in range(1, 9)),
    charge(200, "3", 1, "lab", basis="estimated", lower=NANO, upper=5 * NANO),
    charge(201, None, 2, "lab", model="house-llama"),
    charge(202, "9", 9, "retired"),
    charge(203, "4", 1, EVIL, model=EVIL),
    charge(204, "6", 1, "search", currency="EUR"),
]


def made(charges: Sequence[Charge] = CHARGES, by: str = "team", since: str | None = "7d", **arguments: Any) -> Report:
    ledger = MemoryLedger()
    ledger.append_many(charges)
    return report(ledger, by, since=since, now_ns=NOW, **arguments)


def standings() -> list[Standing]:
    """Three budgets: one that has room, one nearly spent, one of tokens with something held."""
    store, clock = MemoryStore(), FakeClock(datetime(2026, 11, 24, 12, tzinfo=UTC))
    guard = Guard(store, clock)
    for number, (name, limit, unit, spent, held) in enumerate(
        [
            ("roomy", "$10", "USD", NANO, 0),
            ("search/eu", "$2", "USD", 19 * NANO // 10, 0),
            ("words", "2M output_tokens", "output_tokens", 10**12, 10**11),
        ]
    ):
        active = ActiveBudget(Budget.parse(limit, name=name, per="day", max_wait=0))
        guard.settle(guard.reserve([active], {unit: spent}, id=f"s{number}", at=clock.time_ns()), {unit: spent})
        if held:
            guard.reserve([active], {unit: held}, id=f"h{number}", at=clock.time_ns())
    return present(store, clock.time_ns())


class Reader(HTMLParser):
    """A page taken apart: elements, what they refer to, and the text of each."""

    VOID = frozenset({"meta", "link", "br", "img", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "data", "action"}]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self) -> str:
        return " ".join(data for tag, data in self.texts if tag not in {"script", "style"})


class TestPage:
    """`to_html()`."""

    def test_it_is_well_formed_and_needs_nothing(self) -> None:
        """Every element is closed, nothing is loaded from anywhere, and the policy forbids it besides."""
        page = made().to_html(budgets=standings())
        read = Reader(page)
        assert read.open == []
        assert read.references == ["data:,"]
        assert "default-src 'none'" in page
        assert not re.search(r"url\(|@import|https?://", page)

    def test_no_text_from_a_call_does_anything(self) -> None:
        """A title, a team and a model that are markup are shown as what they are; there is one script, ours."""
        page = made(where={"team": [EVIL, "search"]}).to_html(title=EVIL, budgets=standings())
        read = Reader(page)
        assert read.tags.count("script") == 1
        assert "img" not in read.tags
        assert read.handlers == []
        assert read.said().count(EVIL) >= 5

    def test_control_and_direction_characters_are_harmless(self) -> None:
        """A tag cannot turn the direction of writing, hide in a null, or break the encoding of the file."""
        page = made([charge(1, "1", 1, "a\x00b\u202ec\ud800d\ne")]).to_html()
        page.encode()
        assert "a?b?c?d?e" in page

    def test_what_it_shows(self) -> None:
        """Total, change, what is estimated, what has no price, each currency, models and budgets."""
        said = Reader(made().to_html(title="Spend of the week", budgets=standings())).said()
        for text in (
            "Spend of the week", "17 Nov 2026, 12:00 UTC to 24 Nov 2026, 12:00 UTC", "≈ $54.50", "€6.00", "Spend by day in USD", "Spend by day in EUR",
            "Without a price", "1 call", "at least", "retired", "gone", "new", "house-llama", "claude-sonnet-4-5", "roomy", "95% spent",
            "100k held by calls in flight",
        ):  # fmt: skip
            assert text in said, text

    def test_the_figures_of_the_chart_are_those_of_the_report(self) -> None:
        """The table below the chart adds up to the total of the report."""
        page = made().to_html()
        figures = page.split("<details>")[1].split("</details>")[0]
        totals = re.findall(r"<tr><th scope=\"row\">.*?</tr>", figures)
        # The columns: one a team, then the total, then what is estimated and what has no price.
        amounts = [Decimal(re.findall(r"<td>\$([\d.,]+)</td>", row)[-2].replace(",", "")) for row in totals]
        assert sum(amounts) == Decimal("54.50")

    def test_a_report_that_was_not_asked_for_it_gets_its_charts(self) -> None:
        """`report().to_html()` has trend and comparison; without a beginning there is nothing to compare with."""
        assert 'class="plot"' in made().to_html()
        assert "against" in made().to_html()
        assert "against" not in made(since=None).to_html()
        assert 'class="plot"' in made(since=None).to_html()

    def test_keys_of_time_are_one_colour(self) -> None:
        """By day, the days are on the axis and not in the legend."""
        page = made(by="day").to_html()
        assert 'class="s1' in page
        assert 'class="s2' not in page

    def test_many_groups_share_the_last_colour(self) -> None:
        """Seven have colours of their own, all others are one; every one is in the table."""
        charges = [charge(n, str(n), 1, f"team{n:02}") for n in range(1, 20)]
        page = made(charges).to_html()
        assert "12 others" in page
        assert all(f"team{n:02}" in page for n in range(1, 20))

    def test_by_nothing_and_cut(self) -> None:
        """A report without keys has its total; one that was cut has its others."""
        assert "In all" in made(by="").to_html()
        assert "others)" in made(top=2, trend=True, compare=True).to_html()

    def test_a_page_can_be_opened_however_many_groups_there_are(self) -> None:
        """Of two thousand customers five hundred have rows and the others one; the page stays below two megabytes and adds up."""
        charges = [charge(n, "1", 1 + n % 5, f"customer{n:04}") for n in range(2000)]
        page = made(charges).to_html()
        assert page.count('<th scope="row">customer') == 500
        assert "(1,500 others)" in page
        assert "$2,000.00" in page
        assert len(page) < 2_000_000

    def test_a_cut_report_stays_cut(self) -> None:
        """`top` holds on the page, too, also where the page had to ask the ledger again."""
        page = made([charge(n, str(n), 1, f"t{n}") for n in range(1, 9)], top=3).to_html()
        assert "(5 others)" in page
        assert '<th scope="row">t1</th>' not in page

    def test_a_period_that_has_not_begun(self) -> None:
        """Nothing to compare with, and nothing to fail for."""
        assert "No calls" in made(since="2026-12-01").to_html()

    def test_nothing_to_show(self) -> None:
        """An empty report is a page that says so, with its budgets; one of unpriced calls shows no amount."""
        empty = Reader(made([]).to_html(budgets=standings())).said()
        assert "No calls" in empty
        assert "roomy" in empty
        dark = Reader(made([charge(1, None, 1)]).to_html()).said()
        assert "unknown" in dark
        assert "Without a price" in dark

    @pytest.mark.parametrize("length", [1, 30, 600, 24 * 60 * 8, 24 * 60 * 300])
    def test_every_kind_of_period(self, length: int) -> None:
        """Minutes, hours, days and months all have their axis; no label stands twice."""
        charges = [charge(n, "1", n * length / 1440 / 30) for n in range(30)]
        page = made(charges, since=None).to_html()
        labels = re.findall(
            r"<span[^>]*left:[\d.]+%[^>]*>([^<]+)</span>", page.split('class="times"')[1].split("</div>")[0]
        )
        assert 1 <= len(labels) <= 7
        assert len(set(labels)) == len(labels)


class TestParts:
    """What a page is made of."""

    @pytest.mark.parametrize("highest", ["0", "0.0000003", "0.7", "1", "99.99", "100", "101", "149", "87654.3"])
    def test_ticks_are_round_and_reach_above(self, highest: str) -> None:
        """From zero to above the highest, in at most seven equal steps of 1, 2, 2.5 or 5."""
        ticks = _ticks(Decimal(highest))
        assert ticks[0] == 0
        assert ticks[-1] >= Decimal(highest)
        assert 2 <= len(ticks) <= 7
        step = ticks[1]
        assert [b - a for a, b in itertools.pairwise(ticks)] == [step] * (len(ticks) - 1)
        assert step.normalize().as_tuple().digits in {(1,), (2,), (2, 5), (5,)}

    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0"),
            (9_999, "9,999"),
            (10_000, "10.0k"),
            (123_456, "123k"),
            (1_000_000, "1.00M"),
            (41_200_000, "41.2M"),
            (9 * 10**12, "9000B"),
        ],
    )
    def test_counts_for_people(self, count: int, text: str) -> None:
        """Three digits and a unit."""
        assert compact(count) == text

    def test_elements(self) -> None:
        """Attributes are escaped and may be left out."""
        assert element("p", "a<b>", class_="x", title='"&<', id=None) == '<p class="x" title="&quot;&amp;&lt;">a<b></p>'


# --- colours ---------------------------------------------------------------------------------------------------------


def _themes() -> dict[str, dict[str, str]]:
    css = resources.files("aifinops.analytics").joinpath("data", "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    light, dark, paper = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block)) for block in blocks)
    return {"light": light, "dark": light | dark, "paper": light | paper}


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * letter for letter in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TEXTS = [
    ("ink", "page"), ("ink", "panel"), ("soft", "page"), ("soft", "panel"), ("accent", "panel"), ("up", "up-back"), ("up", "panel"),
    ("down", "down-back"), ("down", "panel"), ("soft", "plain-back"), ("warn", "warn-back"), ("warn", "panel"), ("ink", "warn-back"),
    ("page", "ink"),
]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_contrast(theme: str) -> None:
    """Text has the 4.5:1 and graphics the 3:1 that WCAG 2.2 asks for (1.4.3, 1.4.11), in the light, in the dark and on paper."""
    colours = _themes()[theme]
    for text, back in TEXTS:
        assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for graphic in (*(f"s{n}" for n in range(8)), "accent"):
        assert _contrast(colours[graphic], colours["panel"]) >= 3, graphic


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser."""
    if browser.MISSING:
        pytest.skip(browser.MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=browser.PATH, args=list(browser.ARGUMENTS))
        yield found
        found.close()


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(made(by="team,model").to_html(budgets=standings()), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 768, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_in_a_browser(chromium: Any, page_file: Path, width: int, scheme: str, script: bool) -> None:
    """In the light and the dark, on a desk, a tablet and a phone, with JavaScript and without: no error, no request, nothing too wide."""
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert errors == []
    assert requests == [page_file.as_uri()]
    assert page.title().startswith("Spend, ")
    if script:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) > 600) == (scheme == "light")
    columns = page.locator(".plot").first.locator(".col")
    assert columns.count() == 8
    box = columns.nth(6).bounding_box()
    assert box is not None
    assert box["height"] > 100
    assert page.locator("details table").first.is_hidden()
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()
    context.close()


def test_a_table_is_sorted_by_its_heads(chromium: Any, page_file: Path) -> None:
    """A click on a head sorts by numbers, not by their text, and says so; another turns it round."""
    page = chromium.new_page()
    page.goto(page_file.as_uri())
    head = page.locator("table.sortable thead th.calls")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    calls = [
        int(text.replace(",", "")) for text in page.locator("table.sortable tbody td.calls").all_inner_texts() if text
    ]
    assert calls == sorted(calls, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    page.close()


def test_a_column_says_what_it_is(chromium: Any, page_file: Path) -> None:
    """Under the pointer, the step with its amount and what it is made of."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto(page_file.as_uri())
    page.locator(".plot").first.locator(".col").nth(6).hover()
    told = page.locator("#tip").inner_text()
    assert told.startswith("23 Nov 2026: $")
    assert "search / gpt-5: $1.50" in told
    page.close()


def test_on_paper(chromium: Any, page_file: Path) -> None:
    """Printed from the dark it is black on white, and no table is cut off at the edge of an A4 page."""
    context = chromium.new_context(viewport={"width": 688, "height": 1000}, color_scheme="dark")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(chromium: Any, page_file: Path, scheme: str) -> None:
    """axe-core finds nothing to mend by the rules of WCAG 2.2 A and AA, contrast as drawn among them."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = chromium.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    found = axe.Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found.response["violations"]] == []
    context.close()


class TestNotebook:
    """`_repr_html_()`."""

    def test_a_compact_table(self) -> None:
        """Rows, totals, and what is estimated and unpriced; no page around it, no style that a dark notebook would not bear."""
        html = made(compare=True)._repr_html_()
        read = Reader(html)
        assert read.open == []
        assert not {"html", "style", "script", "body"} & set(read.tags)
        assert "#" not in re.sub(r"&#x?\w+;", "", html)
        said = read.said()
        for text in ("search", "total", "≈ $54.50", "have no price", "is estimated", "gone", "change"):
            assert text in said, text

    def test_it_is_escaped(self) -> None:
        """A tag that is markup is text."""
        read = Reader(made()._repr_html_())
        assert EVIL in read.said()
        assert not {"script", "img"} & set(read.tags)

    def test_it_is_not_endless(self) -> None:
        """A thousand customers are twenty-five rows and a word about the rest."""
        html = made([charge(n, "1", 1, f"team{n}") for n in range(1000)])._repr_html_()
        assert html.count("<tr>") == 27
        assert "975 more rows" in html

    def test_nothing(self) -> None:
        """An empty report says so."""
        assert "No calls" in made([])._repr_html_()
