"""The public surface as typed code. Nobody runs it: `mypy` reads it, and a signature that changes by accident fails there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, assert_type

from opentelemetry.sdk.trace.export import SpanExporter

import aifinops as af
from aifinops import gpu

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)

# --- set up ----------------------------------------------------------------------------------------------------------

af.init()
af.init(ledger="memory", tags={"team": "search"}, otlp="http://localhost:4318", spans="off")
af.init(budgets=[{"name": "search", "limit": "$50", "per": "day", "match": {"team": "search"}}])
af.init(dialects=["langfuse"], semconv="latest", metric_tags=["team"], resource_tags=["service.name"], baggage=True)
af.instrument()
af.instrument("openai")
af.uninstrument()
assert_type(af.flush(), bool)
af.flush(timeout=1.0)
af.shutdown()
assert_type(af.__version__, str)

# --- decorators keep the type of what they decorate --------------------------------------------------------------------


@af.track_cost
def plain(question: str) -> int:
    return len(question)


assert_type(plain("q"), int)


@af.track_cost(team="search", feature="rerank", run=7)
def tagged(question: str, *, limit: int = 3) -> list[str]:
    return [question] * limit


assert_type(tagged("q", limit=2), list[str])


@af.track_cost(name="ask")
async def coroutine(question: str) -> str:
    return question


@af.track_cost(gpu="auto", project="llm-ft")
def generator(steps: int) -> Iterator[int]:
    yield from range(steps)


assert_type(generator(3), Iterator[int])


@af.track_cost()
async def async_generator() -> AsyncGenerator[bytes, None]:
    yield b""


@af.track_cost(team="search")
class Agent:
    """A class stays that class."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def make(cls) -> Agent:
        return cls("a")

    @af.track_cost(feature="step")
    def step(self, number: int) -> float:
        return number / 2


assert_type(Agent("a"), Agent)
assert_type(Agent.make().step(1), float)


@af.budget("$5", per="day", name="search")
def capped(number: int) -> int:
    return number


assert_type(capped(1), int)


@af.tags(customer="acme", propagate=True)
def attributed() -> str:
    return ""


assert_type(attributed(), str)

# --- blocks --------------------------------------------------------------------------------------------------------------


def blocks() -> None:
    with af.track("ingest", team="search") as t:
        assert_type(t.cost, af.Cost)
        assert_type(t.charges, list[af.Charge])
        assert_type(t.record(usage={"read_units": 12}), af.Charge)
        for meter, quantity in t.usage.items():
            assert_type(meter, str)
            assert_type(quantity, int | Decimal)
    with af.tags(customer="acme", run=3):
        pass
    with af.budget("2M tokens", per="minute", on_exceed="warn") as b:
        figures: list[Any] = [b.spent, b.reserved, b.remaining, b.limit]
        figures.clear()
    with af.budget({"USD": 5, "tokens": "2M"}, unknown="reserve", soft=(0.9,), tz="Europe/Berlin"):
        pass
    with af.budget(Decimal(5), match={"team": "search"}):
        pass


async def async_blocks() -> None:
    assert_type(await coroutine("q"), str)
    async for piece in async_generator():
        assert_type(piece, bytes)
    async with af.track("ingest") as t, af.tags(team="a"), af.budget("$1"):
        assert_type(t.cost.amount, Decimal | None)


# --- verbs -----------------------------------------------------------------------------------------------------------------

