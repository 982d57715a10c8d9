"""A call for which there may be room in a while: who waits for it, a thread or a task."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from aifinops import runtime
from aifinops.budgets.waiting import Wait, in_event_loop, keep_ticket
from aifinops.errors import BudgetExceeded, swallow

__all__ = ["begin_patiently", "here"]

R = TypeVar("R")

_patient: ContextVar[bool] = ContextVar("aifinops_patient", default=False)


_EFFECT = "A call was refused: there is no room for it, and it could not wait"


def here(function: Callable[..., R], *arguments: Any) -> R:
    """Call something that holds; where it has to wait for room, this thread does, unless somebody further out can wait in a task."""
    try:
        return function(*arguments)
    except Wait as first:
        if _patient.get():
            raise
        wait = first
    try:
        return _until_there_is_room(wait, function, arguments)
    except BudgetExceeded:
        raise
    except Exception as failure:  # a limit holds, whatever fails
        swallow("metering.wait", failure, _EFFECT)
        raise wait.error from failure
    finally:
        _leave(wait)


def _until_there_is_room(wait: Wait, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    guard = runtime.get().guard
    if in_event_loop():
        raise guard.refusals.gave_up(wait) from None
    with keep_ticket(wait.ticket):
        while True:
            guard.pause(wait)
            try:
                return function(*arguments)
            except Wait as again:
                wait = again


async def begin_patiently(begin: Callable[..., R], *arguments: Any) -> R:
    """`begin(*arguments)`, which opens a call somewhere inside; where that has to wait for room, this task does and not the event loop.

    Raises:
        BudgetExceeded: as `begin`.
    """
    token = _patient.set(True)
    try:
        try:
            return begin(*arguments)
        except Wait as first:
            wait = first
        try:
            return await _meanwhile(wait, begin, arguments)
        except BudgetExceeded:
            raise
        except Exception as failure:  # a limit holds, whatever fails
            swallow("metering.wait", failure, _EFFECT)
            raise wait.error from failure
        finally:
            _leave(wait)
    finally:
        _patient.reset(token)


async def _meanwhile(wait: Wait, begin: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    guard = runtime.get().guard
    with keep_ticket(wait.ticket):
        while True:
            await guard.apause(wait)
            try:
                return begin(*arguments)
            except Wait as again:
                wait = again


def _leave(wait: Wait) -> None:
    try:
        wait.ticket.leave()
    except Exception as failure:  # whoever waits behind it asks again by himself
        swallow("metering.wait_leave", failure)
