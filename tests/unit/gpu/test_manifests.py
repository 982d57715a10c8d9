"""The quota file as Kueue, Kubernetes and Slurm read it: golden files, and what the APIs require of every object."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError
from aifinops.gpu import manifests
from aifinops.gpu.quota import Quotas, read_quotas, read_table

GOLDEN = Path(__file__).parent / "golden"
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


@pytest.fixture
def lab() -> Quotas:
    return read_quotas(GOLDEN / "quotas.toml")


@pytest.mark.parametrize("form", ["kueue", "k8s", "slurm"])
def test_golden_files(form: str, lab: Quotas) -> None:
    """The same quotas give the same text, byte for byte."""
    made = getattr(manifests, form)(lab)
    file = GOLDEN / f"quotas.{form}"
    if "UPDATE_GOLDEN" in os.environ:
        file.write_text(made)
    assert made == file.read_text()


def objects(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def of_kind(text: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects(text) if one["kind"] == kind}


def test_kueue_has_every_object_that_others_name(lab: Quotas) -> None:
    """Queues name cohorts, flavors and queues that are there, and quotas are those of the file."""
    text = manifests.kueue(lab)
    flavors, cohorts = of_kind(text, "ResourceFlavor"), of_kind(text, "Cohort")
    queues, local = of_kind(text, "ClusterQueue"), of_kind(text, "LocalQueue")
    assert set(flavors) == {"h100", "l4"}
    assert flavors["h100"]["spec"]["nodeLabels"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert set(cohorts) == {"lab"}
    assert set(queues) == set(local) == {"nlp", "vision", "ops"}
    for queue in queues.values():
        spec = queue["spec"]
        assert spec.get("cohortName", "lab") in cohorts
        for group in spec["resourceGroups"]:
            for flavor in group["flavors"]:
                assert flavor["name"] in flavors
                assert [one["name"] for one in flavor["resources"]] == group["coveredResources"]
    nlp = queues["nlp"]["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]
    assert nlp == {"name": "nvidia.com/gpu", "nominalQuota": 24, "borrowingLimit": 16, "lendingLimit": 12}
    assert "cohortName" not in queues["ops"]["spec"]
    assert local["nlp"]["metadata"]["namespace"] == "team-nlp"
    assert queues["nlp"]["spec"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "team-nlp"}
    assert of_kind(text, "WorkloadPriorityClass")["urgent"]["value"] == 1000


def test_every_object_has_what_the_api_requires(lab: Quotas) -> None:
    """Version, kind and a name by RFC 1123; no two objects of a kind and a namespace have the same name."""
    for text in (manifests.kueue(lab), manifests.k8s(read_quotas(GOLDEN / "quotas.toml"))):
        found = objects(text)
        for one in found:
            assert one["apiVersion"] in {"kueue.x-k8s.io/v1beta2", "v1"}
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", one["metadata"]["name"])
        names = Counter((one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found)
        assert max(names.values()) == 1


def test_resource_quotas_are_hard_limits(lab: Quotas) -> None:
    """Plain Kubernetes cannot lend: each namespace may have what its team can ever have."""
    found = {one["metadata"]["namespace"]: one["spec"]["hard"] for one in objects(manifests.k8s(lab))}
    assert found == {
        "team-nlp": {"requests.nvidia.com/gpu": "40"},
        "vision": {"requests.nvidia.com/gpu": "36", "requests.nvidia.com/l4": "4"},
        "ops": {"requests.nvidia.com/l4": "4"},
    }


def test_pools_that_kubernetes_cannot_tell_apart() -> None:
    """Two pools of one resource name in one namespace would be added up: that is refused, with what to type."""
    rules = read_table({"pools": {"a": 2, "b": 2}, "teams": {"t": {"a": 1, "b": 1}}})
    with pytest.raises(ConfigurationError, match="Give each pool its resource"):
        manifests.k8s(rules)
    assert len(objects(manifests.kueue(rules))) == 2 + 2 + 4


@pytest.mark.parametrize("name", ["", "---", "x" * 64])
def test_names_that_kubernetes_cannot_have(name: str) -> None:
    """A name that cannot be made one is refused."""
    rules = read_table({"pools": {"a": 2}, "teams": {name: {"a": 1}}})
    with pytest.raises(ConfigurationError, match="cannot be a name in Kubernetes"):
        manifests.kueue(rules)


def test_names_that_slurm_cannot_have() -> None:
    """What would be more than one word in a shell is refused: these are commands."""
    rules = read_table({"pools": {"a": 2}, "teams": {"x; rm -rf /": {"a": 1}}})
    with pytest.raises(ConfigurationError, match="cannot be a name in Slurm"):
        manifests.slurm(rules)


PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
TREES = st.recursive(
    PLAIN | st.integers() | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner.filter(lambda one: not isinstance(one, list)), max_size=3)
        | st.dictionaries(PLAIN, inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(PLAIN, TREES, min_size=1, max_size=3))
def test_what_is_written_is_what_is_read(document: dict[str, Any]) -> None:
    """Our YAML is read back by PyYAML as what it was, whatever texts are in it."""
    assert yaml.safe_load(manifests._yaml([document])) == document


def test_a_team_without_gpus_may_have_none() -> None:
    """A namespace of a team that has no quota is closed: without a ResourceQuota it would be open."""
    rules = read_table({"pools": {"a": 2}, "teams": {"t": {}, "u": {"a": 2}}})
    assert objects(manifests.k8s(rules))[0]["spec"]["hard"] == {"requests.nvidia.com/gpu": "0"}
