"""A long run: memory that stays where it is, and processes that fork while others are in the middle of a call.

Small by default. `AIFINOPS_SOAK=1` makes a hundred thousand calls and a thousand forks, and tells what was measured.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import openai._base_client as base  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import errors  # noqa: E402
from aifinops.budgets.guard import Guard  # noqa: E402
from aifinops.budgets.stores.memory import MemoryStore  # noqa: E402
from aifinops.integrations import passing  # noqa: E402
from aifinops.ledger import open_ledger  # noqa: E402

library = getattr(base, "httpx2", None) or base.httpx

SOAK = bool(os.environ.get("AIFINOPS_SOAK"))
CALLS, WARM = (100_000, 20_000) if SOAK else (1_200, 300)
FORKS = 1_000 if SOAK else 12

USAGE = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o-mini"}
ANSWER = {**HEAD, "object": "chat.completion", "usage": USAGE, "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}  # fmt: skip
CHUNK = {**HEAD, "object": "chat.completion.chunk", "usage": None, "choices": [{"index": 0, "delta": {"content": "x"}}]}
STREAM = b"".join(
    b"data: " + one + b"\n\n"
    for one in (json.dumps(CHUNK).encode(), json.dumps({**CHUNK, "choices": [], "usage": USAGE}).encode(), b"[DONE]")
)
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}


class Bytes(library.SyncByteStream):  # type: ignore[name-defined, misc]
    def __iter__(self) -> Iterator[bytes]:
        yield STREAM


def answer(request: Any) -> Any:
    if b'"boom"' in request.content:
        return library.Response(500, json={"error": {"message": "no"}})
    if b'"stream":true' in request.content.replace(b" ", b""):
        return library.Response(200, stream=Bytes(), headers={"content-type": "text/event-stream"})
    return library.Response(200, json=ANSWER)


def one_call(client: Any, number: int) -> None:
    """Most are plain, some are streams, and some are refused."""
    kind = number % 10
    if kind == 7:
        for _ in client.chat.completions.create(**CHAT, stream=True):
            pass
    elif kind == 8:
        client.chat.completions.create(**CHAT, stream=True).close()
    elif kind == 9:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**{**CHAT, "user": "boom"})
    else:
        client.chat.completions.create(**CHAT)


def level() -> tuple[int, int]:
    """(resident bytes, objects) once what can go has gone."""
    af.flush()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) if sys.platform == "linux" else 0
    return pages * 4096, len(gc.get_objects())


def test_memory_is_flat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After many calls of every kind there is no more than after some."""
    engines = af.init(ledger=tmp_path / "l.db", stream_usage="always")
    passed = set(passing._passing)  # of tests before
    assert not engines.policies  # makes all engines, which would replace this one
    engines.guard = Guard(MemoryStore(remember=100), engines.clock)
    af.instrument("openai")
    wire = library.Client(transport=library.MockTransport(answer))
    try:
        with openai.OpenAI(api_key="k", http_client=wire, max_retries=0) as client, af.budget("$100000") as budget:
            for number in range(WARM):
                one_call(client, number)
            early, objects = level()
            began = time.perf_counter()
            for number in range(WARM, CALLS):
                one_call(client, number)
            took = time.perf_counter() - began
            late, more = level()
            assert budget.reserved == 0
            assert budget.spent > 0
    finally:
        af.uninstrument()
    assert len(list(engines.ledger.rows())) == CALLS * 9 // 10
    assert not passing._passing - passed
    assert errors.failures() == {}
    with capsys.disabled():
        if SOAK:
            each = took / (CALLS - WARM) * 1e6
            sys.stderr.write(
                f"\n{CALLS} calls: {late - early} resident bytes and {more - objects} objects more than after {WARM}, {each:.0f} us each\n"
            )
    assert more - objects < 500
    assert late - early < 8_000_000


FORKING = """
import itertools, json, os, sys, threading, time
import openai, openai._base_client as base
import aifinops as af

library = getattr(base, "httpx2", None) or base.httpx
count = itertools.count()
HEAD = {"object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
        "usage": {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}

def answer(request):
    return library.Response(200, json={**HEAD, "id": f"{os.getpid()}-{next(count)}"})

def call():
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}], max_tokens=50)

af.init(ledger=sys.argv[1])
af.instrument("openai")
client = openai.OpenAI(api_key="k", http_client=library.Client(transport=library.MockTransport(answer)), max_retries=0)
call()
stop, made = threading.Event(), [0, 0, 0]

def work(which):
    with af.budget("$1000", name="shared"):
        while not stop.is_set():
            call()
            made[which] += 1
            time.sleep(0.0005)  # leaves the others, and the store, a chance

threads = [threading.Thread(target=work, args=(which,), daemon=True) for which in range(3)]
for thread in threads:
    thread.start()
slowest = 0.0
for number in range(int(sys.argv[2])):
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        with af.budget("$1000", name="shared"):
            call()
        if number % 10 == 9:
            sys.exit(0)  # with everything that is registered for the end, and the interpreter's own slow end
        af.flush()
        os._exit(0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > 60:
            os.kill(child, 9)
            os.waitpid(child, 0)
            sys.exit(f"child {number} hangs")
        time.sleep(0.001)
    if status:
        sys.exit(f"child {number} ended with {status}")
    slowest = max(slowest, time.monotonic() - began)
stop.set()
for thread in threads:
    thread.join()
af.flush()
from aifinops import errors
print(json.dumps({"parent": sum(made) + 1, "pid": os.getpid(), "slowest": slowest, "failures": errors.failures()}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_in_the_middle_of_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three threads make calls while the process forks; each child makes one and ends. Nobody hangs, and every call is there once."""
    path = tmp_path / "l.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, str(path), str(FORKS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    ledger = open_ledger(path)
    charges = list(ledger.rows())
    ledger.close()
    seen = Counter(charge.response_id for charge in charges)
    assert max(seen.values()) == 1
    assert len({charge.id for charge in charges}) == len(charges)
    by_process = Counter(charge.response_id.partition("-")[0] for charge in charges)
    assert by_process.pop(str(told["pid"])) == told["parent"]
    assert len(by_process) == FORKS
    assert set(by_process.values()) == {1}
    assert told["failures"] == {}
    assert all(charge.basis == "priced" for charge in charges)
    with capsys.disabled():
        if SOAK:
            sys.stderr.write(
                f"\n{FORKS} forks beside {told['parent']} calls; the slowest took {told['slowest']:.2f} s\n"
            )
