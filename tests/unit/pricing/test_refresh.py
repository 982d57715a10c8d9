"""A newer list of models: put into use, damaged, outdated, taken back."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import aifinops
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError, PricingError
from aifinops.pricing import lists, refresh
from aifinops.pricing.book import PriceBook
from aifinops.pricing.lists import load_bundled

BUNDLED = Path(lists.BUNDLED)
TODAY = to_ns(datetime(2026, 11, 24, tzinfo=UTC))


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning was given yet."""
    monkeypatch.setattr(refresh, "_said", set())


def text(version: str = "999.1.0", price: str = "7", day: str = "2026-11-20", **header: Any) -> str:
    """A compiled list of one model."""
    head = {"schema": 1, "id": "genai-prices", "version": version, "date": day, "currency": "USD", "source": "test"}
    provider = {"provider": "openai", "name": "OpenAI", "models": 1}
    row = {"model": "gpt-4o", "prices": [{"rates": {"input_tokens": price}}]}
    rows = ({**head, "models": 1, **header}, provider, row)
    return "".join(json.dumps(line) + "\n" for line in rows)


def in_use(place: Path) -> str:
    """The version that prices calls."""
    return refresh.in_use(place, TODAY)[0].version


def test_a_newer_list_is_used_and_taken_back(tmp_path: Path) -> None:
    """From the next start on; calls are then priced by it."""
    place = tmp_path / "deep" / "prices"
    assert refresh.put(place, text()) == place / "llm.jsonl"
    assert place.stat().st_mode & 0o077 == 0
    assert PriceBook(refresh.in_use(place, TODAY)).resolve("openai", "gpt-4o").prices[0].rates["input_tokens"].base == 7
    assert refresh.undo(place)
    assert not refresh.undo(place)
    assert in_use(place) == load_bundled().version


