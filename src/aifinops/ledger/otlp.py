"""Charges as OpenTelemetry log records: the ledger over OTLP.

One charge is one LogRecord with the event name `aifinops.cost.recorded`, severity INFO, no body and `Charge.at` as its time. Attributes
below `aifinops.record.` hold the whole charge without loss: money in integer nano-units, integers beyond 64 bits and fractions as text.
They are names of ours alone, so that what has been kept can be read again whatever becomes of the semantic conventions. Beside them stand
the attributes of the span of the call, for whoever looks at logs. `charges_of` makes the charges again.

Records are sent as OTLP/HTTP protobuf (https://opentelemetry.io/docs/specs/otlp/#otlphttp) by a client of our own, from the spool: the
batch processor of an SDK drops what its queue cannot hold.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from aifinops._version import __version__
from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError, swallow
from aifinops.ledger.base import Capabilities, Compaction, Group, LedgerInfo, Progress, Query, Verification
from aifinops.ledger.codec import clean_text, dump_json
from aifinops.ledger.spool import PartlyRefused
from aifinops.tags import EMPTY
from aifinops.usage import EMPTY_QUANTITIES, Quantity

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

__all__ = [
    "EVENT",
    "PREFIX",
    "OtlpLedger",
    "Refused",
    "attributes_of",
    "charges_of",
    "endpoint_of",
    "export_request",
    "location_of",
]

EVENT = "aifinops.cost.recorded"
PREFIX = "aifinops.record."

Attributes = Mapping[str, Any]

_INT64 = 1 << 63
_TEXTS = ("provider", "operation", "model", "response_model", "response_id", "service", "tier", "region", "currency", "basis", "status", "error", "corrects")  # fmt: skip
_MAYBE = ("price_id", "price_as_of", "price_source")
_MONEY = ("amount", "lower", "upper")
_TAG, _QUANTITY = f"{PREFIX}tag.", f"{PREFIX}quantity."
_INFO = 9  # https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber


# Field 12 of a LogRecord, `event_name`, as it stands on the wire: the messages of opentelemetry-proto 1.30 do not know it by name yet.
_NAMED = bytes([12 << 3 | 2, len(EVENT)]) + EVENT.encode()


class Refused(ValueError):
    """A receiver says that it will never take these records."""


# --- a charge and its attributes ----------------------------------------------------------------------------------------


def attributes_of(charge: Charge) -> dict[str, str | int | bool]:
    """A charge but for its time and its span, as attributes.

    A field that is empty, and `quantities`, `tags`, `lines` and `raw` where there are none, has no attribute.
    """
    found: dict[str, str | int | bool] = {f"{PREFIX}id": charge.id, f"{PREFIX}duration": _whole(charge.duration)}
    for name in _TEXTS:
        value = getattr(charge, name)
        if value:
            found[PREFIX + name] = value
    for name in _MAYBE:
        value = getattr(charge, name)
        if value is not None:
            found[PREFIX + name] = value
    for name in _MONEY:
        value = getattr(charge, name)
        if value is not None:
            found[PREFIX + name] = _whole(value)
    if charge.stream:
        found[f"{PREFIX}stream"] = True
    for name, quantity in charge.quantities.items():
        found[_QUANTITY + name] = _whole(quantity) if type(quantity) is int else str(quantity)
    for key, tag in charge.tags.items():
        found[_TAG + key] = tag
    if charge.lines:
        found[f"{PREFIX}lines"] = dump_json(charge.lines)
    if charge.raw is not None:
        found[f"{PREFIX}raw"] = dump_json(charge.raw)
    return found


def _whole(value: int) -> int | str:
    return value if -_INT64 <= value < _INT64 else str(value)


def charge_of_attributes(at: int, attributes: Attributes, trace_id: str = "", span_id: str = "") -> Charge:
    """The charge that `attributes_of` made these of.

    Args:
        at: time of the record, nanoseconds. attributes: also such as are all text, as some databases keep them.
        trace_id, span_id: of the record, hex.

    Raises:
        ValueError: for what is no charge of ours.
    """
    given = {name.removeprefix(PREFIX): value for name, value in attributes.items() if name.startswith(PREFIX)}
    try:
        fields: dict[str, Any] = {name: given.get(name, "") for name in _TEXTS}
        fields |= {name: given.get(name) for name in _MAYBE}
        fields |= {name: None if name not in given else int(given[name]) for name in _MONEY}
        return Charge(
            **fields,
            id=given["id"],
            at=at,
            duration=int(given["duration"]),
            trace_id=given.get("trace_id", trace_id),
            span_id=given.get("span_id", span_id),
            stream=given.get("stream", False) in (True, "true"),
            quantities={name: _quantity(value) for name, value in _below(given, "quantity.")} or EMPTY_QUANTITIES,
            tags=dict(_below(given, "tag.")) or EMPTY,
            lines=tuple((meter, amount) for meter, amount in json.loads(given.get("lines", "[]"))),
            raw=None if "raw" not in given else json.loads(given["raw"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"log record {given.get('id', '')!r} is no whole charge: {error!r}") from error


def _below(given: Attributes, prefix: str) -> Iterator[tuple[str, Any]]:
    return ((name.removeprefix(prefix), value) for name, value in given.items() if name.startswith(prefix))


def _quantity(value: Any) -> Quantity:
    if type(value) is int:
        return value
    text = str(value)
    return int(text) if text.removeprefix("-").isdigit() else Decimal(text)


# --- records ------------------------------------------------------------------------------------------------------------


def export_request(
    charges: Iterable[Charge],
    beside: Callable[[Charge], Attributes] | None = None,
    resource: Attributes | None = None,
    schema_url: str = "",
) -> ExportLogsServiceRequest:
    """The request that sends these charges, one record each.

    Args:
        charges: what is to be sent. beside: further attributes of a charge, those of its span. resource: attributes of the process.
        schema_url: of the names that `beside` gives.

    Raises:
        Refused: for a charge with a time that OTLP has no form for.
    """
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    mine = request.resource_logs.add()
    _put(mine.resource.attributes, resource or {})
    logs = mine.scope_logs.add(schema_url=schema_url)
    logs.scope.name, logs.scope.version = "aifinops", __version__
    for charge in charges:
        _add(logs.log_records.add(), charge, beside)
    return request


def _add(record: Any, charge: Charge, beside: Callable[[Charge], Attributes] | None) -> None:
    if not 0 <= charge.at < 1 << 64:
        raise Refused(f"charge {charge.id} is of a time that OTLP has no form for: {charge.at}")
    record.time_unix_nano = charge.at
    record.observed_time_unix_nano = min(charge.at + max(charge.duration, 0), (1 << 64) - 1)
    record.severity_number, record.severity_text = _INFO, "INFO"
    record.MergeFromString(_NAMED)
    attributes: dict[str, Any] = {}
    if beside is not None:
        try:
            attributes.update(beside(charge))
        except Exception as failure:  # what is shown beside it must not keep the charge from arriving
            swallow("ledger.otlp.attributes", failure)
    attributes.update(attributes_of(charge))
    for name, length in (("trace_id", 32), ("span_id", 16)):
        value = getattr(charge, name)
        if len(value) == length and _is_hex(value):
            setattr(record, name, bytes.fromhex(value))
        elif value:
            attributes[PREFIX + name] = value
    _put(record.attributes, attributes)


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in text)


def _put(target: Any, attributes: Attributes) -> None:
    for key, value in attributes.items():
        _set(target.add(key=_utf8(key)).value, value)


def _set(target: Any, value: Any) -> None:
    if isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        target.int_value = value
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, (list, tuple)):
        target.array_value.SetInParent()
        for item in value:
            _set(target.array_value.values.add(), item)
    else:
        target.string_value = _utf8(str(value))


def _utf8(text: str) -> str:
    return text if text.isascii() else clean_text((text,))[0]


# --- reading ------------------------------------------------------------------------------------------------------------


def charges_of(source: Any, on_error: Callable[[ValueError], object] | None = None) -> Iterator[Charge]:
    """The charges in what OTLP carries, in its order; records of others are passed over.

    Args:
        source: an `ExportLogsServiceRequest` or `LogsData`, the bytes of one, or OTLP JSON: a mapping, or its text.
        on_error: told of each record of ours that is no whole charge, and goes on; None raises.

    Raises:
        ValueError: for a record of ours that is no whole charge, and for a source that is no OTLP.
    """
    for record in _records(source):
        attributes = record["attributes"]
        if f"{PREFIX}id" not in attributes:
            continue
        try:
            yield charge_of_attributes(record["at"], attributes, record["trace_id"], record["span_id"])
        except ValueError as error:
            if on_error is None:
                raise
            on_error(error)


def _records(source: Any) -> Iterator[dict[str, Any]]:
    if isinstance(source, (bytes, bytearray)) and not bytes(source[:64]).lstrip().startswith(b"{"):
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        try:
            source = ExportLogsServiceRequest.FromString(bytes(source))
        except Exception as error:  # protobuf has an error class of its own in each of its implementations
            raise ValueError(f"no OTLP logs: {error}") from error
    if isinstance(source, (str, bytes, bytearray)):
        source = json.loads(source)
    if isinstance(source, Mapping):
        yield from _of_json(source)
        return
    for mine in source.resource_logs:
        for logs in mine.scope_logs:
            for record in logs.log_records:
                yield {
                    "at": record.time_unix_nano,
                    "trace_id": record.trace_id.hex(),
                    "span_id": record.span_id.hex(),
                    "attributes": {one.key: _value(one.value) for one in record.attributes},
                }


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


def _of_json(source: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "resourceLogs" not in source:
        raise ValueError("no OTLP logs: there is no resourceLogs in it")
    for mine in source["resourceLogs"]:
        for logs in mine.get("scopeLogs", ()):
            for record in logs.get("logRecords", ()):
                yield {
                    "at": int(record.get("timeUnixNano", 0)),
                    "trace_id": _hex(record.get("traceId", ""), 16),
                    "span_id": _hex(record.get("spanId", ""), 8),
                    "attributes": {
                        one["key"]: _json_value(one.get("value", {})) for one in record.get("attributes", ())
                    },
                }


def _hex(text: str, size: int) -> str:
    """OTLP JSON has ids in hex; protobuf's own JSON form of the same message, which some tools write, in base64."""
    return text.lower() if len(text) in (0, 2 * size) else base64.b64decode(text).hex()


