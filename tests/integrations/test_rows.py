"""What a provider is here: data, and little of it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from aifinops.integrations import providers, registry
from aifinops.integrations.provider import Provider, Route

FILES = sorted(path for path in Path(providers.__file__).parent.glob("*.py") if path.stem != "__init__")
MOST = 60
"""Lines of data that a client library may take, over all that its provider answers with."""

MORE = {
    # An answer has one form a generation of models and way of asking (content, interactions, live, batches, videos), each with modalities.
    "google": 150,
    # Two dozen forms of answers, which ten more providers take over: each of them has no lines of its own.
    "openai": 210,
    # One row a provider that adds to OpenAI's form.
    "compatible": 110,
    # Answers of several models in one, at their own prices, and the SKUs of three clouds.
    "anthropic": 90,
    # What each maker whose model it hosts answers, beside its own form; guardrails, agents and knowledge bases.
    "bedrock": 120,
    # Agents, conversations, fill-in-the-middle, pages, sound and batches of them all beside chat.
    "mistral": 100,
}


def data_lines(text: str) -> int:
    """Lines that are neither empty, nor comments, nor of the module's own text, nor imports."""
    tree = ast.parse(text)
    told = set()
    for node in tree.body:
        documented = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if documented or isinstance(node, (ast.Import, ast.ImportFrom)):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(text.splitlines(), 1)
        if number not in told and line.strip() and not line.strip().startswith("#")
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_row_is_short(path: Path) -> None:
    """A provider takes at most sixty lines of data; the few that take more say why."""
    assert data_lines(path.read_text(encoding="utf-8")) <= MORE.get(path.stem, MOST)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_row_has_no_code(path: Path) -> None:
    """No classes, no branches, no loops and nothing of another library: at most a helper of one expression that makes data."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(
            node, (ast.ClassDef, ast.AsyncFunctionDef, ast.If, ast.For, ast.While, ast.Try, ast.With, ast.Lambda)
        )
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert (module or "").partition(".")[0] in {"__future__", "aifinops", "dataclasses", "collections"}
        if isinstance(node, ast.FunctionDef):
            assert all(isinstance(line, (ast.Return, ast.Assign, ast.Expr)) for line in node.body)
            assert node.name.startswith("_")


@pytest.mark.parametrize("name", registry.PROVIDERS)
def test_what_can_be_instrumented_says_how(name: str) -> None:
    """Module, package, lowest version and seam are there; what sends is said where the seam needs it."""
    row = registry.provider(name)
    assert row.module
    assert row.package
    assert row.minimum
    registry._seam_class(row.seam)
    assert row.senders or row.seam != "http"


def test_every_provider_is_a_row_of_the_registry() -> None:
    """A file whose row nobody can reach is forgotten."""
    reached = {reference.partition(":")[0] for reference in (*registry.PROVIDERS.values(), *registry.ANSWERS.values())}
    assert {f"{providers.__name__}.{path.stem}" for path in FILES} <= reached


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_hold_routes(path: Path) -> None:
    """Whatever a file defines in capitals without an underscore is a row or a part of rows that others use."""
    module = importlib.import_module(f"{providers.__name__}.{path.stem}")
    rows = [value for value in vars(module).values() if isinstance(value, Provider)]
    assert rows
    assert all(isinstance(route, Route) for row in rows for route in row.routes.values())
