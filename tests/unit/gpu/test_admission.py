"""Who gets GPUs: the worked examples of Kueue and KAI, and properties that hold for any quotas, requests and order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.gpu.admission import (
    Claim,
    Holder,
    Plan,
    Request,
    Usage,
    available,
    decayed,
    decide,
    fair_shares,
    penalised,
)
from aifinops.gpu.quota import FairShare, Quotas, read_table

HOUR = 3600.0


def quotas(teams: dict[str, Any], gpus: int, **more: Any) -> Quotas:
    rows = {name: {"cohort": "ab", **(row if isinstance(row, dict) else {"x": row})} for name, row in teams.items()}
    return read_table({"pools": {"x": gpus}, "teams": rows, **more})


# --- Kueue's examples (concepts/cluster_queue: team-a has 9, team-b has 12, one cohort) --------------------------------------


@pytest.mark.parametrize(
    ("team_a", "team_b", "held", "expected"),
    [
        (9, 12, {}, 21),  # team-b has nothing admitted: team-a may have 9 + 12
        (9, 12, {"b": 12}, 9),
        (9, 12, {"b": 5}, 16),
        ({"nominal": 9, "borrowing_limit": 1}, 12, {}, 10),
        ({"nominal": 9, "borrowing_limit": 1}, 12, {"a": 10}, 0),
        (9, {"nominal": 12, "lending_limit": 1}, {}, 10),
        (9, {"nominal": 12, "lending_limit": 1}, {"b": 12}, 9),
        ({"nominal": 9, "lending_limit": 4}, 12, {"b": 16}, 5),  # its five that are not lent are there at any time
    ],
)
def test_what_kueue_admits(team_a: Any, team_b: Any, held: dict[str, int], expected: int) -> None:
    """Borrowing and lending limits as Kueue's page about ClusterQueues works them out."""
    both = quotas({"a": {"x": team_a}, "b": {"x": team_b}}, 21)
    assert available(both, "a", "x", held) == expected


def test_without_a_cohort_nothing_is_borrowed() -> None:
    """A team of its own has its nominal quota and nothing else."""
    alone = read_table({"pools": {"x": 10}, "teams": {"a": {"x": 4}, "b": {"x": 4}}})
    assert available(alone, "a", "x", {}) == 4
    assert available(alone, "a", "x", {"a": 4}) == 0


def test_quota_of_the_cohort() -> None:
    """What belongs to nobody is borrowed by everybody, within his borrowing limit."""
    shared = quotas({"a": {"x": {"nominal": 2, "borrowing_limit": 3}}, "b": 2}, 8, cohorts={"ab": {"x": 4}})
    assert available(shared, "a", "x", {}) == 5
    assert available(shared, "b", "x", {}) == 8
    assert available(shared, "b", "x", {"a": 5}) == 3


# --- order -------------------------------------------------------------------------------------------------------------------


def test_own_quota_comes_before_borrowed() -> None:
    """Of two that wait, the one within its own quota is first, whatever the other's priority."""
    both = quotas({"a": 4, "b": 4}, 8)
    held = [Holder("h", "a", "x", 4)]
    queue = [Request("borrows", "a", "x", 4, 1000, 0.0), Request("owns", "b", "x", 4, 0, 1.0)]
    plan = decide(both, held, queue, {}, 2.0)
    assert plan.admit == ("owns",)
    assert "borrows" in plan.waiting


def test_priority_then_fair_share_then_time() -> None:
    """Among equals the higher priority goes first, then who has used less for its weight, then who came first."""
    three = quotas({"a": 2, "b": 2, "c": {"x": 2, "weight": 4}}, 6)
    queue = [Request(name, name, "x", 2, 0, float(number)) for number, name in enumerate("abc")]
    usage = {"a": Usage(3.0, 10.0), "b": Usage(2.0, 10.0), "c": Usage(4.0, 10.0)}
    assert decide(three, [], queue, usage, 10.0).admit == ("c", "b", "a")
    assert decide(three, [], queue, {}, 10.0).admit == ("a", "b", "c")
    urgent = [*queue[1:], replace(queue[0], priority=1)]
    assert decide(three, [], urgent, usage, 10.0).admit == ("a", "c", "b")


def test_an_admission_counts_at_once() -> None:
    """The entry penalty lets the others in between: a burst of one team does not take all places in a row."""
    two = quotas({"a": 8, "b": 8}, 16)
    queue = [Request(f"a{n}", "a", "x", 2, 0, float(n)) for n in range(4)]
    queue += [Request(f"b{n}", "b", "x", 2, 0, 10.0 + n) for n in range(4)]
    assert decide(two, [], queue, {}, 20.0).admit == ("a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3")


