"""The hashes against a second version in plain integers, and against themselves in bulk."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import flowhash
from agent.dataplane.constants import HashKeys
from tests.unit.dataplane.fakes import KEYS

MASK = 2**64 - 1
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.integers(0, 65_535)


def mix(x: int, multiplier: int) -> int:
    x = x * multiplier & MASK
    return x ^ (x >> 32)


def words(address) -> list[int]:
    """Those of the wire, as a little-endian host reads them."""
    packed = address.packed.ljust(16, b"\0")
    return [int.from_bytes(packed[i : i + 4], "little") for i in range(0, 16, 4)]


def fold6(addr: list[int], key: int, mul0: int, mul1: int) -> int:
    high = addr[3] << 32 | addr[2]
    return mix(mix(high ^ key, mul1) ^ addr[1], mul0)


def by_hand(client, sport: int, dport: int, key: int, mul0: int, mul1: int) -> int:
    """bpf/hash.h in Python's integers."""
    saddr = words(client)
    swap = [int.from_bytes(p.to_bytes(2, "big"), "little") for p in (sport, dport)]
    word = saddr[0] << 32 | swap[0] << 16 | swap[1]
    if client.version == 6:
        word ^= fold6(saddr, key, mul0, mul1)
    return mix(mix(word ^ key, mul0), mul1)


@given(addresses, ports, ports, st.integers(0, 2**32 - 1))
def test_the_flow_hash_is_that_of_the_header(client, sport: int, dport: int, salt: int):
    key = KEYS.key ^ (salt * flowhash.PICK_MUL0 & MASK)
    expected = by_hand(client, sport, dport, key, KEYS.mul0, KEYS.mul1)
    assert flowhash.flow_hash(KEYS, salt, client, sport, dport) == expected


@given(addresses, ports, ports, st.integers(0, MASK))
def test_the_pick_hash_is_that_of_the_header(client, sport: int, dport: int, seed: int):
    expected = by_hand(
        client, sport, dport, flowhash.PICK_KEY ^ seed, flowhash.PICK_MUL0, flowhash.PICK_MUL1
    )
    assert flowhash.pick_hash(seed, client, sport, dport) == expected


@given(addresses, addresses, ports, ports)
def test_below_a_prefix_the_address_is_part_of_the_flow_hash(client, vip, sport, dport):
    key = KEYS.key ^ (5 * flowhash.PICK_MUL0 & MASK) ^ mix(words(vip)[0], flowhash.PICK_MUL1)
    if vip.version == 6:
        key ^= fold6(words(vip), flowhash.PICK_KEY, flowhash.PICK_MUL0, flowhash.PICK_MUL1)
    expected = by_hand(client, sport, dport, key, KEYS.mul0, KEYS.mul1)
    assert flowhash.flow_hash(KEYS, 5, client, sport, dport, vip) == expected


def test_two_addresses_below_a_prefix_are_two_flows():
    flow = (IPv6Address("2001:db8::7"), 4000, 443)
    found = {
        flowhash.flow_hash(KEYS, 1, *flow, vip)
        for vip in (None, *map(IPv6Address, ("2001:db8:1::", "2001:db8:1::1", "2001:db8:1:1::")))
    }
    assert len(found) == 4


@given(addresses, st.integers(0, 128), st.integers(0, MASK))
def test_the_source_hash_is_that_of_the_header(client, bits: int, seed: int):
    bits = min(bits, client.max_prefixlen)
    masked = int(client) >> client.max_prefixlen - bits << client.max_prefixlen - bits
    expected = by_hand(
        type(client)(masked), 0, 0,
        flowhash.PICK_KEY ^ seed, flowhash.PICK_MUL0, flowhash.PICK_MUL1,
    )  # fmt: skip
    assert flowhash.source_hash(seed, client, bits) == expected


@given(st.integers(0, MASK))
def test_the_next_draw_is_that_of_the_header(pick: int):
    expected = mix((pick + flowhash.PICK_KEY) & MASK, flowhash.PICK_MUL0)
    assert flowhash.pick_again(pick) == expected


@given(st.integers(0, MASK), st.integers(1, 2**31))
def test_a_draw_names_a_slot_of_the_ring(pick: int, slots: int):
    assert 0 <= flowhash.ring_slot(pick, slots) < slots


def test_draws_reach_the_first_and_the_last_slot():
    assert flowhash.ring_slot(0, 101) == 0
    assert flowhash.ring_slot(MASK, 101) == 100


@given(st.lists(st.tuples(addresses, ports, ports), min_size=1, max_size=20))
def test_many_at_once_are_each_alone(tuples: list):
    packed = b"".join(client.packed.ljust(16, b"\0") for client, _, _ in tuples)
    wire = flowhash.Wire(
        np.frombuffer(packed, dtype=np.uint32).reshape(-1, 4),
        np.array([sport for _, sport, _ in tuples], dtype=">u2").view(np.uint16),
        np.array([dport for _, _, dport in tuples], dtype=">u2").view(np.uint16),
        np.array([client.version == 6 for client, _, _ in tuples]),
    )
    key = np.full(len(tuples), flowhash.flow_key(KEYS, 5), dtype=np.uint64)
    found = flowhash.tuple_hashes(wire, key, KEYS.mul0, KEYS.mul1)
    assert list(found) == [flowhash.flow_hash(KEYS, 5, *each) for each in tuples]
    below = flowhash.tuple_hashes(
        wire, key ^ flowhash.address_keys(wire.saddr, wire.ipv6), KEYS.mul0, KEYS.mul1
    )
    assert list(below) == [flowhash.flow_hash(KEYS, 5, *each, each[0]) for each in tuples]


@pytest.mark.parametrize(
    "other",
    [
        (ip_address("198.51.100.8"), 4000, 80),
        (ip_address("198.51.100.7"), 4001, 80),
        (ip_address("198.51.100.7"), 4000, 81),
        (ip_address("198.51.100.7"), 80, 4000),
        (IPv6Address(int.from_bytes(ip_address("198.51.100.7").packed) << 96), 4000, 80),
    ],
)
def test_everything_that_names_a_flow_counts(other):
    one = (IPv4Address("198.51.100.7"), 4000, 80)
    assert flowhash.flow_hash(KEYS, 1, *one) != flowhash.flow_hash(KEYS, 1, *other)
    assert flowhash.pick_hash(0, *one) != flowhash.pick_hash(0, *other)


def test_salt_and_secret_change_the_place():
    flow = (IPv4Address("198.51.100.7"), 4000, 80)
    here = flowhash.flow_hash(KEYS, 1, *flow)
    assert flowhash.flow_hash(KEYS, 2, *flow) != here
    assert flowhash.flow_hash(HashKeys(KEYS.key ^ 1, KEYS.mul0, KEYS.mul1), 1, *flow) != here
