"""Encodes and decodes adverts: versions 2 and 3, both families, compatible with keepalived."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from agent.failover.model import Authentication, Checksum
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import auth, headers
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.auth import IPPROTO_AH, TRAILER_BYTES
from agent.failover.vrrp.checksum import IPPROTO_VRRP, of_advert, other_variant
from agent.failover.vrrp.headers import HOPS, Datagram
from agent.failover.vrrp.replay import Guard
from agent.model import Address

_HEAD = struct.Struct("!BBBBHH")
_ADVERTISEMENT = 1  # the only type that VRRP has
_V2_TYPES = {Authentication.NONE: 0, Authentication.PASSWORD: 1, Authentication.AH: 2}
_V2_NAMES = {0: "no authentication", 1: "a password", 2: "AH"}
_KEEPALIVED_V6_HOPS = 64  # hop limit of its unicast adverts over IPv6
# How many VIPs an advert can name: the count is one byte, and IPv6 adverts must not need fragments
# at an MTU of 1280.
_MAX_VIPS = {4: 255, 6: 74}


@dataclass(frozen=True, slots=True)
class Own:
    """A virtual router as this node takes part in it."""

    router: VirtualRouter
    source: Address  # of our adverts
    key: bytes = b""  # for HMAC


def advertised(router: VirtualRouter) -> tuple[Address, ...]:
    """Return the VIPs that adverts name: all, or as many of the lowest as fit."""
    limit = _MAX_VIPS[router.family]
    if len(router.vips) <= limit:
        return router.vips
    first = router.vips[: router.family == 6]  # the link-local one (RFC 9568, section 5.2.9)
    rest = sorted(vip.packed for vip in router.vips[len(first) :])
    kind = IPv4Address if router.family == 4 else IPv6Address
    return (*first, *(kind(packed) for packed in rest[: limit - len(first)]))


def encode(router: VirtualRouter, priority: int, source: Address, destination: Address) -> bytes:
    """Return an advert without what AH and HMAC add."""
    instance = router.instance
    vips = advertised(router)
    addresses = b"".join(vip.packed for vip in vips)
    if instance.version == 2:
        kind = _V2_TYPES.get(instance.authentication, 0)
        timing = kind << 8 | round(instance.interval_s)
    else:
        timing = round(instance.interval_s * 100)
    first = instance.version << 4 | _ADVERTISEMENT
    plain = _HEAD.pack(first, instance.vrid, priority, len(vips), timing, 0) + addresses
    if instance.version == 2:
        has_password = instance.authentication is Authentication.PASSWORD
        plain += auth.password_bytes(instance.password if has_password else None)
    checksum = of_advert(plain, instance.version, source, destination, instance.checksum)
    return plain[:6] + checksum.to_bytes(2) + plain[8:]


def ip_packet(
    own: Own, priority: int, destination: Address, *, counter: int = 0, identifier: int = 0
) -> bytes:
    """Return an advert in its IP packet, authenticated as configured."""
    source, instance = own.source, own.router.instance
    advert = encode(own.router, priority, source, destination)
    if instance.authentication is Authentication.HMAC:
        advert += auth.trailer(advert, source, destination, own.key, counter)
    if source.version == 6:
        return headers.ipv6_header(source, destination, len(advert)) + advert
    if instance.authentication is not Authentication.AH:
        size, protocol = len(advert), IPPROTO_VRRP
        return headers.ipv4_header(source, destination, size, identifier, protocol) + advert
    size = auth.ah_bytes() + len(advert)
    head = headers.ipv4_header(source, destination, size, identifier, IPPROTO_AH)
    return head + auth.seal_ah(head, advert, instance.password, counter)


def advert_in(heard: Datagram) -> bytes | None:
    """Return what is, or claims to be, an advert in a packet; None if AH holds something else."""
    if heard.protocol != IPPROTO_AH:
        return heard.payload
    return heard.payload[auth.ah_bytes() :] if auth.is_vrrp(heard.payload) else None


def named(family: int, advert: bytes) -> Iterator[bytes]:
    """Yield the VIPs that bytes name if they are read as an advert, as far as they are complete."""
    if len(advert) < _HEAD.size:
        return
    size = 4 if family == 4 else 16
    end = min(len(advert), _HEAD.size + size * advert[3])
    for at in range(_HEAD.size, end - size + 1, size):
        yield advert[at : at + size]


def hops_of(owns: Iterable[Own]) -> frozenset[int]:
    """Return the values of TTL or hop limit with which adverts to any of these may arrive."""
    unicast = any(own.router.family == 6 and own.router.peers for own in owns)
    return frozenset({HOPS, _KEEPALIVED_V6_HOPS} if unicast else {HOPS})


def decode(own: Own, heard: Datagram, guard: Guard) -> Advert | Refusal | None:
    """Decode what was heard; None if it is not for this virtual router."""
    payload = advert_in(heard)
    if payload is None:
        return None
    if len(payload) < _HEAD.size:
        return _refused(
            heard, Reason.DAMAGED, f"sends {len(payload)} bytes, which is not an advert"
        )
    if payload[1] != own.router.instance.vrid or _is_of_others(own, heard):
        return _foreign(own, heard, payload)
    return (
        _check_sender(own, heard)
        or _check_version(own, heard, payload)
        or _decode_ours(own, heard, payload, guard)
    )


def _decode_ours(own: Own, heard: Datagram, payload: bytes, guard: Guard) -> Advert | Refusal:
    opened = _authenticate(own, heard, payload, guard)
    if isinstance(opened, Refusal):
        return opened
    advert, counter = opened
    if (refusal := _check_body(own, heard, advert)) is not None:
        return refusal
    # HMAC's counter has been checked already, before its verification.
    if counter and (why := guard.refuses(heard.source, counter)):
        return _refused(heard, Reason.REPLAY, why)
    first, vrid, priority, count, timing, _ = _HEAD.unpack_from(advert)
    version = first >> 4
    interval_s = float(timing & 0xFF) if version == 2 else (timing & 0xFFF) / 100
    vips = _vips(own.router.family, advert, count)
    return Advert(version, vrid, priority, interval_s, vips, heard.source, counter)


def _refused(heard: Datagram, reason: Reason, text: str) -> Refusal:
    return Refusal(reason, f"{heard.source} {text}", heard.source)


def _vips(family: int, payload: bytes, count: int) -> tuple[Address, ...]:
    width, kind = (4, IPv4Address) if family == 4 else (16, IPv6Address)
    ends = range(_HEAD.size, _HEAD.size + width * count, width)
    return tuple(kind(payload[at : at + width]) for at in ends if at + width <= len(payload))


def _is_of_others(own: Own, heard: Datagram) -> bool:
    """Return whether this is multicast of other nodes, which may use the VRID of a unicast pair."""
    peers = own.router.peers
    return bool(peers) and heard.destination.is_multicast and heard.source not in peers


def _foreign(own: Own, heard: Datagram, payload: bytes) -> Refusal | None:
    """Judge an advert of another virtual router, which only matters if it names our VIPs."""
    if heard.source == own.source or payload[0] & 0xF != _ADVERTISEMENT:
        return None
    theirs = frozenset(_vips(own.router.family, payload, payload[3]))
    shared = [vip for vip in own.router.vips if vip in theirs and not vip.is_link_local]
    if not shared:
        return None
    ours = own.router.instance.vrid
    if payload[1] == ours:
        text = f"advertises {shared[0]} by multicast; this node is set to unicast"
        return _refused(heard, Reason.ADDRESSING, text)
    text = f"advertises {shared[0]} as virtual router {payload[1]}; here it is that of {ours}"
    return _refused(heard, Reason.VRID, text)


def _check_sender(own: Own, heard: Datagram) -> Refusal | None:
    peers = own.router.peers
    if heard.source == own.source:
        text = "sends adverts, and it is this node's own address"
        return _refused(heard, Reason.SOURCE, text)
    is_peer = heard.source in peers
    allowed = {HOPS, _KEEPALIVED_V6_HOPS} if is_peer and own.router.family == 6 else {HOPS}
    if heard.hops not in allowed:
        text = f"sends adverts that arrive with a TTL of {heard.hops}, not {HOPS}"
        return _refused(heard, Reason.TTL, text)
    if heard.destination.is_multicast and peers:
        text = "sends multicast adverts; this node is set to unicast"
        return _refused(heard, Reason.ADDRESSING, text)
    if not heard.destination.is_multicast and not peers:
        text = "sends unicast adverts; this node is set to multicast"
        return _refused(heard, Reason.ADDRESSING, text)
    if peers and not is_peer:
        text = "sends adverts, and is not one of this node's peers " + ", ".join(map(str, peers))
        return _refused(heard, Reason.SOURCE, text)
    return None


def _check_version(own: Own, heard: Datagram, payload: bytes) -> Refusal | None:
    version, ours = payload[0] >> 4, own.router.instance.version
    if version != ours:
        text = f"sends version {version} of VRRP; this node is set to version {ours}"
        return _refused(heard, Reason.VERSION, text)
    if payload[0] & 0xF != _ADVERTISEMENT:
        text = f"sends VRRP of type {payload[0] & 0xF}, which does not exist"
        return _refused(heard, Reason.DAMAGED, text)
    return None


def _authenticate(
    own: Own, heard: Datagram, payload: bytes, guard: Guard
) -> tuple[bytes, int] | Refusal:
    """Return the advert without its authentication data, and its counter."""
    if own.router.instance.version == 3:
        return _authenticate_v3(own, heard, payload, guard)
    instance = own.router.instance
    theirs, ours = payload[4], _V2_TYPES.get(instance.authentication, 0)
    if theirs != ours:
        text = (
            f"sends adverts with {_V2_NAMES.get(theirs, f'authentication type {theirs}')};"
            f" this node is set to {_V2_NAMES[ours]}"
        )
        return _refused(heard, Reason.AUTHENTICATION, text)
    if ours == 2:
        opened = auth.open_ah(heard.head, heard.payload, instance.password)
        if opened is None:
            return _refused(heard, Reason.AUTHENTICATION, "sends AH made with another password")
        return opened
    if ours == 1 and payload[-8:] != auth.password_bytes(instance.password):
        return _refused(heard, Reason.AUTHENTICATION, "sends another password than this node has")
    return payload, 0


def _authenticate_v3(
    own: Own, heard: Datagram, payload: bytes, guard: Guard
) -> tuple[bytes, int] | Refusal:
    wanted = own.router.instance.authentication is Authentication.HMAC
    found = len(payload) == _bare_length(own, payload) + TRAILER_BYTES
    if wanted != found:
        names = ["no authentication", "hmac"]
        text = f"sends adverts with {names[found]}; this node is set to {names[wanted]}"
        return _refused(heard, Reason.AUTHENTICATION, text)
    if not wanted:
        return payload, 0
    # This comes before the costly verification, so that a flood of replays is refused cheaply.
    if why := guard.refuses(heard.source, auth.counter_of(payload), in_ns=True):
        return _refused(heard, Reason.REPLAY, why)
    opened = auth.open_trailer(payload, heard.source, heard.destination, own.key)
    if opened is None:
        return _refused(heard, Reason.AUTHENTICATION, "sends adverts made with another key")
    return opened


def _bare_length(own: Own, payload: bytes) -> int:
    return _HEAD.size + payload[3] * (4 if own.router.family == 4 else 16)


def _check_body(own: Own, heard: Datagram, advert: bytes) -> Refusal | None:
    """Check length, checksum and interval of an advert that is authenticated."""
    version, count = own.router.instance.version, advert[3]
    size = _bare_length(own, advert) + (auth.PASSWORD_BYTES if version == 2 else 0)
    if not count or len(advert) != size:
        text = f"sends an advert of {len(advert)} bytes for {count} VIPs"
        return _refused(heard, Reason.DAMAGED, text)
    if (refusal := _check_sum(own, heard, advert)) is not None:
        return refusal
    timing, interval_s = int.from_bytes(advert[4:6]), own.router.instance.interval_s
    if version == 2 and timing & 0xFF != round(interval_s):
        text = f"sends every {timing & 0xFF} s; this node is set to {round(interval_s)} s"
        return _refused(heard, Reason.INTERVAL, text)
    if version == 3 and not timing & 0xFFF:
        return _refused(heard, Reason.DAMAGED, "sends an interval of 0")
    return None


def _check_sum(own: Own, heard: Datagram, advert: bytes) -> Refusal | None:
    version, covers = own.router.instance.version, own.router.instance.checksum
    found = int.from_bytes(advert[6:8])
    plain = advert[:6] + b"\0\0" + advert[8:]
    if found == of_advert(plain, version, heard.source, heard.destination, covers):
        return None
    other = None
    if version == 3 and own.router.family == 4:
        other = other_variant(plain, heard.source, heard.destination, found)
    if other is None:
        return _refused(heard, Reason.DAMAGED, f"sends a wrong checksum, {found:#06x}")
    ours = "with" if covers is Checksum.V3 else "without"
    text = f"sends checksums {other}; this node is set to those {ours} the pseudo-header"
    return _refused(heard, Reason.CHECKSUM, text)
