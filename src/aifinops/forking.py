"""What is to be done in a forked child, also where nobody tells Python of the fork.

`os.register_at_fork` is enough for a fork that Python makes. Some servers fork in C and leave its hooks out, uWSGI among them unless it is given
`--py-call-osafterfork`. Their children would go on in the files, connections and threads of their parent: two processes would write into one
mapped journal and overwrite each other's entries. So `untold` is asked at the beginning of every call whether the process is another.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

__all__ = ["in_child", "known", "untold"]

_works: list[Callable[[], Any]] = []
_WIPEONFORK = 18
"""`MADV_WIPEONFORK` of Linux 4.14 and newer, which the module `mmap` does not name; https://man7.org/linux/man-pages/man2/madvise.2.html."""


def _page() -> Any:
    """A page that is empty in every forked child: looking at it costs a third of asking for the process id. None where there are no such pages."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPEONFORK)
    except (AttributeError, OSError, TypeError, ValueError):  # another system, or an older Linux
        return None
    page[0] = 1
    return page


_mark = _page()
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
    if _mark is not None:
        if _mark[0]:
            return False
    elif _pid == os.getpid():
        return False
    _told()
    for work in (*_works,):  # it may grow meanwhile
        work()
    return True


def _told() -> None:
    global _pid  # noqa: PLW0603 - read in every call: a variable of a module is the cheapest that there is
    _pid = os.getpid()
    if _mark is not None:
        _mark[0] = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_told)
