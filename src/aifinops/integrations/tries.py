"""The tries that a library makes inside of one call: each of which may have been billed is a hold, and a charge, of its own.

Where a library goes on to the next try, the seam says which error the one before it has ended with. With proof that nothing was billed,
what is held serves the next one. Without it that is spent, and the next try has to find room: a budget that has none ends the call there,
with an error that names the failed try as its cause.
"""

from __future__ import annotations

from collections.abc import Callable

from aifinops import metering
from aifinops.errors import BudgetExceeded
from aifinops.integrations.passing import aguarded, guarded

__all__ = ["Proof", "ahold_again", "hold_again", "note"]

Proof = Callable[[BaseException], bool]
"""Whether an error of a library proves that nothing was billed."""


def note(error: BaseException | None) -> None:
    """A try of the call in flight has ended with an error, or with none; whether there will be another one nobody knows yet."""
    invocation = metering.in_flight()
    if invocation is not None:
        invocation.tried = error


def hold_again(place: str, error: BaseException | None = None, refused: Proof | None = None) -> None:
    """The library is about to try again.

    Args:
        place: for the log. error: of the try before; default the one that was noted. refused: what only this library's errors tell.

    Raises:
        BudgetExceeded: when there is no room for another try.
    """
    found = guarded(place, _lost, error, refused)
    if found is None:
        return
    again, cause = found
    try:
        guarded(place, again)
    except BudgetExceeded as refusal:
        raise refusal from cause


async def ahold_again(place: str, error: BaseException | None = None, refused: Proof | None = None) -> None:
    """`hold_again` in a task."""
    found = guarded(place, _lost, error, refused)
    if found is None:
        return
    again, cause = found
    try:
        await aguarded(place, again)
    except BudgetExceeded as refusal:
        raise refusal from cause


def _lost(error: BaseException | None, refused: Proof | None) -> tuple[Callable[[], None], BaseException] | None:
    """(what holds for the next try, the error of the one before), where that may have been billed."""
    invocation = metering.in_flight()
    if invocation is None:
        return None
    noted, invocation.tried = invocation.tried, None
    error = noted if error is None else error
    if error is None or (refused is not None and refused(error)) or not invocation.lose(error):
        return None
    return invocation.hold_again, error
