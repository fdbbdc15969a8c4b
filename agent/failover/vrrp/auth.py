"""Decides how adverts are authenticated: v2's password and AH, and the HMAC between ours.

A counter that only grows guards against replays. It begins with the time, so that it grows over a
restart too; whoever hears a higher one of a peer goes on from there, which also helps a node
whose clock was set back: it is refused until it hears the others, and believed from then on.
"""

from __future__ import annotations

import hmac
import struct

from agent.failover.model import Authentication
from agent.failover.vrrp.checksum import IPPROTO_VRRP
from agent.model import Address

IPPROTO_AH = 51
PASSWORD_BYTES = 8
TRAILER_BYTES = 40
_AH = struct.Struct("!BBHII12s")
_COUNTER = struct.Struct("!Q")
_LABEL = b"steelyard vrrp 1"  # the key is flow sync's too: no message of the one is the other's
_NANOSECONDS = 10**9
_HIGHEST = {Authentication.AH: 2**32 - 1, Authentication.HMAC: 2**64 - 1}


def password_bytes(password: str | None) -> bytes:
    """What v2 knows of a password."""
    return (password or "").encode()[:PASSWORD_BYTES].ljust(PASSWORD_BYTES, b"\0")


def next_counter(kind: Authentication, last: int, now_ns: int) -> int:
    """The counter of the next advert, after the highest one sent or heard."""
    if kind not in _HIGHEST:
        return 0
    begin = now_ns // _NANOSECONDS if kind is Authentication.AH else now_ns
    return max(last + 1, begin) & _HIGHEST[kind]


def ah_bytes() -> int:
    """How much longer AH makes a packet."""
    return _AH.size


def seal_ah(head: bytes, advert: bytes, password: str | None, counter: int) -> bytes:
    """The payload of a packet with this IPv4 header: AH, then the advert."""
    spi = int.from_bytes(head[12:16])  # keepalived's: the source
    return _ah(head, advert, password, spi, counter) + advert


def open_ah(head: bytes, payload: bytes, password: str | None) -> tuple[bytes, int] | None:
    """The advert and its counter; None: AH of another key, or none at all."""
    if not is_vrrp(payload):
        return None
    _, _, _, spi, counter, _ = _AH.unpack_from(payload)
    advert = payload[_AH.size :]
    wanted = _ah(head, advert, password, spi, counter)
    return (advert, counter) if hmac.compare_digest(wanted, payload[: _AH.size]) else None


def is_vrrp(payload: bytes) -> bool:
    """Whether AH of keepalived's kind with an advert in it."""
    return len(payload) >= _AH.size and payload[:2] == bytes((IPPROTO_VRRP, _AH.size // 4 - 2))


def _ah(head: bytes, advert: bytes, password: str | None, spi: int, counter: int) -> bytes:
    bare = _AH.pack(IPPROTO_VRRP, _AH.size // 4 - 2, 0, spi, counter, b"")
    # What routers change counts as zero (RFC 4302), but in keepalived's multicast the TTL does not.
    hops = head[8:9] if head[16] >> 4 == 0xE else b"\0"
    fixed = head[:1] + b"\0" + head[2:6] + b"\0\0" + hops + head[9:10] + b"\0\0" + head[12:]
    digest = hmac.digest(password_bytes(password), fixed + bare + advert, "md5")
    return bare[:-12] + digest[:12]


def trailer(
    advert: bytes, source: Address, destination: Address, key: bytes, counter: int
) -> bytes:
    """What follows an advert of ours."""
    count = _COUNTER.pack(counter)
    text = _LABEL + source.packed + destination.packed + advert + count
    return count + hmac.digest(key, text, "sha256")


def counter_of(payload: bytes) -> int:
    """What the trailer says of its counter, before anything is verified."""
    return int(_COUNTER.unpack_from(payload, len(payload) - TRAILER_BYTES)[0])


def open_trailer(
    payload: bytes, source: Address, destination: Address, key: bytes
) -> tuple[bytes, int] | None:
    """The advert and its counter; None: of another key."""
    advert, found = payload[:-TRAILER_BYTES], payload[-TRAILER_BYTES:]
    (counter,) = _COUNTER.unpack_from(found)
    wanted = trailer(advert, source, destination, key, counter)
    return (advert, counter) if hmac.compare_digest(wanted, found) else None
