"""The ledger over OTLP: charges as log records and back, and what the answers of a receiver mean."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger.otlp import (
    EVENT,
    OtlpLedger,
    Refused,
    attributes_of,
    charge_of_attributes,
    charges_of,
    endpoint_of,
    export_request,
)
from aifinops.ledger.spool import PartlyRefused, Spooled, quarantined
from aifinops.testing.ledger import example_charge, random_charges

PLAIN = Charge(id="0" * 32, at=0, provider="", operation="", model="", service="", currency="")
ODD = [
    PLAIN,
    example_charge(1, at=2**64 - 1, amount=2**63 - 1, lower=-(2**63), upper=2**70, duration=2**65),
    example_charge(
        2, quantities={"input_tokens": 2**70, "output_tokens": Decimal("1E-30"), "gpu_seconds": Decimal("3599.5")}
    ),
    example_charge(
        3,
        raw={},
        lines=(),
        tags={"team": "", "odd": "a\"b'c\\d\n\0é😀"},
        model="a\n\0é😀",
        price_id="",
        price_source=None,
    ),
    example_charge(4, lines=(("input_tokens", 2**66), ("input_tokens", -1)), trace_id="not hex", span_id="AB"),
    example_charge(5, amount=None, basis="unknown", lower=None, upper=None, trace_id="", span_id=""),
]


def forms(charges: list[Charge]) -> Iterator[Any]:
    """Every form in which the same records may come back."""
    request = export_request(
        charges, lambda _: {"gen_ai.request.model": "x", "list": ["a", 1]}, {"service.name": "shop"}
    )
    yield request
    yield request.SerializeToString()
    of_protobuf = MessageToDict(request)  # ids in base64
    yield of_protobuf
    specified = json.loads(json.dumps(of_protobuf))  # ids in hex
    for record in specified["resourceLogs"][0]["scopeLogs"][0]["logRecords"]:
        for name in {"traceId", "spanId"} & record.keys():
            record[name] = base64.b64decode(record[name]).hex().upper()
    yield specified
    yield json.dumps(specified)
    yield json.dumps(specified).encode()


@settings(max_examples=30)
@given(st.integers(0, 10**9))
def test_charges_come_back_as_they_were(seed: int) -> None:
    """Of every kind, in every form of OTLP: equal, to the nano-unit and the last digit of a quantity."""
    charges = random_charges(seed, 6)
    for form in forms(charges):
        assert list(charges_of(form)) == charges


def test_odd_charges_come_back_as_they_were() -> None:
    """Empty texts, numbers beyond 64 bits, controls in names, ids that are no hex."""
    for form in forms(ODD):
        found = list(charges_of(form))
        assert found == ODD
        assert [type(value) for charge in found for value in charge.quantities.values()] == [
            type(value) for charge in ODD for value in charge.quantities.values()
        ]


def test_a_database_that_keeps_attributes_as_text_has_the_whole_charge() -> None:
    """ClickHouse's tables of logs hold a map of texts."""
    for charge in (*ODD, *random_charges(7, 50)):
        texts = {name: {True: "true"}.get(value, str(value)) if isinstance(value, bool) else str(value) for name, value in attributes_of(charge).items()}  # fmt: skip
        assert charge_of_attributes(charge.at, texts, charge.trace_id, charge.span_id) == charge


