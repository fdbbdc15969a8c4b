"""SYNs to a service from addresses that nobody has. Run in a client of the lab; ends at SIGTERM."""

from __future__ import annotations

import argparse
import errno
import random
import socket
import struct
import time
from ipaddress import ip_address

from tests.packet.wires import Packet

FRAMES = 4096
TCP_BYTES = 20  # of a SYN without options
BURST_S = 0.01


def frames(vip: str, port: int) -> list[bytearray]:
    """IP packets, each from another address, for ``renew``."""
    draw = random.Random(1)
    made = []
    for _ in range(FRAMES):
        if ip_address(vip).version == 4:
            src = str(ip_address(draw.randrange(11 << 24, 100 << 24)))
        else:
            src = str(ip_address(0x2A00 << 112 | draw.getrandbits(100)))
        ports = draw.randrange(1024, 32_768), port
        seq = draw.getrandbits(16) << 16 | 0xFFFF
        made.append(bytearray(Packet(src, vip, *ports, seq=seq).ip))
    return made


def renew(packet: bytearray) -> None:
    """Another source port. What it has more the sequence number has less, so the checksum stays:
    sent as it was, a packet would be of a flow that is recorded, and no new one.
    """
    at = len(packet) - TCP_BYTES
    sport, low = struct.unpack_from("!H4xH", packet, at)
    struct.pack_into("!H", packet, at, sport + 1)
    struct.pack_into("!H", packet, at + 6, low - 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True, help="packets a second")
    parser.add_argument("device")
    parser.add_argument("mac", help="of the balancer")
    parser.add_argument("vip")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    own = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    kind = 0x0800 if ip_address(options.vip).version == 4 else 0x86DD
    to = (options.device, kind, 0, 0, bytes.fromhex(options.mac.replace(":", "")))
    made, sent, began = frames(options.vip, options.port), 0, time.monotonic()
    while True:
        due = int((time.monotonic() - began) * options.rate)
        sent = max(sent, due - int(options.rate / 10))  # what the host had no time for is left out
        while sent < due:
            try:
                own.sendto(made[sent % FRAMES], to)
            except OSError as error:  # so is what a queue has no room for
                if error.errno != errno.ENOBUFS:
                    raise
            renew(made[sent % FRAMES])
            sent += 1
        time.sleep(BURST_S)


if __name__ == "__main__":
    main()
