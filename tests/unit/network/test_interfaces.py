"""Which devices lead to the balancer's interfaces, and which tags they put on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.network.interfaces import Egress, Interfaces, way_by
from agent.network.messages import Link, Vlan

ETH0 = Link(2, "eth0", "02:00:00:00:00:02", 1500, True, True)
ETH1 = Link(3, "eth1", "02:00:00:00:00:03", 9000, True, True)
OUTER = Link(5, "eth0.5", "02:00:00:00:00:05", 1500, True, True, Vlan(2, 0x88A8, 5))
INNER = Link(7, "eth0.5.7", "02:00:00:00:00:07", 1496, True, True, Vlan(5, 0x8100, 7))
THIRD = Link(9, "eth0.5.7.9", "02:00:00:00:00:09", 1496, True, True, Vlan(7, 0x8100, 9))
ALL = {link.ifindex: link for link in (ETH0, ETH1, OUTER, INNER, THIRD)}


class Kernel:
    """Answers as a netlink socket does."""

    def __init__(self, *links: Link) -> None:
        self.links = {link.ifindex: link for link in links}
        self.asked = 0

    async def link(self, name: str) -> Link | None:
        return next((link for link in self.links.values() if link.name == name), None)

    async def link_at(self, ifindex: int) -> Link | None:
        self.asked += 1
        return self.links.get(ifindex)

    def set(self, *links: Link) -> None:
        self.links |= {link.ifindex: link for link in links}


def read(found: Interfaces, kernel: Kernel) -> bool:
    return asyncio.run(found.read(kernel))  # type: ignore[arg-type]


def learn(found: Interfaces, kernel: Kernel, ifindex: int) -> None:
    asyncio.run(found.learn(kernel, ifindex))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ifindex", "base", "vlans", "mtu"),
    [
        (2, ETH0, (), 1500),
        (3, ETH1, (), 9000),
        (5, ETH0, ((0x88A8, 5),), 1500),
        (7, ETH0, ((0x88A8, 5), (0x8100, 7)), 1496),
    ],
)
def test_a_device_leads_to_the_interface_below_it(
    ifindex: int, base: Link, vlans: tuple[tuple[int, int], ...], mtu: int
) -> None:
    way = way_by(ifindex, ALL, {2, 3})
    assert way is not None
    assert (way.base, way.vlans, way.mtu, way.trouble) == (base, vlans, mtu, "")
    assert way.device.ifindex == ifindex


def test_a_device_on_somebody_else_s_interface_leads_nowhere() -> None:
    assert way_by(7, ALL, {3}) is None
    assert way_by(2, ALL, {3}) is None
    assert way_by(99, ALL, {2}) is None
    assert way_by(5, {5: OUTER}, {2}) is None, "its parent is not known"


def test_a_vlan_device_that_is_the_interface_itself_puts_no_tag_on() -> None:
    """What it is attached to puts it on."""
    way = way_by(7, ALL, {5})
    assert way is not None
    assert (way.base, way.vlans) == (OUTER, ((0x8100, 7),))


def test_three_tags_are_more_than_a_packet_can_be_given() -> None:
    way = way_by(9, ALL, {2})
    assert way is not None
    assert way.trouble == "eth0.5.7.9 puts on more than 2 VLAN tags"


@pytest.mark.parametrize(
    ("link", "trouble"),
    [
        (replace(ETH0, up=False), "eth0 is down"),
        (replace(ETH0, carrier=False), "eth0 has no carrier"),
        (replace(ETH0, mac=None), "eth0 is not an Ethernet interface"),
        (ETH0, "eth0.5 is down"),
    ],
)
def test_trouble_is_told_of_the_lowest_device_that_has_it(link: Link, trouble: str) -> None:
    assert Egress((replace(OUTER, up=False), link)).trouble == trouble


def test_devices_are_learnt_with_what_is_below_them_and_once() -> None:
    kernel, found = Kernel(*ALL.values()), Interfaces(("eth0",))
    assert read(found, kernel)
    assert not read(found, kernel)
    learn(found, kernel, 7)
    assert kernel.asked == 2, "the inner and the outer one; the interface was known"
    way = found.way(7)
    assert way is not None
    assert way.links == (INNER, OUTER, ETH0)
    learn(found, kernel, 7)
    assert kernel.asked == 2


def test_what_changed_is_read_again_for_all_that_is_known() -> None:
    kernel, found = Kernel(*ALL.values()), Interfaces(("eth0",))
    read(found, kernel)
    learn(found, kernel, 7)
    kernel.set(replace(OUTER, up=False))
    assert read(found, kernel)
    way = found.way(7)
    assert way is not None
    assert way.trouble == "eth0.5 is down"
    del kernel.links[5]
    assert read(found, kernel)
    assert found.way(7) is None


def test_what_no_route_names_is_forgotten() -> None:
    kernel, found = Kernel(*ALL.values()), Interfaces(("eth0",))
    read(found, kernel)
    learn(found, kernel, 9)
    found.forget({7})
    assert found.get(9) is None
    assert found.way(7) is not None
    found.forget(())
    assert (found.get(7), found.get(5), found.get(2)) == (None, None, ETH0)


def test_only_what_concerns_us_is_news() -> None:
    kernel, found = Kernel(*ALL.values()), Interfaces(("eth0", "eth4"))
    read(found, kernel)
    learn(found, kernel, 5)
    assert not found.differs(ETH0)
    assert found.differs(replace(ETH0, mtu=1400))
    assert found.differs(replace(OUTER, up=False))
    assert not found.differs(ETH1)
    assert found.differs(replace(ETH1, ifindex=11, name="eth4"))


def test_a_vlan_device_directly_on_an_interface_is_stacked_on_it() -> None:
    kernel, found = Kernel(*ALL.values()), Interfaces(("eth0",))
    read(found, kernel)
    assert found.is_stacked(OUTER)
    assert not found.is_stacked(INNER)
    assert not found.is_stacked(ETH1)


def test_every_interface_named_tells_its_trouble() -> None:
    kernel, found = Kernel(replace(ETH0, up=False), ETH1), Interfaces(("eth0", "eth1", "eth2"))
    read(found, kernel)
    assert found.troubles() == ["eth2 does not exist", "eth0 is down"]
