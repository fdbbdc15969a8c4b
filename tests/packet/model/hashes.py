"""Which backend a new flow gets: the hash that all balancers of a group share, and Maglev's draws.

The same hash, under a secret key, names the bucket of the flow table that a flow is kept in.
"""

from __future__ import annotations

from tests.packet.model.services import Member
from tests.packet.wires import packed

KEY, MUL0, MUL1 = 0x243F6A8885A308D3, 0x9E3779B97F4A7C15, 0xB7E151628AED2A6B
DRAWS = 32  # until a usable backend is found
NEAR_DRAWS = 8  # of them in the ring for the client's zone
_MASK = 2**64 - 1


def _mix(x: int, multiplier: int) -> int:
    x = x * multiplier & _MASK
    return x ^ x >> 32


def _words(address: bytes) -> list[int]:
    """As the program reads them: each 32 bits in the order of this machine."""
    return [int.from_bytes(address[i : i + 4], "little") for i in range(0, len(address), 4)]


def _fold(words: list[int], key: int, mul0: int, mul1: int) -> int:
    return _mix(_mix((words[3] << 32 | words[2]) ^ key, mul1) ^ words[1], mul0)


def tuple_hash(src: bytes, sport: int, dport: int, key: int, mul0: int = MUL0, mul1: int = MUL1
               ) -> int:  # fmt: skip
    """The service stands for its address and protocol, by the key."""
    words = _words(src)
    ports = int.from_bytes(sport.to_bytes(2), "little") << 16
    word = words[0] << 32 | ports | int.from_bytes(dport.to_bytes(2), "little")
    if len(words) == 4:
        word ^= _fold(words, key, mul0, mul1)
    return _mix(_mix(word ^ key, mul0), mul1)


def address_key(dst: str) -> int:
    """What an address below a prefix VIP adds to the key of a flow."""
    words = _words(packed(dst))
    key = _mix(words[0], MUL1)
    return key ^ _fold(words, KEY, MUL0, MUL1) if len(words) == 4 else key


def masked(address: bytes, bits: int) -> bytes:
    """The first bits of an address."""
    width = 8 * len(address)
    kept = int.from_bytes(address) >> (width - bits) << (width - bits)
    return kept.to_bytes(len(address))


def draw(own: list[Member], near: list[Member], pick: int) -> Member | None:
    """The first usable backend of the slots that a hash names: some of the ring for the client's
    zone, if there is one, and the rest of the service's own.
    """
    for turn in range(DRAWS if own else 0):
        ring = near if near and turn < NEAR_DRAWS else own
        member = ring[(pick >> 32) * len(ring) >> 32]
        if member.is_usable:
            return member
        pick = _mix(pick + KEY & _MASK, MUL0)
    return None
