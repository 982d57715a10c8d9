"""User price lists: read whole or not at all, and every mistake named."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.pricing import lists
from aifinops.pricing.book import PriceBook, from_file, load_bundled
from aifinops.pricing.lists import read_list
from aifinops.usage import Sku, Usage

BUNDLED = Path(lists.BUNDLED)

GOOD = {
    "id": "mine",
    "models": [{"provider": "openai", "model": "house-model", "rates": {"input_tokens": "1", "output_tokens": "2"}}],
}


def write(folder: Path, content: object, name: str = "prices.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    """Both forms give the same prices, and floats are read as they are written."""
    toml = 'id = "mine"\n[[models]]\nprovider = "openai"\nmodel = "house-model"\nrates = {input_tokens = 0.1, output_tokens = 2}\n'
    text = '{"id": "mine", "models": [{"provider": "openai", "model": "house-model", "rates": {"input_tokens": 0.1, "output_tokens": 2}}]}'
    for path in (write(tmp_path, toml, "a.toml"), write(tmp_path, text, "b.json")):
        book = PriceBook([from_file(path)])
        cost = book.price(Usage({"input_tokens": 3_000_000}, Sku("openai", "house-model"), 1))
        assert cost.amount == Decimal("0.3")
        assert cost.source == str(path)


def test_every_condition_of_the_format_is_read(tmp_path: Path) -> None:
    """Dates, windows, weekdays, tiers, regions, clauses and notes of a user's file work."""
    model = {
        "provider": "azure.ai.openai",
        "model": "house",
        "match": [{"regex": "^house-[0-9]+$"}],
        "prices": [
            {"rates": {"input_tokens": "1"}},
            {"from": "2026-02-01", "until": "2026-03-01", "rates": {"input_tokens": "2"}, "note": "sale"},
            {"hours": ["22:00", "06:00"], "days": [5, 6], "rates": {"input_tokens": {"base": "3", "per": 1000}}},
        ],
        "variants": [{"tier": "Flex", "region": "eu", "rates": {"input_tokens": "4"}}],
    }
    book = PriceBook([from_file(write(tmp_path, {"id": "mine", "currency": "EUR", "models": [model]}))])

    def price(day: datetime, **sku: str) -> Decimal | None:
        cost = book.price(Usage({"input_tokens": 1000}, Sku("azure.ai.openai", "house-7", **sku), to_ns(day)))
        assert cost.currency == "EUR"
        return cost.amount

    assert price(datetime(2026, 1, 31, 12, tzinfo=UTC)) == Decimal("0.001")
    assert price(datetime(2026, 2, 2, 12, tzinfo=UTC)) == Decimal("0.002")
    assert price(datetime(2026, 3, 7, 23, tzinfo=UTC)) == 3
    assert price(datetime(2026, 3, 9, 23, tzinfo=UTC)) == Decimal("0.001")
    assert price(datetime(2026, 3, 9, tzinfo=UTC), tier="FLEX", region="eu") == Decimal("0.004")
    assert price(datetime(2026, 3, 9, tzinfo=UTC), tier="flex") is None


