"""Reads from a tap what clients asked: connections, and how many request bytes had passed when."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.netns.prompt.tap import SYN, Segment

_CHANGE_CIPHER, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23  # RFC 8446, section 5.1
_RECORD_HEADER = 5
_PREFACE, _FRAME_HEADER = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 9  # RFC 9113
_MESSAGE_FRAMES = (0, 1, 9)  # DATA, HEADERS, CONTINUATION


@dataclass
class Connection:
    """The client's side of one connection."""

    port: int  # of the client
    first_seq: int
    opened_ns: int  # the first SYN
    headless_until_ns: int = 0  # its first segment was overtaken by others, and came then
    _resent: list[tuple[int, int]] = field(default_factory=list)  # when, how many bytes again
    _sent: list[tuple[int, int]] = field(default_factory=list)  # when, how much; again or not
    _acks: list[tuple[int, int]] = field(default_factory=list)  # when, how much was new
    _replies: list[tuple[int, int]] = field(default_factory=list)  # the server's: when, how much
    _holes: dict[int, tuple[int, int]] = field(default_factory=dict)  # by end: when, how large
    _acked: int | None = None
    _at_ns: list[int] = field(default_factory=list)
    _highest: list[int] = field(default_factory=list)  # bytes of the stream, known from then on
    _stream: dict[int, bytes] = field(default_factory=dict)

    def add(self, segment: Segment) -> None:
        """Note a segment with payload that the client sent."""
        self._sent.append((segment.at_ns, len(segment.payload)))
        start = (segment.seq - self.first_seq) % 2**32
        if not start and self._stream and 0 not in self._stream:
            self.headless_until_ns = segment.at_ns
        self._stream.setdefault(start, segment.payload)
        end = start + len(segment.payload)
        if end > self.bytes_at(segment.at_ns):
            self._at_ns.append(segment.at_ns)
            self._highest.append(end)
        else:
            self._resent.append((segment.at_ns, len(segment.payload)))

    def bytes_at(self, at_ns: int) -> int:
        """How many bytes of its stream the client had sent by then; holes count as sent."""
        place = bisect.bisect_right(self._at_ns, at_ns)
        return self._highest[place - 1] if place else 0

    def resent(self, at_ns: int) -> tuple[int, int]:
        """How many bytes it had sent again by then, and has since, each time that they were."""
        before = sum(size for when, size in self._resent if when <= at_ns)
        return before, sum(size for _, size in self._resent) - before

    def add_hole(self, segment: Segment) -> None:
        """Note what the server misses of what the client sent: it is lost, or was overtaken."""
        end = (segment.ack + segment.hole) % 2**32
        at_ns, size = self._holes.get(end, (segment.at_ns, 0))
        self._holes[end] = at_ns, max(size, segment.hole)

    def holes(self, at_ns: int) -> list[int]:
        """How large the gaps were that the server had seen by then."""
        return [size for when, size in self._holes.values() if when <= at_ns]

    def add_ack(self, segment: Segment) -> None:
        """Note what a segment of the client's acknowledges."""
        new = (segment.ack - (self._acked or segment.ack)) % 2**32
        if self._acked is None or 0 < new < 2**31:
            self._acked = segment.ack
            self._acks.append((segment.at_ns, new))

    @property
    def handshake_ns(self) -> int:
        """How long the client's handshake took."""
        return self._acks[0][0] - self.opened_ns if self._acks else 0

    def last_sent_ns(self, at_ns: int, control: int = 0) -> int:
        """When the client had sent bytes the last time by then; 0: never. Segments with no more
        than ``control`` bytes do not count.
        """
        sent = (when for when, size in self._sent if when <= at_ns and size > control)
        return max(sent, default=0)

    def add_reply(self, segment: Segment) -> None:
        """Note a segment with payload that the server sent."""
        self._replies.append((segment.at_ns, len(segment.payload)))

    def heard_between(self, from_ns: int, to_ns: int, *, acknowledged: bool) -> list[int]:
        """How many bytes each segment of the server's had in that time; or, ``acknowledged``,
        each acknowledgement was for.
        """
        heard = self._acks if acknowledged else self._replies
        return [new for at_ns, new in heard if from_ns < at_ns < to_ns]

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

    def control_in(self, start: int, end: int) -> int:
        """How many bytes of a part of the stream are HTTP/2's own: preface and control frames."""
        return sum(max(0, min(end, till) - max(start, from_)) for from_, till in self._control)

    @functools.cached_property
    def _control(self) -> list[tuple[int, int]]:
        stream, offset = self.stream, len(_PREFACE)
        if not stream.startswith(_PREFACE):
            return []
        found = [(0, offset)]
        while offset + _FRAME_HEADER <= len(stream):
            size = _FRAME_HEADER + int.from_bytes(stream[offset : offset + 3], "big")
            if stream[offset + 3] not in _MESSAGE_FRAMES:
                found.append((offset, offset + size))
            offset += size
        return found

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
        if segment.source[1] == server_port and segment.target[1] in found:
            if segment.hole:
                found[segment.target[1]].add_hole(segment)
            if segment.payload:
                found[segment.target[1]].add_reply(segment)
            continue
        if segment.target[1] != server_port:
            continue
        port = segment.source[1]
        if segment.flags & SYN:
            found.setdefault(port, Connection(port, segment.seq + 1, segment.at_ns))
        elif port in found:
            found[port].add_ack(segment)
            if segment.payload:
                found[port].add(segment)
    return found
