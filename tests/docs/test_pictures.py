"""The pictures of the docs can be drawn, and are the ones that the pages show."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import browser
import pytest

import aifinops

ROOT = Path(__file__).parents[2]
TERMINAL = ("report.svg", "top.svg", "gpu-top.svg")
PAGES = ("report-light.png", "report-dark.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that `tools/pictures.py` draws."""
    folder = tmp_path_factory.mktemp("images")
    environment = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}
    command = [sys.executable, "-W", "error", str(ROOT / "tools" / "pictures.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def texts(path: Path) -> str:
    """What stands in a picture; how rich writes its styles is its own business."""
    written = ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")
    return " ".join(" ".join("".join(one.itertext()) for one in written).split())


def test_terminal_views(drawn: Path) -> None:
    """Each is well-formed SVG that loads nothing, and shows what it is of."""
    for name, wanted in zip(TERMINAL, ("+$", "in the last minute", "node-1:4711"), strict=True):
        text = (drawn / name).read_text(encoding="utf-8")
        assert wanted in texts(drawn / name)
        assert not re.search(r"url\(\s*[\"']?https?:|@import|<image", text)


def test_they_are_those_of_the_docs(drawn: Path) -> None:
    """Whoever changes a view draws its picture anew."""
    for name in TERMINAL:
        assert texts(drawn / name) == texts(ROOT / "docs" / "images" / name), f"{name} is old: python tools/pictures.py"


@pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING or "there is one")
def test_pages(drawn: Path) -> None:
    """Two pictures of modest size, one bright, one dark."""
    for name in PAGES:
        data = (drawn / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width == 1280
        assert height > 1000
        assert len(data) < 400_000


def test_pictures_of_pages_are_there() -> None:
    """Every picture that a page shows exists, and is not too heavy to load."""
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\((\.\./images/[^)]+)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            assert picture.exists(), f"{page}: {target}"
            assert picture.stat().st_size < 400_000
