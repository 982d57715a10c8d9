"""The quota file as what clusters enforce themselves: Kueue's objects, ResourceQuotas of Kubernetes, Slurm's accounts, QOS and partitions.

An SDK in a process cannot keep others from using a GPU; a scheduler can. Both are told the same from one file.

Kueue: https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/ (needs Kueue 0.14 or newer). Kubernetes:
https://kubernetes.io/docs/concepts/policy/resource-quotas/. Slurm: https://slurm.schedmd.com/sacctmgr.html, slurm.conf.html, priority_multifactor.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aifinops.errors import ConfigurationError
from aifinops.gpu.quota import Pool, Quota, Quotas, Team

__all__ = ["k8s", "kueue", "slurm"]

_HEAD = "# Made from the GPU quotas of {name} by `aifinops gpu quota export --format {form}`; change those, not this.\n"
_API = "kueue.x-k8s.io/v1beta2"
_LABELS = {"app.kubernetes.io/managed-by": "aifinops"}
_LONGEST = 63
_HALF_LIFE_DAYS = 86_400


def kueue(quotas: Quotas) -> str:
    """ResourceFlavors (one a pool), Cohorts, ClusterQueues and LocalQueues (one a team), WorkloadPriorityClasses, as YAML.

    Raises:
        ConfigurationError: for a name that Kubernetes cannot have.
    """
    documents: list[Mapping[str, Any]] = [_flavor(pool) for pool in quotas.pools.values()]
    for name, shared in _cohorts(quotas).items():
        groups = _groups(quotas, {pool: Quota(gpus) for pool, gpus in shared.items() if gpus})
        documents.append(_object(_API, "Cohort", name, {"resourceGroups": groups} if groups else {}))
    for team in quotas.teams.values():
        documents += [_cluster_queue(quotas, team), _local_queue(team)]
    documents += [
        _object(_API, "WorkloadPriorityClass", name, None, value=rank, description=f"Priority {name} of aifinops")
        for name, rank in quotas.priorities.items()
    ]
    return _HEAD.format(name=quotas.name, form="kueue") + _yaml(documents)


def k8s(quotas: Quotas) -> str:
    """A ResourceQuota for the namespace of each team, as YAML: plain Kubernetes knows no borrowing, so it is the hard limit.

    Raises:
        ConfigurationError: for a name that Kubernetes cannot have, or pools whose GPUs have the same resource name and a team in both.
    """
    documents = []
    for team in quotas.teams.values():
        hard: dict[str, str] = {}
        for pool in quotas.pools.values():
            most = quotas.hard_limit(team.name, pool.name)
            key = f"requests.{pool.resource}"
            if most and key in hard:
                raise ConfigurationError(
                    f"{quotas.source or 'the quota file'}: team {team.name!r} has GPUs of several pools that are all {pool.resource!r}; "
                    f'ResourceQuotas cannot tell them apart. Give each pool its resource, e.g. resource = "nvidia.com/h100", or use Kueue'
                )
            if most:
                hard[key] = str(most)
        if not hard:
            hard = {f"requests.{pool.resource}": "0" for pool in quotas.pools.values()}
        namespace = team.namespace or team.name
        documents.append(_object("v1", "ResourceQuota", "aifinops-gpus", {"hard": hard}, namespace=namespace))
    return _HEAD.format(name=quotas.name, form="k8s") + _yaml(documents)


def slurm(quotas: Quotas) -> str:
    """Commands for `sacctmgr` (accounts, fair share, QOS) and lines for `slurm.conf`, as one text that says which is which.

    A team's account may hold its hard limit (`GrpTRES`). Slurm knows no nominal quota: who comes first is decided by fair share and by the QOS of
    a priority, of which the higher ones pre-empt the lower.

    Raises:
        ConfigurationError: for a name that Slurm cannot have.
    """
    lines = [_HEAD.format(name=quotas.name, form="slurm").rstrip(), "", "# --- sacctmgr: run these once, and again after a change"]  # fmt: skip
    lines += [
        f"sacctmgr --immediate add account {_word(f'cohort_{name}')} Description='cohort of aifinops'"
        for name in _cohorts(quotas)
    ]
    ranks = sorted(quotas.priorities.items(), key=lambda pair: pair[1])
    lowest = min((rank for _, rank in ranks), default=0)
    for name, rank in ranks:
        lower = [other for other, value in ranks if value < rank]
        preempt = f" Preempt={','.join(map(_word, lower))}" if lower else ""
        lines.append(f"sacctmgr --immediate add qos {_word(name)}")
        lines.append(f"sacctmgr --immediate modify qos {_word(name)} set Priority={rank - lowest}{preempt} PreemptMode=REQUEUE")  # fmt: skip
    names = ",".join(_word(name) for name, _ in ranks)
    for team in quotas.teams.values():
        account = _word(team.account or team.name)
        parent = f" Parent={_word(f'cohort_{team.cohort}')}" if team.cohort else ""
        lines.append(f"sacctmgr --immediate add account {account}{parent} Description='team {_word(team.name)} of aifinops'")  # fmt: skip
        limits = ",".join(
            f"gres/gpu:{_word(pool.gres or pool.name)}={quotas.hard_limit(team.name, pool.name)}"
            for pool in quotas.pools.values()
        )
        lines.append(f"sacctmgr --immediate modify account {account} set Fairshare={_fairshare(quotas, team)} GrpTRES={limits} QOS={names}")  # fmt: skip
    lines += ["", "# --- slurm.conf", *_slurm_conf(quotas)]
    return "\n".join(lines) + "\n"


# --- Kueue -------------------------------------------------------------------------------------------------------------------


def _cohorts(quotas: Quotas) -> Mapping[str, Mapping[str, int]]:
    """Those that are declared, and those that only teams name."""
    named: dict[str, Mapping[str, int]] = {team.cohort: {} for team in quotas.teams.values() if team.cohort}
    return {**named, **quotas.cohorts}


def _flavor(pool: Pool) -> Mapping[str, Any]:
    return _object(_API, "ResourceFlavor", pool.name, {"nodeLabels": dict(pool.labels)} if pool.labels else {})


def _groups(quotas: Quotas, quota: Mapping[str, Quota]) -> list[Mapping[str, Any]]:
    """One group for each resource name, with a flavor for each of its pools."""
    by_resource: dict[str, list[str]] = {}
    for pool in quotas.pools.values():
        if pool.name in quota:
            by_resource.setdefault(pool.resource, []).append(pool.name)
    return [
        {"coveredResources": [resource], "flavors": [_flavor_quota(name, resource, quota[name]) for name in names]}
        for resource, names in by_resource.items()
    ]


def _flavor_quota(pool: str, resource: str, quota: Quota) -> Mapping[str, Any]:
    row: dict[str, Any] = {"name": resource, "nominalQuota": quota.nominal}
    if quota.borrowing_limit is not None:
        row["borrowingLimit"] = quota.borrowing_limit
    if quota.lending_limit is not None:
        row["lendingLimit"] = quota.lending_limit
    return {"name": pool, "resources": [row]}


def _cluster_queue(quotas: Quotas, team: Team) -> Mapping[str, Any]:
    # Outside a cohort Kueue refuses limits of borrowing and lending.
    own = team.quotas if team.cohort else {pool: Quota(quota.nominal) for pool, quota in team.quotas.items()}
    spec: dict[str, Any] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": _name(team.namespace or team.name)}},
        "queueingStrategy": "BestEffortFIFO",
        "resourceGroups": _groups(quotas, own),
        "preemption": {
            "reclaimWithinCohort": "Any",
            "withinClusterQueue": "LowerPriority",
            "borrowWithinCohort": {"policy": "Never"},
        },
        "fairSharing": {"weight": _weight(team.weight)},
    }
    if team.cohort:
        spec = {"cohortName": _name(team.cohort), **spec}
    return _object(_API, "ClusterQueue", team.name, spec)


def _local_queue(team: Team) -> Mapping[str, Any]:
    return _object(
        _API, "LocalQueue", team.name, {"clusterQueue": _name(team.name)}, namespace=team.namespace or team.name
    )


def _weight(weight: float) -> str:
    return f"{weight:g}"


def _object(
    api: str, kind: str, name: str, spec: Mapping[str, Any] | None, *, namespace: str = "", **more: Any
) -> Mapping[str, Any]:
    metadata: dict[str, Any] = {"name": _name(name), "labels": _LABELS}
    if namespace:
        metadata["namespace"] = _name(namespace)
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **({} if spec is None else {"spec": spec}), **more}


def _name(name: str) -> str:
    """A name as Kubernetes has it (RFC 1123 label)."""
    found = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not found or len(found) > _LONGEST:
        raise ConfigurationError(f"{name!r} cannot be a name in Kubernetes; use up to 63 letters, digits and dashes")
    return found


# --- Slurm -------------------------------------------------------------------------------------------------------------------


def _word(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ConfigurationError(
            f"{name!r} cannot be a name in Slurm; use letters, digits, dots, dashes and underscores"
        )
    return name.lower()


def _fairshare(quotas: Quotas, team: Team) -> int:
    """Shares by own quota and weight, at least one."""
    own = sum(quotas.quota(team.name, pool).nominal for pool in quotas.pools)
    return max(1, round(own * team.weight))


def _slurm_conf(quotas: Quotas) -> Iterable[str]:
    kinds = ",".join(f"gres/gpu:{_word(pool.gres or pool.name)}" for pool in quotas.pools.values())
    days, rest = divmod(int(quotas.fair_share.half_life_s), _HALF_LIFE_DAYS)
    hours, minutes = rest // 3600, rest % 3600 // 60
    yield f"AccountingStorageTRES=gres/gpu,{kinds}"
    yield "AccountingStorageEnforce=associations,limits,qos"
    yield "PriorityType=priority/multifactor"
    yield f"PriorityDecayHalfLife={days}-{hours:02d}:{minutes:02d}:00"
    yield "PriorityWeightFairshare=100000"
    yield "PriorityWeightQOS=1000000"
    yield "PreemptType=preempt/qos"
    yield "PreemptMode=REQUEUE"
    if quotas.fair_share.exempt_s:
        exempt = int(quotas.fair_share.exempt_s)
        yield f"PreemptExemptTime={exempt // 3600:02d}:{exempt % 3600 // 60:02d}:{exempt % 60:02d}"
    for pool in quotas.pools.values():
        gres = _word(pool.gres or pool.name)
        partition = _word(pool.partition or pool.name)
        yield f"# add to the line of the partition: PartitionName={partition} ... TRESBillingWeights=GRES/gpu:{gres}=1.0"


# --- YAML --------------------------------------------------------------------------------------------------------------------


def _yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Block style, texts always in quotes where YAML could read them as something else. It needs no library."""
    return "".join(f"---\n{_mapping(document, 0)}" for document in documents)


