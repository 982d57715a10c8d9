"""What is to be done in a forked child, also where nobody tells Python of the fork.

`os.register_at_fork` is enough for a fork that Python makes. Some servers fork in C and leave its hooks out, uWSGI among them unless it is given
`--py-call-osafterfork`. Their children would go on in the files, connections and threads of their parent: two processes would write into one
mapped journal and overwrite each other's entries. So `untold` is asked at the beginning of every call whether the process is another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["in_child", "known", "untold"]

_works: list[Callable[[], Any]] = []
_pid = os.getpid()


def in_child(work: Callable[[], Any]) -> None:
    """Have `work` called in every forked child, before anything else of ours runs there; in the order of registration."""
    known(work)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=work)


def known(work: Callable[[], Any]) -> None:
    """The same for what has been registered with `os.register_at_fork` already."""
    _works.append(work)


def untold() -> bool:
    """Whether this is a child of a fork that nobody has told Python of; everything has been called then."""
    global _pid  # noqa: PLW0603 - read in every call: a function of a module is the cheapest that there is
    if _pid == os.getpid():
        return False
    _pid = os.getpid()
    for work in _works:
        work()
    return True


def _told() -> None:
    global _pid  # noqa: PLW0603 - as above
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_told)
