"""Entries that another program of ours sent as log records (`aifinops.ledger.otlp`), from where a collector has kept them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aifinops.importing.records import Left, Malformed, Record
from aifinops.ledger.otlp import charges_of

__all__ = ["charge", "logs"]

Row = Mapping[str, Any]


def logs(value: Row) -> Iterator[tuple[str, Row]]:
    """The log records in an item of a file, each in a document of its own."""
    number = 0
    for group in value.get("resourceLogs", value.get("resource_logs")) or ():
        for scope in group.get("scopeLogs", group.get("scope_logs")) or ():
            for record in scope.get("logRecords", scope.get("log_records")) or ():
                number += 1
                yield f"record {number}", {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


def charge(document: Row) -> Record:
    """The entry that a log record holds, whole: it was priced where the call was made."""
    try:
        found = next(charges_of(document), None)
    except ValueError as error:
        raise Malformed(str(error)) from None
    if found is None:
        raise Left("log records that are no costs")
    return Record(provider=found.provider, at=found.at, duration=found.duration, whole=found)
