"""SYN cookies, told once more: what a SYN asks for, the number that says it, and the answer."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.packet.model.hashes import siphash
from tests.packet.wires import packed

EPOCH_LOG = 36  # nanoseconds
NO_SCALE, MOST_SCALE, OUR_SCALE = 15, 14, 7
MSS = {4: (536, 1300, 1440, 1460), 6: (1220, 1420, 1440, 8940)}
WINDOW = 65_535
# What is announced at an MTU of 1500, and what a tunnel takes of it.
ANNOUNCED = {4: 1460, 6: 1440}
TAKES = {"dsr": 0, "ipip": 40, "gue": 48}
END, NOP = 0, 1
ROUNDS, SPACE = 12, 40


@dataclass(frozen=True, slots=True)
class Said:
    """What a SYN says of its sender. ``stamp``: its timestamp, four bytes; ``space``: bytes of its
    options.
    """

    mss: int = 0
    scale: int = NO_SCALE
    sack: bool = False
    stamp: bytes = b""
    space: int = 0

    @property
    def length(self) -> int:
        """Of the answer's options."""
        if self.space >= 20 and self.stamp:
            return 20
        return next((length for length in (12, 4) if self.space >= length), 0)


def said_in(options: bytes) -> Said:
    """The first dozen options; what makes no sense ends them."""
    at, mss, scale, sack, stamp = 0, 0, NO_SCALE, False, b""
    padded = options.ljust(SPACE + 24, b"\0")
    for _ in range(ROUNDS):
        if at >= SPACE or padded[at] == END:
            break
        kind, size = padded[at], padded[at + 1]
        if kind == NOP:
            size = 1
        elif size < 2:
            break
        body = padded[at + 2 : at + size]
        match kind, size:
            case 2, 4:
                mss = int.from_bytes(body)
            case 3, 3:
                scale = body[0]
            case 4, 2:
                sack = True
            case 8, 10:
                stamp = body[:4]
        at += size
    said = Said(mss, scale, sack, stamp, len(options))
    if said.length < 12:
        return Said(mss, NO_SCALE, False, stamp, len(options))
    if scale > MOST_SCALE and scale != NO_SCALE:
        return Said(mss, MOST_SCALE, sack, stamp, len(options))
    return said


def number(key: bytes, src: str, ports: tuple[int, int], isn: int, said: Said, epoch: int) -> int:
    """The cookie: a sequence number that says all of that again."""
    table = MSS[6 if ":" in src else 4]
    index = max((n for n, least in enumerate(table) if least <= said.mss), default=0)
    return signed(
        key, src, ports, isn, epoch, (epoch & 1) << 7 | index << 5 | said.sack << 4 | said.scale
    )


def signed(key: bytes, src: str, ports: tuple[int, int], isn: int, epoch: int, bits: int) -> int:
    """The low eight bits of a cookie, with their hash above them."""
    message = packed(src).ljust(16, b"\0") + struct.pack("!HH", *ports)
    message += struct.pack("<IQ", isn, epoch << 8 | bits)
    words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
    return siphash(*words, message) & 0xFFFFFF00 | bits


def answered(said: Said, mss: int, clock: bytes) -> bytes:
    """The options of the answer; ``clock``: four bytes, for a timestamp."""
    scale = bytes((NOP, NOP, NOP, NOP) if said.scale == NO_SCALE else (NOP, 3, 3, OUR_SCALE))
    first = struct.pack("!BBH", 2, 4, mss)
    match said.length:
        case 20:
            sack = b"\4\2" if said.sack else bytes((NOP, NOP))
            return first + sack + b"\x08\x0a" + clock + said.stamp + scale
        case 12:
            return first + (b"\4\2\1\1" if said.sack else bytes((NOP,) * 4)) + scale
        case 4:
            return first
        case _:
            return b""
