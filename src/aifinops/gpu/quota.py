"""Whose GPUs they are: quotas of teams, from one file, in the words of Kueue.

    name = "research"

    [pools.h100]
    gpus = 64                          # what there is
    accelerator = "H100 SXM"           # for prices and node labels

    [cohorts.lab]
    h100 = 8                           # shared: nobody's own, everybody's to borrow

    [priorities]
    batch = 0
    urgent = 1000

    [teams.nlp]
    cohort = "lab"                     # whose quota it may borrow; none without
    weight = 2                         # of its share of what is left over
    h100 = { nominal = 24, borrowing_limit = 16, lending_limit = 12 }

    [teams.vision]
    cohort = "lab"
    h100 = 16                          # the same as { nominal = 16 }

A team always gets its nominal quota. It may take up to `borrowing_limit` more while others of its cohort do not use theirs, and lends them
`lending_limit` of its own at most; without these it may borrow, and lends, all there is. What was borrowed is asked back when its owner wants it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from aifinops.errors import ConfigurationError

__all__ = ["PRIORITIES", "FairShare", "Pool", "Quota", "Quotas", "Team", "read_quotas", "read_table"]

PRIORITIES: Mapping[str, int] = MappingProxyType({"batch": 0, "normal": 100, "high": 500, "urgent": 1000})
"""Where the file names none: the higher goes first."""

V = TypeVar("V")

_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs that are as good as each other.

    Attributes:
        name: as teams ask for it. gpus: how many there are. accelerator: its name in the price list. labels: of the nodes, for Kubernetes.
        partition: of Slurm; the name of the pool where none is given. gres: what Slurm calls the GPU (`h100`); the same.
        resource: what Kubernetes calls one of them.
    """

    name: str
    gpus: int
    accelerator: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _NONE)
    partition: str = ""
    gres: str = ""
    resource: str = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a team has in one pool, GPUs.

    Attributes:
        nominal: its own. borrowing_limit: the most above that; None for no limit. lending_limit: the most of its own that others may use;
            None for all of it.
    """

    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None

    @property
    def guaranteed(self) -> int:
        """What nobody else ever uses."""
        return 0 if self.lending_limit is None else max(0, self.nominal - self.lending_limit)

    @property
    def lendable(self) -> int:
        """What others may use as long as the team does not."""
        return self.nominal - self.guaranteed


@dataclass(frozen=True, slots=True)
class Team:
    """Who asks.

    Attributes:
        name: as `slot(team=...)` and the tag `team` have it. quotas: by pool. cohort: those whose quota it may borrow; empty for none.
        weight: of its share of what is left over. namespace: of Kubernetes; account: of Slurm; both the name where none is given.
    """

    name: str
    quotas: Mapping[str, Quota]
    cohort: str = ""
    weight: float = 1.0
    namespace: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class FairShare:
    """How the past counts when two ask for the same GPU.

    Attributes:
        half_life_s: after so long usage counts half. entry_penalty_s: an admission counts at once as so much time of use, so that a burst
            cannot be faster than the counters. patience_s: whoever has waited so long goes first, whatever its priority.
        exempt_s: nobody is asked to give back what he has held for less; without it jobs that take long to start may never get anywhere.
    """

    half_life_s: float = 7 * 86_400.0
    entry_penalty_s: float = 300.0
    patience_s: float = 86_400.0
    exempt_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Quotas:
    """All of one file.

    Attributes:
        name: of the cluster. pools, teams: by name. cohorts: cohort -> pool -> GPUs that are shared. priorities: name -> rank.
        fair_share: how the past counts. source: the file.
    """

    name: str
    pools: Mapping[str, Pool]
    teams: Mapping[str, Team]
    cohorts: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: _NONE)
    priorities: Mapping[str, int] = field(default_factory=lambda: PRIORITIES)
    fair_share: FairShare = field(default_factory=FairShare)
    source: str = ""

    def quota(self, team: str, pool: str) -> Quota:
        """What a team has there; one that is not named in the pool has nothing of its own and may borrow nothing."""
        return self.teams[team].quotas.get(pool, _NO_QUOTA)

    def members(self, cohort: str) -> tuple[Team, ...]:
        """The teams of a cohort."""
        return tuple(team for team in self.teams.values() if team.cohort == cohort and cohort)

    def hard_limit(self, team: str, pool: str) -> int:
        """The most that a team can ever hold in a pool: its own, and what it may borrow of what there is to borrow."""
        quota = self.quota(team, pool)
        cohort = self.teams[team].cohort
        if not cohort or quota is _NO_QUOTA:
            return quota.nominal
        others = sum(self.quota(one.name, pool).lendable for one in self.members(cohort) if one.name != team)
        shared: int = others + self.cohorts.get(cohort, _NONE).get(pool, 0)
        borrowed = shared if quota.borrowing_limit is None else min(shared, quota.borrowing_limit)
        most: int = min(self.pools[pool].gpus, quota.nominal + borrowed)
        return most

    def team(self, name: str) -> Team:
        """The team of that name.

        Raises:
            ConfigurationError: naming the nearest one.
        """
        return _of(self.teams, name, "team", self.source)

    def pool(self, name: str = "") -> Pool:
        """The pool of that name; without one the only one there is.

        Raises:
            ConfigurationError: where there is none of the name, or no name and several pools.
        """
        if not name and len(self.pools) == 1:
            return next(iter(self.pools.values()))
        if not name:
            raise ConfigurationError(
                f"{self.source or 'the quota file'} has the pools {', '.join(self.pools)}; say which one: pool={next(iter(self.pools))!r}"
            )
        return _of(self.pools, name, "pool", self.source)

    def rank(self, priority: str | int) -> int:
        """The number of a priority.

        Raises:
            ConfigurationError: naming the nearest one.
        """
        if isinstance(priority, int):
            return int(priority)
        return _of(self.priorities, priority, "priority", self.source)


_NO_QUOTA = Quota(0, 0, 0)


def _of(table: Mapping[str, V], name: str, what: str, source: str) -> V:
    if name in table:
        return table[name]
    write = f"[{what}s.{name}]" if what != "priority" else f"{name} = 100 below [priorities]"
    raise ConfigurationError(f"{source or 'the quota file'} has no {what} {name!r}.{_near(name, table)} Write {write}")


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else f" Known: {', '.join(names) or 'none'}."


# --- reading -----------------------------------------------------------------------------------------------------------------


def read_quotas(path: str | Path) -> Quotas:
    """What a file says.

    Raises:
        ConfigurationError: for the first thing that is wrong, naming the file, the key, the value and what to type.
    """
    import tomllib

    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"quota file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"quota file {path} is no valid TOML: {error}") from None
    return read_table(table, str(path))


def read_table(table: Mapping[str, Any], source: str = "") -> Quotas:
    """The same of a table that was read already.

    Raises:
        ConfigurationError: likewise.
    """
    read = _Reader(source)
    read.keys(table, "", ("name", "pools", "cohorts", "teams", "priorities", "fair_share"))
    pools = {name: read.pool(name, row) for name, row in read.table(table, "pools").items()}
    if not pools:
        read.fail("pools", "nothing", "a pool: [pools.h100] and below it gpus = 64")
    cohorts = {name: read.cohort(name, row, pools) for name, row in read.table(table, "cohorts").items()}
    teams = {name: read.team(name, row, pools) for name, row in read.table(table, "teams").items()}
    if not teams:
        read.fail("teams", "nothing", f"a team: [teams.nlp] and below it {next(iter(pools))} = 8")
    ranks = {name: read.whole(f"priorities.{name}", row, -(10**9)) for name, row in read.table(table, "priorities").items()}  # fmt: skip
    quotas = Quotas(
        name=str(table.get("name", "gpus")),
        pools=MappingProxyType(pools),
        teams=MappingProxyType(teams),
        cohorts=MappingProxyType(cohorts),
        priorities=MappingProxyType({**PRIORITIES, **ranks}) if ranks else PRIORITIES,
        fair_share=read.fair_share(read.table(table, "fair_share")),
        source=source,
    )
    _check_sums(quotas, read)
    return quotas


def _check_sums(quotas: Quotas, read: _Reader) -> None:
    """What is promised must be there."""
    for pool in quotas.pools.values():
        own = {team.name: quotas.quota(team.name, pool.name).nominal for team in quotas.teams.values()}
        shared = sum(of.get(pool.name, 0) for of in quotas.cohorts.values())
        promised = sum(own.values()) + shared
        if promised > pool.gpus:
            parts = ", ".join(f"{name} {count}" for name, count in own.items() if count)
            also = f" and {shared} shared by cohorts" if shared else ""
            read.fail(
                f"pools.{pool.name}.gpus",
                pool.gpus,
                f"{promised} or more, or less nominal quota: promised are {parts}{also}",
            )


class _Reader:
    """Reads values and knows the words for what is wrong with them."""

    def __init__(self, source: str) -> None:
        self._source = source or "quotas"

    def fail(self, key: str, value: object, write: str) -> None:
        raise ConfigurationError(f"{self._source}: {key} = {value!r}: write {write}")

    def keys(self, table: Mapping[str, Any], where: str, known: Iterable[str]) -> None:
        for key in table:
            if key not in known:
                raise ConfigurationError(f"{self._source}: no key {where}{key!s}.{_near(key, known)}")

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = table.get(key, _NONE)
        if not isinstance(value, Mapping):
            self.fail(key, value, f"a table: [{key}]")
        return value  # type: ignore[no-any-return]  # looked at above

    def whole(self, key: str, value: object, least: int = 0) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.fail(key, value, f"a whole number, {least} or more")
        return value  # type: ignore[return-value]  # looked at above

    def number(self, key: str, value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            self.fail(key, value, "a number above 0")
        return float(value)  # type: ignore[arg-type]  # looked at above

    def limit(self, key: str, value: object) -> int | None:
        return None if value is None else self.whole(key, value)

    def pool(self, name: str, row: Any) -> Pool:
        if isinstance(row, int) and not isinstance(row, bool):
            row = {"gpus": row}
        if not isinstance(row, Mapping) or "gpus" not in row:
            self.fail(f"pools.{name}", row, f"[pools.{name}] and below it gpus = 64")
        texts = ("accelerator", "partition", "gres", "resource")
        self.keys(row, f"pools.{name}.", ("gpus", "labels", *texts))
        labels = self.table(row, "labels")
        return Pool(
            name,
            self.whole(f"pools.{name}.gpus", row["gpus"], 1),
            labels=MappingProxyType({str(key): str(value) for key, value in labels.items()}),
            **{key: str(row[key]) for key in texts if key in row},
        )

    def cohort(self, name: str, row: Any, pools: Mapping[str, Pool]) -> Mapping[str, int]:
        if not isinstance(row, Mapping):
            self.fail(f"cohorts.{name}", row, f"[cohorts.{name}] and below it {next(iter(pools))} = 8")
        self.keys(row, f"cohorts.{name}.", pools)
        return MappingProxyType({key: self.whole(f"cohorts.{name}.{key}", value) for key, value in row.items()})

    def team(self, name: str, row: Any, pools: Mapping[str, Pool]) -> Team:
        if not isinstance(row, Mapping):
            self.fail(f"teams.{name}", row, f"[teams.{name}] and below it {next(iter(pools))} = 8")
        texts = ("cohort", "namespace", "account")
        self.keys(row, f"teams.{name}.", ("weight", *texts, *pools))
        quotas = {key: self.quota(f"teams.{name}.{key}", row[key]) for key in row if key in pools}
        return Team(
            name,
            MappingProxyType(quotas),
            weight=self.number(f"teams.{name}.weight", row.get("weight", 1)),
            **{key: str(row[key]) for key in texts if key in row},
        )

    def quota(self, where: str, row: Any) -> Quota:
        if isinstance(row, int) and not isinstance(row, bool):
            row = {"nominal": row}
        if not isinstance(row, Mapping) or "nominal" not in row:
            self.fail(where, row, "{ nominal = 16, borrowing_limit = 8 }, or a number")
        self.keys(row, f"{where}.", ("nominal", "borrowing_limit", "lending_limit"))
        nominal = self.whole(f"{where}.nominal", row["nominal"])
        lending = self.limit(f"{where}.lending_limit", row.get("lending_limit"))
        if lending is not None and lending > nominal:
            self.fail(f"{where}.lending_limit", lending, f"{nominal} (all of it) at most")
        return Quota(nominal, self.limit(f"{where}.borrowing_limit", row.get("borrowing_limit")), lending)

    def fair_share(self, row: Mapping[str, Any]) -> FairShare:
        spans: Mapping[str, tuple[str, Callable[[float], float]]] = _SPANS
        self.keys(row, "fair_share.", spans)
        return FairShare(**{spans[key][0]: spans[key][1](self.number(f"fair_share.{key}", row[key])) for key in row})


_SPANS = {
    "half_life_hours": ("half_life_s", lambda hours: hours * 3600),
    "entry_penalty_minutes": ("entry_penalty_s", lambda minutes: minutes * 60),
    "patience_hours": ("patience_s", lambda hours: hours * 3600),
    "exempt_minutes": ("exempt_s", lambda minutes: minutes * 60),
}
