"""What a reader makes of one row of an export, and what it says of a row that it cannot use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from aifinops.charges import Charge
from aifinops.clock import to_ns
from aifinops.reading import Reading
from aifinops.tags import EMPTY, KNOWN, Tags, make_tags

__all__ = ["TAG_NAMES", "Left", "Malformed", "Record", "count", "moment_ns", "money", "tags_of", "text"]


class Malformed(Exception):
    """A row that cannot be read; the text says why."""


class Left(Exception):
    """A row that is left out on purpose; the text says why, in words that rows of its kind share."""


@dataclass(slots=True)
class Record:
    """One row of an export, not priced yet.

    Attributes:
        provider, model, operation, service, stream: as asked; the provider may be empty where a model says it.
        at: when it began, nanoseconds. duration: nanoseconds, 0 when not known.
        reading: usage and the rest of what is known of the answer.
        key: what makes this row itself and no other, the same in every export of it; without one its whole text is its key.
        requests: calls that the row sums up; None for a row that is one call.
        prompts: how long the prompts behind a row of several requests were: `short`, `long` or not known.
        theirs, currency: what the export says that it cost. paid: that is what was billed, not what somebody worked out.
        error: what ended the call. tags, trace_id, span_id: as in `Charge`.
        whole: a finished entry, where the export is one of our own; nothing else is looked at then.
    """

    provider: str = ""
    model: str = ""
    operation: str = "chat"
    service: str = "llm"
    stream: bool = False
    at: int = 0
    duration: int = 0
    reading: Reading = field(default_factory=Reading)
    key: str = ""
    requests: int | None = None
    prompts: str = ""
    theirs: Decimal | None = None
    currency: str = "USD"
    paid: bool = False
    error: str = ""
    tags: Tags = field(default_factory=lambda: EMPTY)
    trace_id: str = ""
    span_id: str = ""
    whole: Charge | None = None


_UNITS = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3))
"""Numbers below the first are in a unit of so many nanoseconds: seconds until the year 5138, then milli- and microseconds."""


def moment_ns(value: Any, name: str) -> int:
    """A moment as exports write it -> nanoseconds since the epoch.

    Args:
        value: ISO 8601 text (what names no zone is UTC), or a number of seconds, milli-, micro- or nanoseconds. name: of its field.

    Raises:
        Malformed: for anything else, and for a moment before 1970.
    """
    found = _moment(value)
    if found is None:
        raise Malformed(f"{name}={value!r} is no moment; write 2026-11-01T12:00:00Z or seconds since 1970")
    if found < 0:
        raise Malformed(f"{name}={value!r} is before 1970")
    return found


def _moment(value: Any) -> int | None:
    if isinstance(value, str):
        stripped = value.strip()
        try:
            value = Decimal(stripped)
        except InvalidOperation:
            return _iso(stripped)
    if isinstance(value, datetime):
        return to_ns(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    factor = next((factor for below, factor in _UNITS if abs(number) < below), 1)
    found = int(number * factor)
    return found if found < 2**63 else None


def _iso(text: str) -> int | None:
    for form in (text, text.removesuffix(" UTC"), text.replace(" +0000 UTC", "+00:00")):
        try:
            return to_ns(datetime.fromisoformat(form))
        except (ValueError, OverflowError):
            continue
    for pattern in ("%m/%d/%Y %H:%M:%S", "%m/%d/%Y"):
        try:
            return to_ns(datetime.strptime(text, pattern).replace(tzinfo=UTC))
        except ValueError:
            continue
    return None


def count(value: Any, name: str) -> int:
    """A count of something; nothing at all is none of it.

    Raises:
        Malformed: for what is no whole number, or negative.
    """
    if value is None or value == "":
        return 0
    try:
        number = Decimal(
            value.strip() if isinstance(value, str) else repr(value) if isinstance(value, float) else value
        )
    except (InvalidOperation, TypeError, ValueError):
        raise Malformed(f"{name}={value!r} is no number") from None
    if isinstance(value, bool) or not number.is_finite() or number != number.to_integral_value():
        raise Malformed(f"{name}={value!r} is no whole number")
    if number < 0:
        raise Malformed(f"{name}={value!r} is negative")
    if number > 2**53:
        raise Malformed(f"{name}={value!r} is more than can be")
    return int(number)


def money(value: Any, name: str) -> Decimal | None:
    """An amount; None where there is none.

    Raises:
        Malformed: for what is no number, or negative.
    """
    if value is None or value == "":
        return None
    try:
        number = Decimal(
            value.strip().lstrip("$") if isinstance(value, str) else repr(value) if isinstance(value, float) else value
        )
    except (InvalidOperation, TypeError, ValueError):
        raise Malformed(f"{name}={value!r} is no amount of money") from None
    if isinstance(value, bool) or not number.is_finite():
        raise Malformed(f"{name}={value!r} is no amount of money")
    if number < 0:
        raise Malformed(f"{name}={value!r} is negative; a credit is a correction of an earlier charge")
    if number > 10**9:
        raise Malformed(f"{name}={value!r} is more than the ledger takes for one entry")
    return number


def text(value: Any) -> str:
    """The text of a field; nothing for what is none."""
    return (
        value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) and value is not True else ""
    )


def tags_of(values: Mapping[str, Any]) -> Tags:
    """The tags that have a value, each cut to what a tag may hold.

    Raises:
        Malformed: for a key that can be none.
    """
    from aifinops.errors import ConfigurationError

    try:
        return make_tags({key: str(value)[:256] for key, value in values.items() if value not in (None, "")})
    except ConfigurationError as error:
        raise Malformed(str(error)) from None


TAG_NAMES = frozenset(KNOWN)
"""Keys that a column of that name is a tag of, without being told so."""
