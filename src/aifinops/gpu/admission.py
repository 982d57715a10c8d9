"""Who gets GPUs now and who is asked for them back: a pure function of quotas, holders, queue and past usage.

The quota of a team is judged as Kueue judges it (`available`; https://kueue.sigs.k8s.io/docs/concepts/cluster_queue/):

    available = max(0, guaranteed - used) + min(what is left in the cohort, lendable - what it has taken of it + borrowing limit)

The queue is ordered by: within nominal quota before borrowed; waited beyond patience; priority; decayed usage by weight; time. Whoever is
within its nominal quota, or has waited beyond patience, keeps what is free for itself until it has enough; anybody else is passed by smaller
requests, though never by one of its own team once it is overdue and only its team is in its way. Whoever is within its nominal quota asks back what others borrowed, from the lowest priority of the most saturated team first, and only
as much as it takes; a higher priority asks a lower one of its own team.

Usage is a moving average of GPUs held, `u = u x d + gpus x (1 - d)` with `d = 0.5 ^ (seconds / half-life)`, and an admission adds
`gpus x (1 - 0.5 ^ (entry penalty / half-life))` at once (Kueue's admission fair sharing, KEP 4136; KAI's time-based fair share).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from aifinops.gpu.quota import FairShare, Quotas

__all__ = ["Claim", "Holder", "Plan", "Reclaim", "Request", "Usage", "available", "decayed", "decide", "fair_shares", "penalised"]  # fmt: skip

_NOBODY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody who waits.

    Attributes:
        id: of the slot. team, pool, gpus: what it wants. priority: the higher goes first. since: when it began to wait, seconds.
    """

    id: str
    team: str
    pool: str
    gpus: int
    priority: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds GPUs.

    Attributes:
        id, team, pool, gpus, priority: as in `Request`. since: when it got them. yields_to: the request for which it was asked to give them
            back; empty for none.
    """

    id: str
    team: str
    pool: str
    gpus: int
    priority: int = 0
    since: float = 0.0
    yields_to: str = ""


class Usage(NamedTuple):
    """The moving average of the GPUs that a team held, and the moment that it is of, seconds."""

    gpus: float = 0.0
    at: float = 0.0


class Reclaim(NamedTuple):
    """A holder that is asked to give back what it holds, and for which request."""

    holder: str
    request: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now.

    Attributes:
        admit: ids of requests, in order. reclaim: whom to ask. waiting: id -> why it has to wait, for people.
    """

    admit: tuple[str, ...] = ()
    reclaim: tuple[Reclaim, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)


def decayed(usage: Usage, held: float, now: float, fair_share: FairShare) -> Usage:
    """The average at a later moment, of a team that held so many GPUs meanwhile; a clock that went back changes nothing."""
    if now <= usage.at:
        return usage
    kept = _kept(now - usage.at, fair_share)
    return Usage(usage.gpus * kept + held * (1 - kept), now)


def penalised(usage: Usage, gpus: int, fair_share: FairShare) -> Usage:
    """The average right after an admission."""
    return Usage(usage.gpus + gpus * (1 - _kept(fair_share.entry_penalty_s, fair_share)), usage.at)


def _kept(seconds: float, fair_share: FairShare) -> float:
    # From a thousand half-lives on, 2 to that power is no float any more.
    return float(0.5 ** min(seconds / fair_share.half_life_s, 1000.0))


def available(quotas: Quotas, team: str, pool: str, held: Mapping[str, int]) -> int:
    """How many more GPUs a team may hold now.

    Args:
        held: team -> GPUs that it holds in the pool.
    """
    quota, cohort = quotas.quota(team, pool), quotas.teams[team].cohort
    used = held.get(team, 0)
    free = quotas.pools[pool].gpus - sum(held.values())
    if not cohort:
        return max(0, min(quota.nominal - used, free))
    members = [one.name for one in quotas.members(cohort)]
    lendable = sum(quotas.quota(name, pool).lendable for name in members) + quotas.cohorts.get(cohort, {}).get(pool, 0)
    taken = sum(max(0, held.get(name, 0) - quotas.quota(name, pool).guaranteed) for name in members)
    left = lendable - taken
    if quota.borrowing_limit is not None:
        left = min(left, quota.lendable - max(0, used - quota.guaranteed) + quota.borrowing_limit)
    return max(0, min(max(0, quota.guaranteed - used) + left, free))


