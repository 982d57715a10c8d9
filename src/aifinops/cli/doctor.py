"""`aifinops doctor`: looks at everything that a metered call needs, and makes one."""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from urllib.parse import urlsplit

from aifinops import _version, config
from aifinops.clock import to_datetime
from aifinops.errors import AIFinOpsError, ConfigurationError, failures

__all__ = ["Finding", "address_of", "examine", "reachable"]

CONNECT_S = 1.0
"""The most that looking for the collector may take, in seconds."""

_PORTS = {"http/protobuf": 4318, "grpc": 4317}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: about what, how good it is (`note` is neither), and the finding."""

    subject: str
    status: Literal["good", "note", "bad"]
    text: str


def examine(ledger: str | None = None) -> list[Finding]:
    """Look at everything; what is broken is a finding, not an error.

    Args:
        ledger: the ledger to look at in place of the one in the settings.
    """
    found = [
        Finding(
            "aifinops", "note", f"{_version.__version__}, Python {platform.python_version()}, {platform.platform()}"
        )
    ]
    try:
        settings = config.load({"ledger": ledger})
    except ConfigurationError as error:
        return [*found, Finding("settings", "bad", str(error))]
    found += _settings(settings)
    steps: tuple[Callable[[config.Config], Iterator[Finding]], ...] = (
        _libraries,
        _ledger,
        _spools,
        _prices,
        _exporter,
        _gpus,
    )
    for step in steps:
        found += step(settings)
    return [*found, *_failures()]


def _settings(settings: config.Config) -> Iterator[Finding]:
    places = sorted(set(settings.origin.values()))
    text = (
        ", ".join(f"{name} from {place}" for name, place in sorted(settings.origin.items()))
        if places
        else "all default"
    )
    yield Finding("settings", "note", text)
    if not settings.enabled:
        yield Finding("settings", "bad", "enabled is false: nothing is metered and no budget holds")


# --- client libraries -------------------------------------------------------------------------------------------------


def _libraries(settings: config.Config) -> Iterator[Finding]:
    from aifinops.integrations import registry

    for name in registry.PROVIDERS:
        row = registry.provider(name)
        try:
            installed = version(row.package)
        except PackageNotFoundError:
            yield Finding(name, "note", f"not installed (pip install {row.package})")
            continue
        if _parts(installed) < _parts(row.minimum):
            yield Finding(name, "bad", f"{installed} is older than {row.minimum}, the lowest that is tested")
            continue
        yield _tried(name, row.module, installed)


def _parts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _tried(name: str, module: str, installed: str) -> Finding:
    """Instrument the library and make one call with its real client to a server of our own, on the loopback interface."""
    trial = _TRIALS.get(name)
    if trial is None or importlib.util.find_spec(module) is None:
        return Finding(name, "note", f"{installed} installed")
    try:
        with _trial_runtime():
            charges = trial()
    except Exception as error:  # whatever is wrong here is what the doctor was asked for
        return Finding(name, "bad", f"{installed}: a trial call failed with {type(error).__name__}: {error}")
    if charges != 1:
        return Finding(name, "bad", f"{installed}: a trial call was recorded {charges} times instead of once")
    return Finding(
        name, "good", f"{installed}: af.instrument() meters it (a trial call on 127.0.0.1 was recorded once)"
    )


@contextmanager
def _trial_runtime() -> Iterator[None]:
    # The trial must not reach the user's ledger, budgets or collector.
    from aifinops import runtime
    from aifinops.integrations import uninstrument

    before = os.environ.get("OTEL_SDK_DISABLED")
    os.environ["OTEL_SDK_DISABLED"] = "true"
    try:
        runtime.init(ledger="memory", budgets=[], spans="off", enabled=True)
        yield
    finally:
        uninstrument()
        runtime.reset()
        if before is None:
            del os.environ["OTEL_SDK_DISABLED"]
        else:
            os.environ["OTEL_SDK_DISABLED"] = before


def _try_openai() -> int:
    from aifinops.integrations import instrument
    from aifinops.testing import FakeProvider, capture_charges

    instrument("openai")
    import openai

    with (
        FakeProvider() as server,
        openai.OpenAI(base_url=server.base_url, api_key="trial") as client,
        capture_charges() as charges,
    ):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Are you well?"}])
    return len(charges)


_TRIALS: Mapping[str, Callable[[], int]] = {"openai": _try_openai}


# --- engines ----------------------------------------------------------------------------------------------------------


def _ledger(settings: config.Config) -> Iterator[Finding]:
    from aifinops.ledger import default_path, open_ledger

    if settings.ledger is None and not default_path().exists():
        yield Finding("ledger", "note", f"none yet; the first charge makes {default_path()}")
        return
    try:
        book = open_ledger(settings.ledger, create=False)
        try:
            info = book.info()
        finally:
            book.close()
    except AIFinOpsError as error:
        yield Finding("ledger", "bad", str(error))
        return
    span = f", last entry {to_datetime(info.last_at):%Y-%m-%d %H:%M} UTC" if info.last_at is not None else ""
    size = f", {info.size_bytes:,} bytes" if info.size_bytes else ""
    text = f"{info.location} ({info.kind}, schema {info.schema}): {info.entries:,} entries{size}{span}"
    if info.kind == "otlp":
        text = f"{info.location}: charges are sent there and cannot be asked for here"
    yield Finding("ledger", "good", text)


def _spools(settings: config.Config) -> Iterator[Finding]:
    """What is on its way to ledgers elsewhere, and what those have refused."""
    from aifinops.ledger import spool_of
    from aifinops.ledger.spool import quarantined, waiting

    for where in (settings.ledger, settings.copy_to):
        try:
            folder = None if where is None else spool_of(where, settings.spool)
            if folder is None:
                continue
            count, refused = waiting(folder), sum(1 for _ in quarantined(folder))
        except (AIFinOpsError, OSError) as error:
            yield Finding("spool", "bad", str(error))
            continue
        text = f"{count:,} charges wait in {folder}"
        if refused:
            text += f"; {refused:,} were refused and are in quarantine.jsonl there"
        yield Finding("spool", "bad" if refused else "good", text)


def _prices(settings: config.Config) -> Iterator[Finding]:
    from pathlib import Path

    from aifinops.pricing import refresh
    from aifinops.pricing.lists import bundled_lists, from_file

    try:
        own = [from_file(Path(path)) for path in settings.prices]
        lists = [*own, refresh.current(refresh.folder(settings.price_folder)), *bundled_lists()[1:]]
    except AIFinOpsError as error:
        yield Finding("prices", "bad", str(error))
        return
    for one in lists:
        day = one.date.isoformat() if one.date else "no date"
        yield Finding("prices", "good", f"{one.id} {one.version} of {day}: {one.count:,} models ({one.source})")


def _exporter(settings: config.Config) -> Iterator[Finding]:
    from aifinops.telemetry.setup import endpoint

    target = endpoint(settings.otlp)
    if target is None:
        yield Finding(
            "exporter", "note", "no endpoint: nothing is sent (set OTEL_EXPORTER_OTLP_ENDPOINT or init(otlp=...))"
        )
        return
    try:
        problem = reachable(target)
    except ConfigurationError as error:
        problem = str(error)
    if problem:
        yield Finding("exporter", "bad", problem)
    else:
        yield Finding("exporter", "good", f"{target} accepts connections")


def address_of(endpoint: str, environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of an OTLP endpoint; without a port, that of the scheme or of the protocol.

    Raises:
        ConfigurationError: for a text that has no host or a wrong port.
    """
    parts = urlsplit(endpoint)
    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if "://" not in endpoint or not parts.hostname or port == 0:
        raise ConfigurationError(f"OTLP endpoint {endpoint!r} is no URL; write http://localhost:4318")
    return parts.hostname, port or (443 if parts.scheme == "https" else _PORTS.get(protocol, 4318))


