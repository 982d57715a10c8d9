"""What can be counted: one table. A meter is a leaf; each physical thing is counted under exactly one of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from aifinops.errors import ConfigurationError

__all__ = ["GROUPS", "METERS", "UNITS", "Meter", "define", "meter", "resolve_unit"]


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """Something countable.

    Attributes:
        name: the key used in usage, prices, budgets and the ledger.
        unit: UCUM-like unit of one quantity (`{token}`, `s`, `GiB.mo`, `{request}`).
        family: `tokens`, `time`, `storage`, `calls` or `other`; `tokens` is also a budget unit (the sum).
        direction: `input`, `output` or empty.
        modality: `text`, `audio`, `image`, `video` or empty.
        cache: `read`, `write` or empty; a cached token is billed in place of a fresh one, never beside it.
        ttl: how long a written token is kept (`5m`, `1h`); `default` is the provider's shortest or only one.
        tool: the provider's own tool that is counted, else empty.
        per: the customary quantity that one listed price is for (1,000,000 tokens, 1,000 requests, 1 hour = 3600 s).
    """

    name: str
    unit: str
    family: str
    direction: str = ""
    modality: str = ""
    cache: str = ""
    per: int = 1
    ttl: str = ""
    tool: str = ""


def _token(name: str, direction: str, modality: str = "text", cache: str = "", ttl: str = "") -> Meter:
    return Meter(name, "{token}", "tokens", direction, modality, cache, per=1_000_000, ttl=ttl)


def _tool(name: str, tool: str, unit: str = "{request}", per: int = 1000) -> Meter:
    return Meter(name, unit, "calls", per=per, tool=tool)


_TABLE = (
    _token("input_tokens", "input"),
    _token("cache_read_tokens", "input", cache="read"),
    _token("cache_write_tokens", "input", cache="write", ttl="default"),
    _token("cache_write_1h_tokens", "input", cache="write", ttl="1h"),
    _token("cache_write_30m_tokens", "input", cache="write", ttl="30m"),
    _token("cache_write_12h_tokens", "input", cache="write", ttl="12h"),
    _token("input_audio_tokens", "input", "audio"),
    _token("cache_read_audio_tokens", "input", "audio", "read"),
    _token("input_image_tokens", "input", "image"),
    _token("cache_read_image_tokens", "input", "image", "read"),
    _token("input_video_tokens", "input", "video"),
    _token("cache_read_video_tokens", "input", "video", "read"),
    _token("output_tokens", "output"),
    _token("reasoning_tokens", "output"),
    _token("output_audio_tokens", "output", "audio"),
    _token("output_image_tokens", "output", "image"),
    _token("output_video_tokens", "output", "video"),
    Meter("requests", "{request}", "calls", per=1000),
    Meter("tool_calls", "{call}", "calls", per=1000),
    _tool("web_search_requests", "web_search"),
    _tool("web_fetch_requests", "web_fetch"),
    _tool("image_search_requests", "image_search"),
    _tool("file_search_requests", "file_search"),
    _tool("maps_requests", "maps"),
    _tool("code_execution_requests", "code_execution"),
    _tool("code_interpreter_sessions", "code_interpreter", "{session}", per=1),
    Meter("search_units", "{unit}", "calls", per=1000),
    *(
        Meter(f"guardrail_{policy}_units", "{unit}", "calls", per=1000)
        for policy in ("content", "topic", "word", "pii", "grounding", "image", "reasoning")
    ),
    Meter("classifications", "{classification}", "calls", per=1000),
    Meter("images", "{image}", "other", "output", "image"),
    Meter("input_images", "{image}", "other", "input", "image"),
    Meter("characters", "{character}", "other", per=1_000_000),
    Meter("pages", "{page}", "other", per=1000),
    Meter("audio_seconds", "s", "time", modality="audio", per=60),
    Meter("session_seconds", "s", "time", per=60),
    Meter("video_seconds", "s", "time", "output", "video"),
    Meter("gpu_seconds", "s", "time", per=3600),
    Meter("cpu_seconds", "s", "time", per=3600),
    Meter("gb_months", "GiB.mo", "storage"),
    Meter("bytes_egress", "By", "storage", per=1_000_000_000),
    Meter("read_units", "{unit}", "storage", per=1_000_000),
    Meter("write_units", "{unit}", "storage", per=1_000_000),
)

_METERS = {row.name: row for row in _TABLE}
METERS = MappingProxyType(_METERS)
"""Every meter by name."""


def define(name: str) -> Meter:
    """The meter of that name, made if there is none yet: something that only its user knows (searches, sandbox minutes), priced for each.

    Raises:
        ConfigurationError: for a name that is no word in small letters, or one that is spoken for (a currency, a group, a unit).
    """
    found = _METERS.get(name)
    if found is not None:
        return found
    word = isinstance(name, str) and name.isascii() and name.isidentifier() and name.islower() and len(name) <= 64
    if not word or name in GROUPS or name in UNITS:
        raise ConfigurationError(
            f"{name!r} cannot be the name of a meter; write a word of its own such as sandbox_minutes"
        )
    return _METERS.setdefault(name, Meter(name, f"{{{name}}}", "other"))


GROUPS = MappingProxyType({"tokens": frozenset(row.name for row in _TABLE if row.family == "tokens")})
"""Names that a budget may use for the sum of several meters."""

UNITS = MappingProxyType(
    {
        "gpu_hours": ("gpu_seconds", 3600),
        "gpu_hour": ("gpu_seconds", 3600),
        "cpu_hours": ("cpu_seconds", 3600),
        "token": ("tokens", 1),
        "request": ("requests", 1),
        "calls": ("requests", 1),
    }
)
"""Other spellings that people type: (meter or group, factor)."""


def meter(name: str) -> Meter:
    """The meter of that name.

    Raises:
        ConfigurationError: for a name that is not in the table, with the nearest ones.
    """
    found = METERS.get(name)
    if found is None:
        raise ConfigurationError(f"unknown meter {name!r}.{_nearest(name, list(METERS))}")
    return found


def resolve_unit(name: str) -> tuple[str, int]:
    """A budget unit as typed -> (meter or group, factor): `"gpu_hours"` -> `("gpu_seconds", 3600)`.

    Raises:
        ConfigurationError: for an unknown unit, with the nearest ones.
    """
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key in METERS or key in GROUPS:
        return key, 1
    if key in UNITS:
        return UNITS[key]
    known = [*GROUPS, *UNITS, *METERS]
    raise ConfigurationError(
        f'unknown unit {name!r}.{_nearest(key, known)} Use a currency ("$5", "5 USD") or a meter '
        f'("2M tokens", "200 gpu_hours", "100 requests").'
    )


def _nearest(name: str, known: list[str]) -> str:
    import difflib  # only to say what was wrong

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