def test_the_record_is_as_the_contract_says() -> None:
    """Name, severity, times, ids, no body; the attributes of the span beside those that hold the charge."""
    charge = example_charge(1)
    request = export_request(
        [charge], lambda one: {"gen_ai.request.model": one.model}, {"service.name": "shop"}, "https://x/1"
    )
    (logs,) = request.resource_logs[0].scope_logs
    (record,) = logs.log_records
    assert (logs.scope.name, logs.schema_url) == ("aifinops", "https://x/1")
    assert request.resource_logs[0].resource.attributes[0].value.string_value == "shop"
    assert (record.severity_number, record.severity_text) == (9, "INFO")
    assert bytes([12 << 3 | 2, len(EVENT)]) + EVENT.encode() in record.SerializeToString()
    assert getattr(record, "event_name", EVENT) == EVENT  # the oldest messages do not know the field
    assert not record.HasField("body")
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (charge.at, charge.at + charge.duration)
    assert (record.trace_id.hex(), record.span_id.hex()) == (charge.trace_id, charge.span_id)
    found = {one.key: one.value for one in record.attributes}
    assert found["aifinops.record.id"].string_value == charge.id
    assert found["aifinops.record.amount"].int_value == 350_500
    assert found["aifinops.record.quantity.input_tokens"].int_value == 900
    assert found["aifinops.record.tag.x.y-z"].string_value == "dotted"
    assert found["gen_ai.request.model"].string_value == "gpt-5-mini"


def test_text_without_a_utf8_form_is_sent_with_question_marks() -> None:
    """As in every other ledger."""
    charge = example_charge(1, model="half \ud83d", tags={"team": "\udc00"})
    (found,) = charges_of(export_request([charge]))
    assert found == replace(charge, model="half ?", tags={"team": "?"})


def test_records_of_others_are_passed_over_and_broken_ones_are_told() -> None:
    """One that is ours and is no whole charge stops the reading, or is told to whoever wants to go on."""
    request = export_request([example_charge(number) for number in range(3)])
    records = request.resource_logs[0].scope_logs[0].log_records
    records[0].attributes.pop(0)
    next(one for one in records[1].attributes if one.key.endswith(".amount")).value.string_value = "much"
    errors: list[ValueError] = []
    assert list(charges_of(request, errors.append)) == [example_charge(2)]
    assert "is no whole charge" in str(errors[0])
    with pytest.raises(ValueError, match="is no whole charge"):
        list(charges_of(request))
    for nothing in ({}, "{}", b"\xff\xff\xff"):
        with pytest.raises(ValueError, match="no OTLP logs"):
            list(charges_of(nothing))


@pytest.mark.parametrize(
    ("where", "address"),
    [
        ("otlp://collector", "http://collector:4318/v1/logs"),
        ("otlp://collector:80/", "http://collector:80/v1/logs"),
        ("otlps://host", "https://host/v1/logs"),
        ("otlp+https://gateway.example.com/otlp", "https://gateway.example.com/otlp/v1/logs"),
        ("otlp+http://[::1]:9/v1/logs", "http://[::1]:9/v1/logs"),
        ("otlp", "http://localhost:4318/v1/logs"),
    ],
)
def test_addresses(where: str, address: str) -> None:
    """Each form and the address that is posted to."""
    assert endpoint_of(where, {}) == address


