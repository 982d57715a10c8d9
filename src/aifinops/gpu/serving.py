"""What a request costs on a server of one's own: its part of the GPU's time, by tokens, beside those who shared the batch; and what idled.

    with Serving("llama-house", devices={"NVIDIA H100 80GB HBM3": 2}) as server:      # the whole uptime is paid for
        with server.request(team="search") as request:
            answer = engine.generate(...)
            request.tokens(prompt=812, cached=512, output=96)

An engine with continuous batching has many requests on one GPU at each moment. A stretch of time in which the same requests run is divided among
them by their weighted tokens a second; a stretch in which none runs is idle, a line of its own. All of the uptime is in one of them, and the parts
add up to its cost in nano-dollars.

A request is charged once nothing can change its part any more: when everybody who ran beside it has ended, too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Context, Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aifinops import runtime, scope
from aifinops.errors import swallow
from aifinops.gpu.allocation import share_out
from aifinops.tags import make_tags, merge
from aifinops.usage import Quantities

if TYPE_CHECKING:
    from aifinops.charges import Cost
    from aifinops.clock import Clock
    from aifinops.gpu.journal import Group
    from aifinops.scope import Scope

__all__ = ["Counters", "Request", "Serving", "Span", "Totals", "Weights", "divide", "per_token", "read_counters"]

_NS = 1_000_000_000
_EXACT = Context(prec=60)
_FINE = 1 << 40
"""Tokens a nanosecond are compared as whole numbers of this fineness."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much of the GPU's time one token takes, beside the others; only their ratios count.

    Reading a prompt is done for all of its tokens at once, writing goes token by token: an output token takes a multiple of the time. The
    defaults are of the order in which APIs price them; measure your own (time of a request with a long prompt and one output token, and the
    other way round).

    Attributes:
        prompt: a token that is read. cached: one that was found in the prefix cache. output: one that is written.
    """

    prompt: int = 10
    cached: int = 1
    output: int = 40

    def of(self, prompt: int, cached: int, output: int) -> int:
        """Of a request; `cached` tokens are a part of `prompt`."""
        return self.prompt * (prompt - cached) + self.cached * cached + self.output * output


@dataclass(frozen=True, slots=True)
class Span:
    """A request that has ended.

    Attributes:
        id: of the request. start, end: monotonic nanoseconds. weight: weighted tokens; 0 for one that failed before any.
    """

    id: str
    start: int
    end: int
    weight: int

    @property
    def pace(self) -> int:
        """Weighted tokens a nanosecond, as a whole number; 1 at least, since being there takes a place in the batch."""
        return max(1, self.weight * _FINE // max(1, self.end - self.start))


def divide(start: int, end: int, spans: Sequence[Span]) -> tuple[dict[str, int], int]:
    """Divide a stretch of time: (request -> nanoseconds, idle nanoseconds); together they are `end - start` exactly.

    Args:
        start, end: monotonic nanoseconds. spans: every request that ran in any part of it.
    """
    parts = {one.id: 0 for one in spans if one.start < end and one.end > start}
    inside = [one for one in spans if one.id in parts]
    edges = sorted({start, end, *(max(start, one.start) for one in inside), *(min(end, one.end) for one in inside)})
    begins = sorted(inside, key=lambda one: one.start)
    running: dict[str, Span] = {}
    idle = number = 0
    for since, until in pairwise(edges):
        while number < len(begins) and begins[number].start <= since:
            running[begins[number].id] = begins[number]
            number += 1
        running = {id: one for id, one in running.items() if one.end > since}
        if not running:
            idle += until - since
            continue
        shares = share_out(until - since, [one.pace for one in running.values()])
        for id, share in zip(running, shares, strict=True):
            parts[id] += share
    return parts, idle


@dataclass(slots=True)
class Totals:
    """What a server has done, as far as it is charged.

    Attributes:
        uptime_s: wall seconds. busy_s: of these, with at least one request. device_s: uptime x devices, which is what the bill is.
        requests: charged ones. prompt, cached, output: their tokens. cost: USD, None without a price. idle_cost: of what idled, likewise.
    """

    uptime_s: Decimal = Decimal(0)
    busy_s: Decimal = Decimal(0)
    device_s: Decimal = Decimal(0)
    cost: Decimal | None = Decimal(0)
    idle_cost: Decimal | None = Decimal(0)
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0

    @property
    def usd_per_request(self) -> Decimal | None:
        """With the idle part in it: what the deployment costs for each request that it serves."""
        return None if self.cost is None or not self.requests else self.cost / self.requests

    @property
    def usd_per_million_tokens(self) -> Decimal | None:
        """Of prompt and output together, with the idle part in it."""
        tokens = self.prompt + self.output
        return None if self.cost is None or not tokens else self.cost * 1_000_000 / tokens

    @property
    def idle_share(self) -> Decimal | None:
        """Of the cost."""
        return None if not self.cost or self.idle_cost is None else self.idle_cost / self.cost


@dataclass(slots=True)
class Request:
    """One that runs.

    Attributes:
        id: of the request; the `response_id` of its charge.
    """

    id: str
    start: int
    at: int
    scope: Scope
    prompt: int = 0
    cached: int = 0
    output: int = 0
    end: int = 0
    error: str = ""
    part: int = 0

    def tokens(self, *, prompt: int = 0, cached: int = 0, output: int = 0) -> None:
        """What the engine says that it has read and written; the last word counts.

        Args:
            prompt: all tokens of the prompt. cached: those of them that were found in the prefix cache. output: what was written.
        """
        self.prompt, self.cached, self.output = max(0, prompt), min(max(0, cached), max(0, prompt)), max(0, output)

    def usage(self, answer: Any) -> None:
        """The same from an answer of an OpenAI-compatible server (vLLM, SGLang, TGI): a dict, or an object with `usage`."""
        usage = answer.get("usage") if isinstance(answer, Mapping) else getattr(answer, "usage", None)
        details = _field(usage, "prompt_tokens_details")
        self.tokens(
            prompt=int(_field(usage, "prompt_tokens") or 0),
            cached=int(_field(details, "cached_tokens") or 0),
            output=int(_field(usage, "completion_tokens") or 0),
        )


def _field(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


class Serving:
    """A server of one's own, from `open` to `close`. Threads and tasks share one.

    Args:
        model: as its charges name it. devices: `"auto"` for those that this process may use, or model -> count.
        price: USD an hour of one device, or `"auto"`. weights: of tokens. window_s: how often what idled is charged.
        tags: of what idled; a request has those of the scope that it began in.
    """

    def __init__(
        self,
        model: str,
        *,
        devices: Any = "auto",
        price: Any = "auto",
        weights: Weights | None = None,
        window_s: float = 60.0,
        **tags: object,
    ) -> None:
        self.model = model
        self.totals = Totals()
        self._weights = weights or Weights()
        self._window = int(window_s * _NS)
        self._spec, self._price = devices, price
        self._tags = make_tags(tags)
        self._lock = threading.Lock()
        self._running: dict[str, Request] = {}
        self._ended: list[Request] = []
        self._begun = self._settled = self._wall = 0
        self._open = False
        self._groups: list[Group] = []
        self._told: dict[int, tuple[Decimal, int]] = {}
        self._scope = scope.current()
        self._clock: Clock = runtime.get().clock
        self._count = 0

    def open(self) -> Serving:
        """The uptime begins.

        Raises:
            ConfigurationError: for devices or a price that are none.
        """
        from aifinops.gpu import billing, distributed

        engines = runtime.get()
        self._wall = engines.clock.time_ns()
        found = billing.find_devices(self._spec, distributed.rank())
        groups = billing.groups_of(found, billing.here(engines), at=self._wall, price=self._price)
        self._groups = [group for group, _ in groups]
        self._scope = replace(scope.current(), tags=merge(scope.current().tags, self._tags))
        self._clock = engines.clock
        self._begun = self._settled = self._clock.monotonic_ns()
        self._open = True
        return self

    def close(self) -> None:
        """The uptime ends: everything is charged, also what still runs, with the tokens that it has said so far."""
        with self._lock:
            if not self._open:
                return
            now = self._clock.monotonic_ns()
            for request in self._running.values():
                request.end = now
                self._ended.append(request)
            self._running.clear()
            self._settle(now)
            self._open = False

    def __enter__(self) -> Serving:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def request(self, id: str = "", **tags: object) -> Iterator[Request]:
        """A request, from the moment at which the engine has it until its last token.

        Args:
            id: yours, or none. tags: beside those in force.
        """
        here = scope.current()
        mine = replace(here, tags=merge(here.tags, make_tags(tags)))
        with self._lock:
            self._count += 1
            one = Request(id or f"{self.model}-{self._count}", self._clock.monotonic_ns(), self._clock.time_ns(), mine)
            key = str(self._count)
            self._running[key] = one
        try:
            yield one
        except BaseException as error:
            one.error = type(error).__name__
            raise
        finally:
            with self._lock:
                if self._running.pop(key, None) is not None:
                    one.end = self._clock.monotonic_ns()
                    self._ended.append(one)
                    self._settle_when_due(one.end)

    def tick(self) -> None:
        """Charge what is due though no request has ended: for a server that idles long."""
        with self._lock:
            if self._open:
                self._settle_when_due(self._clock.monotonic_ns())

    # --- settling -----------------------------------------------------------------------------------------------------------

    def _settle_when_due(self, now: int) -> None:
        # Beyond the first one that still runs nothing is sure: nobody knows how many tokens it will have had.
        sure = min((one.start for one in self._running.values()), default=now)
        if sure - self._settled >= self._window:
            self._settle(sure)

    def _settle(self, until: int) -> None:
        """Divide and charge what lies between the last time and `until`."""
        since, self._settled = self._settled, until
        inside = [one for one in self._ended if one.start < until]
        by_number = {str(number): one for number, one in enumerate(inside)}
        spans = [Span(key, one.start, one.end, self._weight(one)) for key, one in by_number.items()]
        parts, idle = divide(since, until, spans)
        for key, ns in parts.items():
            by_number[key].part += ns
        done = [one for one in inside if one.end <= until]
        self._ended = [one for one in self._ended if not (one.start < until and one.end <= until)]
        try:
            self._charge(since, until, idle, done)
        except Exception as failure:  # the requests of others go on
            swallow("gpu.serving", failure)

    def _weight(self, one: Request) -> int:
        return self._weights.of(one.prompt, one.cached, one.output)

    def _charge(self, since: int, until: int, idle: int, done: Iterable[Request]) -> None:
        totals = self.totals
        totals.uptime_s += Decimal(until - since).scaleb(-9)
        totals.busy_s += Decimal(until - since - idle).scaleb(-9)
        if idle:
            self._record(
                self._scope, self._wall + (since - self._begun), until - since, idle, {}, {"idle": True, "busy_s": 0.0}
            )
        for one in done:
            counts: dict[str, Any] = {
                "input_tokens": one.prompt - one.cached, "cache_read_tokens": one.cached, "output_tokens": one.output,
            }  # fmt: skip
            busy = float(Decimal(one.part).scaleb(-9) * self._devices)
            length = one.end - one.start
            self._record(one.scope, one.at, length, one.part, counts, {"busy_s": busy}, id=one.id, error=one.error)
            totals.requests += 1
            totals.prompt += one.prompt
            totals.cached += one.cached
            totals.output += one.output

    @property
    def _devices(self) -> Decimal:
        return sum((group.held for group in self._groups), Decimal(0))

    def _record(
        self,
        where: Scope,
        at: int,
        length: int,
        part: int,
        counts: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        id: str = "",
        error: str = "",
    ) -> None:
        from aifinops import metering
        from aifinops.reading import Reading

        seconds = Decimal(part).scaleb(-9)
        held: Quantities = {name: value for name, value in counts.items() if value}
        for number, group in enumerate(self._groups):
            cost = self._cost(number, group, seconds * group.held)
            about = {"model": group.model, "uuids": list(group.uuids), "serving": self.model, **facts}
            quantities: Quantities = {**(held if not number else {}), "gpu_seconds": seconds * group.held}
            call = metering.Call(group.provider, "serve", self.model, service="gpu", tier=group.tier)
            reading = Reading(quantities, {"gpu": about}, model=self.model, region=group.region, response_id=id)
            metering.record_held(call, reading, cost=cost, scope=where, at=at, duration=length, error=error)
            self._add(seconds * group.held, cost.amount, idle="idle" in facts)

    def _cost(self, number: int, group: Group, device_s: Decimal) -> Cost:
        """The part of the bill: the running total in whole nano-dollars less what was charged before, so that all parts add up to it."""
        from aifinops.gpu import billing

        exact = billing.cost_of(group, device_s)
        if exact.amount is None:
            return exact
        told = self._told.get(number, (Decimal(0), 0))
        total = _EXACT.add(told[0], exact.amount)
        nanos = int(_EXACT.scaleb(total, 9).to_integral_value(ROUND_FLOOR))
        self._told[number] = total, nanos
        amount = Decimal(nanos - told[1]).scaleb(-9)
        line = replace(exact.lines[0], amount=amount)
        return replace(exact, amount=amount, lower=amount, upper=amount, list_amount=amount, lines=(line,))

    def _add(self, device_s: Decimal, amount: Decimal | None, *, idle: bool) -> None:
        totals = self.totals
        totals.device_s += device_s
        totals.cost = None if amount is None or totals.cost is None else totals.cost + amount
        if idle:
            totals.idle_cost = None if amount is None or totals.idle_cost is None else totals.idle_cost + amount


# --- what an engine says of itself -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of an engine since it was started; None where it does not say.

    Attributes:
        prompt, cached, output: tokens. requests: that have ended. running, waiting: at the moment.
    """

    prompt: int | None = None
    cached: int | None = None
    output: int | None = None
    requests: int | None = None
    running: int | None = None
    waiting: int | None = None
    others: Mapping[str, float] = field(default_factory=dict, compare=False)


