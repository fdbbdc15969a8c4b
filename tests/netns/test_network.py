"""Next hops and VIP addresses against the real kernel, in namespaces of our own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Collection, Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent.errors import NetworkError
from agent.model import Address, NextHop
from agent.network import netlink, resolve
from agent.network.claims import holders
from agent.network.vips import OUR_PROTO, Vips
from agent.state.claims import Claim
from tests.netns.cable import (
    OURS_MAC,
    PEER,
    PEER6,
    PEER_MAC,
    Net,
    Watch,
    follow,
    run_in,
    wired,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture
def net() -> Iterator[Net]:
    with wired("net") as made:
        yield made


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_resolves_neighbours_on_the_segment(net: Net) -> None:
    async def story(watch: Watch) -> None:
        hop = await watch.until_mac(PEER, PEER_MAC)
        assert hop == NextHop(
            address=PEER,
            ifindex=hop.ifindex,
            mac=PEER_MAC,
            source_mac=OURS_MAC,
            mtu=1500,
            on_link=True,
            source=ip_address("10.9.0.2"),
        )
        hop6 = await watch.until_mac(PEER6, PEER_MAC)
        assert (hop6.on_link, hop6.source) == (True, ip_address("fd09::2"))

    follow(net, {PEER, PEER6}, story)


@pytest.mark.parametrize(
    ("target", "gateway", "route"),
    [
        ("10.77.0.5", "no ARP answer from gateway 10.9.0.9", "10.77.0.0/16 via 10.9.0.21"),
        ("fd77::5", "", "fd77::/64 via fd09::21"),
        ("fd77::5", "", "fd77::/64 via fe80::ff:fe00:21 dev eth0"),
        ("10.77.0.5", "", "10.77.0.0/16 via inet6 fd09::21 dev eth0"),
    ],
)
def test_follows_routes_to_a_gateway(net: Net, target: str, gateway: str, route: str) -> None:
    address = ip_address(target)

    async def story(watch: Watch) -> None:
        await watch.until_reason(address, f"no route to {target}")
        net.ours(f"route add {route}")
        hop = await watch.until_mac(address, PEER_MAC)
        assert not hop.on_link
        if gateway:
            net.ours("route replace 10.77.0.0/16 via 10.9.0.9")
            assert (await watch.until_reason(address, gateway)).mac is None
        net.ours(f"{'-6 ' if address.version == 6 else ''}route del {route.split()[0]}")
        assert (await watch.until_reason(address, f"no route to {target}")).mac is None

    follow(net, {address}, story)


def test_a_silent_address_says_so_and_is_found_once_it_answers(net: Net) -> None:
    late = ip_address("10.9.0.40")
    late6 = ip_address("fd09::40")

    async def story(watch: Watch) -> None:
        silent = await watch.until_reason(late, "no ARP answer from 10.9.0.40 on eth0")
        assert silent.mac is None
        await watch.until_reason(late6, "no neighbour discovery answer from fd09::40 on eth0")
        net.peers("addr add 10.9.0.40/24 dev eth0")
        net.peers("addr add fd09::40/64 dev eth0 nodad")
        await watch.until_mac(late, PEER_MAC)
        await watch.until_mac(late6, PEER_MAC)

    follow(net, {late, late6}, story)


def test_a_server_that_is_replaced_is_followed_to_its_new_mac(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        net.peers("link set eth0 address 02:00:00:00:00:99")  # it says so, by gratuitous ARP
        await watch.until_mac(PEER, "02:00:00:00:00:99")

    follow(net, {PEER}, story)


def test_stale_macs_are_confirmed_and_a_failed_one_is_kept_with_a_reason(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "CONFIRM_AFTER_S", 0.2)
    net.without_ipv6()

    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)

        async def is_quiet() -> bool:
            told = watch.changes
            for _ in range(20):  # several lives of an entry
                await asyncio.sleep(0.1)
                assert watch.hops.get(PEER).mac == PEER_MAC
            return watch.changes == told

        # The cable's 50 ms for an answer may be over on a busy host, and that is told of.
        assert await is_quiet() or await is_quiet() or await is_quiet()
        net.peers(f"addr del {PEER}/24 dev eth0")
        kept = await watch.until(PEER, lambda hop: bool(hop.reason))
        assert kept.mac == PEER_MAC
        assert kept.reason == "no ARP answer from 10.9.0.21 on eth0; its last MAC is kept"
        net.peers(f"addr add {PEER}/24 dev eth0")
        await watch.until_mac(PEER, PEER_MAC)

    follow(net, {PEER}, story)


def test_a_static_neighbour_is_used_and_stays_static(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "FIRST_RETRY_S", 0.05)
    static = ip_address("10.9.0.50")

    async def story(watch: Watch) -> None:
        await watch.until_reason(static, "no ARP answer from 10.9.0.50 on eth0")
        net.ours("neigh replace 10.9.0.50 lladdr 02:00:00:00:00:50 nud permanent dev eth0")
        await watch.until_mac(static, "02:00:00:00:00:50")
        await asyncio.sleep(0.5)
        assert "PERMANENT" in net.ours("neigh show 10.9.0.50")
        net.ours("neigh replace 10.9.0.50 lladdr 02:00:00:00:00:51 nud permanent dev eth0")
        await watch.until_mac(static, "02:00:00:00:00:51")

    follow(net, {static}, story)


def test_a_flushed_neighbour_table_moves_nothing(net: Net) -> None:
    net.without_ipv6()

    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)

        async def is_quiet() -> bool:
            told = watch.changes
            net.ours("neigh flush dev eth0")
            await asyncio.sleep(0.5)
            assert watch.hops.get(PEER).mac == PEER_MAC
            return watch.changes == told

        # The cable's 50 ms for an answer may be over on a busy host, and that is told of.
        assert await is_quiet() or await is_quiet() or await is_quiet()

    follow(net, {PEER}, story)


def test_an_address_behind_another_interface_is_refused_by_name(net: Net) -> None:
    net.ours("link add eth1 type veth peer name eth1-far")
    net.ours("link set eth1 up")
    net.ours("link set eth1-far up")
    net.ours("addr add 10.10.0.1/24 dev eth1")
    elsewhere = ip_address("10.10.0.9")

    async def story(watch: Watch) -> None:
        reason = "route to 10.10.0.9 leaves by eth1, not eth0"
        assert (await watch.until_reason(elsewhere, reason)).mac is None
        own = ip_address("10.9.0.2")
        watch.hops.set_addresses({own})
        await watch.until_reason(own, "10.9.0.2 is an address of this machine")

    follow(net, {elsewhere}, story)


SECOND_MAC = "02:00:00:00:01:21"
BEHIND = ip_address("10.10.0.21")


def second_cable(net: Net) -> None:
    """One more interface on both sides, with a network of its own."""
    net.ours(f"link add eth1 type veth peer name eth1 netns {net.peer}")
    net.peers(f"link set eth1 address {SECOND_MAC} up")
    net.ours("link set eth1 up")
    net.ours("addr add 10.10.0.2/24 dev eth1")
    net.peers(f"addr add {BEHIND}/24 dev eth1")


def index(net: Net, name: str) -> int:
    return int(json.loads(net.ours(f"-j link show {name}"))[0]["ifindex"])


def test_addresses_behind_a_backend_interface_leave_by_it(net: Net) -> None:
    second_cable(net)

    async def story(watch: Watch) -> None:
        assert (await watch.until_mac(PEER, PEER_MAC)).ifindex == index(net, "eth0")
        hop = await watch.until_mac(BEHIND, SECOND_MAC)
        assert (hop.ifindex, hop.on_link) == (index(net, "eth1"), True)
        net.ours("link set eth1 down")
        assert (await watch.until_reason(BEHIND, "eth1 is down")).mac == SECOND_MAC
        await watch.until_mac(PEER, PEER_MAC)  # that is well
        net.ours("link set eth1 up")
        await watch.until_mac(BEHIND, SECOND_MAC)
        net.ours("link del eth1")
        reason = f"no route to {BEHIND}; eth1 does not exist"
        assert (await watch.until_reason(BEHIND, reason)).mac is None

    follow(net, {PEER, BEHIND}, story, "eth0", "eth1")


def test_a_gateway_of_the_same_address_on_two_interfaces_is_two_neighbours(net: Net) -> None:
    second_cable(net)
    first, second = ip_address("fd71::5"), ip_address("fd72::5")
    for name in ("eth0", "eth1"):
        net.peers(f"addr add fe80::1/64 dev {name} nodad")
    net.ours("-6 route add fd71::/64 via fe80::1 dev eth0")
    net.ours("-6 route add fd72::/64 via fe80::1 dev eth1")

    async def story(watch: Watch) -> None:
        await watch.until_mac(first, PEER_MAC)
        await watch.until_mac(second, SECOND_MAC)

    follow(net, {first, second}, story, "eth0", "eth1")


def test_a_route_that_moves_to_the_other_interface_is_followed(net: Net) -> None:
    second_cable(net)
    far = ip_address("10.77.0.5")
    net.ours("route add 10.77.0.0/16 via 10.9.0.21 metric 1")
    net.ours(f"route add 10.77.0.0/16 via {BEHIND} metric 2")

    async def story(watch: Watch) -> None:
        await watch.until_mac(far, PEER_MAC)
        net.ours("link set eth0 down")
        hop = await watch.until_mac(far, SECOND_MAC)
        assert hop.ifindex == index(net, "eth1")

    follow(net, {far}, story, "eth0", "eth1")


def test_a_link_that_flaps_keeps_the_mac_and_says_what_happens(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        net.peers("link set eth0 down")
        assert (await watch.until_reason(PEER, "eth0 has no carrier")).mac == PEER_MAC
        net.ours("link set eth0 down")
        assert (await watch.until_reason(PEER, "eth0 is down")).mac == PEER_MAC
        net.peers("link set eth0 up")
        net.ours("link set eth0 up")
        await watch.until_mac(PEER, PEER_MAC)

    follow(net, {PEER}, story)


def test_what_an_interface_of_this_host_blocks_is_told_from_what_others_do(net: Net) -> None:
    async def story(watch: Watch) -> None:
        loop = asyncio.get_running_loop()
        await watch.until_mac(PEER, PEER_MAC)
        begun = loop.time()
        assert watch.hops.blocked(PEER, begun) == ""
        net.ours("link set eth0 down")  # the route goes with it
        await watch.until_reason(PEER, "eth0 is down")
        assert watch.hops.blocked(PEER, loop.time()) == "eth0 is down"
        assert watch.hops.troubles() == ("eth0 is down",)
        net.ours("link set eth0 up")
        await watch.until(PEER, lambda hop: not hop.reason)
        assert watch.hops.troubles() == ()
        assert watch.hops.blocked(PEER, begun) == "eth0 is down", "for what was begun before"
        assert watch.hops.blocked(PEER, loop.time()) == ""
        assert watch.ways_back == 1
        net.peers(f"address del {PEER}/24 dev eth0")
        net.ours(f"neighbour del {PEER} dev eth0")
        await watch.until(PEER, lambda hop: hop.reason.startswith("no ARP answer"))
        assert watch.hops.blocked(PEER, loop.time()) == "", "that is the server's"

    follow(net, {PEER}, story)


def test_a_change_of_the_interface_s_own_mac_and_mtu_is_told(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        net.ours("link set eth0 address 02:00:00:00:00:77")
        await watch.until(PEER, lambda hop: hop.source_mac == "02:00:00:00:00:77")
        net.ours("link set eth0 mtu 1400")
        await watch.until(PEER, lambda hop: hop.mtu == 1400)

    follow(net, {PEER}, story)


def test_an_interface_that_is_removed_and_made_again_is_found_again(net: Net) -> None:
    async def story(watch: Watch) -> None:
        before = await watch.until_mac(PEER, PEER_MAC)
        net.ours("link del eth0")
        gone = await watch.until_reason(PEER, "eth0 does not exist")
        assert (gone.mac, gone.ifindex) == (None, 0)
        net.ours("link add spare type veth peer name spare-far")  # so that the number differs
        net.cable()
        after = await watch.until_mac(PEER, PEER_MAC)
        assert after.ifindex != before.ifindex

    follow(net, {PEER}, story)


def test_the_mtu_of_a_route_counts(net: Net) -> None:
    net.ours("route add 10.77.0.0/16 via 10.9.0.21 mtu 1300")
    far = ip_address("10.77.0.1")

    async def story(watch: Watch) -> None:
        assert (await watch.until_mac(far, PEER_MAC)).mtu == 1300

    follow(net, {far}, story)


def test_addresses_can_be_changed_while_it_runs(net: Net) -> None:
    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        watch.hops.set_addresses({PEER6})
        await watch.until_mac(PEER6, PEER_MAC)
        assert watch.hops.get(PEER).reason == "not looked up yet"

    follow(net, {PEER}, story)


def storm(net: Net) -> None:
    """Make some thousand neighbour events while nobody reads them."""
    places = [(n >> 8, n & 255) for n in range(256, 1100)]
    batch = "".join(
        f"neigh replace 10.9.{high}.{low} lladdr 02:00:00:{turn:02x}:{high:02x}:{low:02x}"
        " nud permanent dev eth0\n"
        for turn in range(3)
        for high, low in places
    )
    command = ["ip", "-n", net.us, "-batch", "-"]
    subprocess.run(command, input=batch, text=True, check=True, timeout=60)


@pytest.mark.parametrize("buffer_bytes", [4 << 20, 4096], ids=["held", "overflowing"])
def test_a_storm_of_events_is_survived(
    net: Net, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(netlink, "EVENT_BUFFER_BYTES", buffer_bytes)

    async def story(watch: Watch) -> None:
        await watch.until_mac(PEER, PEER_MAC)
        files = open_files()
        for last in ("88", "89"):
            storm(net)
            net.ours(f"neigh replace {PEER} lladdr 02:00:00:00:00:{last} nud permanent dev eth0")
            await watch.until_mac(PEER, f"02:00:00:00:00:{last}")
        assert open_files() <= files

    follow(net, {PEER}, story)


VIP = ip_address("10.9.0.100")
VIP6 = ip_address("fd09::100")


def sync(net: Net, *wanted: Address) -> None:
    async def main() -> None:
        await Vips("eth0").sync(frozenset(wanted))

    run_in(net.us, main)


def shown(net: Net, address: Address) -> dict[str, Any] | None:
    links = json.loads(net.ours("-j addr show dev eth0"))
    entries = [entry for link in links for entry in link["addr_info"]]
    found = [entry for entry in entries if entry["local"] == str(address)]
    return found[0] if found else None


def test_vips_are_added_as_host_addresses_marked_as_ours(net: Net) -> None:
    sync(net, VIP, VIP6)
    for vip in (VIP, VIP6):
        entry = shown(net, vip)
        assert entry is not None
        assert entry["prefixlen"] == vip.max_prefixlen
        assert int(str(entry["protocol"]), 0) == OUR_PROTO
    sync(net, VIP, VIP6)


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["ipv4", "ipv6"])
def test_a_vip_that_another_host_has_is_not_taken_until_it_is_free(net: Net, vip: Address) -> None:
    ours = Vips("eth0", holders=partial(holders, "eth0"))
    other = f"{vip}/{vip.max_prefixlen} dev eth0"
    net.peers(f"address add {other} nodad")

    async def taking() -> None:
        await ours.sync(frozenset({VIP, VIP6}))

    run_in(net.us, taking)
    assert ours.refused == {Claim(vip, PEER_MAC)}
    assert shown(net, vip) is None
    assert shown(net, VIP6 if vip is VIP else VIP) is not None
    net.peers(f"address del {other}")
    run_in(net.us, taking)
    assert ours.refused == set()
    assert shown(net, vip) is not None


def test_a_vip_that_was_taken_off_here_is_put_back_without_a_question(net: Net) -> None:
    """Who takes it meanwhile is told of, and does not get it."""
    asked: list[frozenset[Address]] = []

    async def all_have(vips: Collection[Address]) -> dict[Address, str]:
        asked.append(frozenset(vips))
        return dict.fromkeys(vips, PEER_MAC) if len(asked) > 1 else {}

    ours = Vips("eth0", holders=all_have)

    async def taking() -> None:
        await ours.sync(frozenset({VIP}))

    run_in(net.us, taking)
    net.ours(f"address del {VIP}/32 dev eth0")
    run_in(net.us, taking)
    assert shown(net, VIP) is not None
    assert asked == [{VIP}]


def test_where_nobody_can_be_asked_a_vip_is_taken(net: Net) -> None:
    async def asking(ifname: str) -> None:
        assert await holders(ifname, {VIP}) == {}

    net.peers(f"address add {VIP}/32 dev eth0")
    run_in(net.us, partial(asking, "nope0"))
    net.ours("link set eth0 down")
    run_in(net.us, partial(asking, "eth0"))


def test_a_vip_is_never_the_source_of_the_host_s_own_traffic(net: Net) -> None:
    sync(net, VIP, VIP6)

    async def story(watch: Watch) -> None:
        assert (await watch.until_mac(PEER, PEER_MAC)).source == ip_address("10.9.0.2")
        close = ip_address("fd09::101")  # nearer to the VIP than to the host's own address
        watch.hops.set_addresses({close})
        hop = await watch.until(close, lambda hop: hop.source is not None)
        assert hop.source == ip_address("fd09::2")

    follow(net, {PEER}, story)


def test_a_later_agent_removes_what_an_earlier_one_added(net: Net) -> None:
    sync(net, VIP, VIP6)
    sync(net, VIP6)
    assert shown(net, VIP) is None
    assert shown(net, VIP6) is not None
    sync(net)
    assert shown(net, VIP6) is None


def test_addresses_of_others_are_left_alone(net: Net) -> None:
    net.ours(f"addr add {VIP}/32 dev eth0")
    net.ours(f"addr add {VIP6}/64 dev eth0 nodad")
    sync(net, VIP, VIP6)
    sync(net)
    assert shown(net, VIP) is not None
    assert shown(net, VIP6) is not None
    assert shown(net, ip_address("10.9.0.2")) is not None


def test_vips_on_an_interface_that_does_not_exist_are_refused(net: Net) -> None:
    async def main() -> None:
        await Vips("nope0").sync(frozenset())
        with pytest.raises(NetworkError, match="does not exist") as caught:
            await Vips("nope0").sync(frozenset({VIP}))
        assert caught.value.where == "nope0"
        assert caught.value.remedy

    run_in(net.us, main)


def test_a_vip_that_cannot_be_added_is_named_and_the_others_are_added(net: Net) -> None:
    net.sysctl(net.us, net__ipv6__conf__eth0__disable_ipv6=1)
    with pytest.raises(NetworkError, match="fd09::100") as caught:
        sync(net, VIP, VIP6)
    assert "disable_ipv6=0" in caught.value.remedy
    assert shown(net, VIP) is not None