def test_patience() -> None:
    """Whoever has waited beyond patience passes higher priorities, though not those who want what is their own."""
    two = quotas({"a": 4, "b": 4}, 8, fair_share={"patience_hours": 1})
    queue = [Request("old", "a", "x", 4, 0, 0.0), Request("new", "a", "x", 4, 1000, 100.0)]
    assert decide(two, [], queue, {}, 2000.0).admit[0] == "new"
    assert decide(two, [], queue, {}, HOUR).admit[0] == "old"


def test_a_large_request_is_not_passed_for_ever() -> None:
    """Small requests pass a large one that borrows, until it has waited beyond patience: then what is free is kept for it."""
    two = quotas({"a": 4, "b": 4}, 8, fair_share={"patience_hours": 1})
    held = [Holder("h", "b", "x", 4)]
    large, small = Request("large", "a", "x", 8, 0, 0.0), Request("small", "b", "x", 1, 0, 1.0)
    assert decide(two, held, [large, small], {}, 10.0).admit == ("small",)
    assert decide(two, held, [large, small], {}, HOUR).admit == ()


def test_the_limit_of_a_team_keeps_nothing_from_others() -> None:
    """Whoever waits for his own team's limit is not in the way of other teams."""
    two = quotas({"a": {"x": {"nominal": 4, "borrowing_limit": 0}}, "b": 4}, 8, fair_share={"patience_hours": 1})
    held = [Holder("h", "a", "x", 3)]
    queue = [
        Request("a-old", "a", "x", 4, 0, 0.0),
        Request("a-new", "a", "x", 1, 0, 1.0),
        Request("b", "b", "x", 4, 0, 2.0),
    ]
    plan = decide(two, held, queue, {}, 2 * HOUR)
    assert plan.admit == ("b",)  # of its own team nobody passes it now
    late = decide(two, [Holder("h", "a", "x", 4)], [replace(one, since=0.0) for one in queue], {}, 2 * HOUR)
    assert late.admit == ("b",)
    assert "limit of the team" in late.waiting["a-new"]
    assert late.waiting["a-old"] == "others of its team have waited longer"


# --- asking back -------------------------------------------------------------------------------------------------------------


def test_what_was_borrowed_is_asked_back() -> None:
    """The owner gets his own: the lowest priority of those who borrowed is asked, only as many as it takes, and nobody twice."""
    two = quotas({"a": 8, "b": 8}, 16)
    held = [Holder("own", "a", "x", 8), *(Holder(f"b{n}", "a", "x", 4, n * 10, float(n)) for n in range(2))]
    plan = decide(two, held, [Request("r", "b", "x", 4)], {}, 0.0)
    assert [tuple(one) for one in plan.reclaim] == [("own", "r")] or [tuple(one) for one in plan.reclaim] == [
        ("b0", "r")
    ]
    small = [replace(one, priority=50) if one.id == "own" else one for one in held]
    plan = decide(two, small, [Request("r", "b", "x", 4)], {}, 0.0)
    assert [tuple(one) for one in plan.reclaim] == [("b0", "r")]
    asked = [replace(one, yields_to="r") if one.id == "b0" else one for one in small]
    again = decide(two, asked, [Request("r", "b", "x", 4)], {}, 0.0)
    assert again.reclaim == ()
    assert "1 asked to give back 4" in again.waiting["r"]


def test_nobody_is_asked_in_vain() -> None:
    """Where all who may be asked would not make enough room, nobody is disturbed."""
    two = quotas({"a": 8, "b": {"x": {"nominal": 4, "borrowing_limit": 4}}}, 12)
    held = [Holder("own", "a", "x", 8)]
    assert decide(two, held, [Request("r", "b", "x", 8, 1000)], {}, 0.0).reclaim == ()


def test_a_higher_priority_asks_its_own_team() -> None:
    """Within a team the higher priority is let in by the lower one; an equal one is not disturbed."""
    one = read_table({"pools": {"x": 8}, "teams": {"a": {"x": 8}}})
    held = [Holder("low", "a", "x", 4, 0), Holder("same", "a", "x", 4, 100)]
    assert [tuple(row) for row in decide(one, held, [Request("r", "a", "x", 4, 100)], {}, 0.0).reclaim] == [
        ("low", "r")
    ]
    assert decide(one, held, [Request("r", "a", "x", 8, 100)], {}, 0.0).reclaim == ()