def test_the_standard_variables_name_the_address() -> None:
    """The one for logs as it is, the one for all signals with the path of logs; gRPC is refused with what to write."""
    assert endpoint_of("otlp", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/"}) == "http://c:1/v1/logs"
    assert endpoint_of("otlp", {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/here"}) == "http://c:1/here"
    with pytest.raises(ConfigurationError, match="otlp://collector:4318"):
        endpoint_of("otlp", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    with pytest.raises(ConfigurationError, match="write http://"):
        endpoint_of("otlp", {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"})


@pytest.mark.parametrize(
    "where", ["otlp:/x", "otlp+ftp://h", "otlp://user:secret@h:port", "otlp://", "otlp://h?x=1", "otlp+http:///v1"]
)
def test_what_is_no_address_is_refused_without_its_password(where: str) -> None:
    """The message says what to write."""
    if where == "otlp://":
        return
    with pytest.raises(ConfigurationError, match="write otlp://") as caught:
        endpoint_of(where, {})
    assert "secret" not in str(caught.value)


class Receiver:
    """Answers as it is told, and keeps what it has taken."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.judge: Any = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                receiver.headers.append((self.path, dict(self.headers)))
                receiver.bodies.append(body)
                status, headers, content = 200, {"content-type": "application/x-protobuf"}, b""
                if receiver.judge is not None:
                    status, headers, content = receiver.judge(list(charges_of(body)))
                elif receiver.answers:
                    status, headers, content = receiver.answers.pop(0)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.where = f"otlp://127.0.0.1:{self.server.server_address[1]}"

    @property
    def charges(self) -> list[Charge]:
        return [charge for body in self.bodies for charge in charges_of(body)]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def ledger(receiver: Receiver) -> Iterator[OtlpLedger]:
    made = OtlpLedger(receiver.where, environ={"OTEL_EXPORTER_OTLP_HEADERS": "x-token=a%20b, api-key = k=v"})
    yield made
    made.close()


def test_charges_are_posted_with_the_headers_of_the_environment(receiver: Receiver, ledger: OtlpLedger) -> None:
    """Protobuf, gzip, to /v1/logs, over one connection."""
    assert ledger.append(example_charge(1))
    assert ledger.append_many([example_charge(2), example_charge(3)]) == 2
    assert receiver.charges == [example_charge(1), example_charge(2), example_charge(3)]
    path, headers = receiver.headers[0]
    lowered = {name.lower(): value for name, value in headers.items()}
    assert path == "/v1/logs"
    assert (lowered["content-type"], lowered["content-encoding"]) == ("application/x-protobuf", "gzip")
    assert (lowered["x-token"], lowered["api-key"]) == ("a b", "k=v")
    assert (ledger.info().kind, ledger.info().entries) == ("otlp", 3)


def test_user_and_password_of_an_address_are_sent_and_not_shown(receiver: Receiver) -> None:
    """As basic authorization; `location` has neither."""
    ledger = OtlpLedger(
        receiver.where.replace("://", "://me:s%20x@"), environ={"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    )
    ledger.append(example_charge(1))
    ledger.close()
    lowered = {name.lower(): value for name, value in receiver.headers[0][1].items()}
    assert base64.b64decode(lowered["authorization"].removeprefix("Basic ")) == b"me:s x"
    assert "content-encoding" not in lowered
    assert "s%20x" not in ledger.location


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (503, {}, None),
        (503, {"retry-after": "7"}, 7.0),
        (429, {"retry-after": "0.5"}, 0.5),
        (502, {}, None),
        (500, {}, None),
        (408, {}, None),
    ],
)
def test_not_now(
    receiver: Receiver, ledger: OtlpLedger, status: int, headers: dict[str, str], wait: float | None
) -> None:
    """It may be sent again, and not before the receiver has said."""
    receiver.answers.append((status, headers, b""))
    with pytest.raises(StoreError, match=str(status)) as caught:
        ledger.append(example_charge(1))
    assert getattr(caught.value, "retry_after_s", None) == wait


def test_a_date_to_come_back_is_a_wait(receiver: Receiver, ledger: OtlpLedger) -> None:
    """`Retry-After` may be a date; one that is past is no wait, and what is neither is none."""
    for text, wanted in (("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None)):
        receiver.answers.append((503, {"retry-after": text}, b""))
        with pytest.raises(StoreError) as caught:
            ledger.append(example_charge(1))
        assert getattr(caught.value, "retry_after_s", None) == wanted


def test_how_things_are_set_up_is_no_fault_of_the_record(receiver: Receiver, ledger: OtlpLedger) -> None:
    """A wrong token or address: what is sent waits, and the message says where to look."""
    for status, hint in ((401, "OTEL_EXPORTER_OTLP_HEADERS"), (404, "at this address"), (302, "elsewhere")):
        receiver.answers.append((status, {"content-type": "text/plain"}, b"no such\ntenant"))
        with pytest.raises(StoreError, match=hint) as caught:
            ledger.append(example_charge(1))
        assert "(no such tenant)" in str(caught.value)


def test_never(receiver: Receiver, ledger: OtlpLedger) -> None:
    """Other answers of 4xx are about the records."""
    receiver.answers += [(400, {}, b""), (400, {}, b"")]
    with pytest.raises(Refused, match="400"):
        ledger.append(example_charge(1))
    with pytest.raises(Refused, match="no form"):
        ledger.append(example_charge(1, at=-1))


def test_a_receiver_that_does_not_know_gzip(receiver: Receiver, ledger: OtlpLedger) -> None:
    """It is asked again without, and from then on."""
    receiver.answers.append((400, {}, b""))
    ledger.append(example_charge(1))
    ledger.append(example_charge(2))
    assert ["Content-Encoding" in headers or "content-encoding" in headers for _, headers in receiver.headers] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("kind", ["application/x-protobuf", "application/json"])
def test_partial_success(receiver: Receiver, ledger: OtlpLedger, kind: str) -> None:
    """How many were refused, and why, in either form of the answer."""
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records, answer.partial_success.error_message = 2, "too old"
    content = answer.SerializeToString() if "protobuf" in kind else json.dumps(MessageToDict(answer)).encode()
    receiver.answers.append((200, {"content-type": kind}, content))
    with pytest.raises(PartlyRefused, match=r"2 charges were refused: .*too old") as caught:
        ledger.append_many([example_charge(number) for number in range(3)])
    assert caught.value.count == 2


def test_an_answer_that_is_no_otlp_is_still_a_yes(receiver: Receiver, ledger: OtlpLedger) -> None:
    """Some receivers answer 200 with a body of their own."""
    for kind, content in (("application/json", b"[]"), ("application/x-protobuf", b"\xff"), ("text/plain", b"OK")):
        receiver.answers.append((200, {"content-type": kind}, content))
        assert ledger.append(example_charge(1))


def test_a_receiver_that_is_not_there(receiver: Receiver) -> None:
    """It is a `StoreError` that names the address."""
    ledger = OtlpLedger("otlp://127.0.0.1:9", environ={})
    with pytest.raises(StoreError, match=r"http://127.0.0.1:9/v1/logs: .*refused"):
        ledger.append(example_charge(1))


def test_a_connection_that_was_closed_meanwhile_costs_nothing(receiver: Receiver, ledger: OtlpLedger) -> None:
    """The receiver has gone to rest and come back, as after a freeze: it is sent on a new connection at once."""
    ledger.append(example_charge(1))
    assert ledger._link._connection is not None
    assert ledger._link._connection.sock is not None
    ledger._link._connection.sock.shutdown(2)
    assert ledger.append(example_charge(2))
    assert receiver.charges == [example_charge(1), example_charge(2)]


def test_a_receiver_answers_no_questions(ledger: OtlpLedger) -> None:
    """And the message says how to have both."""
    for ask in (ledger.rows, ledger.summarize):
        with pytest.raises(StoreError, match="AIFINOPS_COPY_TO"):
            ask()


def test_a_record_that_the_receiver_cannot_stand_stops_nobody(receiver: Receiver, tmp_path: Any) -> None:
    """From the spool: it is told apart by halves, kept in the quarantine, and all others arrive."""

    def judge(charges: list[Charge]) -> tuple[int, dict[str, str], bytes]:
        return (400 if any(charge.response_id == "chatcmpl-7" for charge in charges) else 200), {}, b""

    receiver.judge = judge
    ledger = Spooled(OtlpLedger(receiver.where, environ={}), tmp_path / "spool", every_s=60)
    for number in range(20):
        ledger.enqueue(example_charge(number))
    assert ledger.flush(30)
    ledger.close()
    assert [charge.response_id for _, charge in quarantined(tmp_path / "spool")] == ["chatcmpl-7"]
    assert ledger.spool.refused == 1
    taken = {
        charge.response_id
        for body in receiver.bodies
        if judge(list(charges_of(body)))[0] == 200
        for charge in charges_of(body)
    }
    assert taken == {f"chatcmpl-{number}" for number in range(20) if number != 7}


def test_the_request_is_what_other_programs_read(receiver: Receiver, ledger: OtlpLedger) -> None:
    """The bytes are the protobuf message of the OpenTelemetry project."""
    ledger.append(example_charge(1))
    assert len(ExportLogsServiceRequest.FromString(receiver.bodies[0]).resource_logs[0].scope_logs[0].log_records) == 1
