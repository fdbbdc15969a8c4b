"""Numbers, ages and tables as people read them."""

from __future__ import annotations

import pytest

from agent import humanise
from lbctl.layout import Cell, Column, Table, lines
from lbctl.suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (0.04, "<0.1"),
        (0.25, "0.2"),
        (12.34, "12.3"),
        (999.96, "1000"),
        (1000, "1.0k"),
        (1234, "1.2k"),
        (99_960, "100k"),
        (999_499, "999k"),
        (999_950, "1.0M"),
        (3_400_000, "3.4M"),
        (1_234_567_890, "1.2G"),
        (10**19, "10000P"),
    ],
)
def test_counts(value, text):
    assert humanise.count(value) == text


def test_quantities_have_their_unit():
    assert humanise.quantity(988_000_000, "B") == "988 MB"
    assert humanise.quantity(12, "bit/s") == "12 bit/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (45.9, "45s"), (192, "3m12s"), (7500, "2h05m"), (273_600, "3d04h")],
)
def test_ages(seconds, text):
    assert humanise.age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "500ms"),
        (2, "2s"),
        (90, "90s"),
        (900, "15m"),
        (3600, "1h"),
        (0, "0s"),
        (1.5, "1500ms"),
    ],
)
def test_durations(seconds, text):
    assert humanise.duration(seconds) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.0, "0µs"),
        (0.0214, "21µs"),
        (0.9994, "999µs"),
        (0.9996, "1.0ms"),
        (9.94, "9.9ms"),
        (9.96, "10ms"),
        (287.4, "287ms"),
        (999.4, "999ms"),
        (999.6, "1.0s"),
        (59_940, "59.9s"),
        (134_218, "2m14s"),
    ],
)
def test_measured_times(milliseconds, text):
    assert humanise.milliseconds(milliseconds) == text


def test_endpoints_bracket_ipv6():
    assert humanise.endpoint("2001:db8::/64", "8000-8010") == "[2001:db8::/64]:8000-8010"
    assert humanise.endpoint("10.0.0.0/24", "any") == "10.0.0.0/24:any"
    assert humanise.endpoint("10.0.0.1", 80) == "10.0.0.1:80"
    assert humanise.endpoint("fd00::1", "any") == "[fd00::1]:any"


def test_nearest_name_is_found_whatever_its_case():
    assert nearest("GPU1", ["gpu-1", "web"]) == "gpu-1"
    assert nearest("zzz", ["gpu-1", "web"]) is None


def test_remedy_lists_names_when_none_is_near():
    assert did_you_mean("zzz", ["b", "a"]) == "available: a, b"
    assert did_you_mean("zzz", [], what="services") == "there are no services yet"
    assert did_you_mean("zzz", [f"n{i}" for i in range(20)]).endswith("and 8 more")


TABLE = Table(
    (
        Column("NAME"),
        Column("WHY", prose=True),
        Column("MUCH", right=True, drop=1),
        Column("LITTLE", right=True, drop=2),
    ),
    ((Cell("a-long-name"), Cell("because of this and that, and more"), Cell("1"), Cell("2")),),
    prose_under="MUCH",
)


def shown(width):
    text, dropped = lines(TABLE, width)
    return [line.plain for line in text], dropped


def test_wide_table_is_one_line_a_row():
    assert shown(None) == (
        [
            "NAME         WHY                                 MUCH  LITTLE",
            "a-long-name  because of this and that, and more     1       2",
        ],
        (),
    )


def test_prose_wraps_before_anything_is_left_out():
    text, dropped = shown(50)
    assert dropped == ()
    assert text[1:] == [
        "a-long-name  because of this and         1       2",
        "             that, and more",
    ]


def test_prose_goes_below_when_its_column_would_be_too_narrow():
    text, dropped = shown(44)
    assert dropped == ()
    assert text == [
        "NAME         MUCH  LITTLE",
        "a-long-name     1       2",
        "             because of this and that, and",
        "             more",
    ]


def test_least_columns_are_left_out_first_and_names_never():
    text, dropped = shown(18)
    assert dropped == ("LITTLE",)
    assert text[1] == "a-long-name     1"
    assert shown(12)[1] == ("MUCH", "LITTLE")
    assert shown(5)[0][1] == "a-long-name"


def test_empty_table_has_its_header():
    assert [line.plain for line in lines(Table(TABLE.columns, ()), None)[0]] == [
        "NAME  WHY  MUCH  LITTLE"
    ]
