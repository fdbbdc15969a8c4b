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


def siphash(key0: int, key1: int, message: bytes) -> int:
    """SipHash-1-3 (Aumasson, Bernstein 2012)."""

    def round_() -> None:
        v[0] = v[0] + v[1] & _MASK
        v[1] = _rotated(v[1], 13) ^ v[0]
        v[0] = _rotated(v[0], 32)
        v[2] = v[2] + v[3] & _MASK
        v[3] = _rotated(v[3], 16) ^ v[2]
        v[0] = v[0] + v[3] & _MASK
        v[3] = _rotated(v[3], 21) ^ v[0]
        v[2] = v[2] + v[1] & _MASK
        v[1] = _rotated(v[1], 17) ^ v[2]
        v[2] = _rotated(v[2], 32)

    v = [word ^ int.from_bytes(text) for word, text in zip(
        (key0, key1, key0, key1), (b"somepseu", b"dorandom", b"lygenera", b"tedbytes"), strict=True
    )]  # fmt: skip
    padded = message.ljust(len(message) // 8 * 8 + 7, b"\0") + bytes((len(message) & 255,))
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        round_()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        round_()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _rotated(x: int, bits: int) -> int:
    return (x << bits | x >> 64 - bits) & _MASK


def challenge_hash(
    key0: int, key1: int, ends: tuple[str, int, int], service: int, epoch: int
) -> int:
    """What a challenged client is asked to send back: of its address and port, the service's port
    and id, and the time.
    """
    src, sport, dport = ends
    message = packed(src).ljust(16, b"\0")
    message += epoch.to_bytes(2, "little") + service.to_bytes(2, "little")
    message += dport.to_bytes(2, "big") + sport.to_bytes(2, "big")
    return siphash(key0, key1, message)


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
