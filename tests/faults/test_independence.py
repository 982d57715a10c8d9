"""Money does not depend on tracing, exporters, or how processes begin and end: every answer that was billed is charged once."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fcntl")

ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
"""By default one of each kind, since each takes seconds of starting processes; `AIFINOPS_FAULTS=all` tries every one."""
slow = pytest.mark.skipif(not ALL, reason="AIFINOPS_FAULTS=all runs it, as `nox` does")
STATUSES = [500, 503, 400] if ALL else [503]
METHODS = ["fork", "spawn", "forkserver"] if ALL else ["fork"]


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Any]:
    made = load("independence").Stand(tmp_path)
    yield made
    made.close()


def test_a_sampler_that_samples_nothing(stand: Any) -> None:
    """No trace leaves the process; ledger, copies and metrics are complete."""
    stand.run("call(5)", OTEL_TRACES_SAMPLER="always_off")
    assert not stand.collector.bodies["/v1/traces"]
    stand.judge()


def test_an_sdk_that_is_off(stand: Any) -> None:
    """`OTEL_SDK_DISABLED` ends spans and metrics; the ledger and its copies are no part of the SDK."""
    stand.run("call(5)", OTEL_SDK_DISABLED="true")
    assert not stand.collector.bodies["/v1/traces"] + stand.collector.bodies["/v1/metrics"]
    stand.judge(metrics=False)


def test_a_ledger_that_is_nowhere_but_at_the_collector(stand: Any) -> None:
    """`AIFINOPS_LEDGER=otlp`: what was billed is there, once, in right amounts, with what the spans would say beside it."""
    stand.run("call(5)", AIFINOPS_LEDGER="otlp", AIFINOPS_COPY_TO="")
    arrived = {charge.id: charge for charge in stand.collector.charges()}
    assert {charge.response_id: charge.amount for charge in arrived.values()} == stand.truth()
    assert len(arrived) == 5
    assert not stand.ledger.exists()
    assert b"gen_ai.usage.input_tokens" in stand.collector.bodies["/v1/logs"][0]
    assert b"aifinops.cost.recorded" in stand.collector.bodies["/v1/logs"][0]


@pytest.mark.parametrize("status", STATUSES)
def test_a_collector_that_refuses(stand: Any, status: int) -> None:
    """The program ends in its time, the ledger is complete, and copies arrive when it has come to its senses."""
    stand.collector.status = status
    assert stand.run("call(5)") < 60
    stand.judge(metrics=False, copies=False)
    stand.collector.status = 200
    stand.judge(metrics=False)


@slow
def test_a_collector_that_is_gone(stand: Any) -> None:
    """Nobody listens there: the same, and the end of the program does not wait for an exporter that tries for half a minute."""
    with stand.running(
        'call(5)\nprint("done", flush=True)', OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"
    ) as process:
        assert process.stdout.readline() == "done\n"
        done = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - done < 20
    stand.judge(metrics=False, copies=False)


def test_a_process_that_is_killed(stand: Any) -> None:
    """Every call that has returned is in the ledger and, by the next process, at the collector; nothing is there that was not billed."""
    with stand.running('while True:\n    call()\n    print("returned", flush=True)') as process:
        returned = sum(process.stdout.readline() == "returned\n" for _ in range(7))
        process.kill()
        returned += process.stdout.read().count("returned\n")
    stand.run("aifinops.init()\nassert aifinops.flush(20)")
    found = {charge.id: charge.response_id for charge in stand.collector.charges()}
    rows = {charge.id: charge.response_id for charge in stand.rows()}
    assert found.items() <= rows.items()  # it may have died between the two
    assert set(rows.values()) <= stand.truth().keys()
    assert returned <= len(found) <= len(rows) <= returned + 1


FORK = """
call(3)
assert aifinops.flush() if {flushed} else True
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        call(2)
        {end}
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
call(1)
"""


@pytest.mark.parametrize("flushed", [True, False] if ALL else [True])
def test_forked_children_that_end_as_programs_do(stand: Any, flushed: bool) -> None:
    """The sum of what parent and children export is the truth: nothing from before the fork is told again, nothing is negative."""
    stand.run(FORK.format(flushed=flushed, end="sys.exit()"))
    stand.judge()


def test_forked_children_that_end_at_once(stand: Any) -> None:
    """After `os._exit` no exporter has its turn; the ledger is complete, and copies are delivered by the next process."""
    stand.run(FORK.format(flushed=True, end="os._exit(0)"))
    stand.judge(metrics=False)


def test_a_fork_in_the_middle_of_calls(stand: Any) -> None:
    """Threads make calls while the process forks again and again; no child hangs, and each answer is charged once."""
    stand.run("""
        import threading
        over = threading.Event()
        def work():
            while not over.is_set():
                call()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        call()
        for thread in threads:
            thread.start()
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                call(2)
                aifinops.flush()
                os._exit(0)
            children.append(child)
            time.sleep(0.05)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        over.set()
        for thread in threads:
            thread.join()
    """)
    stand.judge(metrics=False)


MULTIPROCESSING = """
import multiprocessing

