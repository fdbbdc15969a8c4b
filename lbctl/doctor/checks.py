"""Decides which checks a host gets for its role, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lbctl.doctor import backend_checks, balancer_checks, host_checks, interface_checks
from lbctl.doctor.facts import Facts, Finding, Question, Role, Verdict

type Check = Callable[[Facts, Question], Iterable[Finding]]

BALANCER: tuple[Check, ...] = (
    host_checks.privileges,
    host_checks.kernel,
    host_checks.bpf,
    host_checks.btf,
    host_checks.jit,
    host_checks.bpffs,
    host_checks.bcc,
    host_checks.open_files,
    interface_checks.exists,
    interface_checks.native_xdp,
    interface_checks.stranger,
    interface_checks.mtu,
    interface_checks.ipip_mtu,
    interface_checks.queues,
    interface_checks.offloads,
    interface_checks.vlan,
    interface_checks.veth,
    balancer_checks.forwarding,
    balancer_checks.rp_filter,
    balancer_checks.vips,
    balancer_checks.agent,
)
BACKEND: tuple[Check, ...] = (
    interface_checks.exists,
    backend_checks.vip,
    backend_checks.arp,
    backend_checks.rp_filter,
    backend_checks.decapsulation,
)


def examine(facts: Facts, ask: Question) -> tuple[Finding, ...]:
    """Every finding for the role, in the order of the checks."""
    checks = BALANCER if ask.role is Role.BALANCER else BACKEND
    return tuple(finding for check in checks for finding in check(facts, ask))


def count(findings: Iterable[Finding], verdict: Verdict) -> int:
    """How many findings have that verdict."""
    return sum(1 for finding in findings if finding.verdict is verdict)
