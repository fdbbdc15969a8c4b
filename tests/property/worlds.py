"""Draws configurations and what surrounds them: everything that decides the tables."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from agent.model import (
    AdminState,
    Backend,
    BackendRef,
    Config,
    DownFlows,
    Forward,
    Health,
    Nat,
    NextHop,
    NoBackend,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
    Zone,
)
from agent.state import slowstart
from agent.state.desired import Surroundings
from agent.state.identities import Identities, assign, member_of
from agent.state.tables import TableContents
from agent.weights.influence import Influence
from tests.unit.state.world import TABLES, hop, surroundings

TCP, UDP = Protocol.TCP, Protocol.UDP
V4, V4_TOO = ip_address("203.0.113.16"), ip_address("203.0.113.11")
V6 = ip_address("2001:db8::")  # its first bytes are those of an IPv4 address
# of each key of the service maps, what a service under it may look like
KEYS = [
    [ServiceKey(V4, 80, TCP), ServiceKey(V4, 80, TCP, vip_bits=28)],
    [ServiceKey(V4, 8000, TCP, last) for last in (None, 8005, 8010, 8063)],
    [ServiceKey(V4, 0, UDP)],
    [ServiceKey(V4_TOO, 1, UDP, last) for last in (2, 65_534, 65_535)],
    [ServiceKey(V6, 443, TCP), ServiceKey(V6, 443, TCP, vip_bits=32)],
    [ServiceKey(V6, 443, UDP, 500), ServiceKey(V6, 443, UDP)],
]
ADDRESSES = [ip_address(a) for a in ("10.0.0.21", "10.0.0.22", "10.0.0.23", "fd00::21", "fd00::22")]
ZONES = ["east", "west", "north"]
PREFIXES = [ip_network(p) for p in ("10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "2001:db8:1::/48",
                                    "0.0.0.0/0", "::/0")]  # fmt: skip
SOURCES = [ip_address(f"10.0.0.{n}") for n in range(1, 5)]


@st.composite
def backends(draw: st.DrawFn, key: ServiceKey, forward: Forward) -> tuple[Backend, ...]:
    """Of the family that the mode takes."""
    addresses = [a for a in ADDRESSES if forward.is_tunnel or a.version == key.vip.version]
    found = []
    for address in draw(st.lists(st.sampled_from(addresses), unique=True, max_size=4)):
        quic = bytes((ADDRESSES.index(address), 1, 2, 3)) if key.protocol is UDP else None
        found.append(
            Backend(
                f"b{ADDRESSES.index(address)}",
                address,
                draw(st.sampled_from([0, 1, 100, 1000])),
                draw(st.sampled_from(AdminState)),
                port=draw(st.sampled_from([None, 8080])) if forward.is_nat else None,
                backup=draw(st.booleans()),
                quic_server_id=draw(st.sampled_from([None, quic])),
                priority=draw(st.sampled_from([0, 0, 1])),
                zone=draw(st.sampled_from([None, *ZONES])),
            )
        )
    return tuple(found)


@st.composite
def services(draw: st.DrawFn, name: str, key: ServiceKey) -> Service:
    prefix = key.vip_bits is not None
    forwards = [f for f in Forward if not (prefix and f is Forward.NAT)]
    forward = draw(st.sampled_from(forwards))
    return Service(
        name,
        key,
        forward,
        draw(st.sampled_from(Scheduler)),
        down_flows=draw(st.sampled_from(DownFlows)),
        backends=draw(backends(key, forward)),
        draws=draw(st.integers(2, 8)),
        bytes_per_connection=draw(st.integers(1, 1_000_000)),
        count_waiting=draw(st.booleans()),
        source_bits=draw(st.sampled_from([None, 24])),
        source_bound=draw(st.sampled_from([0.0, 1.25, 10.0])),
        slow_start_s=draw(st.sampled_from([0.0, 60.0])),
        no_backend=draw(st.sampled_from(NoBackend)),
        quic_id_bytes=draw(st.sampled_from([None, 4])) if key.protocol is UDP else None,
    )


@st.composite
def zones(draw: st.DrawFn) -> tuple[Zone, ...]:
    """Each prefix in at most one of them; some may have none."""
    names = draw(st.lists(st.sampled_from(ZONES), unique=True))
    whose = {prefix: draw(st.sampled_from([None, *names])) for prefix in PREFIXES}
    return tuple(
        Zone(name, tuple(prefix for prefix in PREFIXES if whose[prefix] == name)) for name in names
    )


@st.composite
def next_hops(draw: st.DrawFn, address: str) -> NextHop | None:
    plain = hop(address)
    return draw(
        st.sampled_from(
            [
                plain,
                replace(plain, ifindex=9, mtu=9000, vlans=((0x8100, 7),)),
                *(replace(plain, source=s) for s in SOURCES if plain.address.version == 4),
                replace(plain, mac=None),
                None,
            ]
        )
    )


influences = st.builds(
    Influence,
    out=st.sampled_from(["", "", "", "GPU 0 is lost"]),
    factors=st.sampled_from([(), (("learned", 0.25),), (("learned", 4.0), ("throttled", 0.5))]),
    bytes_per_connection=st.none() | st.integers(1, 10_000),
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Config, Surroundings]:
    """A configuration, and health, next hops and times for its backends."""
    chosen = []
    for n, keys in enumerate(draw(st.lists(st.sampled_from(KEYS), unique_by=id, max_size=5))):
        chosen.append(draw(services(f"s{n}", draw(st.sampled_from(keys)))))
    chosen = _with_answers_told_apart(chosen)
    names = sorted({b.name: str(b.address) for s in chosen for b in s.backends}.items())
    config = Config(
        "test", "eth0", tables=TABLES, services=tuple(chosen), hash_seed=draw(st.integers(0, 3)),
        zones=draw(zones()),
        tunnel_source_v4=draw(st.sampled_from([None, SOURCES[0]])),
        nat=draw(st.sampled_from([Nat(), Nat(sources_v4=(SOURCES[2], SOURCES[0]))])),
    )  # fmt: skip
    around = surroundings(
        config,
        {name: draw(st.sampled_from(Health)) for name, _ in names},
        {name: draw(next_hops(address)) for name, address in names},
        {BackendRef(s.name, b.name): draw(influences) for s in chosen for b in s.backends},
    )
    draws = {service.name: draw(st.integers(1, 8)) for service in chosen}
    up_since = {
        member_of(s, b): draw(st.sampled_from([slowstart.ALWAYS, 0.0, 30.0]))
        for s in chosen
        for b in s.backends
    }
    weighted = slowstart.slowed(config, around.eligibility, up_since, now=40.0)
    return config, replace(around, eligibility=weighted, draws=draws)


def _with_answers_told_apart(services: list[Service]) -> list[Service]:
    """As ``agent.config.nat_rules`` demands: a nat backend answers for one service."""
    taken: set[object] = set()
    found = []
    for service in services:
        own = {(b.address, service.key.protocol) for b in service.backends}
        if service.forward is Forward.NAT:
            if taken & own:
                service = replace(service, forward=Forward.FULLNAT)
            taken |= own
        found.append(service)
    return found


def ids_for(config: Config, held: TableContents) -> Identities:
    salts = itertools.count(len(held.services) * 100)
    return assign(config, held, frozenset(), lambda: next(salts))


def verdict_of(around: Surroundings, service: Service, backend: Backend):
    return around.eligibility[BackendRef(service.name, backend.name)]
