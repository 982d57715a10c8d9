"""Names that only their owner knows: Azure deployments, application inference profiles, names of a gateway."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.config import load
from aifinops.errors import ConfigurationError
from aifinops.pricing.book import PriceBook
from aifinops.usage import Sku, Usage

PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3d4e5f6"
MAP = {
    "My-Deployment": "gpt-4o",
    PROFILE: "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "house": "openai/gpt-4o",
    "azure/gpt-4": "gpt-4o",
    "lost": "gpt-4oo",
}


def price(provider: str, model: str) -> af.Cost:
    usage = Usage({"input_tokens": 1_000_000}, Sku(provider, model), 1_790_000_000_000_000_000)
    return PriceBook(model_map=MAP).price(usage)


@pytest.mark.parametrize(
    ("provider", "model", "amount"),
    [
        ("azure.ai.openai", "my-deployment", "2.5"),
        ("aws.bedrock", PROFILE, "3.3"),
        ("vllm", "house", "2.5"),  # a prefix in the target says whose price it is
        ("azure", "gpt-4", "2.5"),  # a key may begin with the provider: this deployment is called like another model
        ("openai", "gpt-4", "30"),
    ],
)
def test_a_declared_name_has_the_price_of_what_it_stands_for(provider: str, model: str, amount: str) -> None:
    """The declaration wins over the list, the case of a name does not matter, and the cost says what was taken for what."""
    cost = price(provider, model)
    assert cost.amount == Decimal(amount)
    assert any("by model_map" in note for note in cost.notes) is (provider != "openai")


def test_a_declared_name_that_leads_nowhere_is_unknown_and_says_so() -> None:
    """The error names the target, where the mistake is, and what is near it."""
    cost = price("openai", "lost")
    assert cost.amount is None
    assert "gpt-4oo" in cost.notes[0]
    assert "gpt-4o" in cost.notes[0].partition("Nearest names:")[2]


def test_limits_and_bounds_are_those_of_the_model() -> None:
    """A budget holds for a deployment what it holds for its model."""
    book = PriceBook(model_map=MAP)
    for name in ("my-deployment", "gpt-4o"):
        assert book.input_limit("azure", name) == 128_000
    bounds = [
        book.bound("azure", name, input_tokens_upper=100, output_tokens_upper=10, at=1_790_000_000_000_000_000)
        for name in ("my-deployment", "gpt-4o")
    ]
    assert bounds[0] == bounds[1]
    assert bounds[0][0] is not None


def test_every_way_to_set_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, environment and file; `af.price` knows it at once."""
    runtime.init(ledger="memory", model_map={"my-deployment": "gpt-4o"})
    assert af.price("my-deployment", provider="azure", input_tokens=1_000_000).amount == Decimal("2.5")
    assert load({}, {"AIFINOPS_MODEL_MAP": f"a=gpt-4o, {PROFILE}=us.amazon.nova-pro-v1:0"}, tmp_path).model_map == {
        "a": "gpt-4o",
        PROFILE: "us.amazon.nova-pro-v1:0",
    }
    (tmp_path / "aifinops.toml").write_text('model_map = { "my-deployment" = "gpt-4o" }\n')
    assert load({}, {}, tmp_path).model_map == {"my-deployment": "gpt-4o"}


@pytest.mark.parametrize("wrong", ["gpt-4o", ["a"], {"a": ""}, {"": "b"}, {"a": 3}, "a=,b=c", {"a": None}])
def test_a_map_that_cannot_be_read_is_refused(wrong: object, tmp_path: Path) -> None:
    """It says what to type."""
    with pytest.raises(ConfigurationError, match=r'model_map.*"my-deployment" = "gpt-4o"'):
        load({"model_map": wrong}, {}, tmp_path)
