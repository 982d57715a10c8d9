"""Quantiles learned from calls: how near they are, what they cost to keep, and that they survive a restart."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError
from aifinops.pricing.learned import ACCURACY, Kind, Learned, Quantiles, _after_fork
from aifinops.pricing.tokens import UNBOUNDED

HERE = Kind("openai", "gpt-4o", "rerank")


def of(values: list[float]) -> Quantiles:
    made = Quantiles()
    for value in values:
        made.update(value)
    return made


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e9) | st.integers(0, 10**9), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_within_two_percent_of_the_observation_at_its_rank(values: list[float], q: float) -> None:
    """The relative error is bounded whatever the distribution."""
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    found = of(values).estimate(q)
    assert found is not None
    assert abs(found - exact) <= ACCURACY * exact * (1 + 1e-9)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_do_not_cross(values: list[float], one: float, other: float) -> None:
    """A higher quantile is never below a lower one."""
    made = of(values)
    low, high = made.estimate(min(one, other)), made.estimate(max(one, other))
    assert low is not None
    assert high is not None
    assert low <= high


def test_memory_is_bounded() -> None:
    """A million different values take no more buckets than there are ratios, and counts stay small."""
    made = of([1.0001**step for step in range(0, 200_000, 7)])
    assert len(made.state()["buckets"]) <= 864
    assert len(made) < 4_096 + 864


def test_the_past_is_forgotten() -> None:
    """When a call site changes its ways, the median follows within a few thousand calls."""
    made = of([100.0] * 4_000 + [1_000.0] * 5_000)
    assert made.estimate(0.5) == pytest.approx(1_000, rel=ACCURACY)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_quantity_is_left_out(value: float) -> None:
    """A damaged report teaches nothing."""
    made = of([5.0, value])
    assert len(made) == 1
    assert made.estimate(1.0) == pytest.approx(5, rel=ACCURACY)


def test_no_observation_gives_no_estimate_and_a_wrong_quantile_is_refused() -> None:
    """Nothing is made up; 50 is not a half."""
    assert Quantiles().estimate(0.5) is None
    with pytest.raises(ConfigurationError, match="50 is no quantile"):
        of([1.0]).estimate(50)


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_the_state_goes_through_json(values: list[float]) -> None:
    """What was learned is written and read as plain JSON, and says the same."""
    made = of(values)
    again = Quantiles.restore(json.loads(json.dumps(made.state())))
    assert [again.estimate(q / 10) for q in range(11)] == [made.estimate(q / 10) for q in range(11)]


def taught(calls: int = 20) -> Learned:
    learned = Learned()
    for turn in range(calls):
        learned.update(HERE, input_bound=4_000, input_tokens=1_000, output_tokens=50 + turn)
    return learned


def test_a_kind_of_call_learns_its_answers_and_prompts() -> None:
    """The median answer, a high quantile of it, and the part of the bound that prompts have."""
    learned = taught()
    assert learned.output(HERE) == pytest.approx(59, rel=0.03)
    assert learned.output(HERE, 0.95) == pytest.approx(68, rel=0.03)
    assert learned.share(HERE) == pytest.approx(0.25, rel=ACCURACY)
    assert learned.output(Kind("openai", "gpt-4o", "other")) is None


def test_a_few_calls_say_nothing_yet() -> None:
    """Three calls are no distribution."""
    assert taught(7).output(HERE) is None
    assert taught(8).output(HERE) is not None


@pytest.mark.parametrize(("bound", "tokens"), [(0, 10), (UNBOUNDED, 10), (100, 0)])
def test_a_prompt_without_a_bound_teaches_nothing_of_prompts(bound: int, tokens: int) -> None:
    """An earlier response or a file has bytes that were not seen; the answer is learned all the same."""
    learned = Learned()
    for _ in range(10):
        learned.update(HERE, input_bound=bound, input_tokens=tokens, output_tokens=7)
    assert learned.share(HERE) is None
    assert learned.output(HERE) == pytest.approx(7, rel=ACCURACY)


def test_the_number_of_kinds_is_bounded_and_the_longest_unused_goes() -> None:
    """Names can come from users of the application."""
    learned = Learned(kinds=3)
    for name in ("a", "b", "c", "a", "d"):
        for _ in range(8):
            learned.update(Kind("p", name), input_bound=10, input_tokens=5, output_tokens=1)
    assert len(learned) == 3
    assert learned.output(Kind("p", "b")) is None
    assert learned.output(Kind("p", "a")) is not None
    with pytest.raises(ConfigurationError, match="kinds=0"):
        Learned(kinds=0)


def test_threads_lose_no_observation() -> None:
    """Calls end on many threads."""
    learned = Learned()

    def work() -> None:
        for _ in range(250):
            learned.update(HERE, input_bound=100, input_tokens=25, output_tokens=10)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kind,) = learned.state()["kinds"]
    assert sum(count for _, count in kind[3]["buckets"]) == 2_000


def test_a_lock_that_was_held_at_a_fork_does_not_stop_the_child() -> None:
    """The thread that held it does not exist there."""
    learned = taught()
    held = learned._lock
    with held:
        _after_fork()  # what the child runs first
        learned.update(HERE, input_bound=4_000, input_tokens=1_000, output_tokens=50)
    assert learned.output(HERE) is not None


def test_what_was_learned_survives_a_restart() -> None:
    """The state is JSON; only the most recent kinds are taken where there is less room."""
    learned = taught()
    learned.update(Kind("p", "m"), input_bound=1, input_tokens=1, output_tokens=1)
    again = Learned.restore(json.loads(json.dumps(learned.state())))
    assert again.output(HERE) == learned.output(HERE)
    assert again.share(HERE) == learned.share(HERE)
    assert len(Learned.restore(learned.state(), kinds=1)) == 1


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 2, "kinds": []},
        {"version": 1},
        {"version": 1, "kinds": [["p", "m", "", {"zeros": -1, "buckets": []}, {}]]},
        {"version": 1, "kinds": [["p", "m", "", {"zeros": 0, "buckets": [[10**9, 1]]}, {}]]},
        {"version": 1, "kinds": [["p"]]},
        [],
    ],
)
def test_a_foreign_state_is_refused(state: Any) -> None:
    """A file of something else is said to be one."""
    with pytest.raises(ConfigurationError, match="no state"):
        Learned.restore(state)