def work(number):
    call(2)
    return number

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    if {before}:
        call(2)
    {body}
"""
POOL = """with context.Pool(2) as pool:
        assert sorted(pool.map(work, range(4), chunksize=1)) == [0, 1, 2, 3]
        {end}
        pool.join()"""
PROCESSES = """children = [context.Process(target=work, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0"""


@pytest.mark.parametrize(
    ("method", "before"),
    [(method, before) for method in METHODS for before in (True, False)] if ALL else [("fork", True), ("spawn", False)],
)
def test_multiprocessing(stand: Any, method: str, before: bool) -> None:
    """Processes of every start method: their metrics are exported at their end, though no `atexit` is called there."""
    stand.run(MULTIPROCESSING.format(method=method, before=before, body=PROCESSES))
    stand.judge()


@slow
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_is_closed(stand: Any, method: str) -> None:
    """Its workers end by themselves."""
    stand.run(MULTIPROCESSING.format(method=method, before=True, body=POOL.format(end="pool.close()")))
    stand.judge()


@slow
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_is_terminated(stand: Any, method: str) -> None:
    """Its workers are killed with SIGTERM: what they have metered is in the ledger, and copies are delivered by the next process."""
    stand.run(MULTIPROCESSING.format(method=method, before=True, body=POOL.format(end="pool.terminate()")))
    stand.judge(metrics=False)


FREEZE = """
print("ready", flush=True)
for _ in sys.stdin:
    call(2)
    assert aifinops.flush(10)
    print("flushed", flush=True)
"""


def test_a_function_that_is_frozen_after_each_request(stand: Any) -> None:
    """Serverless: after `flush()` everything is outside, whether the process is ever thawed again or not."""
    with stand.running(FREEZE) as process:
        assert process.stdout.readline() == "ready\n"
        for turn in range(1, 4):
            process.stdin.write("request\n")
            process.stdin.flush()
            assert process.stdout.readline() == "flushed\n", stand.said()
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            assert len({charge.id for charge in stand.collector.charges()}) == 2 * turn
            assert stand.collector.sums()["aifinops.calls"] == 2 * turn
            if turn < 3:
                process.send_signal(signal.SIGCONT)
        process.kill()
    stand.judge()


def free_port() -> int:
    return int(load("outage").free_port())


APP = """
if os.environ.get("BEFORE"):
    call(2)

def application(environ, start_response):
    call(1)
    start_response("200 OK", [("content-type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def requests(port: int, count: int) -> set[str]:
    """Which processes have answered; four requests at a time, so that no worker has them all."""
    from concurrent.futures import ThreadPoolExecutor
    from http.client import HTTPConnection

    def ask(_: int) -> str:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200
        said = response.read().decode()
        connection.close()
        return said

    load("outage").listening(port)
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(ask, range(count)))


@pytest.mark.parametrize("before", ["1", ""])
def test_gunicorn_that_loads_the_application_before_it_forks(stand: Any, before: str) -> None:
    """`preload_app`: workers inherit what the master has metered, and tell it no second time."""
    pytest.importorskip("gunicorn")
    stand.write(APP, "app.py")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "-w",
        "3",
        "-b",
        f"127.0.0.1:{port}",
        "--log-level",
        "warning",
        "app:application",
    ]
    with stand.running(command, BEFORE=before) as process:
        requests(port, 24)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, stand.said()
    assert len(stand.truth()) == 24 + 2 * bool(before)
    stand.judge()


UWSGI = {"hooks": ["--enable-threads", "--py-call-osafterfork"], "threads": ["--enable-threads"], "bare": []}


@pytest.mark.parametrize("kind", UWSGI)
def test_uwsgi(stand: Any, kind: str) -> None:
    """It forks in C and, unless it is told to, without Python's hooks; in the bare one no thread of ours runs: the next process delivers."""
    uwsgi = Path(sys.executable).with_name("uwsgi")
    if not uwsgi.exists():
        pytest.skip("uwsgi is not installed")
    stand.write(APP, "app.py")
    port = free_port()
    command = [uwsgi, "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2", "--wsgi-file", "app.py", "--die-on-term",
               "--home", sys.prefix, *UWSGI[kind]]  # fmt: skip
    with stand.running(command, BEFORE="1") as process:
        workers = requests(port, 12)
        time.sleep(2)  # an interval of the exporter: how a worker ends is for uWSGI to say
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    assert len(workers) == 2
    assert len(stand.truth()) == 14
    stand.judge(metrics=kind != "bare")


SLEEPY = {"OTEL_METRIC_EXPORT_INTERVAL": "60000", "OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""No exporter wakes up in the middle of a bare fork: the end of a program exports as well."""


def test_a_child_without_a_call_leaves_its_parents_files_alone(stand: Any) -> None:
    """It was forked by the C library and ends as programs do: what its parent has open stays, and nothing is lost."""
    stand.run(
        """
        import ctypes
        call(2)
        be_quiet()
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        call(2)
    """,
        **SLEEPY,
    )
    stand.judge()


def test_a_fork_that_nobody_tells_python_of(stand: Any) -> None:
    """`fork()` of the C library: parent and children write journals and spools of their own, and tell their own sums."""
    stand.run(
        """
        import ctypes
        call(2)
        children = []
        for _ in range(3):
            be_quiet()
            child = ctypes.PyDLL(None).fork()
            if child == 0:
                call(3)
                aifinops.flush()
                os._exit(0)
            children.append(child)
        call(2)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        call(1)
    """,
        **SLEEPY,
    )
    stand.judge()


CELERY = """
from celery import Celery

app = Celery("app", broker="filesystem://", backend=None)
folder = os.environ["QUEUE"]
app.conf.broker_transport_options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder + "/control"}
app.conf.task_ignore_result = True
if os.environ.get("BEFORE"):
    call(2)

@app.task
def work():
    call(1)
"""


def test_celery_with_processes(stand: Any) -> None:
    """Prefork: a pool of its own making, whose children end with `os._exit`."""
    pytest.importorskip("celery")
    stand.write(CELERY, "app.py")
    queue = stand.folder / "queue"
    queue.mkdir()
    stand.run(
        "sys.path.insert(0, os.getcwd())\nimport app\nfor _ in range(10):\n    app.work.delay()\n", QUEUE=str(queue)
    )
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "-P", "prefork", "-c", "2", "-l", "warning", "--without-gossip", "--without-mingle"]  # fmt: skip
    with stand.running(command, BEFORE="1", QUEUE=str(queue)) as process:
        until = time.monotonic() + 60
        while len(stand.truth()) < 12 and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert len(stand.truth()) == 12, stand.said()
    stand.judge()
