"""Makes a few things wrong in a frame, or nothing."""

from __future__ import annotations

import random

# Lengths, protocols, extension headers, types: what makes one packet another.
INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0B, 0x0C, 0x0F, 0x11, 0x20, 0x28, 0x29, 0x2B, 0x2C,
               0x33, 0x3A, 0x3C, 0x40, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0x81, 0x86, 0x88, 0xA8, 0xDD,
               0xFF)  # fmt: skip
HEADERS_END = 80  # what lies behind is mostly payload


def mutated(draw: random.Random, whole: bytes) -> bytes:
    frame = bytearray(whole)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 6))):
        first = 12 if draw.random() < 0.9 else 0
        last = min(len(frame), HEADERS_END) if draw.random() < 0.8 else len(frame)
        at = draw.randrange(first, last)
        match draw.randrange(5):
            case 0:
                frame[at] = draw.randrange(256)
            case 1:
                frame[at] ^= 1 << draw.randrange(8)
            case 2:
                frame[at] = draw.choice(INTERESTING)
            case 3:
                frame = frame[: max(14, at)]
            case 4:
                frame += bytes(draw.randrange(1, 30))
        if len(frame) <= 14:
            break
    return bytes(frame)
