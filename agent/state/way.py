"""Decides how a health check reaches the VIP on one backend by the path of clients' packets, and
the bytes of its frames, which are those that bpf/forward.h and bpf/encap.h make.

The check sends a SYN for the VIP to a backend, and ends the handshake before there is a
connection. An answer shows what a check of the backend's own address cannot: the backend has the
VIP, takes off the outer header, and its server listens on the VIP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from agent.model import (
    NO_MAC,
    Address,
    Backend,
    CheckKind,
    Forward,
    NextHop,
    Protocol,
    Service,
    Via,
)
from agent.state.segment import SYN, Segment, Stencil, checksum

# Source ports of the SYNs: below those that the kernel assigns by itself.
FIRST_PORT, LAST_PORT = 20_480, 24_575
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_INNER = {4: 4, 6: 41}  # IP protocol numbers of an IP packet within an IP packet
_UDP = 17
_TTL = 64
_OUTER = {4: 20, 6: 40}  # bytes of an IP header
_HEADERS = {4: 40, 6: 60}  # bytes of an IP header and a TCP header without options
_DF = 0x4000
_GUE_SPORT = 0xC000  # the first source port that the packet path uses for GUE


# Packet sizes to try if full packets are lost: MTUs that are common with tunnels and links.
_SIZES = (
    8000, 4000, 1500, 1492, 1480, 1472, 1464, 1460, 1456, 1450, 1440, 1430, 1420, 1412, 1400, 1380,
    1360, 1340, 1320, 1300, 1280, 1200, 1000, 576,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a check through the VIP. ``wrong``: what is wrong, in words; empty: nothing.

    ``full``: the size in bytes of the largest packets that clients send it; 0: it has announced
    none.
    """

    wrong: str = ""
    full: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """The path of packets to ``vip`` and ``port`` that are sent to the server at ``backend``."""

    forward: Forward
    vip: Address
    port: int
    backend: Address

    # Ways are keys of mappings that each check uses, and hashing an address takes long.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = self.forward, self.vip, self.port, self.backend
        object.__setattr__(self, "_hash", hash(key))

    def __hash__(self) -> int:
        return self._hash


def has_way(service: Service) -> bool:
    """Return whether a service's backends can be checked through the VIP."""
    return service.key.protocol is Protocol.TCP and not service.forward.is_nat


def way_of(service: Service, backend: Backend) -> Way | None:
    """Return the path of a backend's check through the VIP; None: only its own address is checked.

    With nat and fullnat, clients' packets go to the backend's own address anyway. The backend must
    be of the VIP's address family, because otherwise we know no source address in that family.
    """
    key, check = service.key, service.health
    if check.via is Via.HOST or check.kind is CheckKind.NONE or not has_way(service):
        return None
    port = key.port or check.port or backend.port
    if not port or key.vip.version != backend.address.version:
        return None
    # For a prefix VIP, the second address: the first may not be a host address.
    vip = key.vip if key.vip_bits is None else key.vip + 1
    return Way(service.forward, vip, port, backend.address)


def frame(way: Way, hop: NextHop, packet: bytes, tunnel_source: Address, gue_port: int) -> bytes:
    """Return the frame to a resolved next hop with a packet to the VIP.

    ``tunnel_source``: the outer source address for ipip and gue.
    """
    if way.forward.is_tunnel:
        packet = _within(way, packet, tunnel_source, gue_port)
    tags = b"".join(struct.pack("!HH", *tag) for tag in hop.vlans) if hop.vlans else b""
    version = way.backend.version if way.forward.is_tunnel else way.vip.version
    macs = _mac(hop.mac or NO_MAC) + _mac(hop.source_mac)
    return macs + tags + _ETHERTYPE[version].to_bytes(2) + packet


