"""Prices given in code, and contracts beside them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

import aifinops as af
from aifinops import runtime

MILLION = 1_000_000


def test_a_registered_price_holds_at_once_and_before_every_list() -> None:
    """A model that a list knows has the new price, and the next call sees it."""
    assert af.price("gpt-4o", provider="openai", input_tokens=MILLION).amount == Decimal("2.5")
    af.register_price("gpt-4o", provider="openai", rates={"input_tokens": "1"}, source="order form")
    cost = af.price("gpt-4o", provider="openai", input_tokens=MILLION)
    assert (cost.amount, cost.source, cost.price_id) == (1, "order form", "code/openai/gpt-4o")
    assert cost.as_of == datetime.now(UTC).date()
    assert af.price("gpt-4o-mini", provider="openai", input_tokens=MILLION).amount == Decimal("0.15")


def test_metered_calls_have_the_registered_price() -> None:
    """What is recorded after it is priced by it."""
    af.register_price("house", provider="local", rates={"input_tokens": 4}, as_of="2026-11-01")
    charge = af.record(usage={"input_tokens": MILLION}, model="house", provider="local")
    assert (charge.amount, charge.price_as_of) == (4 * 10**9, "2026-11-01")


def test_registering_again_takes_its_place() -> None:
    """The newest row has the model, and every name that two rows claim."""
    af.register_price("house", provider="local", rates={"input_tokens": 1}, names=["shared"])
    af.register_price("House", provider="local", rates={"input_tokens": 2}, names=["shared"])
    assert af.price("house", provider="local", input_tokens=MILLION).amount == 2
    af.register_price("other", provider="local", rates={"input_tokens": 3}, names=["shared"])
    assert af.price("shared", provider="local", input_tokens=MILLION).amount == 3
    assert [one.id for one in runtime.get().book.lists[:2]] == ["code", "genai-prices"]


def test_a_registered_price_survives_init_and_ends_with_shutdown() -> None:
    """A library may register before the application sets up."""
    af.register_price("house", provider="local", rates={"input_tokens": 1})
    af.init(ledger="memory")
    assert af.price("house", provider="local", input_tokens=MILLION).amount == 1
    af.shutdown()
    assert af.price("house", provider="local", input_tokens=MILLION).amount is None


def test_a_wrong_price_is_refused_and_nothing_is_registered() -> None:
    """The message names the key and the nearest one; what was there stays."""
    with pytest.raises(af.ConfigurationError, match=r"register_price\('m'\).*\n  rates.input_token = .*input_tokens"):
        af.register_price("m", provider="p", rates={"input_token": 1})
    with pytest.raises(af.ConfigurationError, match="Did you mean free"):
        af.register_price("m", provider="p", fre=True)
    with pytest.raises(af.ConfigurationError, match="exactly one of rates, prices or free"):
        af.register_price("m", provider="p")
    assert af.price("m", provider="p", input_tokens=1).amount is None


def test_a_registered_price_may_be_in_another_currency() -> None:
    """Each row has its own."""
    af.register_price("euro", provider="p", rates={"input_tokens": 1}, currency="EUR")
    af.register_price("dollar", provider="p", rates={"input_tokens": 1})
    assert [af.price(name, provider="p", input_tokens=1).currency for name in ("euro", "dollar")] == ["EUR", "USD"]


def test_threads_that_register_lose_nothing() -> None:
    """Every price of every thread is there, while others read."""
    start = threading.Barrier(9)
    unknown: list[object] = []

    def register(number: int) -> None:
        start.wait()
        for count in range(10):
            af.register_price(f"m{number}-{count}", provider="p", rates={"input_tokens": number + 1})
            cost = af.price(f"m{number}-{count}", provider="p", input_tokens=MILLION)
            if cost.amount != number + 1:
                unknown.append(cost)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    assert unknown == []
    assert len(list(runtime.get().book.lists[0].entries("p"))) == 80


CONTRACT = """
id = "acme"
[[discounts]]
provider = "openai"
percent = 10
"""
USER = """
id = "user"
[[models]]
provider = "openai"
model = "gpt-4o"
rates = { input_tokens = "2" }
"""


@pytest.mark.parametrize("order", [("user", "acme"), ("acme", "user")])
def test_a_contract_is_over_the_lists_whatever_their_order(order: tuple[str, str], tmp_path: Path) -> None:
    """Contract over user over bundled."""
    for name, text in (("user", USER), ("acme", CONTRACT)):
        (tmp_path / f"{name}.toml").write_text(text, "utf-8")
    af.init(ledger="memory", prices=[tmp_path / f"{name}.toml" for name in order])
    assert af.price("gpt-4o", provider="openai", input_tokens=MILLION).amount == Decimal("1.8")
    assert af.price("gpt-4o-mini", provider="openai", input_tokens=MILLION).amount == Decimal("0.135")
    af.register_price("gpt-4o", provider="openai", rates={"input_tokens": 3})
    assert af.price("gpt-4o", provider="openai", input_tokens=MILLION).amount == 3


def test_the_public_price_takes_options_and_the_estimate_a_region() -> None:
    """An image has a size, and inference in a region may cost more."""
    variants = [{"options": {"quality": "hd", "size": "1024x1792"}, "rates": {"images": "0.12"}}]
    adjust = [{"region": "us", "multiply": "1.1"}]
    af.register_price(
        "painter", provider="p", rates={"images": "0.04", "input_tokens": 1}, variants=variants, adjust=adjust
    )
    large = af.price("painter", provider="p", images=1, options={"size": "1024x1792", "quality": "hd"})
    assert large.amount == Decimal("0.12")
    assert af.price("painter", provider="p", images=1, options={"size": "9x9"}).amount is None
    here, there = (af.estimate("painter", input="hi", provider="p", region=region).upper for region in ("", "us"))
    assert here is not None
    assert there == here * Decimal("1.1")
