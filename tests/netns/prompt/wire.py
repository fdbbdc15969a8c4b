"""Reads from a tap what clients asked: connections, and how many request bytes had passed when."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.netns.prompt.tap import SYN, Segment

_CHANGE_CIPHER, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23  # RFC 8446, section 5.1
_RECORD_HEADER = 5


@dataclass
class Connection:
    """The client's side of one connection."""

    port: int  # of the client
    first_seq: int
    _at_ns: list[int] = field(default_factory=list)
    _highest: list[int] = field(default_factory=list)  # bytes of the stream, known from then on
    _stream: dict[int, bytes] = field(default_factory=dict)

    def add(self, segment: Segment) -> None:
        """Note a segment with payload that the client sent."""
        start = (segment.seq - self.first_seq) % 2**32
        self._stream.setdefault(start, segment.payload)
        end = start + len(segment.payload)
        if end > self.bytes_at(segment.at_ns):
            self._at_ns.append(segment.at_ns)
            self._highest.append(end)

    def bytes_at(self, at_ns: int) -> int:
        """How many bytes of its stream the client had sent by then; holes count as sent."""
        place = bisect.bisect_right(self._at_ns, at_ns)
        return self._highest[place - 1] if place else 0

    def next_request(self, at_ns: int, control: int) -> tuple[int, int] | None:
        """When the next request began after that time, and how much had been sent before it.

        Segments with no more than ``control`` bytes are no requests: window updates, pings,
        the farewell of TLS.
        """
        before = self.requests_from
        for when, highest in zip(self._at_ns, self._highest, strict=True):
            if when > at_ns and highest - before > control:
                return when, before
            before = max(before, highest)
        return None

    @property
    def stream(self) -> bytes:
        """All that the client sent, in order."""
        whole = bytearray()
        for start in sorted(self._stream):
            payload = self._stream[start]
            whole[start : start + len(payload)] = payload
        return bytes(whole)

    @property
    def requests_from(self) -> int:
        """Where in the stream the requests begin: after a TLS handshake, if there is one."""
        stream, offset, changed = self.stream, 0, False
        if stream[:1] != bytes([_HANDSHAKE]):
            return 0
        while offset + _RECORD_HEADER <= len(stream):
            kind = stream[offset]
            if kind == _DATA and not (changed and self._speaks_tls13):
                return offset
            changed = kind == _CHANGE_CIPHER  # in TLS 1.3 the client's Finished comes next
            offset += _RECORD_HEADER + int.from_bytes(stream[offset + 3 : offset + 5], "big")
        return offset

    @property
    def _speaks_tls13(self) -> bool:
        # In 1.2 the Finished that follows the change of ciphers is a handshake record.
        stream, offset, changed = self.stream, 0, False
        while offset + _RECORD_HEADER <= len(stream):
            if changed:
                return stream[offset] == _DATA
            changed = stream[offset] == _CHANGE_CIPHER
            offset += _RECORD_HEADER + int.from_bytes(stream[offset + 3 : offset + 5], "big")
        return False


def connections(segments: Iterable[Segment], server_port: int) -> dict[int, Connection]:
    """The connections to a server's port, by the client's port."""
    found: dict[int, Connection] = {}
    for segment in segments:
        if segment.target[1] != server_port:
            continue
        port = segment.source[1]
        if segment.flags & SYN:
            found.setdefault(port, Connection(port, segment.seq + 1))
        elif segment.payload and port in found:
            found[port].add(segment)
    return found
