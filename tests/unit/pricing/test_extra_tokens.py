"""Counting with the package of the extra `tokens`, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aifinops.pricing import encodings
from aifinops.pricing.tokens import count_tokens


def test_it_counts_without_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encodings are within it, so an empty cache folder is enough, and stays empty."""
    pytest.importorskip("toktok")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(encodings, "_counters", {})
    if encodings.faster() is None:
        pytest.skip("this version does not agree with tiktoken")
    assert count_tokens("hello", "gpt-4o") == 1
    assert count_tokens("", "gpt-4o") == 0
    assert count_tokens("hello", "claude-opus-5") is None
    assert list(tmp_path.iterdir()) == []
