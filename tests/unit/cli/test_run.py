"""`aifinops run`: the program cannot tell that it was not Python who started it, and all that it starts is metered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai")

import aifinops
from aifinops import config
from aifinops.cli.run import command_of, with_separator
from aifinops.errors import ConfigurationError
from aifinops.integrations import auto
from aifinops.ledger import open_ledger
from aifinops.testing import FakeProvider

SOURCE = str(Path(aifinops.__file__).parents[1])
MAIN = "from aifinops.cli import main; main()"
ASK = """
import os, openai
with openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="test") as client:
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
"""
LOOK = """
import json, os, signal, sys
print(json.dumps([sys.argv, __name__, sys.path[0], sys.modules["__main__"].__file__, sys.flags.optimize,
                  str(signal.getsignal(signal.SIGTERM)), str(signal.getsignal(signal.SIGINT)), sys.stdin.read()]))
print("to standard error", file=sys.stderr)
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C does what it does in the foreground: a job in the background of a shell has it ignored, and what it starts inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def environment(server: FakeProvider, tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "AIFINOPS_"))}
    return {
        **kept,
        "BASE_URL": server.base_url,
        "AIFINOPS_LEDGER": str(tmp_path / "ledger.db"),
        "PYTHONPATH": SOURCE,
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Type `aifinops run ...` in `tmp_path`."""

    def typed(*words: str, python: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words] if python else [sys.executable, "-c", MAIN, "run", *words]
        return subprocess.run(
            command, cwd=tmp_path, env={**environment, **more}, input="typed in", capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    return typed


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def charges(environment: dict[str, str]) -> list[dict[str, str]]:
    ledger = open_ledger(environment["AIFINOPS_LEDGER"], create=False)
    try:
        return [dict(row.tags) for row in ledger.rows()]
    finally:
        ledger.close()


@pytest.mark.parametrize(
    "words",
    [
        ("look.py",),
        ("look.py", "7", "--help", "-m", "--", "--no-summary"),
        ("-m", "house.look", "3", "--help"),
        ("nothing.py",),
    ],
)
def test_the_program_is_what_it_is_without_us(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Arguments, `__main__`, `sys.path[0]`, signals, standard streams and exit status are those of `python`."""
    write(tmp_path, "look.py", LOOK)
    write(tmp_path, "house/look.py", LOOK)
    plain, ours = run(*words, python=True), run("--no-summary", *words)
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, plain.returncode)


