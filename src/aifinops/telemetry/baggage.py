"""Attribution that travels with requests: OpenTelemetry baggage, read and written only where somebody says so.

Baggage goes out with every request of an instrumented HTTP client, also to the provider of the model. So only the keys of a short list are
written, never by default, and only values that can be no sentence and no address of a person.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from aifinops.errors import ConfigurationError
from aifinops.tags import EMPTY, Tags, make_tags
from aifinops.telemetry import names

__all__ = ["KEYS", "attach", "detach", "read", "sendable"]

KEYS: Mapping[str, str] = {
    **{tag: names.TAGS[tag] for tag in ("team", "project", "feature", "customer", "run")},
    "budget": names.BUDGET_ID,
}
"""Tag -> key in baggage; no other goes either way."""

_VALUE = re.compile(r"[!-?A-~]{1,64}")
"""Printable ASCII without blanks and without `@`: no text, no e-mail address. https://www.w3.org/TR/baggage/ would percent-encode others."""


def read() -> Tags:
    """The tags in the baggage of the current context; a value that nobody could have sent by us is left out."""
    if "opentelemetry.context" not in sys.modules:  # nobody has put any there
        return EMPTY
    from opentelemetry import baggage

    sent = baggage.get_all()
    if not sent:
        return EMPTY
    found = {tag: sent.get(key) for tag, key in KEYS.items()}
    return make_tags({tag: value for tag, value in found.items() if isinstance(value, str) and _VALUE.fullmatch(value)})


def sendable(tags: Tags) -> dict[str, str]:
    """Key in baggage -> value, of those tags that may be sent.

    Raises:
        ConfigurationError: for a value that may not.
    """
    found = {KEYS[tag]: value for tag, value in tags.items() if tag in KEYS}
    for key, value in found.items():
        if not _VALUE.fullmatch(value):
            raise ConfigurationError(
                f"propagate=True: {key}={value[:20]!r} would be sent with every request of this block; write at most 64 ASCII characters "
                "without blanks and without @, such as an id of your own"
            )
    return found


def attach(values: Mapping[str, str]) -> Any:
    """Put values into the baggage of the current context; the token for `detach`, None without any."""
    if not values:
        return None
    from opentelemetry import baggage, context

    inside = context.get_current()
    for key, value in values.items():
        inside = baggage.set_baggage(key, value, inside)
    return context.attach(inside)


def detach(token: Any) -> None:
    """Undo `attach`; a token of another context is ignored: that context is gone."""
    if token is not None:
        from aifinops.telemetry.spans import Spans

        Spans.detach(token)
