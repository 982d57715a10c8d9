"""Patches that can be taken back exactly, applied when their target is imported and never before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Patch", "Patches"]

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


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


class Patches:
    """All patches in force, by key; applying a key twice is doing it once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wanted: dict[str, Callable[[Any], list[Patch]]] = {}
        self._applied: dict[str, list[Patch]] = {}
        self._hooked: set[str] = set()

    def when_imported(self, key: str, module: str, apply: Callable[[Any], list[Patch]]) -> None:
        """Apply now when `module` is imported already, else when it is."""
        with self._lock:
            if key in self._wanted:
                return
            self._wanted[key] = apply
            hooked = key in self._hooked
            self._hooked.add(key)
        if hooked:  # after an undo: the hook of the first time has fired or still waits, and looks into `_wanted`
            self._apply_if_loaded(key, module)
        else:
            import wrapt

            wrapt.register_post_import_hook(lambda loaded: self._on_import(key, loaded), module)

    def _apply_if_loaded(self, key: str, module: str) -> None:
        import sys

        loaded = sys.modules.get(module)
        if loaded is not None:
            self._on_import(key, loaded)

    def _on_import(self, key: str, loaded: Any) -> None:
        with self._lock:
            apply = self._wanted.get(key)
            if apply is not None and key not in self._applied:
                self._applied[key] = apply(loaded)

    def apply(self, key: str, make: Callable[[], list[Patch]]) -> None:
        """Apply at once, unless that key is in force."""
        with self._lock:
            if key not in self._applied:
                self._wanted[key] = lambda _loaded: []
                self._applied[key] = make()

    def undo(self, key: str | None = None) -> None:
        """Take back one key, or all."""
        with self._lock:
            for name in [key] if key is not None else list(self._wanted):
                self._wanted.pop(name, None)
                for patch in reversed(self._applied.pop(name, [])):
                    patch.undo()

    def state(self) -> dict[str, str]:
        """Key -> `active` or `waiting for import`, for `aifinops doctor`."""
        with self._lock:
            return {key: "active" if key in self._applied else "waiting for import" for key in self._wanted}
