"""What is in dashboards/ is what its makers and checkers say it is."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "prometheus"


def test_dashboards_are_what_the_script_makes() -> None:
    """Grafana's own library takes every panel, and gives the very files."""
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        pytest.skip("pip install --group receivers (grafana-foundation-sdk)")
    command = [sys.executable, str(ROOT / "tools" / "make_dashboards.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words", [("check", "rules", "aifinops-rules.yaml"), ("test", "rules", "aifinops-rules-test.yaml")]
)
def test_promtool_takes_the_rules_and_their_tests(words: tuple[str, ...]) -> None:
    """Alerts fire when they should, and not before."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    done = subprocess.run([tool, *words], cwd=RULES, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
