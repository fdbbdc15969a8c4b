"""Which entries are found, how fields become text, and how many there may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs import LogLevel
from agent.state.journal import MAX_FIELDS, MAX_TEXT, Budget, Entry, Query, as_fields, newest, tally

INFO, WARNING, ERROR = LogLevel.INFO, LogLevel.WARNING, LogLevel.ERROR
ENTRIES = [
    Entry(1, 100.0, INFO, "ready", {}),
    Entry(2, 110.0, WARNING, "backend", {"backend": "chat/a"}),
    Entry(3, 120.0, ERROR, "service", {"service": "chat"}),
    Entry(4, 130.0, INFO, "backend", {"backend": "chat/b"}),
    Entry(5, 140.0, WARNING, "backend", {"backend": "embed/a"}),
]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (Query(), [1, 2, 3, 4, 5]),
        (Query(limit=2), [4, 5]),
        (Query(after=3), [4, 5]),
        (Query(since=120.0), [3, 4, 5]),
        (Query(service="chat"), [2, 3, 4]),
        (Query(backend="chat/a"), [2]),
        (Query(level=WARNING), [2, 3, 5]),
        (Query(level=ERROR, service="embed"), []),
        (Query(event="backend", limit=1), [5]),
    ],
)
def test_what_is_asked_for_is_found_oldest_first(query: Query, numbers: list[int]):
    assert [entry.number for entry in newest(reversed(ENTRIES), query)] == numbers


def test_a_tally_counts_levels_and_changes_of_state_since_then():
    found = tally(reversed(ENTRIES), 110.0)
    assert found.levels == {"warning": 2, "error": 1, "info": 1}
    assert found.changes == {"chat/a": 1, "chat/b": 1, "embed/a": 1}
    assert tally(reversed(ENTRIES), 131.0).changes == {"embed/a": 1}


def test_nothing_in_a_field_is_obeyed_by_a_terminal():
    fields = as_fields({"why": "502 \x1b[31mred\x07\nnext", "none": None, "empty": "", "port": 80})
    assert fields == {"why": "502 �[31mred� next", "port": "80"}


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=2 * MAX_TEXT), max_size=50))
def test_a_field_is_short_and_printable_whatever_a_server_says(said: dict[str, str]):
    fields = as_fields(said)
    assert len(fields) <= MAX_FIELDS
    assert all(len(text) <= MAX_TEXT and text.isprintable() for text in fields.values())


def test_what_is_too_much_is_counted_until_there_is_room():
    budget = Budget(2.0, 3.0, 3.0, 10.0)
    assert [budget.take(10.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert budget.refused == 2
    assert not budget.take(10.4)
    assert budget.take(10.6)
    assert not budget.take(5.0), "a clock that goes back gives nothing"
