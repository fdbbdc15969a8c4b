"""Mirrors ``bpf/hash.h``: the flow hash and the pick hash, for one flow or for many at once.

It is used to explain decisions, and to distinguish a valid record of the cold array from a torn
one; tests/packet compares both hashes with the kernel's decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.constants import HashKeys
from agent.dataplane.tables import Table
from agent.model import Address

PICK_KEY = 0x243F6A8885A308D3
PICK_MUL0 = 0x9E3779B97F4A7C15
PICK_MUL1 = 0xB7E151628AED2A6B
_MASK = 2**64 - 1
_SERVICES = 1 << 16  # ids of services that a record can name

type Words = npt.NDArray[np.uint64]


def _mix(x: Words, multiplier: int) -> Words:
    x = x * np.uint64(multiplier)
    return x ^ (x >> np.uint64(32))


@dataclass(frozen=True, slots=True)
class Wire:
    """The hashed part of n flows: the bytes as on the wire, read as integers of the host, as the
    program reads them.

    ``saddr`` is (n, 4), the rest (n,).
    """

    saddr: npt.NDArray[np.uint32]
    sport: npt.NDArray[np.uint16]
    dport: npt.NDArray[np.uint16]
    ipv6: npt.NDArray[np.bool_]


def _folds6(addr: npt.NDArray[np.uint32], key: Words | int, mul0: int, mul1: int) -> Words:
    """Return ``fold6`` of n IPv6 addresses, (n, 4)."""
    wide = addr.astype(np.uint64)
    high = wide[:, 3] << np.uint64(32) | wide[:, 2]
    return _mix(_mix(high ^ np.asarray(key, dtype=np.uint64), mul1) ^ wide[:, 1], mul0)


def tuple_hashes(wire: Wire, key: Words, mul0: int, mul1: int) -> Words:
    """Return the hashes of n flows, each under its own key."""
    ports = wire.sport.astype(np.uint64) << np.uint64(16) | wire.dport
    word = wire.saddr[:, 0].astype(np.uint64) << np.uint64(32) | ports
    word = np.where(wire.ipv6, word ^ _folds6(wire.saddr, key, mul0, mul1), word)
    return _mix(_mix(word ^ key, mul0), mul1)


def address_keys(daddr: npt.NDArray[np.uint32], ipv6: npt.NDArray[np.bool_]) -> Words:
    """Return what n addresses of prefix VIPs, (n, 4), add to the keys of their services."""
    keys = _mix(daddr[:, 0].astype(np.uint64), PICK_MUL1)
    return np.where(ipv6, keys ^ _folds6(daddr, PICK_KEY, PICK_MUL0, PICK_MUL1), keys)


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The keys under which the flows of each service are hashed, by service id."""

    keys: HashKeys
    own: Words
    is_prefix: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, keys: HashKeys, salts: Mapping[int, int], prefixes: Collection[int]) -> Self:
        """Return the keys; ``salts`` by service id, ``prefixes``: the ids with a prefix VIP."""
        own, is_prefix = np.zeros(_SERVICES, dtype=np.uint64), np.zeros(_SERVICES, dtype=bool)
        for ident, salt in salts.items():
            own[ident] = flow_key(keys, salt)
        is_prefix[list(prefixes)] = True
        return cls(keys, own, is_prefix)

    def hashes(
        self,
        service: npt.NDArray[np.integer],
        wire: Wire,
        daddr: npt.NDArray[np.uint32],
    ) -> Words:
        """Return ``flow_hash`` of n flows to ``daddr``, (n, 4)."""
        below = np.where(self.is_prefix[service], address_keys(daddr, wire.ipv6), np.uint64(0))
        return tuple_hashes(wire, self.own[service] ^ below, self.keys.mul0, self.keys.mul1)


