"""Whose cost it is: validation, inheritance, matching and the text form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError
from aifinops.tags import EMPTY, make_tags, matches, merge, parse_tags

KEYS = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.\-]{0,10}\Z")
VALUES = st.text(max_size=40)
TAGS = st.dictionaries(KEYS, VALUES, max_size=5)


def test_values_become_text_and_none_is_left_out() -> None:
    """Numbers and booleans are written as text; None means that there is no such tag."""
    assert make_tags({"team": "search", "run": 7, "on": True, "customer": None}) == {
        "team": "search",
        "run": "7",
        "on": "True",
    }


def test_no_tags_are_the_one_empty_mapping() -> None:
    """Nothing given costs nothing."""
    assert make_tags({}) is EMPTY


def test_tags_cannot_be_changed() -> None:
    """A tag in force stays what it is."""
    with pytest.raises(TypeError):
        make_tags({"team": "a"})["team"] = "b"  # type: ignore[index]


@pytest.mark.parametrize("key", ["", "1team", "te am", "te=am", "x" * 65, "é", 3])
def test_a_bad_key_is_refused_by_name(key: object) -> None:
    """The message has the key and the rule."""
    with pytest.raises(ConfigurationError, match="must match") as caught:
        make_tags({key: "a"})  # type: ignore[dict-item]
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize("value", [{}, [], (), set()])
def test_a_container_is_no_value(value: object) -> None:
    """The message has the key and the type."""
    with pytest.raises(ConfigurationError, match=rf"team.*not {type(value).__name__}"):
        make_tags({"team": value})


def test_a_long_value_is_refused_without_being_repeated() -> None:
    """The limit is said, and the message stays short."""
    assert make_tags({"team": "x" * 256})["team"] == "x" * 256
    with pytest.raises(ConfigurationError, match="257 characters; the most is 256") as caught:
        make_tags({"team": "x" * 257})
    assert len(str(caught.value)) < 100


@given(TAGS, TAGS)
def test_the_inner_tag_wins(outer: dict[str, str], inner: dict[str, str]) -> None:
    """Merging is what a dict does, and neither side is changed."""
    before = dict(outer), dict(inner)
    assert merge(outer, inner) == {**outer, **inner}
    assert (outer, inner) == before


@given(TAGS, TAGS, TAGS)
def test_merging_does_not_depend_on_grouping(a: dict[str, str], b: dict[str, str], c: dict[str, str]) -> None:
    """Blocks may be entered one by one or as one."""
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(TAGS, TAGS)
def test_tags_match_their_own_parts(some: dict[str, str], more: dict[str, str]) -> None:
    """Every subset matches, the empty one always, and a differing value never."""
    both = merge(more, some)
    assert matches(both, some)
    assert matches(both, EMPTY)
    for key, value in some.items():
        assert not matches({**both, key: value + "x"}, some)


def test_the_text_form_is_read() -> None:
    """Pairs are divided by commas, spaces around them are dropped, later signs belong to the value."""
    assert parse_tags(" team = search ,feature=a=b,, ") == {"team": "search", "feature": "a=b"}
    assert parse_tags("") == EMPTY


@pytest.mark.parametrize("text", ["team", "team=search,feature", "=search"])
def test_a_part_that_is_no_pair_is_refused(text: str) -> None:
    """The message says how to write it."""
    with pytest.raises(ConfigurationError):
        parse_tags(text)
