"""What does a function cost, and whose cost is it? One decorator, one import, no change to the calls."""

import openai

import aifinops as af
from aifinops.testing import FakeProvider

af.init(ledger="memory")
af.instrument("openai")


@af.track_cost(team="search", feature="rerank")
def rerank(client: openai.OpenAI, question: str) -> str:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content or ""


@af.track_cost(team="support", feature="answer")
def reply(client: openai.OpenAI, question: str) -> str:
    with af.tags(customer="acme"):  # attribution alone; the block around it stays the same
        rerank(client, question)  # its own team is charged for this one
    return client.responses.create(model="gpt-5-mini", input=question).output_text


with (
    FakeProvider() as server,
    openai.OpenAI(base_url=server.base_url, api_key="test") as client,
    af.track("the whole request") as request,
):
    reply(client, "Where is my parcel?")

print(af.report(by=["team", "feature", "customer"]))
print(f"\none request: {request.cost}, {request.usage}")

spent = {(row.key["team"], row.key["customer"]): row.calls for row in af.report(by=["team", "customer"])}
assert spent == {("search", "acme"): 1, ("support", ""): 1}
assert request.cost.amount == af.report().total.amount
af.shutdown()
