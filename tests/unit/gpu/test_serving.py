"""Serving: each request's part of the GPU's time, what idled, and that all of it is the uptime to the nano-dollar."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aifinops as af
from aifinops import runtime
from aifinops.gpu.serving import Counters, Serving, Span, Weights, divide, per_token, read_counters
from aifinops.testing import FakeClock

H100 = "NVIDIA H100 80GB HBM3"
S = 10**9


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    af.init(ledger="memory", clock=clock)
    return clock


def charges() -> list[Any]:
    return list(runtime.get().ledger.rows())


def test_alone_is_all_busy_time_and_the_rest_idles() -> None:
    """One request has the time in which it ran; before and after it the server idles."""
    assert divide(0, 100, [Span("a", 20, 70, 1000)]) == ({"a": 50}, 50)


def test_a_batch_is_divided_by_pace() -> None:
    """Two at once: who has three times the tokens in the same time has three times the time."""
    parts, idle = divide(0, 400, [Span("a", 0, 400, 300), Span("b", 0, 400, 100)])
    assert (parts, idle) == ({"a": 300, "b": 100}, 0)
    # b has its tokens in half of the time, so beside it a has half of each moment.
    parts, idle = divide(0, 400, [Span("a", 0, 400, 400), Span("b", 0, 200, 200)])
    assert (parts, idle) == ({"a": 300, "b": 100}, 0)


def test_a_request_without_tokens_takes_next_to_nothing_of_others() -> None:
    """One that failed has the time that it was alone, and a place in the batch beside others."""
    parts, idle = divide(0, 300, [Span("a", 0, 100, 0), Span("b", 100, 300, 50), Span("c", 100, 300, 0)])
    assert parts["a"] == 100
    assert parts["b"] >= 199
    assert idle == 0
    assert sum(parts.values()) == 300


SPANS = st.lists(
    st.tuples(st.integers(-50, 1000), st.integers(0, 500), st.integers(0, 10**6)), max_size=12
).map(lambda rows: [Span(str(number), start, start + length, weight) for number, (start, length, weight) in enumerate(rows)])  # fmt: skip


@given(st.integers(0, 500), st.integers(1, 500), SPANS)
def test_time_is_neither_lost_nor_made(start: int, length: int, spans: list[Span]) -> None:
    """Parts and idle are the stretch exactly; nobody has more than the time he was there."""
    end = start + length
    parts, idle = divide(start, end, spans)
    assert sum(parts.values()) + idle == length
    for one in spans:
        assert parts.get(one.id, 0) <= max(0, min(end, one.end) - max(start, one.start))


@given(st.integers(1, 999), SPANS)
def test_windows_change_nothing_but_rounding(cut: int, spans: list[Span]) -> None:
    """Dividing two windows gives what dividing the whole does, to a nanosecond for each edge."""
    whole, idle = divide(0, 1000, spans)
    first, idle_1 = divide(0, cut, spans)
    second, idle_2 = divide(cut, 1000, spans)
    assert idle == idle_1 + idle_2
    for id, part in whole.items():
        assert abs(part - first.get(id, 0) - second.get(id, 0)) <= 2 * len(spans) + 2


def test_the_whole_uptime_is_paid_for(clock: FakeClock) -> None:
    """Two H100s at 3.60 an hour for ten minutes are 1.20: the requests' parts and the idle ones add up to it, and have their tags."""
    with af.tags(team="platform"), Serving("llama", devices={H100: 2}, price="3.60", window_s=60) as server:
        clock.advance(60)
        with server.request(team="search") as first:
            clock.advance(30)
            with server.request(team="chat") as second:
                clock.advance(60)
                second.tokens(prompt=1000, cached=400, output=100)
            first.tokens(prompt=500, output=200)
        clock.advance(450)
        server.tick()
    totals = server.totals
    assert totals.uptime_s == 600
    assert totals.device_s == 1200
    assert totals.busy_s == 90
    assert totals.cost == Decimal("1.20")
    assert totals.idle_cost == Decimal("1.02")
    assert totals.idle_share == Decimal("0.85")
    assert totals.requests == 2
    assert totals.usd_per_request == Decimal("0.6")
    made = charges()
    assert sum(one.amount for one in made) == 1_200_000_000
    assert sum(one.quantities["gpu_seconds"] for one in made) == 1200
    by_team = {one.tags["team"]: one for one in made if one.tags["team"] != "platform"}
    # 30 s alone, then 60 s divided: 13,000 weighted tokens in 90 s beside 10,400 in 60 s.
    pace_first, pace_second = Decimal(500 * 10 + 200 * 40) / 90, Decimal(600 * 10 + 400 + 100 * 40) / 60
    expected = 2 * (30 + 60 * pace_first / (pace_first + pace_second))
    assert float(by_team["search"].quantities["gpu_seconds"]) == pytest.approx(float(expected))
    assert by_team["chat"].quantities["input_tokens"] == 600
    assert by_team["chat"].quantities["cache_read_tokens"] == 400
    assert by_team["chat"].quantities["output_tokens"] == 100
    assert by_team["chat"].raw["gpu"]["model"] == H100
    idle = [one for one in made if one.tags["team"] == "platform"]
    assert all(one.raw["gpu"]["idle"] for one in idle)
    assert sum(one.amount for one in idle) == 1_020_000_000


def test_odd_prices_add_up_too(clock: FakeClock) -> None:
    """A price that no second divides is rounded once in all, not once a request."""
    with Serving("llama", devices={H100: 1}, price="1.01", window_s=1) as server:
        for number in range(50):
            with server.request() as one:
                clock.advance(0.7 + number / 997)
                one.tokens(prompt=number, output=number % 7)
            clock.advance(0.3)
    total = sum(one.amount for one in charges())
    exact = Decimal("1.01") * server.totals.device_s / 3600
    assert abs(total - exact * 10**9) < 1
    assert server.totals.cost == Decimal(total).scaleb(-9)
    assert len([one for one in charges() if one.response_id]) == 50


