"""Names match exactly or by a declared clause, never by the look of their beginning."""

from __future__ import annotations

import pytest

from aifinops.pricing.lists import load_bundled
from aifinops.pricing.match import Names, is_match, nearest, provider_id


@pytest.mark.parametrize(
    "name",
    [
        "some-model",
        "some-model-2025-08-07",
        "some-model-20250807",
        "some-model@20250807",
        "some-model-0613",
        "some-model-001",
        "some-model-latest",
        "some-model@latest",
        "some-model@default",
        "some-model-preview",
        "some-model-preview-05-06",
        "some-model-preview-09-2025",
        "some-model-exp-0827",
        "some-model-v1:0",
        "some-model-20241022-v2:0",
        "some-model:0",
    ],
)
def test_a_declared_beginning_matches_snapshots_and_versions(name: str) -> None:
    """What follows a declared beginning may date or number the same model."""
    assert is_match({"starts_with": "some-model"}, name)


@pytest.mark.parametrize(
    "name",
    [
        "some-model-mini",
        "some-model.6",
        "some-model-5",
        "some-modelx",
        "some-model-pro-2025-08-07",
        "some-model-32768",
        "some-mode",
    ],
)
def test_a_declared_beginning_never_matches_another_model(name: str) -> None:
    """A size, a generation or any other word after a declared beginning is another model."""
    assert not is_match({"starts_with": "some-model"}, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("some-model", True),
        ("publishers/acme/models/some-model@20250807", True),
        ("us.acme.some-model-v1:0", True),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/us.acme.some-model-v1:0", True),
        ("not-some-model", False),
        ("us.acme.some-model-mini", False),
    ],
)
def test_a_declared_part_may_follow_a_path_or_a_namespace(name: str, expected: bool) -> None:
    """Before a declared part only a path or dotted namespaces may stand."""
    assert is_match({"contains": "some-model"}, name) is expected


@pytest.mark.parametrize(
    ("clause", "name", "expected"),
    [
        ({"contains": "amazon.nova-pro"}, "us.amazon.nova-pro-v1:0", True),
        ({"contains": "amazon.nova-pro"}, "eu.amazon.nova-pro-v1:0", False),
        ({"contains": "amazon.nova-pro"}, "apac.amazon.nova-pro-v1:0", False),
        ({"contains": "amazon.nova-pro"}, "sa.amazon.nova-pro-v1:0", False),
        ({"contains": "amazon.nova-pro"}, "global.amazon.nova-pro-v1:0", True),
        ({"contains": "amazon.nova-pro"}, "us-gov.amazon.nova-pro-v1:0", False),
        ({"contains": "eu.amazon.nova-2-lite"}, "eu.amazon.nova-2-lite-v1:0", True),
        ({"contains": "anthropic.claude-3-7-sonnet"}, "eu.anthropic.claude-3-7-sonnet-20250219-v1:0", True),
        ({"contains": "anthropic.claude-3-7-sonnet"}, "us-gov.anthropic.claude-3-7-sonnet-20250219-v1:0", False),
        (
            {"contains": "amazon.nova-pro"},
            "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.amazon.nova-pro-v1:0",
            False,
        ),
        ({"contains": "claude-3-5-haiku-20241022"}, "eu.anthropic.claude-3-5-haiku-20241022-v1:0", True),
        ({"contains": "claude-3-5-haiku-20241022"}, "us-gov.anthropic.claude-3-5-haiku-20241022-v1:0", False),
        ({"ends_with": "openai.gpt-oss-20b-1:0"}, "us-gov.openai.gpt-oss-20b-1:0", False),
    ],
)
def test_a_geography_is_part_of_a_name_where_it_has_a_price_of_its_own(
    clause: dict[str, object], name: str, expected: bool
) -> None:
    """Bedrock's profiles of other geographies cost more than those of the USA, but for Anthropic's models, unless a clause names them."""
    assert is_match(clause, name) is expected