def test_other_cohorts_are_not_asked() -> None:
    """What another cohort borrowed among itself is its own affair."""
    table = {
        "pools": {"x": 12},
        "teams": {"a": {"x": 4, "cohort": "one"}, "b": {"x": 4, "cohort": "one"}, "c": {"x": 4, "cohort": "two"}},
    }
    held = [Holder("h", "a", "x", 8), Holder("c", "c", "x", 4)]
    assert decide(read_table(table), held, [Request("r", "c", "x", 4)], {}, 0.0).reclaim == ()
    assert [row.holder for row in decide(read_table(table), held, [Request("r", "b", "x", 4)], {}, 0.0).reclaim] == [
        "h"
    ]


# --- usage and fair shares ---------------------------------------------------------------------------------------------------


def test_half_life() -> None:
    """After a half-life a past use counts half, and a use that goes on is half of the way to its own size."""
    weekly = FairShare(half_life_s=168 * HOUR)
    assert decayed(Usage(8.0, 0.0), 0, 168 * HOUR, weekly).gpus == pytest.approx(4.0)
    assert decayed(Usage(0.0, 0.0), 8, 168 * HOUR, weekly).gpus == pytest.approx(4.0)
    assert decayed(Usage(8.0, 0.0), 8, 999 * HOUR, weekly).gpus == pytest.approx(8.0)
    steps = Usage(2.0, 0.0)
    for hour in range(1, 25):
        steps = decayed(steps, 5, hour * HOUR, weekly)
    assert steps.gpus == pytest.approx(decayed(Usage(2.0, 0.0), 5, 24 * HOUR, weekly).gpus)
    assert decayed(steps, 5, 0.0, weekly) == steps
    assert decayed(Usage(1.0, 0.0), 0, 1e30, weekly).gpus == pytest.approx(0.0)


def test_entry_penalty() -> None:
    """An admission counts as the first sample of it would: gpus x (1 - 0.5 ^ (interval / half-life))."""
    fair = FairShare(half_life_s=600, entry_penalty_s=600)
    assert penalised(Usage(1.0, 5.0), 8, fair) == Usage(5.0, 5.0)


def test_fair_shares() -> None:
    """Deserved first, as far as it is asked for; the rest by weight, again and again until nobody is hungry or nothing is left."""
    claims = {"a": Claim(20, 60, 1), "b": Claim(20, 25, 3), "c": Claim(20, 10, 1)}
    # 20 + 20 + 10 are deserved. Of the 50 left, b would have 37.5 and wants 5; the 45 left are a's, who wants 40.
    assert fair_shares(100, claims) == {"a": pytest.approx(60), "b": pytest.approx(25), "c": pytest.approx(10)}
    assert fair_shares(70, claims) == {"a": pytest.approx(35), "b": pytest.approx(25), "c": pytest.approx(10)}
    assert fair_shares(25, claims) == {"a": pytest.approx(10), "b": pytest.approx(10), "c": pytest.approx(5)}
    assert fair_shares(10, {}) == {}


@given(
    st.floats(0, 1000),
    st.dictionaries(
        st.sampled_from("abcdef"), st.builds(Claim, st.floats(0, 300), st.floats(0, 300), st.floats(0.1, 5)), max_size=6
    ),
)
def test_fair_shares_waste_nothing(capacity: float, claims: dict[str, Claim]) -> None:
    """Nobody has more than he asks for, and capacity is left only where everybody has all he asks for."""
    shares = fair_shares(capacity, claims)
    asked = sum(claim.requested for claim in claims.values())
    assert all(shares[name] <= claim.requested + 1e-6 for name, claim in claims.items())
    assert sum(shares.values()) == pytest.approx(min(capacity, asked), abs=1e-6)


# --- whatever happens --------------------------------------------------------------------------------------------------------

LIMIT = st.none() | st.integers(0, 8)


@st.composite
def any_quotas(draw: st.DrawFn) -> Quotas:
    rows: dict[str, Any] = {}
    total = shared = 0
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        nominal = draw(st.integers(0, 8))
        lending = draw(st.none() | st.integers(0, nominal))
        row: dict[str, Any] = {"nominal": nominal, "borrowing_limit": draw(LIMIT), "lending_limit": lending}
        rows[name] = {"x": {key: value for key, value in row.items() if value is not None}}
        rows[name]["cohort"] = draw(st.sampled_from(["one", "two", ""]))
        rows[name]["weight"] = draw(st.integers(1, 3))
        total += nominal
    cohorts = {"one": {"x": draw(st.integers(0, 4))}}
    shared = cohorts["one"]["x"]
    gpus = total + shared + draw(st.integers(0, 4))
    return read_table(
        {"pools": {"x": max(1, gpus)}, "teams": rows, "cohorts": cohorts, "fair_share": {"patience_hours": 1}}
    )