# --- the decision ------------------------------------------------------------------------------------------------------------


class _Pool:
    """One pool while it is decided about.

    Attributes:
        held: team -> GPUs that it holds, those that are given to it now among them. kept: team -> GPUs that nobody else may take.
        shares: team -> decayed usage by weight. overdue: team -> who of it has waited beyond patience, the first one first.
        highest: team -> the highest priority that waits. claims: requests for which holders were asked to leave, the highest priority first.
        refused: why the like of a request has to wait as things stand: others that ask for the same need not be looked at again.
    """

    def __init__(
        self,
        quotas: Quotas,
        pool: str,
        holders: Iterable[Holder],
        queue: Sequence[Request],
        shares: dict[str, float],
        now: float,
    ) -> None:
        self.quotas, self.pool, self.shares, self.now = quotas, pool, shares, now
        self.overdue: dict[str, dict[str, Request]] = {}
        for request in sorted(queue, key=lambda request: (request.since, request.id)):
            if now - request.since >= quotas.fair_share.patience_s:
                self.overdue.setdefault(request.team, {})[request.id] = request
        self.refused: dict[tuple[str, int, int], str] = {}
        self.holders = [one for one in holders if one.pool == pool]
        self.highest: dict[str, int] = {}
        for request in queue:
            self.highest[request.team] = max(request.priority, self.highest.get(request.team, request.priority))
        asking = {one.yields_to for one in self.holders}
        self.claims = sorted((one for one in queue if one.id in asking), key=lambda one: (-one.priority, one.since))
        self.held: Counter[str] = Counter()
        for one in self.holders:
            self.held[one.team] += one.gpus
        self.kept: Counter[str] = Counter()

    def nominal(self, team: str) -> int:
        return self.quotas.quota(team, self.pool).nominal

    def within(self, request: Request) -> bool:
        """Whether the team stays within what is its own."""
        return self.held[request.team] + request.gpus <= self.nominal(request.team)

    def room(self, request: Request, freed: Mapping[str, int] = _NOBODY) -> int:
        """How much it could have, once so much is freed."""
        held = self.held + self.kept
        for team, gpus in freed.items():
            held[team] -= gpus
        return available(self.quotas, request.team, self.pool, held)

    def limited(self, request: Request) -> bool:
        """Whether it is the team's own limit that stands in the way."""
        return self.held[request.team] + request.gpus > self.quotas.hard_limit(request.team, self.pool)

    def saturation(self, team: str) -> float:
        """Held by own quota; a team without any is the most saturated of all."""
        nominal = self.nominal(team)
        return self.held[team] / nominal if nominal else float("inf")

    def admit(self, request: Request) -> None:
        """It has them; what its team has used counts at once."""
        self.held[request.team] += request.gpus
        self.overdue.get(request.team, {}).pop(request.id, None)
        self.claims = [one for one in self.claims if one is not request]
        self.refused.clear()
        fair_share, team = self.quotas.fair_share, self.quotas.teams[request.team]
        self.shares[request.team] += penalised(Usage(), request.gpus, fair_share).gpus / team.weight

    def ask(self, request: Request, asked: Sequence[Holder]) -> list[Reclaim]:
        """Those of them who were not asked before are asked now."""
        new = [one for one in asked if not one.yields_to]
        self.holders = [replace(one, yields_to=request.id) if one in new else one for one in self.holders]
        return [Reclaim(one.id, request.id) for one in new]

    def keep(self, request: Request, asked: Sequence[Holder]) -> None:
        """What is free stays free for it, as much as it needs beside what it will be given back.

        Not where its own team's limit is in the way, and nobody of the team leaves for it: others can do nothing about that.
        """
        self.refused.clear()
        if asked or not self.limited(request):
            self.kept[request.team] += max(0, request.gpus - sum(one.gpus for one in asked))

    def is_overdue(self, request: Request) -> bool:
        """Whether it has waited beyond patience."""
        return request.id in self.overdue.get(request.team, ())

    def rank(self, request: Request) -> int:
        """Its priority; of one that nobody of its team may pass any more, that of the highest which has to wait behind it."""
        return self.highest.get(request.team, request.priority) if self.is_overdue(request) else request.priority

    def before(self, request: Request) -> Request | None:
        """Who of its team must not be passed by it: the first that is overdue, where it could have its GPUs or only its team is in the way."""
        first = next(iter(self.overdue.get(request.team, {}).values()), request)
        if first is request or not (self.limited(first) or first.gpus <= self.room(first)):
            return None
        return first

    def claim(self, request: Request) -> Request | None:
        """Who of its team is looked at before it, since others were asked to leave for that one, which has a higher priority.

        Without it a small request, of what is the team's own again once they have left, would take their place and be asked to leave in turn.
        """
        return next((one for one in self.claims if one.team == request.team and one.priority > request.priority), None)


