"""Switches metering on in this process, then hands over to the `sitecustomize` that would have been loaded without this one.

It is loaded by every Python below `aifinops run`, perhaps an old one, or one of an environment without aifinops: nothing here may
need either.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _hand_over() -> None:
    here = __file__.rpartition("/")[0].rpartition("\\")[0] or __file__.rpartition("/")[0]
    others = [entry for entry in sys.path if entry.rstrip("/\\") != here]
    found = PathFinder.find_spec("sitecustomize", others)
    if found is None or found.loader is None:
        return
    module = sys.modules["sitecustomize"] = module_from_spec(found)
    found.loader.exec_module(module)


try:
    from aifinops.integrations.auto import start
except ImportError:
    start = None  # type: ignore[assignment]
if start is not None:
    start()
_hand_over()
