"""The forms that can be read, in one table, and which of them a file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aifinops.errors import ConfigurationError
from aifinops.importing import gateways, organisations, ours
from aifinops.importing.records import Left, Malformed, Record
from aifinops.importing.sources import Source
from aifinops.importing.spans import Spans, spans
from aifinops.importing.tables import Table

__all__ = ["FORMATS", "Form", "Reader", "form_of", "reader_for"]

Row = Mapping[str, Any]


def _whole(value: Row) -> Iterator[tuple[str, Row]]:
    """An item that is one row, or a page of an interface with its rows under `data`."""
    page = value.get("data")
    if isinstance(page, list) and value.keys() <= {
        "data",
        "meta",
        "total",
        "page",
        "has_more",
        "total_pages",
        "page_size",
    }:
        for number, one in enumerate(page, 1):
            yield f"item {number}", one if isinstance(one, Mapping) else {}
    else:
        yield "", value


@dataclass(frozen=True, slots=True)
class Form:
    """One form of export.

    Attributes:
        name: as `--format` takes it. what: in words. is_it: whether a row (or an item of spans) is of this form.
        parts: from an item of a file to its rows. record: of a row; None for what needs a reader of its own (tables, spans).
        totals: a row sums up the calls of a whole organisation, which other rows may be parts of.
    """

    name: str
    what: str
    is_it: Callable[[Row], bool]
    parts: Callable[[Row], Iterator[tuple[str, Row]]] = _whole
    record: Callable[[Row], Record] | None = None
    totals: bool = False


def _object_starts(row: Row, start: str) -> bool:
    return str(row.get("object", "")).startswith(start)


_TABLE = (
    Form("openai-usage", "OpenAI's usage of an organisation", lambda row: _object_starts(row, "organization.usage."),
         organisations.buckets, organisations.openai_usage, totals=True),
    Form("openai-costs", "OpenAI's costs of an organisation", lambda row: _object_starts(row, "organization.costs."),
         organisations.buckets, organisations.openai_costs, totals=True),
    Form("anthropic-usage", "Anthropic's usage report of messages", lambda row: "uncached_input_tokens" in row and "starting_at" in row,
         organisations.buckets, organisations.anthropic_usage, totals=True),
    Form("anthropic-costs", "Anthropic's cost report", lambda row: "amount" in row and "starting_at" in row,
         organisations.buckets, organisations.anthropic_costs, totals=True),
    Form("litellm", "spend logs of LiteLLM", gateways.is_litellm, record=gateways.litellm),
    Form("langfuse", "observations of Langfuse", gateways.is_langfuse, record=gateways.langfuse),
    Form("records", "records of aifinops itself: OTLP/JSON logs, as a collector's file exporter writes them",
         lambda row: bool({"resourceLogs", "resource_logs"} & row.keys()), ours.logs, ours.charge),
    Form("spans", "spans with gen_ai.* attributes (OTLP/JSON, or one a line)",
         lambda row: bool({"attributes", "resourceSpans", "resource_spans"} & row.keys()), spans),
    Form("table", "a row a call: CSV, or JSON lines with the same names", lambda row: True),
)  # fmt: skip

FORMATS: Mapping[str, Form] = {form.name: form for form in _TABLE}
"""Name -> form, in the order in which they are tried."""


def form_of(source: Source) -> Form:
    """What a file is.

    Raises:
        ConfigurationError: when its first rows are of no form that is known.
    """
    if source.table:
        keys = dict.fromkeys(source.head)
        return next(form for form in _TABLE if form.is_it(keys))
    firsts = [item.value for item in islice(source.items(), 20) if not item.problem]
    for form in _TABLE[:-1]:
        for value in firsts:
            if any(form.is_it(row) for _, row in islice(_parts(form, value), 20) if row):
                return form
    flat = next((value for value in firsts if any(isinstance(one, (str, int)) for one in value.values())), None)
    if flat is None or "data" in flat:
        raise ConfigurationError(
            f"{source.path}: nothing in it is an export that is known; name what it is: --format {'|'.join(FORMATS)}"
        )
    return FORMATS["table"]


def _parts(form: Form, value: Row) -> Iterator[tuple[str, Row]]:
    if form.name in {"spans", "records"}:
        return iter([("", value)])  # by its outside: a file of spans need not begin with a call
    return form.parts(value)


class Reader:
    """Reads the rows of one file.

    Attributes:
        form: what it is. ignored: columns of a table that mean nothing.

    Args:
        source: the file. form: what it is. mapping, constants: as in `Table`.

    Raises:
        ConfigurationError: as `Table` does; also for a mapping of what is no table.
    """

    def __init__(self, source: Source, form: Form, mapping: Mapping[str, str], constants: Mapping[str, str]) -> None:
        self.form = form
        self.ignored: list[str] = []
        self._source = source
        self._record: Callable[[Row], Record]
        if (mapping or constants) and form.name != "table":
            raise ConfigurationError(f"--map and --set are for tables; {source.path} is {form.what}")
        if form.name == "table":
            table = Table(source.head or _heads(source), mapping, constants)
            self._record, self.ignored = table.record, table.ignored
        elif form.name == "spans":
            found = Spans()
            found.prepare(span for item in source.items() if not item.problem for _, span in _spans_or_none(item.value))
            self._record = found.record
        elif form.record is not None:
            self._record = form.record

    def rows(self, progress: Callable[[int], None] = lambda read: None) -> Iterator[tuple[str, Record | Exception]]:
        """(place, what is there): a record, or the `Malformed` or `Left` that says why there is none."""
        for item in self._source.items(progress):
            if item.problem:
                yield item.place, Malformed(item.problem)
                continue
            try:
                for inside, row in self.form.parts(item.value):
                    place = f"{item.place}, {inside}" if inside else item.place
                    yield place, self._made(row)
            except (Malformed, Left, AttributeError, TypeError, ValueError) as error:
                yield item.place, _told(error)

    def _made(self, row: Row) -> Record | Exception:
        try:
            return self._record(row)
        except (Malformed, Left, AttributeError, TypeError, ValueError) as error:
            return _told(error)


def _told(error: Exception) -> Exception:
    """A row may be of any shape: what fails in the middle of it is malformed, too."""
    return error if isinstance(error, (Malformed, Left)) else Malformed(f"is not as it should be: {error}")


def _spans_or_none(value: Row) -> Iterator[tuple[str, Row]]:
    try:
        yield from spans(value)
    except Exception:  # it is told where the rows are read
        return


def _heads(source: Source) -> list[str]:
    """The names of what JSON lines hold, for a table that has no heading."""
    found: dict[str, None] = {}
    for item in islice(source.items(), 100):
        if not item.problem:
            found |= dict.fromkeys(str(name) for name in item.value)
    return list(found)


def reader_for(source: Source, name: str | None, mapping: Mapping[str, str], constants: Mapping[str, str]) -> Reader:
    """The reader for a file: of the named form, or of the one that it looks like.

    Raises:
        ConfigurationError: for an unknown name, and as `form_of` and `Reader` do.
    """
    if name is not None and name not in FORMATS:
        raise ConfigurationError(f"format {name!r} is unknown; write one of {', '.join(FORMATS)}")
    return Reader(source, FORMATS[name] if name else form_of(source), mapping, constants)
