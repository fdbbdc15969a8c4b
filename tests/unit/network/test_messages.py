"""What rtnetlink messages mean, on messages as pyroute2 hands them over."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl import ndmsg

from agent.network.messages import (
    AddressesChanged,
    LinkGone,
    Neighbour,
    Reach,
    RoutesChanged,
    Vlan,
    parse_event,
    parse_link,
    parse_neighbour,
    parse_reach,
)

SERVER = ip_address("10.0.0.21")


def neighbour(**changes: Any) -> dict[str, Any]:
    message = {
        "family": socket.AF_INET,
        "ifindex": 2,
        "state": ndmsg.NUD_REACHABLE,
        "flags": 0,
        "dst": "10.0.0.21",
        "lladdr": "02:00:00:00:00:21",
        "event": "RTM_NEWNEIGH",
    }
    return message | changes


@pytest.mark.parametrize(
    ("state", "reach"),
    [
        (ndmsg.NUD_NONE, Reach.NONE),
        (ndmsg.NUD_INCOMPLETE, Reach.WAITING),
        (ndmsg.NUD_REACHABLE, Reach.CONFIRMED),
        (ndmsg.NUD_STALE, Reach.STALE),
        (ndmsg.NUD_DELAY, Reach.CHECKING),
        (ndmsg.NUD_PROBE, Reach.CHECKING),
        (ndmsg.NUD_FAILED, Reach.FAILED),
        (ndmsg.NUD_NOARP, Reach.CONFIRMED),
        (ndmsg.NUD_PERMANENT, Reach.CONFIRMED),
    ],
)
def test_each_kernel_state_has_its_meaning(state: int, reach: Reach) -> None:
    assert parse_reach(state) is reach


@pytest.mark.parametrize(
    "changes",
    [
        {"state": ndmsg.NUD_PERMANENT},
        {"flags": ndmsg.NTF_EXT_LEARNED},
        {"flags_ext": 1},  # managed: the kernel refreshes it for somebody
    ],
)
def test_static_and_owned_entries_are_foreign(changes: dict[str, Any]) -> None:
    seen = parse_neighbour(neighbour(**changes))
    assert seen is not None
    assert seen.foreign


def test_a_removed_entry_is_none_and_nobody_s() -> None:
    gone = parse_event(neighbour(event="RTM_DELNEIGH", state=ndmsg.NUD_PERMANENT))
    assert gone == Neighbour(2, SERVER, None, Reach.NONE)


def test_a_bridge_s_forwarding_entry_is_no_neighbour() -> None:
    assert parse_event(neighbour(family=socket.AF_BRIDGE)) is None
    assert parse_event(neighbour(dst=None)) is None


def test_a_zero_mac_is_no_mac() -> None:
    seen = parse_neighbour(neighbour(lladdr="00:00:00:00:00:00"))
    assert seen is not None
    assert seen.mac is None


def test_only_an_ethernet_device_has_a_mac() -> None:
    message = {"index": 1, "flags": 0x10001, "ifi_type": 772, "ifname": "lo", "mtu": 65536}
    link = parse_link(message | {"address": "00:00:00:00:00:00"})
    assert (link.mac, link.up, link.carrier) == (None, True, True)


def route(**changes: Any) -> dict[str, Any]:
    message = {"event": "RTM_NEWROUTE", "family": socket.AF_INET, "flags": 0, "dst_len": 0}
    return message | changes


def test_a_route_concerns_the_addresses_of_its_prefix() -> None:
    event = parse_event(route(dst="10.1.0.0", dst_len=16))
    assert event == RoutesChanged(ip_network("10.1.0.0/16"))
    assert parse_event(route()) == RoutesChanged(None)
    assert parse_event(route(flags=0x200, dst="10.1.0.0", dst_len=16)) is None


def test_rules_concern_everything_and_addresses_their_interface() -> None:
    assert parse_event({"event": "RTM_NEWRULE"}) == RoutesChanged(None)
    assert parse_event({"event": "RTM_DELADDR", "index": 7}) == AddressesChanged(7)


def test_a_port_that_leaves_a_bridge_is_not_gone() -> None:
    message = {"event": "RTM_DELLINK", "index": 2}
    assert parse_event(message | {"family": socket.AF_BRIDGE}) is None
    assert parse_event(message | {"family": socket.AF_UNSPEC}) == LinkGone(2)


def vlan(**changes: Any) -> dict[str, Any]:
    about = {"kind": "vlan", "data": {"vlan_id": 5, "vlan_protocol": 0x88A8}}
    message = {"index": 7, "flags": 0x10001, "ifi_type": 1, "ifname": "eth0.5", "mtu": 1500}
    return message | {"address": "02:00:00:00:00:01", "link": 2, "linkinfo": about} | changes


def test_a_vlan_device_has_its_parent_and_its_tag() -> None:
    assert parse_link(vlan()).vlan == Vlan(2, 0x88A8, 5)
    plain = {"kind": "vlan", "data": {"vlan_id": 5}}
    assert parse_link(vlan(linkinfo=plain)).vlan == Vlan(2, 0x8100, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"linkinfo": None},
        {"linkinfo": {"kind": "macvlan", "data": {}}},
        {"linkinfo": {"kind": "vlan"}},
        {"link_netnsid": 0},  # its parent is in another namespace, by the number it has there
        {"link": None},
    ],
)
def test_what_puts_on_no_tag_of_a_parent_here_is_no_vlan_device(changes: dict[str, Any]) -> None:
    assert parse_link(vlan(**changes)).vlan is None
