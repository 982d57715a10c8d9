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
from aifinops.money import from_nanos  # noqa: E402
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

    def made(url: str, name: str, model: str = "", during: Callable[[], Any] = lambda: None) -> Any:
        body = json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))
        body["model"] = model or body["model"]

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
