"""Asks a gRPC server for its health: grpc.health.v1, ``Health/Check``, on a connection of its own.

It speaks HTTP/2 (RFC 9113), over TLS or not; the request and the response have one field each
(https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

_PATH = "/grpc.health.v1.Health/Check"
_PREFIX_BYTES = 5  # the compressed flag and the length of the message
_READ_BYTES = 65_536
_MOST_BYTES = 1 << 16
_CLOSED, _NOT_HTTP2 = "connection closed before an answer", "the answer is not HTTP/2"
_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


@dataclass(slots=True)
class _Answer:
    """What has arrived of the answer."""

    headers: dict[str, str] = field(default_factory=dict)  # trailers included
    body: bytes = b""
    is_whole: bool = False
    problem: str = ""


async def check(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    origin: tuple[str, str],
    service: str,
) -> tuple[bool, str]:
    """Return whether it serves ``service`` (empty: the whole server), and its status in words.

    ``origin``: scheme and authority.
    """
    answer = await _call(reader, writer, origin, request(service))
    if answer.problem:
        return False, answer.problem
    if answer.headers.get(":status") != "200":
        return False, f"HTTP {answer.headers.get(':status', '?')}, not gRPC"
    status = answer.headers.get("grpc-status", "missing")
    if status == "0":
        serving_status = serving(answer.body)
        return serving_status == "SERVING", serving_status
    if status == "5":  # NOT_FOUND
        return False, f"it knows no service {service!r}"
    if status == "12":  # UNIMPLEMENTED
        return False, "it has no health service (grpc.health.v1)"
    return False, f"gRPC status {status}"


def request(service: str) -> bytes:
    """Return the message HealthCheckRequest with its prefix."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def serving(body: bytes) -> str:
    """Return the status in a HealthCheckResponse with its prefix."""
    message = body[_PREFIX_BYTES:]
    if message[:1] != b"\x08":  # protobuf leaves out a field that is 0
        return _STATUSES[0]
    return _STATUSES.get(message[1] if len(message) > 1 else 0, "an unknown status")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


async def _call(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    origin: tuple[str, str],
    message: bytes,
) -> _Answer:
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.exceptions import H2Error

    http2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    http2.initiate_connection()
    stream = http2.get_next_available_stream_id()
    headers = {
        ":method": "POST",
        ":scheme": origin[0],
        ":authority": origin[1],
        ":path": _PATH,
        "content-type": "application/grpc",
        "te": "trailers",
        "user-agent": "steelyard-health-check",
    }
    http2.send_headers(stream, list(headers.items()))
    http2.send_data(stream, message, end_stream=True)
    answer, came, is_http2 = _Answer(), False, False
    try:
        while not answer.is_whole:
            writer.write(http2.data_to_send())
            data = await reader.read(_READ_BYTES)
            if not data:
                answer.problem = _NOT_HTTP2 if came and not is_http2 else _CLOSED
                break
            came = True
            for event in http2.receive_data(data):
                is_http2 = True
                _take(answer, event)
    except (H2Error, UnicodeError):
        answer.problem = _NOT_HTTP2
    return answer


def _take(answer: _Answer, event: object) -> None:
    from h2 import events

    match event:
        case events.ResponseReceived() | events.TrailersReceived():
            answer.headers |= {str(name): str(value) for name, value in event.headers or ()}
        case events.DataReceived():
            answer.body = (answer.body + (event.data or b""))[:_MOST_BYTES]
        case events.StreamEnded():
            answer.is_whole = True
        case events.StreamReset():
            answer.is_whole, answer.problem = True, "it reset the request"
        case events.ConnectionTerminated():
            answer.is_whole, answer.problem = True, "it ended the connection"
        case _:
            pass
