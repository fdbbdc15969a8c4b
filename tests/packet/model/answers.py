"""What the sender is told of a packet that is dropped: RST, ICMP errors, or nothing."""

from __future__ import annotations

import struct

from tests.packet.model.flows import FIN, RST, SYN
from tests.packet.model.read import (
    ICMP_NUMBER,
    ICMPV6_NUMBER,
    TCP_NUMBER,
    UDP_NUMBER,
    Reading,
    is_host,
)
from tests.packet.model.services import Member, Target
from tests.packet.model.synack import WINDOW
from tests.packet.model.write import outer_length
from tests.packet.pieces import header
from tests.packet.wires import checksum, pseudo_header

ACK = 16
QUOTED = 128  # bytes of a packet, at most; whole words
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}


def _is_due(read: Reading) -> bool:
    """RFC 1122, section 3.2.2; RFC 4443, section 2.4."""
    return not (read.quote or read.is_later or read.frame[0] & 1) and is_host(read.src)


def answer(
    read: Reading,
    reason: str,
    target: Target | None,
    member: Member | None,
    own: str,
    *,
    is_over: bool = False,
    secret: int | None = None,
    options: bytes | None = None,
) -> bytes | None:
    """The frame that the sender gets; ``own``: from which address it is told, ``is_over``: it
    was sent on a connection that is over; ``secret``: what it is to send back, if it has
    ``options`` to a SYN-ACK.
    """
    if not _is_due(read):
        return None
    if reason == "ttl-exceeded":
        return _icmp(read, own, TIME_EXCEEDED, 0)
    if reason == "too-big" and member and target:
        return _icmp(read, own, TOO_BIG, member.mtu - outer_length(member, target.forward))
    if secret is not None and options is not None:
        numbers = (secret, (read.seq + 1) % 2**32)
        return None if read.ident else _segment(read, numbers, SYN | ACK, options, WINDOW)
    if secret is not None:
        return None if read.ident or read.flags & RST else _challenge(read, secret)
    if is_over and read.protocol == TCP_NUMBER and read.ident is None:
        return None if read.flags & RST else _reset(read)
    if reason != "no-backend" or target is None or not target.resets or read.ident is not None:
        return None
    if read.protocol == UDP_NUMBER:
        return _icmp(read, own, PORT_UNREACHABLE, 0)
    return None if read.flags & RST else _reset(read)


def _framed(read: Reading, packet: bytes) -> bytes:
    """Back to where the packet came from."""
    frame = read.frame
    return frame[6:12] + frame[:6] + frame[12 : read.l3] + packet


def _icmp(read: Reading, own: str, kinds: dict[int, tuple[int, int]], rest: int) -> bytes:
    quote = read.packet[: min(read.total, QUOTED) // 4 * 4]
    body = struct.pack("!BBHI", *kinds[read.version], 0, rest) + quote
    number = ICMP_NUMBER if read.version == 4 else ICMPV6_NUMBER
    beside = b"" if read.version == 4 else pseudo_header(own, read.src, number, len(body))
    check = checksum(beside + body).to_bytes(2)
    head = header(own, read.src, number, len(body))
    return _framed(read, head + body[:2] + check + body[4:])


def _challenge(read: Reading, secret: int) -> bytes:
    """An ACK of what nobody has sent."""
    return _segment(read, (0, secret % 2**32), ACK)


def _reset(read: Reading) -> bytes:
    """RFC 9293, section 3.10.7.1: of a connection that does not exist."""
    if read.flags & ACK:
        return _segment(read, (read.ack, 0), RST)
    end = read.seq + read.payload + bool(read.flags & SYN) + bool(read.flags & FIN)
    return _segment(read, (0, end % 2**32), RST | ACK)


def _segment(
    read: Reading, numbers: tuple[int, int], flags: int, options: bytes = b"", window: int = 0
) -> bytes:
    assert read.ends is not None
    length = 20 + len(options)
    ports = struct.pack("!HH", read.ends.dport, read.ends.sport)
    blank = ports + struct.pack("!IIBBHHH", *numbers, length // 4 << 4, flags, window, 0, 0)
    blank += options
    check = checksum(pseudo_header(read.dst, read.src, TCP_NUMBER, length) + blank).to_bytes(2)
    head = header(read.dst, read.src, TCP_NUMBER, length)
    return _framed(read, head + blank[:16] + check + blank[18:])
