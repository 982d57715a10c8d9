"""Baggage: nothing is read or written unless somebody says so, a short list of keys, and no value that could be a person."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage as otel
from opentelemetry import context
from opentelemetry.baggage.propagation import W3CBaggagePropagator

import aifinops as af
from aifinops import runtime, scope
from aifinops.errors import ConfigurationError
from aifinops.telemetry import baggage

ALL = {"team": "search", "project": "p1", "feature": "rerank", "customer": "c-7", "run": "r.1", "budget": "b/1"}
SENT = {
    "aifinops.team": "search", "aifinops.project": "p1", "aifinops.feature": "rerank", "aifinops.customer": "c-7", "aifinops.run.id": "r.1",
    "aifinops.budget.id": "b/1",
}  # fmt: skip


@pytest.fixture
def reading() -> Iterator[None]:
    runtime.init(ledger="memory", baggage=True, tags={"team": "own", "cost_center": "42"})
    yield
    runtime.reset()


def under(values: dict[str, Any]) -> Any:
    """A context with this baggage put into force."""
    inside = context.get_current()
    for key, value in values.items():
        inside = otel.set_baggage(key, value, inside)
    return context.attach(inside)


def header() -> str:
    """What an instrumented HTTP client would send."""
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier)
    return carrier.get("baggage", "")


def charged() -> dict[str, str]:
    return dict(af.record(cost="0.01 USD").tags)


def test_nothing_is_read_by_default() -> None:
    """Whatever callers send, rows have the tags of this program alone."""
    runtime.init(ledger="memory", tags={"team": "own"})
    token = under(SENT)
    assert charged() == {"team": "own"}
    context.detach(token)


def test_what_was_sent_is_read_where_it_is_asked_for(reading: None) -> None:
    """Each key of the list under its tag; over the tags of the process, under those of blocks."""
    token = under({**SENT, "aifinops.environment": "x", "user.id": "bob"})
    assert charged() == {**ALL, "cost_center": "42"}
    with af.tags(team="inner"):
        assert charged()["team"] == "inner"
    context.detach(token)
    assert charged() == {"team": "own", "cost_center": "42"}


@pytest.mark.parametrize("value", ["", "two words", "bob@example.com", "x" * 65, "münchen", "line\nbreak", 7, None])
def test_values_that_nobody_may_send_are_ignored(reading: None, value: Any) -> None:
    """A value that is too long, no plain text, or may be a person's address is as if it were not there."""
    token = under({"aifinops.customer": value, "aifinops.feature": "rerank"})
    assert charged() == {"team": "own", "cost_center": "42", "feature": "rerank"}
    context.detach(token)


@given(value=st.text(max_size=80))
def test_whatever_is_sent_makes_no_wrong_tag(value: str) -> None:
    """What is read is printable ASCII without blanks and `@`, of 64 characters at most."""
    token = under({"aifinops.team": value})
    try:
        read = baggage.read().get("team")
    finally:
        context.detach(token)
    fits = 0 < len(value) <= 64 and value.isascii() and value.isprintable() and not set(value) & {" ", "@"}
    assert read == (value if fits else None)


def test_nothing_is_written_by_default() -> None:
    """Blocks with tags leave no header."""
    with af.tags(**ALL), af.track("answer", **ALL):
        assert header() == ""


def test_a_block_writes_what_it_is_told_to_and_takes_it_back() -> None:
    """The keys of the list and no others, while the block is in force; inside it the tags hold as ever."""
    with af.tags(**ALL, environment="x", user="bob", propagate=True):
        assert {key: otel.get_baggage(key) for key in SENT} == SENT
        assert len(otel.get_all()) == len(SENT)
        assert "bob" not in header()
        assert scope.current().tags["user"] == "bob"
        with af.track("answer", team="inner", propagate=True):
            assert otel.get_baggage("aifinops.team") == "inner"
        assert otel.get_baggage("aifinops.team") == "search"
    assert header() == ""


def test_one_program_writes_what_another_reads(reading: None) -> None:
    """Through the W3C header, as between two services."""
    carrier: dict[str, str] = {}
    with af.tags(**ALL, propagate=True):
        W3CBaggagePropagator().inject(carrier)
    token = context.attach(W3CBaggagePropagator().extract(carrier))
    assert charged() == {**ALL, "cost_center": "42"}
    context.detach(token)


@pytest.mark.parametrize("value", ["bob@example.com", "two words", "x" * 65, "münchen"])
def test_a_value_that_may_not_be_sent_is_refused_when_the_block_is_made(value: str) -> None:
    """Before anything goes out, with what to write in its place; a tag that is not sent may be anything."""
    with pytest.raises(ConfigurationError, match=r"aifinops\.customer=.*write at most 64 ASCII"):
        af.tags(customer=value, propagate=True)
    with pytest.raises(ConfigurationError, match="propagate=True"):
        af.track("answer", customer=value, propagate=True)
    with af.tags(user=value, propagate=True):
        assert header() == ""


async def test_tasks_do_not_see_each_others_baggage() -> None:
    """Each has its own context."""

    async def one(team: str) -> Any:
        with af.tags(team=team, propagate=True):
            await asyncio.sleep(0)
            return otel.get_baggage("aifinops.team")

    assert await asyncio.gather(one("a"), one("b")) == ["a", "b"]


def test_a_generator_has_it_in_its_own_code_only() -> None:
    """While it is suspended its caller's requests carry nothing."""

    @af.tags(team="search", propagate=True)
    def steps() -> Iterator[str]:
        yield header()
        yield header()

    found = [(inside, header()) for inside in steps()]
    assert found == [("aifinops.team=search", "")] * 2
