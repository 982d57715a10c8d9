"""Answers that no provider should give, storms of refusals, timeouts and bent clients, with the real client libraries.

A user gets what the bare client gives: the same answer, pieces and error. The ledger has one row for each call that may have been billed,
which claims nothing that was not said. `test_bad_answers` goes further into openai's.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from real_clients import (
    CANARY,
    INPUT,
    LIBRARIES,
    OUTPUT,
    Driver,
    Library,
    error_of,
    frame,
    outcome,
    pieces,
    shown,
    shut,
)

import aifinops as af
from aifinops import errors, runtime
from aifinops.charges import Charge
from aifinops.integrations import passing
from aifinops.testing.wire import Wire, sent

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning",
    "ignore::UserWarning",  # pydantic's, of what is not of the type that the library has for it
)  # fmt: skip

ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
TODAY = datetime.now(UTC).toordinal()
NAMES = ("openai", "anthropic", "google", "mistral", "cohere", "bedrock", "ollama")
CLIENTS = {name: one for name, one in LIBRARIES.items() if name.partition(" ")[0] in NAMES}
PART = [name for name in CLIENTS if ALL or name.partition(" ")[2] == ("sync", "async")[TODAY % 2]]
"""The colour of the day, for what needs waiting; `AIFINOPS_FAULTS=all` tries both."""
TRUE = {"input_tokens": INPUT, "output_tokens": OUTPUT}
SENT_IN = 0.15
"""Seconds until a client gives up, where it is to."""


class Tried:
    """One client library at a server, with and without us."""

    def __init__(self, library: Library, server: Wire) -> None:
        self.library, self.server = library, server
        self.driver = Driver(library.asynchronous)
        self._made: list[Any] = []

    def client(self, url: str = "", **options: Any) -> Any:
        """A new client."""
        self._made.append(self.library.make(url or self.server.url, **options))
        return self._made[-1]

    def close(self) -> None:
        """Let go of all clients and of the loop."""
        for client in self._made:
            self.driver.run(shut(client, self.library.asynchronous))
        self._made.clear()
        self.driver.close()

    @contextlib.contextmanager
    def metered(self) -> Iterator[None]:
        """With us in the way."""
        af.instrument(self.library.name)
        try:
            yield
        finally:
            af.uninstrument()

    def says(self, answer: Any) -> None:
        """What the server answers from now on, whoever asks."""
        paths = {self.library.path, self.library.stream_path or self.library.path}
        self.server.answers = {f"POST {path}": answer for path in paths}

    def whole(self, client: Any) -> Any:
        """What a user gets of a call."""
        return self.driver.run(outcome(lambda: self.library.asked(client, False)))

    def pieces(self, client: Any) -> list[Any]:
        """What a user gets of a stream, and the error that ends it."""
        return list(self.driver.run(_pieces(self.library, client)))

    def rows(self) -> list[Charge]:
        """The ledger's new rows; nothing is open any more, and nothing that was said is in them."""
        for _ in range(3):  # an older client leaves an answer open: its loop closes it
            if passing._passing:
                gc.collect()
                self.driver.run(_turn())
        af.flush()
        found = list(runtime.get().ledger.rows())
        assert CANARY not in repr(found)
        assert not passing._passing
        return found


async def _turn() -> None:
    """One turn of a loop, which closes what was left to it."""


async def _pieces(library: Library, client: Any) -> list[Any]:
    seen: list[Any] = []
    keep = seen.append
    try:
        async for piece in pieces(library.asked(client, True)):
            keep(shown(piece))
    except Exception as error:
        seen.append(error_of(error))
    return seen


@pytest.fixture(params=CLIENTS)
def tried(request: pytest.FixtureRequest) -> Iterator[Tried]:
    library = CLIENTS[request.param]
    pytest.importorskip(library.needs)
    errors.reraise_failures(False)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    af.init(ledger="memory", stream_usage="always")
    with Wire() as server:
        made = Tried(library, server)
        gc.freeze()  # what is collected in a test is only what that has left
        yield made
        gc.unfreeze()
        made.close()
    gc.collect()  # what was left open is said while the filter above is in force, and not in a later test
    logging.getLogger("aifinops").setLevel(logging.NOTSET)


