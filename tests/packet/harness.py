"""A loaded data plane that is attached to nothing, and what tests do with it.

Services come in by the agent's own path: eligibility, desired state, diff, apply.
"""

from __future__ import annotations

import asyncio
import enum
import os
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from unittest import mock

import numpy as np

from agent.dataplane import abi, contents, libbpf, limits, peers, pins, program
from agent.dataplane.constants import ALL_FEATURES, HashKeys, needed_features
from agent.dataplane.explain import DataplaneView
from agent.dataplane.flows import Names
from agent.dataplane.held import HeldSyns
from agent.dataplane.program import Dataplane, require_root
from agent.dataplane.sourcetrees import BLOCKS, LISTS, SourceTrees
from agent.dataplane.tables import mapped
from agent.guarding import policy_of
from agent.model import (
    Address,
    Affinity,
    AffinityBy,
    Backend,
    BackendRef,
    Config,
    Forward,
    Health,
    HealthStatus,
    Limits,
    NextHop,
    NoBackend,
    Protocol,
    Rate,
    Scheduler,
    Service,
    ServiceKey,
    SynProtection,
    Tables,
)
from agent.reconcile.apply import Applier
from agent.reconcile.diff import diff
from agent.reconcile.reconciler import Pass, Reconciler
from agent.state import addresstree
from agent.state.desired import Surroundings
from agent.state.identities import Identities
from agent.state.situation import verdicts
from agent.state.tables import TableContents
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC, VIP4, VIP6
from tests.packet.records import Records

PREFIX = "st-packet"
BUDGET_TIME, BUDGET_TIMES = np.dtype("u8"), 1 + 4096  # bpf/budget.h: of all answers, of sources
LAST_ROW = np.dtype("V64")  # struct flow_last
LIMIT_BUCKET = np.dtype([("slot", "u8", (4,))])
VERIFIED = np.dtype("V64")  # struct verified_bucket
VERIFIED_BUCKETS = 16_384
# What tests share is drawn from these, so that a run decides as the one before it.
KEYS = HashKeys(0x1234_5678_9ABC_DEF0, 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F)
SMALL = Tables(flows=65_536, services=16, backends=256, ring_slots=4099)
_loaded: list[Dataplane] = []  # and not closed


class Verdict(enum.IntEnum):
    """``enum xdp_action``."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


def instance_name(what: str = "all") -> str:
    """One per process, so that two test runs do not meet; the name ends in the process's number, by
    which ``remove_leftovers`` knows whether its run still goes on.
    """
    return f"{PREFIX}-{what}-{os.getpid()}"


def remove_leftovers() -> None:
    """Unpin what test runs left behind that were killed."""
    root = pins.BPFFS / "steelyard"
    for folder in root.glob(f"{PREFIX}-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 (a string it is)
            pins.remove(pins.pins_of(folder.name))


def all_features() -> tuple[Service, ...]:
    """Services that between them need every feature but that for flow sync."""
    vip4, vip6 = IPv4Address(VIP4), IPv6Address(VIP6)
    tcp, udp = Protocol.TCP, Protocol.UDP
    services = (
        Service("any", ServiceKey(vip6, 0, tcp), Forward.IPIP, Scheduler.SOURCE),
        Service("v4", ServiceKey(vip4, 80, tcp), Forward.GUE, Scheduler.ROUND_ROBIN,
                syn_protection=SynProtection.AUTO, syn_cookies=True, no_backend=NoBackend.HOLD,
                backends=(Backend("near", IPv4Address("10.0.0.7"), zone="east"),)),
        Service("range", ServiceKey(vip4, 8000, tcp, port_last=8010), Forward.NAT,
                Scheduler.LEAST_CONN, no_backend=NoBackend.RESET,
                syn_protection=SynProtection.ALWAYS),
        Service("prefix", ServiceKey(IPv4Address("203.0.113.0"), 80, tcp, vip_bits=28),
                Forward.FULLNAT, Scheduler.LEAST_LOAD, affinity=Affinity(AffinityBy.SOURCE)),
        Service("quic", ServiceKey(vip4, 443, udp), quic_id_bytes=4, deny=("some",),
                limits=Limits(new_flows=Rate(1, 1.0))),
    )  # fmt: skip
    assert needed_features(services, sync=True) == ALL_FEATURES
    return services


def load(
    config: Config,
    services: tuple[Service, ...],
    *,
    sync: bool = True,
    keys: HashKeys | None = None,
) -> Dataplane:
    """Tables and program, attached to nothing. Fails where there is no root or no BPF.

    Without ``keys`` new tables get secret ones, as the agent's do.
    """
    require_root()
    dataplane = Dataplane(config)
    draw = program.fresh_keys if keys is None else lambda: keys
    with mock.patch.object(program, "fresh_keys", draw):
        dataplane.load(services, sync=sync)
    _loaded.append(dataplane)
    return dataplane


def close(dataplane: Dataplane) -> None:
    """Give all descriptors back, as the end of the agent's process does."""
    _loaded.remove(dataplane)
    dataplane.release_replaced()
    dataplane.program.close()
    dataplane.tables.close()
    dataplane.clock_source.close()
    if dataplane.old is not None:
        dataplane.old.close()


