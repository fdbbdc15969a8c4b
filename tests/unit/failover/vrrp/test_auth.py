"""Passwords, and counters that guard against replays."""

from __future__ import annotations

import pytest

from agent.failover.model import Authentication
from agent.failover.vrrp import auth

NOW_NS = 1_800_000_000_123_456_789


def test_a_password_is_its_first_eight_bytes() -> None:
    assert auth.password_bytes("s3cr3t01") == b"s3cr3t01"
    assert auth.password_bytes("s3cr3t012345") == b"s3cr3t01"
    assert auth.password_bytes("short") == b"short\0\0\0"
    assert auth.password_bytes(None) == bytes(8)
    assert auth.password_bytes("éééééééé") == "éééé".encode()


@pytest.mark.parametrize(
    ("kind", "begin"),
    [(Authentication.AH, 1_800_000_000), (Authentication.HMAC, NOW_NS)],
)
def test_counters_begin_with_the_time_and_only_grow(kind: Authentication, begin: int) -> None:
    first = auth.next_counter(kind, 0, NOW_NS)
    assert first == begin
    assert auth.next_counter(kind, first, NOW_NS) == first + 1
    assert auth.next_counter(kind, first, NOW_NS - 10**15) == first + 1, "the clock was set back"


def test_counters_go_on_from_the_highest_that_was_heard() -> None:
    heard = NOW_NS * 2
    assert auth.next_counter(Authentication.HMAC, heard, NOW_NS) == heard + 1


def test_a_counter_fits_its_place_whatever_was_heard() -> None:
    assert auth.next_counter(Authentication.AH, 2**32 - 1, NOW_NS) < 2**32
    assert auth.next_counter(Authentication.HMAC, 2**64 - 1, NOW_NS) < 2**64


def test_without_ah_or_hmac_there_is_no_counter() -> None:
    assert auth.next_counter(Authentication.PASSWORD, 5, NOW_NS) == 0