def decide(
    quotas: Quotas,
    holders: Sequence[Holder],
    queue: Sequence[Request],
    usage: Mapping[str, Usage],
    now: float,
) -> Plan:
    """Whom to admit and whom to ask.

    Args:
        holders, queue: of all pools and teams. usage: team -> its average when it last changed. now: seconds, on the clock of `since`.
    """
    shares = _shares(quotas, holders, usage, now)
    plan = Plan()
    for pool in sorted({request.pool for request in queue}):
        here = [request for request in queue if request.pool == pool]
        plan = _decided(_Pool(quotas, pool, holders, here, shares, now), here, plan)
    return plan


def _shares(quotas: Quotas, holders: Sequence[Holder], usage: Mapping[str, Usage], now: float) -> dict[str, float]:
    """Team -> decayed usage over all pools by its weight."""
    held: Counter[str] = Counter()
    for one in holders:
        held[one.team] += one.gpus
    return {
        name: decayed(usage.get(name, Usage(at=now)), held[name], now, quotas.fair_share).gpus / team.weight
        for name, team in quotas.teams.items()
    }


def _decided(state: _Pool, queue: Sequence[Request], plan: Plan) -> Plan:
    """The plan with what is decided about one pool."""
    admit: list[str] = []
    reclaim: list[Reclaim] = []
    waiting: dict[str, str] = {}
    left = _ordered(state, queue)
    while left:
        request = left.pop()
        first, claim = state.before(request), state.claim(request)
        ahead = next((one for one in (first, claim) if one is not None and one.id not in waiting), None)
        if ahead is not None:
            left.remove(ahead)
            left += [request, ahead]
            continue
        if first is not None:
            waiting[request.id] = "others of its team have waited longer"
            continue
        kind = (request.team, request.gpus, request.priority)
        if kind in state.refused and not state.is_overdue(request):
            waiting[request.id] = state.refused[kind]
            continue
        if request.gpus <= state.room(request):
            admit.append(request.id)
            state.admit(request)
            left = _ordered(state, left)  # its team may be beyond its own now
            continue
        within = state.within(request)
        asked = _ask(state, request) if within or _outranks(state, request) else ()
        waiting[request.id] = _reason(state, request, asked)
        reclaim += state.ask(request, asked)
        if asked or within or state.is_overdue(request):
            state.keep(request, asked)
        else:
            state.refused[kind] = waiting[request.id]
    return Plan((*plan.admit, *admit), (*plan.reclaim, *reclaim), {**plan.waiting, **waiting})


def _ordered(state: _Pool, queue: Iterable[Request]) -> list[Request]:
    """The last one goes first."""

    def order(request: Request) -> tuple[object, ...]:
        turn = (request.since, request.id)
        beyond = not state.within(request)
        if state.is_overdue(request):  # first come, first served
            return (beyond, False, *turn)
        return (beyond, True, -request.priority, state.shares.get(request.team, 0.0), *turn)

    return sorted(queue, key=order, reverse=True)