def wire_of(cold: Table) -> Wire:
    """Return the hashed part of records of the cold array."""
    return Wire(
        np.ascontiguousarray(cold["saddr"]).view(np.uint32),
        np.ascontiguousarray(cold["sport"]).view(np.uint16),
        np.ascontiguousarray(cold["dport"]).view(np.uint16),
        cold["family"] == 6,
    )


def daddr_of(cold: Table) -> npt.NDArray[np.uint32]:
    """Return the addresses that flows in records of the cold array go to, (n, 4)."""
    return np.ascontiguousarray(cold["daddr"]).view(np.uint32)


def tags_of(hashes: Words) -> Words:
    """Return the part of each flow's hash that its slot holds."""
    return hashes & np.uint64(0xFFFFFFFF)


def buckets_of(hashes: Words, buckets: int) -> npt.NDArray[np.int64]:
    """Return which of ``buckets`` buckets each flow is in."""
    return ((hashes >> np.uint64(32)) & np.uint64(buckets - 1)).astype(np.int64)


def is_at(
    hashes: Words, words: Words, index: npt.NDArray[np.int64], buckets: int
) -> npt.NDArray[np.bool_]:
    """Return whether slots ``index``, which hold ``words``, hold the flows with these hashes."""
    here: npt.NDArray[np.bool_] = tags_of(hashes) == words >> np.uint64(abi.FLOW_TAG_SHIFT)
    here &= buckets_of(hashes, buckets) == index // abi.FLOW_WAYS
    return here


def _words(address: Address) -> npt.NDArray[np.uint32]:
    return np.frombuffer(address.packed.ljust(16, b"\0"), dtype=np.uint32).reshape(1, 4)


def _wire(client: Address, client_port: int, port: int) -> Wire:
    return Wire(
        _words(client),
        np.frombuffer(client_port.to_bytes(2, "big"), dtype=np.uint16),
        np.frombuffer(port.to_bytes(2, "big"), dtype=np.uint16),
        np.array([client.version == 6]),
    )


def flow_hash(
    keys: HashKeys,
    salt: int,
    client: Address,
    client_port: int,
    port: int,
    below_prefix: Address | None = None,
) -> int:
    """Return ``flow_hash``: the upper half names the bucket, the lower half is the tag.

    ``below_prefix``: the address that the client talks to, if the VIP is a prefix.
    """
    key = np.array([flow_key(keys, salt)], dtype=np.uint64)
    if below_prefix is not None:
        key ^= address_keys(_words(below_prefix), np.array([below_prefix.version == 6]))
    wire = _wire(client, client_port, port)
    return int(tuple_hashes(wire, key, keys.mul0, keys.mul1)[0])


def flow_key(keys: HashKeys, salt: int) -> int:
    """Return the key under which a service's flows are hashed."""
    return keys.key ^ (salt * PICK_MUL0 & _MASK)


def pick_hash(seed: int, client: Address, client_port: int, port: int) -> int:
    """Return ``pick_hash``: the first draw from a ring."""
    key = np.array([PICK_KEY ^ seed], dtype=np.uint64)
    wire = _wire(client, client_port, port)
    return int(tuple_hashes(wire, key, PICK_MUL0, PICK_MUL1)[0])


def source_hash(seed: int, client: Address, bits: int) -> int:
    """Return ``source_hash``: the first draw, from the first ``bits`` of the client's address
    alone.
    """
    prefix = ip_network((client, bits), strict=False).network_address
    return pick_hash(seed, prefix, 0, 0)


def pick_again(pick: int) -> int:
    """Return the next draw."""
    x = (pick + PICK_KEY) * PICK_MUL0 & _MASK
    return x ^ (x >> 32)


def ring_slot(pick: int, slots: int) -> int:
    """Return the slot that a draw names."""
    return ((pick >> 32) * slots) >> 32


def tie(slot: int, pick: int) -> int:
    """Return 0 to 255, which breaks least-conn's ties for a flow; the lowest wins."""
    return (((slot * PICK_MUL0) ^ pick) * PICK_MUL1 & _MASK) >> 56
