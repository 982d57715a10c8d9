"""Whose cost it is. Tags are flat text pairs; an inner scope overrides an outer one key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from aifinops.errors import ConfigurationError

__all__ = ["EMPTY", "KNOWN", "Tags", "make_tags", "matches", "merge", "parse_tags"]

Tags = Mapping[str, str]
"""Immutable mapping of tag key to value."""

KNOWN = ("team", "project", "feature", "customer", "environment", "run", "cost_center", "agent", "conversation")
"""Keys with a column or an attribute of their own; any other key is as good."""

EMPTY: Tags = MappingProxyType({})

_KEY = re.compile(r"^[A-Za-z_][A-Za-z0-9_.\-]{0,63}$")
_MAX_VALUE = 256


def make_tags(values: Mapping[str, object]) -> Tags:
    """Validated tags: keys `[A-Za-z_][A-Za-z0-9_.-]*` up to 64, values text up to 256; None drops the key.

    Raises:
        ConfigurationError: naming the key, the value and the rule.
    """
    if not values:
        return EMPTY
    clean: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not _KEY.match(key):
            raise ConfigurationError(
                f"tag key {key!r} must match [A-Za-z_][A-Za-z0-9_.-]* and have at most 64 characters"
            )
        if value is None:
            continue
        if isinstance(value, (dict, list, tuple, set)):
            raise ConfigurationError(f"tag {key}={value!r} must be text, not {type(value).__name__}")
        text = str(value)
        if len(text) > _MAX_VALUE:
            raise ConfigurationError(f"tag {key}={text[:20]!r}... has {len(text)} characters; the most is {_MAX_VALUE}")
        clean[key] = text
    return MappingProxyType(clean)


def merge(outer: Tags, inner: Tags) -> Tags:
    """Both; `inner` wins where a key is in both."""
    if not inner:
        return outer
    if not outer:
        return inner
    return MappingProxyType({**outer, **inner})


def matches(tags: Tags, wanted: Tags) -> bool:
    """True when every wanted pair is there; an empty `wanted` matches everything."""
    return all(tags.get(key) == value for key, value in wanted.items())


def parse_tags(text: str) -> Tags:
    """`"team=search,feature=rerank"` (the form of `AIFINOPS_TAGS`).

    Raises:
        ConfigurationError: for a part without `=`.
    """
    pairs: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(f"{part!r} is no tag; write key=value, separated by commas")
        pairs[key.strip()] = value.strip()
    return make_tags(pairs)
