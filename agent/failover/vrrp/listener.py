"""Owns the raw sockets that receive adverts: one set per interface and family.

All virtual routers of the interface and family share them. Reading is bounded: after some packets
that are not adverts to this node a socket rests, so that a flood costs a small share of the CPU,
and no timer has to wait until it ends.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Protocol

from agent import sockfilter
from agent.failover.model import Authentication
from agent.failover.times import EXPECTED_REST_S, OTHER_REST_S
from agent.failover.vrrp import headers, packet, sieve
from agent.failover.vrrp.auth import IPPROTO_AH
from agent.failover.vrrp.checksum import IPPROTO_VRRP
from agent.failover.vrrp.headers import Datagram
from agent.failover.vrrp.sieve import Lane

_SO_RCVBUFFORCE = 33  # the socket module does not name it
_PACKET_BYTES = 2048
_ANCILLARY_BYTES = socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4)
_ONE_TURN = 256  # packets read in one turn of the event loop, so that timers get theirs
# A node that was frozen finds the adverts of that time in the larger one: more than two thousand.
_EXPECTED_BYTES, _OTHER_BYTES = 1 << 21, 1 << 16
_MOST_PARSED = 1024
_BACKLOG = 6000  # packets; more than the larger buffer holds


@dataclass(slots=True)
class _Source:
    """A socket, and how many packets that are not adverts to us it may bring before it rests."""

    socket: socket.socket
    lane: Lane
    protocol: int
    most_refused: int
    rest_s: float
    awake_s: float = 0.0  # when it ends its rest
    sifted: object = None  # the settings that its present filter was made from


class Member(Protocol):
    """A virtual router that receives adverts."""

    own: packet.Own

    def hear(self, heard: Datagram) -> bool | None:
        """Return whether it is a valid advert to this virtual router; None: it is not for it."""


class Listener:
    """The sockets of one interface and family, in the caller's network namespace.

    Opening raises OSError.
    """

    def __init__(self, interface: str, family: int) -> None:
        self._interface, self._family = interface, family
        self._members: dict[int, Member] = {}  # by VRID
        self._by_vip: dict[bytes, Member] = {}
        self._parsed: dict[bytes, Datagram] = {}
        self.interval_s = 1.0  # the shortest advert interval of the members
        self._opened = contextlib.ExitStack()
        protocols = (IPPROTO_VRRP,) if family == 6 else (IPPROTO_VRRP, IPPROTO_AH)
        try:
            self._sources = tuple(self._open(each, lane) for lane in Lane for each in protocols)
            self._join_group()
        except BaseException:
            self._opened.close()
            raise

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets, to be watched for reading except while they rest."""
        return tuple(source.socket for source in self._sources)

    @property
    def is_used(self) -> bool:
        return bool(self._members)

    def rests_s(self, one: socket.socket) -> float:
        """Return for how long this socket still rests; 0 or less: it is read."""
        (source,) = (source for source in self._sources if source.socket is one)
        return source.awake_s - time.monotonic() if source.awake_s else 0.0

    @property
    def is_flooded(self) -> bool:
        """Whether adverts may wait or be lost behind packets that only look like adverts."""
        now_s = time.monotonic()
        return any(s.lane is Lane.EXPECTED and s.awake_s > now_s for s in self._sources)

    def join(self, member: Member) -> None:
        """Let a member receive from now on, instead of the one that had its VRID before."""
        self._members[member.own.router.instance.vrid] = member
        self._changed()

    def leave(self, member: Member) -> None:
        """Let a member receive no more."""
        vrid = member.own.router.instance.vrid
        if self._members.get(vrid) is member:
            del self._members[vrid]
            self._changed()

    def read(self, only: socket.socket | None = None) -> None:
        """Give the members everything that came before this call.

        With ``only``, read some of what has come on that socket.
        """
        now_s = time.monotonic()
        for source in self._sources:
            if source.awake_s <= now_s and only in (None, source.socket):
                self._read(source, now_s, _BACKLOG if only is None else _ONE_TURN)

    def close(self) -> None:
        """Leave the group and close the sockets."""
        self._opened.close()

    def _read(self, source: _Source, now_s: float, most: int) -> None:
        refused = 0
        for _ in range(most):
            try:
                datagram = self._receive(source.socket)
            except BlockingIOError:
                return
            except OSError:  # a pending error, as when the link went down; reading it clears it
                continue
            if datagram is None or not self._dispatch(datagram):
                refused += 1
            if refused >= source.most_refused:
                source.awake_s = now_s + source.rest_s
                return

    def _receive(self, of: socket.socket) -> Datagram | None:
        if self._family == 4:
            return self._parse(of.recv(_PACKET_BYTES))
        data, ancillary, _, sender = of.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES)
        destination, hops = b"", 0
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                destination = value[:16]
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT):
                (hops,) = struct.unpack("@i", value)
        source = IPv6Address(sender[0].partition("%")[0])
        return Datagram(source, IPv6Address(destination), hops, data)

    def _parse(self, data: bytes) -> Datagram | None:
        """Parse a packet, and return the same object for an equal packet.

        A master sends the same advert again and again, so this saves work.
        """
        key = data[8:10] + data[12:]  # without the fields that differ, such as the IP identifier
        found = self._parsed.get(key)
        if found is None and (found := headers.parse_ipv4(data)) is not None:
            if len(self._parsed) >= _MOST_PARSED:
                self._parsed.clear()
            self._parsed[key] = found
        return found

    def _dispatch(self, heard: Datagram) -> bool:
        """Pass a datagram on, and return whether it was an advert to one of the members."""
        advert = packet.advert_in(heard)
        if advert is None or len(advert) < 2:
            return False
        member = self._members.get(advert[1])
        found = None if member is None else member.hear(heard)
        if found is not None:
            return found
        # It is not to us, but it may name our VIPs.
        informed = {id(member)}
        for vip in packet.named(self._family, advert):
            other = self._by_vip.get(vip)
            if other is not None and id(other) not in informed:
                informed.add(id(other))
                other.hear(heard)
        return False

    def _changed(self) -> None:
        intervals = (member.own.router.instance.interval_s for member in self._members.values())
        self.interval_s = min(intervals, default=1.0)
        self._by_vip = {
            vip.packed: member
            for member in self._members.values()
            for vip in member.own.router.vips
            if not vip.is_link_local
        }
        for source in self._sources:
            self._sift(source)

    def _sift(self, source: _Source) -> None:
        """Attach a filter so that this socket only brings what the members want from it."""
        owns = [member.own for member in self._members.values()]
        is_sealed = source.protocol == IPPROTO_AH
        instances = [own.router.instance for own in owns]
        vrids = frozenset(
            each.vrid
            for each in instances
            if (each.authentication is Authentication.AH) == is_sealed
        )
        wanted = bool(owns), vrids, packet.hops_of(owns)
        if wanted == source.sifted:
            return
        for sums in (True, False):
            steps = sieve.nothing()
            if owns:
                steps = sieve.program(
                    source.lane,
                    source.protocol,
                    self._family,
                    vrids,
                    hops=wanted[2],
                    sums=sums,
                )
            try:
                sockfilter.attach(source.socket, steps)
                break
            except OSError as error:
                # Kernels before 6.8 have less memory for the options of a socket, and a filter
                # counts against it. One that does not look at checksums is shorter.
                if error.errno != errno.ENOMEM or not sums:
                    raise
        source.sifted = wanted

    def _open(self, protocol: int, lane: Lane) -> _Source:
        kind = socket.AF_INET if self._family == 4 else socket.AF_INET6
        opened = self._opened.enter_context(socket.socket(kind, socket.SOCK_RAW, protocol))
        sockfilter.attach(opened, sieve.nothing())
        opened.setblocking(False)
        if self._family == 6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
        size = _EXPECTED_BYTES if lane is Lane.EXPECTED else _OTHER_BYTES
        with contextlib.suppress(PermissionError):  # in a user namespace; the default size will do
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        with contextlib.suppress(BlockingIOError):  # discard what came from other interfaces before
            while True:
                opened.recv(_PACKET_BYTES)
        most, rest_s = (64, EXPECTED_REST_S) if lane is Lane.EXPECTED else (32, OTHER_REST_S)
        return _Source(opened, lane, protocol, most, rest_s)

    def _join_group(self) -> None:
        ifindex = socket.if_nametoindex(self._interface)
        group, heard = headers.group(self._family).packed, self._sources[0].socket
        if len(group) == 4:
            request = struct.pack("@4s4si", group, bytes(4), ifindex)
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            request = struct.pack("@16si", group, ifindex)
            heard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
