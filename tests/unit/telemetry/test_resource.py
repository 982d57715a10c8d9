"""Tags from the resource: only those that are asked for, of the provider in force, else of the standard variables."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

import aifinops as af
from aifinops import runtime
from aifinops.telemetry.resource import ResourceTags

SAID = {"service.name": "shop", "deployment.environment.name": "prod", "k8s.pod.name": "shop-1", "host.cpus": 8}


def provider(**attributes: Any) -> TracerProvider:
    return TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)


def test_nothing_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resource alone changes no row."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider(**SAID))
    assert af.record(cost="0.01 USD").tags == {}


def test_what_is_asked_for_is_read_from_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name, but for the environment; a provider that is set later is noticed."""
    monkeypatch.setenv("AIFINOPS_RESOURCE_TAGS", "service.name, deployment.environment.name, host.cpus, cloud.region")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "early")
    assert af.record(cost="0.01 USD").tags == {"service.name": "early"}
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider(**SAID))
    assert af.record(cost="0.01 USD").tags == {"service.name": "shop", "environment": "prod", "host.cpus": "8"}


def test_the_order_of_who_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument of the call, block, baggage, resource, process."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider(team="resource", project="resource", feature="resource"))
    names = ("team", "project", "feature")
    runtime.init(
        ledger="memory", resource_tags=names, baggage=True, tags=dict.fromkeys((*names, "customer"), "process")
    )
    inside = baggage.set_baggage("aifinops.team", "sent", baggage.set_baggage("aifinops.project", "sent"))
    token = context.attach(inside)
    with af.tags(team="block"):
        told = af.record(cost="0.01 USD").tags
        assert told == {"team": "block", "project": "sent", "feature": "resource", "customer": "process"}
        assert af.record(cost="0.01 USD", tags={"team": "call"}).tags["team"] == "call"
    context.detach(token)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%20b,k8s.pod.name = p ,,x"},
            {"service.name": "a b", "k8s.pod.name": "p"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "b"}, {"service.name": "b"}),
        ({"OTEL_SERVICE_NAME": "unknown_service:python"}, {}),
        ({}, {}),
    ],
)
def test_without_a_provider_the_standard_variables_are_read(environ: dict[str, str], expected: dict[str, str]) -> None:
    """Percent-decoded, the service's own variable first; a name that nobody gave is none."""
    assert ResourceTags(("service.name", "k8s.pod.name"), environ).tags() == expected


def test_a_value_that_is_too_long_is_cut() -> None:
    """A tag has its bound, and the call that comes by is not the one to hear of it."""
    assert ResourceTags(("service.name",), {"OTEL_SERVICE_NAME": "x" * 900}).tags() == {"service.name": "x" * 256}
