"""Where this process runs: whose machine, which instance type, in which region, on what terms. A price needs all four.

Environment variables come first, since they cost nothing; what they leave open is read from the firmware's name for the machine, and,
only where that is allowed, from the cloud's metadata service (`aifinops.gpu.metadata`). What nobody says stays empty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

__all__ = ["TERMS", "Place", "from_environ", "place"]

TERMS = ("on_demand", "spot", "reserved", "capacity_block", "owned")
"""On what terms a machine is held; empty where nobody says it, and then it is priced on demand."""

_NOTHING: Mapping[str, str] = MappingProxyType({})
_Found = dict[str, str]
_FIELDS = ("provider", "region", "instance_type", "term")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs. Empty texts are unknown.

    Attributes:
        provider: id in the price list (`aws`, `gcp`, `runpod`). region, instance_type: as the provider names them.
        term: one of `TERMS`. confidence: `high` where the platform itself says it, `low` where it was concluded; empty where nothing is known.
        source: what said it, for people: `SM_RESOURCE_CONFIG`, `EC2 metadata`.
        details: whose job it is there, by OpenTelemetry's names where there are any: namespace, pod, node, job.
    """

    provider: str = ""
    region: str = ""
    instance_type: str = ""
    term: str = ""
    confidence: str = ""
    source: str = ""
    details: Mapping[str, str] = field(default_factory=lambda: _NOTHING, compare=False)

    def over(self, other: Place) -> Place:
        """This place, with what it leaves open from another; one of another provider has nothing to say about it."""
        if self.provider and other.provider and self.provider != other.provider:
            return self
        more = {name: getattr(other, name) for name in _FIELDS if not getattr(self, name) and getattr(other, name)}
        if not more:
            return self
        sources = " and ".join(filter(None, (self.source, other.source)))
        confidence = other.confidence if "instance_type" in more or not self.confidence else self.confidence
        return replace(self, **more, source=sources, confidence=confidence)


def place(environ: Mapping[str, str] = os.environ, allow_network: bool = False, *, term: str = "") -> Place:
    """Where this process runs.

    Args:
        environ: the environment. allow_network: whether the metadata service of the cloud may be asked, for 0.2 s at most; its answer is
            kept for the life of the process. term: what the user says about the terms; it comes before everything else.
    """
    from aifinops.gpu import metadata  # most programs know it from their environment

    found = from_environ(environ)
    if term:
        found = replace(found, term=term, source=" and ".join(filter(None, (found.source, "gpu_term"))))
    if not (found.provider and found.instance_type):
        found = found.over(metadata.firmware())
    if allow_network and not all((found.provider, found.region, found.instance_type, found.term)):
        found = found.over(metadata.ask(environ))
    return found


def from_environ(environ: Mapping[str, str]) -> Place:
    """What the environment says; the platforms in the order of `_PLATFORMS`, each for what those before it left open."""
    found = Place()
    details: _Found = {}
    for name, confidence, read in _PLATFORMS:
        said = {key: value for key, value in read(environ).items() if value}
        if not said:
            continue
        known = {key: said.pop(key) for key in _FIELDS if key in said}
        details = {**said, **details}
        if known:
            provider, region, kind, term = (known.get(key, "") for key in _FIELDS)
            found = found.over(Place(provider, region, kind, term, confidence, name))
    return replace(found, details=MappingProxyType(details))


