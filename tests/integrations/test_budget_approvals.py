"""Calls that wait for an approval: with the real client, in both colours, answered in this process and from another one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops.budgets.approvals import Approvals, Request
from aifinops.errors import StoreError, reraise_failures
from aifinops.testing import FakeProvider, capture_charges
from aifinops.testing.wire import Wire

openai = pytest.importorskip("openai")

ASK: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 40}
LIMIT = "$0.000001"


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    af.init(ledger="memory")
    af.instrument("openai")
    with FakeProvider() as running:
        yield running
    af.uninstrument()


@pytest.fixture
def client(server: FakeProvider) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.base_url, api_key="x", max_retries=0) as made:
        yield made


def test_a_call_that_is_allowed_is_made_above_the_limit(server: FakeProvider, client: Any) -> None:
    """It is counted where it belongs, and its charge says who allowed it; one allowance is one call."""
    asked: list[Request] = []

    def approver(request: Request) -> bool | None:
        asked.append(request)
        return True if len(asked) == 1 else None

    with (
        capture_charges() as charges,
        af.tags(team="search"),
        af.budget(LIMIT, on_exceed={"ask": approver}, max_wait=0.5) as b,
    ):
        client.chat.completions.create(**ASK)
        with pytest.raises(af.ApprovalPending, match=r"Nobody has answered request .* yet: aifinops approvals grant"):
            client.chat.completions.create(**ASK)
    (charge,) = charges
    assert b.spent == Decimal(charge.amount or 0) / 10**9 > b.limit
    assert b.reserved == 0
    assert charge.tags["budget_action"] == "ask"
    assert (charge.tags["approval"], charge.tags["approver"]) == (asked[0].id, "approver")
    assert dict(asked[0].about) == {"provider": "openai", "operation": "chat", "model": "gpt-4o-mini", "team": "search"}
    assert server.requests == 1


def test_a_call_that_is_refused_says_by_whom(server: FakeProvider, client: Any) -> None:
    """And the next one like it does not wait."""

    def boss(_: Request) -> bool:
        return False

    with af.budget(LIMIT, on_exceed={"ask": boss}) as b:
        for _ in range(2):
            with pytest.raises(af.ApprovalDenied, match=r"Nothing was sent\. boss has said no to request") as refused:
                client.chat.completions.create(**ASK)
    assert refused.value.limit == b.limit
    assert server.requests == 0


def test_without_patience_nobody_is_waited_for(client: Any) -> None:
    """`max_wait=0` asks and raises; the answer that comes later serves the next call."""
    answered = threading.Event()

    def late(_: Request) -> bool:
        answered.set()
        return True

    with af.budget(LIMIT, on_exceed={"ask": late}, max_wait=0):
        with pytest.raises(af.ApprovalPending):
            client.chat.completions.create(**ASK)
        assert answered.wait(10)
        _until(lambda: _made(client))


def _made(client: Any) -> bool:
    try:
        client.chat.completions.create(**ASK)
    except af.ApprovalPending:
        return False
    return True


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_a_task_that_waits_holds_up_no_other(server: FakeProvider) -> None:
    """The event loop goes on while somebody thinks."""
    ticks = 0
    decided = threading.Event()

    def thoughtful(_: Request) -> bool:
        return decided.wait(10)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x") as client:
        ticking = asyncio.create_task(tick())
        async with af.budget(LIMIT, on_exceed={"ask": thoughtful}):
            waiting = asyncio.create_task(client.chat.completions.create(**ASK))
            await asyncio.sleep(0.3)
            assert ticks >= 10
            assert not waiting.done()
            decided.set()
            answer = await waiting
        ticking.cancel()
    assert answer.choices
    assert server.requests == 1


async def test_a_task_that_waits_may_be_cancelled(server: FakeProvider) -> None:
    """It holds nothing."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def silent(_: Request) -> None:
        loop.call_soon_threadsafe(asked.set)

    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="x") as client:
        async with af.budget(LIMIT, on_exceed={"ask": silent}) as b:
            waiting = asyncio.create_task(client.chat.completions.create(**ASK))
            await asked.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert b.reserved == 0
    assert server.requests == 0


def test_a_grant_that_another_budget_makes_useless_is_kept(client: Any) -> None:
    """The inner budget has no room either and raises: what was allowed is there for the next call."""
    asked: list[Request] = []

    def approver(request: Request) -> bool:
        asked.append(request)
        return True

    with af.budget(LIMIT, on_exceed={"ask": approver}):
        with af.budget("0 requests"), pytest.raises(af.BudgetExceeded, match="0 of 0 requests"):
            client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (RuntimeError("ours"), "Asking for an approval failed"),
        (StoreError("gone"), "Nobody can be asked for an approval: gone"),
        (af.ConfigurationError("no key"), "Nobody can be asked for an approval: no key"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_fails_the_limit_holds(
    server: FakeProvider, client: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception, says: str
) -> None:
    """A budget that cannot ask refuses."""

    def failing(*_: Any) -> Any:
        raise failure

    reraise_failures(False)
    monkeypatch.setattr(Approvals, "answer", failing)
    with af.budget(LIMIT, on_exceed={"ask": lambda _: True}), pytest.raises(af.BudgetExceeded, match=says):
        client.chat.completions.create(**ASK)
    assert server.requests == 0


MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 5, "output_tokens": 2},
}  # fmt: skip
ASK_CLAUDE: Any = {
    "model": "claude-haiku-4-5",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 40,
}


