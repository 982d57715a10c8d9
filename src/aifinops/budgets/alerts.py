"""Alerts: who is told when a budget has spent a share of its limit, is overrun, has lost a holder or will not last, or held devices do nothing.

Callables are called where it happens. Webhooks and mail go through one thread and a queue that has an end: no call ever waits for them, and
what does not get through after some tries is counted and logged once.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from aifinops.budgets.budget import exact, is_currency
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError, swallow
from aifinops.money import format_money

if TYPE_CHECKING:
    from aifinops.budgets.guard import SoftLimit

__all__ = ["Alert", "Alerts", "Email", "Sink", "Webhook", "sinks"]

logger = logging.getLogger("aifinops.budgets")

_QUEUE_MOST, _NAP_S = 1000, 0.01
_TRIES_S = (0.5, 2.0, 8.0)
"""Pauses before the second try, the third and the fourth, seconds."""
_TIMEOUT_S = 5.0
_AGAIN = frozenset({408, 425, 429})
_FORMS = '"https://hooks.example.com/...", "mailto:team@example.com", or in code a callable'
_MAIL = frozenset({"smtp", "smtps"})


@dataclass(frozen=True, slots=True)
class Alert:
    """Something about a budget that somebody wants to know, once in its window.

    Attributes:
        kind: `soft` (a share of the limit is spent), `overrun` (a call cost more than it held), `forfeit` (a holder vanished), `forecast`, or
            `idle`, which is about no budget: devices that a run holds do nothing.
        budget: its name or description. unit: currency code or meter. limit, spent: in that unit; None where it is not known.
        share: of the limit, for `soft`. amount: by how much, for `overrun` and `forfeit`; what is projected, for `forecast`; an hour, for `idle`.
        seconds: until the limit is reached, for `forecast`; how long by now, for `idle`. resets_at: end of the window, nanoseconds since
            the epoch. run, devices: who holds which, for `idle`.
    """

    kind: str
    budget: str
    unit: str
    limit: Decimal | None = None
    spent: Decimal | None = None
    share: Decimal | None = None
    amount: Decimal | None = None
    seconds: float | None = None
    resets_at: int | None = None
    run: str = ""
    devices: tuple[str, ...] = ()

    @classmethod
    def of_soft(cls, event: SoftLimit) -> Alert:
        """The alert that a soft limit is."""
        return cls(
            "soft", event.budget, event.unit, event.limit, event.spent, share=event.share, resets_at=event.resets_at
        )

    @property
    def text(self) -> str:
        """One or two sentences for people."""
        if self.kind == "idle":
            return self._idle()
        resets = f" It resets at {_moment(self.resets_at)}." if self.resets_at else ""
        return f"Budget {self.budget!r} {self._what()}.{resets}"

    def _what(self) -> str:
        spent = f"{_shown(self.spent, self.unit)} of {_shown(self.limit, self.unit)} spent"
        if self.kind == "soft":
            return f"has reached {(self.share or 0) * 100:.0f} % of its limit: {spent}"
        if self.kind == "overrun":
            return f"has a call that cost {_shown(self.amount, self.unit)} more than was held for it"
        if self.kind == "forfeit":
            return f"has lost track of {_shown(self.amount, self.unit)}: their holder vanished, so they count as spent; {spent}"
        return (
            f"will not last: at this rate {_shown(self.amount, self.unit)} are spent at the end of its window, "
            f"and the limit is reached in {_span(self.seconds or 0)}; {spent}"
        )

    def _idle(self) -> str:
        count = "1 device" if len(self.devices) == 1 else f"{len(self.devices)} devices"
        rate = "at a price that is unknown" if self.amount is None else f"at {_shown(self.amount, self.unit)} an hour"
        return f"Run {self.run!r} holds {count} that did nothing for {_span(self.seconds or 0)}, {rate}: {', '.join(self.devices)}."

    @property
    def subject(self) -> str:
        """What it is about, in a few words."""
        return f"idle devices of run {self.run}" if self.kind == "idle" else f"{self.kind} of budget {self.budget}"

    def fields(self) -> dict[str, Any]:
        """Everything that is known, as JSON has it; amounts are texts, so that they stay exact."""
        facts = {
            "kind": self.kind,
            "budget": self.budget or None,
            "unit": self.unit,
            "limit": _text(self.limit),
            "spent": _text(self.spent),
            "share": _text(self.share),
            "amount": _text(self.amount),
            "seconds": None if self.seconds is None else round(self.seconds),
            "resets_at": to_datetime(self.resets_at).isoformat() if self.resets_at else None,
            "run": self.run or None,
            "devices": list(self.devices) or None,
        }
        return {name: value for name, value in facts.items() if value is not None}


def _text(value: Decimal | None) -> str | None:
    return None if value is None else exact(value)


def _shown(value: Decimal | None, unit: str) -> str:
    if value is None:
        return "unknown"
    return format_money(value, unit) if is_currency(unit) else f"{value.normalize():,f} {unit}"


def _moment(at: int) -> str:
    return f"{to_datetime(at):%Y-%m-%d %H:%M} UTC"


def _span(seconds: float) -> str:
    for name, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} seconds"


class Sink(Protocol):
    """What delivers alerts and may take its time."""

    @property
    def name(self) -> str:
        """For the log; without anything secret."""
        ...

    def deliver(self, alert: Alert) -> None:
        """Bring it there.

        Raises:
            OSError: when it did not get through and may later. PermanentError: when it never will.
        """
        ...


class PermanentError(Exception):
    """The receiver has said no; asking again is no use."""


class Webhook:
    """An address that takes JSON by POST: `{"text": ...}`, which Slack and its like show, and all fields of the alert.

    Args:
        url: http or https. Its path may be a secret, so only its host is ever logged. timeout_s: seconds.
    """

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"alerts: {url[:8]!r}... is no address of a webhook; write {_FORMS}")
        self._url = url
        self._timeout_s = timeout_s
        self.name = f"webhook at {parts.hostname}"

    def deliver(self, alert: Alert) -> None:
        """Post it.

        Raises:
            OSError: when it did not get through. PermanentError: when the receiver does not want it.
        """
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        body = json.dumps({"text": alert.text, **alert.fields()}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "aifinops"}
        request = Request(self._url, body, headers, method="POST")  # noqa: S310 - http or https: it was checked
        try:
            with urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310 - as above
                answer.read(1024)
        except HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _AGAIN:
                raise PermanentError(f"status {error.code}") from None
            raise OSError(f"status {error.code}") from None


class Email:
    """Mail by SMTP.

    Args:
        to: addresses. server: `smtp://[user:password@]host[:587][?from=address]`, which goes over to TLS where the server can and must
            where there is a password; `smtps://` is TLS from the start. timeout_s: seconds.
    """

    def __init__(self, to: Iterable[str], server: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        parts = urlsplit(server)
        if parts.scheme not in _MAIL or not parts.hostname:
            raise ConfigurationError(
                'smtp must be such as "smtp://user:password@mail.example.com:587?from=me@example.com"'
            )
        self._to = tuple(to)
        if not self._to or not all("@" in address and not set("\r\n,; ") & set(address) for address in self._to):
            raise ConfigurationError('alerts: mailto: needs an address, as in "mailto:team@example.com"')
        self._server = parts
        self._timeout_s = timeout_s
        given = parse_qs(parts.query).get("from")
        user = unquote(parts.username or "")
        self._from = given[0] if given else user if "@" in user else f"aifinops@{parts.hostname}"
        self.name = f"mail by {parts.hostname}"

    def deliver(self, alert: Alert) -> None:
        """Send it.

        Raises:
            OSError: when it did not get through (all errors of smtplib are). PermanentError: when the server does not want it.
        """
        import smtplib

        try:
            with self._connect() as server:
                if self._server.username:
                    server.login(unquote(self._server.username), unquote(self._server.password or ""))
                server.send_message(self._message(alert))
        except (smtplib.SMTPAuthenticationError, smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError) as error:
            # Not its text, which may repeat what was sent.
            raise PermanentError(type(error).__name__) from None

    def _connect(self) -> Any:
        import smtplib
        import ssl

        host, port = self._server.hostname or "", self._server.port
        context = ssl.create_default_context()
        if self._server.scheme == "smtps":
            return smtplib.SMTP_SSL(host, port or 465, timeout=self._timeout_s, context=context)
        server = smtplib.SMTP(host, port or 587, timeout=self._timeout_s)
        try:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
            elif self._server.username:
                raise PermanentError("the server has no TLS, and the password is not sent without it")
        except BaseException:
            server.close()
            raise
        return server

    def _message(self, alert: Alert) -> Any:
        from email.message import EmailMessage
        from email.utils import formatdate, make_msgid

        message = EmailMessage()
        message["Subject"] = f"aifinops: {alert.subject}"
        message["From"], message["To"] = self._from, ", ".join(self._to)
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="aifinops")
        facts = "\n".join(f"{name}: {value}" for name, value in alert.fields().items())
        message.set_content(f"{alert.text}\n\n{facts}\n")
        return message


def sinks(targets: Iterable[Any], smtp: str | None = None) -> list[Any]:
    """What the settings name, made ready.

    Args:
        targets: addresses and callables. smtp: the server for mail.

    Raises:
        ConfigurationError: for what is neither, and for mail without a server.
    """
    found: list[Any] = []
    for target in targets:
        if callable(target) or hasattr(target, "deliver"):
            found.append(target)
        elif isinstance(target, str) and target.startswith("mailto:"):
            if smtp is None:
                raise ConfigurationError(
                    f'alerts: {target!r} needs a server; set smtp = "smtp://user:password@mail.example.com:587"'
                )
            found.append(Email([unquote(part) for part in target[7:].partition("?")[0].split(",")], smtp))
        else:
            found.append(Webhook(str(target)))
    return found


class Alerts:
    """Tells every sink; never waits, never fails.

    Args:
        sinks: callables, which are called at once, and what has `deliver`. pauses: between two tries, seconds.

    Attributes:
        lost: alerts that did not get through or found the queue full.
    """

    def __init__(self, sinks: Iterable[Any] = (), *, pauses: tuple[float, ...] = _TRIES_S) -> None:
        found = list(sinks)
        self._slow: list[Sink] = [sink for sink in found if hasattr(sink, "deliver")]
        self._quick: list[Callable[[Alert], object]] = [sink for sink in found if not hasattr(sink, "deliver")]
        self._pauses = pauses
        self.lost = 0
        self._warned: set[str] = set()
        self._queue: deque[tuple[Sink, Alert]] = deque()
        self._renew()

    def __bool__(self) -> bool:
        return bool(self._slow or self._quick)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._busy = False
        self._thread: threading.Thread | None = None
        self._closing = False

    def soft(self, event: SoftLimit) -> None:
        """A share of a limit is spent."""
        self.tell(Alert.of_soft(event))

    def tell(self, alert: Alert) -> None:
        """Tell everybody."""
        for sink in self._quick:
            try:
                sink(alert)
            except Exception as failure:  # somebody's callable; what happened has happened
                swallow("budgets.alerts", failure)
        for slow in self._slow:
            if len(self._queue) >= _QUEUE_MOST:
                self.lost += 1
                continue
            self._queue.append((slow, alert))
        if self._queue:
            self._start()
            self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the queue is empty, so long at most; True when it is."""
        until = time.monotonic() + timeout_s
        while self._queue or self._busy:
            if time.monotonic() >= until:
                return False
            time.sleep(_NAP_S)
        return True

    def close(self) -> None:
        """End the thread when it is done with what waits; nothing is tried again."""
        self._closing = True
        self._wake.set()

    def reset_after_fork(self) -> None:
        """In a forked child: the thread and what waits are the parent's."""
        self._queue.clear()
        self._renew()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread starts it
        try:
            if self._thread is None or not self._thread.is_alive():
                self._closing = False
                self._thread = threading.Thread(target=self._work, name="aifinops-alerts", daemon=True)
                self._thread.start()
        except RuntimeError as failure:  # the interpreter is ending
            swallow("budgets.alerts", failure)
        finally:
            self._lock.release()

    def _work(self) -> None:
        while True:
            self._busy = True  # before it is taken, so that it is in one or the other at any time
            try:
                sink, alert = self._queue.popleft()
            except IndexError:
                self._busy = False
                if self._closing:
                    return
                self._wake.wait()
                self._wake.clear()
                continue
            self._deliver(sink, alert)

    def _deliver(self, sink: Sink, alert: Alert) -> None:
        for pause in (*self._pauses, None):
            try:
                sink.deliver(alert)
                return
            except OSError as error:
                trouble: Exception = error
            except Exception as error:
                trouble, pause = error, None  # noqa: PLW2901 - it is over
            if pause is None or self._closing:
                break
            time.sleep(pause)
        self.lost += 1
        self._warn(sink, trouble)

    def _warn(self, sink: Sink, trouble: Exception) -> None:
        name = getattr(sink, "name", type(sink).__name__)
        if name not in self._warned:
            self._warned.add(name)
            said = str(trouble) if isinstance(trouble, PermanentError) else type(trouble).__name__
            logger.warning(
                "aifinops: an alert did not get through to the %s: %s. Further ones are only counted.", name, said
            )
