"""Reads from taps what clients asked: connections, and how many request bytes had passed when.

A segment of a client passes the tap at the clients, then the balancer, then the tap at the server.
So however long anything stands still on the way, the balancer saw it between the two.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.netns.prompt.tap import PSH, RST, SYN, Segment

_CHANGE_CIPHER, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23  # RFC 8446, section 5.1
_RECORD_HEADER = 5
_PREFACE, _FRAME_HEADER = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 9  # RFC 9113
_MESSAGE_FRAMES = (0, 1, 9)  # DATA, HEADERS, CONTINUATION
_CONTENT = re.compile(rb"x{16}|y{16}")  # what the servers' answers are of
_NEVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Stirring:
    """A segment of a client that begins the time of its request anew. ``end``: of its bytes in the
    stream. Not ``sure``: it can depend on the order in which the balancer gets it and others.
    """

    at_ns: int
    end: int
    sure: bool


@dataclass
class Connection:
    """One connection, as one tap saw it."""

    port: int  # of the client
    first_seq: int
    opened_ns: int  # the first SYN
    headless_until_ns: int = 0  # its first segment was overtaken by others, and came then
    reset_ns: int = 0  # by the client
    _sent: list[Segment] = field(default_factory=list)  # the client's with payload; again or not
    _acks: list[tuple[int, int, int]] = field(default_factory=list)  # when, up to where, how much
    _replies: list[Segment] = field(default_factory=list)  # the server's with payload
    _gaps: list[tuple[int, int]] = field(default_factory=list)  # when, how many bytes
    _at_ns: list[int] = field(default_factory=list)
    _highest: list[int] = field(default_factory=list)  # bytes of the stream, known from then on
    _stream: dict[int, bytes] = field(default_factory=dict)

    def add(self, segment: Segment) -> None:
        """Note a segment with payload that the client sent."""
        self._sent.append(segment)
        start = self._place(segment)
        if not start and self._stream and 0 not in self._stream:
            self.headless_until_ns = segment.at_ns
        self._stream.setdefault(start, segment.payload)
        end, highest = start + len(segment.payload), self.bytes_at(segment.at_ns)
        if end > highest:
            self._at_ns.append(segment.at_ns)
            self._highest.append(end)
            self._gaps.append((segment.at_ns, max(0, start - highest)))

    def _place(self, segment: Segment) -> int:
        """Where in the client's stream a segment of it begins."""
        return (segment.seq - self.first_seq) % 2**32

    def bytes_at(self, at_ns: int) -> int:
        """How many bytes of the client's stream had passed by then; holes count as passed."""
        place = bisect.bisect_right(self._at_ns, at_ns)
        return self._highest[place - 1] if place else 0

    def gaps(self, at_ns: int) -> list[int]:
        """How much was missing before each segment that had passed by then, lost or overtaken."""
        return [size for when, size in self._gaps if size and when <= at_ns]

    def reached_ns(self, size: int) -> int:
        """When more of the client's stream than so many bytes had passed."""
        place = bisect.bisect_right(self._highest, size)
        return self._at_ns[place] if place < len(self._at_ns) else _NEVER_NS

    def complete_ns(self, at_ns: int, control: int) -> int:
        """When all had passed, holes too, that the client had sent by then; 0: it had sent nothing.
        Segments with no more than ``control`` bytes do not count, control frames aside.
        """
        covered, complete_ns = bytearray(self.bytes_at(at_ns)), 0
        for segment in self._sent:
            start, size = self._place(segment), len(segment.payload)
            if segment.at_ns <= at_ns and covered.find(0, start, start + size) >= 0:
                covered[start : start + size] = b"\1" * size
                if size - self.control_in(start, start + size) > control:
                    complete_ns = segment.at_ns
        return complete_ns

    def stirrings(self, control: int) -> list[Stirring]:
        """What begins a request's time anew, or may do so: more than ``control`` new bytes, or more
        bytes that were sent again than the one of a keep-alive probe.
        """
        found, highest = [], 0
        for segment in self._sent:
            start, size = self._place(segment), len(segment.payload)
            end = start + size
            if size > (control if end > highest else 1):
                told = size - self.control_in(start, end)
                sure = end > highest and told > control and bool(segment.flags & PSH)
                found.append(Stirring(segment.at_ns, end, sure))
            highest = max(highest, end)
        return found

    def stirred_ns(self, before_ns: int, control: int) -> int:
        """When the last of it had passed before that time; 0: nothing had."""
        times = (one.at_ns for one in self.stirrings(control) if one.at_ns < before_ns)
        return max(times, default=0)

    def add_ack(self, segment: Segment) -> None:
        """Note what a segment of the client's acknowledges."""
        acked = self._acks[-1][1] if self._acks else segment.ack
        new = (segment.ack - acked) % 2**32
        if not self._acks or 0 < new < 2**31:
            self._acks.append((segment.at_ns, segment.ack, new))

    def acks(self) -> list[tuple[int, int, int]]:
        """When the client acknowledged more, up to which number, and how much more."""
        return self._acks

    def acked_ns(self, number: int) -> int:
        """When an acknowledgement up to that number or further had passed."""
        found = (at_ns for at_ns, acked, _ in self._acks if (acked - number) % 2**32 < 2**31)
        return next(found, _NEVER_NS)

    def last_sent_ns(self, at_ns: int) -> int:
        """When bytes of the client had passed the last time by then; 0: never."""
        return max((sent.at_ns for sent in self._sent if sent.at_ns <= at_ns), default=0)

    def add_reply(self, segment: Segment) -> None:
        """Note a segment with payload that the server sent."""
        self._replies.append(segment)

    def replies(self) -> list[Segment]:
        """The server's segments with payload."""
        return self._replies

    def replied_ns(self, reply: Segment) -> int:
        """When a segment of the server's had passed for the first time, as another tap saw it."""
        found = (one.at_ns for one in self._replies if _end(one) == _end(reply))
        return next(found, 0)

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
    def is_encrypted(self) -> bool:
        """Whether it is of TLS."""
        return self._stream.get(0, b"")[:1] == bytes([_HANDSHAKE])

    @property
    def requests_from(self) -> int:
        """Where in the stream the requests begin: after a TLS handshake, if there is one."""
        stream, offset, changed = self.stream, 0, False
        if not self.is_encrypted:
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


