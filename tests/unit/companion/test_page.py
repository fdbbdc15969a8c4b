"""What a companion tells, and what a balancer makes of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.companion.page import LONGEST_PROBLEM, Status, lacking, parsed, rendered

VIP = ip_address("10.0.0.10")
STATUS = Status(("aa", "bb"), ("10.0.0.10", "fd00::10"), 1000.5)


def test_what_is_told_is_understood():
    assert parsed(rendered(STATUS)) == STATUS
    assert parsed(rendered(replace(STATUS, problem="x"))).problem == "x"
    assert parsed(b'{"keys": [], "vips": [], "time_s": 1, "later": 2}') == Status((), (), 1.0)


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"[]", b"{}", b"3", b'{"keys": 1, "vips": [], "time_s": 1}',
             b'{"keys": [], "vips": [], "time_s": "soon"}', b"\xff\xfe", b"[" * 60_000,
             b'{"keys": [], "vips": [], "time_s": NaN}',
             b'{"keys": [], "vips": [], "time_s": 1e999}']
)  # fmt: skip
def test_anything_else_is_no_companion(page: bytes):
    with pytest.raises(ValueError, match="no page of a companion"):
        parsed(page)


def test_what_a_stranger_says_there_moves_no_terminal():
    told = parsed(rendered(replace(STATUS, problem="\x1b]0;x\x07 no\nlo" + "!" * 1000)))
    assert told.problem.startswith("?]0;x? no?lo!!!")
    assert len(told.problem) == LONGEST_PROBLEM


def test_why_a_server_would_not_take_a_cookie():
    assert lacking(STATUS, "bb", VIP, 0.0) == ""
    assert lacking(STATUS, "cc", VIP, 0.0) == "its companion has another key"
    assert "10.0.0.11" in lacking(STATUS, "aa", ip_address("10.0.0.11"), 0.0)
    assert lacking(STATUS, "aa", VIP, 7.2) == "its clock is 7 s ahead"
    assert lacking(STATUS, "aa", VIP, -80.0) == "its clock is 80 s behind"
    assert lacking(replace(STATUS, problem="no lo"), "cc", VIP, 9.0) == "no lo"
