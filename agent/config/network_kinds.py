"""Decides what values of the network may be: addresses, prefixes, ports and interfaces.

They are types of the schema, as ``kinds`` has others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from agent.config.kinds import Kind, matching, refuse, shown, suggestion, text, whole
from agent.model import (
    ANY_PORT,
    MAX_LISTS,
    MAX_ZONE_PREFIXES,
    Address,
    AddressList,
    Network,
    Zone,
)

# First and last port of a range. A single port, and ANY_PORT, have no last port.
type Ports = tuple[int, int | None]

MAX_LIST_PREFIXES = 4096  # in the configuration itself; files may have any number
MAX_NAT_SOURCES = 8  # NAT_SOURCES of abi.h
_SHORTEST_PREFIX = {4: 8, 6: 16}
_RANGE = re.compile(r"([0-9]{1,5})\s*-\s*([0-9]{1,5})", re.ASCII)
_SPECIAL = (
    ("the unspecified address", ip_network("0.0.0.0/32")),
    ("the unspecified address", ip_network("::/128")),
    ("loopback addresses", ip_network("127.0.0.0/8")),
    ("the loopback address", ip_network("::1/128")),
    ("multicast addresses", ip_network("224.0.0.0/4")),
    ("multicast addresses", ip_network("ff00::/8")),
    ("the broadcast address", ip_network("255.255.255.255/32")),
    ("IPv4-mapped addresses", ip_network("::ffff:0:0/96")),
)


def _address(value: object) -> Address:
    if isinstance(value, str) and "/" in value:
        refuse(f"{shown(value)} is a network", "give one address, without a prefix length")
    written = text(value)  # before `try`, because the error that it raises is a ValueError too
    try:
        address = ip_address(written)
    except ValueError:
        remedy = "give one address, such as 10.0.0.10 or fd00::10 (names are not resolved)"
        refuse(f"{shown(value)} is not an IP address", remedy)
    if isinstance(address, IPv6Address):
        if address.scope_id:
            refuse(f"{value} has a zone", "give an address that is the same on every interface")
        if address.ipv4_mapped:
            refuse(f"{value} is an IPv4-mapped address", f"write {address.ipv4_mapped}")
    for kind, is_kind in (
        ("the unspecified address", address.is_unspecified),
        ("a multicast address", address.is_multicast),
        ("a loopback address", address.is_loopback),
        ("the broadcast address", address == IPv4Address("255.255.255.255")),
    ):
        if is_kind:
            refuse(f"{address} is {kind}", "give the unicast address of one host")
    return address


def _address_v4(value: object) -> IPv4Address:
    address = _address(value)
    if not isinstance(address, IPv4Address):
        refuse(f"{address} is not an IPv4 address", "give an address such as 10.0.0.2")
    return address


def _address_v6(value: object) -> IPv6Address:
    address = _address(value)
    if not isinstance(address, IPv6Address):
        refuse(f"{address} is not an IPv6 address", "give an address such as fd00::2")
    return address


def _vip(value: object) -> Address | Network:
    if not isinstance(value, str) or "/" not in value:
        return _address(value)
    if "%" in value:
        refuse(f"{value} has a zone", "give a prefix that is the same on every interface")
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        remedy = "give an address such as 10.0.0.10, or a prefix such as 192.0.2.0/24"
        refuse(f"{shown(value)} is not an IP address or a prefix", remedy)
    first = value.partition("/")[0]
    if first != str(network.network_address) and ip_address(first) != network.network_address:
        refuse(f"{value} is an address inside of {network}", f"write {network}, or {first} alone")
    if network.prefixlen == network.max_prefixlen:
        refuse(f"{value} is one address", f"write {network.network_address}")
    shortest = _SHORTEST_PREFIX[network.version]
    if network.prefixlen < shortest:
        refuse(f"{network} is too large for a VIP", f"give a prefix of /{shortest} or longer")
    for kind, special in _SPECIAL:
        if network.version == special.version and network.overlaps(special):
            refuse(f"{network} holds {kind}", "give a prefix of unicast addresses")
    return network


def _service_ports(value: object) -> Ports:
    if value == "any":
        return ANY_PORT, None
    remedy = "give a number from 1 to 65535, a range such as 8000-8010, or any"
    span = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if span is not None:
        return _port_range(int(span[1]), int(span[2]), 1)
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(f"{shown(value)} is not a port", remedy)
    if value == 0:
        refuse("0 is not a port", "write any for every port of the VIP, or a port from 1 to 65535")
    if not 0 < value <= 65535:
        refuse(f"{shown(value)} is out of range", remedy)
    return value, None


def _port_range(first: int, last: int, lowest: int) -> tuple[int, int]:
    written = f"{first}-{last}"
    if first == last:
        refuse(f"{written} is one port", f"write {first}")
    if not lowest <= min(first, last) <= max(first, last) <= 65535:
        refuse(f"{written} is out of range", f"give ports from {lowest} to 65535")
    if first > last:
        refuse(f"{written} is the wrong way round", f"write {last}-{first}")
    return first, last


def _nat_ports(value: object) -> tuple[int, int]:
    span = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if span is None:
        refuse(f"{shown(value)} is not a range of ports", "give a range such as 10240-32767")
    return _port_range(int(span[1]), int(span[2]), 1024)


def listed[T](
    what: Callable[[object], T], most: int, noun: str
) -> Callable[[object], tuple[T, ...]]:
    """Return a check for a list without repetitions, whose items ``what`` checks and converts."""

    def check(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            refuse(f"{shown(value)} is not a list", f"write a list of {noun}: [first, second]")
        if len(value) > most:
            refuse(f"{len(value)} {noun} are too many", f"give at most {most}")
        items = tuple(what(item) for item in value)
        twice = next((item for item in items if items.count(item) > 1), None)
        if twice is not None:
            refuse(f"{twice} is given twice", "remove one of the two")
        return items

    return check


def clients(value: object) -> Network:
    """Return a prefix of client addresses; a single address is a prefix, too."""
    written = text(value)
    try:
        network = ip_network(written, strict=False)
    except ValueError:
        remedy = "give a prefix such as 10.1.0.0/16 or 2001:db8::/32"
        refuse(f"{shown(value)} is not a prefix", remedy)
    first = written.partition("/")[0]
    if first != str(network.network_address) and ip_address(first) != network.network_address:
        refuse(f"{value} is an address inside of {network}", f"write {network}, or {first} alone")
    return network


def _proxy(value: object) -> Network:
    network = clients(value)
    shortest = _SHORTEST_PREFIX[network.version]
    if network.prefixlen < shortest:
        refuse(
            f"{network} is too large: any host in it could name any client",
            f"give the proxies' own addresses, or a prefix of /{shortest} or longer",
        )
    return network


def _zones(value: object) -> tuple[Zone, ...]:
    if not isinstance(value, dict):
        refuse(
            f"{shown(value)} is not a mapping",
            "write each zone with the prefixes of its clients: east: [10.1.0.0/16]",
        )
    zones: list[Zone] = []
    owner: dict[Network, str] = {}
    for key, prefixes in value.items():
        name = _zone_name(key)
        clients = _zone_clients(prefixes)
        for network in clients:
            if network in owner:
                refuse(f"{network} is in {owner[network]} and in {name}", "remove one of the two")
            owner[network] = name
        zones.append(Zone(name, clients))
    return tuple(sorted(zones, key=lambda zone: zone.name))


def _lists(value: object) -> tuple[AddressList, ...]:
    if not isinstance(value, dict):
        refuse(
            f"{shown(value)} is not a mapping",
            "write each list with its prefixes or its files: office: [198.51.100.0/24]",
        )
    if len(value) > MAX_LISTS:
        refuse(f"{len(value)} lists are too many", f"give at most {MAX_LISTS}")
    if "none" in value:
        refuse(
            "a list cannot be called none: `lbctl` writes that for no list", "give it another name"
        )
    lists = [_list(_list_name(key), content) for key, content in value.items()]
    return tuple(sorted(lists, key=lambda each: each.name))


_LIST_KEYS = ("prefixes", "files", "column", "values")


def _list(name: str, content: object) -> AddressList:
    if not isinstance(content, dict):
        return AddressList(name, _list_prefixes(content))
    unknown = next((key for key in content if key not in _LIST_KEYS), None)
    if unknown is not None:
        hint = suggestion(unknown, _LIST_KEYS)
        refuse(f"{name}: unknown key {shown(unknown)}", f"{hint}known: {', '.join(_LIST_KEYS)}")
    column, values = content.get("column"), content.get("values")
    if (column is None) != (values is None):
        refuse(
            f"{name}: column and values belong together",
            "give both for a CSV file, or neither for a text file with a prefix on each line",
        )
    found = AddressList(
        name,
        _list_prefixes(content.get("prefixes") or []),
        list_files(content.get("files") or []),
        None if column is None else text(column),
        () if values is None else _list_values(values),
    )
    if column is not None and not found.files:
        refuse(f"{name}: column needs a file", "name the CSV files: files: [/path/to/file.csv]")
    return found


def _list_value(value: object) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)


def _list_file(value: object) -> Path:
    path = Path(text(value))
    if not path.is_absolute():
        refuse(f"{shown(value)} is not an absolute path", "begin it with /")
    return path


def _listen(value: object) -> tuple[str, int] | None:
    # A client's YAML 1.1 reader may have turned `off` into a boolean before it called the API.
    if value == "off" or value is False:
        return None
    return address_and_port(value, "127.0.0.1:9117 or [::1]:9117, or off")


def address_and_port(value: object, examples: str) -> tuple[str, int]:
    """Return the address and the port in a text, or refuse it; ``examples`` are for the error."""
    remedy = f"give an address and a port, such as {examples}"
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})", str(value))
    if match is None:
        refuse(f"{shown(value)} is not an address and a port", remedy)
    v6, v4, port = match.group(1), match.group(2), int(match.group(3))
    try:
        host = str(IPv6Address(v6) if v6 else IPv4Address(v4))
    except ValueError:
        refuse(f"{shown(v6 or v4)} is not an IP address", remedy)
    if not 0 < port <= 65535:
        refuse(f"port {port} is out of range", "give a port from 1 to 65535")
    return host, port


_interface = matching(
    r"(?!\.{1,2}$)[^/:\s\0]+",
    "an interface name",
    "give a name that `ip -br link` shows, such as eth0",
    15,
)

_zone_name = matching(
    r"[a-z0-9][a-z0-9._-]*",
    "a zone's name",
    "use lower-case letters, digits, and . _ - after the first, such as eu-1",
    64,
)
_zone_clients = listed(clients, MAX_ZONE_PREFIXES, "prefixes")
_list_name = matching(
    r"[a-z0-9][a-z0-9._-]*",
    "a list's name",
    "use lower-case letters, digits, and . _ - after the first, such as office-1",
    64,
)
_list_prefixes = listed(clients, MAX_LIST_PREFIXES, "prefixes")
list_files = listed(_list_file, 16, "files")
_list_values = listed(_list_value, 1024, "values")

UnicastAddress = Annotated[Address, BeforeValidator(_address), Kind("IPv4 or IPv6 address")]
AddressV4 = Annotated[IPv4Address, BeforeValidator(_address_v4), Kind("IPv4 address")]
AddressV6 = Annotated[IPv6Address, BeforeValidator(_address_v6), Kind("IPv6 address")]
Vip = Annotated[
    Address | Network, BeforeValidator(_vip), Kind("IPv4 or IPv6 address, or a prefix of them")
]
ServicePorts = Annotated[
    Ports, BeforeValidator(_service_ports), Kind("1 to 65535, a range `8000-8010`, or `any`")
]
Port = Annotated[int, BeforeValidator(whole(1, 65535)), Kind("whole number, 1 to 65535")]
NatPorts = Annotated[
    tuple[int, int], BeforeValidator(_nat_ports), Kind("range within 1024 to 65535")
]
NatSourcesV4 = Annotated[
    tuple[IPv4Address, ...],
    BeforeValidator(listed(_address_v4, MAX_NAT_SOURCES, "addresses")),
    Kind(f"list of up to {MAX_NAT_SOURCES} IPv4 addresses"),
]
NatSourcesV6 = Annotated[
    tuple[IPv6Address, ...],
    BeforeValidator(listed(_address_v6, MAX_NAT_SOURCES, "addresses")),
    Kind(f"list of up to {MAX_NAT_SOURCES} IPv6 addresses"),
]
Listen = Annotated[tuple[str, int] | None, BeforeValidator(_listen), Kind("address:port, or `off`")]
Zones = Annotated[
    tuple[Zone, ...], BeforeValidator(_zones), Kind("mapping of names to lists of prefixes")
]
Lists = Annotated[
    tuple[AddressList, ...],
    BeforeValidator(_lists),
    Kind("mapping of names to lists of prefixes, or to `files`"),
]
ListNames = Annotated[
    tuple[str, ...],
    BeforeValidator(listed(_list_name, MAX_LISTS, "lists")),
    Kind("list of names of `lists`"),
]
Proxies = Annotated[
    tuple[Network, ...],
    BeforeValidator(listed(_proxy, 64, "prefixes")),
    Kind("list of addresses or prefixes"),
]
Addresses = Annotated[
    tuple[Address, ...],
    BeforeValidator(listed(_address, 64, "addresses")),
    Kind("list of addresses"),
]
InterfaceName = Annotated[str, BeforeValidator(_interface), Kind("text")]
InterfaceNames = Annotated[
    tuple[str, ...],
    BeforeValidator(listed(_interface, 16, "interfaces")),
    Kind("list of interface names"),
]
