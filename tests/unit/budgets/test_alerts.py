"""Alerts: what they say, that they get through, and that no call ever waits for them."""

from __future__ import annotations

import json
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from aifinops import errors, runtime
from aifinops.budgets.alerts import Alert, Alerts, Email, PermanentError, Webhook, sinks
from aifinops.budgets.guard import SoftLimit
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError

RESETS = to_ns(datetime(2026, 12, 1, tzinfo=UTC))
SOFT = SoftLimit("search", "USD", Decimal("0.8"), Decimal(50), Decimal("40.01"), RESETS)
FAST = (0.01, 0.01, 0.01)


class Hook(ThreadingHTTPServer):
    """A receiver on loopback: what it was posted, and with which status codes it answers in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.bodies: list[dict[str, Any]] = []
        self.codes: list[int] = []
        self.wait = threading.Event()
        self.wait.set()
        self.url = f"http://127.0.0.1:{self.server_port}/services/secret"


class Receiver(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.wait.wait(10)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == 200:
            self.server.bodies.append(json.loads(body))
        self.send_response(code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.wait.set()
        server.shutdown()
        thread.join()


class Post(socketserver.ThreadingTCPServer):
    """An SMTP server on loopback, as far as one letter needs it (RFC 5321)."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Clerk)
        self.letters: list[tuple[str, list[str], bytes]] = []
        self.refuse = b""
        self.url = f"smtp://127.0.0.1:{self.server_address[1]}?from=finops@example.com"


class Clerk(socketserver.StreamRequestHandler):
    ANSWERS: ClassVar = {b"EHLO": b"250 loopback", b"HELO": b"250 loopback", b"RSET": b"250 ok", b"NOOP": b"250 ok"}

    def handle(self) -> None:
        server: Any = self.server
        sender, receivers = "", []
        self.say(b"220 loopback")
        while line := self.rfile.readline().rstrip(b"\r\n"):
            word = line[:4].upper()
            if word == b"MAIL":
                sender = line.decode().partition("<")[2].partition(">")[0]
                self.say(b"250 ok")
            elif word == b"RCPT":
                receivers.append(line.decode().partition("<")[2].partition(">")[0])
                self.say(server.refuse or b"250 ok")
            elif word == b"DATA":
                self.say(b"354 go on")
                letter = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    letter += part
                server.letters.append((sender, receivers, letter))
                self.say(b"250 ok")
            elif word == b"QUIT":
                self.say(b"221 bye")
                return
            else:
                self.say(self.ANSWERS.get(word, b"502 no"))

    def say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")


@pytest.fixture
def post() -> Iterator[Post]:
    with Post() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# --- what they say -------------------------------------------------------------------------------------------------------


def test_an_alert_is_a_sentence_and_exact_fields() -> None:
    """Money as people write it in the one, as exact text in the other; what is not known is not there."""
    alert = Alert.of_soft(SOFT)
    assert (
        alert.text
        == "Budget 'search' has reached 80 % of its limit: $40.01 of $50.00 spent. It resets at 2026-12-01 00:00 UTC."
    )
    assert alert.fields() == {
        "kind": "soft", "budget": "search", "unit": "USD", "limit": "50", "spent": "40.01", "share": "0.8", "resets_at": "2026-12-01T00:00:00+00:00",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("alert", "text"),
    [
        (
            Alert("overrun", "x", "USD", amount=Decimal("0.05")),
            "Budget 'x' has a call that cost $0.0500 more than was held for it.",
        ),
        (
            Alert("forfeit", "x", "tokens", Decimal(1000), Decimal(600), amount=Decimal("200.000000")),
            "Budget 'x' has lost track of 200 tokens: their holder vanished, so they count as spent; 600 tokens of 1,000 tokens spent.",
        ),
        (
            Alert("forecast", "x", "EUR", Decimal(10), Decimal(4), amount=Decimal(22), seconds=7300.0),
            (
                "Budget 'x' will not last: at this rate €22.00 are spent at the end of its window, and the limit is reached in 2 hours; "
                "€4.00 of €10.00 spent."
            ),
        ),
    ],
)
def test_each_kind_has_its_sentence(alert: Alert, text: str) -> None:
    """Overrun, forfeit and forecast."""
    assert alert.text == text


