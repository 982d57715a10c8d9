"""HTML from text that may hold anything: tags, model names, whatever a call has brought."""

from __future__ import annotations

from decimal import Decimal
from html import escape

__all__ = ["compact", "element", "harmless", "text"]


def harmless(value: str) -> str:
    """Text without what breaks a line, steers a terminal, turns the direction of writing, or cannot be encoded; such characters become `?`."""
    return value if value.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in value)


def text(value: object) -> str:
    """A value as HTML that shows it and does nothing else, in an element or in a quoted attribute."""
    return escape(harmless(str(value)), quote=True)


def element(name: str, *children: str, **attributes: object) -> str:
    """An element. Children are HTML already, attributes are text; `class_` is `class`, `aria_label` is `aria-label`, None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{''.join(children)}</{name}>"


def compact(count: int | Decimal) -> str:
    """A count for people, to three digits from ten thousand on: `9,876`, `941M`, `1.24B`."""
    number = Decimal(count)
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= (10_000 if unit == "k" else size):
            scaled = number / size
            return f"{scaled:.{max(0, 2 - scaled.adjusted())}f}{unit}"
    return f"{number:,.0f}"
