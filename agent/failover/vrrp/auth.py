"""Decides how adverts are authenticated: v2's password and AH, and our own HMAC for v3.

A counter that only grows protects against replays. It starts from the time, so that it also grows
across a restart. A node that hears a higher counter from a peer continues from there. That also
helps a node whose clock was set back: it is refused until it has heard the others, and accepted
from then on.
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
# Flow sync uses the same key, so the label keeps the messages of one from passing for the other's.
_LABEL = b"steelyard vrrp 1"
_NANOSECONDS = 10**9
_HIGHEST = {Authentication.AH: 2**32 - 1, Authentication.HMAC: 2**64 - 1}


def password_bytes(password: str | None) -> bytes:
    """Return the 8 bytes of a password that v2 uses."""
    return (password or "").encode()[:PASSWORD_BYTES].ljust(PASSWORD_BYTES, b"\0")


def next_counter(kind: Authentication, last: int, now_ns: int) -> int:
    """Return the counter of the next advert; ``last`` is the highest one sent or heard.

    Without AH and HMAC it is 0.
    """
    if kind not in _HIGHEST:
        return 0
    begin = now_ns // _NANOSECONDS if kind is Authentication.AH else now_ns  # AH has 32 bits
    return max(last + 1, begin) & _HIGHEST[kind]


def ah_bytes() -> int:
    """Return by how many bytes AH makes a packet longer."""
    return _AH.size


def seal_ah(head: bytes, advert: bytes, password: str | None, counter: int) -> bytes:
    """Return the payload of a packet with the IPv4 header ``head``: AH, then the advert."""
    spi = int.from_bytes(head[12:16])  # the source address, as keepalived has it
    return _ah(head, advert, password, spi, counter) + advert


def open_ah(head: bytes, payload: bytes, password: str | None) -> tuple[bytes, int] | None:
    """Return the advert and its counter; None without AH, or if it was made with another key."""
    if not is_vrrp(payload):
        return None
    _, _, _, spi, counter, _ = _AH.unpack_from(payload)
    advert = payload[_AH.size :]
    wanted = _ah(head, advert, password, spi, counter)
    return (advert, counter) if hmac.compare_digest(wanted, payload[: _AH.size]) else None


def is_vrrp(payload: bytes) -> bool:
    """Return whether this is AH as keepalived makes it, with an advert in it."""
    return len(payload) >= _AH.size and payload[:2] == bytes((IPPROTO_VRRP, _AH.size // 4 - 2))


def _ah(head: bytes, advert: bytes, password: str | None, spi: int, counter: int) -> bytes:
    bare = _AH.pack(IPPROTO_VRRP, _AH.size // 4 - 2, 0, spi, counter, b"")
    # Fields that routers change count as zero (RFC 4302), except for the TTL of multicast: there
    # keepalived covers it.
    hops = head[8:9] if head[16] >> 4 == 0xE else b"\0"
    fixed = head[:1] + b"\0" + head[2:6] + b"\0\0" + hops + head[9:10] + b"\0\0" + head[12:]
    digest = hmac.digest(password_bytes(password), fixed + bare + advert, "md5")
    return bare[:-12] + digest[:12]


def trailer(
    advert: bytes, source: Address, destination: Address, key: bytes, counter: int
) -> bytes:
    """Return the trailer that follows an advert of ours: the counter and the HMAC."""
    count = _COUNTER.pack(counter)
    text = _LABEL + source.packed + destination.packed + advert + count
    return count + hmac.digest(key, text, "sha256")


def counter_of(payload: bytes) -> int:
    """Return the counter in the trailer, which is not verified yet."""
    return int(_COUNTER.unpack_from(payload, len(payload) - TRAILER_BYTES)[0])


def open_trailer(
    payload: bytes, source: Address, destination: Address, key: bytes
) -> tuple[bytes, int] | None:
    """Return the advert and its counter; None if the trailer was made with another key."""
    advert, found = payload[:-TRAILER_BYTES], payload[-TRAILER_BYTES:]
    (counter,) = _COUNTER.unpack_from(found)
    wanted = trailer(advert, source, destination, key, counter)
    return (advert, counter) if hmac.compare_digest(wanted, found) else None
