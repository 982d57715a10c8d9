"""The error tree, its messages, its pickles, and where internal failures go."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from aifinops import errors
from aifinops.errors import (
    AIFinOpsError,
    ApprovalDenied,
    ApprovalPending,
    BudgetExceeded,
    ConfigurationError,
    ImpossibleUsage,
    PricingError,
    StoreError,
    UnknownModel,
    UnpricedCall,
    swallow,
)

REFUSED = BudgetExceeded(
    "search",
    unit="EUR",
    limit=Decimal(5),
    spent=Decimal("4.5"),
    reserved=Decimal("0.4"),
    asked=Decimal("0.2"),
    resets_at=datetime(2026, 12, 1, tzinfo=UTC),
    decision_id="abc",
    transient=True,
    hint="Lower max_tokens.",
)
EVERY_ERROR = [
    AIFinOpsError("a"),
    ConfigurationError("b"),
    PricingError("c"),
    ImpossibleUsage("d"),
    StoreError("e"),
    UnknownModel("gpt-9", provider="openai", lists=("bundled",), nearest=("gpt-5",)),
    UnknownModel("gpt-9"),
    REFUSED,
    ApprovalDenied("x"),
    ApprovalPending("y", limit=Decimal(3)),
    UnpricedCall("x", "gpt-9", provider="openai", lists=("a",), nearest=("b",), unit="USD", limit=Decimal(1)),
]


@pytest.fixture
def fresh_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An own counter, so that the process's failures stay its own."""
    monkeypatch.setattr(errors, "_failures", errors._Failures())


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_every_error_crosses_processes_whole(error: Exception, copied: object) -> None:
    """Type, message and every attribute are the same after pickling and copying."""
    twin = copied(error)  # type: ignore[operator]
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_the_tree_is_what_users_catch() -> None:
    """A budget's refusal is no pricing error, except where a missing price is the reason."""
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(UnknownModel, (PricingError, LookupError))
    assert issubclass(ImpossibleUsage, (PricingError, ValueError))
    assert not issubclass(BudgetExceeded, PricingError)
    assert all(issubclass(kind, BudgetExceeded) for kind in (ApprovalDenied, ApprovalPending, UnpricedCall))
    assert issubclass(UnpricedCall, UnknownModel)
    assert all(issubclass(getattr(errors, name), AIFinOpsError) for name in errors.__all__ if name[0].isupper())


def test_a_refusal_says_all_numbers() -> None:
    """Budget, spent, limit, held, asked, reset time and hint are in the message."""
    text = str(REFUSED)
    for part in (
        "'search'",
        "4.5 of 5 EUR",
        "0.4 held",
        "up to 0.2",
        "Nothing was sent",
        "2026-12-01T00:00:00+00:00",
        "max_tokens",
    ):
        assert part in text


def test_a_refusal_leaves_out_what_there_is_not() -> None:
    """Nothing held, no window and no hint make a shorter sentence."""
    text = str(BudgetExceeded("run", limit=Decimal(1), spent=Decimal(1), asked=Decimal("0.1")))
    assert text.endswith("Nothing was sent.")
    assert "held" not in text


@pytest.mark.parametrize(("spent", "remaining"), [("4", "0.6"), ("4.6", "0"), ("9", "0")])
def test_what_remains_is_never_below_zero(spent: str, remaining: str) -> None:
    """Held money is not there for others, and an overrun leaves nothing."""
    error = BudgetExceeded("x", limit=Decimal(5), spent=Decimal(spent), reserved=Decimal("0.4"))
    assert error.remaining == Decimal(remaining)


def test_small_numbers_are_not_written_as_powers() -> None:
    """A bound of a ten-thousandth of a cent is readable."""
    assert "0.0000001" in str(BudgetExceeded("x", asked=Decimal("1E-7")))


def test_an_unknown_model_names_where_it_was_looked_for() -> None:
    """Lists asked and the nearest names are in the message and on the error."""
    error = UnknownModel("gpt-9", provider="openai", lists=["contract", "bundled"], nearest=["gpt-5"])
    assert (
        str(error)
        == "no price for model 'gpt-9' of provider 'openai' (asked: contract, bundled). Nearest names: gpt-5."
    )
    assert (error.lists, error.nearest) == (("contract", "bundled"), ("gpt-5",))
    assert str(UnknownModel("gpt-9")) == "no price for model 'gpt-9'."