def honest(charge: Charge) -> None:
    """An amount only with numbers that can be true, within its bounds; otherwise it is unknown, which is never zero."""
    assert charge.basis in {"priced", "estimated", "unknown"}
    assert (charge.amount is None) == (charge.basis == "unknown")
    assert charge.amount is None or charge.amount > 0
    assert all(math.isfinite(count) and count >= 0 for count in charge.quantities.values())
    if charge.basis == "estimated" and charge.lower is not None and charge.upper is not None:
        assert charge.lower <= charge.amount <= charge.upper


# --- whole answers -----------------------------------------------------------------------------------------------------------


def with_usage(library: Library, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The library's good answer, with what `change` makes of its usage."""
    body = copy.deepcopy(library.answer)
    *outer, last = ("", *library.usage)
    inside = {"": body}
    for name in outer:
        inside = inside[name]
    if last:
        inside[last] = change(inside[last])
    else:  # the counts are among everything else
        changed = change({name: body.pop(name) for name in library.counts})
        body.update(changed if isinstance(changed, dict) else dict.fromkeys(library.counts, changed))
    return body


def counting(library: Library, made: Any, asked: Any = INPUT) -> dict[str, Any]:
    """The same with other counts."""
    return with_usage(library, lambda usage: {**usage, **dict(zip(library.counts, (asked, made), strict=True))})


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


IDS = ("id", "responseId")
ODD: dict[str, Callable[[Library], Any]] = {
    "usage is null": lambda one: with_usage(one, lambda _: None),
    "usage is a text": lambda one: with_usage(one, lambda _: "twelve"),
    "usage is a list": lambda one: with_usage(one, lambda _: [1, 2]),
    "texts for counts": lambda one: counting(one, "six", "twelve"),
    "lists for counts": lambda one: counting(one, [OUTPUT], [INPUT]),
    "negative": lambda one: counting(one, -OUTPUT),
    "1e30": lambda one: counting(one, 1e30),
    "2**80": lambda one: counting(one, 2**80),
    "not a number": lambda one: counting(one, math.nan),
    "infinite": lambda one: counting(one, math.inf, -math.inf),
    "an error in a 200": lambda one: {"error": {"message": CANARY, "code": 500, "type": "server_error"}},
    "a list": lambda one: ("application/json", json.dumps([one.answer]).encode()),
    "half of it": lambda one: ("application/json", json.dumps(one.answer).encode()[:40]),
    "no utf-8": lambda one: ("application/json", b'{"id": "\xff\xfe"}'),
    "nothing": lambda one: ("application/json", b""),
    "a page": lambda one: ("text/html", b"<html>hello</html>"),
}
GOOD: dict[str, Callable[[Library], Any]] = {
    "no id": lambda one: without(one.answer, *IDS),
    "an id of a wrong type": lambda one: {**one.answer, **{name: [1] for name in IDS if name in one.answer}},
    "new fields": lambda one: with_usage(
        one, lambda usage: {**usage, "brand_new_count": 4, "deep": {"er": {"x": [1]}}}
    ),
}


def test_an_answer_that_is_odd_is_the_users_and_claims_nothing(tried: Tried) -> None:
    """What the SDK makes of it is what the user gets, and the row is unknown or an estimate, unless the truth can be read in it."""
    wrong, client = {}, tried.client()
    for case, made in ODD.items():
        tried.says(made(tried.library))
        before = len(tried.rows())
        expected = tried.whole(client)
        with tried.metered(), af.budget("$1000", unknown="allow") as budget:
            got = tried.whole(client)
            rows = tried.rows()[before:]
            held = budget.reserved
        claimed = [dict(row.quantities) for row in rows if row.basis == "priced"]
        if repr(got) != repr(expected) or len(rows) != 1 or held or (claimed and claimed != [TRUE]):
            wrong[case] = (
                f"{got!r} for {expected!r}, {held} held, {[(row.basis, dict(row.quantities)) for row in rows]}"
            )
        for row in rows:
            honest(row)
    assert wrong == {}


def test_what_is_only_new_or_missing_beside_the_usage_changes_no_figure(tried: Tried) -> None:
    """An answer without an id, or with a new field in its usage, is charged for what it says."""
    client = tried.client()
    for number, (case, made) in enumerate(GOOD.items()):
        tried.says(made(tried.library))
        expected = tried.whole(client)
        with tried.metered():
            assert tried.whole(client) == expected, case
            charge = tried.rows()[number]
        assert (charge.quantities["input_tokens"], charge.quantities["output_tokens"]) == (INPUT, OUTPUT), case


# --- streams -----------------------------------------------------------------------------------------------------------------


def broken_streams(library: Library, server: Wire) -> dict[str, tuple[str, bytes]]:
    """The library's good stream, cut and damaged."""
    stream = library.stream(server) if callable(library.stream) else library.stream
    kind, data = stream if isinstance(stream, tuple) else ("text/event-stream", b"".join(map(sent, stream)))
    middle = len(data) // 2
    lines = data.split(b"\n")
    garbled = [line if number != len(lines) // 2 else line[: len(line) // 2] for number, line in enumerate(lines)]
    trouble = frame({":exception-type": "throttlingException", ":message-type": "exception"}, b'{"message": "no"}')
    events = "event-stream" in kind and "amazon" not in kind
    error = json.dumps({"error": {"message": CANARY, "type": "overloaded_error"}}).encode()
    said = b"event: error\ndata: " + error + b"\n\n" if events else trouble if "amazon" in kind else error + b"\n"
    first = data.find(b"\n\n") + 2 if events else data.find(b"\n") + 1
    return {
        "nothing": (kind, b""),
        "cut in the middle": (kind, data[:middle]),
        "cut near its end": (kind, data[:-30]),
        "garbled": (kind, b"\n".join(garbled)),
        "an error in it": (kind, data[:first] + said),
        "no utf-8": (kind, b"data: \xff\xfe\n\n" + data),
        "a page": ("text/html", b"<html>hello</html>"),
    }


def test_a_stream_that_is_damaged_is_the_users_and_honestly_charged(tried: Tried) -> None:
    """What came before the damage comes, then the SDK's own error, and the row is no more certain than the stream was."""
    wrong, client = {}, tried.client()
    tried.server.asked.append(("", b"include_usage"))
    for case, stream in broken_streams(tried.library, tried.server).items():
        tried.says(stream)
        before = len(tried.rows())
        expected = tried.pieces(client)
        with tried.metered(), af.budget("$1000", unknown="allow") as budget:
            got = tried.pieces(client)
            rows = tried.rows()[before:]
            held = budget.reserved
        if unhidden(got) != unhidden(expected) or len(rows) != 1 or held:
            wrong[case] = (
                f"{got!r} for {expected!r}, {held} held, {[(row.basis, dict(row.quantities)) for row in rows]}"
            )
        for row in rows:
            honest(row)
    assert wrong == {}


def unhidden(pieces: list[Any]) -> list[Any]:
    """Without the event that only we have asked for, which this server tells to anybody."""
    return [piece for piece in pieces if not (isinstance(piece, dict) and piece.get("choices") == [])]


@pytest.mark.parametrize("tried", PART, indirect=True)
def test_a_connection_that_breaks_in_a_stream_is_the_users_error(tried: Tried) -> None:
    """The answer stops in the middle of its transport: the pieces so far, the library's error, and one row."""
    if isinstance(tried.library.stream, tuple):
        pytest.skip("its pieces are no server-sent events")
    tried.server.cut = 1
    tried.server.asked.append(("", b"include_usage"))
    stream = tried.library.stream
    tried.says(stream(tried.server) if callable(stream) else stream)
    expected = tried.pieces(tried.client())
    with tried.metered(), af.budget("$1000", unknown="allow") as budget:
        assert tried.pieces(tried.client()) == expected
        (charge,) = tried.rows()
        assert budget.reserved == 0
    honest(charge)
    assert charge.basis in {"estimated", "unknown"}


# --- storms and silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", PART, indirect=True)
@pytest.mark.parametrize("status", [429, 500])
def test_a_storm_of_refusals_costs_nothing(tried: Tried, status: int) -> None:
    """Whether the library tries again or not: nothing for what was refused, and one row for the answer that comes at last."""
    tried.says(status)
    expected = tried.whole(tried.client())
    with tried.metered(), af.budget("$1000", unknown="allow") as budget:
        client = tried.client()
        for _ in range(5):
            assert tried.whole(client) == expected
        assert [row for row in tried.rows() if row.status != "error"] == []
        assert (budget.spent, budget.reserved) == (0, 0)
        answers = iter((status, tried.library.answer))
        tried.says(lambda: next(answers))
        got = tried.whole(tried.client(retries=1))
        rows = [row for row in tried.rows() if row.status != "error"]
        assert budget.reserved == 0
    if next(answers, None) is not None:  # this library does not try again by itself
        assert (got, rows) == (expected, [])
    else:
        assert [dict(row.quantities) for row in rows] == [TRUE]


@pytest.mark.parametrize("tried", PART, indirect=True)
def test_silence_after_a_request_may_have_been_billed(tried: Tried) -> None:
    """A client that gives up waiting: its own error, and a row that does not know what it cost."""

    def late() -> Any:
        time.sleep(2 * SENT_IN)
        return tried.library.answer

    tried.says(late)
    expected = tried.whole(tried.client(timeout=SENT_IN))
    with tried.metered(), af.budget("$1000", unknown="allow") as budget:
        assert tried.whole(tried.client(timeout=SENT_IN)) == expected
        (charge,) = tried.rows()
        assert budget.reserved == 0
    assert (charge.basis, charge.status, charge.amount) == ("unknown", "error", None)


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """An address where nobody takes a connection: the queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("tried", PART, indirect=True)
def test_a_connection_that_never_was_costs_nothing(tried: Tried) -> None:
    """A timeout before anything was sent: the library's own error, no row, and nothing is held."""
    with deaf() as url:
        expected = tried.whole(tried.client(url, timeout=SENT_IN))
        with tried.metered(), af.budget("$1000", unknown="allow") as budget:
            assert tried.whole(tried.client(url, timeout=SENT_IN)) == expected
            assert [row for row in tried.rows() if row.status != "error"] == []
            assert (budget.spent, budget.reserved) == (0, 0)


# --- clients that somebody has bent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", PART, indirect=True)
def test_a_client_of_a_users_class_is_metered(tried: Tried) -> None:
    """A subclass that compares by name and cannot be hashed: the same answer, and one row."""
    tried.says(tried.library.answer)
    expected = tried.whole(tried.client())
    with tried.metered():
        client = tried.client()
        kind = type(client)
        client.__class__ = type(f"My{kind.__name__}", (kind,), {"__eq__": lambda self, other: True, "__hash__": None})
        assert tried.whole(client) == expected
        (charge,) = tried.rows()
    assert dict(charge.quantities) == TRUE


@pytest.mark.parametrize("tried", PART, indirect=True)
def test_a_method_that_a_user_has_wrapped_or_replaced(tried: Tried) -> None:
    """Around his own wrapper it is one row; a stub in its place is no call, and no row."""
    tried.says(tried.library.answer)
    expected, ran = tried.whole(tried.client()), []
    with tried.metered():
        client = tried.client()
        owner: Any = client
        *path, name = tried.library.method.split(".")
        for part in path:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            ran.append(name)
            return original(*args, **kwargs)

        vars(owner)[name] = wrapped
        assert tried.whole(client) == expected
        assert ran == [name]
        assert len(tried.rows()) == 1
        vars(owner)[name] = lambda *args, **kwargs: "a stub"
        assert tried.whole(client) == repr("a stub")
        assert len(tried.rows()) == 1
