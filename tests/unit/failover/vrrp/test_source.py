"""Which address adverts come from."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from agent.failover.vrrp.source import choose
from tests.unit.failover.vrrp import frames

ADDRESSES = [
    ip_address(text) for text in ("10.73.0.100", "10.73.0.2", "10.74.0.2", "fd73::2", "fe80::2")
]
FOUR, SIX = frames.own(frames.V3).router, frames.own(frames.V3, vips=frames.SIX).router


def test_it_is_the_first_that_is_no_vip() -> None:
    assert choose(FOUR, ADDRESSES) == ip_address("10.73.0.2")


def test_ipv6_multicast_comes_from_a_link_local_address() -> None:
    assert choose(SIX, ADDRESSES) == ip_address("fe80::2")
    assert choose(SIX, [*frames.SIX, *ADDRESSES]) == ip_address("fe80::2")


def test_ipv6_unicast_comes_from_an_address_of_the_peers_kind() -> None:
    for peer, wanted in (("fd73::1", "fd73::2"), ("fe80::1", "fe80::2")):
        instance = replace(SIX.instance, peers=(ip_address("10.73.0.1"), ip_address(peer)))
        assert choose(replace(SIX, instance=instance), ADDRESSES) == ip_address(wanted)


def test_the_configured_one_goes_first_in_its_family() -> None:
    instance = replace(FOUR.instance, source=ip_address("10.74.0.2"))
    assert choose(replace(FOUR, instance=instance), ADDRESSES) == ip_address("10.74.0.2")
    assert choose(replace(SIX, instance=instance), ADDRESSES) == ip_address("fe80::2")


def test_there_may_be_none() -> None:
    assert choose(FOUR, ADDRESSES[3:]) is None
    assert choose(FOUR, [ip_address("10.73.0.100")]) is None


def test_the_owner_of_the_vips_may_have_no_other_address() -> None:
    owner = replace(FOUR, instance=replace(FOUR.instance, priority=255))
    assert choose(owner, [ip_address("10.73.0.100")]) == ip_address("10.73.0.100")
