"""A forked child's metrics begin at zero, in the SDK too.

A child has a copy of what the SDK has added up in its parent. Histograms and cumulative sums would be exported by every child once more, and the
first delta of an observable counter, which is what is read less what was read before the fork, would be negative. So the SDK is made to forget
our instruments; it makes their places anew at the next point. Locks that another thread of the parent held at the fork, because it was
collecting or exporting, are held for ever in the child; they are made anew as well, else the child would hang when it ends.

The inside of the SDK is touched only where it is what we know. `tests/unit/telemetry/test_afresh.py` holds it, and `nox -s minimums` does with
the oldest SDK.
"""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["begin_afresh", "renew_connections"]


def begin_afresh(provider: Any, scope: str) -> bool:
    """In a forked child, before any other thread runs: forget what the parent has measured.

    Args:
        provider: the meter provider. scope: name of the meters whose instruments begin at zero.

    Returns:
        False when this is not the SDK as we know it: the parent's sums may be exported again then.
    """
    try:
        consumer = provider._measurement_consumer
        storages = list(consumer._reader_storages.items())
        places = [storage._instrument_view_instrument_matches for _, storage in storages]
        owners = [[one for one in known if one.instrumentation_scope.name == scope] for known in places]
    except AttributeError:  # another SDK, or one whose inside has moved
        return False
    consumer._lock = threading.Lock()
    for (reader, storage), known, own in zip(storages, places, owners, strict=True):
        storage._lock = threading.RLock()
        if hasattr(reader, "_export_lock"):
            reader._export_lock = threading.Lock()
        for instrument in own:
            del known[instrument]
    return True


def renew_connections(exporter: Any) -> bool:
    """In a forked child: the OTLP/HTTP exporter of the SDK opens connections of its own instead of writing on those of its parent.

    Args:
        exporter: any. Only one that keeps a `requests.Session`, itself or in its client, is touched.

    Returns:
        False when no session was found.
    """
    client = getattr(exporter, "_client", None)
    holders: tuple[Any, ...] = (exporter, client, getattr(client, "_transport", None))
    sessions = [holder._session for holder in holders if hasattr(getattr(holder, "_session", None), "adapters")]
    for session in sessions:
        for adapter in session.adapters.values():
            adapter.__setstate__(adapter.__getstate__())  # as unpickling does: the same settings, and an empty pool
    return bool(sessions)
