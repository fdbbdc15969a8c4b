"""Keys of the tables that are looked up by key: as the packet path writes them, and back."""

from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.dataplane import abi, keys
from agent.state.tables import PortBlock, QuicId, ServiceSlot, ZoneRingKey


@pytest.mark.parametrize(
    ("slot", "dtype"),
    [
        (ServiceSlot(ip_address("203.0.113.10"), 443, 6), abi.SERVICE_KEY4),
        (ServiceSlot(ip_address("2001:db8::10"), 0, 17), abi.SERVICE_KEY6),
    ],
)
def test_a_slot_is_a_service_key(slot: ServiceSlot, dtype: np.dtype):
    packed = keys.packed_slot(slot)
    row = np.frombuffer(packed, dtype=dtype)
    assert (row["port"], row["l4_proto"]) == (slot.port, slot.protocol)
    assert row["vip"].tobytes() == slot.vip.packed
    assert keys.slot_of(packed) == slot
    assert keys.services_table(slot).endswith(str(slot.vip.version))
    assert keys.origins_table(slot).endswith(str(slot.vip.version))


@pytest.mark.parametrize(
    ("network", "dtype"),
    [("203.0.113.0/28", abi.VIP_PREFIX4), ("2001:db8::/32", abi.VIP_PREFIX6)],
)
def test_a_prefix_is_a_key_of_a_trie(network: str, dtype: np.dtype):
    prefix = ip_network(network)
    packed = keys.packed_prefix(prefix)
    row = np.frombuffer(packed, dtype=dtype)
    assert row["prefix_len"] == prefix.prefixlen
    assert row["addr"].tobytes() == prefix.network_address.packed
    assert keys.prefix_of(packed) == prefix
    assert keys.prefixes_table(prefix) == f"prefixes{prefix.version}"
    assert keys.zones_table(prefix) == f"zones{prefix.version}"
    row = np.frombuffer(packed, dtype=abi.ZONE_KEY4 if prefix.version == 4 else abi.ZONE_KEY6)
    assert row["prefix_len"] == prefix.prefixlen
    assert row["addr"].tobytes() == prefix.network_address.packed


def test_the_ring_of_a_zone_is_under_its_service_and_zone():
    key = ZoneRingKey(7, 70_000)
    packed = keys.packed_zone_ring(key)
    row = np.frombuffer(packed, dtype=abi.ZONE_RING_KEY)
    assert (row["service"], row["zone"]) == (7, 70_000)
    assert keys.zone_ring_of(packed) == key


@pytest.mark.parametrize("vip", ["203.0.113.10", "2001:db8::10", "2001:db8::", "::"])
def test_a_block_is_a_key_of_a_trie_and_its_value_tells_the_family(vip: str):
    block = PortBlock(ip_address(vip), 6, 8000, 13)
    packed = keys.packed_block(block)
    row = np.frombuffer(packed, dtype=abi.PORT_RANGE_KEY)[0]
    assert (row["prefix_len"], row["l4_proto"], row["port"]) == (173, 6, 8000)
    assert row["vip"].tobytes() == block.vip.packed.ljust(16, b"\0")
    value = keys.packed_first(8000, block.vip.version)
    assert np.frombuffer(value, dtype=abi.PORT_RANGE)[0]["first"] == 8000
    first, family = keys.first_of(value)
    assert (first, keys.block_of(packed, family)) == (8000, block)


def test_a_quic_id_is_a_key():
    quic_id = QuicId(70_000, b"\x01\x02\x03\x04\0\0\0\0")
    packed = keys.packed_quic(quic_id)
    row = np.frombuffer(packed, dtype=abi.QUIC_KEY)[0]
    assert (row["service"], row["id"].tobytes()) == (70_000, quic_id.server_id)
    assert keys.quic_of(packed) == quic_id
