"""Where answers end, however they arrive."""

from __future__ import annotations

import pytest

from agent.telemetry.framing import MOST_BYTES, Answer, HttpAnswer, LineAnswer
from agent.telemetry.report import Failure

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
TRAILED = OK + b"Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n000\r\nX: y\r\n\r\n"


def arrive(answer: Answer, data: bytes, step: int) -> bytes | Failure | None:
    """What the answer makes of the data when it comes in pieces of that size."""
    for end in range(step, len(data) + step, step):
        result = answer.more(bytearray(data[:end]))
        if result is not None:
            return result
    return None


@pytest.mark.parametrize("data", [LENGTH, CHUNKED, TRAILED])
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(data: bytes, step: int) -> None:
    answer = HttpAnswer()
    assert arrive(answer, data, step) == b"hello"
    assert answer.reusable


def test_without_a_length_the_answer_ends_with_the_connection() -> None:
    answer = HttpAnswer()
    assert answer.more(OK + b"\r\nhel") is None
    assert answer.closed(OK + b"\r\nhello") == b"hello"
    assert not answer.reusable


@pytest.mark.parametrize(
    "data",
    [
        LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n"),
        LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0"),
        LENGTH + b"more than was said",
        CHUNKED + b"more",
    ],
)
def test_the_connection_is_not_used_again_after(data: bytes) -> None:
    answer = HttpAnswer()
    assert answer.more(data) == b"hello"
    assert not answer.reusable


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"\x00", "not HTTP"),
        (b"HTTP/1.1 twenty\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "not HTTP"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "HTTP 302, a redirect, which is not"),
        (OK + b"Content-Encoding: gzip\r\n\r\n", "compressed"),
        (OK + b"Content-Length: -5\r\n\r\n", "no valid Content-Length"),
        (OK + b"Content-Length: 99999999999999999999\r\n\r\n", "no valid Content-Length"),
        (OK + b"Content-Length: 104857600\r\n\r\n", "longer than 4 MiB"),
        (OK + b"\r\n" + b"x" * (MOST_BYTES + 1), "longer than 4 MiB"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "unknown Transfer-Encoding"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n40000001\r\n", "longer than 4 MiB"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", "chunks are broken"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "chunks are broken"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 300, "chunks are broken"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n", "chunks are broken"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"x" * 20_000, "no end"),
    ],
)
def test_what_is_no_good_answer_is_a_failure(data: bytes, words: str) -> None:
    result = HttpAnswer().more(data)
    assert isinstance(result, Failure)
    assert words in result.reason


def test_a_connection_that_is_closed_too_soon_is_a_failure() -> None:
    answer = HttpAnswer()
    assert answer.closed(b"") == Failure("the connection was closed before an answer")
    assert answer.more(LENGTH[:-1]) is None
    assert answer.closed(LENGTH[:-1]) == Failure("the connection was closed within the answer")


def test_a_line_ends_with_the_line_or_the_connection() -> None:
    assert LineAnswer().more(b"75") is None
    assert LineAnswer().more(b"75%\n") == b"75%\n"
    assert LineAnswer().closed(b"75%") == b"75%"
    assert isinstance(LineAnswer().closed(b""), Failure)
    assert isinstance(LineAnswer().more(b"x" * 5000), Failure)
