"""Decides what is compiled in: table sizes and features, as -D constants.

Constants that no configured service needs are 0, and the compiler removes the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from agent.dataplane.abi import FLOW_WAYS, RING_LINE_SLOTS
from agent.model import ANY_PORT, Config, Forward, Service, Tables

TARGET_TICK_S = 4.0
SPARE_RINGS = 2  # a new ring is written beside the ones in use


@dataclass(frozen=True, slots=True, order=True)
class Features:
    """What the configured services need of the program."""

    ipv6: bool = False
    any_port: bool = False
    ipip: bool = False

    def covers(self, other: Features) -> bool:
        return self | other == self

    def __or__(self, other: Features) -> Features:
        return Features(
            self.ipv6 or other.ipv6, self.any_port or other.any_port, self.ipip or other.ipip
        )

    @property
    def names(self) -> tuple[str, ...]:
        wanted = {"ipv4": True, "ipv6": self.ipv6, "any-port": self.any_port, "ipip": self.ipip}
        return tuple(name for name, on in wanted.items() if on)


ALL_FEATURES = Features(ipv6=True, any_port=True, ipip=True)


def needed_features(services: tuple[Service, ...]) -> Features:
    """The least that serves these services."""
    return Features(
        ipv6=any(s.key.vip.version == 6 for s in services),
        any_port=any(s.key.port == ANY_PORT for s in services),
        ipip=any(s.forward is Forward.IPIP for s in services),
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements of each table."""

    services: int
    service_keys: int
    backends: int
    flow_buckets: int
    ring_lines: int
    lines_per_ring: int
    rows: int  # CPUs, and one for the agent


def sizes(tables: Tables, cpus: int) -> Sizes:
    """Element counts for a configuration on a host with that many possible CPUs."""
    lines = math.ceil(tables.ring_slots / RING_LINE_SLOTS)
    return Sizes(
        services=tables.services,
        service_keys=2 * tables.services,  # each VIP has a mark of its own
        backends=tables.backends,
        flow_buckets=tables.flows // FLOW_WAYS,
        ring_lines=lines * (tables.services + SPARE_RINGS),
        lines_per_ring=lines,
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
    """How stamps count: a tick is ``2 ** shift`` jiffies at ``hz`` jiffies a second."""

    hz: int
    shift: int

    @property
    def tick_s(self) -> float:
        return float(2**self.shift / self.hz)

    def ticks(self, seconds: float) -> int:
        """Ticks that are no shorter than ``seconds``."""
        return math.ceil(seconds / self.tick_s)


def clock_for(hz: int) -> Clock:
    """The power of two of jiffies nearest to four seconds."""
    return Clock(hz, round(math.log2(TARGET_TICK_S * hz)))


def definitions(
    pin_folder: Path, size: Sizes, features: Features, keys: HashKeys, clock: Clock
) -> dict[str, str]:
    """The -D constants of one program."""
    return {
        "LB_PIN": f'"{pin_folder}"',
        "LB_SERVICES": str(size.services),
        "LB_SERVICE_KEYS": str(size.service_keys),
        "LB_BACKENDS": str(size.backends),
        "LB_FLOW_BUCKETS": str(size.flow_buckets),
        "LB_RING_LINES": str(size.ring_lines),
        "LB_ROWS": str(size.rows),
        "LB_TICK_SHIFT": str(clock.shift),
        "LB_FLOW_KEY": f"{keys.key:#x}ULL",
        "LB_FLOW_MUL0": f"{keys.mul0:#x}ULL",
        "LB_FLOW_MUL1": f"{keys.mul1:#x}ULL",
        "LB_IPV6": str(int(features.ipv6)),
        "LB_ANY_PORT": str(int(features.any_port)),
        "LB_IPIP": str(int(features.ipip)),
    }


def features_of(config: Config) -> Features:
    return needed_features(config.services)
