"""The log of decisions: one chain whoever writes, and every change of it shows."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

import aifinops
from aifinops import errors
from aifinops.budgets import audit
from aifinops.budgets.audit import Audit, entries, verify
from aifinops.budgets.stores.base import Node
from aifinops.errors import ConfigurationError
from aifinops.testing.clock import FakeClock

NODE = Node("search|day", 1_780_000_000_000_000_000, "USD", 10**9, 1_780_086_400_000_000_000, label="search")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "budgets.db.audit"


def log(path: Path, count: int = 3) -> Audit:
    made = Audit(path, FakeClock(datetime(2026, 11, 24, 12, tzinfo=UTC)))
    for number in range(count):
        made.add("refused", budget=f"b{number}")
    return made


def kinds(path: Path) -> list[str]:
    return [entry.facts["kind"] for entry in entries(path) if not entry.trouble]


# --- what is written -----------------------------------------------------------------------------------------------------


def test_each_line_is_chained_to_the_one_before(path: Path) -> None:
    """The hash of a line can be made by anybody from the hash before it and the line without its own."""
    log(path)
    before = "0" * 64
    for line in path.read_text().splitlines():
        body, _, rest = line.rpartition(',"hash":"')
        before = hashlib.sha256(f"{before}\n{body}}}".encode()).hexdigest()
        assert rest == before + '"}'
    assert verify(path) == audit.Verdict(4, before)
    assert kinds(path) == ["opened", "refused", "refused", "refused"]


def test_a_line_is_canonical_json_with_time_process_and_number(path: Path) -> None:
    """Sorted keys, exact amounts as text, no spaces; the time is UTC."""
    log(path, 0).add("limit_set", budget="süß", limit=Decimal("0.0125"), by="ann", ids=("a", "b"), none=None)
    line = path.read_text().splitlines()[1]
    facts = json.loads(line)
    assert facts.pop("hash") == verify(path).head
    assert facts == {
        "at": "2026-11-24T12:00:00.000000Z", "budget": "süß", "by": "ann", "ids": ["a", "b"], "kind": "limit_set", "limit": "0.0125",
        "n": 2, "pid": os.getpid(),
    }  # fmt: skip
    assert line.startswith(json.dumps(facts, sort_keys=True, separators=(",", ":"))[:-1])


def test_the_file_is_private_and_no_link_is_followed(path: Path) -> None:
    """Mode 0600 in a directory of 0700; what a link points to is left alone."""
    log(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    target = path.with_name("elsewhere")
    link = path.with_name("link.audit")
    link.symlink_to(target)
    errors.reraise_failures(False)
    log(link, 1)
    assert not target.exists()
    assert errors.failures() == {"budgets.audit": 1}


def test_addresses_and_long_texts_are_cut(path: Path) -> None:
    """No password of a server gets in, and no entry is long."""
    log(path, 0).add("store_reset", store="postgresql://ann:secret@host/db", why="x" * 5000, ids=["i"] * 500)
    text = path.read_text()
    assert "secret" not in text
    assert "postgresql://..." in text
    assert len(text) < 1500


def test_nothing_is_kept_without_a_file() -> None:
    """A ledger in memory has no log beside it."""
    made = Audit(None)
    made.add("refused")
    made.tell("refused", NODE, 5)
    assert made.flush()


# --- what happens often --------------------------------------------------------------------------------------------------


def test_the_first_is_written_at_once_and_the_others_added_up(path: Path) -> None:
    """A thousand refusals in a second are two lines, and none is forgotten."""
    clock = FakeClock(datetime(2026, 11, 24, 12, tzinfo=UTC))
    made = Audit(path, clock)
    for number in range(1000):
        made.tell("refused", NODE, 12_500_000, lambda number=number: {"id": f"call-{number}"}, seconds=0.5)
    assert kinds(path) == ["opened", "refused"]
    clock.advance(seconds=1)
    made.tell("refused", NODE, 12_500_000)
    first, rest = list(entries(path))[1:]
    assert (first.facts["id"], first.facts["amount"], first.facts["seconds"]) == ("call-0", "0.0125", 0.5)
    assert (rest.facts["times"], rest.facts["amount"], rest.facts["seconds"]) == (1000, "12.5", 499.5)
    assert rest.facts["budget"] == "search"
    assert rest.facts["window"].startswith("2026-")


def test_what_goes_on_all_day_fills_no_disk(path: Path) -> None:
    """The pauses between two entries double up to 16 seconds; when it was quiet for a while it begins anew."""
    clock = FakeClock()
    made = Audit(path, clock)
    for _ in range(240):
        made.tell("refused", NODE, 1)
        made.tell("refused", NODE, 1)
        clock.advance(seconds=0.5)
        made.tidy()
    assert len(kinds(path)) < 16
    clock.advance(seconds=20)
    made.tidy()
    clock.advance(seconds=20)
    made.tidy()
    assert sum(entry.facts.get("times", 1) for entry in entries(path)) == 481
    before = len(kinds(path))
    made.tell("refused", NODE, 1)
    assert len(kinds(path)) == before + 1


def test_what_was_added_up_is_written_at_the_end(path: Path) -> None:
    """`tidy` writes what is due and `flush` all of it; what nothing was added to writes nothing."""
    clock = FakeClock()
    made = Audit(path, clock)
    for _ in range(3):
        made.tell("let_through", NODE, 1)
    made.tidy()
    assert len(kinds(path)) == 2
    assert made.flush()
    assert [entry.facts.get("times") for entry in entries(path)] == [None, None, 2]
    clock.advance(seconds=9)
    made.tell("let_through", NODE, 1)
    clock.advance(seconds=2)
    made.tidy()
    assert len(kinds(path)) == 4


def test_many_nodes_do_not_fill_the_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of nodes what was added up is written early."""
    monkeypatch.setattr(audit, "_REPEATS_MOST", 10)
    made = Audit(path, FakeClock())
    for number in range(25):
        for _ in range(2):
            made.tell("refused", Node(f"b{number}", 0, "USD", 1), 1)
    assert len(made._repeats) <= 10
    assert made.flush()
    assert sum(entry.facts.get("times", 1) for entry in entries(path)) == 51


