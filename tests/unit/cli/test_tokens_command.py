"""`aifinops tokens`, as it is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aifinops.pricing import encodings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Type `aifinops tokens` and what follows with a cache folder of the test's own: (exit status, words of the output, standard error)."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(encodings, "_counters", {})

    def typed(*words: object) -> tuple[int, str, str]:
        status, out, err = run("tokens", *words)
        return status, " ".join(out.split()), err

    return typed


def test_status_says_what_is_missing_where_and_for_whom(run: Run, tmp_path: Path) -> None:
    """Missing encodings are no bad news: estimates do without."""
    status, out, _ = run("status")
    assert status == 0
    assert "not here, for gpt-4o" in out
    assert encodings.ENCODINGS["o200k_base"].cached in out.replace(" ", "")
    assert "may be emptied" not in out


def test_status_names_a_damaged_file_and_fails(run: Run, tmp_path: Path) -> None:
    """A script can see it."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / encodings.ENCODINGS["cl100k_base"].cached).write_bytes(b"half")
    status, out, _ = run("status")
    assert status == 1
    assert encodings.ENCODINGS["cl100k_base"].sha256 in out


def test_status_warns_of_the_temporary_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default place of tiktoken does not survive a restart of every machine."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    assert "set TIKTOKEN_CACHE_DIR to keep files" in run("status")[1]


def test_install_tells_what_is_wrong_in_one_line(run: Run, tmp_path: Path) -> None:
    """Exit status 2, the expected and the found hash, and nothing written."""
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"no")
    status, out, error = run("install", tmp_path / "o200k_base.tiktoken")
    assert (status, out) == (2, "")
    assert encodings.ENCODINGS["o200k_base"].sha256 in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_install_tells_where_it_put_the_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so when it was there already."""
    small = encodings.Encoding("o200k_base", "o200k_base.tiktoken", encodings.digest(b"a 0\n"), ("gpt-4o",))
    monkeypatch.setattr(encodings, "ENCODINGS", {"o200k_base": small})
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"a 0\n")
    assert run("install", tmp_path / "o200k_base.tiktoken")[1].startswith("o200k_base.tiktoken: installed at")
    assert "was intact already" in run("install", tmp_path / "o200k_base.tiktoken")[1]
    assert "is intact" in run("status")[1]


def test_fetch_refuses_what_is_no_encoding(run: Run) -> None:
    """Before anything is asked for over the network."""
    status, _, error = run("fetch", "gpt-4o")
    assert status == 2
    assert "'gpt-4o' is no encoding" in error