_NAMES = {
    "prompt": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "cached": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "output": ("vllm:generation_tokens_total", "sglang:generation_tokens_total"),
    "requests": ("vllm:request_success_total", "sglang:num_requests_total"),
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
}
"""Of vLLM (https://docs.vllm.ai/en/latest/usage/metrics.html) and SGLang, the first that is there."""


def read_counters(text: str) -> Counters:
    """From the text of a `/metrics` page; what several label sets have is added up."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if not rest:
            name, _, rest = line.partition(" ")
            value = rest
        else:
            value = rest.rpartition("}")[2]
        if line.startswith("#") or not value.strip():
            continue
        try:
            number = float(value.split()[0])
        except ValueError:
            continue
        sums[name.strip()] = sums.get(name.strip(), 0.0) + number
    found = {key: next((int(sums[name]) for name in names if name in sums), None) for key, names in _NAMES.items()}
    return Counters(**found, others=sums)


def per_token(
    before: Counters, after: Counters, cost: Decimal | None, *, weights: Weights | None = None
) -> Mapping[str, Decimal | None]:
    """USD for a million tokens of each kind between two looks at an engine, idle time in it: `prompt`, `cached`, `output`.

    Args:
        before, after: counters; where one is lower after than before, the engine was started anew in between and counts from 0.
        cost: of all devices in that time, USD. weights: how the kinds compare.

    Returns:
        None for each where the cost is unknown, or no token was counted.
    """
    scale = weights or Weights()
    counts = {name: _grown(getattr(before, name), getattr(after, name)) for name in ("prompt", "cached", "output")}
    total = scale.of(counts["prompt"], min(counts["cached"], counts["prompt"]), counts["output"])
    kinds = {"prompt": scale.prompt, "cached": scale.cached, "output": scale.output}
    if cost is None or not total:
        return dict.fromkeys(kinds)
    return {name: cost * weight * 1_000_000 / total for name, weight in kinds.items()}


def _grown(before: int | None, after: int | None) -> int:
    if after is None:
        return 0
    return after - before if before is not None and after >= before else after