# --- webhooks ------------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_text_and_fields(hook: Hook) -> None:
    """The body that Slack takes, with everything else beside it."""
    alerts = Alerts([Webhook(hook.url)])
    alerts.soft(SOFT)
    assert alerts.flush(5)
    (body,) = hook.bodies
    assert body == {"text": Alert.of_soft(SOFT).text, **Alert.of_soft(SOFT).fields()}
    alerts.close()


def test_a_webhook_that_fails_is_asked_again(hook: Hook) -> None:
    """500, 429 and 503 are tried again; the alert arrives once."""
    hook.codes = [500, 429, 503]
    alerts = Alerts([Webhook(hook.url)], pauses=FAST)
    alerts.soft(SOFT)
    assert alerts.flush(5)
    assert (len(hook.bodies), alerts.lost) == (1, 0)
    alerts.close()


@pytest.mark.parametrize(("codes", "asked"), [([404], 1), ([500] * 9, 4)])
def test_what_does_not_get_through_is_counted_and_logged_once(
    hook: Hook, codes: list[int], asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A no is not asked again, a failure three times; the log has the host and nothing of the path, which is a secret."""
    hook.codes = list(codes)
    alerts = Alerts([Webhook(hook.url)], pauses=FAST)
    with caplog.at_level(logging.WARNING):
        alerts.soft(SOFT)
        assert alerts.flush(5)
        assert len(codes) - len(hook.codes) == asked
        hook.codes = list(codes)
        alerts.soft(SOFT)
        assert alerts.flush(5)
    assert (hook.bodies, alerts.lost) == ([], 2)
    assert caplog.text.count("did not get through to the webhook at 127.0.0.1") == 1
    assert "secret" not in caplog.text
    alerts.close()


def test_nobody_waits_for_a_receiver_that_hangs(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling takes no time; the queue has an end, beyond which alerts are counted as lost."""
    monkeypatch.setattr("aifinops.budgets.alerts._QUEUE_MOST", 5)
    hook.wait.clear()
    alerts = Alerts([Webhook(hook.url, timeout_s=5)])
    begun = time.monotonic()
    for _ in range(20):
        alerts.soft(SOFT)
    assert not alerts.flush(0.05)
    assert time.monotonic() - begun < 0.5
    assert 14 <= alerts.lost <= 15
    hook.wait.set()
    assert alerts.flush(10)
    assert len(hook.bodies) == 20 - alerts.lost
    alerts.close()


def test_a_host_that_is_not_there_is_no_matter() -> None:
    """Refused at once, tried again, given up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alerts = Alerts([Webhook(f"http://127.0.0.1:{port}/")], pauses=FAST)
    alerts.soft(SOFT)
    assert alerts.flush(5)
    assert alerts.lost == 1
    alerts.close()


# --- mail ----------------------------------------------------------------------------------------------------------------


def test_mail_is_sent(post: Post) -> None:
    """Sender, receivers, subject, and the sentence with the fields below."""
    alerts = Alerts(sinks(["mailto:team@example.com,boss@example.com"], post.url))
    alerts.soft(SOFT)
    assert alerts.flush(5)
    ((sender, receivers, letter),) = post.letters
    assert (sender, receivers) == ("finops@example.com", ["team@example.com", "boss@example.com"])
    message = message_from_bytes(letter)
    assert message["Subject"] == "aifinops: soft of budget search"
    assert message["To"] == "team@example.com, boss@example.com"
    text = message.get_payload(decode=True).decode()  # type: ignore[union-attr]
    assert text.startswith("Budget 'search' has reached 80 %")
    assert "spent: 40.01" in text
    alerts.close()


def test_mail_that_the_server_does_not_want_is_given_up(post: Post) -> None:
    """An unknown receiver is not asked again."""
    post.refuse = b"550 nobody"
    alerts = Alerts(sinks(["mailto:nobody@example.com"], post.url), pauses=FAST)
    alerts.soft(SOFT)
    assert alerts.flush(5)
    assert (post.letters, alerts.lost) == ([], 1)
    alerts.close()


def test_a_password_is_not_sent_in_the_clear(post: Post) -> None:
    """Where the server has no TLS nothing is sent."""
    mail = Email(["team@example.com"], post.url.replace("smtp://", "smtp://ann:secret@"))
    with pytest.raises(PermanentError, match="no TLS"):
        mail.deliver(Alert.of_soft(SOFT))


# --- callables, threads, forks -------------------------------------------------------------------------------------------


def test_a_callable_is_called_where_it_happens_and_may_fail() -> None:
    """The next one is told all the same."""
    errors.reraise_failures(False)
    told: list[Alert] = []

    def broken(alert: Alert) -> None:
        raise RuntimeError

    alerts = Alerts([broken, told.append])
    alerts.soft(SOFT)
    assert told == [Alert.of_soft(SOFT)]
    assert errors.failures() == {"budgets.alerts": 1}


def test_a_forked_child_has_a_thread_of_its_own(hook: Hook) -> None:
    """What waits in the parent is delivered by the parent, once."""
    hook.wait.clear()
    alerts = Alerts([Webhook(hook.url)])
    alerts.soft(SOFT)
    alerts.soft(SOFT)
    child = os.fork()
    if child == 0:
        alerts.reset_after_fork()
        os._exit(0 if alerts.flush(1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    hook.wait.set()
    assert alerts.flush(5)
    assert len(hook.bodies) == 2
    alerts.close()


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alerts": ["ftp://x/secret"]}, "write a list such as"),
        ({"alerts": [5]}, "write a list such as"),
        ({"alerts": ["http://"]}, "no address of a webhook"),
        ({"alerts": ["mailto:a@b.example"]}, "needs a server"),
        ({"alerts": ["mailto:nobody"], "smtp": "smtp://host"}, "needs an address"),
        ({"alerts": ["mailto:a@b.example"], "smtp": "http://ann:secret@host"}, "smtp must be such as"),
    ],
)
def test_what_is_wrong_says_what_to_type(settings: dict[str, Any], message: str) -> None:
    """At `init()`, without repeating what may be a secret."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        runtime.init(**settings)
    assert "secret" not in str(caught.value)


def test_alerts_come_from_the_settings(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment here; a soft limit of a real budget arrives."""
    import aifinops as af

    monkeypatch.setenv("AIFINOPS_ALERTS", hook.url)
    with af.budget("$1", soft=(0.5,)):
        af.record(cost="$0.60")
    assert af.flush()
    (body,) = hook.bodies
    assert (body["kind"], body["share"], body["spent"]) == ("soft", "0.5", "0.6")


def test_alerts_are_events_of_telemetry() -> None:
    """On the span that is open, else on a span of their own."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from aifinops.telemetry import events

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        with provider.get_tracer("app").start_as_current_span("work"):
            events.alert({"kind": "soft", "budget": "search"}, "Budget")
        events.alert({"kind": "soft", "budget": "search"}, "Budget")
    work, alone = exporter.get_finished_spans()
    (event,) = work.events
    expected = {"aifinops.budget.kind": "soft", "aifinops.budget.budget": "search", "aifinops.budget.text": "Budget"}
    assert (event.name, dict(event.attributes or {})) == ("aifinops.budget.alert", expected)
    assert (alone.name, dict(alone.attributes or {})) == ("aifinops.budget.alert", expected)
    provider.shutdown()
