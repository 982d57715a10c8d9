"""Calls of a real service, from ServeGen's published rates: 43 clients of a hosted model over 14 days, 1.4 billion requests.

The archive lies in the folder that AIFINOPS_CORPUS names (github.com/alibaba/ServeGen, Apache-2.0) and is read where it lies. It has the rate
of each client for every ten minutes, and, of another model's 73 clients, histograms of tokens for every six hours: each client of the
first gets the histograms of one of the second. Rates are thinned out evenly until so many rows are left as are asked for. Which team, feature,
model and price a client has is made up here, since nobody publishes that.
"""

from __future__ import annotations

import ast
import json
import os
import random
import tarfile
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge, make_charge

__all__ = ["START_NS", "Service", "load"]

START_NS = 1_762_732_800_000_000_000
"""2025-11-10, 00:00 UTC: the first window of the trace."""

WINDOW_S = 600
ARCHIVE = "servegen/m-small-traces+deepseek-r1.tar.gz"
TEAMS = (
    "search",
    "support",
    "growth",
    "risk",
    "billing",
    "docs",
    "mobile",
    "data",
    "platform",
    "research",
    "legal",
    "sales",
)
MODELS = (
    # provider, model, answered by, nano-dollars a fresh, a cached and a written token.
    ("openai", "gpt-5-mini", "gpt-5-mini-2025-08-07", 250, 25, 2_000),
    ("openai", "gpt-5", "gpt-5-2025-08-07", 1_250, 125, 10_000),
    ("anthropic", "claude-haiku-4-5", "claude-haiku-4-5-20251001", 1_000, 100, 5_000),
    ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 3_000, 300, 15_000),
    ("google", "gemini-2.5-flash", "gemini-2.5-flash", 300, 75, 2_500),
    ("deepseek", "deepseek-reasoner", "deepseek-reasoner", 280, 28, 420),
)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values and their shares, added up."""

    values: list[float]
    shares: list[float]

    @classmethod
    def of(cls, text: str) -> Histogram:
        pairs = sorted(ast.literal_eval(text).items())
        return cls([value for value, _ in pairs], list(accumulate(share for _, share in pairs)))

    def draw(self, source: random.Random) -> float:
        place = bisect(self.shares, source.random() * self.shares[-1])
        return self.values[min(place, len(self.values) - 1)]


@dataclass(frozen=True, slots=True)
class Client:
    """Requests a second in each window of ten minutes, and what they look like: (input, output, share of reasoning) every six hours."""

    name: str
    rates: list[float]
    sizes: list[tuple[Histogram, Histogram, Histogram]]


@dataclass(frozen=True, slots=True)
class Service:
    """Everybody's calls, by time."""

    clients: list[Client]

    @property
    def requests(self) -> float:
        """How many there were."""
        return sum(sum(client.rates) for client in self.clients) * WINDOW_S

    def charges(self, rows: int, seed: int = 7) -> Iterator[Charge]:
        """About so many of them, evenly thinned out, in order of time."""
        source = random.Random(seed)
        share = rows / self.requests
        left = [source.random() for _ in self.clients]
        number = 0
        for window in range(max(len(client.rates) for client in self.clients)):
            calls: list[tuple[int, int]] = []
            for place, client in enumerate(self.clients):
                left[place] += client.rates[window] * WINDOW_S * share if window < len(client.rates) else 0
                count = int(left[place])
                left[place] -= count
                begin = START_NS + window * WINDOW_S * 10**9
                calls += [(begin + int(source.random() * WINDOW_S * 1e9), place) for _ in range(count)]
            for at, place in sorted(calls):
                number += 1
                yield _charge(source, self.clients[place], place, at, number)


def load(folder: str | os.PathLike[str] | None = None) -> Service:
    """Read the archive.

    Raises:
        SystemExit: without the folder, saying what to set.
    """
    folder = folder or os.environ.get("AIFINOPS_CORPUS")
    if not folder or not (Path(folder) / ARCHIVE).exists():
        raise SystemExit(f"set AIFINOPS_CORPUS to a folder that has {ARCHIVE}")
    rates: dict[str, list[float]] = {}
    sizes: dict[str, list[tuple[Histogram, Histogram, Histogram]]] = {}
    with tarfile.open(Path(folder) / ARCHIVE) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            name = Path(member.name).name.rsplit("-", 1)[0]
            if member.name.startswith("language/"):
                rates[name] = [float(line.split(b",")[1]) for line in file.read().split()]
            elif member.name.endswith("-dataset.json"):
                sizes[name] = _sizes(json.load(file))
    kinds = [sizes[name] for name in sorted(sizes) if sizes[name]]
    return Service([Client(name, rates[name], kinds[place % len(kinds)]) for place, name in enumerate(sorted(rates))])


def _sizes(windows: dict[str, dict[str, str]]) -> list[tuple[Histogram, Histogram, Histogram]]:
    names = ("input_tokens", "output_tokens", "reason_ratio")
    whole = [
        windows[start]
        for start in sorted(windows, key=int)
        if all(windows[start].get(name, "{}") != "{}" for name in names)
    ]
    found = [tuple(Histogram.of(window[name]) for name in names) for window in whole]
    return [(one, other, third) for one, other, third in found if one.values and other.values and third.values]


def _charge(source: random.Random, client: Client, place: int, at: int, number: int) -> Charge:
    window = (at - START_NS) // (21_600 * 10**9)
    fresh, written, ratio = client.sizes[window % len(client.sizes)]
    tokens, answer = int(fresh.draw(source)), int(written.draw(source))
    reasoning = int(answer * ratio.draw(source))
    provider, model, answered, fresh_price, cached_price, written_price = MODELS[
        (place + (source.random() < 0.2)) % len(MODELS)
    ]
    cached = tokens // 2 if source.random() < 0.3 else 0
    quantities = {"input_tokens": tokens - cached, "output_tokens": answer - reasoning}
    lines = [("input_tokens", (tokens - cached) * fresh_price), ("output_tokens", (answer - reasoning) * written_price)]
    if cached:
        quantities["cache_read_tokens"] = cached
        lines.append(("cache_read_tokens", cached * cached_price))
    if reasoning:
        quantities["reasoning_tokens"] = reasoning
        lines.append(("reasoning_tokens", reasoning * written_price))
    amount = sum(value for _, value in lines)
    raw: dict[str, Any] = {
        "prompt_tokens": tokens,
        "completion_tokens": answer,
        "total_tokens": tokens + answer,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }
    return make_charge(
        id=f"{at:016x}{source.getrandbits(64):016x}", at=at, duration=10**8 + answer * 10**7, provider=provider, operation="chat",
        model=model, response_model=answered, response_id=f"chatcmpl-{number:024x}", service="llm", tier="", region="",
        quantities=quantities, amount=amount, currency="USD", basis="priced", lower=amount, upper=amount, lines=tuple(lines),
        price_id=f"list/{provider}/{model}", price_as_of="2025-11-01", price_source="list 1.0", stream=False,
        status="error" if source.random() < 0.004 else "ok", error="",
        tags=MappingProxyType({"team": TEAMS[place % len(TEAMS)], "feature": ("chat", "rerank", "agent")[place % 3], "customer": client.name}),
        trace_id=f"{source.getrandbits(128):032x}", span_id=f"{source.getrandbits(64):016x}", corrects="", raw=raw,
    )  # fmt: skip
