"""Write the tables of docs/reference/telemetry.md from the names: `python tools/telemetry_tables.py [PAGE]`.

Each stands between `<!-- table: NAME -->` and `<!-- end of table -->`; the sentences around them are written by hand. A test holds that the
page is as this script makes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aifinops import config
from aifinops.telemetry.dialects import DIALECTS, Dialect, Json, Text
from aifinops.telemetry.tables import ATTRIBUTES, METRICS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "telemetry.md"
TABLE = re.compile(r"(?<=<!-- table: )(?P<name>[\w ]+)( -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def coded(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def attributes(where: str) -> str:
    found = [
        (coded(row.names), row.type, f"`{row.unit}`" if row.unit else "", row.when, row.source, row.text)
        for row in ATTRIBUTES
        if row.where == where
    ]
    return table(("attribute", "type", "unit", "when", "whose name", "meaning"), found)


def metrics() -> str:
    found = [
        (f"`{row.name}`", row.kind, f"`{row.unit}`", row.attributes, row.when, row.source, row.text) for row in METRICS
    ]
    return table(("metric", "kind", "unit", "attributes", "when", "whose name", "meaning"), found)


def buckets() -> str:
    found: dict[tuple[float, ...], list[str]] = {}
    for row in METRICS:
        if row.buckets:
            found.setdefault(row.buckets, []).append(row.name)
    return table(
        ("histograms", "bounds"), [(coded(names), ", ".join(f"{one:g}" for one in key)) for key, names in found.items()]
    )


def dialects() -> str:
    found = [(f"`{row.name}`", row.reader, _adds(row), _clashes(row.name), row.evidence) for row in DIALECTS.values()]
    return table(("dialect", "who reads it", "what it adds", "not together with", "how we know"), found)


def _adds(row: Dialect) -> str:
    parts = [f"`{name}`{_shape(source)}" for name, source in row.adds.items()]
    parts += [f"histogram `{one.name}`, unit `{one.unit}`" for one in row.histograms]
    if row.token_types:
        parts.append("types `cache_read`, `cache_write`, `reasoning` of `gen_ai.client.token.usage`")
    parts += [f"takes away `{name}`" for name in row.drops]
    if row.strict:
        parts.append("takes away everything that is neither of the conventions nor `aifinops.*`")
    return ", ".join(parts)


def _shape(source: Any) -> str:
    if isinstance(source, Json):
        return f" (JSON: {coded(_keys(source.keys))})"
    return f" = `{source.text}`" if isinstance(source, Text) else ""


def _keys(keys: Mapping[str, Any], before: str = "") -> Iterable[str]:
    for key, source in keys.items():
        if isinstance(source, Mapping):
            yield from _keys(source, f"{before}{key}.")
        else:
            yield before + key


def _clashes(name: str) -> str:
    return "any other" if name == "strict" else coded((*config.DIALECTS[name], "strict"))


TABLES: dict[str, Callable[[], str]] = {
    "calls": lambda: attributes("call"),
    "blocks": lambda: attributes("block"),
    "gpus": lambda: attributes("gpu"),
    "idle events": lambda: attributes("idle event"),
    "budget events": lambda: attributes("budget event"),
    "metrics": metrics,
    "metric attributes": lambda: attributes("metric"),
    "buckets": buckets,
    "dialects": dialects,
}


def drawn(page: str) -> str:
    """The page with every table as the names have it.

    Raises:
        KeyError: for a mark with a name that no table has.
    """
    return TABLE.sub(lambda found: f"{found['name']}{found[2]}\n{TABLES[found['name']]()}\n\n", page)


def main(path: str = str(PAGE)) -> None:
    page = Path(path)
    page.write_text(drawn(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
