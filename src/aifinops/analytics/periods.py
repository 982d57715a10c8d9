"""Periods as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Query
from aifinops.usage import Moment, moment

__all__ = ["parse_since", "period"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"^(\d{1,6})\s*([smhdw])$")
_TIME_FORMS = '"7d", "24h", "30m", "2026-11-01" or "2026-11-01T12:00:00+00:00"'


def period(
    since: Moment | None,
    until: Moment | None,
    where: Mapping[str, str | Sequence[str]] | None,
    now_ns: int,
) -> Query:
    """What was typed as a query; see `report`.

    Raises:
        ConfigurationError: for a time that is none, and for a period that ends before it begins.
    """
    query = Query(_bound(since, now_ns), _bound(until, now_ns), where or {})
    if query.since_ns is not None and query.until_ns is not None and query.since_ns >= query.until_ns:
        raise ConfigurationError(f"since={since!r} is not before until={until!r}; swap them")
    return query


def parse_since(value: Moment, now_ns: int) -> int:
    """A moment as typed -> nanoseconds since the epoch.

    Args:
        value: how long ago (`"90s"`, `"30m"`, `"24h"`, `"7d"`, `"2w"`), an ISO 8601 date or time (UTC unless it says
            otherwise), a date, a datetime (naive: UTC), or nanoseconds since the epoch.
        now_ns: the present, nanoseconds since the epoch.

    Raises:
        ConfigurationError: naming the value and the forms.
    """
    ago = _AGO.match(value.strip()) if isinstance(value, str) else None
    if ago:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000
    try:
        return moment(value)
    except ConfigurationError:
        raise ConfigurationError(f"{value!r} is no time; write {_TIME_FORMS}") from None


def _bound(value: Moment | None, now_ns: int) -> int | None:
    return None if value is None else parse_since(value, now_ns)
