"""Reading a trace and sending it again."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import BudgetExceeded, ConfigurationError
from aifinops.testing import FakeProvider
from aifinops.testing.trace import TraceRow, prompt_of, read_trace, replay, sender

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = [TraceRow(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC), 10 + second, 2, second + 2) for second in range(20)]


def written(path: Path, text: str) -> Path:
    """A trace file."""
    file = path / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


class TestReading:
    """The file, and everything that can be wrong with it."""

    def test_rows(self, tmp_path: Path) -> None:
        """Seven digits of a second, CRLF, a byte order mark, blank lines, a zone and other columns are all fine."""
        text = (
            "\ufeffextra,TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
            "a,2023-11-16 18:17:03.9799600,4808,10\r\n\r\n"
            "b,2023-11-16T19:17:04+01:00,0,8\r\n"
        )
        assert read_trace(written(tmp_path, text)) == [
            TraceRow(datetime(2023, 11, 16, 18, 17, 3, 979960, tzinfo=UTC), 4808, 10, 2),
            TraceRow(datetime(2023, 11, 16, 18, 17, 4, tzinfo=UTC), 0, 8, 4),
        ]

    def test_limit(self, tmp_path: Path) -> None:
        """A limit reads the first rows, and never sees what is wrong further down."""
        file = written(tmp_path, HEAD + "2026-01-01,1,2\n" * 3 + "broken\n")
        assert [row.line for row in read_trace(file, limit=3)] == [2, 3, 4]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "line 1: no column TIMESTAMP"),
            ("time,in,out\n", "line 1: no column TIMESTAMP"),
            ("TIMESTAMP,ContextTokens\n", "line 1: no column GeneratedTokens"),
            (HEAD, "no rows"),
            (HEAD + "2026-01-01,1,2\n2026-01-01,1\n", "line 3: 2 cells"),
            (HEAD + "soon,1,2\n", "line 2: TIMESTAMP 'soon'"),
            (HEAD + "2026-01-01,-1,2\n", "line 2: ContextTokens '-1'"),
            (HEAD + "2026-01-01,1,2.5\n", "line 2: GeneratedTokens '2.5'"),
            (HEAD + "2026-01-01,\u0661,2\n", "line 2: ContextTokens"),
            (HEAD + '2026-01-01,1,"2\n', "unexpected end of data"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, text: str, told: str) -> None:
        """What is wrong is named with its line."""
        with pytest.raises(ConfigurationError, match=r"trace\.csv") as caught:
            read_trace(written(tmp_path, text))
        assert told in str(caught.value)

    def test_unreadable_files(self, tmp_path: Path) -> None:
        """A missing file, a directory, bytes that are no text and a limit of none are configuration errors."""
        binary = tmp_path / "binary"
        binary.write_bytes(b"\xff\xfe\x00\x01")
        for path in (tmp_path / "missing.csv", tmp_path, binary):
            with pytest.raises(ConfigurationError, match=path.name):
                read_trace(path)
        with pytest.raises(ConfigurationError, match="limit=0"):
            read_trace(binary, limit=0)

    @given(st.integers(4, 5000), st.integers(0, 10**6))
    def test_prompts(self, tokens: int, position: int) -> None:
        """A prompt has as many words as tokens less the message's 4, and begins like no other."""
        words = prompt_of(tokens, position).split()
        assert len(words) == tokens - 4
        assert not words or words[0] == f"r{position}"

    def test_the_public_trace(self) -> None:
        """The public trace is read whole, and its sums are those of its publication."""
        corpus = os.environ.get("AIFINOPS_CORPUS")
        if not corpus:
            pytest.skip("AIFINOPS_CORPUS names no folder")
        rows = read_trace(Path(corpus) / "azure" / "AzureLLMInferenceTrace_code.csv")
        sums = (sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows))
        assert (len(rows), *sums) == (8819, 18_059_974, 245_896)


class TestReplay:
    """Sending the rows, in time or as fast as it goes, until a budget says no."""

    def test_every_row_in_order(self) -> None:
        """One worker sends every row, in order, with its position."""
        seen: list[tuple[TraceRow, int]] = []
        result = replay(ROWS, lambda row, position: seen.append((row, position)))
        assert seen == [(row, position) for position, row in enumerate(ROWS)]
        assert (result.sent, result.input_tokens, result.output_tokens, result.refused) == (20, 390, 40, None)

    def test_many_workers_send_each_row_once(self) -> None:
        """Eight workers share the rows."""
        seen: list[int] = []
        answered: list[TraceRow] = []
        result = replay(ROWS, lambda row, position: seen.append(position), workers=8, on_answer=answered.append)
        assert sorted(seen) == list(range(20))
        assert (result.sent, len(answered)) == (20, 20)

    def test_speed(self) -> None:
        """With a speed the waits are those of the trace, divided; a late row is sent at once."""
        now = [100.0]
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            now[0] += seconds

        def send(row: TraceRow, position: int) -> None:
            now[0] += 0.15 if position == 1 else 0

        replay(ROWS[:4], send, speed=10, now=lambda: now[0], wait=wait)
        assert waits == pytest.approx([0.1, 0.05])

    @pytest.mark.parametrize("workers", [1, 4])
    def test_a_refusal_ends_it(self, workers: int) -> None:
        """The first refusal for good ends the replay and is in the result."""

        def send(row: TraceRow, position: int) -> None:
            if position >= 7:
                raise BudgetExceeded("replay", asked=Decimal(position))

        result = replay(ROWS, send, workers=workers)
        assert result.sent == 7
        assert result.refused is not None
        assert result.refused.asked >= 7

    def test_a_refusal_that_passes(self) -> None:
        """What was refused only because others held the money is sent when they are done."""
        both = threading.Barrier(2)
        refused: list[int] = []
        lock = threading.Lock()

        def send(row: TraceRow, position: int) -> None:
            if position < 2 and not refused:
                both.wait()
            with lock:
                if position == 1 and not refused:
                    refused.append(position)
                    raise BudgetExceeded("replay", transient=True)

        result = replay(ROWS, send, workers=2)
        assert (refused, result.sent, result.refused) == ([1], 20, None)

    @pytest.mark.parametrize("workers", [1, 4])
    def test_other_errors_come_out(self, workers: int) -> None:
        """An error of the client ends it and is raised as it is."""
        sent: list[int] = []

        def send(row: TraceRow, position: int) -> None:
            sent.append(position)
            raise KeyError(position)

        with pytest.raises(KeyError):
            replay(ROWS, send, workers=workers)
        assert len(sent) <= workers

    def test_wrong_settings(self) -> None:
        """No workers and no speed are refused."""
        for wrong in ({"workers": 0}, {"speed": 0.0}, {"speed": -1.0}):
            with pytest.raises(ConfigurationError, match=next(iter(wrong))):
                replay(ROWS, print, **wrong)

    @pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini"])
    def test_through_the_client(self, model: str) -> None:
        """The server counts exactly what the trace has, also for rows smaller than any message, and none is cached."""
        openai = pytest.importorskip("openai", reason="the replay goes through the real openai client")
        rows = [*ROWS, TraceRow(ROWS[0].at, 3, 0), TraceRow(ROWS[0].at, 3000, 1), TraceRow(ROWS[0].at, 3000, 70)]
        with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:
            replay(rows, sender(client, model), workers=2)
        totals = server.usage_totals(model)
        assert (totals["calls"], totals["cached_tokens"]) == (len(rows), 0)
        assert totals["input_tokens"] == sum(row.input_tokens for row in rows)
        assert totals["output_tokens"] == sum(row.output_tokens for row in rows)