def close_all(name: str) -> None:
    """The same for all of this instance that are still open.

    One has some 90 descriptors. A worker that kept those of all tests would soon have more than the
    1,024 that ``select`` takes.
    """
    for dataplane in [one for one in _loaded if one.pins == pins.pins_of(name)]:
        close(dataplane)


def backend(name: str, address: str = "", weight: int = 100, **fields: object) -> Backend:
    """A backend; without an address it gets one that follows from its name."""
    number = sum(ord(c) * 31**i for i, c in enumerate(name)) % 65_000 + 1
    return Backend(
        name, ip_address(address or f"10.1.{number >> 8}.{number & 255}"), weight, **fields
    )


def service(
    *backends: Backend,
    name: str = "web",
    vip: str = VIP4,
    port: int = 80,
    protocol: Protocol = Protocol.TCP,
    port_last: int | None = None,
    vip_bits: int | None = None,
    **fields: object,
) -> Service:
    """A service with these backends."""
    key = ServiceKey(ip_address(vip), port, protocol, port_last, vip_bits)
    return Service(name, key, backends=backends, **fields)


def mac_of(address: Address) -> str:
    """Of a backend's next hop."""
    return ":".join(("02", "aa", *(f"{b:02x}" for b in address.packed[-4:])))


class Rig(Records):
    """The data plane in the hands of one test."""

    _has_ports = False  # whether a service could take ports of fullnat

    def __init__(self, dataplane: Dataplane, *, is_empty: bool = False) -> None:
        """``is_empty``: nothing need be taken out of its tables, which costs 2 ms."""
        self.dataplane = dataplane
        self.tables = dataplane.tables
        self.clock = dataplane.clock
        self.config = Config(dataplane.pins.folder.parent.name, dataplane.interface, tables=SMALL)
        self.now_s = 1000.0
        self.ids = Identities({}, {})
        own, rows = dataplane.program.tables, -(-dataplane.size.flow_buckets // LAST_ROW.itemsize)
        self._memory, self.budgets = mapped(own["budget_times"], BUDGET_TIME, BUDGET_TIMES)
        self._more_memory, self.last_ways = mapped(own["flows_last"], LAST_ROW, rows)
        self._most_memory, self.verified = mapped(
            own["verified"], VERIFIED, VERIFIED_BUCKETS if dataplane.features.challenge else 1
        )
        periods = abi.LIMIT_PERIODS * (abi.LIMIT_BUCKETS + dataplane.size.services)
        self._last_memory, limit_buckets = mapped(
            own["limit_buckets"], LIMIT_BUCKET, periods if dataplane.features.limits else 1
        )
        self.limit_slots = limit_buckets["slot"]
        self.begin()
        if is_empty:
            self.reconciler = Reconciler(self.tables, lambda: self.now_s)
        else:
            self.reset()

    # -- what is configured

    def reset(self) -> None:
        """Empty tables, no counts."""
        applier = Applier(self.tables)
        for step in diff(contents.read(self.tables), TableContents()):
            applier.apply(step)
        tables = self.tables
        tables.flows[:] = 0
        tables.flows_warm[:] = np.zeros((), dtype=abi.FLOW_WARM)
        tables.backend_count[:] = np.zeros((), dtype=abi.BACKEND_COUNTERS)
        tables.service_count[:] = np.zeros((), dtype=abi.SERVICE_COUNTERS)
        tables.backend_load[:] = np.zeros((), dtype=abi.BACKEND_LOAD)
        tables.service_load[:] = np.zeros((), dtype=abi.SERVICE_LOAD)
        tables.service_heads[:] = np.zeros((), dtype=abi.SERVICE_HEADS)
        tables.trace[:] = np.zeros((), dtype=abi.TRACE_CONTROL)
        tables.settings["held_until"] = 0
        self.budgets[:] = 0
        self.last_ways[:] = bytes(LAST_ROW.itemsize)
        self.verified[:] = bytes(64)
        tables.guard_roots["root"] = 0
        tables.guard_policies[:] = np.zeros((), dtype=abi.GUARD_POLICY)
        tables.guard_count[:] = np.zeros((), dtype=abi.GUARD_COUNTERS)
        self.limit_slots[:] = 0
        tables.service_limits[:] = np.zeros((), dtype=abi.SERVICE_LIMITS)
        tables.limit_count[:] = np.zeros((), dtype=abi.LIMIT_COUNTERS)
        limits.set_limited(tables, {}, 0)
        tables.sync_count[:] = np.zeros((), dtype=abi.SYNC_COUNTERS)
        peers.accept(tables, ())
        peers.pass_on(tables, ())
        # 46 MB: as slow as all the rest.
        if self._has_ports and tables.nat_slots["owner"].any():
            tables.nat_slots[:] = np.zeros((), dtype=abi.NAT_SLOT)
        for key, _ in list(tables.items("fragments")):
            tables.delete("fragments", key)
        held_syns = HeldSyns(self.dataplane)
        held_syns.forget(held_syns.read(0).keys)
        self.reconciler = Reconciler(self.tables, lambda: self.now_s)

    def serve(
        self,
        *services: Service,
        down: Collection[str] = (),
        mtu: int = 1500,
        ifindexes: Mapping[str, int] | None = None,
        vlans: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
        **config: object,
    ) -> Pass:
        """Make the tables hold these services; backends named in ``down`` fail their checks.

        ``ifindexes``: the interface of a backend's next hop where it is not the balancer's own;
        ``vlans``: the tags on the way there, protocol and id, outer first.
        """
        self.config = replace(self.config, services=services, **config)
        self._has_ports |= any(one.forward is Forward.FULLNAT for one in services)
        health, hops = {}, {}
        for each in services:
            for member in each.backends:
                state = Health.DOWN if member.name in down else Health.UP
                health[BackendRef(each.name, member.name)] = HealthStatus(state, "test", 0.0)
                hops[member.address] = NextHop(
                    member.address,
                    ifindex=(ifindexes or {}).get(member.name, self.dataplane.ifindex),
                    mac=mac_of(member.address),
                    source_mac=BALANCER_MAC,
                    mtu=mtu,
                    on_link=True,
                    source=ip_address(BALANCER4 if member.address.version == 4 else BALANCER6),
                    vlans=(vlans or {}).get(member.name, ()),
                )
        found = verdicts(self.config, health, hops)
        seed = self.config.hash_seed or 0
        ifindex, ticks = self.dataplane.ifindex, self.clock.ticks
        companions = frozenset(each.name for each in services)
        around = Surroundings(found, hops, ifindex, ticks, pick_seed=seed, companions=companions)
        done = asyncio.run(self.reconciler.run(self.config, around))
        self.ids = done.ids
        wanted = {self.ids.service_id(each): each.limits for each in services}
        limits.set_rates(self.tables, wanted)
        for ident in wanted:  # as where it is known which first bytes of answers are heads
            self.tables.service_heads["is_known"][ident] = 1
        return done

    def guard(
        self, blocked: Collection[str] = (), lists: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """Have these prefixes blocked, and these on the lists that the services name."""
        lists = lists or {}
        named = [(1 << bit, prefixes) for bit, prefixes in enumerate(lists.values())]
        trees = SourceTrees(self.tables)
        for pair, what in ((BLOCKS, [(1, blocked)]), (LISTS, named)):
            trees.place(
                {tree: _tree(what, version) for tree, version in zip(pair, (4, 6), strict=True)}
            )
        trees.set_policies(
            {
                self.ids.service_id(each): policy_of(each, tuple(lists))
                for each in self.config.services
            }
        )

    def make_unusable(self, name: str, service: str = "web") -> None:
        """What the first 8 bytes of a change do, before any ring is rebuilt."""
        self.tables.backends["flags"][self.backend_id(name, service)] = abi.BACKEND_F_ALIVE

    # -- packets

    def send(self, frame: bytes) -> libbpf.TestRun:
        """Run the program on a frame, as if it had come in."""
        return libbpf.test_run(self.dataplane.program.fd, frame)

    def verdict(self, frame: bytes) -> Verdict:
        return Verdict(self.send(frame).verdict)

    def backend_of(self, frame: bytes) -> str:
        """Send a frame that must be forwarded; the name of the backend whose MAC it gets."""
        done = self.send(frame)
        assert done.verdict == Verdict.TX, Verdict(done.verdict).name
        return self.name_of_mac(done.data[:6])

    def name_of_mac(self, mac: bytes) -> str:
        for each in self.config.services:
            for member in each.backends:
                if mac == bytes.fromhex(mac_of(member.address).replace(":", "")):
                    return member.name
        raise AssertionError(f"no backend has the MAC {mac.hex(':')}")

    # -- what the agent would say

    def names(self) -> Names:
        services, salts, backends = {}, {}, {}
        for each in self.config.services:
            ident = self.ids.service_id(each)
            services[ident], salts[ident] = each.name, self.ids.salt(each)
            for member in each.backends:
                ref = BackendRef(each.name, member.name)
                backends[self.ids.backend_id(each, member)] = ref
        zones = {ident: name for name, ident in self.ids.zones.items()}
        return Names(services, backends, salts, zones=zones)

    def view(self) -> DataplaneView:
        dataplane = self.dataplane
        held = contents.read(self.tables)
        return DataplaneView(
            self.tables,
            held,
            self.names(),
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )


def _tree(lists: Iterable[tuple[int, Collection[str]]], version: int) -> array[int]:
    """Of prefixes as people write them."""
    return addresstree.build(
        [
            (
                bit,
                [addresstree.prefix_of(n) for n in map(ip_network, texts) if n.version == version],
            )
            for bit, texts in lists
        ],
        version,
    )


_TC_OUTCOMES = {0xFFFFFFFF: Verdict.PASS, 2: Verdict.DROP, 7: Verdict.TX}


class TcRig(Rig):
    """The same under tc, which redirects whatever it sends, back to where it came from, too."""

    def send(self, frame: bytes) -> libbpf.TestRun:
        done = super().send(frame)
        return replace(done, verdict=_TC_OUTCOMES[done.verdict & 0xFFFFFFFF])
