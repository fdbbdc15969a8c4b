"""Decides what is compiled in: table sizes and features, as -D constants.

A feature that no configured service needs has the constant 0, and the compiler removes its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from agent.dataplane.abi import FLOW_WAYS, NAT_SOURCES, RING_LINE_SLOTS
from agent.model import (
    ANY_PORT,
    MAX_ZONE_PREFIXES,
    Detect,
    Forward,
    Nat,
    NoBackend,
    Scheduler,
    Service,
    SynProtection,
    Tables,
)
from agent.state.loads import counts_waiting, has_homes
from agent.state.ranges import MOST_BLOCKS
from agent.state.zones import has_levels

TARGET_TICK_S = 4.0
SPARE_RINGS = 2  # a new ring is written beside the ones in use
FRAGMENTS = 16_384  # fragmented datagrams that are remembered
LIMITED = 65_536  # sources that have as much of a service as they may
HZ_CHOICES = (100, 250, 300, 1000)  # kernel/Kconfig.hz
PEERS = 64  # addresses of other balancers from which passed-on packets are accepted


@dataclass(frozen=True, slots=True, order=True)
class Features:
    """The features that the configured services need in the program."""

    ipv6: bool = False
    any_port: bool = False
    ranges: bool = False
    prefix: bool = False
    ipip: bool = False
    gue: bool = False
    nat: bool = False
    fullnat: bool = False
    source: bool = False
    round_robin: bool = False
    least_conn: bool = False
    least_load: bool = False
    affinity: bool = False
    waiting: bool = False
    quic: bool = False
    reset: bool = False
    hold: bool = False
    zones: bool = False
    challenge: bool = False
    cookies: bool = False
    guard: bool = False
    limits: bool = False
    sync: bool = False

    def covers(self, other: Features) -> bool:
        return self | other == self

    def __or__(self, other: Features) -> Features:
        return Features(
            **{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names to display; ``ipv4``, which is always compiled in, comes first."""
        wanted = (f.name.replace("_", "-") for f in fields(self) if getattr(self, f.name))
        return ("ipv4", *wanted)


ALL_FEATURES = Features(**{f.name: True for f in fields(Features)})


