"""Owns the raw sockets of one virtual router: adverts out, adverts in."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import time
from ipaddress import IPv6Address, ip_address

from agent.errors import NetworkError
from agent.failover.model import Authentication
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import auth, headers, packet
from agent.failover.vrrp.advert import Advert, Refusal
from agent.failover.vrrp.auth import IPPROTO_AH
from agent.failover.vrrp.checksum import IPPROTO_VRRP
from agent.failover.vrrp.headers import Datagram
from agent.model import Address

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33  # the socket module does not name them
# A node that was frozen finds what came meanwhile: about a thousand adverts.
_RECEIVE_BYTES = 1 << 20
_PACKET_BYTES = 2048
_ONE_READING = 1024  # packets, some 10 ms; then the caller has its turn, also under a flood
_ANCILLARY_BYTES = socket.CMSG_SPACE(20) + socket.CMSG_SPACE(4)
# Of AH only what has an advert in it: the byte after the IP header, whose length is in words.
_AH_FILTER = (
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)
    (0x50, 0, 0, 0),  # ldb [x + 0]
    (0x15, 0, 1, IPPROTO_VRRP),  # jeq
    (0x06, 0, 0, 0xFFFFFFFF),  # ret: all of it
    (0x06, 0, 0, 0),  # ret: nothing
)


class Channel:
    """Of one virtual router, in the network namespace of the caller.

    Opening and sending raise OSError: no such interface, no permission, the link is down. After
    the interface was made anew, open another one. ``counters``: the last one of each sender, for
    as long as somebody may repeat what an earlier channel heard.
    """

    def __init__(
        self,
        router: VirtualRouter,
        source: Address,
        key: bytes | None = None,
        counters: dict[Address, int] | None = None,
    ) -> None:
        instance = router.instance
        if instance.authentication is Authentication.HMAC and not key:
            raise NetworkError(
                "adverts cannot be authenticated without a key",
                where=f"virtual router {router.name}",
                remedy="set `failover.key_file`, the same on both nodes",
            )
        self._own = packet.Own(router, source, key or b"")
        self._kind = instance.authentication
        destinations = router.peers or (headers.group(router.family),)
        self._destinations = tuple((each, (str(each), 0)) for each in destinations)
        # Unicast comes from the interface's own MAC: which one a peer has, the kernel knows.
        virtual = instance.virtual_mac and not router.peers
        self._frame_head = headers.ethernet_header(router.family, instance.vrid) if virtual else b""
        self._counter, self._identifier = 0, 0
        self._heard = {} if counters is None else counters
        self._opened = contextlib.ExitStack()
        try:
            self._out = self._open_out()
            self.sockets = self._open_in()  # to be watched for reading; never blocking
        except BaseException:
            self._opened.close()
            raise

    def close(self) -> None:
        """Leave the group and close the sockets."""
        self._opened.close()

    def send(self, priority: int) -> None:
        """One advert: to the group, or to each peer, also if one of them cannot be sent to."""
        failed: OSError | None = None
        for destination, target in self._destinations:
            self._identifier = self._identifier % 0xFFFF + 1  # 0 would have the kernel choose
            self._counter = auth.next_counter(self._kind, self._counter, time.time_ns())
            data = packet.ip_packet(
                self._own,
                priority,
                destination,
                counter=self._counter,
                identifier=self._identifier,
            )
            try:
                if self._frame_head:
                    self._out.send(self._frame_head + data)
                else:
                    self._out.sendto(data, target)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def receive(self) -> list[Advert | Refusal]:
        """All that has come since, of all sockets; adverts of other virtual routers left out."""
        found: list[Advert | Refusal] = []
        for each in self.sockets:
            for _ in range(_ONE_READING):
                try:
                    datagram = self._read(each)
                except BlockingIOError:
                    break
                except OSError:  # of the past: the link went down; reading took the error away
                    continue
                if datagram is None:
                    continue
                heard = packet.decode(self._own, datagram, self._heard)
                if heard is None:
                    continue
                if isinstance(heard, Advert) and heard.counter:
                    self._heard[heard.source] = heard.counter
                    self._counter = max(self._counter, heard.counter)
                found.append(heard)
        return found

    def _read(self, each: socket.socket) -> Datagram | None:
        if self._own.router.family == 4:
            return headers.parse_ipv4(each.recv(_PACKET_BYTES))
        data, ancillary, _, sender = each.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES)
        destination, hops = b"", 0
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                destination = value[:16]
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT):
                (hops,) = struct.unpack("@i", value)
        source = ip_address(sender[0].partition("%")[0])
        return Datagram(source, IPv6Address(destination), hops, data)

    def _open(self, family: int, kind: int, protocol: int) -> socket.socket:
        opened = self._opened.enter_context(socket.socket(family, kind, protocol))
        opened.setblocking(False)
        return opened

    def _open_out(self) -> socket.socket:
        """Sends whole packets, and hears nothing."""
        interface = self._own.router.interface
        if self._frame_head:
            out = self._open(socket.AF_PACKET, socket.SOCK_RAW, 0)
            out.bind((interface, 0))
            return out
        if self._own.router.family == 4:
            out = self._open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            out = self._open(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        return out

    def _open_in(self) -> tuple[socket.socket, ...]:
        """For what we expect, and for what the other side might be set to by mistake."""
        if self._own.router.family == 6:
            heard = self._open(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_VRRP)
            heard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            heard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            sockets: tuple[socket.socket, ...] = (heard,)
        else:
            sealed = self._open(socket.AF_INET, socket.SOCK_RAW, IPPROTO_AH)
            _attach(sealed, _AH_FILTER)
            sockets = self._open(socket.AF_INET, socket.SOCK_RAW, IPPROTO_VRRP), sealed
        interface = self._own.router.interface.encode()
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
            with contextlib.suppress(PermissionError):  # in a user namespace: the default does
                each.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            with contextlib.suppress(BlockingIOError):  # what came by other interfaces before
                while True:
                    each.recv(_PACKET_BYTES)
        self._join(sockets[0])
        return sockets

    def _join(self, heard: socket.socket) -> None:
        ifindex = socket.if_nametoindex(self._own.router.interface)
        group = headers.group(self._own.router.family).packed
        if len(group) == 4:
            request = struct.pack("@4s4si", group, bytes(4), ifindex)
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        else:
            request = struct.pack("@16si", group, ifindex)
            heard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


def _attach(to: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *step) for step in program))
    option = struct.pack("@HP", len(program), ctypes.addressof(code))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
