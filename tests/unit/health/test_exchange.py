"""How answers are judged, piece by piece; with real servers it is in test_probe.py."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.health.exchange import MOST_BYTES, Verdict, exchange_of, in_words
from agent.model import CheckKind, HealthCheck

SERVER = ip_address("10.0.0.21")
HTTP = exchange_of(HealthCheck(kind=CheckKind.HTTP), SERVER, 80)
EXPECTING = exchange_of(HealthCheck(send="hex:0d0a", expect="hex:504f4e47"), SERVER, 80)
BARE = exchange_of(HealthCheck(), SERVER, 80)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_HTTP = False, "the answer is not HTTP"


@pytest.mark.parametrize(
    ("received", "ended", "verdict"),
    [
        (b"", False, None),
        (b"", True, (False, "connection closed before an answer")),
        (b"HTTP/1.1 2", False, None),
        (b"HTTP/1.1 2", True, NOT_HTTP),
        (b"HTTP/1.1 204 ", False, (True, "HTTP 204 in 12 ms")),
        (b"HTTP/1.1 404 ", False, (False, "HTTP 404 in 12 ms, expected 200-399")),
        (INTERIM, False, None),
        (INTERIM, True, NOT_HTTP),
        (INTERIM + b"HTTP/1.0 200\r\n", False, (True, "HTTP 200 in 12 ms")),
        (b"SSH-2.0-OpenSSH_10.0\r\n", False, NOT_HTTP),
        (INTERIM[:-2] + b"x" * (MOST_BYTES - len(INTERIM) + 2), False, None),
        (INTERIM[:-2] + b"x" * MOST_BYTES, False, NOT_HTTP),
    ],
)
def test_http_is_judged_as_soon_as_its_status_is_known(
    received: bytes, ended: bool, verdict: Verdict | None
) -> None:
    assert HTTP.judge(received, ended, 0.0123) == verdict


@pytest.mark.parametrize(
    ("received", "ended", "verdict"),
    [
        (b"", False, None),
        (b"-PON", False, None),
        (b"-PONG", False, (True, "'hex:504f4e47' in under 1 ms")),
        (b"-PON", True, (False, "4 bytes in under 1 ms, without 'hex:504f4e47'")),
        (b"x" * MOST_BYTES, False, None),
    ],
)
def test_data_is_judged_as_soon_as_it_is_there(
    received: bytes, ended: bool, verdict: Verdict | None
) -> None:
    assert EXPECTING.judge(received, ended, 0.0001) == verdict


def test_data_that_never_comes_is_not_read_without_end() -> None:
    verdict = EXPECTING.judge(b"x" * (MOST_BYTES + 1), False, 1.0)
    assert verdict == (False, f"{MOST_BYTES + 1} bytes in 1000 ms, without 'hex:504f4e47'")


def test_what_is_sent_is_what_was_written() -> None:
    assert EXPECTING.request == b"\r\n"
    assert BARE.request == b""
    assert [each.is_one_way for each in (HTTP, EXPECTING, BARE)] == [False, False, True]
    assert BARE.judge(b"", False, 0.002) == (True, "connected in 2 ms")


def test_a_note_goes_with_the_time() -> None:
    check = HealthCheck(kind=CheckKind.HTTPS)
    noted = exchange_of(check, SERVER, 443, "; its certificate expires in 3 d 0 h")
    assert noted.judge(b"HTTP/1.1 500 x\r\n", False, 0.003) == (
        False,
        "HTTP 500 in 3 ms; its certificate expires in 3 d 0 h, expected 200-399",
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "under 1 ms"), (0.00099, "under 1 ms"), (0.001, "1 ms")]
)
def test_times_are_in_milliseconds(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