def _mapping(value: Mapping[str, Any], depth: int) -> str:
    return "".join(f"{'  ' * depth}{_key(key)}:{_value(item, depth)}" for key, item in value.items())


def _value(item: Any, depth: int) -> str:
    if isinstance(item, Mapping):
        return f"\n{_mapping(item, depth + 1)}" if item else " {}\n"
    if isinstance(item, list):
        return f"\n{''.join(_item(one, depth) for one in item)}" if item else " []\n"
    return f" {_scalar(item)}\n"


def _item(item: Any, depth: int) -> str:
    if isinstance(item, Mapping) and item:
        inner = _mapping(item, depth + 1)
        return f"{'  ' * depth}- {inner[2 * (depth + 1) :]}"
    return f"{'  ' * depth}- {_scalar(item)}\n"  # an empty mapping is `{}` in JSON and in YAML


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_SPECIAL = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def _scalar(item: Any) -> str:
    if isinstance(item, str) and not (_PLAIN.fullmatch(item) and item.lower() not in _SPECIAL):
        # A string of JSON is one of YAML, but for what lies beyond ASCII: there YAML has no pairs of surrogates.
        return "".join(
            letter if letter < "\x7f" else _escape(ord(letter)) for letter in json.dumps(item, ensure_ascii=False)
        )
    return item if isinstance(item, str) else json.dumps(item)


def _escape(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _key(key: str) -> str:
    return _scalar(key)