def test_an_older_list_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After an upgrade of the package its own list is the newer one; nothing needs to be said."""
    refresh.put(tmp_path, text("0.0.1"))
    assert in_use(tmp_path) == load_bundled().version
    assert caplog.text == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.replace(b'"7"', b'"8"'),
        lambda whole: whole.replace(b'"prices"', b'"prices'),
        lambda whole: b"",
        lambda whole: b"[]\n",
        lambda whole: b"\x00\xff" * 50,
        lambda whole: b"{}\n",
    ],
    ids=["cut off", "another price", "no JSON", "empty", "a list", "no text", "no header"],
)
def test_a_damaged_list_is_told_once_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    """Pricing goes on with the bundled list."""
    path = refresh.put(tmp_path, text())
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert in_use(tmp_path) == in_use(tmp_path) == load_bundled().version
    [said] = [record.getMessage() for record in caplog.records]
    assert str(path) in said
    assert "aifinops prices update" in said


def test_a_list_that_was_copied_there_is_read_row_by_row(tmp_path: Path) -> None:
    """It has no seal; a wrong row in it is found at the start and not in a call."""
    path = tmp_path / "llm.jsonl"
    path.write_text(text(), "utf-8")
    assert in_use(tmp_path) == "999.1.0"
    path.write_text(text(price="free of charge"), "utf-8")
    with pytest.raises(ConfigurationError, match="a row is wrong"):
        refresh.refreshed(tmp_path)
    path.write_text(text(models=2), "utf-8")
    with pytest.raises(ConfigurationError, match="1 of the 2 models"):
        refresh.refreshed(tmp_path)


def test_a_list_that_another_version_has_sealed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a downgrade it may hold what this version cannot read."""
    monkeypatch.setattr(refresh, "__version__", "0.0.0")
    refresh.put(tmp_path, text())
    monkeypatch.undo()
    found = refresh.refreshed(tmp_path)
    assert found is not None
    assert found.version == "999.1.0"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """With what it is, and what to do with it."""
    own = tmp_path / "own.toml"
    with pytest.raises(ConfigurationError, match="AIFINOPS_PRICES="):
        refresh.from_text(own)
    with pytest.raises(ConfigurationError, match="No such file"):
        refresh.from_text(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match=r"aifinops-gpu.*genai-prices"):
        refresh.from_text(BUNDLED.with_name("gpu.jsonl"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("nonsense\n", "utf-8")
    with pytest.raises(ConfigurationError, match="is no compiled price list") as caught:
        refresh.from_text(broken)
    assert "Install the package again" not in str(caught.value)


def test_the_bundled_list_passes_its_own_check() -> None:
    """Every row of it can be read."""
    found, whole = refresh.from_text(BUNDLED)
    assert found.count == load_bundled().count
    assert whole == BUNDLED.read_text("utf-8")


@pytest.mark.parametrize(
    ("one", "other", "newer"),
    [
        (("0.2.10", "2026-01-01"), ("0.2.9", "2026-02-01"), True),
        (("0.2.9", "2026-02-02"), ("0.2.9", "2026-02-01"), True),
        (("0.2.9", "2026-02-01"), ("0.2.9", "2026-02-01"), False),
        (("0.2.4rc1", "2026-01-01"), ("0.2.3", "2026-02-01"), True),
        (("0.2", "2026-01-01"), ("0.2.3", "2026-02-01"), False),
    ],
)
def test_what_is_newer(tmp_path: Path, one: tuple[str, str], other: tuple[str, str], newer: bool) -> None:
    """Versions are numbers, not text; the date decides only between lists of one version."""
    lists = []
    for number, (version, day) in enumerate((one, other)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text(version, day=day), "utf-8")
        lists.append(refresh.from_text(path)[0])
    assert refresh.is_newer(*lists) is newer


def test_a_stale_list_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its age and what to type; on the last good day nothing is said."""
    day = load_bundled().date
    assert day is not None
    for days, said in ((refresh.STALE_DAYS, 0), (refresh.STALE_DAYS + 1, 1), (refresh.STALE_DAYS + 2, 1)):
        moment = datetime(day.year, day.month, day.day, 12, tzinfo=UTC) + timedelta(days=days)
        refresh.in_use(tmp_path, to_ns(moment))
        assert len(caplog.records) == said
    assert "181 days old" in caplog.text
    assert "pip install -U aifinops" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An error that names it; what is there stays."""
    blocked = tmp_path / "file"
    blocked.write_text("", "utf-8")
    with pytest.raises(ConfigurationError, match=r"cannot be written.*nothing was changed"):
        refresh.put(blocked / "prices", text())
    assert not refresh.undo(blocked / "prices")
    (tmp_path / "llm.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be deleted"):
        refresh.undo(tmp_path)


def child(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
def test_a_full_disk_leaves_the_old_list(tmp_path: Path) -> None:
    """And no draft."""
    refresh.put(tmp_path, text("999.1.0"))
    program = """
import resource, signal, sys
from pathlib import Path
from aifinops.errors import ConfigurationError
from aifinops.pricing import lists, refresh
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    refresh.put(Path(sys.argv[1]), sys.argv[2])
except ConfigurationError as error:
    print(error)
"""
    done = child(program, tmp_path, text("999.2.0"))
    assert "File too large; nothing was changed" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["llm.jsonl"]
    assert in_use(tmp_path) == "999.1.0"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_kill_before_the_rename_leaves_the_old_list(tmp_path: Path) -> None:
    """The draft that stays is swept away by a later update, once it is old."""
    refresh.put(tmp_path, text("999.1.0"))
    program = """
import os, signal, sys
from pathlib import Path
from aifinops.pricing import lists, refresh

BUNDLED = Path(lists.BUNDLED)
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
refresh.put(Path(sys.argv[1]), sys.argv[2])
"""
    assert child(program, tmp_path, text("999.2.0")).returncode == -9
    [draft] = tmp_path.glob("*.tmp")
    assert in_use(tmp_path) == "999.1.0"
    refresh.put(tmp_path, text("999.3.0"))
    assert draft.exists()
    os.utime(draft, (0, 0))
    refresh.put(tmp_path, text("999.4.0"))
    assert [path.name for path in tmp_path.iterdir()] == ["llm.jsonl"]


def test_updates_at_once_leave_one_whole_list(tmp_path: Path) -> None:
    """Whoever comes last wins; a reader meanwhile finds a whole one, too."""
    versions = [f"999.{number}.0" for number in range(8)]
    refresh.put(tmp_path, text(versions[0]))
    threads = [threading.Thread(target=refresh.put, args=(tmp_path, text(version))) for version in versions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = refresh.refreshed(tmp_path)
        assert found is not None
        assert found.version in versions
    assert [path.name for path in tmp_path.iterdir()] == ["llm.jsonl"]


def test_the_installed_list_is_compiled_and_checked() -> None:
    """Of the version that is bundled, the release day is known and not asked for."""
    pytest.importorskip("genai_prices", reason="the source of the bundled list is not installed")
    found, whole, _ = refresh.installed(date(2030, 1, 1))
    assert found.id == "genai-prices"
    if found.version == load_bundled().version:
        assert found is load_bundled()
    assert json.loads(whole.partition("\n")[0])["date"] == "2030-01-01"


def test_an_installed_list_of_an_unknown_form_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a stack trace."""
    data = pytest.importorskip("genai_prices.data", reason="the source of the bundled list is not installed")
    monkeypatch.setattr(data, "providers", [object()])
    with pytest.raises(PricingError, match="pip install -U aifinops"):
        refresh.installed(date(2026, 11, 1))


def test_without_genai_prices_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    monkeypatch.setitem(sys.modules, "genai_prices.data", None)
    with pytest.raises(ConfigurationError, match="pip install -U genai-prices"):
        refresh.installed(date(2026, 11, 1))


def test_where_a_refreshed_list_is_looked_for_is_where_platformdirs_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way of Linux answers what the library answers, whatever the environment."""
    platformdirs = pytest.importorskip("platformdirs")
    for home in (None, "", " ", "/somewhere/data"):
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        if home is not None:
            monkeypatch.setenv("XDG_DATA_HOME", home)
        assert refresh.folder(None) == Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "prices"
    assert refresh.folder("~/lists") == Path("~/lists").expanduser()
