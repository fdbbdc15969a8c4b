"""Values of the network: which are taken, and what the others are told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.config.network_kinds import MAX_NAT_SOURCES
from agent.dataplane.abi import NAT_SOURCES
from tests.unit.config.documents import load, problems, service


@pytest.mark.parametrize(
    ("vip", "first", "bits", "text"),
    [
        ("192.0.2.0/24", "192.0.2.0", 24, "192.0.2.0/24"),
        ("10.0.0.0/8", "10.0.0.0", 8, "10.0.0.0/8"),
        ("2001:DB8:0::/48", "2001:db8::", 48, "2001:db8::/48"),
        ("192.0.2.7", "192.0.2.7", None, "192.0.2.7"),
    ],
)
def test_a_vip_is_an_address_or_a_prefix(vip: str, first: str, bits: int, text: str) -> None:
    key = load(service(vip=vip)).services[0].key
    assert (key.vip, key.vip_bits, key.address) == (ip_address(first), bits, text)


@pytest.mark.parametrize(
    ("vip", "message"),
    [
        ("192.0.2.5/24", "192.0.2.5/24 is an address inside of 192.0.2.0/24"),
        ("fd00::1/64", "fd00::1/64 is an address inside of fd00::/64"),
        ("192.0.2.0/33", "'192.0.2.0/33' is not an IP address or a prefix"),
        ("fe80::%eth0/64", "fe80::%eth0/64 has a zone"),
        ("net/24", "'net/24' is not an IP address or a prefix"),
        ("192.0.2.1/32", "192.0.2.1/32 is one address"),
        ("fd00::1/128", "fd00::1/128 is one address"),
        ("0.0.0.0/0", "0.0.0.0/0 is too large for a VIP"),
        ("2000::/3", "2000::/3 is too large for a VIP"),
        ("127.0.0.0/8", "127.0.0.0/8 holds loopback addresses"),
        ("239.0.0.0/8", "239.0.0.0/8 holds multicast addresses"),
        ("255.255.255.0/24", "255.255.255.0/24 holds the broadcast address"),
        ("ff00::/16", "ff00::/16 holds multicast addresses"),
        ("::/64", "::/64 holds the unspecified address"),
        ("0:0:0:0:0:fffc::/94", "::fffc:0:0/94 holds IPv4-mapped addresses"),
    ],
)
def test_other_vips_are_refused(vip: str, message: str) -> None:
    (found,) = problems(service(vip=vip))
    assert found == f"services[0].vip: {message}"


@pytest.mark.parametrize(
    ("port", "first", "last", "text"),
    [
        (80, 80, None, "80"),
        ("any", 0, None, "any"),
        ("8000-8100", 8000, 8100, "8000-8100"),
        ("1 - 65535", 1, 65535, "1-65535"),
    ],
)
def test_a_port_is_one_or_a_range_or_any(
    port: object, first: int, last: int | None, text: str
) -> None:
    key = load(service(port=port, health={"type": "none"})).services[0].key
    assert (key.port, key.port_last, key.ports) == (first, last, text)


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("80-80", "80-80 is one port"),
        ("90-80", "90-80 is the wrong way round"),
        ("0-80", "0-80 is out of range"),
        ("80-65536", "80-65536 is out of range"),
        ("65536-80", "65536-80 is out of range"),
        ("80-", "'80-' is not a port"),
        ("80,81", "'80,81' is not a port"),
        (["80"], "a list is not a port"),
    ],
)
def test_other_ports_are_refused(port: object, message: str) -> None:
    (found,) = problems(service(port=port))
    assert found == f"services[0].port: {message}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ports": "1023-2000"}, "nat.ports: 1023-2000 is out of range"),
        ({"ports": 2000}, "nat.ports: 2000 is not a range of ports"),
        ({"ports": "3000-2000"}, "nat.ports: 3000-2000 is the wrong way round"),
        ({"sources_ipv4": "192.0.2.1"}, "nat.sources_ipv4: '192.0.2.1' is not a list"),
        ({"sources_ipv4": ["fd00::1"]}, "nat.sources_ipv4: fd00::1 is not an IPv4 address"),
        ({"sources_ipv6": ["192.0.2.1"]}, "nat.sources_ipv6: 192.0.2.1 is not an IPv6 address"),
        (
            {"sources_ipv4": ["192.0.2.1", "192.0.2.2", "192.0.2.1"]},
            "nat.sources_ipv4: 192.0.2.1 is given twice",
        ),
        (
            {"sources_ipv4": [f"192.0.2.{n}" for n in range(1, 10)]},
            "nat.sources_ipv4: 9 addresses are too many",
        ),
    ],
)
def test_wrong_sources_of_nat_are_refused(values: dict[str, object], message: str) -> None:
    assert problems(nat=values) == [message]


def test_as_many_sources_fit_as_the_tables_have_room_for() -> None:
    assert MAX_NAT_SOURCES == NAT_SOURCES
    sources = [f"192.0.2.{n + 1}" for n in range(MAX_NAT_SOURCES)]
    assert len(load(nat={"sources_ipv4": sources}).nat.sources_v4) == MAX_NAT_SOURCES
