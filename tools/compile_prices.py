"""Compile the bundled price lists into `src/aifinops/pricing/data/*.jsonl`.

    python tools/compile_prices.py                 # write
    python tools/compile_prices.py --check         # exit 1 when a file is not what would be written
    python tools/compile_prices.py --date 2026-11-10

`llm.jsonl` is made from an installed `genai-prices` and `src/aifinops/pricing/data/llm.toml`, the others from the lists beside this
script, in `prices/`. How it is done is in `aifinops.pricing.compiling`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import distribution
from pathlib import Path

from aifinops.errors import PricingError
from aifinops.pricing.compiling import genai, own

LISTS = Path(__file__).resolve().parent / "prices"
DATA = Path(__file__).resolve().parent.parent / "src" / "aifinops" / "pricing" / "data"
TARGET = DATA / "llm.jsonl"
NOTICE = DATA / "LICENSE-genai-prices"


def everything(day: str) -> dict[Path, str]:
    """Every file and what belongs in it."""
    lists = sorted(LISTS.glob("*.toml"))
    made = {DATA / f"{path.stem}.jsonl": genai.written(own.compiled(path, genai.USUAL)) for path in lists}
    return {TARGET: genai.compiled(day), **made}


def recorded_date() -> str:
    """The release day in the present file, which must be of the installed version: a new version needs `--date`."""
    version = distribution("genai-prices").version
    header = json.loads(TARGET.read_text("utf-8").partition("\n")[0]) if TARGET.exists() else {}
    if header.get("version") != version:
        raise SystemExit(f"genai-prices {version} is new here: give its release day with --date YYYY-MM-DD")
    return str(header["date"])


def write(files: Mapping[Path, str]) -> None:
    """Replace the data files and the licence notice beside them."""
    DATA.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        draft = path.with_suffix(".tmp")
        draft.write_text(text, "utf-8", newline="\n")
        draft.replace(path)
        print(f"{path}: {len(text.encode()):,} bytes, {text.count(chr(10)):,} lines")
    licence = next(path for path in distribution("genai-prices").files or () if path.name == "LICENSE")
    shutil.copyfile(str(licence.locate()), NOTICE)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile the bundled price lists.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    parser.add_argument("--date", type=date.fromisoformat, help="release date of genai-prices, YYYY-MM-DD")
    options = parser.parse_args(arguments)
    try:
        files = everything(options.date.isoformat() if options.date else recorded_date())
    except PricingError as error:
        raise SystemExit(str(error)) from None
    if not options.check:
        write(files)
        return 0
    old = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    old += [] if NOTICE.exists() else [NOTICE]
    for path in old:
        print(f"{path} is out of date; run: python {sys.argv[0]}", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