@pytest.mark.parametrize(
    ("clause", "name", "expected"),
    [
        ({"ends_with": "/kimi"}, "global/kimi", True),
        ({"ends_with": "kimi"}, "x/kimi", True),
        ({"ends_with": "kimi"}, "notkimi", False),
        ({"regex": r"^claude-fable-5-\d{8}$"}, "claude-fable-5-20260101", True),
        ({"regex": r"^claude-fable-5-\d{8}$"}, "claude-fable-5-1", False),
        ({"equals": "GPT-4o"}, "gpt-4o", True),
        ({"or": [{"equals": "a"}, {"equals": "b"}]}, "b", True),
        ({"and": [{"starts_with": "gemini-2.5-pro"}, {"regex": "^(?!.*-tts)"}]}, "gemini-2.5-pro-preview-tts", False),
        ({"and": [{"starts_with": "gemini-2.5-pro"}, {"regex": "^(?!.*-tts)"}]}, "gemini-2.5-pro-preview-05-06", True),
        ({"starts_with": "claude-sonnet-4-2025"}, "claude-sonnet-4-20250514", True),
        ({"starts_with": "claude-sonnet-4@"}, "claude-sonnet-4@20250514", True),
        ({"starts_with": "claude-sonnet-4-2025"}, "claude-sonnet-4-5-20250929", False),
        ({"starts_with": "ft:gpt-4o-mini-2024-"}, "ft:gpt-4o-mini-2024-07-18:acme::abc", True),
        ({"starts_with": "ft:gpt-4o-2024-"}, "ft:gpt-4o-mini-2024-07-18:acme::abc", False),
        ({"starts_with": "gpt-4o-mini-2024-07-18.ft-"}, "gpt-4o-mini-2024-07-18.ft-0a1b2c", True),
    ],
)
def test_every_kind_of_clause_follows_the_rule(clause: dict[str, object], name: str, expected: bool) -> None:
    """Regular expressions count as given, the other clauses by the rule of what may remain."""
    assert is_match(clause, name) is expected


def test_an_exact_name_wins_over_a_clause_of_an_earlier_row() -> None:
    """A row that names a model is preferred to one whose clause also admits it."""
    names = Names.of([{"model": "a", "match": [{"starts_with": "m"}]}, {"model": "b", "names": ["m-2025-01-01"]}])
    assert names.find("M-2025-01-01") == 1
    assert names.find("m-2025-01-02") == 0


def test_a_compact_date_finds_the_dashed_snapshot() -> None:
    """Gateways write `-20251211` for `-2025-12-11`; a number that is no date is left alone."""
    names = Names.of([{"model": "gpt-5.2", "names": ["gpt-5.2-2025-12-11"]}])
    assert names.find("gpt-5.2-20251211") == 0
    assert names.find("gpt-5.2-20251399") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("openai", "openai"),
        ("azure.ai.openai", "azure"),
        ("azure.ai.inference", "azure"),
        ("gcp.gemini", "google"),
        ("gcp.vertex_ai", "google"),
        ("aws.bedrock", "aws"),
        ("x_ai", "x-ai"),
        ("mistral_ai", "mistral"),
        ("moonshot_ai", "moonshotai"),
        ("  OpenAI ", "openai"),
        ("my-openai-proxy", "my-openai-proxy"),
        ("", None),
        (None, None),
    ],
)
def test_provider_names_of_opentelemetry_are_known_and_none_is_guessed(given: str | None, expected: str | None) -> None:
    """A provider is an id of the list or a declared alias; a name that only contains one is not taken for it."""
    assert provider_id(given) == expected


@pytest.mark.parametrize(
    "provider", sorted({"aws", "azure", "google", "mistral", "moonshotai", "x-ai", "fireworks", "together"})
)
def test_every_alias_leads_to_a_provider_of_the_bundled_list(provider: str) -> None:
    """An alias that leads nowhere would hide a typing error."""
    assert provider in load_bundled().providers


def test_nearest_names_are_spelt_as_the_list_spells_them() -> None:
    """Suggestions are for people to copy."""
    assert nearest("GPT-5-MINY", ["gpt-5-mini", "Claude", "gpt-5-nano"])[0] == "gpt-5-mini"
    assert nearest("zzz", ["gpt-5-mini"]) == ()


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-5.7"),
        ("openai", "gpt-5-ultra"),
        ("openai", "gpt-4o-2031-01-01"),
        ("openai", "gpt-4o-mini-high"),
        ("openai", "ft:gpt-9:acme::1"),
        ("anthropic", "claude-opus-5-6"),
        ("google", "gemini-2.5-flash-ultra"),
        ("aws", "xus.anthropic.claude-opus-5"),
        (None, "gpt-5.7"),
        (None, "no-such-model"),
        ("nobody", "gpt-4o"),
    ],
)
def test_unknown_names_are_refused(provider: str | None, model: str) -> None:
    """A name that the list does not declare has no entry, however much it looks like one that has."""
    assert load_bundled().find(provider, model) is None


