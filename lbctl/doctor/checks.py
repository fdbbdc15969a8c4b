"""Decides which checks a host gets for its role, and runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from lbctl.doctor import (
    agent_checks,
    backend_checks,
    balancer_checks,
    certificate_checks,
    failover_checks,
    fleet_checks,
    hook_checks,
    host_checks,
    interface_checks,
)
from lbctl.doctor.facts import Facts, Finding, Question, Role, Verdict

type Check = Callable[[Facts, Question], Iterable[Finding]]

HOST: tuple[Check, ...] = (
    host_checks.privileges,
    host_checks.kernel,
    host_checks.bpf,
    host_checks.btf,
    host_checks.jit,
    host_checks.bpffs,
    host_checks.bcc,
    host_checks.clock,
    host_checks.conntrack,
    host_checks.neighbours,
)
# For each interface that gets the program.
INTERFACE: tuple[Check, ...] = (
    interface_checks.exists,
    hook_checks.native_xdp,
    hook_checks.other_xdp,
    hook_checks.filters,
    interface_checks.mtu,
    interface_checks.tunnel_mtu,
    interface_checks.queues,
    interface_checks.offloads,
    interface_checks.vlan,
    interface_checks.veth,
)
BALANCER: tuple[Check, ...] = (
    hook_checks.redirect,
    hook_checks.external,
    balancer_checks.forwarding,
    balancer_checks.rp_filter,
    balancer_checks.file,
    balancer_checks.vips,
    balancer_checks.agent,
    agent_checks.release,
    agent_checks.unit,
    agent_checks.rights,
    agent_checks.open_files,
    agent_checks.flow_table,
    agent_checks.ports,
    agent_checks.lists,
    certificate_checks.certificates,
    agent_checks.tier,
    balancer_checks.guard,
    failover_checks.failover,
    fleet_checks.fleet,
)
BACKEND: tuple[Check, ...] = (
    interface_checks.exists,
    backend_checks.vip,
    backend_checks.arp,
    backend_checks.rp_filter,
    backend_checks.decapsulation,
    backend_checks.tunnel_senders,
    backend_checks.gateway,
    host_checks.conntrack,
    host_checks.clock,
)


def examine(facts: Facts, ask: Question) -> tuple[Finding, ...]:
    """Return every finding for the role, in the order of the checks."""
    if ask.role is Role.BACKEND:
        return _run(BACKEND, facts, ask)
    interfaces = _run(INTERFACE, facts, ask)
    for name in ask.others:
        found = _run(INTERFACE, facts, replace(ask, interface=name))
        interfaces += tuple(replace(one, message=f"{name}: {one.message}") for one in found)
    return _run(HOST, facts, ask) + interfaces + _run(BALANCER, facts, ask)


def _run(checks: Iterable[Check], facts: Facts, ask: Question) -> tuple[Finding, ...]:
    return tuple(finding for check in checks for finding in check(facts, ask))


def count(findings: Iterable[Finding], verdict: Verdict) -> int:
    """Return how many findings have that verdict."""
    return sum(1 for finding in findings if finding.verdict is verdict)
