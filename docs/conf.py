"""Sphinx settings. Tables of settings, meters and providers are drawn from the code, so that a page cannot lag behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aifinops._version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "aifinops"
author = "The aifinops authors"
copyright = "the aifinops authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"aifinops {release}"
default_role = "code"  # docstrings write `name` with single backquotes
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
python_maximum_signature_line_length = 88


def _settings() -> str:
    from aifinops.config import SETTINGS

    rows = ["| argument and key | environment | default | what it does |", "|---|---|---|---|"]
    for row in SETTINGS:
        default = (
            ""
            if row.default is None
            else f"`{row.default}`"
            if isinstance(row.default, (str, bool))
            else _listed(row.default)
        )
        rows.append(f"| `{row.name}` | {f'`{row.env}`' if row.env else ''} | {default} | {row.doc} |")
    return "\n".join(rows)


def _listed(value: object) -> str:
    return ", ".join(f"`{item}`" for item in value) if isinstance(value, tuple) else ""


def _meters() -> str:
    from aifinops.meters import METERS

    rows = [
        "| meter | unit | family | of what | cache | tool | a listed price is for |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in METERS.values():
        cache = f"{row.cache} {row.ttl}".strip()
        what = f"{row.direction} {row.modality}".strip()
        tool = f"`{row.tool}`" if row.tool else ""
        rows.append(f"| `{row.name}` | `{row.unit}` | {row.family} | {what} | {cache} | {tool} | {row.per:,} |")
    return "\n".join(rows)


def _providers() -> str:
    from aifinops.integrations.registry import ANSWERS, answers

    seen: dict[int, list[str]] = {}
    for name in ANSWERS:
        seen.setdefault(id(answers(name)[1]), []).append(name)
    lines = []
    for names in seen.values():
        row = answers(names[0])[1]
        lines += [
            "",
            f"### {', '.join(f'`{name}`' for name in names)}",
            "",
            "| answer | known by | read |",
            "|---|---|---|",
        ]
        for form, route in row.routes.items():
            read = {**route.usage, **route.tools, **{f"parts of `{part.path}`": part.model for part in route.parts}}
            read |= {
                f"{meter} of `{begin}...`": path
                for begin, tools in route.tools_of.items()
                for meter, path in tools.items()
                if path != route.tools.get(meter)
            }
            read |= {"tier": route.tier, "region": route.region, "reported cost": route.reported}
            told = "<br>".join(f"{what}: {_code(path)}" for what, path in read.items() if path)
            lines.append(f"| {form} | {' and '.join(map(_code, route.signs))} | {told} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


_TABLES: dict[str, Callable[[], str]] = {
    "<!-- table: settings -->": _settings,
    "<!-- table: meters -->": _meters,
    "<!-- table: providers -->": _providers,
}


def _draw_tables(app: Sphinx, docname: str, source: list[str]) -> None:
    for mark, draw in _TABLES.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, draw())


def _mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings show code as an indented block after a blank line; reStructuredText wants two colons before it."""
    for index in range(len(lines) - 1, 0, -1):
        before = lines[index - 2] if index > 1 else ""
        if lines[index].startswith("    ") and not lines[index - 1] and before and not before.startswith(" "):
            lines[index:index] = ["::", ""]


def setup(app: Sphinx) -> None:
    app.connect("source-read", _draw_tables)
    app.connect("autodoc-process-docstring", _mark_code, priority=100)  # before napoleon reads the sections
