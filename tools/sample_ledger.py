"""A ledger of two made-up months of five teams, priced by the bundled lists: what the pictures of the docs are drawn from.

`python tools/sample_ledger.py LEDGER` writes one that ends at `NOW`. Every run writes the same calls.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.charges import Amounts, Charge
from aifinops.clock import to_ns
from aifinops.ledger import open_ledger
from aifinops.quote import price
from aifinops.tags import make_tags
from aifinops.testing import FakeClock

NOW = datetime(2026, 11, 30, 14, 30, tzinfo=UTC)
DAYS = 60
_HOUR = 3_600_000_000_000


@dataclass(frozen=True)
class Stream:
    """One kind of call of one team: `daily` calls a day, growing by `growth` a month, from day `start` on."""

    team: str
    feature: str
    provider: str
    model: str
    daily: float
    tokens: tuple[int, int, int]  # fresh input, read from a cache, output
    growth: float = 1.0
    start: int = 0
    until: int = DAYS
    operation: str = "chat"
    estimated: float = 0.0
    spike: int | None = None  # a day on which it runs wild


STREAMS = (
    Stream("support", "answers", "openai", "gpt-5-mini", 46, (62_000, 41_000, 9_000), 1.25),
    Stream("support", "triage", "openai", "gpt-5-nano", 60, (38_000, 0, 2_400)),
    Stream("search", "rerank", "anthropic", "claude-haiku-4-5", 30, (44_000, 120_000, 3_800), 1.1),
    Stream("search", "embeddings", "openai", "text-embedding-3-large", 24, (480_000, 0, 0), operation="embeddings"),
    Stream(
        "assistant",
        "agent",
        "anthropic",
        "claude-sonnet-4-5",
        17,
        (52_000, 260_000, 14_000),
        1.7,
        spike=47,
        estimated=0.06,
    ),
    Stream("assistant", "voice notes", "google", "gemini-2.5-flash", 22, (90_000, 30_000, 8_000), start=34),
    Stream("research", "evals", "openai", "gpt-5", 7, (70_000, 10_000, 30_000), 0.8, estimated=0.1),
    Stream("research", "evals", "local", "house-llama-70b", 5, (40_000, 0, 12_000), start=38),
    Stream("billing", "letters", "mistral", "mistral-large-latest", 9, (22_000, 0, 5_000), until=24),
)
GPU_HOURS = ((41, 18), (42, 30), (43, 30), (52, 22), (53, 34), (59, 9))
"""Day and H100 hours of training runs."""


def write(path: str | Path, now: datetime = NOW) -> int:
    """Write the ledger; how many entries it has."""
    source = random.Random(20261130)
    charges = sorted((*_calls(source, now), *_training(now)), key=lambda charge: charge.at)
    ledger = open_ledger(path)
    try:
        return ledger.append_many([replace(charge, id=f"{n:032x}") for n, charge in enumerate(charges, 1)])
    finally:
        ledger.close()


def _calls(source: random.Random, now: datetime) -> Iterator[Charge]:
    begin = now - timedelta(days=DAYS)
    for stream in STREAMS:
        for day in range(stream.start, stream.until + 1):
            for at in _moments(source, stream, begin, day):
                if at < now:
                    yield _call(source, stream, at)


def _moments(source: random.Random, stream: Stream, begin: datetime, day: int) -> Iterator[datetime]:
    midnight = begin.replace(hour=0, minute=0) + timedelta(days=day)
    busy = 0.35 if midnight.weekday() >= 5 else 1.0
    wild = 4.2 if day == stream.spike else 1.0
    count = stream.daily * busy * wild * stream.growth ** (day / 30 - 1) * source.uniform(0.85, 1.15)
    for _ in range(round(count)):
        hour = min(23.9, max(0.0, source.gauss(14, 3.8)))
        yield midnight + timedelta(hours=hour, seconds=source.random() * 60)


def _call(source: random.Random, stream: Stream, at: datetime) -> Charge:
    size = math.exp(source.gauss(0, 0.5))
    fresh, cached, output = (round(count * size) for count in stream.tokens)
    counts = {"input_tokens": fresh, "cache_read_tokens": cached, "output_tokens": output}
    quantities = {name: count for name, count in counts.items() if count}
    cost = price(stream.model, provider=stream.provider, at=at, **quantities)
    amounts = Amounts.of(cost)
    if cost.known and source.random() < stream.estimated:  # the stream was left half-way: the end is not known
        assert amounts.amount is not None
        amounts = amounts._replace(basis="estimated", lower=amounts.amount * 6 // 10, upper=amounts.amount * 15 // 10)
    tags = {"team": stream.team, "feature": stream.feature}
    return _charge(
        stream.provider,
        stream.operation,
        stream.model,
        at,
        quantities,
        amounts,
        tags,
        duration=int(source.uniform(0.5, 9) * 1e9),
    )


def _training(now: datetime) -> Iterator[Charge]:
    for day, hours in GPU_HOURS:
        at = (now - timedelta(days=DAYS)).replace(hour=6, minute=0) + timedelta(days=day)
        quantities = {"gpu_seconds": Decimal(hours * 3600)}
        cost = price("H100-SXM", provider="runpod", at=at, gpu_seconds=Decimal(hours * 3600))
        tags = {"team": "research", "feature": "fine-tuning", "run": f"ft-{day}"}
        yield _charge(
            "runpod", "train", "H100-SXM", at, quantities, Amounts.of(cost), tags, service="gpu", duration=_HOUR
        )


def _charge(provider, operation, model, at, quantities, amounts, tags, **more) -> Charge:  # type: ignore[no-untyped-def] # all of `Charge`
    return Charge(
        id="", at=to_ns(at), provider=provider, operation=operation, model=model, quantities=quantities, amount=amounts.amount,
        currency=amounts.currency, basis=amounts.basis, lower=amounts.lower, upper=amounts.upper, lines=amounts.lines,
        price_id=amounts.price_id, price_as_of=amounts.as_of, price_source=amounts.source, tags=make_tags(tags), **more,
    )  # fmt: skip


RUNS = (("research", "finetune", 4, 0.93), ("research", "ablation", 2, 0.31), ("assistant", "distill", 1, 0.88))
"""Team, name of the run, H100s, and how busy they are."""

IN_FLIGHT = (
    (("gpt-5-mini", 0.4), ("gpt-5-mini", 1.9), ("claude-haiku-4-5", 0.8)),
    (("gpt-5", 14.2), ("claude-haiku-4-5", 2.6)),
)
"""Calls of two processes: model, and for how many seconds each lasts by now."""


def write_hour(path: str | Path, now: datetime = NOW) -> int:
    """Write a ledger of the last hour, as busy as that of a service: many small calls, and GPU runs that make a charge a minute."""
    source = random.Random(1430)
    charges = [*_busy(source, now), *_runs(now)]
    ledger = open_ledger(path)
    try:
        return ledger.append_many([replace(charge, id=f"{n:032x}") for n, charge in enumerate(charges, 1)])
    finally:
        ledger.close()


def _busy(source: random.Random, now: datetime) -> Iterator[Charge]:
    for stream in STREAMS:
        small = replace(stream, tokens=tuple(count // 30 for count in stream.tokens), estimated=stream.estimated / 4)
        for minute in range(62):
            wild = 3.5 if stream.feature == "agent" and 33 <= minute < 39 else 1 + 0.4 * math.sin(minute / 6)
            for _ in range(round(stream.daily / 5 * wild * source.uniform(0.6, 1.4))):
                yield _call(source, small, now - timedelta(minutes=61 - minute, seconds=source.uniform(0, 60)))


def _runs(now: datetime) -> Iterator[Charge]:
    for team, run, gpus, busy in RUNS:
        for minute in range(1, 56):
            seconds = Decimal(gpus * 60)
            cost = price("H100-SXM", provider="runpod", at=now, gpu_seconds=seconds)
            facts = {
                "model": "NVIDIA H100 80GB HBM3",
                "name": run,
                "uuids": [f"GPU-{run}-{n}" for n in range(gpus)],
                "busy_s": float(seconds) * busy,
            }
            tags = {"team": team, "run": hashlib.sha256(run.encode()).hexdigest()[:12]}
            at = now - timedelta(minutes=minute)
            yield _charge(
                "runpod",
                "gpu",
                "H100-SXM",
                at,
                {"gpu_seconds": seconds},
                Amounts.of(cost),
                tags,
                service="gpu",
                duration=60 * 10**9,
                raw={"gpu": facts},
            )


BUDGETS = (
    ("assistant", "$550", "month", "526.29", "1.40"),
    ("search", "$150", "month", "100.53", "0"),
    ("support", "$60", "month", "53.00", "0.22"),
    ("evals tokens", "3M output_tokens", "day", "1.1", "0"),
)
"""Name, limit, window, spent, held by calls in flight; in the unit of the limit, of tokens in millions."""


def write_budgets(path: str | Path, now: datetime = NOW) -> None:
    """Write a store in which these budgets stand so."""
    clock = FakeClock(now)
    store = SqliteStore(path)
    guard = Guard(store, clock)
    for name, limit, per, spent, held in BUDGETS:
        active = ActiveBudget(Budget.parse(limit, name=name, per=per, max_wait=0))
        unit, scale = ("USD", 10**9) if limit.startswith("$") else ("output_tokens", 10**12)
        for number, amount in enumerate((spent, held)):
            steps = int(Decimal(amount) * scale)
            reserved = (
                guard.reserve([active], {unit: steps}, id=f"{name}-{number}", at=clock.time_ns()) if steps else None
            )
            if number == 0:
                guard.settle(reserved, {unit: steps})
    store.close()


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {write(sys.argv[1])} entries up to {NOW:%Y-%m-%d %H:%M} UTC")
