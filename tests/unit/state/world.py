"""Makes the world around a configuration: health and next hops, by backend name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

from agent.model import (
    Backend,
    BackendRef,
    Config,
    Health,
    HealthStatus,
    NextHop,
    Protocol,
    Service,
    ServiceKey,
    Tables,
)
from agent.state.desired import Surroundings
from agent.state.identities import assign
from agent.state.situation import Past, Situation, situation, verdicts
from agent.state.tables import TableContents
from agent.weights.influence import Influence

TABLES = Tables(flows=1024, services=8, backends=32, ring_slots=101)
OUR_IFINDEX = 2
OUR_ADDRESSES = {4: ip_address("10.0.0.1"), 6: ip_address("fd00::1")}


def status(health: Health = Health.UP) -> HealthStatus:
    return HealthStatus(health, f"it is {health.value}", since=0.0)


def hop(address: str, **changes: object) -> NextHop:
    fields: dict = {
        "address": ip_address(address),
        "ifindex": OUR_IFINDEX,
        "mac": "02:00:00:00:00:aa",
        "source_mac": "02:00:00:00:00:01",
        "mtu": 1500,
        "on_link": True,
        "source": OUR_ADDRESSES[ip_address(address).version],
    }
    return NextHop(**(fields | changes))


def web(*backends: Backend, name: str = "web", vip: str = "203.0.113.10", **fields) -> Service:
    return Service(name, ServiceKey(ip_address(vip), 80, Protocol.TCP), backends=backends, **fields)


A = Backend("a", ip_address("10.0.0.21"))
B = Backend("b", ip_address("10.0.0.22"), weight=300)


def surroundings(
    config: Config,
    health: dict[str, Health] | None = None,
    hops: dict[str, NextHop | None] | None = None,
    influences: Mapping[BackendRef, Influence] | None = None,
) -> Surroundings:
    """All up and on the segment, but for what is said by backend name."""
    refs = {BackendRef(s.name, b.name): b.address for s in config.services for b in s.backends}
    statuses = {ref: status((health or {}).get(ref.backend, Health.UP)) for ref in refs}
    found = {}
    for ref, address in refs.items():
        each = (hops or {}).get(ref.backend, hop(str(address)))
        if each is not None:
            found[address] = replace(each, address=address)
    return Surroundings(
        verdicts(config, statuses, found, influences),
        found,
        OUR_IFINDEX,
        lambda seconds: int(seconds // 4),
        pick_seed=config.hash_seed or 0,
    )


def all_up(*services: Service) -> Situation:
    """Services whose backends are all well."""
    config = Config("test", "eth0", tables=TABLES, services=services)
    around = surroundings(config)
    ids = assign(config, TableContents(), frozenset(), lambda: 7)
    health = dict.fromkeys(around.eligibility, status())
    hops = {b.address: hop(str(b.address)) for s in services for b in s.backends}
    return situation(Past({}, {}), config, ids, health, hops, around.eligibility, 0.0)
