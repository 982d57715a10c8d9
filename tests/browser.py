"""A real browser for tests of pages: Chromium of the system, driven by Playwright. Where one of both is missing, tests skip and say so."""

from __future__ import annotations

import importlib.util
import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATH = next(
    (found for name in (os.environ.get("AIFINOPS_BROWSER", ""), *NAMES) if name and (found := shutil.which(name))), None
)

MISSING = (
    "no Chromium on the PATH (apt-get install chromium)"
    if PATH is None
    else "playwright is not installed (pip install playwright)"
    if importlib.util.find_spec("playwright") is None
    else ""
)
"""Why there is no browser; empty where there is one."""

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--force-color-profile=srgb")
"""It opens pages of our own making only, also as root in a container, where its sandbox cannot be had."""
