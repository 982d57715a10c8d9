"""Draw the picture of a report for the README: `python tools/report_picture.py LEDGER [docs/images/report.svg]`.

LEDGER is the one that `aifinops demo` has printed. The fonts that rich would load from the network are left out of the drawing.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from aifinops.analytics.reports import report
from aifinops.cli import show
from aifinops.clock import SystemClock
from aifinops.ledger import open_ledger

BY = ("team", "feature")


def main(ledger: str, target: str = "docs/images/report.svg") -> None:
    made = report(open_ledger(ledger, create=False), by=BY, now_ns=SystemClock().time_ns())
    out = Console(record=True, width=86, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    show.report(made, out)
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    out.save_svg(target, title=f"aifinops report --by {','.join(BY)}", code_format=template, unique_id="report")
    print(f"{target}: {Path(target).stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
