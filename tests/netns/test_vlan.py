"""Next hops behind VLAN devices, and cards that would hide the tags."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from agent.network.offload import offloads
from agent.network.tags import STRIPPING, Tags
from tests.netns.cable import OURS_MAC, PEER, PEER_MAC, Net, Watch, follow, run_in, wired

INNER = ip_address("10.5.7.21")
OUTER = ip_address("10.5.0.21")
DEVICE_MAC = "02:00:00:00:05:01"


def has_vlan_devices() -> bool:
    """Whether this kernel can make them (CONFIG_VLAN_8021Q)."""
    command = "ip link add st0 type veth peer name st1 && ip link add link st0 type vlan id 5"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command], capture_output=True, check=False
    )
    return done.returncode == 0


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not has_vlan_devices(), reason="this kernel has no VLAN devices"),
]


@pytest.fixture
def net() -> Iterator[Net]:
    """VLAN 5 (802.1ad) on the cable, and VLAN 7 in it."""
    with wired("vlan") as made:
        for side in (made.ours, made.peers):
            side("link add link eth0 name eth0.5 type vlan id 5 protocol 802.1ad")
            side("link add link eth0.5 name eth0.5.7 mtu 1496 type vlan id 7")
        made.ours(f"link set eth0.5 address {DEVICE_MAC}")
        for name, ours, theirs in (("eth0.5", 2, OUTER), ("eth0.5.7", 2, INNER)):
            third = str(theirs).split(".")[2]
            made.ours(f"link set {name} up")
            made.ours(f"addr add 10.5.{third}.{ours}/24 dev {name}")
            made.peers(f"link set {name} up")
            made.peers(f"addr add {theirs}/24 dev {name}")
        yield made


def index(net: Net, name: str) -> int:
    return int(json.loads(net.ours(f"-j link show {name}"))[0]["ifindex"])


def test_a_next_hop_behind_vlans_has_the_card_and_the_tags(net: Net) -> None:
    async def story(watch: Watch) -> None:
        plain = await watch.until_mac(PEER, PEER_MAC)
        assert (plain.vlans, plain.source_mac, plain.mtu) == ((), OURS_MAC, 1500)
        outer = await watch.until_mac(OUTER, PEER_MAC)
        assert (outer.ifindex, outer.vlans) == (plain.ifindex, ((0x88A8, 5),))
        assert (outer.source_mac, outer.mtu) == (DEVICE_MAC, 1500)
        inner = await watch.until_mac(INNER, PEER_MAC)
        assert (inner.ifindex, inner.vlans) == (plain.ifindex, ((0x88A8, 5), (0x8100, 7)))
        assert (inner.mtu, inner.on_link) == (1496, True)
        assert inner.source == ip_address("10.5.7.2")

    follow(net, {PEER, OUTER, INNER}, story)


def test_what_changes_below_a_vlan_device_is_told(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(INNER, PEER_MAC)
        net.ours("link set eth0.5.7 mtu 1400")
        await watch.until(INNER, lambda hop: hop.mtu == 1400)
        net.ours("link set eth0.5.7 address 02:00:00:00:07:77")
        await watch.until(INNER, lambda hop: hop.source_mac == "02:00:00:00:07:77")
        net.ours("link set eth0.5.7 down")
        assert (await watch.until_reason(INNER, "eth0.5.7 is down")).mac == PEER_MAC
        net.ours("link set eth0.5.7 up")
        await watch.until_mac(INNER, PEER_MAC)
        net.ours("link set eth0 down")
        assert (await watch.until_reason(INNER, "eth0 is down")).vlans == (
            (0x88A8, 5),
            (0x8100, 7),
        )

    follow(net, {INNER}, story)


def test_a_vlan_device_that_is_removed_and_made_again_is_followed(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(INNER, PEER_MAC)
        net.ours("link del eth0.5.7")
        gone = await watch.until(INNER, lambda hop: hop.mac is None)
        assert gone.reason == f"no route to {INNER}"
        net.ours("link add link eth0 name later type vlan id 9")
        net.ours("link set later up")
        net.ours("addr add 10.5.7.2/24 dev later")
        net.peers("link add link eth0 name later type vlan id 9")
        net.peers("link set later up")
        net.peers(f"addr del {INNER}/24 dev eth0.5.7")
        net.peers(f"addr add {INNER}/24 dev later")
        hop = await watch.until_mac(INNER, PEER_MAC)
        assert hop.vlans == ((0x8100, 9),)

    follow(net, {INNER}, story)


def test_a_vlan_device_on_somebody_else_s_interface_is_refused(net: Net) -> None:
    net.ours("link add other type veth peer name far")
    net.ours("link add link other name other.6 type vlan id 6")
    for name in ("other", "far", "other.6"):
        net.ours(f"link set {name} up")
    net.ours("addr add 10.6.0.2/24 dev other.6")
    elsewhere = ip_address("10.6.0.9")

    async def story(watch: Watch) -> None:
        reason = f"route to {elsewhere} leaves by other.6, not eth0"
        assert (await watch.until_reason(elsewhere, reason)).mac is None

    follow(net, {elsewhere}, story)


def test_three_tags_are_refused(net: Net) -> None:
    net.ours("link add link eth0.5.7 name third type vlan id 8")
    net.ours("link set third up")
    net.ours("addr add 10.8.0.2/24 dev third")
    deep = ip_address("10.8.0.9")

    async def story(watch: Watch) -> None:
        reason = "third puts on more than 2 VLAN tags"
        assert (await watch.until_reason(deep, reason)).mac is None

    follow(net, {deep}, story)


def test_a_vlan_device_that_comes_is_told_of(net: Net) -> None:
    """The agent then looks at the card's offloads."""

    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        net.ours("link add link eth0 name eth0.11 type vlan id 11")
        await watch.until_told()

    follow(net, {PEER}, story)


def test_a_card_with_vlan_devices_leaves_the_tags_in_the_packets(net: Net) -> None:
    net.ours("link add other type veth peer name far")

    async def main() -> None:
        assert all(offloads("eth0")[name].on for name in STRIPPING)
        tags = Tags(("eth0", "other"))
        await tags.sync()
        assert not any(offloads("eth0")[name].on for name in STRIPPING)
        assert all(offloads("other")[name].on for name in STRIPPING), "no VLANs on it"
        await tags.sync()

    run_in(net.us, main)
