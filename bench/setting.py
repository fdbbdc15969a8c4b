"""Sets up the measured balancer: its services, its tables in the kernel, its programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import numpy as np

from agent.companion.keys import Keys, packed, wall_ahead_ns
from agent.dataplane import abi, pins, survey
from agent.dataplane.abi import GuardTree
from agent.dataplane.contents import read
from agent.dataplane.limits import set_rates
from agent.dataplane.program import Dataplane
from agent.dataplane.sourcetrees import SourceTrees
from agent.guarding import policy_of
from agent.model import (
    Address,
    Affinity,
    AffinityBy,
    Backend,
    BackendRef,
    BackendState,
    Config,
    Forward,
    Limits,
    Nat,
    NextHop,
    Protocol,
    Rate,
    Scheduler,
    Service,
    ServiceKey,
    SynProtection,
    Tables,
    Zone,
)
from agent.reconcile.apply import Applier
from agent.reconcile.diff import diff
from agent.state import identities
from agent.state.addresstree import Prefix, build
from agent.state.desired import Surroundings, desired
from agent.state.eligibility import CONFIGURED, Eligibility

PORT = 80
BACKENDS = 100  # of each service
DEFAULT_SLOTS = Tables().flows
LARGE_SLOTS = 4 << 20
_UP = Eligibility(BackendState.UP, "", True, True, 100, CONFIGURED)
_MTU = 9000

VIPS: dict[tuple[int, Forward], Address] = {
    (family, forward): (IPv4Address("10.200.1.0") if family == 4 else IPv6Address("fc00:1::")) + n
    for family in (4, 6)
    for n, forward in enumerate(Forward, 1)
}
NO_VIP: dict[int, Address] = {4: IPv4Address("10.200.2.1"), 6: IPv6Address("fc00:2::1")}
CLIENTS: dict[int, Address] = {4: IPv4Address("192.168.1.1"), 6: IPv6Address("fc00:3::1")}
SOURCES: dict[int, Address] = {4: IPv4Address("10.0.0.2"), 6: IPv6Address("fd00::2")}
UDP_PORT = 53
ANY_PORT_VIP = IPv4Address("10.200.1.100")
ZONES_VIP = IPv4Address("10.200.1.102")
# Its 1,024 prefixes hold every client.
ZONE = Zone("near", tuple(IPv4Network("0.0.0.0/0").subnets(10)))
UNCOUNTED_VIP = IPv4Address("10.200.1.101")
CHALLENGED_VIP = IPv4Address("10.200.1.103")
COOKIES_VIP = IPv4Address("10.200.1.107")
# As Linux sends them: MSS 1460, SACK permitted, timestamps, window scale 10.
SYN_OPTIONS = bytes.fromhex("020405b40402080a00000001000000000103030a")
LISTED_VIP = IPv4Address("10.200.1.104")
LIMITED_VIP, SPENT_VIP = IPv4Address("10.200.1.105"), IPv4Address("10.200.1.106")
# The number of prefixes in the allow list. No client is in it, so all are refused where it applies.
LISTED = 10_000
SCHEDULER_VIPS: dict[Scheduler, IPv4Address] = {
    scheduler: IPv4Address("10.200.1.110") + n
    for n, scheduler in enumerate(Scheduler)
    if scheduler is not Scheduler.MAGLEV
}


AFFINITY_VIP = IPv4Address("10.200.1.108")


def _backends(family: int, number: int) -> tuple[Backend, ...]:
    first = int(IPv4Address("10.1.0.0") if family == 4 else IPv6Address("fc00:100::"))
    make = IPv4Address if family == 4 else IPv6Address
    base = first + (number << 12)
    return tuple(Backend(f"b{n}", make(base + n)) for n in range(1, BACKENDS + 1))


def _service(number: int, vip: Address, port: int, protocol: Protocol, forward: Forward) -> Service:
    key = ServiceKey(vip, port, protocol)
    backends = _backends(vip.version, number)
    counts = protocol is Protocol.TCP
    return Service(
        f"service-{number}", key, forward=forward, backends=backends, count_waiting=counts
    )


def services() -> dict[str, Service]:
    """Return all services, by name: ``v4 dsr`` and so on."""
    found = {
        f"v{family} {forward.value}": _service(n, vip, PORT, Protocol.TCP, forward)
        for n, ((family, forward), vip) in enumerate(VIPS.items())
    }
    udp = VIPS[4, Forward.DSR]
    found["udp"] = _service(len(found), udp, UDP_PORT, Protocol.UDP, Forward.DSR)
    found["any port"] = _service(len(found), ANY_PORT_VIP, 0, Protocol.TCP, Forward.DSR)
    plain = _service(len(found), UNCOUNTED_VIP, PORT, Protocol.TCP, Forward.DSR)
    found["uncounted"] = replace(plain, count_waiting=False)
    near = _service(len(found), ZONES_VIP, PORT, Protocol.TCP, Forward.DSR)
    members = (replace(backend, zone=ZONE.name) for backend in near.backends)
    found["zones"] = replace(near, backends=tuple(members))
    challenged = _service(len(found), CHALLENGED_VIP, PORT, Protocol.TCP, Forward.DSR)
    found["challenged"] = replace(challenged, syn_protection=SynProtection.ALWAYS)
    cookies = _service(len(found), COOKIES_VIP, PORT, Protocol.TCP, Forward.DSR)
    found["cookies"] = replace(cookies, syn_protection=SynProtection.ALWAYS, syn_cookies=True)
    listed = _service(len(found), LISTED_VIP, PORT, Protocol.TCP, Forward.DSR)
    found["listed"] = replace(listed, allow=("few",))
    limited = _service(len(found), LIMITED_VIP, PORT, Protocol.TCP, Forward.DSR)
    wide = Rate(1_000_000_000, 1.0)
    found["limited"] = replace(limited, limits=Limits(wide, wide, wide))
    spent = _service(len(found), SPENT_VIP, PORT, Protocol.TCP, Forward.DSR)
    found["spent"] = replace(spent, limits=Limits(wide, wide, Rate(1, 3600.0)))
    for scheduler, vip in SCHEDULER_VIPS.items():
        plain = _service(len(found), vip, PORT, Protocol.TCP, Forward.DSR)
        found[scheduler.value] = replace(plain, scheduler=scheduler)
    plain = _service(len(found), AFFINITY_VIP, PORT, Protocol.TCP, Forward.DSR)
    homes = Affinity(AffinityBy.SOURCE)
    found["affinity"] = replace(plain, scheduler=Scheduler.LEAST_LOAD, affinity=homes)
    return found


def config(name: str, slots: int = DEFAULT_SLOTS) -> Config:
    """Return the configuration of the measured instance, with a flow table of ``slots``."""
    return Config(
        name=name,
        interface="lo",
        tunnel_source_v4=IPv4Address(str(SOURCES[4])),
        tunnel_source_v6=IPv6Address(str(SOURCES[6])),
        nat=Nat((IPv4Address(str(SOURCES[4])),), (IPv6Address(str(SOURCES[6])),)),
        tables=Tables(flows=slots),
        services=tuple(services().values()),
        zones=(ZONE,),
    )


def _hop(address: Address) -> NextHop:
    return NextHop(address, 1, "02:00:00:00:01:01", "02:00:00:00:00:02", _MTU, on_link=True)


def fill(dataplane: Dataplane, config: Config) -> None:
    """Write the services, backends and rings as the agent would, with all backends up."""
    tables = dataplane.tables
    actual = read(tables)
    refs = [(s, b) for s in config.services for b in s.backends]
    around = Surroundings(
        eligibility={BackendRef(s.name, b.name): _UP for s, b in refs},
        hops={b.address: _hop(b.address) for _, b in refs},
        ifindex=1,
        ticks=dataplane.clock.ticks,
        companions=frozenset(service.name for service in config.services),
    )
    salts = iter(range(1, 1 << 16))
    ids = identities.assign(config, actual, frozenset(), lambda: next(salts))
    applier = Applier(tables)
    for step in diff(actual, desired(config, ids, around)):
        applier.apply(step)
    row = packed(Keys((bytes(16),)), wall_ahead_ns())
    tables.cookie_secret.view("u1")[:] = bytearray(row)
    trees = SourceTrees(tables)
    trees.place({GuardTree.LISTS4: build([(1, scattered(LISTED))], 4)})
    set_rates(tables, {ids.service_id(s): s.limits for s in config.services})
    trees.set_policies({ids.service_id(s): policy_of(s, ("few",)) for s in config.services})


def scattered(count: int) -> list[Prefix]:
    """Return ``count`` random /24 prefixes, none in 192.168.0.0/16, where the client is."""
    draw = np.random.default_rng(1)
    found = (int(n) << 8 for n in draw.integers(1 << 16, 224 << 16, 2 * count))
    return [(value, 24) for value in found if value >> 16 != 0xC0A8][:count]


class Bench:
    """An instance whose tables the measured programs share; nothing is attached."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._services = services()
        self._programs: dict[tuple[str, ...], Dataplane] = {}
        self.main = self.program(())
        fill(self.main, config)

    def program(self, names: tuple[str, ...]) -> Dataplane:
        """Return the program for these services (none named: for all); it is compiled only once."""
        if names not in self._programs:
            dataplane = Dataplane(self._config)
            wanted = [self._services[n] for n in names] if names else self._config.services
            dataplane.load(tuple(wanted))
            self._programs[names] = dataplane
        return self._programs[names]

    def block(self, prefixes: list[Prefix]) -> None:
        """Block the sources in these prefixes, and no others."""
        SourceTrees(self.main.tables).place({GuardTree.BLOCKS4: build([(1, prefixes)], 4)})

    def clear_flows(self) -> None:
        self.main.tables.flows[:] = 0

    def fill_flows(self) -> None:
        """Fill every slot with a live, established flow that is not of the measured clients."""
        tables, rng = self.main.tables, np.random.default_rng(1)
        used = np.flatnonzero(tables.backends["service"])
        now = (self.main.now_jiffies() >> self.main.clock.shift) & abi.FLOW_STAMP_MASK
        count = len(tables.flows)
        words = rng.integers(0, 1 << 32, count, dtype=np.uint64) << np.uint64(abi.FLOW_TAG_SHIFT)
        words |= rng.choice(used, count).astype(np.uint64) << np.uint64(abi.FLOW_BACKEND_SHIFT)
        words |= np.uint64(abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT | now)
        tables.flows[:] = words

    def answer_clients(self) -> None:
        """Mark all new flows as answered by their servers, as `nat` and `fullnat` require."""
        flows = self.main.tables.flows
        new = survey.state_of(flows) == abi.FlowState.EMBRYONIC
        change = abi.FlowState.EMBRYONIC ^ abi.FlowState.ESTABLISHED
        flows[new] ^= np.uint64(change << abi.FLOW_STATE_SHIFT)

    def established(self) -> int:
        """Count the established flows in the table, including those with a waiting request."""
        states = survey.state_of(self.main.tables.flows)
        wanted = (abi.FlowState.ESTABLISHED, abi.FlowState.ESTABLISHED_AWAITING)
        return int(np.isin(states, wanted).sum())


@contextmanager
def bench(slots: int = DEFAULT_SLOTS) -> Iterator[Bench]:
    """Make a Bench, and remove its pins afterwards."""
    chosen = config(f"bench-{os.getpid()}", slots)
    try:
        yield Bench(chosen)
    finally:
        pins.remove(pins.pins_of(chosen.name))
