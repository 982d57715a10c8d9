"""Copies of every entry for a ledger elsewhere, and how ledgers elsewhere are opened."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from aifinops import config, runtime
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import Journey, default_path, open_ledger, path_of, spool_folder
from aifinops.ledger.copies import Copied
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.otlp import OtlpLedger
from aifinops.ledger.spool import Spooled
from aifinops.ledger.writer import Writer
from aifinops.testing.ledger import check_ledger, example_charge


class Elsewhere(MemoryLedger):
    """A ledger that may be down."""

    down = False

    def append_many(self, charges: Any) -> int:
        if self.down:
            raise StoreError("down")
        return super().append_many(charges)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    made = Copied(MemoryLedger(), Spooled(Elsewhere(), tmp_path / "spool", every_s=60, thread=False))
    yield made
    made.close()


def test_it_is_a_ledger(tmp_path: Path) -> None:
    """With every promise of the one that counts."""
    numbers = itertools.count()
    check_ledger(lambda: Copied(MemoryLedger(), Spooled(MemoryLedger(), tmp_path / str(next(numbers)))))


def test_every_way_to_write_sends_copies(pair: Copied) -> None:
    """Once each, whatever was known here already."""
    pair.enqueue(example_charge(1))
    assert pair.append(example_charge(2))
    assert not pair.append(example_charge(2))
    assert pair.append_many([example_charge(2), example_charge(3)]) == 1
    assert pair.flush(5)
    wanted = [example_charge(number) for number in (1, 2, 3)]
    assert list(pair.rows()) == list(pair.copies.target.rows()) == wanted


def test_troubles_of_the_copies_are_no_one_elses(pair: Copied, monkeypatch: Any) -> None:
    """The entry is kept when the other is down, and when its spool cannot be written; that is counted."""
    pair.copies.target.down = True  # type: ignore[attr-defined]
    pair.enqueue(example_charge(1))
    assert not pair.flush(0.1)
    pair.copies.target.down = False  # type: ignore[attr-defined]
    assert pair.flush(5)

    def full(_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(pair.copies.spool, "put", full)
    pair.enqueue(example_charge(2))
    assert (pair.info().entries, pair.dropped) == (2, 1)
    assert Writer(pair).dropped == 1


def test_a_ledger_elsewhere_is_behind_a_spool(tmp_path: Path) -> None:
    """Its folder depends on where it is and not on who asks, so that what waits survives a new password."""
    ledgers = [
        open_ledger(f"otlp://{user}127.0.0.1:4318", journey=Journey(str(tmp_path), 5 << 20))
        for user in ("", "me:old@", "me:new@")
    ]
    folders = {ledger.spool.folder for ledger in ledgers if isinstance(ledger, Spooled)}
    assert len(folders) == 1
    assert folders.pop().parent == tmp_path
    assert all(isinstance(ledger, Spooled) and isinstance(ledger.target, OtlpLedger) for ledger in ledgers)
    assert spool_folder("http://a/v1/logs") != spool_folder("http://b/v1/logs")
    assert path_of("otlp://127.0.0.1") == default_path(), "what else belongs to it is on this machine"
    assert path_of("otlp") == default_path()
    assert list(tmp_path.iterdir()) == []


def test_copies_go_elsewhere(tmp_path: Path) -> None:
    """A file would be no copy elsewhere, and the message says what to write."""
    with pytest.raises(ConfigurationError, match=r"copy_to './l.db' is no ledger elsewhere"):
        open_ledger("memory", copy_to="./l.db")
    made = open_ledger("memory", copy_to="otlp://127.0.0.1:9", journey=Journey(str(tmp_path)))
    assert isinstance(made, Copied)
    made.close()


def test_the_settings_make_the_ledger(tmp_path: Path) -> None:
    """Addresses, folder and size of the spool; a record says what a span would say beside the charge."""
    environ = {"AIFINOPS_LEDGER": "memory", "AIFINOPS_COPY_TO": "otlp://127.0.0.1:9", "AIFINOPS_SPOOL": str(tmp_path), "AIFINOPS_SPOOL_BYTES": "2 GiB"}  # fmt: skip
    made = runtime.open_ledger(config.load({}, environ, tmp_path))
    assert isinstance(made, Copied)
    assert isinstance(made.copies.target, OtlpLedger)
    assert made.copies.spool._max_bytes == 2 << 30
    assert made.copies.target._beside is not None
    beside = made.copies.target._beside(example_charge(1))
    assert beside["gen_ai.usage.input_tokens"] == 1000
    assert beside["aifinops.cost.total"] == pytest.approx(0.0003505)
    made.close()


@pytest.mark.parametrize(
    ("text", "wanted"), [("5000000", 5_000_000), ("500 MB", 500_000_000), ("1gib", 1 << 30), (1 << 23, 1 << 23)]
)
def test_sizes(text: Any, wanted: int) -> None:
    """With and without a unit."""
    assert config.load({"spool_bytes": text}, {}, Path("/nonexistent")).spool_bytes == wanted


@pytest.mark.parametrize("text", ["much", "1", "-5000000", "5 parsecs", True])
def test_what_is_no_size_is_refused(text: Any) -> None:
    """The message says what to write."""
    with pytest.raises(ConfigurationError, match="write bytes"):
        config.load({"spool_bytes": text}, {}, Path("/nonexistent"))


def test_flush_reaches_the_ledger_elsewhere(tmp_path: Path) -> None:
    """`aifinops.flush()` goes through the writer to the spool."""
    target = MemoryLedger()
    writer = Writer(Spooled(target, tmp_path / "spool", every_s=60))
    writer.write(example_charge(1))
    assert writer.flush(10)
    assert target.info().entries == 1
    writer.close()
