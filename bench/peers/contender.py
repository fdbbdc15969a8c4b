"""The base class of contenders, and what it needs to know of one that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from bench.peers.wiring import Wired
from lbctl.lab.topology import Lab

LAB_NAME = "peers"
BACKENDS = 2
SHORT_TARGET_US = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """A running balancer."""

    data: tuple[int, ...] = ()  # pids of processes that move data
    control: tuple[int, ...] = ()  # pids of those that only configure and watch
    targets: tuple[str, ...] = ()  # the addresses that clients connect to; empty: the VIP
    command: str = ""
    configuration: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contender(ABC):
    """One row of the result."""

    name: str
    lab: Lab
    both_ways: bool = field(kw_only=True)  # answers pass the balancer, too
    by_xdp: bool = field(default=False, kw_only=True)
    target_us: float | None = field(default=None, kw_only=True)

    @abstractmethod
    def start(self, wired: Wired) -> Running:
        """Start it; return when it accepts connections or is about to."""