def _end(segment: Segment) -> int:
    return (segment.seq + len(segment.payload)) % 2**32


def connections(segments: Iterable[Segment], server_port: int) -> dict[int, Connection]:
    """The connections to a server's port, by the client's port."""
    found: dict[int, Connection] = {}
    for segment in segments:
        if segment.source[1] == server_port and segment.target[1] in found:
            if segment.payload:
                found[segment.target[1]].add_reply(segment)
            continue
        if segment.target[1] != server_port:
            continue
        port = segment.source[1]
        if segment.flags & SYN:
            found.setdefault(port, Connection(port, (segment.seq + 1) % 2**32, segment.at_ns))
        elif port in found and segment.flags & RST:
            found[port].reset_ns = found[port].reset_ns or segment.at_ns
        elif port in found:
            found[port].add_ack(segment)
            if segment.payload:
                found[port].add(segment)
    return found


@dataclass(frozen=True, slots=True)
class Heard:
    """So many bytes of the server that the balancer saw, or the client's acknowledgement of them:
    between ``earliest_ns`` and ``latest_ns``, and after what the client had sent at ``asked_ns``.
    """

    earliest_ns: int
    latest_ns: int
    asked_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One connection, as the taps at the client and at its server saw it."""

    client: Connection
    server: Connection

    @property
    def handshake_ns(self) -> int:
        """How long the balancer saw its handshake take, at most."""
        return self.server.acks()[0][0] - self.client.opened_ns if self.server.acks() else 0

    def acknowledged(self, control: int) -> list[Heard]:
        """What the client acknowledged, in order."""
        asked, found = [one for one in self.client.stirrings(control) if one.sure], []
        for at_ns, number, new in self.client.acks():
            asked_ns = max((one.at_ns for one in asked if one.at_ns < at_ns), default=0)
            found.append(Heard(at_ns, self.server.acked_ns(number), asked_ns, new))
        return found

    def replied(self, control: int) -> list[Heard]:
        """What the server sent, in order."""
        asked, found = [one for one in self.client.stirrings(control) if one.sure], []
        for reply in self.client.replies():
            sent_ns = self.server.replied_ns(reply)
            arrived = self.server.bytes_at(sent_ns)
            asked_ns = max((one.at_ns for one in asked if one.end <= arrived), default=0)
            found.append(Heard(sent_ns, reply.at_ns, asked_ns, len(reply.payload)))
        return found

    def answered_ns(self, first_ns: int, *, acknowledged: bool) -> int | None:
        """When at the latest the balancer had seen the answer begin that the server began then, or
        the client's acknowledgement of it; None: no tap has seen it.

        An answer that the balancer can read has begun with its content, whatever comes late.
        """
        if acknowledged:
            return next((at_ns for at_ns, _, _ in self.server.acks() if at_ns > first_ns), None)
        for reply in self.client.replies():
            if reply.at_ns > first_ns and (
                self.client.is_encrypted or _CONTENT.search(reply.payload)
            ):
                return reply.at_ns
        return None


def pairs(
    at_client: Iterable[Segment], at_server: Iterable[Segment], server_port: int
) -> dict[int, Pair]:
    """The connections to a server's port, by the client's port. A balancer may exchange addresses
    and ports, but not the numbers of a client's bytes.
    """
    arrived = {each.first_seq: each for each in connections(at_server, server_port).values()}
    return {
        port: Pair(sent, arrived.get(sent.first_seq, Connection(port, sent.first_seq, 0)))
        for port, sent in connections(at_client, server_port).items()
    }
