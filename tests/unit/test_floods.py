"""What a flood changes, and for which services."""

from __future__ import annotations

from ipaddress import IPv4Address

from structlog.testing import capture_logs

from agent.floods import Floods
from agent.model import Config, Protocol, Service, ServiceKey, SynProtection
from agent.state.synflood import CALM_S, Syns
from agent.state.tables import TableContents


def config(**protections: SynProtection) -> Config:
    services = tuple(
        Service(name, ServiceKey(IPv4Address("192.0.2.1"), port, Protocol.TCP), syn_protection=how)
        for port, (name, how) in enumerate(protections.items(), 80)
    )
    return Config("test", "eth0", services=services)


def test_a_flood_counts_where_it_is_wanted_and_is_said_once():
    auto, off = SynProtection.AUTO, SynProtection.OFF
    around = config(web=auto, plain=off, still=auto)
    floods = Floods(around, TableContents())
    changed = []
    with capture_logs() as said:
        for second in range(5 + int(CALM_S)):
            flood = Syns(opened=1000 * min(second, 4))
            syns = {"web": flood, "plain": flood, "still": Syns()}
            if floods.take(around, syns, float(second)):
                changed.append(second)
    assert changed == [2, 4 + CALM_S]
    assert [(one["log_level"], one["service"]) for one in said] == [
        ("warning", "web"), ("info", "web"),
    ]  # fmt: skip
    assert said[0]["syns_per_s"] == 1000
    assert not floods.services
