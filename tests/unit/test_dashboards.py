"""Dashboards, rules and the collector's configuration are well-formed and ask for what is there; `tests/stacks` runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aifinops.telemetry import names

FOLDER = Path(__file__).parents[2] / "dashboards"
BOARDS = sorted((FOLDER / "grafana").glob("*.json"))
RULES = FOLDER / "prometheus" / "aifinops-rules.yaml"

_ASKED = re.compile(
    r"\b((?:aifinops|gen_ai|hw)_[a-z_]+?)(?:_total|_bucket|_sum|_count)?(?:\(_ratio\)\?)?(?=[\[{\s\"),]|$)"
)
_UNITS = ("_seconds", "_joules", "_watts", "_bytes", "")


def exported() -> set[str]:
    """Names of our metrics as Prometheus has them, without the endings of their kinds."""
    return {str(value).replace(".", "_") for key, value in vars(names).items() if key.startswith("METRIC_")}


def attributes() -> set[str]:
    known = {
        str(value).replace(".", "_") for key, value in vars(names).items() if isinstance(value, str) and key.isupper()
    }
    return (
        known
        | {str(value).replace(".", "_") for value in names.TAGS.values()}
        | {"hw_id", "aifinops_place", "aifinops_budget_period"}
    )


def asked(expression: str) -> set[str]:
    return set(_ASKED.findall(re.sub(r'"\$[a-z]+"', '""', expression)))


def expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def is_known(name: str) -> bool:
    return name in attributes() or any(name.endswith(unit) and name.removesuffix(unit) in exported() for unit in _UNITS)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_metrics_and_labels_that_are_told(path: Path) -> None:
    """Every name in every query is one of ours; every panel has a title, a query and a place of its own."""
    board = json.loads(path.read_text(encoding="utf-8"))
    found = list(expressions(board))
    assert board["uid"] == f"aifinops-{path.stem}"
    assert len(found) >= 6
    strange = {name for expression in found for name in asked(expression) if not is_known(name)}
    assert not strange
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["title"] for panel in board["panels"])


def test_rules_ask_for_metrics_that_are_told() -> None:
    """And each alert says what is wrong, how bad it is and what to type."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    strange = {name for rule in rules for name in asked(rule["expr"]) if not is_known(name)}
    assert not strange
    for rule in rules:
        if "alert" in rule:
            assert {"summary", "action"} <= rule["annotations"].keys()
            assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_rules_have_tests_for_what_matters_most() -> None:
    """Every alert that pages is in the tests that `promtool` runs."""
    tested = (FOLDER / "prometheus" / "aifinops-rules-test.yaml").read_text(encoding="utf-8")
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    paging = [
        rule["alert"] for group in groups for rule in group["rules"] if rule.get("labels", {}).get("severity") == "page"
    ]
    assert paging
    assert all(f"alertname: {name}" in tested for name in paging)


def test_the_collector_uses_only_what_it_defines() -> None:
    """Each receiver, processor, exporter and extension that a pipeline names is there, and each that is there is used."""
    config = yaml.safe_load((FOLDER / "collector" / "aifinops-collector.yaml").read_text(encoding="utf-8"))
    service = config["service"]
    assert set(service["extensions"]) == set(config["extensions"])
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in service["pipelines"].values() for name in pipeline[kind]}
        assert used == set(config[kind]), kind
    costs = service["pipelines"]["logs/costs"]
    assert "tail_sampling" not in costs["processors"]
    assert names_of_the_event() in config["processors"]["filter/only_costs"]["logs"]["log_record"][0]


def names_of_the_event() -> str:
    return "aifinops.cost.recorded"