class World:
    """A cluster that is decided about; holders leave when they are told to."""

    def __init__(self, rules: Quotas) -> None:
        self.rules = rules
        self.now = 0.0
        self.queue: list[Request] = []
        self.holders: dict[str, Holder] = {}

    def ask(self, number: int, team: str, gpus: int, priority: int) -> None:
        if gpus <= self.rules.hard_limit(team, "x"):
            self.queue.append(Request(f"r{number}", team, "x", gpus, priority, self.now))

    def step(self, seconds: float) -> Plan:
        self.now += seconds
        plan = decide(self.rules, list(self.holders.values()), self.queue, {}, self.now)
        for one in [one for one in self.queue if one.id in plan.admit]:
            self.queue.remove(one)
            self.holders[one.id] = Holder(one.id, one.team, one.pool, one.gpus, one.priority, self.now)
        for holder, request in plan.reclaim:
            assert self.holders[holder].yields_to == ""
            self.holders[holder] = replace(self.holders[holder], yields_to=request)
        self.check()
        return plan

    def check(self) -> None:
        held: Counter[str] = Counter()
        for one in self.holders.values():
            held[one.team] += one.gpus
        assert sum(held.values()) <= self.rules.pools["x"].gpus
        for name in self.rules.teams:
            assert held[name] <= self.rules.hard_limit(name, "x")
        for cohort in ("one", "two"):
            members = self.rules.members(cohort)
            shared = self.rules.cohorts.get(cohort, {}).get("x", 0)
            for one in members:  # nobody uses what a team does not lend
                mine = self.rules.quota(one.name, "x")
                others = sum(held[other.name] for other in members if other is not one)
                theirs = sum(self.rules.quota(other.name, "x").nominal for other in members if other is not one)
                assert others <= theirs + mine.lendable + shared


STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 12), st.integers(0, 2), st.integers(0, 4)), max_size=25
)


@settings(max_examples=100)
@given(any_quotas(), STEPS)
def test_no_limit_is_ever_passed_and_everybody_gets_his_turn(
    rules: Quotas, steps: list[tuple[str, int, int, int]]
) -> None:
    """Capacity, hard limits and lending limits hold after every decision; once holders leave, the queue is empty in the end."""
    world = World(rules)
    for number, (team, gpus, priority, leave) in enumerate(steps):
        if team in rules.teams:
            world.ask(number, team, gpus, priority)
        world.step(60.0)
        if leave == 0 and world.holders:
            world.holders.pop(min(world.holders))
            world.step(60.0)
    for _ in range(2 * len(steps) + 1):
        if not world.queue:
            break
        if world.holders:  # one at a time, whoever has held longest
            world.holders.pop(min(world.holders.values(), key=lambda one: (one.since, one.id)).id)
        world.step(60.0)
    assert world.queue == []


@settings(max_examples=40)
@given(any_quotas(), st.integers(1, 8), st.integers(1, 4))
def test_own_quota_is_had_as_soon_as_the_asked_have_left(rules: Quotas, gpus: int, size: int) -> None:
    """Whatever others hold, a request within its nominal quota is in once those have left who were asked for it."""
    for team in rules.teams:
        if gpus > rules.quota(team, "x").nominal:
            continue
        world = World(rules)
        for number in range(40):  # everybody else takes all he can
            for other in rules.teams:
                if other != team:
                    world.ask(number * 10 + ord(other), other, size, 2)
        for _ in range(5):
            world.step(60.0)
        world.queue = [Request("mine", team, "x", gpus, 0, world.now)]
        plan = world.step(60.0)
        if "mine" in plan.admit:
            continue
        for one in [one.id for one in world.holders.values() if one.yields_to == "mine"]:
            del world.holders[one]
        assert "mine" in world.step(60.0).admit


@settings(max_examples=8)
@given(st.integers(1, 8))
def test_a_stream_of_urgent_requests_starves_nobody(size: int) -> None:
    """Against an endless stream of a higher priority a batch request gets in once it has waited beyond patience."""
    rules = read_table({"pools": {"x": 8}, "teams": {"a": {"x": 8}}, "fair_share": {"patience_hours": 1}})
    world = World(rules)
    world.ask(0, "a", size, 0)
    for number in range(1, 200):
        world.ask(number, "a", 4, 1000)
        world.step(60.0)
        if "r0" in world.holders:
            break
        # One leaves at a time, so that there is always a holder left in the way.
        world.holders.pop(min(world.holders.values(), key=lambda one: (one.since, one.id)).id)
    assert "r0" in world.holders


