"""A long way from a client to the VIPs: each packet gets there so much later.

Run in a client of the lab, of which the kernel has no netem: packets to the VIPs go into a TUN
device, and from there by raw sockets to where they would have gone. Answers come as they always do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import sys
from ipaddress import ip_address

from lbctl.lab import netns

DEVICE = "far"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_IPV6_HDRINCL = 36
_SO_BINDTODEVICE = 25
_MOST_BYTES = 1 << 16
_READY = "ready"
_ONE_TURN, _TOO_LATE_S = 64, 1.0


class Way:
    """From the device to the wire, ``delay_s`` later."""

    def __init__(self, wire: str, delay_s: float) -> None:
        self._delay_s = delay_s
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(
            self.tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
        )
        self._out = {
            4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
            6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
        }
        self._out[6].setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        for sock in self._out.values():
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, wire.encode())

    def take(self) -> None:
        """What is in the device, on its way; a turn at most, or nothing would ever leave."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_ONE_TURN):
                due_s = loop.time() + self._delay_s
                loop.call_at(due_s, self._give, os.read(self.tun, _MOST_BYTES), due_s)

    def _give(self, packet: bytes, due_s: float) -> None:
        """On a host that is too busy for this way, packets get lost, as on any other way: the
        balancer forgets a handshake after half a minute.
        """
        if asyncio.get_running_loop().time() > due_s + _TOO_LATE_S:
            return
        version = packet[0] >> 4
        target = ip_address(packet[16:20] if version == 4 else packet[24:40])
        self._out[version].sendto(packet, (str(target), 0))


async def _run(way: Way) -> None:
    asyncio.get_running_loop().add_reader(way.tun, way.take)
    print(_READY, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, required=True, help="seconds")
    parser.add_argument("wire")
    parser.add_argument("vips", nargs="+")
    options = parser.parse_args()
    way = Way(options.wire, options.delay)
    netns.ip([f"link set {DEVICE} up", *(f"route add {vip} dev {DEVICE}" for vip in options.vips)])
    asyncio.run(_run(way))


if __name__ == "__main__":
    sys.exit(main())