def _json(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _region_of(zone: str) -> str:
    """`us-central1-a` -> `us-central1`, `us-east-1a` -> `us-east-1`."""
    head, dash, last = zone.rpartition("-")
    if dash and len(last) == 1 and last.isalpha():
        return head
    return zone[:-1] if zone[-1:].isalpha() and zone[-2:-1].isdigit() else zone


# --- one reader a platform ---------------------------------------------------------------------------------------------------


def _resource(environ: Mapping[str, str]) -> _Found:
    """What an operator has put into the resource: the one standard way to say it in Kubernetes, whose downward API has no node labels."""
    from urllib.parse import unquote  # values are percent-encoded

    found: _Found = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        found[key.strip()] = unquote(value.strip())
    zone = found.get("cloud.availability_zone", "")
    kept = {key: value for key, value in found.items() if key.startswith(("k8s.", "host.name", "host.id"))}
    return {
        **kept,
        "provider": _CLOUDS.get(found.get("cloud.provider", "").lower(), found.get("cloud.provider", "")),
        "region": found.get("cloud.region", "") or _region_of(zone),
        "instance_type": found.get("host.type", ""),
        "term": _TERM_WORDS.get(found.get("aifinops.price.term", "").lower(), ""),
    }


def _sagemaker(environ: Mapping[str, str]) -> _Found:
    config = _json(environ.get("SM_RESOURCE_CONFIG", ""))
    kind = str(config.get("current_instance_type") or environ.get("SM_CURRENT_INSTANCE_TYPE", ""))
    if not kind and "TRAINING_JOB_NAME" not in environ:
        return {}
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION", "")
    return {
        "provider": "aws",
        "instance_type": kind,
        "region": region,
        "job.name": environ.get("TRAINING_JOB_NAME", ""),
    }


def _modal(environ: Mapping[str, str]) -> _Found:
    if "MODAL_TASK_ID" not in environ:
        return {}
    return {
        "provider": "modal",
        "region": environ.get("MODAL_REGION", ""),
        "job.id": environ["MODAL_TASK_ID"],
        "modal.environment": environ.get("MODAL_ENVIRONMENT", ""),
    }


def _runpod(environ: Mapping[str, str]) -> _Found:
    if "RUNPOD_POD_ID" not in environ:
        return {}
    return {"provider": "runpod", "region": environ.get("RUNPOD_DC_ID", ""), "job.id": environ["RUNPOD_POD_ID"]}


def _vertex(environ: Mapping[str, str]) -> _Found:
    if not any(name in environ for name in ("CLOUD_ML_PROJECT_ID", "CLOUD_ML_JOB_ID", "AIP_MODEL_DIR")):
        return {}
    pools = _json(environ.get("CLUSTER_SPEC", "")).get("job")
    return {
        "provider": "gcp",
        "region": environ.get("CLOUD_ML_REGION", ""),
        "instance_type": _machine_type(pools),
        "job.id": environ.get("CLOUD_ML_JOB_ID", ""),
    }


def _machine_type(job: object) -> str:
    """Of the pool of a Vertex job; empty where it has several of different types, since nothing says which one this is."""
    text = job if isinstance(job, str) else json.dumps(job)
    pools = _json(text).get("worker_pool_specs")
    specs = [pool.get("machine_spec") for pool in pools if isinstance(pool, dict)] if isinstance(pools, list) else []
    kinds = {str(spec["machine_type"]) for spec in specs if isinstance(spec, dict) and spec.get("machine_type")}
    return kinds.pop() if len(kinds) == 1 else ""


def _skypilot(environ: Mapping[str, str]) -> _Found:
    info = _json(environ.get("SKYPILOT_CLUSTER_INFO", ""))
    cloud = str(info.get("cloud") or "").lower()
    return {
        "provider": _CLOUDS.get(cloud, "" if cloud == "kubernetes" else cloud),
        "region": str(info.get("region") or ""),
        "job.id": environ.get("SKYPILOT_TASK_ID", ""),
    }


def _azure(environ: Mapping[str, str]) -> _Found:
    if "AZUREML_RUN_ID" not in environ and "AZ_BATCH_NODE_ID" not in environ:
        return {}
    return {"provider": "azure", "job.id": environ.get("AZUREML_RUN_ID", "") or environ.get("AZ_BATCH_JOB_ID", "")}


def _aws(environ: Mapping[str, str]) -> _Found:
    batch, runtime = environ.get("AWS_BATCH_JOB_ID", ""), environ.get("AWS_EXECUTION_ENV", "")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION", "")
    if not batch and not runtime.startswith(("AWS_ECS", "AWS_Lambda")):
        return {}  # the region alone is often set on a laptop, too
    return {"provider": "aws", "region": region, "job.id": batch}


def _runai(environ: Mapping[str, str]) -> _Found:
    if "RUNAI_NUM_OF_GPUS" not in environ and "RUNAI_JOB_NAME" not in environ:
        return {}
    return {
        "job.id": environ.get("JOB_UUID", ""),
        "job.name": environ.get("JOB_NAME", "") or environ.get("RUNAI_JOB_NAME", ""),
        "k8s.node.name": environ.get("NODE_NAME", ""),
    }


def _slurm(environ: Mapping[str, str]) -> _Found:
    if "SLURM_JOB_ID" not in environ:
        return {}
    return {
        "job.id": environ["SLURM_JOB_ID"],
        "job.name": environ.get("SLURM_JOB_NAME", ""),
        "slurm.account": environ.get("SLURM_JOB_ACCOUNT", ""),
        "slurm.partition": environ.get("SLURM_JOB_PARTITION", ""),
        "host.name": environ.get("SLURMD_NODENAME", ""),
    }


def _kubernetes(environ: Mapping[str, str]) -> _Found:
    if "KUBERNETES_SERVICE_HOST" not in environ:
        return {}
    # What the downward API is customarily given as; a pod names its own variables.
    return {
        "k8s.namespace.name": environ.get("POD_NAMESPACE", "") or environ.get("K8S_NAMESPACE", ""),
        "k8s.pod.name": environ.get("POD_NAME", "") or environ.get("K8S_POD_NAME", "") or environ.get("HOSTNAME", ""),
        "k8s.node.name": environ.get("NODE_NAME", "") or environ.get("K8S_NODE_NAME", ""),
    }


_CLOUDS = {
    "amazon": "aws",
    "aws": "aws",
    "azure": "azure",
    "do": "digitalocean",
    "gcp": "gcp",
    "google": "gcp",
    "google_cloud": "gcp",
    "lambda_cloud": "lambda",
}
"""How others spell the ids of the price list."""

_TERM_WORDS = {
    "on_demand": "on_demand",
    "on-demand": "on_demand",
    "spot": "spot",
    "preemptible": "spot",
    "reserved": "reserved",
    "capacity_block": "capacity_block",
    "capacity-block": "capacity_block",
    "owned": "owned",
}

_PLATFORMS: tuple[tuple[str, str, Callable[[Mapping[str, str]], _Found]], ...] = (
    ("OTEL_RESOURCE_ATTRIBUTES", "high", _resource),
    ("SageMaker's environment", "high", _sagemaker),
    ("Modal's environment", "high", _modal),
    ("RunPod's environment", "high", _runpod),
    ("Vertex AI's environment", "high", _vertex),
    ("SKYPILOT_CLUSTER_INFO", "high", _skypilot),
    ("Azure's environment", "high", _azure),
    ("AWS's environment", "high", _aws),
    ("Run:ai's environment", "high", _runai),
    ("Slurm's environment", "high", _slurm),
    ("Kubernetes' environment", "high", _kubernetes),
)
"""Source, confidence, reader; the most specific first."""
