"""Where the encodings of OpenAI's tokenizers are on this machine, which model uses which, and exact counts with them.

`count` never touches the network and never raises: tiktoken's own loader, which downloads what it misses and deletes what is
damaged, is not called at all. Its patterns are used, with ranks that were read and checked here. Where the package `toktok-rs` is
installed it counts instead: it has the encodings within it and is several times faster. How files get here is in `supply`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

__all__ = [
    "ENCODINGS",
    "Encoding",
    "State",
    "count",
    "digest",
    "encoding_of",
    "encoding_path",
    "faster",
    "folder",
    "is_temporary",
    "read",
    "states",
]

HOST = "https://openaipublic.blob.core.windows.net/encodings/"
"""Where tiktoken takes encodings from."""

LARGEST = 16 << 20
"""Bytes. The largest encoding has 3.6 million; nothing above this is read."""


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
        import hashlib

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
    if named:
        return Path(named)
    import tempfile

    return Path(tempfile.gettempdir()) / "data-gym-cache"


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
        found = digest(read(path))
    except OSError:
        return State(one, path, "missing", "")
    return State(one, path, "intact", "") if found == one.sha256 else State(one, path, "damaged", found)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    import hashlib  # not needed to price a call, so not loaded to

    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> bytes:
    """The file, at most one byte more than anything here can have."""
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def faster() -> str | None:
    """The version of `toktok-rs` when it is installed and agrees with tiktoken, else None."""
    found = _toktok()
    return found[0] if found is not None and _with_toktok("o200k_base") is not None else None


# Counting -------------------------------------------------------------------------------------------------------------

Counter = Callable[[Sequence[str]], int]

_counters: dict[str, Counter] = {}
_broken: set[str] = set()
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
    if name in _broken:
        return None
    # No lock: two threads may read the same file once each, but a fork in between leaves nothing held for ever.
    try:
        counter = _with_toktok(name) or _with_tiktoken(name)
    except Exception:
        # An old tiktoken, or none: it will not change while the process runs, and finding out took a third of a second.
        _broken.add(name)
        return None
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
    data = read(path)
    if digest(data) != ENCODINGS[name].sha256:
        # Some megabytes were hashed: not again for this file before the next call.
        _refused.add(key)
        return None
    import binascii

    pairs = (line.split() for line in data.splitlines() if line)
    return {binascii.a2b_base64(token): int(rank) for token, rank in pairs}