def _outranks(state: _Pool, request: Request) -> bool:
    """Whether somebody of its own team holds GPUs for less."""
    rank = state.rank(request)
    return any(one.team == request.team and one.priority < rank for one in state.holders)


def _ask(state: _Pool, request: Request) -> Sequence[Holder]:
    """The holders that would make room, those who were asked for it already among them; none where all of them would not."""
    freed: Counter[str] = Counter()
    chosen: list[Holder] = []
    for one in sorted(state.holders, key=lambda one: _sooner(state, one, request)):
        if request.gpus <= state.room(request, freed):
            break
        if one.yields_to in {"", request.id} and _may_ask(state, one, request, freed):
            chosen.append(one)
            freed[one.team] += one.gpus
    return _needed(state, request, chosen) if request.gpus <= state.room(request, freed) else ()


def _needed(state: _Pool, request: Request, chosen: list[Holder]) -> list[Holder]:
    """Without those that later ones made unnecessary; who was asked already stays asked."""
    for one in [one for one in chosen if not one.yields_to]:
        fewer = [other for other in chosen if other is not one]
        freed: Counter[str] = Counter()
        for other in fewer:
            freed[other.team] += other.gpus
        if request.gpus <= state.room(request, freed):
            chosen = fewer
    return chosen


def _sooner(state: _Pool, one: Holder, request: Request) -> tuple[object, ...]:
    """Who was asked already, then those of other teams, the lowest priority, the most saturated team, the latest come."""
    return (
        one.yields_to != request.id, one.team == request.team, one.priority, -state.saturation(one.team), -one.since, one.id,
    )  # fmt: skip


def _may_ask(state: _Pool, one: Holder, request: Request, freed: Mapping[str, int]) -> bool:
    """Of its own team what has a lower priority; of others in its cohort what they borrowed, if the request is within its own quota."""
    if not one.yields_to and state.now - one.since < state.quotas.fair_share.exempt_s:
        return False
    if one.team == request.team:
        return one.priority < state.rank(request)
    cohort = state.quotas.teams[request.team].cohort
    if not cohort or state.quotas.teams[one.team].cohort != cohort:
        return False
    return state.within(request) and state.held[one.team] - freed.get(one.team, 0) > state.nominal(one.team)


def _reason(state: _Pool, request: Request, asked: Sequence[Holder]) -> str:
    said = f"{request.gpus} GPUs of {request.pool} wanted, {state.room(request)} to be had"
    if asked:
        return f"{said}; {len(asked)} asked to give back {sum(one.gpus for one in asked)}"
    return f"{said}; the limit of the team is reached" if state.limited(request) else said


# --- fair shares -------------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """What a queue wants and may expect: its deserved quota, what it asks for, the weight of its part of what is left over."""

    deserved: float
    requested: float
    weight: float = 1.0


def fair_shares(capacity: float, claims: Mapping[str, Claim]) -> Mapping[str, float]:
    """How capacity is divided: first the deserved quota, as far as it is asked for, then the rest by weight, again and again.

    It is KAI's division (https://github.com/NVIDIA/KAI-Scheduler, docs/fairness): nobody has more than it asks for, and nothing is left as long
    as somebody asks. Where what is deserved is more than there is, everybody's is cut in proportion.
    """
    shares = {name: min(claim.deserved, claim.requested) for name, claim in claims.items()}
    total = sum(shares.values())
    if total > capacity:
        return {name: share * capacity / total for name, share in shares.items()}
    left = capacity - total
    hungry = {name for name, claim in claims.items() if shares[name] < claim.requested and claim.weight > 0}
    while hungry and left > 1e-9:
        weights = sum(claims[name].weight for name in hungry)
        parts = {name: left * claims[name].weight / weights for name in hungry}
        full = {name for name in hungry if shares[name] + parts[name] >= claims[name].requested}
        # Where somebody is sated only these get theirs in this turn: what they leave is divided again.
        for name in full or hungry:
            given = min(parts[name], claims[name].requested - shares[name])
            shares[name] += given
            left -= given
        hungry -= full
        if not full:
            break
    return shares
