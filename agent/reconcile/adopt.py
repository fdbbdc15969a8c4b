"""Decides what a restarted agent takes over from the pinned tables."""

from __future__ import annotations

from dataclasses import dataclass

from agent.health import rules
from agent.model import Address, BackendRef, Config, Health, HealthStatus, NextHop
from agent.state.identities import Member, member_of, server_of, slot_of
from agent.state.tables import BackendEntry, TableContents


@dataclass(frozen=True, slots=True)
class Adopted:
    """Health and next hops as the tables have them, until checks and netlink say otherwise."""

    health: dict[BackendRef, HealthStatus]
    hops: dict[Address, NextHop]
    up: frozenset[Member]  # backends that got new flows
    weights: dict[BackendRef, int]  # the effective weights of backends that got new flows


def adopt(config: Config, held: TableContents, now: float) -> Adopted:
    """Return what ``held`` says of the configured backends.

    Backends that it does not have are left out.
    """
    rows = {entry.identity: entry for entry in held.backends.values()}
    health, hops, up, weights = {}, {}, set(), {}
    for service in config.services:
        entry = held.services.get(slot_of(service.key))
        for backend in service.backends:
            row = rows.get((entry.id, *server_of(backend))) if entry else None
            if row is None:
                continue
            if row.alive:
                hops[backend.address] = _hop(row)
            if row.usable or not row.alive:
                # alive but not usable: draining, down or of weight 0; a check will tell
                ref = BackendRef(service.name, backend.name)
                health[ref] = rules.adopted(Health.UP if row.usable else Health.DOWN, now)
            if row.usable:
                up.add(member_of(service, backend))
                weights[BackendRef(service.name, backend.name)] = row.weight
    return Adopted(health, hops, frozenset(up), weights)


def _hop(row: BackendEntry) -> NextHop:
    return NextHop(
        address=row.address,
        ifindex=row.ifindex,
        mac=row.mac,
        source_mac=row.source_mac,
        mtu=row.mtu,
        on_link=True,  # it was good enough for its service
        source=row.source,
        reason="as before the restart",
        vlans=row.vlans,
    )
