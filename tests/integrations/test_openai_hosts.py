"""Other providers through the openai client: what each adds to OpenAI's form is read by the row of the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import aifinops as af  # noqa: E402
from aifinops.money import from_nanos, to_nanos  # noqa: E402
from aifinops.testing import capture_charges  # noqa: E402

BODIES = Path(__file__).parents[1] / "providers" / "bodies"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("openai")
    yield
    af.uninstrument()


@pytest.fixture
def call() -> Callable[[str, str], Any]:
    """One call to a host that answers with a golden body; no socket is opened."""
    with openai.OpenAI(api_key="test") as probe:  # which of its HTTP libraries this version is built on
        kinds = [kind.__module__.partition(".")[0] for kind in type(probe._client).__mro__]
    http = pytest.importorskip(next(name for name in kinds if name.startswith("httpx")))

    def made(
        url: str,
        name: str,
        model: str = "",
        during: Callable[[], Any] = lambda: None,
        usage: dict[str, Any] | None = None,
    ) -> Any:
        body = json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))
        body["model"] = model or body["model"]
        body["usage"].update(usage or {})

        def answer(request: Any) -> Any:
            during()
            return http.Response(200, json=body)

        transport = http.MockTransport(answer)
        with openai.OpenAI(base_url=url, api_key="test", http_client=http.Client(transport=transport)) as client:
            return client.chat.completions.create(model=body["model"], messages=MESSAGES)

    return made


@pytest.mark.parametrize(
    ("model", "ratio", "region"),
    [("gpt-5.4", "1.1", "eu"), ("gpt-4o", "1", "")],
    ids=["dearer there", "the same there"],
)
def test_a_regional_endpoint_is_priced_and_held_where_it_decides_the_price(
    call: Callable[..., Any], model: str, ratio: str, region: str
) -> None:
    """No answer says that it was kept in Europe: the address does, and costs a tenth more for models since March 2026."""
    held = []
    with capture_charges() as charges:
        for url in ("https://api.openai.com/v1", "https://eu.api.openai.com/v1"):
            with af.budget("$50") as block:
                call(url, "openai/chat_cached", model=model, during=lambda: held.append(block.reserved))
    plain, regional = charges
    assert (plain.region, regional.region) == ("", region)
    assert plain.amount
    assert regional.amount == plain.amount * Decimal(ratio)
    assert held[1] == held[0] * Decimal(ratio) > 0


@pytest.mark.parametrize(
    ("url", "name", "provider", "amount", "basis"),
    [
        ("https://openrouter.ai/api/v1", "openrouter/byok", "openrouter", "0.003675", "reported"),
        ("https://api.x.ai/v1", "xai/chat", "x_ai", "0.0037756", "reported"),
        ("https://api.groq.com/openai/v1", "groq/compound", "groq", "0.001648", "priced"),
    ],
)
def test_what_a_host_adds_is_read(
    call: Callable[[str, str], Any], url: str, name: str, provider: str, amount: str, basis: str
) -> None:
    """A reported cost wins, and models inside one answer are priced apart, as one charge."""
    with capture_charges() as charges:
        answer = call(url, name)
    (charge,) = charges
    assert answer.choices[0].message.content == "Paris."
    assert (charge.provider, charge.basis) == (provider, basis)
    assert from_nanos(charge.amount or 0) == Decimal(amount)
    assert sum(value for _, value in charge.lines) == charge.amount


ROUTER = "https://openrouter.ai/api/v1"
BYOK = {"is_byok": True, "cost_details": {"upstream_inference_cost": None}}


@pytest.mark.parametrize("more", [{}, BYOK], ids=["plain", "with a key of one's own"])
@pytest.mark.parametrize(
    ("model", "amount", "basis"),
    [
        ("openai/gpt-4o", "0.0035", "priced"),
        ("somebody/unheard-of", None, "unknown"),
        ("mistralai/devstral-small:free", "0", "reported"),
        ("somebody/unheard-of:free", "0", "reported"),
    ],
)
def test_a_reported_zero_is_no_price(
    call: Callable[..., Any], model: str, amount: str | None, basis: str, more: dict[str, Any]
) -> None:
    """A gateway that knows no price reports zero as well: it is believed only of what is free, and else our list says, or nobody."""
    with capture_charges() as charges:
        call(ROUTER, "openrouter/cost", model=model, usage={"cost": 0, **more})
    (charge,) = charges
    assert charge.basis == basis
    assert charge.amount == (None if amount is None else to_nanos(Decimal(amount)))


def test_a_reported_zero_of_an_answer_without_counts_is_unknown(call: Callable[..., Any]) -> None:
    """Nothing counted and nothing charged says nothing, and not that it was free."""
    with capture_charges() as charges:
        call(ROUTER, "openrouter/cost", usage={"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0})
    assert [(charge.amount, charge.basis) for charge in charges] == [(None, "unknown")]


def test_a_raw_answer_with_a_reported_zero_says_why_it_is_not_taken() -> None:
    """Ours counts, and the note tells of the other."""
    body = json.loads((BODIES / "openrouter/cost.json").read_text(encoding="utf-8"))
    body["usage"]["cost"] = 0
    cost = af.price_response(body, "openrouter")
    assert (cost.amount, cost.basis, cost.reported) == (Decimal("0.0035"), "priced", 0)
    assert "a reported zero is not a price" in cost.explain()
    body["model"] = "somebody/unheard-of:free"
    assert af.price_response(body, "openrouter").amount == 0
