"""Opening a ledger: the forms of its address, the file that is made, and what is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aifinops.errors import ConfigurationError
from aifinops.ledger import default_path, open_ledger
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SCHEMA, SqliteLedger
from aifinops.testing.ledger import example_charge


@pytest.mark.parametrize("where", ["memory", "memory://", ":memory:"])
def test_memory_has_three_spellings(where: str) -> None:
    """All of them give a ledger in memory."""
    assert isinstance(open_ledger(where), MemoryLedger)


def test_a_path_and_a_url_name_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative, four are absolute, and a plain path is a path."""
    monkeypatch.chdir(tmp_path)
    for where in ("l.db", "sqlite:///l.db", f"sqlite:///{tmp_path}/l.db", tmp_path / "l.db"):
        ledger = open_ledger(where)
        assert Path(ledger.info().location).resolve() == (tmp_path / "l.db").resolve()
        ledger.close()


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's home, as a shell would have it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    open_ledger("~/l.db").close()
    assert (tmp_path / "l.db").exists()


def test_the_home_of_nobody_is_refused() -> None:
    """A user that does not exist has no home to expand."""
    with pytest.raises(ConfigurationError, match="write the path in full"):
        open_ledger("~no_such_user_here/l.db")


def test_the_default_is_in_the_users_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address the ledger lies where the platform keeps a user's data."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_path() == tmp_path / "aifinops" / "ledger.db"
        open_ledger().close()
        assert default_path().exists()
    assert default_path().name == "ledger.db"


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX matter")
def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    """Directory 0700, file, log and shared memory 0600, whatever the umask."""
    before = os.umask(0)
    try:
        ledger = open_ledger(tmp_path / "made" / "l.db")
        ledger.append(example_charge(1))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()}
    ledger.close()
    assert modes == {"l.db": 0o600, "l.db-wal": 0o600, "l.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


@pytest.mark.parametrize("where", ["mysql://u:secret@h/db", "sqlite://", "sqlite:///", "redis://x", "http://a/b", " "])
def test_an_unknown_kind_is_refused_without_its_password(where: str) -> None:
    """The error says what to write and shows no secret."""
    with pytest.raises(ConfigurationError, match="write") as caught:
        open_ledger(where)
    assert "secret" not in str(caught.value)


def test_a_missing_file_can_be_refused(tmp_path: Path) -> None:
    """With `create=False` a misspelt path makes no file."""
    with pytest.raises(ConfigurationError, match="there is no ledger at"):
        open_ledger(tmp_path / "nowhere" / "l.db", create=False)
    assert list(tmp_path.iterdir()) == []


def _refused(path: Path, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_ledger(path)
    assert str(path) in str(caught.value)
    assert "AIFINOPS_LEDGER=" in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """The path of a directory is named."""
    _refused(tmp_path, "is a directory")


def test_a_device_is_refused() -> None:
    """What is neither file nor directory is named too."""
    if Path("/dev/null").exists():
        _refused(Path("/dev/null"), "no regular file")


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    """A path that cannot exist is an error of the system, told with the path."""
    (tmp_path / "file").write_text("x")
    _refused(tmp_path / "file" / "l.db", "cannot be opened")


def test_an_impossible_name_is_refused() -> None:
    """A name that no system takes is an error, not a crash."""
    _refused(Path("a\0b.db"), "is no path")


def test_text_is_no_ledger_and_stays_as_it_is(tmp_path: Path) -> None:
    """A file of another kind is named and not touched."""
    path = tmp_path / "notes.txt"
    path.write_text("do not lose me " * 100)
    _refused(path, "is no SQLite database")
    assert path.read_text() == "do not lose me " * 100
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_another_programs_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """An SQLite file that is no ledger keeps every byte."""
    path = tmp_path / "browser.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE history (url)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    _refused(path, "another program")
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """A ledger of a later version says so, with both versions and the command."""
    path = tmp_path / "l.db"
    open_ledger(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    _refused(path, f"schema {SCHEMA + 1}; this one knows up to {SCHEMA}.*pip install --upgrade")
    assert path.read_bytes() == before


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    """A ledger that may not be written is an error at set-up and not in the first call."""
    path = tmp_path / "l.db"
    open_ledger(path).close()
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write everything")
    _refused(path, "no permission")


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    """A file made beforehand (by `mktemp`, say) is used."""
    path = tmp_path / "l.db"
    path.touch()
    ledger = open_ledger(path)
    assert ledger.append(example_charge(1))
    ledger.close()


def test_eight_processes_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    """Whoever comes first makes the tables; the others wait and use them."""
    script = (
        "import sys; from aifinops.ledger import open_ledger; from aifinops.testing.ledger import example_charge\n"
        "open_ledger(sys.argv[1]).append(example_charge(int(sys.argv[2])))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    path = tmp_path / "l.db"
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)], env=env, stderr=subprocess.PIPE)
        for number in range(8)
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert errors == [""] * 8
    ledger = open_ledger(path)
    assert ledger.info().entries == 8
    ledger.close()


def test_an_old_sqlite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python with an SQLite that lacks what we need says which one is needed."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    with pytest.raises(ConfigurationError, match=r"needs 3\.30 or newer"):
        SqliteLedger(tmp_path / "l.db")


def test_a_ledger_that_appears_while_we_look_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    """Mark, version and tables are read in one view: half of a file before and half after it was made is no foreign file."""
    path = tmp_path / "l.db"
    path.touch()

    class Interrupted:
        """A connection; after it has read the mark of the empty file, another process makes the ledger."""

        def __init__(self) -> None:
            self.real = sqlite3.connect(path, isolation_level=None)
            self.interrupted = False

        def execute(self, statement: str) -> Any:
            rows = iter(self.real.execute(statement).fetchall())  # an open cursor would keep the other one out
            if statement == "PRAGMA application_id" and not self.interrupted:
                self.interrupted = True
                with suppress(ConfigurationError):  # it may have to wait until we have looked
                    SqliteLedger(path, timeout_s=0.01).close()
            return SimpleNamespace(fetchone=lambda: next(rows, None))

    connection = Interrupted()
    elsewhere = SqliteLedger(tmp_path / "elsewhere.db")
    elsewhere._file._claim(connection)  # type: ignore[arg-type]
    elsewhere.close()
    connection.real.close()
    ledger = SqliteLedger(path)
    assert ledger.append(example_charge(1))
    ledger.close()