def test_without_a_price_the_time_is_there(clock: FakeClock) -> None:
    """An unknown device has no cost, and its seconds and tokens all the same."""
    with Serving("llama", devices={"Acme Brainwave 9": 1}) as server, server.request() as one:
        clock.advance(10)
        one.tokens(output=5)
    assert server.totals.cost is None
    assert server.totals.usd_per_request is None
    [charge] = charges()
    assert (charge.amount, charge.basis, charge.quantities["gpu_seconds"]) == (None, "unknown", 10)


def test_an_error_keeps_its_cost_and_goes_on(clock: FakeClock) -> None:
    """A request that fails has used the GPU: it is charged, marked, and its error is the caller's."""
    with Serving("llama", devices={H100: 1}, price="3.60") as server:
        failing = server.request()
        failing.__enter__()
        clock.advance(10)
        error = ZeroDivisionError()
        assert not failing.__exit__(ZeroDivisionError, error, None)
        running = server.request()
        running.__enter__()
        clock.advance(5)
    assert [(one.error, one.status, one.amount) for one in charges()] == [
        ("ZeroDivisionError", "error", 10_000_000), ("", "ok", 5_000_000),
    ]  # fmt: skip
    running.__exit__(None, None, None)  # after the end nothing is charged twice
    assert len(charges()) == 2


def test_a_budget_has_the_requests_of_its_block(clock: FakeClock) -> None:
    """A budget around a request is charged its part, and not what idled."""
    with Serving("llama", devices={H100: 1}, price="3.60") as server:
        clock.advance(100)
        with af.budget("$1", name="search", store="memory") as budget, server.request() as one:
            clock.advance(20)
            one.tokens(output=10)
        clock.advance(100)
    assert budget.spent == Decimal("0.02")


def test_usage_of_an_answer() -> None:
    """The usage of an OpenAI-compatible answer, as a dict or as an object; what is not there is 0."""

    class Answer:
        class usage:
            prompt_tokens = 30
            completion_tokens = 7
            prompt_tokens_details = None

    af.init(ledger="memory")
    with Serving("llama", devices={H100: 1}) as server, server.request() as one:
        one.usage(
            {"usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}}
        )
        assert (one.prompt, one.cached, one.output) == (12, 8, 3)
        one.usage(Answer())
        assert (one.prompt, one.cached, one.output) == (30, 0, 7)
        one.usage(None)
        assert (one.prompt, one.cached, one.output) == (0, 0, 0)


METRICS = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 3.0
vllm:prompt_tokens_total{engine="0",model_name="llama"} 1.2e+06
vllm:generation_tokens_total{engine="0",model_name="llama"} 300000.0
vllm:prefix_cache_hits_total{engine="0",model_name="llama"} 200000.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="llama"} 900.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="a } b"} 100.0
process_cpu_seconds_total 12.5
broken{ 1
nothing
"""


def test_counters_of_an_engine() -> None:
    """vLLM's own counters, added up over their labels; what is no sample is passed over."""
    found = read_counters(METRICS)
    assert found == Counters(1_200_000, 200_000, 300_000, 1000, 3, None)
    assert found.others["process_cpu_seconds_total"] == 12.5
    assert read_counters("") == Counters()


def test_the_price_of_a_token() -> None:
    """An hour of two GPUs at 3.50, divided by what was read and written in it: the parts are the whole."""
    before = Counters(200_000, 0, 100_000)
    found = per_token(before, read_counters(METRICS), Decimal("7.00"))
    prompt, cached, output = (found[name] for name in ("prompt", "cached", "output"))
    assert prompt is not None
    assert cached is not None
    assert output is not None
    assert float(output / prompt) == pytest.approx(4)
    total = Decimal("0.8") * prompt + Decimal("0.2") * cached + Decimal("0.2") * output
    assert round(total, 12) == 7
    assert per_token(before, before, Decimal(7)) == {"prompt": None, "cached": None, "output": None}
    assert per_token(before, read_counters(METRICS), None)["output"] is None
    restarted = per_token(Counters(10**9, 0, 10**9), Counters(1000, 0, 0), Decimal(1))
    assert restarted["prompt"] == 1000
    assert Weights().of(10, 4, 2) == 144


def test_our_own_failure_is_not_the_engines(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in charging is counted, and requests go on."""
    from aifinops import errors

    errors.reraise_failures(False)
    with Serving("llama", devices={H100: 1}, price="3.60", window_s=1) as server:
        monkeypatch.setattr(server, "_record", lambda *_, **__: 1 / 0)
        with server.request() as one:
            clock.advance(10)
            one.tokens(output=1)
    assert errors.failures()["gpu.serving"] >= 1
    server.close()  # a second time changes nothing
    assert server.totals.uptime_s == 10
    assert server.totals.usd_per_million_tokens is None


def test_tokens_have_a_price_together(clock: FakeClock) -> None:
    """A hundred seconds at 3.60 an hour for a thousand tokens are a hundred dollars a million."""
    with Serving("llama", devices={H100: 1}, price="3.60") as server, server.request() as one:
        clock.advance(100)
        one.tokens(prompt=600, output=400)
    assert server.totals.usd_per_million_tokens == 100


def test_a_counter_that_is_no_number_is_passed_over() -> None:
    """A page with a broken line still has its others; a counter that is not there counts nothing."""
    assert read_counters("vllm:prompt_tokens_total x\nvllm:generation_tokens_total 7\n") == Counters(output=7)
    assert per_token(Counters(), Counters(output=7), Decimal(7))["output"] == 1_000_000