async def test_another_library_asks_in_both_colours() -> None:
    """It is the budget that asks, whoever's call it is: a stream as well."""
    anthropic = pytest.importorskip("anthropic")
    said: list[bool] = [True, True, False]
    af.init(ledger="memory")
    af.instrument("anthropic")
    with Wire() as wire, anthropic.Anthropic(base_url=wire.url, api_key="x") as client:
        wire.answers["POST /v1/messages"] = MESSAGE
        async with anthropic.AsyncAnthropic(base_url=wire.url, api_key="x") as aclient:
            with af.budget(LIMIT, on_exceed={"ask": lambda _: said.pop(0)}) as b:
                answer = await aclient.messages.create(**ASK_CLAUDE)
                answers = [answer, await asyncio.to_thread(client.messages.create, **ASK_CLAUDE)]
                with pytest.raises(af.ApprovalDenied):
                    await aclient.messages.create(stream=True, **ASK_CLAUDE)
    assert [type(answer).__name__ for answer in answers] == ["Message", "Message"]
    assert b.spent == 2 * Decimal("0.000015")
    assert len(wire.asked) == 2
    af.uninstrument()


# --- from another process -----------------------------------------------------------------------------------------------------


PROGRAM = """
import sys
import openai
import aifinops as af
af.instrument("openai")
client = openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0)
with af.budget("$0.000001", name="search", on_exceed="ask", max_wait=30):
    try:
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=40)
    except af.BudgetExceeded as refused:
        print(type(refused).__name__)
    else:
        print("made")
client.close()
"""


class Elsewhere:
    """Programs and commands with a ledger of their own."""

    def __init__(self, folder: Path, server: FakeProvider) -> None:
        self._server = server
        self._environment = {**os.environ, "AIFINOPS_LEDGER": str(folder / "ledger.db"), "AIFINOPS_STORE": ""}

    def program(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, self._server.base_url]
        return subprocess.Popen(words, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def command(self, *words: str) -> tuple[int, str, str]:
        typed = [sys.executable, "-c", "from aifinops.cli import main; main()", "approvals", *words]
        done = subprocess.run(typed, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    def waiting(self, count: int = 1) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = json.loads(self.command("list", "--format", "json")[1])
            return len(found) == count

        _until(there)
        return found


@pytest.fixture
def elsewhere(tmp_path: Path, server: FakeProvider) -> Elsewhere:
    return Elsewhere(tmp_path, server)


def test_the_command_answers_a_program_that_waits(elsewhere: Elsewhere, server: FakeProvider, tmp_path: Path) -> None:
    """It lists what waits, lets one of two programs go on, and refuses the other."""
    first, second = elsewhere.program(), elsewhere.program()
    (request,) = elsewhere.waiting()
    assert (request["budget"], request["about"]["model"]) == ("search", "gpt-4o-mini")
    status, out, _ = elsewhere.command("grant", request["id"], "--for", "10m", "--by", "ann")
    assert (status, out.startswith(f"{request['id']}: one call may cost up to $0.0000")) == (0, True)
    _until(lambda: first.poll() is not None or second.poll() is not None)
    (another,) = elsewhere.waiting()
    assert another["id"] != request["id"]
    status, out, _ = elsewhere.command("deny", another["id"])
    assert (status, "denied, until" in out) == (0, True)
    said = [program.communicate(timeout=60) for program in (first, second)]
    assert sorted(out.strip() for out, _ in said) == ["ApprovalDenied", "made"], said
    assert server.requests == 1
    assert (tmp_path / "approvals.key").stat().st_mode & 0o777 == 0o600
    assert elsewhere.command("list")[1] == "nothing waits for an answer\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("grant", "nothing"), "there is no request 'nothing' that waits for an answer"),
        (("deny", "nothing"), "there is no request 'nothing' that waits for an answer"),
        (("grant", "nothing", "--for", "soon"), "--for 'soon' is no length of time; write one such as 30m"),
        (("list", "--store", "memory"), "the memory of each process, which no other one can reach"),
        (("list", "--format", "xml"), "--format 'xml' is neither text nor json"),
    ],
)
def test_wrong_words_are_answered_in_one_line(elsewhere: Elsewhere, words: tuple[str, ...], says: str) -> None:
    """Exit status 2 and what to type instead."""
    status, out, error = elsewhere.command(*words)
    assert (status, out) == (2, "")
    assert says in error
    assert error.count("\n") == 1
