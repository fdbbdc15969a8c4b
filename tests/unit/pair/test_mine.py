"""Whose flows a node ends: not those that another one serves."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from agent.failover.model import Method, Mode, Role
from agent.failover.status import RouterStatus
from agent.model import Protocol, Service, ServiceKey
from agent.pair.mine import serves

VIP = ip_address("10.0.0.100")
WEB = Service("web", ServiceKey(VIP, 80, Protocol.TCP))
ROUTER = RouterStatus(
    "web", "web", Method.VRRP, "web", "eth0", 4, 51, 3, Role.MASTER, 0.0, "", Mode.NORMAL, 100, 100,
    (), 1.0, (str(VIP),), (), None, None,
)  # fmt: skip


def test_who_has_the_vip_serves() -> None:
    assert serves(WEB, {VIP}, [ROUTER])


def test_who_has_it_not_or_does_not_know_leaves_it_to_others() -> None:
    for role in (Role.BACKUP, Role.FAULT):
        assert not serves(WEB, {VIP}, [replace(ROUTER, role=role)])
    assert not serves(WEB, {VIP}, [replace(ROUTER, vips=("10.0.0.101",))])
    assert not serves(WEB, {VIP}, [])


def test_a_vip_that_does_not_move_is_served_here() -> None:
    assert serves(WEB, set(), [])
