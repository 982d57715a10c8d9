"""What no integration knows is recorded by hand, and counts in the same ledger, reports and budgets."""

from decimal import Decimal

import aifinops as af

af.init(ledger="memory", tags={"project": "ingest"})

with af.budget("$2", name="ingest") as budget, af.track("ingest", team="search") as ingest:
    # A service that says what it costs.
    af.record(provider="pinecone", service="vector", usage={"read_units": 1_200}, cost="0.0192 USD")
    # Tokens of a model that the price lists know: no cost is given, so the list decides.
    af.record(
        provider="openai",
        service="llm",
        operation="chat",
        model="gpt-4o-mini",
        usage={"input_tokens": 40_000, "output_tokens": 2_000},
    )
    # Something that nobody has a price for: its cost is unknown, which is not zero.
    unknown = af.record(provider="basement", service="gpu", model="old-card", usage={"gpu_seconds": Decimal("12.5")})

print(af.report(by=["provider"]))
print(f"\n{budget.spent} USD of the budget; {ingest.cost}")

assert unknown.amount is None
known = Decimal("0.0192") + af.price("gpt-4o-mini", input_tokens=40_000, output_tokens=2_000).amount
assert budget.spent == ingest.cost.amount == known
assert af.report().total.unpriced_calls == 1
af.shutdown()
