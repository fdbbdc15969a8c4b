"""Decides how much is measured, and where the comparison keeps its things in the machines."""

from __future__ import annotations

from dataclasses import dataclass

# Nothing of the comparison is anywhere else, so no trace of it outlives a reboot.
FOLDER = "/run/steelyard-peers"
UNIT = "steelyard-peer"  # the transient unit in a machine: nginx in a backend, keepalived in lb1
MODULES = ("ip_vs", "ip_vs_mh")
RULE_PRIORITY = 999  # of the policy rule in backends, before the provisioning's own
REQUEST_TIMEOUT_S = 10.0
READY_S = 300.0  # until a balancer finds its backends


@dataclass(frozen=True, slots=True)
class Mode:
    """A way of forwarding, as each side calls it, and the port that it is asked on."""

    steelyard: str
    ipvs: str
    port: int


MODES = (Mode("dsr", "DR", 8091), Mode("ipip", "TUN", 8092), Mode("nat", "NAT", 8093))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load there is in each measurement, and how long the balancer idles before it."""

    rate_per_s: float
    seconds: float
    warm_up_s: float


EMULATED = Plan(rate_per_s=100.0, seconds=10.0, warm_up_s=2.0)
REAL = Plan(rate_per_s=1000.0, seconds=20.0, warm_up_s=2.0)
