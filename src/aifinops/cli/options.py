"""Options that several commands have, each in the same words."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["LedgerPath", "Since", "TableOrJson", "Until", "Where"]

LedgerPath = Annotated[
    str | None, typer.Option("--ledger", metavar="PATH", help="Ledger to use (default: the one of the settings).")
]
Since = Annotated[str | None, typer.Option(help='From: "7d", "24h", "2026-11-01" (default: everything).')]
Until = Annotated[str | None, typer.Option(help="Up to, as --since.")]
Where = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only these; give it again for further keys.")
]
TableOrJson = Annotated[str, typer.Option("--format", metavar="table|json", help="Written as.")]