class Frames:
    """Makes the frames of one way. What all the small ones have in common is made once."""

    __slots__ = ("_head", "_ours", "_stencil", "_way", "basis")

    def __init__(self, way: Way, hop: NextHop, tunnel_source: Address, gue_port: int) -> None:
        if hop.source is None:
            raise ValueError("without a source no frame can be made")
        self._way, self._ours = way, hop.source
        self.basis = hop, tunnel_source, gue_port  # what the frames depend on besides the way
        self._stencil = Stencil(hop.source, way.vip, way.port)
        # The outer checksum of GUE fits all small frames, because a TCP segment with its checksum
        # always has the same sum.
        self._head = self._made(0, 0, SYN, 0)[: -len(self._stencil.tcp(0, 0, SYN))]

    def frame(self, source_port: int, seq: int, flags: int, data: int = 0) -> bytes:
        """Return the frame with a segment from a port of ours, with ``data`` bytes of zeros."""
        if data:
            return self._made(source_port, seq, flags, data)
        return self._head + self._stencil.tcp(source_port, seq, flags)

    def _made(self, source_port: int, seq: int, flags: int, data: int) -> bytes:
        way = self._way
        segment = Segment(self._ours, source_port, way.vip, way.port, seq, 0, flags, data)
        return frame(way, self.basis[0], segment.packet(), *self.basis[1:])


def full_size(way: Way, mtu: int, mss: int) -> int:
    """Return the size of clients' full packets to the VIP, in bytes.

    It is limited by the server's ``mss``, and by what fits into ``mtu`` bytes with the outer
    headers, which the packet path announces to clients (RFC 1191). 0: the server has announced no
    MSS.
    """
    outer = _OUTER[way.backend.version] + (8 if way.forward is Forward.GUE else 0)
    fits = mtu - (outer if way.forward.is_tunnel else 0)
    return min(mss + _HEADERS[way.vip.version], fits) if mss else 0


def padding(way: Way, size: int) -> int:
    """Return how many bytes of data make a packet to the VIP ``size`` bytes long."""
    return max(0, size - _HEADERS[way.vip.version])


def smaller_sizes(full: int) -> tuple[int, ...]:
    """Return the sizes to try when packets of ``full`` bytes are lost, the largest first."""
    return tuple(size for size in _SIZES if size < full)


def narrow(way: Way, full: int, widest: int) -> str:
    """Say that full packets get no answer but smaller ones do; ``widest``: the largest that did."""
    upto = f"of {widest} bytes" if widest else "small ones"
    return (
        f"packets of {full} bytes are lost on the way to {in_words(way)}, {upto} arrive: is the MTU"
        " smaller somewhere in between, or are SYNs with data dropped?"
    )


def in_words(way: Way) -> str:
    """Format what was checked for an operator."""
    host = f"[{way.vip}]" if way.vip.version == 6 else str(way.vip)
    return f"{host}:{way.port} by {way.forward.value}"


def silence(way: Way, waited: str) -> str:
    """Say that no answer came, and what to look at; ``waited``: for how long the check waited."""
    takes = f"does it take {way.forward.value}, and " if way.forward.is_tunnel else ""
    return f"no answer from {in_words(way)} within {waited}: {takes}is the VIP on its lo?"


def refusal(way: Way) -> str:
    """Say that the backend has refused the connection."""
    return f"connection refused at {in_words(way)}: does its server listen on the VIP?"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _within(way: Way, packet: bytes, source: Address, gue_port: int) -> bytes:
    """Encapsulate a packet in an outer one to the backend."""
    protocol = _INNER[way.vip.version]
    if way.forward is Forward.GUE:
        protocol = _UDP
        head = struct.pack("!HHH", _GUE_SPORT, gue_port, 8 + len(packet))
        check = 0  # over IPv4 the inner packet's own checksum is enough
        if way.backend.version == 6:
            pseudo = source.packed + way.backend.packed + struct.pack("!II", 8 + len(packet), _UDP)
            covered = pseudo + head + b"\0\0" + packet
            check = checksum(covered + b"\0" * (len(covered) % 2)) or 0xFFFF
        packet = head + check.to_bytes(2) + packet
    ends = source.packed + way.backend.packed
    if way.backend.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(packet), protocol, _TTL) + ends + packet
    fields = (0x45, 0, 20 + len(packet), 0, _DF, _TTL, protocol)
    check = checksum(struct.pack("!BBHHHBBH", *fields, 0) + ends)
    return struct.pack("!BBHHHBBH", *fields, check) + ends + packet
