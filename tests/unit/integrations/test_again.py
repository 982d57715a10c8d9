"""Putting everything in and taking it out, in any order and more than once, also where nothing or everything is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import aifinops as af
from aifinops.integrations import registry
from aifinops.integrations.hooks import HOOKS
from aifinops.integrations.patching import Patches
from aifinops.integrations.registry import PROVIDERS


@pytest.fixture(autouse=True)
def out() -> Iterator[None]:
    yield
    af.uninstrument()


def installed(name: str) -> bool:
    try:
        af.instrument(name)
    except af.ConfigurationError:
        return False
    return True


@pytest.mark.parametrize("name", [*PROVIDERS, *HOOKS])
def test_in_and_out_twice_is_as_if_never(name: str) -> None:
    """Each name goes in and out twice: the same state every time, and nothing stays."""
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    first = registry.state()
    assert first
    for _ in range(2):
        af.instrument(name)
        assert registry.state() == first
        af.uninstrument(name)
        assert [key for key in registry.state() if key == name or key.startswith(f"{name} ")] == []
        af.instrument(name)
    assert registry.state() == first


def test_all_in_any_order() -> None:
    """One after another, out in the other order, and all at once: the state depends on what is in force only."""
    names = [name for name in (*PROVIDERS, *HOOKS) if installed(name)]
    everything = registry.state()
    for name in reversed(names):
        af.uninstrument(name)
    assert set(registry.state()) <= {"threads"}
    for name in reversed(names):
        af.instrument(name)
    assert registry.state() == everything
    af.uninstrument()
    assert registry.state() == {}


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_with_nothing_installed_there_is_nothing_to_do() -> None:
    """`instrument()` where no client library can be found: no error, and each waits for an import that never comes."""
    out = run("""
        import sys
        from aifinops.integrations.hooks import HOOKS
        from aifinops.integrations.registry import PROVIDERS, provider
        names = {provider(n).module.partition('.')[0] for n in PROVIDERS} | {h.top.partition('.')[0] for h in HOOKS.values()}
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition('.')[0] in names:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
        import aifinops as af
        af.instrument(); af.instrument(); af.uninstrument(); af.instrument()
        from aifinops.integrations.registry import state
        assert set(state().values()) == {'waiting for import'} | ({'active'} if state().get('threads') == 'active' else set()), state()
        print(sorted(names & set(sys.modules)))
    """)
    assert out == "[]"


def test_putting_in_imports_no_client_library_and_opens_no_connection() -> None:
    """`import aifinops` and `instrument()` first: no library of anybody is loaded for it, and no socket is made."""
    out = run("""
        import socket, sys
        def refused(*a, **k): raise AssertionError('a socket')
        socket.socket.connect = refused
        import aifinops as af
        af.instrument()
        from aifinops.integrations.hooks import HOOKS
        from aifinops.integrations.registry import PROVIDERS, provider
        names = {provider(n).module for n in PROVIDERS} | {h.top for h in HOOKS.values()} | {'httpx', 'requests', 'aiohttp'}
        print(sorted(n for n in names if n in sys.modules))
    """)
    assert out == "[]"


def test_a_library_of_an_unknown_version_can_still_be_imported() -> None:
    """A hook of ours that fails on a module is a warning, not the failure of somebody's import."""

    def fails(_: Any) -> list[Any]:
        raise AttributeError("no such class any more")

    module = ModuleType("aifinops_test_future_library")
    sys.modules[module.__name__] = module
    try:
        from aifinops import errors

        errors.reraise_failures(False)
        patches = Patches()
        patches.when_imported("future", module.__name__, fails)
        assert patches.state() == {"future": "waiting for import"}
        assert errors.failures().get("integrations.future.patch") == 1
        patches.undo()
    finally:
        errors.reraise_failures(True)
        del sys.modules[module.__name__]


async def test_calls_of_one_context_at_once_are_all_seen() -> None:
    """Requests that are only looked at do not hide calls that run beside them, whatever their order."""
    from aifinops import metering
    from aifinops.metering import Call

    call = Call("openai", "chat", "gpt-4o-mini")
    seen: list[bool] = []

    async def looked_at() -> None:
        watched = metering.watch(call, lambda *_: None)
        assert watched is not None
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watched.leave()

    async def made() -> None:
        invocation = metering.begin(call)
        seen.append(invocation is not None)
        await asyncio.sleep(0)
        if invocation is not None:
            invocation.leave()
            invocation.fail(RuntimeError(), refused=True)

    await asyncio.gather(looked_at(), made(), looked_at(), made())
    assert seen == [True, True]
    assert metering.in_flight() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_inherits_no_lock_that_is_held_and_no_stream_that_is_open() -> None:
    """A child never waits for a thread that it does not have, and at its end does not settle what its parent is reading."""
    out = run("""
        import os, signal, warnings
        warnings.simplefilter('ignore', DeprecationWarning)
        import aifinops as af
        from aifinops.integrations import passing, registry
        from aifinops.integrations.seams import http
        af.instrument()
        opened = object()
        passing.at_exit(opened, wanted=True)
        with http._lock, registry._patches._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                free = http._lock.acquire(timeout=2)
                os._exit((0 if free else 1) + (2 if passing._passing else 0))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kept = opened in passing._passing
        passing.at_exit(opened, wanted=False)
        print(status, kept)
    """)
    assert out == "0 True"