def test_it_says_at_the_end_what_it_cost(run: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    """One line on standard error; the exit status is the program's; the charge has the tag of the run."""
    write(tmp_path, "ask.py", f"{ASK}\nraise SystemExit(7)")
    done = run("ask.py")
    assert done.returncode == 7
    assert done.stdout == ""
    (tags,) = charges(environment)
    (line,) = done.stderr.splitlines()
    assert line.startswith("aifinops: $0.0000")
    assert line.endswith(f" in 1 call; aifinops report --where run={tags['run']}")


def test_the_processes_that_it_starts_are_metered(run: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    """They share its tag and are in its line; none has a line of its own, and one may be left out."""
    write(tmp_path, "ask.py", ASK)
    write(
        tmp_path,
        "boss.py",
        "import os, subprocess, sys\n"
        "for auto in ('1', '1', '0'):\n"
        "    subprocess.run([sys.executable, 'ask.py'], check=True, env={**os.environ, 'AIFINOPS_AUTO': auto})\n"
        "if os.fork() == 0:\n"
        "    raise SystemExit\n"
        "os.wait()\n",
    )
    done = run("boss.py", AIFINOPS_TAGS="team=search")
    assert done.returncode == 0, done.stderr
    found = charges(environment)
    assert len(found) == 2
    assert len({tags["run"] for tags in found}) == 1
    assert {tags["team"] for tags in found} == {"search"}
    assert done.stderr.count("aifinops:") == 1
    assert " in 2 calls" in done.stderr


def test_the_sitecustomize_of_the_user_is_loaded_too(run: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    """Ours hands over to the next one on the path."""
    write(tmp_path, "own/sitecustomize.py", "print('the user was here')")
    write(tmp_path, "nothing.py", "import sitecustomize; print(sitecustomize.__file__)")
    done = run("--no-summary", "nothing.py", PYTHONPATH=f"{tmp_path / 'own'}{os.pathsep}{SOURCE}")
    said = "the user was here"  # once by the command itself, once by the program
    assert done.stdout.splitlines() == [said, said, str(tmp_path / "own" / "sitecustomize.py")]


def test_a_wrong_setting_is_said_before_anything_runs(run: Run, tmp_path: Path) -> None:
    """Status 2, and the program was not started."""
    write(tmp_path, "print.py", "print('started')")
    done = run("print.py", AIFINOPS_SPANS="loud")
    assert (done.returncode, done.stdout) == (2, "")
    assert "AIFINOPS_SPANS" in done.stderr


def test_what_goes_wrong_below_it_does_not_stop_the_program(run: Run, tmp_path: Path) -> None:
    """A ledger that cannot be opened: the program runs unmetered, and one line says why."""
    write(tmp_path, "print.py", "print('started')")
    done = run("print.py", AIFINOPS_LEDGER="/dev/null/nowhere.db")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert done.stderr.startswith("aifinops: nothing is metered: ")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("foreground")
def test_a_signal_reaches_the_program(environment: dict[str, str], tmp_path: Path) -> None:
    """It is the same process: its own handler runs, and Ctrl-C ends it as it ends Python."""
    write(tmp_path, "wait.py", "import time\nprint('ready', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "run", "wait.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(30) == -signal.SIGINT
    assert "KeyboardInterrupt" in told
    assert told.endswith("aifinops: no call was metered\n")


def test_another_command_is_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script by this Python, a command of the PATH as it is, and a module as `-m` does."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "sh", "")
    assert command_of(["app.py", "x"], None) == [sys.executable, "app.py", "x"]
    assert command_of(["ls", "-l"], None) == ["ls", "-l"]
    assert command_of(["sh"], None) == [sys.executable, "sh"], "a file here comes first"
    assert command_of(["x"], "house") == [sys.executable, "-m", "house", "x"]
    assert with_separator(["run", "-m", "house", "--help"]) == ["run", "-m", "house", "--", "--help"]
    assert with_separator(["run", "app.py", "-m"]) == ["run", "app.py", "-m"]


def test_the_start_takes_little_time(run: Run, tmp_path: Path) -> None:
    """A Python process that calls nothing is not slowed down by more than a fraction of a second."""
    write(tmp_path, "nothing.py", "")
    began = time.perf_counter()
    run("nothing.py", python=True)
    plain = time.perf_counter() - began
    began = time.perf_counter()
    run("nothing.py", python=True, PYTHONPATH=f"{auto.FOLDER}{os.pathsep}{SOURCE}", AIFINOPS_AUTO="1")
    assert time.perf_counter() - began - plain < 3


def test_the_run_is_a_tag_unless_there_is_one() -> None:
    """The user's own `run` wins."""
    assert config.load({}, {"AIFINOPS_RUN": "r1"}).tags == {"run": "r1"}
    assert config.load({}, {"AIFINOPS_RUN": "r1", "AIFINOPS_TAGS": "run=mine,team=a"}).tags == {
        "run": "mine",
        "team": "a",
    }


def test_the_entry_point_of_opentelemetry_has_the_methods_that_are_called() -> None:
    """One object; `instrument` with any arguments, `uninstrument`, and no dependencies that could conflict."""
    instrumentor = auto.AIFinOpsInstrumentor()
    assert auto.AIFinOpsInstrumentor() is instrumentor
    assert list(instrumentor.instrumentation_dependencies()) == []
    instrumentor.instrument(skip_dep_check=True)
    assert instrumentor.is_instrumented_by_opentelemetry
    assert aifinops.integrations.state()["openai"] in {"active", "waiting for import"}
    instrumentor.uninstrument()
    assert aifinops.integrations.state() == {}


def test_opentelemetry_instrument_loads_it(environment: dict[str, str], tmp_path: Path) -> None:
    """The real launcher, with an entry point in a distribution beside the program."""
    pytest.importorskip("opentelemetry.instrumentation.auto_instrumentation")
    write(tmp_path, "ask.py", ASK)
    info = tmp_path / "site" / "beside-1.dist-info"
    write(info, "METADATA", "Metadata-Version: 2.1\nName: beside\nVersion: 1\n")
    write(
        info,
        "entry_points.txt",
        "[opentelemetry_instrumentor]\naifinops = aifinops.integrations.auto:AIFinOpsInstrumentor\n"
        "[opentelemetry_environment_variables]\naifinops = aifinops.integrations.environment\n",
    )
    launcher = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", launcher, "--traces_exporter", "none", "--metrics_exporter", "none", "--logs_exporter", "none",
         sys.executable, "ask.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**environment, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{SOURCE}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert charges(environment) == [{}]


def test_every_variable_is_listed() -> None:
    """The module that OpenTelemetry's launcher reads has each as a constant, and none of OpenTelemetry's own."""
    from aifinops.integrations import environment as variables

    assert variables.AIFINOPS_LEDGER == "AIFINOPS_LEDGER"
    assert {row.env for row in config.SETTINGS if row.env} <= set(variables.__all__)
    assert not [name for name in vars(variables) if name.startswith("OTEL_")]


def test_nothing_of_ours_is_said_of_a_run_without_a_program(run: Run) -> None:
    """The error says what to type."""
    done = run()
    assert done.returncode == 2
    assert "aifinops run app.py" in done.stderr
    with pytest.raises(ConfigurationError):
        config.load({"sumary": False})
