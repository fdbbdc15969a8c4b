"""Picking samples out of pages: true ones, odd ones, long ones."""

from __future__ import annotations

import math

import pytest

from agent.telemetry.exposition import (
    MOST_SAMPLES,
    Hints,
    TooManySamplesError,
    labels_of,
    samples,
)


def values(page: bytes, name: bytes = b"m", hints: Hints | None = None) -> list[float]:
    return [sample.value for sample in samples(page, name, hints)]


@pytest.mark.parametrize(
    ("page", "value"),
    [
        (b"m 4\n", 4),
        (b"m 4", 4),
        (b"m\t4\r\n", 4),
        (b"m{} 4\n", 4),
        (b'm{a="x"}4\n', 4),
        (b'm {a="x"} 4\n', 4),
        (b'm{a="} 9",b="\\"} 8",c="\\\\"} 4\n', 4),
        (b'm{a="#",b="x y"} 4 1700000000000\n', 4),
        (b'm{le="1"} 4 # {trace_id="} 7"} 0.5 1.6e9\n', 4),
        (b"m 4.5e+01\n", 45),
        (b"m -2\n", -2),
        (b"m +Inf\n", math.inf),
        (b"# HELP m 3 m\n# TYPE m gauge\nm 4\n# EOF\n", 4),
    ],
)
def test_a_sample_is_read_however_it_is_written(page: bytes, value: float) -> None:
    assert values(page) == [value]
    assert values(b"other 1\n" + page) == [value]


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"m\n",
        b"m \n",
        b"m{\n",
        b'm{a="x} 4\n',
        b"m 1_000\n",
        b"m 0x10\n",
        b"m infinite\n",
        b"mm 4\n",
        b"m_total 4\n",
        b"m:x 4\n",
        b"# m 4\n",
        b"x m 4\n",
        b"<html>m 4</html>",
    ],
)
def test_what_is_no_sample_is_passed_over(page: bytes) -> None:
    assert values(page) == []


def test_nan_is_a_value() -> None:
    assert math.isnan(values(b"m NaN\n")[0])


def test_all_samples_of_a_name_are_found_also_in_two_groups() -> None:
    assert values(b'm{e="0"} 1\nm{e="1"} 2\nmore 9\nx 1\nm{e="2"} 3\n') == [1, 2, 3]


def test_a_broken_line_does_not_hide_the_next() -> None:
    assert values(b"m oops\nm 4\nm{\nm 5\n") == [4, 5]


def test_labels_are_unescaped() -> None:
    sample = samples(b'm{a="b\\"c",d="e\\\\n\\n", f = "",} 1\n', b"m")[0]
    assert labels_of(sample.labels) == {"a": 'b"c', "d": "e\\n\n", "f": ""}


def test_a_hint_finds_the_name_where_it_has_moved_to() -> None:
    hints: Hints = {}
    assert values(b"x 1\n" * 100 + b"m 4\ny 2\n", hints=hints) == [4]
    assert hints[b"m"] == 400
    assert values(b"x 12\n" * 100 + b"m 5\nm 6\ny 2\n", hints=hints) == [5, 6]
    assert hints[b"m"] == 500


def test_a_wrong_hint_costs_time_and_nothing_else() -> None:
    page = b"x 1\n" * 5000 + b"m 4\n"
    assert values(page, hints={b"m": 3}) == [4]
    assert values(b"m 4\n", hints={b"m": 100_000}) == [4]


def test_a_hint_into_the_middle_of_a_long_group_loses_no_sample() -> None:
    group = b"".join(b'm{engine="%d"} 1\n' % number for number in range(1000))
    page = b"x 1\n" + group
    assert len(values(page, hints={b"m": len(page) // 2})) == 1000


def test_a_page_of_one_name_alone_is_refused() -> None:
    with pytest.raises(TooManySamplesError, match="more than 4096 samples of m"):
        values(b"m 1\n" * (MOST_SAMPLES + 2))


def test_a_page_of_broken_lines_of_one_name_is_refused_too() -> None:
    with pytest.raises(TooManySamplesError):
        values(b"m oops\nx 1\n" * (MOST_SAMPLES + 1))


@pytest.mark.parametrize("labels", [8170, 8180, 8185, 8190, 20_000])
def test_a_line_without_end_is_passed_over_and_no_number_is_cut(labels: int) -> None:
    page = b'm{a="' + b"x" * labels + b'"} 123456789\nm 4\n'
    assert values(page) in ([123456789, 4], [4])
    assert values(page)[-1] == 4


def test_a_line_of_backslashes_and_quotes_is_read_in_linear_time() -> None:
    values(b"m{" + b'a="\\' * 200_000 + b"\n")  # the test's time limit is the assertion