def test_what_is_given_back_is_for_whom_it_was_asked() -> None:
    """A holder is asked for one request only, and what he leaves is not taken by another one of the team meanwhile."""
    rules = quotas({"a": {"x": 0}, "c": {"x": 5}}, 5)
    held = [Holder("r0", "a", "x", 1, 0, 0.0), Holder("r1", "a", "x", 1, 0, 1.0)]
    queue = [Request("small", "a", "x", 4, 0, 2.0), Request("urgent", "a", "x", 5, 1, 3.0)]
    plan = decide(rules, held, queue, {}, 4.0)
    assert sorted(plan.reclaim) == [("r0", "urgent"), ("r1", "urgent")]
    one_left = [replace(held[1], yields_to="urgent")]
    assert decide(rules, one_left, queue, {}, 5.0).admit == ()
    assert decide(rules, [], queue, {}, 6.0).admit == ("urgent",)


def test_who_has_left_does_not_take_the_place_again() -> None:
    """What low priorities of a team give back to a large urgent request is kept for it, also where they would be within the team's own."""
    rules = quotas({"a": 8, "b": 8}, 16)
    held = [Holder(f"l{n}", "a", "x", 2, 0, float(n)) for n in range(4)] + [Holder("b", "b", "x", 8, 0, 0.0)]
    large = Request("large", "a", "x", 8, 500, 10.0)
    plan = decide(rules, held, [large], {}, 10.0)
    assert [row.holder for row in plan.reclaim] == ["l3", "l2", "l1", "l0"]
    # One of them has left, and asks to come back.
    left = [replace(one, yields_to="large") for one in held if one.team == "a" and one.id != "l3"] + [held[-1]]
    back = Request("l3", "a", "x", 2, 0, 70.0)
    assert decide(rules, left, [large, back], {}, 70.0).admit == ()
    assert decide(rules, [held[-1]], [large, back], {}, 80.0).admit == ("large",)


def test_nobody_is_asked_before_he_has_got_anywhere() -> None:
    """A holder is left alone for the exempt time; then he is asked as ever, and one who was asked before stays asked."""
    rules = quotas({"a": 4, "b": 4}, 8, fair_share={"exempt_minutes": 10})
    held = [Holder("h", "a", "x", 8, 0, 1000.0)]
    owner = Request("owner", "b", "x", 4, 0, 1100.0)
    assert decide(rules, held, [owner], {}, 1599.0).reclaim == ()
    assert [tuple(row) for row in decide(rules, held, [owner], {}, 1600.0).reclaim] == [("h", "owner")]
    asked = [replace(held[0], yields_to="owner", since=1590.0)]
    assert "1 asked to give back 8" in decide(rules, asked, [owner], {}, 1600.0).waiting["owner"]


def test_who_may_not_be_passed_has_the_rank_of_those_behind_it() -> None:
    """An overdue batch request keeps urgent ones of its team waiting no longer than it has to: it asks in their name."""
    rules = read_table({"pools": {"x": 8}, "teams": {"a": {"x": 8}}, "fair_share": {"patience_hours": 1}})
    held = [Holder("low", "a", "x", 4, 0), Holder("high", "a", "x", 4, 500)]
    old, urgent = Request("old", "a", "x", 4, 0, 0.0), Request("urgent", "a", "x", 1, 500, HOUR)
    assert decide(rules, held, [old], {}, HOUR).reclaim == ()
    plan = decide(rules, held, [old, urgent], {}, HOUR)
    assert [tuple(row) for row in plan.reclaim] == [("low", "old")]
    assert decide(rules, [held[1]], [old, urgent], {}, HOUR).admit == ("old",)


def test_no_more_are_asked_than_it_takes() -> None:
    """Who was chosen first and is not needed once a larger one is chosen is left alone."""
    rules = quotas({"a": 8, "b": 8}, 16)
    held = [
        Holder("own", "a", "x", 8, 9, 0.0),
        Holder("small", "a", "x", 2, 0, 2.0),
        Holder("large", "a", "x", 6, 1, 1.0),
    ]
    plan = decide(rules, held, [Request("r", "b", "x", 6)], {}, 10.0)
    assert [tuple(row) for row in plan.reclaim] == [("large", "r")]