cost = af.price("gpt-5-mini", input_tokens=1000, output_tokens=200)
assert_type(cost, af.Cost)
assert_type(cost.amount, Decimal | None)
assert_type(cost.explain(), str)
assert_type(cost.lines, tuple[af.CostLine, ...])
af.price("gpt-5-mini", provider="openai", tier="flex", region="eu", at=MOMENT, input_tokens=Decimal(3))
af.register_price(
    "house", provider="local", rates={"input_tokens": "0.10"}, adjust=[{"region": "eu", "multiply": "1.1"}]
)
hosted = af.price_self_hosted(
    "H100", count=8, tokens_per_second=2400, utilisation="0.6", usd_per_gpu_hour=Decimal("2.5")
)
assert_type(hosted.per_million_output, Decimal)
assert_type(hosted.break_even("gpt-4o", input_share=0.8).tokens_per_month, int | None)
af.register_price(**hosted.to_price("house"))
assert_type(af.price_response({"usage": {}}, provider="openai"), af.Cost)
assert_type(af.estimate("gpt-5-mini", messages=[{"role": "user", "content": "hi"}], max_tokens=100), af.Cost)
assert_type(af.estimate("gpt-5-mini", input="hi", tools=[]), af.Cost)
assert_type(af.record(usage={"gpu_seconds": 12.5}, cost="0.02 USD", tags={"team": "a"}), af.Charge)
af.record(cost=Decimal("0.02"), model="pinecone", provider="pinecone", operation="query", at=MOMENT)

report = af.report(by=["team", "model"], since="7d")
assert_type(report.to_json(), str)
assert_type(report.to_csv(), str)
report.assert_under("$1")
af.report("team,model", since=MOMENT, until="2026-12-01", where={"team": "search"})


def work(number: int, *, twice: bool = False) -> str:
    return str(number) * (1 + twice)


bound: Callable[..., str] = af.bind(work)
assert_type(af.bind(work)(1, twice=True), str)

# --- runs on GPUs ----------------------------------------------------------------------------------------------------------

with gpu.track(
    "finetune", team="nlp", devices={"H100": 2}, price="2.49", checkpoint=lambda: None, total_steps=10
) as run:
    assert_type(run, gpu.Run)
    assert_type(run.step(), None)
    assert_type(run.advance(), bool)
    with run.phase("eval"), run.checkpoint():
        pass
    assert_type(run.usage(), gpu.GpuUsage)
    assert_type(run.usage().cost, Decimal | None)
    assert_type(run.estimate_remaining().ends_before_limit, bool | None)
    assert_type(gpu.total(run.gather()), gpu.GpuUsage)
    assert_type(run.error, af.RunStopped | None)

# --- errors and facts ------------------------------------------------------------------------------------------------------

try:
    plain("q")
except af.ApprovalDenied as denied:
    assert_type(denied.budget, str)
except af.BudgetExceeded as refused:
    assert_type(refused.limit, Decimal)
    assert_type(refused.remaining, Decimal)
    assert_type(refused.resets_at, datetime | None)
    assert_type(refused.decision_id, str)
except af.UnknownModel as unknown:
    assert_type(unknown.nearest, tuple[str, ...])
except (af.ConfigurationError, af.ImpossibleUsage, af.PricingError, af.StoreError, af.AIFinOpsError):
    pass

usage = af.Usage({"input_tokens": 3}, af.Sku("openai", "gpt-5-mini"))
facts: list[Any] = [usage, af.Budget, af.ApprovalPending, af.UnpricedCall]

# --- GPUs ----------------------------------------------------------------------------------------------------------------------

with gpu.slot(team="nlp", gpus=8, priority="batch", max_wait=600) as slot:
    assert_type(slot.should_yield(), bool)
    assert_type(slot.gpus, int)


async def on_gpus() -> None:
    async with gpu.slot(team="nlp") as held:
        assert_type(held.lost, bool)


with gpu.Serving("llama", devices={"NVIDIA H100 80GB HBM3": 2}, price="2.49", team="platform") as server:
    with server.request(team="search") as request:
        request.tokens(prompt=10, output=2)
    assert_type(server.totals.usd_per_request, Decimal | None)

rate = gpu.rate("NVIDIA H100 80GB HBM3", gpu.place(), at=0)
assert_type(rate.usd_per_hour, Decimal | None)
assert_type(rate.cost(3600), af.Cost)


# --- exporters ---------------------------------------------------------------------------------------------------------


def exporters(exporter: SpanExporter) -> SpanExporter:
    return af.SpanPricer(af.DialectExporter(exporter, ["langfuse", "logfire"]), record=False)