def _json_value(value: Mapping[str, Any]) -> Any:
    if "intValue" in value:
        return int(value["intValue"])
    return next(iter(value.values()), None)


# --- sending ------------------------------------------------------------------------------------------------------------


def endpoint_of(where: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address that records are posted to.

    Args:
        where: `otlp` for the one that the variables `OTEL_EXPORTER_OTLP_LOGS_ENDPOINT` and `OTEL_EXPORTER_OTLP_ENDPOINT` name;
            `otlp://host` (port 4318) and `otlps://host` (port 443); `otlp+http://host:port/path` and `otlp+https://` for any other.

    Raises:
        ConfigurationError: for what is none of these.
    """
    if where in {"otlp", "otlp://"}:
        return _of_environment(environ)
    scheme, _, rest = where.partition("://")
    known = {"otlp": "http", "otlps": "https", "otlp+http": "http", "otlp+https": "https"}
    url = urlsplit(f"{known.get(scheme, '')}://{rest}")
    try:
        port = url.port
    except ValueError:
        port = -1
    if scheme not in known or not url.hostname or port == -1 or url.query or url.fragment:
        raise ConfigurationError(
            f"ledger {_shown(url, scheme)!r}: write otlp://collector:4318, otlps://host, or otlp+https://host/path"
        )
    if port is None and scheme == "otlp":
        url = url._replace(netloc=f"{url.netloc}:4318")
    return _with_path(url.geturl())


def _of_environment(environ: Mapping[str, str]) -> str:
    if environ.get("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http")) == "grpc":
        raise ConfigurationError(
            "the ledger goes over OTLP/HTTP, and OTEL_EXPORTER_OTLP_PROTOCOL is grpc; name its own address: otlp://collector:4318"
        )
    own = environ.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "").strip()
    address = own or _with_path(environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or "http://localhost:4318")
    if not address.startswith(("http://", "https://")) or not urlsplit(address).hostname:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT = {address!r}: write http://collector:4318")
    return address


def _with_path(url: str) -> str:
    return url if url.rstrip("/").endswith("/v1/logs") else f"{url.rstrip('/')}/v1/logs"


def _shown(url: SplitResult, scheme: str) -> str:
    return f"{scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def location_of(where: str, environ: Mapping[str, str] = os.environ) -> str:
    """`endpoint_of` without user and password.

    Raises:
        ConfigurationError: for what is no address.
    """
    url = urlsplit(endpoint_of(where, environ))
    return _shown(url, url.scheme)


def _variable(environ: Mapping[str, str], name: str) -> str:
    """`OTEL_EXPORTER_OTLP_LOGS_<name>`, or what holds for all signals."""
    return (environ.get(f"OTEL_EXPORTER_OTLP_LOGS_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or "").strip()


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    """https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables"""
    found = {}
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS"):
        for part in environ.get(name, "").split(","):
            key, equals, value = part.partition("=")
            if equals and key.strip():
                found[unquote(key.strip()).lower()] = unquote(value.strip())
    return found


_SET_UP = {
    401: "it wants to know who sends: see OTEL_EXPORTER_OTLP_HEADERS",
    403: "it does not let us: see OTEL_EXPORTER_OTLP_HEADERS",
    404: "there is nothing that takes OTLP logs at this address",
    405: "there is nothing that takes OTLP logs at this address",
    407: "a proxy wants to know who sends",
}
"""Answers about how things are set up, not about what was sent: it waits until somebody has mended that."""


class OtlpLedger:
    """Sends charges to an OTLP receiver. It keeps nothing itself, so put it behind a spool (`aifinops.ledger.spool.Spooled`).

    Args:
        where: see `endpoint_of`. beside: further attributes of a charge, those of its span. schema_url: of their names.
        timeout_s: the longest that an answer may take, seconds; default: what `OTEL_EXPORTER_OTLP_TIMEOUT` says, or 10.
        environ: the environment, for headers, certificates and compression.

    Attributes:
        sent: records that were confirmed. requests: how many requests that took.

    Raises:
        ConfigurationError: for an address that is none, and for certificates that cannot be read.
    """

    capabilities = Capabilities(durable=False, shared=True)

    def __init__(
        self,
        where: str,
        *,
        beside: Callable[[Charge], Attributes] | None = None,
        schema_url: str = "",
        timeout_s: float | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        # Loaded now: the thread of the spool must not be loading modules while the process forks.
        import opentelemetry.proto.collector.logs.v1.logs_service_pb2  # noqa: F401
        from opentelemetry.sdk.resources import Resource

        self.endpoint = endpoint_of(where, environ)
        self.sent = self.requests = 0
        self._beside, self._schema_url = beside, schema_url
        self._resource = dict(Resource.create().attributes)
        self._link = _Link(self.endpoint, timeout_s or _timeout(environ), environ)
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        """The address, without secrets."""
        url = urlsplit(self.endpoint)
        return _shown(url, url.scheme)

    def append(self, charge: Charge) -> bool:
        """Send one; True, since a receiver does not say whether it knows an id.

        Raises:
            StoreError: when it does not take it now. Refused: when it never will.
        """
        return self.append_many([charge]) == 1

    def enqueue(self, charge: Charge) -> None:
        """The same as `append`: this ledger has nothing to keep it in."""
        self.append_many([charge])

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Send several in one request; how many were sent, since a receiver does not say which ids it knows.

        Raises:
            StoreError: when it does not take them now; with `retry_after_s` where it says when. Refused: when it never will.
            PartlyRefused: when it took the others.
        """
        if not charges:
            return 0
        request = export_request(charges, self._beside, self._resource, self._schema_url)
        with self._lock:
            answer = self._link.post(request.SerializeToString())
            self.requests += 1
        _judge(answer, self.location, len(charges))
        self.sent += len(charges)
        return len(charges)

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """A receiver cannot be asked.

        Raises:
            StoreError: always.
        """
        self._silent()

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - as above
        """A receiver cannot be asked.

        Raises:
            StoreError: always.
        """
        self._silent()

    def _silent(self) -> NoReturn:
        raise StoreError(
            f"{self.location} takes what is sent and answers no questions. Keep a ledger here and send copies"
            f' (AIFINOPS_COPY_TO="otlp://..." beside AIFINOPS_LEDGER), or ask the database behind the receiver'
        )

    def info(self) -> LedgerInfo:
        """Where to; `entries` are those that this process has sent."""
        return LedgerInfo("otlp", self.location, 1, self.sent, None, None, 0)

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """There is nothing here to compact.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(f"{self.location} is a receiver: compact the database behind it")

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """There is nothing here to look through.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(f"{self.location} is a receiver: verify the database behind it")

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._lock:
            self._link.close()

    def reset_after_fork(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._lock = threading.Lock()
        self._link.abandon()
        self.sent = self.requests = 0


def _timeout(environ: Mapping[str, str]) -> float:
    try:
        return float(_variable(environ, "TIMEOUT") or 10)
    except ValueError:
        raise ConfigurationError("OTEL_EXPORTER_OTLP_TIMEOUT: write seconds, such as 10") from None


def _judge(answer: _Answer, location: str, count: int) -> None:
    """What an answer means, after https://opentelemetry.io/docs/specs/otlp/#otlphttp-response."""
    status = answer.status
    if status < 300:
        rejected, why = _rejected(answer)
        if rejected:
            raise PartlyRefused(min(rejected, count), f"{location}: {why or 'without a reason'}")
        return
    said = f"{location} answered {status} {answer.reason}{_detail(answer)}"
    if status in _SET_UP:
        raise StoreError(f"{said}: {_SET_UP[status]}")
    if 400 <= status < 500 and status not in (408, 425, 429):
        raise Refused(said)
    if status < 400:
        raise StoreError(f"{said}: it is elsewhere, {answer.location or 'it does not say where'}")
    error = StoreError(said)
    if answer.retry_after_s is not None:
        error.retry_after_s = answer.retry_after_s  # type: ignore[attr-defined]  # read by the spool
    raise error


def _detail(answer: _Answer) -> str:
    if "text" not in answer.kind and "json" not in answer.kind:
        return ""
    text = " ".join(answer.body[:200].decode("utf-8", "replace").split())
    return f" ({text})" if text else ""


def _rejected(answer: _Answer) -> tuple[int, str]:
    """How many records of a request that was taken were not, and why."""
    try:
        if "json" in answer.kind:
            partial = json.loads(answer.body or b"{}").get("partialSuccess") or {}
            return int(partial.get("rejectedLogRecords", 0)), str(partial.get("errorMessage", ""))
        if "protobuf" in answer.kind:
            from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

            found = ExportLogsServiceResponse.FromString(answer.body).partial_success
            return found.rejected_log_records, found.error_message
    except Exception:  # some receivers answer 200 with a body of their own, and took it
        return 0, ""
    return 0, ""


class _Answer:
    """Of a request: status, reason, kind and content, and what its headers ask for."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.reason = response.status, response.reason
        self.kind = response.headers.get("content-type", "")
        self.location = response.headers.get("location", "")
        self.retry_after_s = _seconds(response.headers.get("retry-after"))
        self.body = response.read()


def _seconds(text: str | None) -> float | None:
    """`Retry-After`: seconds, or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


class _Link:
    """One connection that is kept open. Not thread-safe."""

    def __init__(self, endpoint: str, timeout_s: float, environ: Mapping[str, str]) -> None:
        self._url = urlsplit(endpoint)
        self._timeout_s = timeout_s
        self._zip = _variable(environ, "COMPRESSION").lower() != "none"
        self._tls = _tls(environ) if self._url.scheme == "https" else None
        self._proxy = _proxy(self._url)
        self._headers = {
            "user-agent": f"aifinops/{__version__}",
            **_headers(environ),
            **_authorization(self._url),
            "content-type": "application/x-protobuf",
        }
        self._connection: http.client.HTTPConnection | None = None

    def post(self, content: bytes) -> _Answer:
        """Post it, compressed unless the other side is known not to understand that.

        Raises:
            StoreError: when there is no answer.
        """
        answer = self._post(gzip.compress(content, 3) if self._zip else content)
        if self._zip and answer.status in (400, 415):  # every receiver should know gzip, and some do not
            self._zip = False
            plain = self._post(content)
            self._zip = plain.status >= 300
            return plain
        return answer

    def _post(self, body: bytes) -> _Answer:
        kept = self._connection is not None
        try:
            try:
                return self._exchange(body)
            except (OSError, http.client.HTTPException) as error:
                if not kept or isinstance(error, TimeoutError):
                    raise
                # The other side may have closed a connection that rested (or this process was frozen): once more on a new one.
                return self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(f"{_shown(self._url, self._url.scheme)}: {str(error) or type(error).__name__}") from error

    def _exchange(self, body: bytes) -> _Answer:
        connection = self._connection or self._connect()
        try:
            headers = {**self._headers, "content-encoding": "gzip"} if self._zip else self._headers
            connection.request("POST", self._target(), body, headers)
            response = connection.getresponse()
            answer = _Answer(response)
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return answer

    def _target(self) -> str:
        path = self._url.path + (f"?{self._url.query}" if self._url.query else "")
        return (
            f"http://{self._url.netloc.rpartition('@')[2]}{path}"
            if self._proxy and self._url.scheme == "http"
            else path
        )

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        place = (self._proxy.hostname or "", self._proxy.port or 80) if self._proxy else (host, port)
        if self._tls is None:
            connection = http.client.HTTPConnection(*place, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(*place, timeout=self._timeout_s, context=self._tls)
            if self._proxy:
                connection.set_tunnel(host, port or 443, _authorization(self._proxy, "proxy-authorization"))
        self._connection = connection
        return connection

    def close(self) -> None:
        """Close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """In a forked child: close the copy of the descriptor and say nothing to the other side."""
        self.close()


def _authorization(url: SplitResult, header: str = "authorization") -> dict[str, str]:
    if not url.username:
        return {}
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return {header: f"Basic {base64.b64encode(pair).decode()}"}


def _proxy(url: SplitResult) -> SplitResult | None:
    from urllib.request import getproxies, proxy_bypass

    host = url.hostname or ""
    found = None if proxy_bypass(host) else getproxies().get(url.scheme)
    return urlsplit(found if "://" in found else f"http://{found}") if found else None


def _tls(environ: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=_variable(environ, "CERTIFICATE") or None)
        certificate = _variable(environ, "CLIENT_CERTIFICATE")
        if certificate:
            context.load_cert_chain(certificate, _variable(environ, "CLIENT_KEY") or None)
    except OSError as error:
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_CERTIFICATE or CLIENT_CERTIFICATE: {error}") from error
    return context
