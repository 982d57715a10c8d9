"""An agent that never stops by itself. The budget refuses the call that could pass it, before that call is sent."""

from decimal import Decimal

import openai

import aifinops as af
from aifinops.testing import FakeProvider

af.init(ledger="memory")
af.instrument("openai")


def agent(client: openai.OpenAI) -> None:
    messages: list = [{"role": "user", "content": "Why do parcels get lost?"}]
    while True:
        answer = client.chat.completions.create(model="gpt-5", messages=messages, max_completion_tokens=600)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        messages.append({"role": "user", "content": "Are you sure? Think again."})


with (
    FakeProvider(words=500) as server,
    openai.OpenAI(base_url=server.base_url, api_key="test") as client,
    af.budget("$0.03") as budget,
):
    try:
        agent(client)
    except af.BudgetExceeded as stop:
        print(stop)

calls = server.usage_totals()["calls"]
print(f"{calls} calls were made, {budget.spent} USD were spent, {budget.remaining} are left.")

assert calls > 1
assert server.requests == calls  # what was refused has never reached the provider
assert Decimal(0) < budget.spent <= Decimal("0.03")
af.shutdown()
