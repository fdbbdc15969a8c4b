"""Durations as operators write them."""

from __future__ import annotations

import pytest

from agent.config.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("15m", 900), ("1h", 3600), ("1.5s", 1.5), (7, 7), (0.25, 0.25)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", "2", "2 s", "2d", "-1s", "1s2", "٣s", True, None, [], -1, float("nan"), 10**400],
)
def test_anything_else_is_not_a_duration(value: object) -> None:
    assert parse_duration(value) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500ms"),
        (2.0, "2s"),
        (90.0, "90s"),
        (900.0, "15m"),
        (7200.0, "2h"),
        (0.00051, 0.00051),
    ],
)
def test_a_duration_is_written_with_its_largest_whole_unit(seconds: float, text: object) -> None:
    assert format_duration(seconds) == text