def test_an_unpriced_call_says_how_to_go_on() -> None:
    """The message has the model and both ways to let such calls through."""
    error = UnpricedCall("search", "gpt-9", provider="openai", lists=["a"], nearest=["gpt-5"], limit=Decimal(3))
    assert (error.budget, error.limit, error.model, error.provider) == ("search", Decimal(3), "gpt-9", "openai")
    assert (error.lists, error.nearest) == (("a",), ("gpt-5",))
    text = str(error)
    assert text.count("refused the call") == 1
    assert all(part in text for part in ("'search'", "'gpt-9'", 'unknown="reserve"', 'unknown="allow"'))


def test_an_internal_failure_is_raised_in_our_own_tests(fresh_counts: None) -> None:
    """Our test suite sees the failure itself."""
    errors.reraise_failures(True)
    failure = RuntimeError("inside")
    with pytest.raises(RuntimeError) as caught:
        swallow("here", failure)
    assert caught.value is failure
    assert errors.failures() == {"here": 1}


def test_an_internal_failure_is_logged_once_per_place(fresh_counts: None, caplog: pytest.LogCaptureFixture) -> None:
    """Every failure is counted; the log has one entry for each place, with the frames, and the text only where it is ours."""
    with caplog.at_level(logging.WARNING, "aifinops"):
        for place, kind in (("a", ValueError), ("a", ValueError), ("b", StoreError), ("a", ValueError)):
            try:
                raise kind(f"in place {place}")
            except kind as failure:
                swallow(place, failure)
    assert errors.failures() == {"a": 3, "b": 1}
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["a", "b"]
    foreign, ours = (record.getMessage() for record in caplog.records)
    assert "in a (ValueError)." in foreign
    assert "in b (StoreError: in place b)." in ours
    assert foreign.count(f'File "{__file__}"') == ours.count(f'File "{__file__}"') == 1


def test_failures_are_counted_by_many_threads(fresh_counts: None) -> None:
    """No count is lost and exactly one thread is told that it was first."""
    firsts: list[bool] = []

    def fail() -> None:
        firsts.extend(errors._failures.add("place") for _ in range(200))

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors.failures() == {"place": 1600}
    assert firsts.count(True) == 1


def test_the_counts_are_a_copy(fresh_counts: None) -> None:
    """Whoever reads them cannot change them."""
    errors.failures()["x"] = 1
    assert errors.failures() == {}


class _Refusing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the disk is full")


def test_a_log_that_fails_is_no_failure_of_the_call(fresh_counts: None) -> None:
    """A handler of the application's that raises keeps a failure from being logged, not from being counted."""
    errors.reraise_failures(False)
    handler, logger = _Refusing(), logging.getLogger("aifinops")
    logger.addHandler(handler)
    try:
        swallow("here", RuntimeError("x"))
        swallow("here", RuntimeError("x"))
    finally:
        logger.removeHandler(handler)
    assert errors.failures() == {"here": 2}


def test_a_filter_that_fails_is_no_failure_of_the_call(fresh_counts: None) -> None:
    """The same for a filter, which logging does not contain either."""
    errors.reraise_failures(False)

    def refuse(record: logging.LogRecord) -> bool:
        raise KeyError(record.name)

    logger = logging.getLogger("aifinops")
    logger.addFilter(refuse)
    try:
        swallow("here", RuntimeError("x"))
    finally:
        logger.removeFilter(refuse)
    assert errors.failures() == {"here": 1}


def test_a_failure_is_swallowed_where_no_stack_is_left(fresh_counts: None) -> None:
    """A recursion that is too deep is counted where it ends, though there is no room to log it."""
    errors.reraise_failures(False)

    def deeper() -> None:
        try:
            deeper()
        except RecursionError as error:
            swallow("deep", error)

    deeper()
    assert errors.failures()["deep"] >= 1


def test_a_finalizer_may_fail_while_a_failure_is_counted(fresh_counts: None) -> None:
    """The collector may run a finalizer of ours in the middle of counting, in the same thread: it is counted too."""
    errors.reraise_failures(False)
    with errors._failures._lock:
        swallow("finalizer", RuntimeError("x"))
    assert errors.failures() == {"finalizer": 1}
