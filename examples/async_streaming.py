"""Twenty answers streamed at once on the asynchronous client: each task has its own tags, all share one budget."""

import asyncio

import openai

import aifinops as af
from aifinops.testing import FakeProvider

af.init(ledger="memory")
af.instrument("openai")


@af.track_cost(team="support", feature="chat")
async def stream(client: openai.AsyncOpenAI, question: str):
    """An async generator: it is tracked until it is exhausted, across every `yield`."""
    answer = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=200,
    )
    async for chunk in answer:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


async def serve(client: openai.AsyncOpenAI, customer: str) -> str:
    with af.tags(customer=customer):
        return "".join([piece async for piece in stream(client, f"Hello from {customer}")])


async def main() -> None:
    with FakeProvider() as server:
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key="test")
        async with client, af.budget("$0.10", name="chat") as budget:
            answers = await asyncio.gather(*(serve(client, f"customer-{number % 4}") for number in range(20)))
    report = af.report(by=["customer"])
    print(report)
    print(f"\n{budget.spent} USD of $0.10, {budget.reserved} held by calls in flight")

    assert len(answers) == 20
    assert all(answers)
    assert [row.calls for row in report] == [5, 5, 5, 5]
    assert report.total.output_tokens == server.usage_totals()["output_tokens"]
    assert (budget.spent, budget.reserved) == (report.total.amount, 0)


asyncio.run(main())
af.shutdown()