def needed_features(
    services: tuple[Service, ...], *, sync: bool = False, blocks: bool = False
) -> Features:
    """Return the fewest features that serve these services.

    ``sync``: flows are exchanged with other balancers; ``blocks``: some sources are blocked.
    """
    forwards = {s.forward for s in services}
    schedulers = {s.scheduler for s in services}
    return Features(
        ipv6=any(s.key.vip.version == 6 for s in services),
        any_port=any(s.key.port == ANY_PORT for s in services),
        ranges=any(s.key.port_last is not None for s in services),
        prefix=any(s.key.vip_bits is not None for s in services),
        ipip=Forward.IPIP in forwards,
        gue=Forward.GUE in forwards,
        nat=Forward.NAT in forwards,
        fullnat=Forward.FULLNAT in forwards,
        source=Scheduler.SOURCE in schedulers,
        round_robin=Scheduler.ROUND_ROBIN in schedulers,
        least_conn=Scheduler.LEAST_CONN in schedulers,
        least_load=Scheduler.LEAST_LOAD in schedulers,
        affinity=any(has_homes(s) for s in services),
        waiting=any(counts_waiting(s) for s in services),
        quic=any(s.quic_id_bytes is not None for s in services),
        reset=any(s.no_backend is NoBackend.RESET for s in services),
        hold=any(s.no_backend is NoBackend.HOLD for s in services),
        zones=any(has_levels(s) for s in services),
        challenge=any(s.syn_protection is not SynProtection.OFF for s in services),
        cookies=any(s.gives_cookies for s in services),
        guard=blocks or any(s.allow or s.deny or s.detect is Detect.BLOCK for s in services),
        limits=any(s.limits.is_any for s in services),
        sync=sync,
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The number of elements of each table."""

    services: int
    service_keys: int
    vip_prefixes: int
    port_ranges: int
    origins: int
    quic_ids: int
    zone_prefixes: int
    zone_rings: int
    backends: int
    flow_buckets: int
    ring_lines: int
    lines_per_ring: int
    nat_first_port: int
    nat_ports: int  # in a block
    nat_blocks: int
    guard_nodes: int
    rows: int  # one for each possible CPU, and one for the agent

    @property
    def nat_slots(self) -> int:
        """One for each port of each block."""
        return self.nat_blocks * self.nat_ports


def sizes(tables: Tables, cpus: int, nat: Nat | None = None) -> Sizes:
    """Return the element counts for a configuration on a host with ``cpus`` possible CPUs.

    The maps by key are not preallocated, so spare room in them costs nothing. They need it while a
    change is under way, when they hold both the old entries and the new ones.
    """
    lines = math.ceil(tables.ring_slots / RING_LINE_SLOTS)
    nat = nat or Nat()
    return Sizes(
        services=tables.services,
        # each VIP and each source address of fullnat has a mark of its own
        service_keys=2 * tables.services + 2 * 2 * NAT_SOURCES,
        vip_prefixes=2 * tables.services,
        port_ranges=2 * MOST_BLOCKS * tables.services,
        origins=2 * tables.backends,
        quic_ids=2 * tables.backends,
        zone_prefixes=MAX_ZONE_PREFIXES,
        zone_rings=max(1, 2 * tables.zone_rings),  # the kernel creates no empty table
        backends=tables.backends,
        flow_buckets=tables.flows // FLOW_WAYS,
        ring_lines=lines * (tables.services + tables.zone_rings + SPARE_RINGS),
        lines_per_ring=lines,
        nat_first_port=nat.first_port,
        nat_ports=nat.last_port - nat.first_port + 1,
        nat_blocks=tables.nat_blocks,
        guard_nodes=tables.guard_nodes,
        rows=cpus + 1,
    )


@dataclass(frozen=True, slots=True)
class HashKeys:
    """The secret of the flow table's hash; the multipliers are odd."""

    key: int
    mul0: int
    mul1: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of flow stamps: a tick is ``2 ** shift`` jiffies at ``hz`` jiffies a second."""

    hz: int
    shift: int

    @property
    def tick_s(self) -> float:
        return float(2**self.shift / self.hz)

    def ticks(self, seconds: float) -> int:
        """Return the least number of ticks that is no shorter than ``seconds``."""
        return math.ceil(seconds / self.tick_s)


class Reading(NamedTuple):
    """The jiffies at some moment between two readings of the monotonic clock."""

    before_s: float
    jiffies: int
    after_s: float


def possible_hz(first: Reading, last: Reading) -> list[int]:
    """Return the kernel's choices of HZ at which this many jiffies can have passed between two
    readings.

    The process that reads can lose the CPU before and after each reading, for longer than a jiffy.
    """
    passed = (last.jiffies - first.jiffies) % 2**32
    least_s, most_s = last.before_s - first.after_s, last.after_s - first.before_s
    return [hz for hz in HZ_CHOICES if hz * least_s < passed + 1 and hz * most_s > passed - 1]


def clock_for(hz: int) -> Clock:
    """Return the clock whose tick is the power of two of jiffies nearest to four seconds."""
    return Clock(hz, round(math.log2(TARGET_TICK_S * hz)))


def definitions(
    pin_folder: Path,
    size: Sizes,
    features: Features,
    keys: HashKeys,
    clock: Clock,
    gue_port: int,
    *,
    tc: bool = False,
) -> dict[str, str]:
    """Return the -D constants of one program, for XDP or, with ``tc``, for clsact."""
    return {
        "LB_PIN": f'"{pin_folder}"',
        "LB_TC": str(int(tc)),
        "LB_SERVICES": str(size.services),
        "LB_SERVICE_KEYS": str(size.service_keys),
        "LB_VIP_PREFIXES": str(size.vip_prefixes),
        "LB_PORT_RANGES": str(size.port_ranges),
        "LB_ORIGINS": str(size.origins),
        "LB_QUIC_IDS": str(size.quic_ids),
        "LB_ZONE_PREFIXES": str(size.zone_prefixes),
        "LB_ZONE_RINGS": str(size.zone_rings),
        "LB_FRAGMENTS": str(FRAGMENTS),
        "LB_BACKENDS": str(size.backends),
        "LB_PEERS": str(PEERS),
        "LB_FLOW_BUCKETS": str(size.flow_buckets),
        "LB_RING_LINES": str(size.ring_lines),
        "LB_NAT_SLOTS": str(size.nat_slots),
        "LB_NAT_FIRST_PORT": str(size.nat_first_port),
        "LB_NAT_PORTS": str(size.nat_ports),
        "LB_GUARD_NODES": str(size.guard_nodes),
        "LB_LIMITED": str(LIMITED),
        "LB_GUE_PORT": str(gue_port),
        "LB_ROWS": str(size.rows),
        "LB_HZ": str(clock.hz),
        "LB_TICK_SHIFT": str(clock.shift),
        "LB_FLOW_KEY": f"{keys.key:#x}ULL",
        "LB_FLOW_MUL0": f"{keys.mul0:#x}ULL",
        "LB_FLOW_MUL1": f"{keys.mul1:#x}ULL",
        **{f"LB_{f.name.upper()}": str(int(getattr(features, f.name))) for f in fields(features)},
    }
