"""Patches that can be taken back exactly, applied when their target is imported and never before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from aifinops.errors import swallow

__all__ = ["Patch", "Patches", "Undoable", "applied"]

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
_Place = tuple[str, str]  # key and module


class Undoable(Protocol):
    """Something done to other people's code that can be taken back."""

    def undo(self) -> None:
        """Restore what was there."""


class Patch:
    """One attribute of one object, replaced by a wrapper around it."""

    def __init__(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        import wrapt  # here and not above: pricing an answer loads the registry, which loads this

        self._owner = owner
        self._name = name
        # What the owner itself holds: getattr would find an inherited attribute, and undoing must delete ours then.
        self._own = vars(owner).get(name)
        self._active = True
        self._replacement = wrapt.FunctionWrapper(getattr(owner, name), wrapper, enabled=lambda: self._active)
        setattr(owner, name, self._replacement)

    def undo(self) -> None:
        """Restore what was there; where somebody has wrapped ours since, ours stays below as a plain pass-through."""
        self._active = False
        if vars(self._owner).get(self._name) is not self._replacement:
            return
        if self._own is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)


def applied(wanted: Iterable[tuple[Any, str, Wrapper]]) -> list[Patch]:
    """Several patches, or none: where one cannot be made, those before it are taken back.

    Args:
        wanted: owner, name and wrapper of each.
    """
    made: list[Patch] = []
    try:
        made.extend(Patch(*one) for one in wanted)  # one after the other: those before a failure are there
    except BaseException:
        for patch in reversed(made):
            patch.undo()
        raise
    return made


class Patches:
    """All patches in force, by key; applying a key twice is doing it once. A key may be of several modules."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wanted: dict[_Place, Callable[[Any], Sequence[Undoable]]] = {}
        self._applied: dict[_Place, Sequence[Undoable]] = {}
        self._hooked: set[_Place] = set()

    def when_imported(self, key: str, module: str, apply: Callable[[Any], Sequence[Undoable]]) -> None:
        """Apply now when `module` is imported already, else when it is."""
        place = (key, module)
        with self._lock:
            if place in self._wanted:
                return
            self._wanted[place] = apply
            hooked = place in self._hooked
            self._hooked.add(place)
        if hooked:  # after an undo: the hook of the first time has fired or still waits, and looks into `_wanted`
            self._apply_if_loaded(place)
        else:
            import wrapt

            wrapt.register_post_import_hook(lambda loaded: self._on_import(place, loaded), module)

    def _apply_if_loaded(self, place: _Place) -> None:
        import sys

        loaded = sys.modules.get(place[1])
        if loaded is not None:
            self._on_import(place, loaded)

    def _on_import(self, place: _Place, loaded: Any) -> None:
        with self._lock:
            apply = self._wanted.get(place)
            if apply is None or place in self._applied:
                return
            try:
                self._applied[place] = apply(loaded)
            except Exception as failure:  # an unknown version: the import that we are in is the user's
                swallow(f"integrations.{place[0]}.patch", failure)

    def apply(self, key: str, make: Callable[[], Sequence[Undoable]]) -> None:
        """Apply at once, unless that key is in force."""
        place = (key, "")
        with self._lock:
            if place not in self._applied:
                self._wanted[place] = lambda _loaded: []
                self._applied[place] = make()

    def undo(self, key: str | None = None) -> None:
        """Take back one key, or all."""
        with self._lock:
            for place in [place for place in self._wanted if key is None or place[0] == key]:
                del self._wanted[place]
                for patch in reversed(self._applied.pop(place, [])):
                    patch.undo()

    def state(self) -> dict[str, str]:
        """Key -> `active` or `waiting for import`, for `aifinops doctor`."""
        with self._lock:
            active = {key for key, _ in self._applied}
            return {key: "active" if key in active else "waiting for import" for key, _ in self._wanted}
