"""Decides which part of HTTP/1.1 the lab's servers understand: requests, and heads of answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

MAX_HEADER_BYTES = 16_384
MAX_BODY_BYTES = 1_048_576
IDLE_TIMEOUT_S = 300.0
TEXT, JSON = "text/plain", "application/json"
CHUNKED, LAST_CHUNK = "Transfer-Encoding: chunked", b"0\r\n\r\n"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
}


class BadRequestError(Exception):
    """A request that is answered with ``status``, after which the connection is closed."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message or _REASONS[status])
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that a server needs."""

    method: str
    path: str
    query: dict[str, list[str]]
    keep_alive: bool
    body_bytes: int


def parse_request(head: bytes) -> Request:
    """Read a request's head, up to and with the empty line; raises BadRequestError."""
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    try:
        method, target, version = request_line.split(" ")
        headers = dict(_header(line) for line in lines)
        url = urlsplit(target)
        body_bytes = int(headers.get("content-length", "0"))
    except ValueError as error:
        raise BadRequestError(400) from error
    if not version.startswith("HTTP/1.") or body_bytes < 0:
        raise BadRequestError(400)
    if "transfer-encoding" in headers:
        raise BadRequestError(411)
    if body_bytes > MAX_BODY_BYTES:
        raise BadRequestError(413)
    if method not in {"GET", "HEAD", "POST"}:
        raise BadRequestError(405)
    connection = headers.get("connection", "").lower()
    keep_alive = connection == "keep-alive" if version == "HTTP/1.0" else connection != "close"
    return Request(method, url.path, parse_qs(url.query), keep_alive, body_bytes)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(line)
    return name.strip().lower(), value.strip()


async def read_request(reader: asyncio.StreamReader) -> tuple[Request, bytes]:
    """Read the next request of a connection and its body; raises BadRequestError."""
    try:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            request = parse_request(await reader.readuntil(b"\r\n\r\n"))
            return request, await reader.readexactly(request.body_bytes)
    except asyncio.LimitOverrunError as error:
        raise BadRequestError(413) from error


def answer_head(
    name: str, status: int, framing: str, keep_alive: bool, content_type: str = TEXT
) -> bytes:
    """Return the head of an answer of the server called ``name``, with the empty line."""
    connection = "keep-alive" if keep_alive else "close"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"X-Backend: {name}\r\n"
        f"Connection: {connection}\r\n"
        f"{framing}\r\n\r\n"
    ).encode()


def answer(
    name: str, status: int, body: bytes, keep_alive: bool, content_type: str = TEXT
) -> bytes:
    """Return a whole answer."""
    framing = f"Content-Length: {len(body)}"
    return answer_head(name, status, framing, keep_alive, content_type) + body


def chunk(data: bytes) -> bytes:
    """Return a part of a chunked answer."""
    return b"%x\r\n%s\r\n" % (len(data), data)
