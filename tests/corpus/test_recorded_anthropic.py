"""Recorded traffic of Anthropic through its real client with us on: exact buckets, one row, nothing changed for the user.

Some recordings have no request and no address; they are sent as answers to a request that says what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")

import anthropic._base_client as base  # noqa: E402
from recorded_traffic import (  # noqa: E402
    Family,
    How,
    Recorded,
    anthropic_buckets,
    arguments,
    broken_off,
    interactions,
    whole_and_in_pieces,
)

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the library's own, of models of yesterday
]

OVERLOADED = (
    b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
)


def client(item: Recorded, colour: str, options: dict[str, Any]) -> Any:
    return getattr(anthropic, "Anthropic" if colour == "sync" else "AsyncAnthropic")(**options)


def call(made: Any, item: Recorded) -> Callable[[], Any]:
    if item.endpoint == "complete":  # newer versions have no method for it
        kind = anthropic.Stream if isinstance(made, anthropic.Anthropic) else anthropic.AsyncStream
        streams = {"stream": True, "stream_cls": kind[object]} if item.sse else {}
        return lambda: made.post("/v1/complete", cast_to=object, body=item.request, **streams)
    function = (made.beta.messages if "beta" in item.query else made.messages).create
    more = (
        {"timeout": 20} if not item.request.get("stream") else {}
    )  # without it long answers are refused by the library
    return lambda: function(**arguments(function, item.request, **more))


FAMILY = Family(
    "anthropic", getattr(base, "httpx2", None) or base.httpx, client, call, anthropic_buckets, OVERLOADED
)  # fmt: skip


@pytest.fixture(scope="module")
def items() -> list[Recorded]:
    def wanted(one: Recorded) -> bool:
        return one.provider == "anthropic" or (one.provider == "no address" and anthropic_buckets(one) is not None)

    found = interactions(wanted)
    for one in found:
        if one.provider == "no address":
            text = {"role": "user", "content": "x"}
            # 8192: what the longest answer among them may have been asked with.
            one.request = {"model": "claude-sonnet-4-6", "max_tokens": 8192, "messages": [text], "stream": one.sse}
            one.url = "https://api.anthropic.com/v1/messages"
    return found


@pytest.mark.parametrize("how", FAMILY.ways()[:2], ids=lambda how: how.name)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_recorded_traffic_is_metered_exactly_and_unchanged(
    colour: str, how: How, items: list[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    """All recorded calls: what the user sees and sends is the same with us on, and each billed call is one exact row."""
    said = whole_and_in_pieces(FAMILY, items, colour, how)
    assert len(items) > 100
    with capsys.disabled():
        sys.stdout.write(said)


@pytest.mark.parametrize("how", FAMILY.ways()[2:], ids=lambda how: how.name)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_half_a_recorded_stream_is_one_row_that_holds_the_truth(
    colour: str, how: How, items: list[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken off in its middle, or ended by an error inside a 200: the same exception, and exact or within bounds."""
    said = broken_off(FAMILY, items, colour, how)
    with capsys.disabled():
        sys.stdout.write(said)
