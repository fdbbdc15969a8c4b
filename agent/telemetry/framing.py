"""Decides where an answer ends while it arrives: HTTP/1.1 by length, chunks or close; or one line.

Whatever the server sends, the number of bytes read for one answer is bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from agent.telemetry.report import Failure

MOST_BYTES = 4 * 2**20  # real pages of engines have less than 300 KB
_LONGEST_HEAD = 16_384
_LONGEST_LINE = 4096
_LONGEST_CHUNK_HEAD = 256

_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?=[ \r])")
_FIELD = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|content-encoding)[ \t]*:[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
_TOO_LONG = Failure(f"the answer is longer than {MOST_BYTES >> 20} MiB")


class Answer(Protocol):
    """One answer; its methods are given everything that has arrived of it so far."""

    @property
    def reusable(self) -> bool:
        """Whether the connection can be used again; valid once the answer is complete."""
        ...

    def more(self, data: bytes | bytearray) -> bytes | Failure | None:
        """Return the content once it is complete, Failure if it is invalid, or None if more has to
        arrive.
        """
        ...

    def closed(self, data: bytes | bytearray) -> bytes | Failure:
        """Return the content or Failure, now that the server has closed the connection."""
        ...


@dataclass(slots=True)
class HttpAnswer:
    """An answer of HTTP/1.x."""

    reusable: bool = False
    _body: int = 0  # where the body begins; 0: the head is not complete
    _length: int | None = None
    _chunked: bool = False
    _at: int = 0  # chunked: where the next chunk begins
    _chunks: list[tuple[int, int]] | None = None

    def more(self, data: bytes | bytearray) -> bytes | Failure | None:
        if not self._body:
            failure = self._head(data)
            if failure is not None or not self._body:
                return failure
        if self._chunked:
            return self._next_chunks(data)
        if self._length is None:
            return _TOO_LONG if len(data) - self._body > MOST_BYTES else None
        end = self._body + self._length
        if len(data) < end:
            return None
        self.reusable &= len(data) == end
        return _cut(data, self._body, end)

    def closed(self, data: bytes | bytearray) -> bytes | Failure:
        self.reusable = False
        if self._body and self._length is None and not self._chunked:
            return _cut(data, self._body, len(data))
        return Failure(
            "the connection was closed within the answer"
            if data
            else "the connection was closed before an answer"
        )

    def _head(self, data: bytes | bytearray) -> Failure | None:
        end = data.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        if end < 0:
            if data[:5] != b"HTTP/"[: len(data)]:
                return Failure("the answer is not HTTP")
            return Failure("the answer is not HTTP") if len(data) >= _LONGEST_HEAD else None
        status = _STATUS.match(data)
        if status is None:
            return Failure("the answer is not HTTP")
        self.reusable = status[1] == b"1"
        for name, value in _FIELD.findall(data, status.end(), end):
            failure = self._field(name.lower(), value.strip().lower())
            if failure is not None:
                return failure
        if status[2] != b"200":
            words = ", a redirect, which is not followed" if status[2].startswith(b"3") else ""
            return Failure(f"HTTP {status[2].decode()}{words}")
        self._body = self._at = end + 4
        if self._length is None and not self._chunked:
            self.reusable = False
        return None

    def _field(self, name: bytes, value: bytes) -> Failure | None:
        match name:
            case b"content-length":
                if not value.isdigit() or len(value) > 18:
                    return Failure("the answer has no valid Content-Length")
                self._length = int(value)
                return _TOO_LONG if self._length > MOST_BYTES else None
            case b"transfer-encoding":
                self._chunked = True
                self._chunks = []
                return None if value == b"chunked" else Failure("unknown Transfer-Encoding")
            case b"connection":
                self.reusable &= b"close" not in value
            case b"content-encoding" if value != b"identity":
                return Failure("the answer is compressed, which was not asked for")
        return None

    def _next_chunks(self, data: bytes | bytearray) -> bytes | Failure | None:
        chunks = self._chunks or []
        self._chunks = chunks
        while True:
            line = data.find(b"\r\n", self._at, self._at + _LONGEST_CHUNK_HEAD)
            if line < 0:
                waits = len(data) < self._at + _LONGEST_CHUNK_HEAD
                return None if waits else Failure("the answer's chunks are broken")
            size = bytes(data[self._at : line]).partition(b";")[0].strip()
            try:
                length = int(size, 16) if size.isalnum() else -1
            except ValueError:
                length = -1
            if length < 0:
                return Failure("the answer's chunks are broken")
            begin = line + 2
            if begin + length - self._body > MOST_BYTES:
                return _TOO_LONG
            if length == 0:
                return self._last_chunk(data, line)
            if len(data) < begin + length + 2:
                return None
            if data[begin + length : begin + length + 2] != b"\r\n":
                return Failure("the answer's chunks are broken")
            chunks.append((begin, begin + length))
            self._at = begin + length + 2

    def _last_chunk(self, data: bytes | bytearray, line: int) -> bytes | Failure | None:
        # Trailer fields may follow the last chunk; an empty line ends them.
        end = data.find(b"\r\n\r\n", line, line + _LONGEST_HEAD)
        if end < 0:
            return None if len(data) < line + _LONGEST_HEAD else Failure("the answer has no end")
        self.reusable &= len(data) == end + 4
        chunks = self._chunks or []
        if len(chunks) == 1:
            return _cut(data, *chunks[0])
        return b"".join(_cut(data, *chunk) for chunk in chunks)


@dataclass(slots=True)
class LineAnswer:
    """One line, or everything until the server closes."""

    reusable: bool = False

    def more(self, data: bytes | bytearray) -> bytes | Failure | None:
        if data.find(b"\n") >= 0:
            return bytes(data)
        return Failure("the answer is not a line of text") if len(data) > _LONGEST_LINE else None

    def closed(self, data: bytes | bytearray) -> bytes | Failure:
        return bytes(data) if data else Failure("the connection was closed before an answer")


def _cut(data: bytes | bytearray, begin: int, end: int) -> bytes:
    return bytes(memoryview(data)[begin:end])  # one copy, for bytes and bytearray