def test_threads_that_count_together_lose_nothing(path: Path) -> None:
    """Eight threads at one node: every one of their refusals is in the log once."""
    made = Audit(path)

    def refuse() -> None:
        for _ in range(2000):
            made.tell("refused", NODE, 1)

    threads = [threading.Thread(target=refuse) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.flush()
    assert sum(entry.facts.get("times", 1) for entry in entries(path) if entry.facts["kind"] == "refused") == 16_000
    assert verify(path).holds


# --- changes show --------------------------------------------------------------------------------------------------------


def _edit(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b"b1", b"bX")


def _delete(lines: list[bytes]) -> None:
    del lines[2]


def _swap(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def _shorten(lines: list[bytes]) -> None:
    lines[2] = lines[2][:20] + b"\n"


def _insert(lines: list[bytes]) -> None:
    lines.insert(2, lines[2])


def _garbage(lines: list[bytes]) -> None:
    lines[2] = b"hello\n"


def _other_hash(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(lines[2][-67:-3], b"0" * 64)


CHANGES = [_edit, _delete, _swap, _shorten, _insert, _garbage, _other_hash]


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_line_that_is_wrong_is_named(path: Path, change: Callable[[list[bytes]], None]) -> None:
    """Edited, deleted, moved, cut or inserted: the third line is the first that does not belong there."""
    log(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    verdict = verify(path)
    assert verdict.line == (4 if change is _insert else 3)
    assert verdict.trouble
    assert not verdict.holds


@pytest.mark.parametrize("change", CHANGES)
def test_writing_on_does_not_hide_it(path: Path, change: Callable[[list[bytes]], None]) -> None:
    """Later entries go on from what is there; the break stays where it was."""
    log(path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    lines.append(lines[1])
    change(lines)
    path.write_bytes(b"".join(lines))
    broken = verify(path).line
    assert broken is not None
    log(path, 3)
    assert verify(path).line == broken


def test_a_cut_end_shows_against_a_head_that_was_kept(path: Path) -> None:
    """Inside the file nothing is wrong with a shorter or a rewritten log; against the kept hash it is."""
    log(path, 5)
    head = verify(path).head
    log(path, 2)
    assert verify(path, head).holds
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert verify(path).holds
    assert "cut off" in verify(path, head).trouble
    path.unlink()
    log(path, 7)
    assert not verify(path, head).holds


def test_no_log_is_said_so(path: Path) -> None:
    """And a directory is no log either."""
    with pytest.raises(ConfigurationError, match="there is no audit log"):
        verify(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        verify(Path("/"))


# --- torn lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 40, -30])
def test_a_torn_end_is_closed_off_with_a_note(path: Path, keep: int) -> None:
    """What is left of a line stays where it is; the next entry tells its length and hash, and the chain holds."""
    log(path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    fragment = whole[start:][:keep]
    path.write_bytes(whole[:start] + fragment)
    verdict = verify(path)
    assert (verdict.holds, verdict.open) == (True, len(fragment))
    log(path, 1)
    assert kinds(path)[-2:] == ["torn", "refused"]
    assert list(entries(path))[-2].facts["bytes"] == len(fragment) + 1
    assert fragment in path.read_bytes()
    assert verify(path).torn == 1
    assert verify(path).holds


def test_a_note_that_was_torn_too_is_closed_off_with_it(path: Path) -> None:
    """Killed once more while closing off: one note stands for both."""
    log(path)
    with path.open("ab") as file:
        file.write(b'{"at":"2026\n{"at":"2026-11-24T12')
    log(path, 1)
    assert kinds(path)[-2:] == ["torn", "refused"]
    assert verify(path).holds


def test_a_line_that_lacks_its_line_feed_only_is_an_entry(path: Path) -> None:
    """It is whole, so it counts."""
    log(path)
    path.write_bytes(path.read_bytes()[:-1])
    log(path, 1)
    assert kinds(path) == ["opened"] + 4 * ["refused"]
    assert verify(path).holds


def test_a_torn_first_line_is_closed_off_as_well(path: Path) -> None:
    """Killed in the very first write."""
    log(path, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"at":')
    log(path, 1)
    assert kinds(path) == ["torn", "refused"]
    assert verify(path).holds


def test_a_note_does_not_excuse_what_was_edited(path: Path) -> None:
    """The note has the hash of what was torn: other text in its place shows."""
    log(path)
    with path.open("ab") as file:
        file.write(b'{"at":"2026')
    log(path, 1)
    assert verify(path).holds
    path.write_bytes(path.read_bytes().replace(b'\n{"at":"2026\n', b'\n{"at":"2027\n'))
    assert verify(path).line == 5


def test_the_last_entry_is_found_behind_a_long_piece_of_anything(path: Path) -> None:
    """Reading backwards goes on until it finds one."""
    log(path)
    with path.open("ab") as file:
        file.write(b"x" * 300_000)
    log(path, 1)
    assert kinds(path)[-2:] == ["torn", "refused"]
    assert verify(path).holds


# --- trouble -------------------------------------------------------------------------------------------------------------


def test_entries_wait_while_another_process_has_the_file(path: Path) -> None:
    """The caller is kept 20 ms once; then entries wait until the file is free, and none is lost."""
    errors.reraise_failures(False)
    clock = FakeClock()
    made = Audit(path, clock)
    made.add("refused", number=0)
    with path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begun = time.monotonic()
        for number in range(1, 50):
            made.add("refused", number=number)
        assert time.monotonic() - begun < 0.2
        assert not made.flush()
    clock.advance(seconds=2)
    made.add("refused", number=50)
    assert [entry.facts.get("number") for entry in entries(path)][1:] == list(range(51))


def test_what_cannot_be_written_for_long_is_given_up_and_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be made costs no call anything but memory, and that has a bound."""
    errors.reraise_failures(False)
    monkeypatch.setattr(audit, "_WAITING_MOST", 20)
    path.parent.write_text("a file")
    made = Audit(path, FakeClock())
    for number in range(30):
        made.add("refused", number=number)
    assert made.lost == 10
    path.parent.unlink()
    assert made.flush()
    assert [entry.facts.get("number") for entry in entries(path)][1:] == list(range(10, 30))


def test_a_full_disk_leaves_a_torn_line_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that was written in part is written again in full when there is room."""
    errors.reraise_failures(False)
    made = log(path, 1)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:50]))
        made.add("refused", budget="late")
    assert made.flush()
    assert kinds(path) == ["opened", "refused", "torn", "refused"]
    assert verify(path).holds


def test_a_signal_handler_may_write_in_the_middle_of_a_write(path: Path) -> None:
    """It does not wait for itself; its entry is written by whom it has interrupted."""
    made = Audit(path)
    before = signal.signal(signal.SIGALRM, lambda *_: made.add("inner"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(300):
            made.add("outer")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert made.flush()
    assert kinds(path).count("outer") == 300
    assert verify(path).holds


# --- processes -----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from aifinops.budgets.audit import Audit
made = Audit(sys.argv[1])
print("ready", flush=True)
number = 0
while number != int(sys.argv[3]):
    made.add("refused", who=sys.argv[2], number=number, text="x" * 200)
    number += 1
while not made.flush():
    pass
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_one_chain(path: Path) -> None:
    """Four at once: each has all of its entries in its own order, in one chain."""
    writers = [writer(path, str(number), 200) for number in range(4)]
    assert [one.wait(60) for one in writers] == [0, 0, 0, 0]
    for one in writers:
        assert one.stdout is not None
        one.stdout.close()
    verdict = verify(path)
    assert (verdict.holds, verdict.entries) == (True, 801)
    for number in range(4):
        mine = [entry.facts["number"] for entry in entries(path) if entry.facts.get("who") == str(number)]
        assert mine == list(range(200))


def test_a_killed_writer_breaks_no_chain(path: Path) -> None:
    """kill -9 in the middle, again and again, with another process that writes on."""
    steady = writer(path, "steady", 600)
    for turn in range(6):
        victim = writer(path, f"victim {turn}", -1)
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(0.02 + 0.01 * turn)
        victim.kill()
        victim.wait(30)
        victim.stdout.close()
    assert steady.wait(60) == 0
    assert steady.stdout is not None
    steady.stdout.close()
    log(path, 1)
    assert verify(path).holds
    mine = [entry.facts["number"] for entry in entries(path) if entry.facts.get("who") == "steady"]
    assert mine == list(range(600))


def test_a_forked_child_writes_on(path: Path) -> None:
    """Parent and child go on in one chain; what waits in the parent stays the parent's, and no lock is left behind."""
    made = Audit(path)
    made.add("parent")
    made.tell("refused", NODE, 1)
    made.tell("refused", NODE, 1)
    assert made._lock.acquire(blocking=False)  # as if another thread were writing at this moment
    child = os.fork()
    if child == 0:
        try:
            made.reset_after_fork()
            made.add("child")
            os._exit(0 if made.flush() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    made._lock.release()
    assert made.flush()
    assert kinds(path) == ["opened", "parent", "refused", "child", "refused"]
    assert verify(path).holds


def test_a_lock_inherited_in_the_middle_of_a_write_is_let_go(path: Path) -> None:
    """A child that was forked while a thread held the file does not hold it for ever."""
    made = Audit(path)
    made.add("parent")
    with made._open():
        child = os.fork()
        if child == 0:
            made.reset_after_fork()
            time.sleep(5)
            os._exit(0)
    try:
        made.add("again")
        assert kinds(path)[-1] == "again"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
