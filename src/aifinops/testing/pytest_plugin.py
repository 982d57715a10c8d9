"""pytest plugin: what tests cost, and limits for it.

`@pytest.mark.cost_budget("$0.05")` fails a test that spends more, `--cost-report` says what each test has cost, `--cost-limit "$1"` ends a run
that has spent more. Without any of them it does nothing, and loads nothing of aifinops. While it works, calls are metered, and the ledger
is in memory: nobody's ledger is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report
    from aifinops.charges import Charge

__all__ = ["Costs", "Meter"]

MARK = "cost_budget"
_LEDGER = "AIFINOPS_LEDGER"
_TESTS = 20
"""The most tests that are listed without -v."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("aifinops", "what tests cost")
    group.addoption("--cost-report", action="store_true", help="say at the end what each test has cost")
    group.addoption("--cost-limit", metavar="AMOUNT", help='end the run once it has spent more, e.g. "$1"')
    group.addoption(
        "--cost-allow-unpriced",
        action="store_true",
        help="do not fail for calls whose price nobody knows, in no test and no limit",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest can open a ledger."""
    known = early_config.known_args_namespace
    if getattr(known, "cost_report", False) or getattr(known, "cost_limit", None):
        _keep_in_memory(early_config)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, and start where an option asks for it."""
    config.addinivalue_line(
        "markers",
        f'{MARK}(limit, allow_unpriced=False): fail the test when its model calls cost more than limit, e.g. "$0.05"',
    )
    limit = config.getoption("cost_limit")
    if limit is not None:
        _amount(limit, "--cost-limit")
    if config.getoption("cost_report") or limit is not None:
        _keep_in_memory(config)
        config.pluginmanager.register(Costs(config), "aifinops-costs")
        _meter(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start where a mark asks for it; a limit that is none is an error before anything runs."""
    for item in items:
        mark = item.get_closest_marker(MARK)
        if mark is not None:
            _amount(_limit(mark), f"{item.nodeid}: {MARK}")
            _keep_in_memory(config)
            _meter(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave everything as it was."""
    meter = config.pluginmanager.get_plugin("aifinops-meter")
    if meter is not None:
        meter.stop()
    if _KEPT in config.stash:
        before = config.stash[_KEPT]
        if before is None:
            os.environ.pop(_LEDGER, None)
        else:
            os.environ[_LEDGER] = before


_KEPT = pytest.StashKey["str | None"]()


def _keep_in_memory(config: pytest.Config) -> None:
    if _KEPT not in config.stash:
        config.stash[_KEPT] = os.environ.get(_LEDGER)
        if "aifinops.runtime" in sys.modules:
            _leave_the_usual_ledger()
        os.environ[_LEDGER] = "memory"


def _leave_the_usual_ledger() -> None:
    """What has begun before pytest (`aifinops run -m pytest`, a conftest) goes on in memory, unless its ledger was named in code."""
    from aifinops import config, runtime
    from aifinops.ledger.memory import MemoryLedger
    from aifinops.ledger.writer import Writer

    engines = runtime._state.runtime  # not `get()`, which would make one
    if engines is not None and engines.config.ledger == config.load({}).ledger:
        engines.flush(1.0)
        left, engines._writer = engines._writer, Writer(MemoryLedger())
        if left is not None:
            left.close()


def _meter(config: pytest.Config) -> None:
    if config.pluginmanager.get_plugin("aifinops-meter") is None:
        config.pluginmanager.register(Meter(config), "aifinops-meter")


def _limit(mark: pytest.Mark) -> Any:
    given = mark.args[0] if mark.args else mark.kwargs.get("limit")
    if len(mark.args) > 1 or set(mark.kwargs) - {"limit", "allow_unpriced"} or given is None:
        raise pytest.UsageError(
            f'{MARK} takes a limit and allow_unpriced: @pytest.mark.{MARK}("$0.05", allow_unpriced=True)'
        )
    return given


def _amount(text: Any, where: str) -> tuple[Decimal, str]:
    from aifinops.money import parse_money

    found = parse_money(text) if isinstance(text, str) else None
    if found is None or found[0] < 0:
        raise pytest.UsageError(f'{where}: {text!r} is no amount of money; write "$0.05" or "5 EUR"')
    return found


# --- where tests run -------------------------------------------------------------------------------------------------------


class Meter:
    """Sees every charge of the process that runs tests, from whatever thread, and knows which test it belongs to.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._charges: list[Charge] = []
        self._written: Any = None
        self._instrumented = False
        self.elsewhere: set[str] = set()

    def start(self) -> None:
        """Meter calls of every library that is installed, and see what is written to the ledger."""
        from aifinops.integrations import registry
        from aifinops.ledger.writer import Writer

        if self._written is None:
            self._written = Writer.write
            written, seen = self._written, self._seen

            def write(writer: Writer, charge: Charge) -> None:
                seen(writer, charge)
                written(writer, charge)

            self._patched().write = write  # the one place that all charges go through
            self._instrumented = not registry.state()
        registry.instrument()  # a test may have taken it back

    def stop(self) -> None:
        """Take all that back."""
        if self._written is not None:
            from aifinops.integrations import registry

            self._patched().write = self._written
            self._written = None
            if self._instrumented:
                registry.uninstrument()

    @staticmethod
    def _patched() -> Any:
        from aifinops.ledger.writer import Writer

        return Writer

    def _seen(self, writer: Any, charge: Charge) -> None:
        self._charges.append(charge)
        if writer.ledger.capabilities.durable:
            self.elsewhere.add(writer.ledger.info().location)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """From here on charges belong to this test."""
        self.start()
        self._charges.clear()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Hold the test to its budget; one that has failed by itself is left alone."""
        self.start()
        result = yield
        mark = item.get_closest_marker(MARK)
        if mark is not None:
            self._check(mark)
        return result

    def _check(self, mark: pytest.Mark) -> None:
        limit = _limit(mark)
        allowed = bool(mark.kwargs.get("allow_unpriced") or self._config.getoption("cost_allow_unpriced"))
        made = self._report()
        try:
            made.assert_under(limit, allow_unpriced=allowed)
        except AssertionError as error:
            problem = str(error)
        else:
            return
        pytest.fail(f"{MARK}({limit!r}): {problem}\n\n{made}", pytrace=False)

    def _any(self) -> bool:
        from aifinops.metering.deferred import drain

        drain()
        return bool(self._charges)

    def _report(self) -> Report:
        """What the calls of this phase have cost, by model."""
        from aifinops.analytics.reports import report
        from aifinops.ledger.memory import MemoryLedger
        from aifinops.metering.deferred import drain

        drain()
        ledger = MemoryLedger()
        ledger.append_many(self._charges)
        return report(ledger, ("model",), now_ns=0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send what the phase has cost along with its report, from a worker of xdist to where they come together."""
        done = yield
        made = self._report() if self._any() else None
        if made is not None:
            vars(done)["aifinops_cost"] = [_plain(row) for row in made.to_dict()["rows"]]
        if self.elsewhere:
            vars(done)["aifinops_ledgers"] = sorted(self.elsewhere)
        self._charges.clear()
        return done


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("currency", "cost", "estimated", "calls", "unpriced_calls", "unpriced_tokens")
    return {"model": row["key"]["model"], **{name: row[name] for name in names}}


# --- where reports come together -------------------------------------------------------------------------------------------


class Costs:
    """Adds up what tests have cost, for the summary and the limit.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        limit = config.getoption("cost_limit")
        self._limit = None if limit is None else _amount(limit, "--cost-limit")
        self._tests: dict[str, list[dict[str, Any]]] = {}
        self._fixtures: dict[str, list[dict[str, Any]]] = {}
        self._ledgers: set[str] = set()
        self._session: Any = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what to end."""
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up; once more is spent than the limit allows, no further test begins."""
        found = getattr(report, "aifinops_cost", [])
        self._ledgers.update(getattr(report, "aifinops_ledgers", ()))
        if not found:
            return
        self._tests.setdefault(report.nodeid, []).extend(found)
        if report.when != "call":
            self._fixtures.setdefault(report.nodeid, []).extend(found)
        problem = self._problem()
        if problem:
            self._session.shouldfail = problem
            workers = self._config.pluginmanager.get_plugin("dsession")
            if workers is not None:  # xdist: its own loop does not look at the session
                workers.shouldstop = problem

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A run that spent too much has failed, also when the last test did it."""
        if self._problem() and not _is_worker(self._config) and session.exitstatus in {0, 5}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The costs of tests, dearest first, and all of them together."""
        problem = self._problem()
        if not (self._config.getoption("cost_report") or problem):
            return
        terminalreporter.section("cost")
        if self._config.getoption("cost_report"):
            for line in self._lines(None if self._config.getoption("verbose") > 0 else _TESTS):
                terminalreporter.write_line(line)
        for place in sorted(self._ledgers):
            terminalreporter.write_line(
                f"charges were written to {place}, too: the tests have named it in af.init(ledger=...)"
            )
        if problem:
            terminalreporter.write_line(problem, red=True, bold=True)

    def _problem(self) -> str:
        if self._limit is None:
            return ""
        amount, currency = self._limit
        rows = self._all()
        sums = _sums(rows)
        wrong = []
        if sums.get(currency, Decimal(0)) > amount:
            wrong.append(
                f"{_money(sums[currency], currency)} were spent, more than --cost-limit {_money(amount, currency)}"
            )
        wrong += [
            f"{_money(spent, other)} were spent, which --cost-limit in {currency} cannot limit"
            for other, spent in sums.items()
            if other != currency and spent
        ]
        unpriced = sum(row["unpriced_calls"] for row in rows)
        if unpriced and not self._config.getoption("cost_allow_unpriced"):
            names = ", ".join(sorted({row["model"] for row in rows if row["unpriced_calls"]}))
            wrong.append(
                f"{_calls(unpriced)} {'has' if unpriced == 1 else 'have'} no price ({names}): add one, or allow it by --cost-allow-unpriced"
            )
        return "; ".join(wrong)

    def _all(self) -> list[dict[str, Any]]:
        return [row for rows in self._tests.values() for row in rows]

    def _lines(self, most: int | None) -> Iterable[str]:
        if not self._tests:
            yield "No test has made a call that is metered."
            return
        dearest = sorted(self._tests.items(), key=lambda one: (-sum(_sums(one[1]).values(), Decimal(0)), one[0]))
        texts = [(_amounts(rows), _calls(sum(row["calls"] for row in rows)), name) for name, rows in dearest[:most]]
        wide, count = (max(len(text[place]) for text in texts) for place in (0, 1))
        for amount, calls, name in texts:
            fixtures = f"  ({_amounts(self._fixtures[name])} of it in fixtures)" if name in self._fixtures else ""
            yield f"{amount:>{wide}}  {calls:>{count}}  {name}{fixtures}"
        if most is not None and len(dearest) > most:
            yield f"... and {len(dearest) - most} more tests; -v lists all"
        rows = self._all()
        total = f"{_amounts(rows)} in {_calls(sum(row['calls'] for row in rows))} of {len(self._tests)} tests"
        estimated = _sums(rows, "estimated")
        parts = [f"{_money(amount, currency)} of it estimated" for currency, amount in estimated.items() if amount]
        yield ", ".join([total, *parts])
        yield from _unpriced(rows)


def _unpriced(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    count = sum(row["unpriced_calls"] for row in rows)
    if count:
        names = ", ".join(sorted({row["model"] or "(none)" for row in rows if row["unpriced_calls"]}))
        tokens = sum(row["unpriced_tokens"] for row in rows)
        yield f"{_calls(count)} ({tokens:,} tokens) without a price, in no amount: {names}"


def _sums(rows: Iterable[Mapping[str, Any]], name: str = "cost") -> dict[str, Decimal]:
    """Currency -> sum of what is known; a currency in which nothing is known is left out."""
    found: dict[str, Decimal] = {}
    for row in rows:
        if row[name] is not None:
            found[row["currency"]] = found.get(row["currency"], Decimal(0)) + Decimal(row[name])
    return found


def _amounts(rows: Iterable[Mapping[str, Any]]) -> str:
    sums = _sums(rows)
    return " + ".join(_money(amount, currency) for currency, amount in sums.items()) if sums else "unknown"


def _money(amount: Decimal, currency: str) -> str:
    from aifinops.money import format_money

    return format_money(amount, currency)


def _calls(count: int) -> str:
    return f"{count:,} call" + ("" if count == 1 else "s")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
