"""What the machine itself says about where it stands: the firmware's names (a file), and the metadata service of its cloud (the network).

The service is asked only where the firmware says whose machine this is: on any other host its address swallows packets. All of it happens in
a thread with 0.2 s in all, once a process; nothing of an answer is kept but the instance type, the region and the terms.

AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html (version 2, with a token; behind a container's extra
hop it does not answer unless the hop limit is 2). Google: https://cloud.google.com/compute/docs/metadata/overview. Azure:
https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from aifinops.forking import in_child
from aifinops.gpu.where import Place

__all__ = ["BUDGET_S", "DMI", "ask", "firmware", "forget"]

BUDGET_S = 0.2
"""The most that asking may take, in seconds."""

DMI = "/sys/class/dmi/id"
"""Where Linux shows the firmware's names."""

_ADDRESS = "169.254.169.254"
_MOST_BYTES = 65_536
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
"""The chassis tag of every virtual machine of Azure; other Hyper-V machines have the same vendor."""

_AWS_TERMS = {"on-demand": "on_demand", "spot": "spot", "capacity-block": "capacity_block"}
_Get = Callable[[str], str]


def firmware(folder: str | None = None) -> Place:
    """Whose machine this is by its firmware; Amazon's Nitro machines have their instance type for a product name."""
    at = Path(folder or DMI)
    names = {name: _line(at / name) for name in ("sys_vendor", "product_name", "chassis_asset_tag")}
    if names["sys_vendor"] == "Amazon EC2":
        kind = names["product_name"]
        return Place("aws", instance_type=kind if "." in kind else "", confidence="low", source="the firmware")
    if names["product_name"] == "Google Compute Engine":
        return Place("gcp", confidence="low", source="the firmware")
    if names["chassis_asset_tag"] == _AZURE_TAG:
        return Place("azure", confidence="low", source="the firmware")
    return Place()


def _line(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


class _Known:
    """What was asked once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.place: Place | None = None
        self.thread: threading.Thread | None = None


_known = _Known()


def forget() -> None:
    """Ask again next time (for tests, and for a process that was moved)."""
    global _known  # noqa: PLW0603 - one cache a process
    _known = _Known()


in_child(forget)  # the thread and the lock are the parent's


def ask(environ: Mapping[str, str], *, provider: str | None = None, timeout_s: float = BUDGET_S) -> Place:
    """What the metadata service says; an empty place where there is none or it takes too long, and its answer from the next time on.

    Args:
        environ: of the process: `AWS_EC2_METADATA_DISABLED`, `AWS_EC2_METADATA_SERVICE_ENDPOINT` and `GCE_METADATA_HOST` are heeded, as
            the clouds' own libraries do. provider: whose service; default: the one that the firmware names.
        timeout_s: how long to wait.
    """
    known = _known
    with known.lock:
        if known.place is not None:
            return known.place
        thread = known.thread
        if thread is None:
            whose = firmware().provider if provider is None else provider
            if whose not in _SERVICES:
                known.place = Place()
                return known.place
            thread = known.thread = threading.Thread(
                target=_fill, args=(known, whose, dict(environ), timeout_s), name="aifinops-metadata", daemon=True
            )
            thread.start()
    thread.join(timeout_s)
    return known.place or Place()


def _fill(known: _Known, provider: str, environ: Mapping[str, str], timeout_s: float) -> None:
    try:
        known.place = _SERVICES[provider](environ, time.monotonic() + timeout_s)
    except (
        OSError,
        HTTPException,
        ValueError,
        KeyError,
        TypeError,
    ):  # no such service, no answer, or none that we know
        known.place = Place()


class _Service:
    """One connection to the service, which every request shares, and the moment at which all of it must be over."""

    def __init__(self, endpoint: str, ends: float) -> None:
        host = endpoint.partition("://")[2] or endpoint
        self._connection = HTTPConnection(host.rstrip("/"))
        self._ends = ends

    def request(self, path: str, headers: Mapping[str, str], method: str = "GET") -> str:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(path)
        self._connection.timeout = left
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left)
        self._connection.request(method, path, headers=dict(headers))
        answer = self._connection.getresponse()
        text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        return text.strip() if answer.status == 200 else ""

    def close(self) -> None:
        self._connection.close()


def _asked(endpoint: str, ends: float, read: Callable[[_Service], Place]) -> Place:
    service = _Service(endpoint, ends)
    try:
        return read(service)
    finally:
        service.close()


def _aws(environ: Mapping[str, str], ends: float) -> Place:
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return Place()

    def read(service: _Service) -> Place:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = {"X-aws-ec2-metadata-token": service.request("/latest/api/token", ttl, "PUT")}
        kind, region, life = (
            service.request(f"/latest/meta-data/{name}", token)
            for name in ("instance-type", "placement/region", "instance-life-cycle")
        )
        return Place("aws", region, kind, _AWS_TERMS.get(life, ""), "high", "EC2 metadata")

    return _asked(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ADDRESS, ends, read)


def _gcp(environ: Mapping[str, str], ends: float) -> Place:
    def read(service: _Service) -> Place:
        kind, zone, preemptible = (
            service.request(f"/computeMetadata/v1/instance/{name}", {"Metadata-Flavor": "Google"}).rpartition("/")[2]
            for name in ("machine-type", "zone", "scheduling/preemptible")
        )
        term = {"TRUE": "spot", "FALSE": "on_demand"}.get(preemptible, "")
        return Place("gcp", zone.rpartition("-")[0], kind, term, "high", "Google's metadata")

    return _asked(environ.get("GCE_METADATA_HOST") or _ADDRESS, ends, read)


def _azure(environ: Mapping[str, str], ends: float) -> Place:
    def read(service: _Service) -> Place:
        path = "/metadata/instance/compute?api-version=2021-02-01"
        found: dict[str, Any] = json.loads(service.request(path, {"Metadata": "true"}))
        term = "spot" if found.get("priority") in {"Spot", "Low"} else "on_demand"
        return Place("azure", str(found["location"]), str(found["vmSize"]), term, "high", "Azure's metadata")

    # Azure has no variable for it; the name is ours, for tests and for proxies on the machine.
    return _asked(environ.get("AZURE_METADATA_HOST") or _ADDRESS, ends, read)


_SERVICES: Mapping[str, Callable[[Mapping[str, str], float], Place]] = {"aws": _aws, "azure": _azure, "gcp": _gcp}
