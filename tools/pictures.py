"""Draw the pictures of the docs: `python tools/pictures.py [docs/images]`.

The terminal views are SVG; the fonts that rich would load from the network are left out of them. The pages are PNG, photographed in Chromium
through Playwright (`pip install playwright pillow`; `AIFINOPS_BROWSER` names another browser than the one on the PATH). Without a browser the
pages are left as they are, and that is said. All show the made-up months of `sample_ledger.py`, and every run draws the same.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import sample_ledger
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from aifinops import runtime
from aifinops.cli import main as aifinops
from aifinops.cli import show
from aifinops.gpu.slots import slot
from aifinops.ledger.presence import Presence, folder_of
from aifinops.testing import FakeClock

QUOTAS = """
name = "lab"
[pools.h100]
gpus = 8
accelerator = "H100 SXM"
[teams.research]
cohort = "all"
h100 = 5
[teams.assistant]
cohort = "all"
h100 = 3
"""
TITLE = "AI spend, November"


def main(target: str = "docs/images") -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("aifinops").setLevel(logging.ERROR)  # that budgets of the sample are nearly spent is no news
    for name in [name for name in os.environ if name.startswith(("AIFINOPS_", "OTEL_")) and name != "AIFINOPS_BROWSER"]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as temporary:
        months(Path(temporary), folder)
    with tempfile.TemporaryDirectory() as temporary:
        hour(Path(temporary), folder)


def months(place: Path, folder: Path) -> None:
    """What a report says of a month, beside the one before."""
    sample_ledger.write(place / "ledger.db")
    sample_ledger.write_budgets(place / "budgets.db")
    runtime.init(ledger=str(place / "ledger.db"), clock=FakeClock(sample_ledger.NOW))
    period = ("--since", "2026-11-01")
    terminal(folder / "report.svg", 118, "report", "--by", "team,feature", *period, "--compare", "--trend")
    page = place / "report.html"
    typed("report", "--by", "team,feature", *period, "--html", str(page), "--title", TITLE)
    photograph(page, folder)
    runtime.reset()


def hour(place: Path, folder: Path) -> None:
    """What is spent, and who holds GPUs, at a moment of a busy hour."""
    sample_ledger.write_hour(place / "ledger.db")
    sample_ledger.write_budgets(place / "budgets.db")
    (place / "quotas.toml").write_text(QUOTAS)
    clock = FakeClock(sample_ledger.NOW - timedelta(minutes=55))
    runtime.init(
        ledger=str(place / "ledger.db"), gpu_quotas=str(place / "quotas.toml"), gpu_usd_per_hour="3.29", clock=clock
    )
    somewhere = {"socket": SimpleNamespace(gethostname=lambda: "node-1"), "os": SimpleNamespace(getpid=lambda: 4711)}
    with ExitStack() as held, mock.patch.multiple("aifinops.gpu.board", **somewhere):
        for team, run, gpus, busy in sample_ledger.RUNS:
            one = held.enter_context(slot(team=team, gpus=gpus, name=run, lease_s=10**6))
            one.measured(55 * 60 * gpus * busy, 55.0 * 60 * gpus)
            one._beat()
        clock.set_wall(sample_ledger.NOW)
        for calls in sample_ledger.IN_FLIGHT:
            process = Presence(lambda: folder_of(place / "ledger.db"))
            held.callback(process.close)
            for model, seconds in calls:
                process.begin(model, clock.time_ns() - int(seconds * 1e9))
        terminal(folder / "top.svg", 118, "top", "--once")
        terminal(folder / "gpu-top.svg", 118, "gpu", "top", "--watch", "0")
    runtime.reset()


def typed(*words: str) -> None:
    try:
        aifinops(words)
    except SystemExit as left:
        if left.code:
            raise


def terminal(target: Path, width: int, *words: str) -> None:
    """A command as somebody sees it who types it, as SVG."""
    out = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        legacy_windows=False,
        highlight=False,
        color_system="truecolor",
    )
    usual: Callable[[], Console] = show.console
    show.console = lambda: out
    try:
        typed(*words)
    finally:
        show.console = usual
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = out.export_svg(title=f"aifinops {' '.join(words)}", code_format=template, unique_id=target.stem)
    target.write_text(svg, encoding="utf-8")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def photograph(page: Path, folder: Path) -> None:
    """The page in the light and in the dark."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import browser

    if browser.MISSING:
        print(f"the pictures of the page are left as they are: {browser.MISSING}")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=browser.PATH, args=list(browser.ARGUMENTS))
        for scheme in ("light", "dark"):
            target = folder / f"report-{scheme}.png"
            view = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
            view.goto(page.as_uri())
            smaller(view.screenshot(full_page=True), target)
            view.close()
            print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
        chromium.close()


def smaller(picture: bytes, target: Path) -> None:
    """With 128 colours, of which nobody misses any, where Pillow is installed; else as it is."""
    try:
        from PIL import Image
    except ImportError:
        target.write_bytes(picture)
        return
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