def test_the_documented_example_and_its_mistake_are_true(tmp_path: Path) -> None:
    """The list in the reference page is read, and a wrong meter in it gives the message printed there."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "prices.md").read_text("utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert from_file(write(tmp_path, example, "prices.toml")).count == 2
    shown = page.partition("```text\n")[2].partition("```")[0].strip()
    with pytest.raises(ConfigurationError) as caught:
        from_file(write(tmp_path, example.replace('{ input_tokens = "0.20"', '{ input_token = "0.20"'), "prices.toml"))
    assert str(caught.value).replace(f"{tmp_path}/", "") == shown


WRONG = [
    # change to a good list, what the message must name
    ({"id": "a b"}, ["id = 'a b'"]),
    ({"currency": "dollars"}, ["currency = 'dollars'"]),
    ({"modles": []}, ["modles", "Did you mean models?"]),
    ({"models": []}, ["write at least one of [[models]], [[discounts]]"]),
    ({"models": [{"provider": "p", "rates": {"input_tokens": "1"}}]}, ["models[0].model", "Field required"]),
    ({"models": [{"provider": "p", "model": "m"}]}, ["models[0]", "exactly one of rates, prices or free = true"]),
    (
        {"models": [{"provider": "p", "model": "m", "free": True, "rates": {"input_tokens": "1"}}]},
        ["models[0]", "exactly one of rates, prices or free = true"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "rates": {"input_token": "1"}}]},
        ["models[0].rates.input_token", "unknown meter 'input_token'. Did you mean input_tokens"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "rates": {"input_tokens": "cheap"}}]},
        ["models[0].rates.input_tokens.base = 'cheap'"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "rates": {"input_tokens": -1}}]},
        ["models[0].rates.input_tokens.base = -1"],
    ),
    ({"models": [{"provider": "p", "model": "m", "rates": {"input_tokens": True}}]}, ["write a number"]),
    (
        {"models": [{"provider": "p", "model": "m", "rates": {"input_tokens": "NaN"}}]},
        ["models[0].rates.input_tokens.base = 'NaN'"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "rates": {"input_tokens": {"base": "1", "abov": {"5": "2"}}}}]},
        ["models[0].rates.input_tokens.abov", "Did you mean above?"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "prices": [{"from": "2026-02-30", "rates": {}}]}]},
        ["models[0].prices[0].from = '2026-02-30'"],
    ),
    (
        {
            "models": [
                {"provider": "p", "model": "m", "prices": [{"from": "2026-02-02", "until": "2026-02-01", "rates": {}}]}
            ]
        },
        ["models[0].prices[0]", "until 2026-02-01 must be after from 2026-02-02"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "prices": [{"hours": ["25:00", "1:00"], "rates": {}}]}]},
        ["models[0].prices[0].hours[0] = '25:00'", "06:00"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "free": True, "variants": [{"rates": {}}]}]},
        ["a variant needs tier"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "free": True, "match": [{"regex": "("}]}]},
        ["not a regular expression"],
    ),
    (
        {"models": [{"provider": "p", "model": "m", "free": True, "match": [{"begins": "x"}]}]},
        ["write one of {starts_with"],
    ),
    (
        {
            "models": [
                {"provider": "p", "model": "m", "free": True},
                {"provider": "p", "model": "n", "names": ["M"], "free": True},
            ]
        },
        ["models[1] and models[0] both claim 'm' of 'p'"],
    ),
    (
        {"models": [{"provider": "x_ai", "model": "m", "free": True}, {"provider": "xai", "model": "m", "free": True}]},
        ["models[1] and models[0] both claim 'm' of 'x-ai'"],
    ),
]


@pytest.mark.parametrize(("change", "named"), WRONG)
def test_a_wrong_list_is_refused_with_the_place_and_the_value(
    change: dict[str, object], named: list[str], tmp_path: Path
) -> None:
    """The message names the file, the key path, the value and what to write."""
    path = write(tmp_path, {**GOOD, **change})
    with pytest.raises(ConfigurationError) as caught:
        from_file(path)
    message = str(caught.value)
    assert str(path) in message
    for words in named:
        assert words in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Nobody has to run it again to see the second mistake."""
    models = [
        {"provider": "p", "model": "m", "rates": {"x": "1"}},
        {"provider": "p", "model": "n", "rates": {"input_tokens": "y"}},
    ]
    with pytest.raises(ConfigurationError, match=r"wrong in 2 place\(s\); nothing of it is used"):
        from_file(write(tmp_path, {"id": "mine", "models": models}))


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("p.toml", 'id = "x"\n[[models]\n', "line 2"),
        ("p.json", '{"id": \n nope}', "line 2 column 2"),
        ("p.ini", "id: x", "must end in .toml, .json or .yaml, not '.ini'"),
        ("p.json", "[]", "valid dictionary"),
        ("p.json", "", "no valid JSON"),
    ],
)
def test_what_cannot_be_parsed_names_the_line(name: str, text: str, named: str, tmp_path: Path) -> None:
    """Syntax errors carry the position that the decoder gives."""
    with pytest.raises(ConfigurationError, match=named.replace("[", r"\[")):
        from_file(write(tmp_path, text, name))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ConfigurationError, match=r"absent\.toml cannot be read"):
        from_file(tmp_path / "absent.toml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A binary file is no price list."""
    path = tmp_path / "p.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="no valid JSON"):
        from_file(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "cannot be read"),
        ("{}\n", "cannot be read|schema"),
        ('{"schema":99}\n', "schema 99"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_damaged_bundled_list_is_refused(text: str, named: str, tmp_path: Path) -> None:
    """A list of a newer form or a broken file is an error at once, not a wrong price later."""
    with pytest.raises(ConfigurationError, match=named):
        read_list(write(tmp_path, text, "llm.jsonl"))


def test_the_bundled_list_is_read_once_and_lazily() -> None:
    """Opening it parses no model; asking one provider parses that one only."""
    fresh = read_list(BUNDLED)
    assert all(one._index is None for one in fresh._providers.values())
    assert fresh.find("openai", "gpt-4o") is not None
    assert [key for key, one in fresh._providers.items() if one._index is not None] == ["openai"]
    assert load_bundled() is load_bundled()


def test_pricing_a_call_imports_nothing_heavy() -> None:
    """Neither pydantic nor a tokenizer nor the source package is needed to price a call."""
    code = (
        "import sys\n"
        "from aifinops.pricing.book import PriceBook\n"
        "from aifinops.usage import Sku, Usage\n"
        "assert PriceBook().price(Usage({'input_tokens': 1}, Sku('openai', 'gpt-4o'), 1)).amount\n"
        "heavy = {'pydantic', 'tiktoken', 'genai_prices', 'opentelemetry', 'sqlite3', 'socket', 'asyncio', 'hashlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# YAML -----------------------------------------------------------------------------------------------------------------

YAML = """\
id: mine
models:
  - provider: openai
    model: house-model
    rates: {input_tokens: 0.1, output_tokens: 2}
    adjust:
      - {region: eu, multiply: 1.1, from: 2026-01-01}
"""


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    """Numbers are read as they are written and dates as dates."""
    pytest.importorskip("yaml")
    book = PriceBook([from_file(write(tmp_path, YAML, "prices.yaml"))])
    at = to_ns(datetime(2026, 11, 24, tzinfo=UTC))
    assert book.price(Usage({"input_tokens": 3_000_000}, Sku("openai", "house-model"), at)).amount == Decimal("0.3")
    assert book.price(Usage({"input_tokens": 10**7}, Sku("openai", "house-model", region="eu"), at)).amount == Decimal(
        "1.1"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("id: mine", "id: [mine"), "line 2, column"),
        (
            ("    model: house-model", "    model: house-model\n    model: other"),
            "'model' is there twice .at line 5, column 5",
        ),
        (("0.1,", ".inf,"), "no price|finite|Infinity"),
        (("house-model", "!!python/object:os.system x"), "line 4"),
        (("rates:", "rats:"), r"models\[0\].rats"),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_place(change: tuple[str, str], named: str, tmp_path: Path) -> None:
    """Syntax has a line and a column, content has a path; nothing is executed."""
    pytest.importorskip("yaml")
    with pytest.raises(ConfigurationError, match=named):
        from_file(write(tmp_path, YAML.replace(*change), "prices.yml"))


def test_yaml_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named in one sentence."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r'needs PyYAML: pip install "aifinops\[yaml\]"'):
        from_file(write(tmp_path, YAML, "prices.yaml"))


WRONG_TERMS = [
    ({"discounts": [{"provider": "openai"}]}, ["discounts[0]", "a discount needs percent"]),
    ({"discounts": [{"percent": 101}]}, ["discounts[0].percent = 101"]),
    ({"discounts": [{"percent": 5, "tiers": [{"above": 0, "percent": 1}]}]}, ["percent is the tier above 0"]),
    ({"discounts": [{"tiers": [{"above": 5, "percent": 1}, {"above": 5, "percent": 2}]}]}, ["two tiers begin"]),
    ({"discounts": [{"volume": "dollars", "percent": 1}]}, ["discounts[0].volume = 'dollars'", "unknown meter"]),
    ({"discounts": [{"percnt": 1}]}, ["discounts[0].percnt", "Did you mean percent?"]),
    ({"commitments": [{"name": "x", "amount": 1, "per": "term"}]}, ["give from and until"]),
    ({"commitments": [{"name": "x", "amount": 1, "per": "week"}]}, ["commitments[0].per = 'week'"]),
    ({"exchange": [{"from": "EUR", "to": "USD", "rate": 0, "date": "2026-11-01"}]}, ["exchange[0].rate = 0"]),
    ({"exchange": [{"from": "EUR", "to": "USD", "rate": 1}]}, ["exchange[0].date", "Field required"]),
    (
        {"exchange": [{"from": "A" * 3, "to": to, "rate": 1, "date": "2026-11-01"} for to in ("USD", "EUR")]},
        ["write [contract] currency"],
    ),
    ({"contract": {"markup": -1}}, ["contract.markup = -1"]),
]


@pytest.mark.parametrize(("tables", "named"), WRONG_TERMS)
def test_a_wrong_contract_is_refused_with_the_place_and_the_value(
    tables: dict[str, object], named: list[str], tmp_path: Path
) -> None:
    """Terms are checked like prices."""
    with pytest.raises(ConfigurationError) as caught:
        from_file(write(tmp_path, {"id": "mine", **tables}))
    for words in named:
        assert words in str(caught.value)


WRONG_DIMENSIONS = [
    ({"adjust": [{"multiply": 2}]}, ["models[0].adjust[0]", "an adjustment needs tier"]),
    ({"adjust": [{"region": "us", "multiply": True}]}, ["adjust[0].multiply"]),
    ({"adjust": [{"region": "us", "multiply": 2, "meters": ["token"]}]}, ["adjust[0].meters[0] = 'token'"]),
    ({"rates": {"images": {"base": 1, "above": {"5": 2}, "graduated": {"5": 1}}}}, ["rates.images", "not both"]),
    ({"rates": None, "prices": [{"tz": "Mars/Olympus", "rates": {}}]}, ["prices[0].tz = 'Mars/Olympus'", "IANA"]),
    ({"minimum_charge": -1}, ["models[0].minimum_charge = -1"]),
    ({"as_of": "soon"}, ["models[0].as_of = 'soon'"]),
]


@pytest.mark.parametrize(("change", "named"), WRONG_DIMENSIONS)
def test_a_wrong_dimension_is_refused_with_the_place_and_the_value(
    change: dict[str, object], named: list[str], tmp_path: Path
) -> None:
    """Factors, steps, clocks and provenance are checked like rates."""
    model = {"provider": "p", "model": "m", "rates": {"input_tokens": "1"}, **change}
    with pytest.raises(ConfigurationError) as caught:
        from_file(write(tmp_path, {"id": "mine", "models": [model]}))
    for words in named:
        assert words in str(caught.value)


def test_the_contract_of_the_guide_says_what_the_guide_says(tmp_path: Path) -> None:
    """The example is read, and a call under it has each of its terms."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "use-your-own-prices.md").read_text("utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    book = PriceBook([from_file(write(tmp_path, example, "contract.toml")), load_bundled()])
    at = to_ns(datetime(2026, 12, 1, tzinfo=UTC))

    def price(provider: str, model: str, **sku: str) -> tuple[Decimal | None, str, str]:
        cost = book.price(Usage({"input_tokens": 1_000_000}, Sku(provider, model, **sku), at))
        return cost.amount, cost.currency, cost.basis

    assert price("openai", "gpt-4o") == (Decimal("2.5") * Decimal("0.92") * Decimal("0.95"), "EUR", "priced")
    assert price("azure", "gpt-4o") == (0, "EUR", "committed")
    assert price("anthropic", "claude-opus-5", region="us") == (
        Decimal("4.5") * Decimal("1.1") * Decimal("0.92"),
        "EUR",
        "priced",
    )


HEADER = {"schema": 1, "id": "l", "version": "1", "date": "2026-11-01", "source": "s", "currency": "USD", "models": 1}
PROVIDER = {"provider": "p", "name": "P", "models": 1}


@pytest.mark.parametrize("strange", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_only_where_json_lines_do(strange: str, tmp_path: Path) -> None:
    """Characters that Python takes for the end of a line stay in the texts that they are in."""
    rates = {"input_tokens": {"base": "1", "per": 1_000_000}}
    model = {"model": "m", "name": f"a{strange}b", "prices": [{"rates": rates}]}
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in (HEADER, PROVIDER, model))
    entry = read_list(write(tmp_path, text, "l.jsonl")).find("p", "m")
    assert entry is not None
    assert entry.name == f"a{strange}b"


@pytest.mark.parametrize("name", sorted(HEADER))
def test_a_header_without_a_key_is_refused(name: str, tmp_path: Path) -> None:
    """Every header key is needed; a list without one is told apart from our own mistakes."""
    header = {key: value for key, value in HEADER.items() if key != name}
    with pytest.raises(ConfigurationError, match=f"price list .*l.jsonl has .*{name}"):
        read_list(write(tmp_path, json.dumps(header) + "\n", "l.jsonl"))


@pytest.mark.parametrize("rows", [[[]], [HEADER, {"provider": "p"}], [HEADER, []], [{**HEADER, "date": 5}]])
def test_a_line_of_another_form_is_refused(rows: list[object], tmp_path: Path) -> None:
    """A row without its keys, or that is no object, is an error that names the file."""
    with pytest.raises(ConfigurationError, match="price list"):
        read_list(write(tmp_path, "\n".join(map(json.dumps, rows)), "l.jsonl"))
