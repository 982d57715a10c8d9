"""The face: what it shows, that it shows the real things, and that looking at it is cheap."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import aifinops

ROOT = Path(__file__).parents[2]
HEAVY = (
    "asyncio",
    "grpc",
    "openai",
    "opentelemetry",
    "pydantic",
    "pynvml",
    "rich",
    "socket",
    "sqlite3",
    "ssl",
    "tiktoken",
    "torch",
    "typer",
    "wrapt",
)


def _in_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _seen_by_type_checkers() -> dict[str, str]:
    """Name -> module, from the imports that only type checkers read."""
    tree = ast.parse(Path(aifinops.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def test_the_face_shows_its_names_and_nothing_else() -> None:
    """`dir()`, `__all__`, the table of homes and what type checkers see are one and the same list, in order."""
    assert dir(aifinops) == list(aifinops.__all__) == sorted(aifinops.__all__)
    seen = _seen_by_type_checkers()
    assert seen.pop("gpu") == "aifinops"
    assert {name: f"aifinops.{home}" for name, home in aifinops._HOME_OF.items()} == seen
    assert set(aifinops.__all__) == set(aifinops._HOME_OF)


def test_gpus_are_reached_through_the_face() -> None:
    """`af.gpu` is loaded when somebody asks for it, and touches no library of a driver."""
    code = "import sys, aifinops as af; print('aifinops.gpu' in sys.modules, af.gpu.track.__name__, 'pynvml' in sys.modules)"
    assert _in_fresh_interpreter(code).split() == ["False", "track", "False"]


@pytest.mark.parametrize("name", aifinops.__all__)
def test_each_name_is_the_one_of_its_home(name: str) -> None:
    """Every public name loads and is identical to the object in its module."""
    home = f"aifinops.{aifinops._HOME_OF[name]}"
    if importlib.util.find_spec(home) is None:
        pytest.skip(f"{home} is not written yet")
    assert getattr(aifinops, name) is getattr(importlib.import_module(home), name)


def test_functions_win_over_modules_of_the_same_name() -> None:
    """`track` and `tags` are functions for users, also after the modules of that name were loaded."""
    code = (
        "import aifinops.tags, aifinops.track\n"
        "from aifinops.tags import make_tags\n"
        "from aifinops import tags, track\n"
        "import aifinops as af\n"
        "print(af.tags is tags, callable(tags), af.track is track, callable(track))\n"
    )
    assert _in_fresh_interpreter(code).split() == ["True"] * 4


def test_other_modules_are_bound_as_usual() -> None:
    """Only public names are kept free; `import aifinops.meters` binds the module."""
    assert _in_fresh_interpreter("import aifinops.meters; print(aifinops.meters.__name__)").split() == [
        "aifinops.meters"
    ]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """A misspelt name fails as it does on any module."""
    with pytest.raises(AttributeError, match="module 'aifinops' has no attribute 'trak_cost'"):
        aifinops.trak_cost  # type: ignore[attr-defined]  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    """`import aifinops` alone brings in no third-party package, no socket and no database."""
    code = "import sys; before = set(sys.modules); import aifinops; print(*sorted(set(sys.modules) - before))"
    loaded = _in_fresh_interpreter(code).split()
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("aifinops")] == ["aifinops"]


@pytest.mark.parametrize(
    "module", ["errors", "clock", "money", "meters", "tags", "usage", "charges", "scope", "config", "runtime", "track"]
)
def test_what_is_used_without_a_call_loads_nothing_heavy(module: str) -> None:
    """The floors up to the public verbs load no SDK, no exporter, no validator and no command line."""
    if importlib.util.find_spec(f"aifinops.{module}") is None:
        pytest.skip(f"aifinops.{module} is not written yet")
    code = f"import sys; import aifinops.{module}; print(*sys.modules)"
    loaded = set(_in_fresh_interpreter(code).split())
    unwanted = {
        "openai",
        "opentelemetry.sdk",
        "pydantic",
        "tiktoken",
        "torch",
        "pynvml",
        "typer",
        "rich",
        "grpc",
        "sqlite3",
    }
    assert loaded & unwanted == set()


def test_the_marker_for_type_checkers_is_there() -> None:
    """`py.typed` tells that the annotations are meant to be used."""
    assert (Path(aifinops.__file__).parent / "py.typed").is_file()


def test_the_extra_and_the_group_of_tests_are_equal() -> None:
    """Old and new pip install the same for the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    flat = {item for name in extras["test"] for item in (extras["openai"] if name == "aifinops[openai]" else [name])}
    assert flat == set(project["dependency-groups"]["test"])
