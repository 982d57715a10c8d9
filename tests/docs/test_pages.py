"""The pages tell the truth: their code runs, and every command, name and setting is told about."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aifinops
from aifinops.config import OTHER_VARIABLES, SETTINGS
from aifinops.telemetry import names
from aifinops.telemetry.dialects import DIALECTS
from aifinops.telemetry.tables import ATTRIBUTES, METRICS
from aifinops.testing import FakeProvider

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, in order."""
    text = path.read_text(encoding="utf-8")
    return [found["code"] for found in BLOCK.finditer(text) if found["language"] in languages]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


WITH_CODE = [path for path in (ROOT / "README.md", *PAGES) if blocks(path, "python")]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    """What `openai.OpenAI()` on a page talks to."""
    with FakeProvider() as server:
        yield server


@pytest.mark.parametrize("path", WITH_CODE, ids=named)
def test_the_code_of_a_page_runs(path: Path, provider: FakeProvider, tmp_path: Path) -> None:
    """All `python` blocks of a page are one program that ends well, with warnings as errors (`py` blocks only compile)."""
    program = tmp_path / "page.py"
    program.write_text("\n\n".join(blocks(path, "python")), encoding="utf-8")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_"))},
        "AIFINOPS_LEDGER": str(tmp_path / "ledger.db"),
        "OPENAI_API_KEY": "test",
        "OPENAI_BASE_URL": provider.base_url,
        "PYTHONPATH": str(Path(aifinops.__file__).parents[1]),
    }
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{named(path)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("path", WITH_CODE, ids=named)
def test_the_names_on_a_page_exist(path: Path) -> None:
    """Whatever a page takes from `af` is public."""
    for code in blocks(path, "python", "py"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "af"
        }
        assert used <= {*aifinops.__all__, "gpu"}


def test_every_public_name_is_in_the_reference() -> None:
    """Nothing is public without a word about it."""
    text = "".join((DOCS / "reference" / page).read_text(encoding="utf-8") for page in ("api.rst", "errors.rst"))
    told = set(re.findall(r"aifinops::(\w+)", text))
    assert told >= set(aifinops.__all__) - {"__version__"}


def test_the_tables_of_the_telemetry_are_as_the_names_are() -> None:
    """The page is as `tools/telemetry_tables.py` makes it, with every table that there is."""
    spec = importlib.util.spec_from_file_location("telemetry_tables", ROOT / "tools" / "telemetry_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text(encoding="utf-8")
    assert text == tool.drawn(text), "run: python tools/telemetry_tables.py"
    assert set(re.findall(r"<!-- table: ([\w ]+) -->", text)) == set(tool.TABLES)


def test_every_name_of_the_telemetry_is_in_the_reference() -> None:
    """Attributes and metrics are told about, and none is told about that does not exist."""
    text = (DOCS / "reference" / "telemetry.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`((?:aifinops|gen_ai|openai|server|error|azure|hw)\.[\w.*]+)`", text))
    constants = {
        value for key, value in vars(names).items() if key.isupper() and isinstance(value, str) and "/" not in value
    }
    emitted = {value + "*" if value.endswith(".") else value for value in constants - {names.SCOPE, names.COST_PREFIX}}
    emitted |= set(names.TAGS.values())
    parts = {names.COST_PREFIX + part for part in ("input", "output", "cache_read", "cache_write", "tools", "other")}
    theirs = {
        name for row in DIALECTS.values() for name in (*row.adds, *row.drops, *(one.name for one in row.histograms))
    }
    assert emitted <= told, f"not told about: {sorted(emitted - told)}"
    assert told <= emitted | parts | theirs | {"aifinops.*", "hw.*", "aifinops.record."}, (
        f"told about, but not there: {sorted(told - emitted - parts - theirs)}"
    )


def test_every_metric_and_attribute_has_a_row() -> None:
    """No constant of a name is without its type, unit and meaning."""
    rows = {name for row in ATTRIBUTES for name in row.names} | {row.name for row in METRICS}
    events = {names.EVENT_BUDGET_EXCEEDED, names.EVENT_COST_RECORDED, names.BUDGET_ALERT, names.GPU_IDLE}
    for key, value in vars(names).items():
        if (
            key.isupper()
            and isinstance(value, str)
            and "/" not in value
            and value not in events | {names.SCOPE, names.COST_PREFIX}
        ):
            assert value in rows or f"{value}*" in rows, key


def test_the_example_of_a_configuration_file_is_a_valid_one(tmp_path: Path) -> None:
    """What the page shows can be loaded, and its variables are those of the table."""
    from aifinops import config

    path = DOCS / "reference" / "configuration.md"
    (example,) = blocks(path, "toml")
    (tmp_path / "aifinops.toml").write_text(example, encoding="utf-8")
    loaded = config.load({}, {}, tmp_path)
    assert loaded.budgets[0]["name"] == "search"
    known = {row.env for row in SETTINGS} | set(OTHER_VARIABLES)
    told = {found for page in PAGES for found in re.findall(r"\bAIFINOPS_[A-Z_]+", page.read_text(encoding="utf-8"))}
    assert told <= known


def everything_under(command: Any) -> list[Any]:
    """A command and those below it, however deep."""
    return [command, *(found for one in getattr(command, "commands", {}).values() for found in everything_under(one))]


@pytest.mark.skipif(importlib.util.find_spec("aifinops.cli") is None, reason="the command line is not written yet")
def test_every_command_and_option_is_told_about() -> None:
    """Each command has a heading and each of its options a row; the page names no other."""
    import typer.main

    from aifinops.cli.app import app

    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(re.findall(r"^## `aifinops (\w+)`", text, re.MULTILINE)) == set(commands)
    for name, command in commands.items():
        section = text.split(f"## `aifinops {name}`")[1].split("\n## ")[0]
        under = everything_under(command)
        given = {option for one in under for item in one.params for option in item.opts}
        options = {option for option in given if option.startswith("--")} - {"--help"}
        assert set(getattr(command, "commands", ())) == set(re.findall(rf"^\| `{name} (\w+)", section, re.MULTILINE)), (
            name
        )
        assert set(re.findall(r"(?<![-|])(--[a-z][a-z-]*)", section)) == options, name


def test_no_page_lies_outside_the_four_rooms() -> None:
    """Tutorial, how-to, reference, explanation; beside them the index and the glossary."""
    rooms = {path.relative_to(DOCS).parts[0] for path in PAGES}
    assert rooms == {"tutorial", "how-to", "reference", "explanation", "index.md", "glossary.md"}
