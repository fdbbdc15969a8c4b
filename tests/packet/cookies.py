"""SYN cookies by hand, of bpf/cookie.h: what a SYN is answered, and what comes back."""

from __future__ import annotations

import struct
import time

from tests.packet.model import synack
from tests.packet.model.synack import EPOCH_LOG, NO_SCALE
from tests.packet.wires import Packet

KEY = bytes(range(16))
OTHER_KEY = bytes(range(16, 32))
NOP = b"\1"


def epoch_of(wall_ns: int) -> int:
    return wall_ns >> EPOCH_LOG


def cookie(
    asked: Packet,
    *,
    mss: int | None = None,
    scale: int | None = None,
    sack: bool = False,
    epoch: int | None = None,
    key: bytes = KEY,
) -> int:
    """What the SYN is answered, for what it says of itself."""
    epoch = epoch_of(time.time_ns()) if epoch is None else epoch
    said = synack.Said(mss or 0, NO_SCALE if scale is None else scale, sack)
    return synack.number(key, asked.src, (asked.sport, asked.dport), asked.seq, said, epoch)


def mss_option(mss: int) -> bytes:
    return struct.pack("!BBH", 2, 4, mss)


def scale_option(scale: int) -> bytes:
    return struct.pack("!BBB", 3, 3, scale)


def timestamps(value: int, echo: int = 0) -> bytes:
    return struct.pack("!BBII", 8, 10, value, echo)


SACK = b"\4\2"
LINUX = mss_option(1460) + SACK + timestamps(77) + NOP + scale_option(10)
WINDOWS = mss_option(1440) + NOP + scale_option(8) + NOP * 2 + SACK
