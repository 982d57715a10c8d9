"""NVML through `pynvml` (nvidia-ml-py): opened when somebody asks, never at import; what a driver cannot do is remembered, not asked again.

NVML answers with error codes, and one code may mean "never" (`NotSupported` on a MIG slice), "not now" (`NotFound`: no sample since), "gone"
(`GpuIsLost`) or "begin again" (`Uninitialized`, because another library has shut NVML down). The table `_MEANING` says which is which;
`ask` turns them into a value, None, or `Lost`. A forked child begins anew: handles, locks and what was learned are the parent's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any

from aifinops.forking import known

__all__ = ["Lost", "Nvml", "session"]

_log = logging.getLogger("aifinops")

# Codes of nvmlReturn_t (https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html).
_MEANING = {
    0: "nothing",  # pynvml raises "success" where the first call of two has no rows
    1: "reopen",  # uninitialised
    2: "refresh",  # invalid argument: a handle from before a reset of the device
    3: "never",  # not supported
    4: "never",  # no permission
    6: "nothing",  # not found: no sample since the last look
    7: "nothing",  # the list grew between the call for its size and the call for its rows
    9: "reopen",  # driver not loaded
    10: "nothing",  # timeout
    13: "never",  # this driver has no such function
    15: "lost",
    16: "lost",  # reset required
    21: "nothing",  # no data
    25: "never",  # the driver wants another version of a structure
    26: "never",  # deprecated
    28: "lost",  # not found any more
}
_PATIENCE = 3
"""How often a function may fail in a row with a code that means nothing in particular, before it is not asked again."""


class Lost(Exception):
    """The device has fallen off the bus or needs a reset."""


class Nvml:
    """NVML as one process has it open; it counts who uses it, and shuts NVML down after the last."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._users = 0
        self._module: Any = None
        self.renew()

    def renew(self) -> None:
        """Forget handles and what was learned of the devices."""
        self._handles: dict[str, Any] = {}
        self._without: set[tuple[str, str]] = set()
        self._failed: dict[tuple[str, str], int] = {}

    def reset_after_fork(self) -> None:
        """Begin anew: the parent's session is the parent's, and the thread that held the lock is not here."""
        self.lock = threading.RLock()
        self._users = 0
        self._module = None
        self.renew()

    def acquire(self) -> str:
        """Open NVML for one more user; an empty string, or why it cannot be opened (then nothing is held)."""
        with self.lock:
            try:
                import pynvml
            except ImportError as error:
                return f"pynvml cannot be imported: {error}"
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                return f"no NVIDIA driver: {error}"
            self._module = pynvml
            self._users += 1
            return ""

    def release(self) -> None:
        """Give back what `acquire` has opened."""
        with self.lock:
            if not self._users:  # acquired by the parent of this process
                return
            self._users -= 1
            with contextlib.suppress(self._module.NVMLError):  # somebody else has shut it down before
                self._module.nvmlShutdown()
            if not self._users:
                self.renew()

    def ask(self, uuid: str, name: str, *arguments: Any) -> Any:
        """The value of `pynvml.<name>(handle of the device, *arguments)`; None when the driver has none, now or ever.

        Raises:
            Lost: when the device is gone.
        """
        if (uuid, name) in self._without:
            return None
        return self._tried(uuid, name, arguments, again=True)

    def without(self, uuid: str, name: str) -> bool:
        """Whether the driver is known to refuse this question for this device."""
        return (uuid, name) in self._without

    def call(self, name: str, *arguments: Any) -> Any:
        """A function that is not about one device; the driver's errors reach the caller, a missing one is an AttributeError."""
        return getattr(self._module, name)(*arguments)

    @property
    def module(self) -> Any:
        """The `pynvml` that is open: its constants and structures."""
        return self._module

    def adopt(self, uuid: str, handle: Any) -> None:
        """Keep a handle that enumeration has found."""
        self._handles[uuid] = handle

    def _handle(self, uuid: str) -> Any:
        found = self._handles.get(uuid)
        if found is None:
            found = self._handles[uuid] = self._module.nvmlDeviceGetHandleByUUID(uuid)
        return found

    def _tried(self, uuid: str, name: str, arguments: tuple[Any, ...], *, again: bool) -> Any:
        function = getattr(self._module, name, None)
        if function is None:
            return self._remember(uuid, name, "this pynvml has no such function")
        try:
            value = function(self._handle(uuid), *arguments)
        except self._module.NVMLError as error:
            return self._after(error, uuid, name, arguments, again)
        self._failed.pop((uuid, name), None)
        return value

    def _after(self, error: Exception, uuid: str, name: str, arguments: tuple[Any, ...], again: bool) -> Any:
        meaning = _MEANING.get(getattr(error, "value", -1), "")
        if meaning == "lost":
            raise Lost(f"{uuid}: {error}") from error
        if meaning == "never":
            return self._remember(uuid, name, str(error))
        if meaning in {"reopen", "refresh"} and again and self._reopened(meaning):
            return self._tried(uuid, name, arguments, again=False)
        if meaning != "nothing":
            failed = self._failed[uuid, name] = self._failed.get((uuid, name), 0) + 1
            if failed >= _PATIENCE:
                return self._remember(uuid, name, str(error))
        return None

    def _reopened(self, meaning: str) -> bool:
        self._handles.clear()
        if meaning == "refresh":
            return True
        try:
            self._module.nvmlInit()
        except self._module.NVMLError:
            return False
        return True

    def _remember(self, uuid: str, name: str, why: str) -> None:
        self._without.add((uuid, name))
        _log.debug("aifinops: %s is not asked again of %s: %s", name, uuid, why)


session = Nvml()
"""The one of this process."""


def _before_fork() -> None:
    # pynvml has a lock of its own: a child of a fork in the middle of a call would wait for it for ever. A driver that hangs may hold ours:
    # then the fork goes on without it.
    _forking.held = session.lock.acquire(timeout=1.0)


def _after_fork_in_parent() -> None:
    if _forking.held:
        session.lock.release()


class _Forking(threading.local):
    held = False


_forking = _Forking()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=session.reset_after_fork
    )
    known(session.reset_after_fork)
