"""Calls in flight, as other processes see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

import aifinops as af
from aifinops import runtime
from aifinops.ledger import presence
from aifinops.ledger.presence import PLACES, Presence, Present, folder_of, present
from aifinops.metering import Call
from aifinops.metering.invocation import Invocation
from aifinops.reading import Reading
from aifinops.scope import Scope
from aifinops.tags import EMPTY
from aifinops.testing.server import FakeProvider

pytestmark = pytest.mark.skipif(not presence.AVAILABLE, reason="this system has no locks on files")

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "ledger.db")


@pytest.fixture
def own(folder: Path) -> Iterator[Presence]:
    made = Presence(lambda: folder)
    yield made
    made.close()


def seen(folder: Path) -> list[tuple[int, str]]:
    return [call for one in present(folder) for call in one.calls]


def test_a_call_is_seen_while_it_lasts(own: Presence, folder: Path) -> None:
    """From its beginning to its end, the oldest first; before the first call there is nothing on the disk."""
    assert not folder.exists()
    late, early = own.begin("gpt-5", 20), own.begin("modèle", 10)
    assert present(folder) == [Present(os.getpid(), ((10, "modèle"), (20, "gpt-5")), full=False)]
    own.end(early)
    assert seen(folder) == [(20, "gpt-5")]
    own.end(late)
    assert present(folder) == [Present(os.getpid(), (), full=False)]
    own.close()
    assert not folder.exists()
    assert own.begin("gpt-5", 30) is None


def test_more_calls_than_places(own: Presence, folder: Path) -> None:
    """They are made, and it is said that there may be more."""
    tokens = [own.begin("m", 1 + number) for number in range(PLACES + 3)]
    assert tokens[PLACES:] == [None, None, None]
    (one,) = present(folder)
    assert (len(one.calls), one.full) == (PLACES, True)
    for token in tokens:
        own.end(token)
    assert seen(folder) == []
    assert own.begin("m", 1) is not None


def test_long_names_and_many_of_them(own: Presence, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is cut where it does not fit, also within a letter; what is remembered of names has an end."""
    monkeypatch.setattr(presence, "_MOST_NAMES", 2)
    for name in ("x" * 55 + "é", "a", "b", ""):
        own.end(own.begin(name, 1))
        assert len(own._names) <= 2
    own.begin("x" * 55 + "é", 1)
    assert seen(folder) == [(1, "x" * 55)]


def test_threads_have_places_of_their_own(own: Presence, folder: Path) -> None:
    """Calls begin and end in many threads at once, and none is left over."""

    def work() -> None:
        for number in range(500):
            own.end(own.begin("m", 1 + number))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen(folder) == []
    assert sorted(own._free) == sorted(set(own._free))
    assert len(own._free) == PLACES


DIES = """
import pathlib, signal, sys, os
from aifinops.ledger.presence import Presence
folder = pathlib.Path(sys.argv[1])
Presence(lambda: folder).begin("gpt-5", 5)
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_is_gone(folder: Path) -> None:
    """While it lives its call is in flight; once it is dead nothing is, and its file is deleted by who looks."""
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert present(folder) == [Present(process.pid, ((5, "gpt-5"),), full=False)]
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert present(folder) == []
    assert list(folder.iterdir()) == []


def test_a_forked_child_has_a_file_of_its_own(own: Presence, folder: Path) -> None:
    """What the parent has in flight is the parent's: the child neither ends it nor shows it."""
    token = own.begin("parent's", 1)
    child = os.fork()
    if child == 0:
        own.reset_after_fork()
        own.end(token)
        own.begin("child's", 2)
        found = {(one.process == os.getpid(), one.calls) for one in present(folder)}
        own.close()
        os._exit(0 if found == {(True, ((2, "child's"),)), (False, ((1, "parent's"),))} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert seen(folder) == [(1, "parent's")]


def test_no_place_for_the_file(tmp_path: Path) -> None:
    """Calls go on, and are not shown."""
    (tmp_path / "file").write_text("")
    blocked = Presence(lambda: tmp_path / "file" / "folder")
    assert blocked.begin("m", 1) is None
    blocked.end(None)
    nowhere = Presence(lambda: None)
    assert nowhere.begin("m", 1) is None
    assert present(tmp_path / "none") == []


def test_files_of_others(own: Presence, folder: Path) -> None:
    """What is not ours, or of another version, is left where its process lives."""
    own.begin("m", 1)
    other = folder / "1-x.live"
    with other.open("wb") as file:
        file.write(b"AIFPliv9" + bytes(100))
        file.flush()
        assert presence.lock(file.fileno())
        assert seen(folder) == [(1, "m")]
        assert other.exists()
    assert seen(folder) == [(1, "m")]
    assert not other.exists()


ENDS: dict[str, Callable[[Invocation], None]] = {
    "settle": lambda call: call.settle(Reading()),
    "release": lambda call: call.release(ValueError()),
    "give up": lambda call: call.give_up(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_metered_call(tmp_path: Path, end: str) -> None:
    """It is in flight until it is settled, given back or given up, whichever comes first; a ledger in memory shows nothing."""
    path = tmp_path / "ledger.db"
    af.init(ledger=str(path))
    call = Invocation(runtime.get(), Call("openai", "chat", "gpt-5-mini"), Scope(), EMPTY)
    assert [model for _, model in seen(folder_of(path))] == ["gpt-5-mini"]
    ENDS[end](call)
    assert seen(folder_of(path)) == []
    call.give_up()
    assert seen(folder_of(path)) == []
    af.shutdown()
    assert not folder_of(path).exists()
    af.init(ledger="memory")
    assert Invocation(runtime.get(), Call("openai", "chat", "m"), Scope(), EMPTY).place is None


def test_the_stream_of_a_real_client(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In flight from the request to the last chunk, or until it is closed."""
    path = tmp_path / "ledger.db"
    af.init(ledger=str(path))
    request.addfinalizer(af.uninstrument)
    af.instrument("openai")
    with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:
        for stop in (False, True):
            stream = client.chat.completions.create(
                model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            next(iter(stream))
            assert [model for _, model in seen(folder_of(path))] == ["gpt-5-mini"]
            stream.close() if stop else list(stream)
            assert seen(folder_of(path)) == []
