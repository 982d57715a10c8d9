"""Forks that Python is told of, and forks that it is not."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from aifinops import forking

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls fork() of the C library")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in a registry of this test alone."""
    found: list[str] = []
    monkeypatch.setattr(forking, "_works", [])
    forking.known(lambda: found.append("first"))
    forking.known(lambda: found.append("second"))
    return found


@pytest.mark.parametrize("page", [True, False])
def test_a_fork_of_the_c_library_is_noticed_once(calls: list[str], page: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the child everything is called, in its order, and once; in the parent nothing is. With a page that is wiped, and without."""
    if not page:
        monkeypatch.setattr(forking, "_mark", None)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        first, second = forking.untold(), forking.untold()
        os._exit(0 if (first, second, calls) == (True, False, ["first", "second"]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not forking.untold()
    assert not calls


def test_a_fork_of_python_calls_what_is_registered_once(calls: list[str]) -> None:
    """`os.register_at_fork` has called it before anybody can ask."""
    forking.in_child(lambda: calls.append("registered"))
    child = os.fork()
    if child == 0:
        os._exit(0 if not forking.untold() and calls == ["registered"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
