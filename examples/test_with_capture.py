"""Costs under test: `pytest test_with_capture.py`, or run it as it is. What a change makes dearer fails before it is merged."""

from decimal import Decimal

import openai

import aifinops as af
from aifinops.testing import FakeProvider, capture_charges


def summarize(client: openai.OpenAI, text: str) -> str:
    """The code under test."""
    messages = [{"role": "system", "content": "Summarize. " * 100}, {"role": "user", "content": text}]
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_completion_tokens=60)
    return answer.choices[0].message.content or ""


def test_a_summary_costs_less_than_a_tenth_of_a_cent() -> None:
    """The cost, the number of calls, and that the second prompt is read from the cache."""
    af.init(ledger="memory")
    af.instrument("openai")
    with (
        FakeProvider() as server,
        openai.OpenAI(base_url=server.base_url, api_key="test") as client,
        capture_charges() as charges,
    ):
        summarize(client, "one")
        summarize(client, "two")
    af.uninstrument()

    first, second = charges
    assert first.cost.amount is not None
    assert first.cost.amount < Decimal("0.001")
    assert second.quantities["cache_read_tokens"] > first.quantities["input_tokens"] // 2
    assert second.cost.amount is not None
    assert second.cost.amount < first.cost.amount
    af.report(by=["model"]).assert_under("$0.002")
    af.shutdown()


if __name__ == "__main__":
    test_a_summary_costs_less_than_a_tenth_of_a_cent()
    print("two summaries, two charges, the second cheaper than the first")
