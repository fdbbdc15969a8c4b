"""Sees every TCP segment on an interface of a namespace, with the time: an opinion of our own.

Nothing here is shared with the balancer's code: what it says of a flow can be held against it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from lbctl.lab import netns
from tests.polling import readable

ETH_P_ALL = 3
SYN, RST, PSH = 2, 4, 8
_TCP = 6
_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33  # asm-generic/socket.h
_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # packet(7)
_ROOM_BYTES = 64 << 20
_MAX_FRAME = 65_535
_POLL_S = 0.1
_LOOKS = 50


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment as it passed; ``at_ns`` of CLOCK_MONOTONIC."""

    at_ns: int
    source: tuple[str, int]
    target: tuple[str, int]
    seq: int
    ack: int
    flags: int
    payload: bytes


def parse(frame: bytes, at_ns: int) -> Segment | None:
    """A frame as a TCP segment over IPv4 or IPv6 (no extensions); None: it is something else."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and ip[9] == _TCP:
        source, target = ip[12:16], ip[16:20]
        tcp = ip[(ip[0] & 15) * 4 : struct.unpack_from("!H", ip, 2)[0]]
    elif kind == b"\x86\xdd" and ip[6] == _TCP:
        source, target = ip[8:24], ip[24:40]
        tcp = ip[40 : 40 + struct.unpack_from("!H", ip, 4)[0]]
    else:
        return None
    sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", tcp)
    return Segment(
        at_ns,
        (str(ip_address(source)), sport),
        (str(ip_address(target)), dport),
        seq,
        ack,
        flags,
        tcp[(offset >> 4) * 4 :],
    )


def packet_socket(interface: str) -> socket.socket:
    """A socket for whole frames of an interface of the calling thread's namespace."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
    made.bind((interface, ETH_P_ALL))
    return made


def _offset_ns() -> int:
    """How far CLOCK_MONOTONIC is ahead of the clock of the day. The process may stand still while
    it looks, so the look that took the shortest time counts.
    """
    looks = []
    for _ in range(_LOOKS):
        before_ns, day_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after_ns - before_ns, (before_ns + after_ns) // 2 - day_ns))
    return min(looks)[1]


class Tap:
    """Collects the segments from its start to its end."""

    def __init__(self, namespace: str, interface: str) -> None:
        with netns.inside(namespace):
            self._socket = packet_socket(interface)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        self._offset_ns = _offset_ns()  # the kernel stamps frames by the clock of the day
        self._frames: list[tuple[int, bytes]] = []
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="tap")
        self._thread.start()

    def _collect(self) -> None:
        while not self._stop.is_set():
            if readable(self._socket, _POLL_S):
                self._drain()

    def _drain(self) -> None:
        """Take all that has passed by now."""
        with self._one_at_a_time, contextlib.suppress(BlockingIOError):
            while True:
                frame, control, _, _ = self._socket.recvmsg(_MAX_FRAME, 64)
                seconds, nanoseconds = struct.unpack("qq", control[0][2])
                at_ns = seconds * 10**9 + nanoseconds + self._offset_ns
                self._frames.append((at_ns, frame))

    def stop(self) -> None:
        """End the collection."""
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def segments(self) -> list[Segment]:
        """All that has passed so far, in order."""
        self._drain()
        seen = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _, lost = struct.unpack("II", seen)
        if lost:
            raise RuntimeError(f"the tap had no room for {lost} frames")
        found = (parse(frame, at_ns) for at_ns, frame in list(self._frames))
        return [segment for segment in found if segment]


@contextlib.contextmanager
def tapped(namespace: str, interface: str) -> Iterator[Tap]:
    """A tap while the block runs."""
    tap = Tap(namespace, interface)
    try:
        yield tap
    finally:
        tap.stop()
