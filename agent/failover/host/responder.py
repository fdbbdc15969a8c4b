"""Owns the answers to ARP and neighbour discovery for VIPs that this host itself does not have.

It is for a master that does not accept packets to its VIPs (RFC 9568, Accept_Mode). The kernel
answers only for addresses that the host has, but then it also accepts packets to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Collection

from agent import sockfilter
from agent.failover.host.announcer import forwards, interface_mac
from agent.failover.host.frames import ETH_P_ARP, ETH_P_IPV6, answer
from agent.model import Address
from agent.sockfilter import JEQ, LD_B, RET

_RECEIVE_BYTES = 256  # no question is longer, and the rest of a longer packet does not matter
_ONE_READING = 256  # frames read in one turn, so that the event loop goes on even under a flood
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0
_PACKET_OTHERHOST = 3  # to another MAC, or in a VLAN that is not ours
# Passes frames that are ICMPv6 (byte 20 of the frame) and a solicitation (byte 54).
_SOLICITATIONS = (
    (LD_B, 0, 0, 20),
    (JEQ, 0, 3, 58),
    (LD_B, 0, 0, 54),
    (JEQ, 0, 1, 135),
    (RET, 0, 0, _RECEIVE_BYTES),
    (RET, 0, 0, 0),
)


class Responder:
    """Answers for VIPs on one interface, by default with that interface's own MAC.

    Call ``start`` when the node becomes master, and ``stop`` when it is no longer master. ``start``
    raises OSError if it cannot answer.
    """

    def __init__(
        self, interface: str, vips: Collection[Address], source_mac: bytes | None = None
    ) -> None:
        self._interface = interface
        self._vips = frozenset(vips)
        self._source_mac = source_mac
        self._sockets: list[socket.socket] = []

    def start(self) -> None:
        """Answer from now on; if it does already, start over."""
        self.stop()
        families = {vip.version for vip in self._vips}
        if 4 in families:
            self._listen(ETH_P_ARP, [])
        if 6 in families:
            self._listen(ETH_P_IPV6, [vip for vip in self._vips if vip.version == 6])

    def stop(self) -> None:
        """Stop answering."""
        for opened in self._sockets:
            asyncio.get_running_loop().remove_reader(opened)
            opened.close()
        self._sockets.clear()

    def _listen(self, protocol: int, groups_of: list[Address]) -> None:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: receives nothing yet
        self._sockets.append(opened)
        opened.setblocking(False)
        if groups_of:
            sockfilter.attach(opened, _SOLICITATIONS)
        opened.bind((self._interface, protocol))
        ifindex = socket.if_nametoindex(self._interface)
        for vip in groups_of:
            # Solicited-node multicast: 33:33 and the last four bytes of ff02::1:ffXX:XXXX.
            mac = b"\x33\x33\xff" + vip.packed[-3:]
            request = struct.pack("=iHH8s", ifindex, _PACKET_MR_MULTICAST, len(mac), mac)
            opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        asyncio.get_running_loop().add_reader(opened, self._answer, opened)

    def _answer(self, asked: socket.socket) -> None:
        with contextlib.suppress(OSError):  # nothing more to read, or the interface went down
            for _ in range(_ONE_READING):
                frame, (_, protocol, kind, *_) = asked.recvfrom(_RECEIVE_BYTES)
                if kind == _PACKET_OTHERHOST:
                    continue
                mac = self._source_mac or interface_mac(self._interface)
                router = protocol == ETH_P_IPV6 and forwards(self._interface)
                if (reply := answer(frame, mac, self._vips, router=router)) is not None:
                    asked.sendto(reply, (self._interface, protocol))
