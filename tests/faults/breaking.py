"""Make one function of ours raise, wherever it is called from: found by watching a call, broken by the code of it.

A function that somebody has imported by its name, bound to an object or given to a patch is the same function everywhere, so what is
replaced is its code and not a name of it. One that is made anew with each call, inside of another, is replaced in what that other is made of.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import aifinops

ROOT = str(Path(aifinops.__file__).parent)
_TESTING = str(Path(ROOT) / "testing")
_NO_FUNCTIONS = frozenset({"<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


_MADE = "<string>"
"""Where dataclasses and named tuples have their methods."""


def _is_part(code: CodeType) -> bool:
    return code.co_name in _NO_FUNCTIONS and code.co_filename.startswith(ROOT)


def ours(code: CodeType) -> bool:
    """Whether a code is that of a function of the package, and none of its test doubles."""
    name = code.co_filename
    return name.startswith(ROOT) and not name.startswith(_TESTING) and code.co_name not in _NO_FUNCTIONS


def label(code: CodeType) -> str:
    """Module and qualified name, as people say it."""
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"


class Seen:
    """The functions of ours that are called meanwhile.

    Attributes:
        codes: of all of them. outermost: of those that were entered from somebody else's code, so that nothing of ours is above them.
    """

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()
        self.outermost: set[CodeType] = set()

    def __enter__(self) -> Seen:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not ours(frame.f_code):
            return
        self.codes.add(frame.f_code)
        caller = frame.f_back
        while caller is not None and (caller.f_code.co_filename == _MADE or _is_part(caller.f_code)):
            caller = caller.f_back
        if caller is None or not ours(caller.f_code):
            self.outermost.add(frame.f_code)


class Functions:
    """All functions of the package that exist now, by their code."""

    def __init__(self) -> None:
        self._of: dict[CodeType, list[FunctionType]] = {}
        for one in gc.get_objects():
            if type(one) is FunctionType and ours(one.__code__):
                self._of.setdefault(one.__code__, []).append(one)

    @contextlib.contextmanager
    def breaking(self, code: CodeType, fault: Callable[[], Any]) -> Iterator[None]:
        """Call `fault` in the place of a function."""
        broken = _raising(code)
        changed = [(one, broken) for one in self._of.get(code, ())]
        changed += [
            (one, _with(outer, code, broken)) for outer, found in self._of.items() if _has(outer, code) for one in found
        ]
        before = [(one, one.__code__) for one, _ in changed]
        builtins.aifinops_fault = fault  # type: ignore[attr-defined]
        try:
            for one, new in changed:
                one.__code__ = new
            yield
        finally:
            for one, old in before:
                one.__code__ = old
            del builtins.aifinops_fault  # type: ignore[attr-defined]


def _has(outer: CodeType, inner: CodeType) -> bool:
    nested = [one for one in outer.co_consts if isinstance(one, CodeType)]
    return any(one is inner or _has(one, inner) for one in nested)


def _with(outer: CodeType, inner: CodeType, new: CodeType) -> CodeType:
    """The code of a function with another one for what is made in it."""
    consts = tuple(
        new if one is inner else _with(one, inner, new) if isinstance(one, CodeType) else one for one in outer.co_consts
    )
    return outer.replace(co_consts=consts)


def _raising(code: CodeType) -> CodeType:
    """A code of the same kind, with as many free variables, that only calls the fault."""
    if code.co_flags & inspect.CO_ASYNC_GENERATOR:
        begin, end = "async def", "yield"
    elif code.co_flags & inspect.CO_COROUTINE:
        begin, end = "async def", "return"
    else:
        begin, end = "def", "yield" if code.co_flags & inspect.CO_GENERATOR else "return"
    free = [f"free_{number}" for number in range(len(code.co_freevars))]
    made = f"  {begin} broken(*args, **kwargs):\n"
    made += "".join(f"    {name}\n" for name in free)
    made += f"    {end} aifinops_fault()\n"
    source = "def outer():\n" + "".join(f"  {name} = None\n" for name in free) + made + "  return broken\n"
    space: dict[str, Any] = {}
    exec(compile(source, "<fault>", "exec"), space)
    found: FunctionType = space["outer"]()
    return found.__code__.replace(co_freevars=code.co_freevars) if free else found.__code__
