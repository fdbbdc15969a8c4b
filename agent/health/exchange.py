"""Decides what a ``tcp``, ``http`` or ``https`` check sends, and how its answer is judged. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from agent.model import Address, CheckKind, HealthCheck

USER_AGENT = "steelyard-health-check"
MOST_BYTES = 1 << 18  # how much of an answer is read
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r\n]")
_STATUS_LENGTH = len("HTTP/1.1 200 ")
_FINAL, _SWITCHES = 200, 101
_HTTP_PORT, _HTTPS_PORT = 80, 443
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE")

type Verdict = tuple[bool, str]
# Takes what has arrived, whether that was all, and the time since the start in seconds. Returns
# whether the server is well and why, or None if more has to arrive.
type Judge = Callable[[bytes, bool, float], Verdict | None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is sent once the connection is established, and how to judge the answer.

    ``is_one_way``: no answer is expected, so the judgement is made without one.
    """

    request: bytes
    judge: Judge
    is_one_way: bool = False


def exchange_of(check: HealthCheck, address: Address, port: int, note: str = "") -> Exchange:
    """Return the exchange of a ``tcp``, ``http`` or ``https`` check; ``note`` is added to the
    status.
    """
    if check.kind is CheckKind.TCP:
        if check.expect is None:
            return Exchange(payload(check.send), _connected, is_one_way=True)
        return Exchange(payload(check.send), partial(_data, check.expect, payload(check.expect)))
    return Exchange(_request(check, address, port), partial(_http, check.expect_status, note))


def payload(written: str) -> bytes:
    """Return the bytes that the operator wrote as a text, or as ``hex:`` and hex digits."""
    return bytes.fromhex(written[4:]) if written.startswith("hex:") else written.encode()


def in_words(elapsed_s: float) -> str:
    """Return how long an exchange took."""
    return f"{elapsed_s * 1000:.0f} ms" if elapsed_s >= 0.001 else "under 1 ms"


def _connected(_received: bytes, _ended: bool, took_s: float) -> Verdict:
    return True, f"connected in {in_words(took_s)}"


def _data(
    written: str, expected: bytes, received: bytes, ended: bool, took_s: float
) -> Verdict | None:
    """Judge by the data that the server sends, like HAProxy's tcp-check."""
    if expected in received:
        return True, f"{written!r} in {in_words(took_s)}"
    if ended or len(received) > MOST_BYTES:
        return False, f"{len(received)} bytes in {in_words(took_s)}, without {written!r}"
    return None


def _http(
    expected: tuple[tuple[int, int], ...],
    note: str,
    received: bytes,
    ended: bool,
    took_s: float,
) -> Verdict | None:
    """Judge by the status. The body, which may be long, is not waited for."""
    try:
        status = _status_in(received)
    except ValueError as error:
        return False, str(error)
    if status is None:
        if ended and not received:
            return False, "connection closed before an answer"
        return (False, _NOT_HTTP) if ended or len(received) > MOST_BYTES else None
    detail = f"HTTP {status} in {in_words(took_s)}{note}"
    for low, high in expected:
        if low <= status <= high:
            return True, detail
    return False, f"{detail}, expected {_ranges(expected)}"


_NOT_HTTP = "the answer is not HTTP"


def _status_in(received: bytes) -> int | None:
    """Return the status in what has arrived of an answer (RFC 9112, section 4), or None if it has
    not arrived yet. Interim responses are skipped (RFC 9110, section 15.2). ValueError if it is not
    HTTP.
    """
    begin = 0
    while len(received) - begin >= _STATUS_LENGTH:
        found = _STATUS.match(received, begin)
        if found is None:
            raise ValueError(_NOT_HTTP)
        status = int(found[1])
        if status >= _FINAL or status == _SWITCHES:
            return status
        ends = received.find(b"\r\n\r\n", begin)
        if ends < 0:
            return None
        begin = ends + 4
    return None


def _ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _request(check: HealthCheck, address: Address, port: int) -> bytes:
    literal = f"[{address}]" if address.version == 6 else str(address)
    usual = _HTTPS_PORT if check.kind is CheckKind.HTTPS else _HTTP_PORT
    host = check.host or (literal if port == usual else f"{literal}:{port}")
    lines = [
        # The path is sent exactly as the operator wrote it.
        f"{check.method} {check.path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: {USER_AGENT}",
        "Accept: */*",
        "Connection: close",
        *(["Content-Length: 0"] if check.method not in _WITHOUT_BODY else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
