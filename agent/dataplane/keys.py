"""Decides the keys of the tables that are looked up by key, and which table a key is in."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network

from agent.model import Address, Network
from agent.state.tables import PortBlock, QuicId, ServiceSlot, ZoneRingKey

_CACHED_PREFIXES = 65_536  # zones can have many, and each pass reads them
_BITS_BEFORE_PORT = 160  # of struct port_range_key: address, padding, protocol


def packed_slot(slot: ServiceSlot) -> bytes:
    """Return a struct service_key4 or service_key6."""
    return slot.vip.packed + slot.port.to_bytes(2, "big") + bytes((slot.protocol, 0))


def slot_of(key: bytes) -> ServiceSlot:
    return ServiceSlot(_address(key[:-4]), int.from_bytes(key[-4:-2], "big"), key[-2])


def services_table(slot: ServiceSlot) -> str:
    return f"services{slot.vip.version}"


def origins_table(slot: ServiceSlot) -> str:
    return f"origins{slot.vip.version}"


def packed_prefix(network: Network) -> bytes:
    """Return a struct vip_prefix4 or vip_prefix6, zone_key4 or zone_key6."""
    return network.prefixlen.to_bytes(4, "little") + network.network_address.packed


@lru_cache(maxsize=_CACHED_PREFIXES)
def prefix_of(key: bytes) -> Network:
    return ip_network((_address(key[4:]), int.from_bytes(key[:4], "little")))


def prefixes_table(network: Network) -> str:
    return f"prefixes{network.version}"


def zones_table(network: Network) -> str:
    return f"zones{network.version}"


def packed_zone_ring(key: ZoneRingKey) -> bytes:
    """Return a struct zone_ring_key."""
    return key.service_id.to_bytes(4, "little") + key.zone.to_bytes(4, "little")


def zone_ring_of(key: bytes) -> ZoneRingKey:
    return ZoneRingKey(int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little"))


def packed_block(block: PortBlock) -> bytes:
    """Return a struct port_range_key."""
    return (
        (_BITS_BEFORE_PORT + block.bits).to_bytes(4, "little")
        + block.vip.packed.ljust(16, b"\0")
        + bytes((0, 0, 0, block.protocol))
        + block.port.to_bytes(2, "big")
        + bytes(2)
    )


def block_of(key: bytes, family: int) -> PortBlock:
    """Return the block of ports in a struct port_range_key.

    The key does not distinguish an IPv4 address from the IPv6 address that begins with it.
    """
    return PortBlock(
        vip=_address(key[4:8] if family == 4 else key[4:20]),
        protocol=key[23],
        port=int.from_bytes(key[24:26], "big"),
        bits=int.from_bytes(key[:4], "little") - _BITS_BEFORE_PORT,
    )


def packed_first(first: int, family: int) -> bytes:
    """Return a struct port_range, with the family in its padding, for ``block_of`` only."""
    return first.to_bytes(2, "big") + family.to_bytes(2, "little")


def first_of(value: bytes) -> tuple[int, int]:
    """Return the first port of a range, and the family of its VIP."""
    return int.from_bytes(value[:2], "big"), int.from_bytes(value[2:4], "little")


def packed_quic(quic_id: QuicId) -> bytes:
    """Return a struct quic_key."""
    return quic_id.server_id + quic_id.service_id.to_bytes(4, "little") + bytes(4)


def quic_of(key: bytes) -> QuicId:
    return QuicId(int.from_bytes(key[8:12], "little"), key[:8])


def _address(raw: bytes) -> Address:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