def reachable(endpoint: str, timeout_s: float = CONNECT_S) -> str:
    """Why nothing answers at an OTLP endpoint; empty when a connection was made within `timeout_s` seconds.

    Raises:
        ConfigurationError: see `address_of`.
    """
    host, port = address_of(endpoint)
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return ""
    except OSError as error:
        return f"nothing answers at {host}:{port} ({error.strerror or error}); is a collector running there?"


def _gpus(settings: config.Config) -> Iterator[Finding]:
    from aifinops.gpu.devices import inventory, visible

    seen = inventory()
    if not seen.devices:
        yield Finding("GPUs", "note", f"none seen ({seen.reason})")
        return
    mine = {device.uuid for device in visible(seen.devices)}
    for device in seen.devices:
        memory = f", {device.memory / 2**30:.0f} GiB" if device.memory else ""
        hidden = "" if device.uuid in mine else " (hidden from this process)"
        part = f", a slice of {device.share:.0%}" if device.parent else ""
        yield Finding("GPUs", "good", f"{device.index}: {device.name}{part}{memory}, driver {seen.driver}{hidden}")
    if seen.reason:  # a device that has fallen off
        yield Finding("GPUs", "bad", seen.reason)


def _failures() -> Iterator[Finding]:
    counts = failures()
    if not counts:
        yield Finding("failures", "good", "none of our own in this process")
    for place, count in sorted(counts.items()):
        yield Finding("failures", "bad", f"{place}: {count}")