@pytest.mark.parametrize(
    ("model", "home"),
    [
        ("gpt-4o", "openai"),
        ("o3", "openai"),
        ("claude-sonnet-4-5-20250929", "anthropic"),
        ("gemini-2.5-pro", "google"),
        ("deepseek-chat", "deepseek"),
        ("grok-4", "x-ai"),
        ("command-r", "cohere"),
        ("mistral-large-2512", "mistral"),
    ],
)
def test_without_a_provider_the_home_of_the_name_is_asked(model: str, home: str) -> None:
    """A model resold by many is priced at its maker's when no provider was given."""
    entry = load_bundled().find(None, model)
    assert entry is not None
    assert entry.provider == home


def test_declared_beginnings_of_the_bundled_list_admit_no_sibling() -> None:
    """For each declared beginning or part of the list, the same with `-mini` or `.6` after it is unknown or another declared model."""
    bundled = load_bundled()
    wrong: list[tuple[str, str]] = []
    for key in bundled.providers:
        _, names = bundled._providers[key].index()
        for clause, number in names.clauses:
            text = str(clause.get("starts_with", clause.get("contains", "")))
            siblings = (f"{text}-mini", f"{text}.6", f"{text}x") if text and "ft" not in text else ()
            wrong += [(key, one) for one in siblings if names.find(one) == number and one.lower() not in names.exact]
    assert wrong == []


@pytest.mark.parametrize(
    ("provider", "name", "expected"),
    [
        (None, "openai/gpt-4o", "openai/gpt-4o"),
        ("openai", "OpenAI/gpt-4o-2024-08-06", "openai/gpt-4o"),
        (
            None,
            "azure/gpt-4o",
            "openai/gpt-4o",
        ),  # where Azure's own list has no price, the list falls back to the maker's
        ("azure", "azure/global-standard/gpt-4o-2024-08-06", "openai/gpt-4o"),
        (None, "bedrock/converse/amazon.nova-pro-v1:0", "aws/amazon.nova-pro-v1:0"),
        (None, "vertex_ai/gemini-2.5-pro", "google/gemini-2.5-pro"),
        (None, "models/gemini-2.5-flash", "google/gemini-2.5-flash"),
        ("google", "publishers/google/models/gemini-2.5-flash", "google/gemini-2.5-flash"),
        (None, "anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
        ("openrouter", "openai/gpt-4o", "openrouter/openai/gpt-4o"),
        (None, "openrouter/openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("openrouter", "openrouter/openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("azure", "azure/eu/gpt-4o", None),
        (None, "azure/us/gpt-4o", None),
        ("anthropic", "openai/gpt-4o", None),
        (None, "litellm_proxy/gpt-4o", None),
        (None, "openai/", None),
        (None, "openai/gpt-99", None),
        (None, "publishers/", None),
    ],
)
def test_a_declared_prefix_says_who_sells_a_model(provider: str | None, name: str, expected: str | None) -> None:
    """LiteLLM's prefixes are a table; a place after one, another provider and an undeclared one are refused."""
    entry = load_bundled().find(provider, name)
    assert (entry and f"{entry.provider}/{entry.model}") == expected


@pytest.mark.parametrize(
    ("name", "priced"),
    [
        ("arn:aws:bedrock:us-west-2::foundation-model/amazon.nova-pro-v1:0", True),
        ("arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-pro-v1:0", False),
        ("arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/amazon.nova-pro-v1:0", False),
        ("arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0", False),
        ("bedrock/us-gov-east-1/anthropic.claude-sonnet-4-5-20250929-v1:0", False),
        ("arn:aws:bedrock:eu-west-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        (
            "arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:inference-profile/us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0",
            True,
        ),
        ("arn:aws:bedrock:eu-west-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0", True),
        ("arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0", False),
    ],
)
def test_a_region_with_prices_of_its_own_is_not_priced_as_the_united_states(name: str, *, priced: bool) -> None:
    """The list has prices of US regions; Nova costs more in Europe, and the government's have a price where a clause names them."""
    assert (load_bundled().find("aws", name) is not None) is priced
