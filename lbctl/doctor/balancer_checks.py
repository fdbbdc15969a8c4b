"""Judges a balancer as a whole: the agent, the VIPs, and forwarding by the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any

from agent.failover.plan import claimed_vips
from agent.model import Address
from agent.state.guard import table_name
from lbctl.doctor.facts import Facts, Finding, Question, Verdict

_CORRECT = "correct the file, then systemctl reload lb-agent"
_UNSAVED = "changes are in memory only, and a restart forgets them: "
_UNRECORDED = "changes are not recorded in the audit log: "
_MAKE_ROOM = "free space on that file system, or make it writable; the agent writes them then"
_MORE_SOURCES = (
    "add addresses of this host to nat.sources_ipv4 or nat.sources_ipv6, or more backends"
)
_SILENCE = (
    "deploy/backend-setup.sh up on that backend, or take the address off that host; clients "
    "remember the wrong MAC for a minute or so"
)
_ONE_MASTER = (
    "lbctl failover status on every balancer; where the failover process does not run, systemctl "
    "start lb-agent-failover"
)


def agent(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that the agent answers, and reports no problem."""
    found = facts.agent
    if found.status is None:
        yield Finding(
            "agent",
            Verdict.WARNING,
            f"{found.socket}: {found.problem}",
            "sudo lbctl doctor, or socket_group in the configuration"
            if found.denied
            else found.remedy,
        )
        return
    about, plane = found.status["agent"], found.status["dataplane"]
    problems = [*_problems(about, plane), *_links(plane, ask), *_attachment(plane, ask)]
    yield from problems
    if not any(each.verdict is Verdict.PROBLEM for each in problems):
        yield Finding("agent", Verdict.OK, f"{about['name']}, version {about['version']}, answers")


def _problems(about: Mapping[str, Any], plane: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the problems that the agent itself reports."""
    problems = [
        ("configuration: ", about["config_problem"], _CORRECT),
        ("tables: ", about["reconcile_problem"], "journalctl -u lb-agent"),
        (_UNSAVED, about.get("unsaved_problem"), _MAKE_ROOM),
        (_UNRECORDED, about.get("audit_problem"), _MAKE_ROOM),
        *(("fullnat: ", each, _MORE_SOURCES) for each in plane.get("nat_problems", ())),
        *(("", each, _silence(each)) for each in plane.get("vip_problems", ())),
    ]
    for what, problem, remedy in problems:
        if problem:
            text, _, own = problem.partition("\n  remedy: ")
            yield Finding("agent", Verdict.PROBLEM, f"{what}{text}", own or remedy)


def _links(plane: Mapping[str, Any], ask: Question) -> Iterator[Finding]:
    """Yield next-hop devices that accept no packets; the interfaces themselves are checked
    elsewhere.
    """
    seen = (ask.interface, *ask.others)
    for text in plane.get("link_problems", ()):
        if text.split(" ", 1)[0] not in seen:
            fix = f"ip -d link show dev {text.split(' ', 1)[0]}"
            yield Finding("agent", Verdict.PROBLEM, f"next hops: {text}", fix)


def _silence(problem: str) -> str:
    """Return the remedy for another host that answers for a VIP."""
    is_balancer = "it is balancer" in problem or "virtual MAC" in problem
    return _ONE_MASTER if is_balancer else _SILENCE


def _attachment(plane: Mapping[str, Any], ask: Question) -> Iterator[Finding]:
    """Check that the program is attached where it should be."""
    interfaces = [plane["interface"], *plane.get("backend_interfaces", ())]
    if not plane["attached"]:
        yield Finding(
            "agent",
            Verdict.PROBLEM,
            f"the program is not attached to {', '.join(interfaces)}",
            "systemctl restart lb-agent, and journalctl -u lb-agent",
        )
    elif ask.interface not in interfaces:
        yield Finding(
            "agent",
            Verdict.WARNING,
            f"the agent here balances on {', '.join(interfaces)}, not on {ask.interface}",
            f"lbctl doctor --interface {plane['interface']}",
        )


def guard(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check whether a moment without the program would cost a retransmission, or connections."""
    if facts.agent.status is None:
        return
    table = table_name(facts.agent.status["agent"]["name"])
    cost = "a moment without the program resets connections, because this host answers for the VIPs"
    if not facts.nft_installed:
        fix = "apt-get install nftables, then systemctl restart lb-agent"
        yield Finding("guard", Verdict.WARNING, f"nftables is not installed: {cost}", fix)
    elif facts.nft_tables is None:
        message = f"cannot see whether the table {table} exists"
        yield Finding("guard", Verdict.UNKNOWN, message, "sudo lbctl doctor")
    elif table not in facts.nft_tables:
        fix = "journalctl -u lb-agent says why"
        yield Finding("guard", Verdict.WARNING, f"there is no table inet {table}: {cost}", fix)
    else:
        yield Finding("guard", Verdict.OK, f"the table inet {table} stands in for the program")


def file(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Before the agent's first start: check its file, and whether the file fits this host."""
    found = facts.agent.file
    if found is None:
        return
    for problem in found.problems:
        message = f"{problem.where}: {problem.message}"
        yield Finding("configuration", Verdict.PROBLEM, message, problem.remedy)
    for each in found.advice:
        message = f"{each.where}: {each.message}"
        yield Finding("configuration", Verdict.WARNING, message, each.remedy)
    if not found.problems and not found.advice:
        yield Finding("configuration", Verdict.OK, f"{found.path} is good")


def vips(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that the host answers for the VIPs; failover decides where its own VIPs are."""
    link = facts.link(ask.interface)
    moving = claimed_vips(facts.failover.config) if facts.failover else frozenset()
    wanted = ask.vips or tuple(vip for vip in _configured(facts) if vip not in moving)
    if link is None or not wanted:
        return
    missing = [vip for vip in wanted if vip not in link.addresses]
    config = facts.agent.config or {}
    if (
        missing
        and facts.agent.file is not None
        and not ask.vips
        and config.get("manage_vips", True)
    ):
        names = ", ".join(map(str, missing))
        yield Finding(
            "vip", Verdict.OK, f"the agent will add them to {link.name} at its start: {names}"
        )
        return
    for vip in missing:
        yield Finding(
            "vip",
            Verdict.WARNING,
            f"{vip} is not on {link.name}: nobody answers ARP or NDP for it here (right if a router"
            " sends it here, or another balancer holds it)",
            f"ip address add {vip}/{vip.max_prefixlen} dev {link.name}, or manage_vips: true",
        )
    if not missing:
        yield Finding("vip", Verdict.OK, f"on {link.name}: {', '.join(map(str, wanted))}")


def _configured(facts: Facts) -> tuple[Address, ...]:
    """Return the VIPs that the interface should have; a prefix is routed here instead."""
    services = (facts.agent.config or {}).get("services", [])
    single = (service["vip"] for service in services if "/" not in service["vip"])
    return tuple(dict.fromkeys(ip_address(vip) for vip in single))


def forwarding(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check forwarding: the packet path needs none, and with it packets of a removed VIP are
    forwarded.
    """
    on = [
        name
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        if facts.sysctl.get(name)
    ]
    if on:
        yield Finding(
            "ip_forward",
            Verdict.OK,
            f"{' and '.join(on)} is on; the balancer does not need it (if nothing else here does:"
            f" sysctl -w {on[0]}=0)",
        )
    else:
        yield Finding("ip_forward", Verdict.OK, "off, and not needed")


def rp_filter(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check rp_filter: health checks come back through the kernel, balanced packets do not."""
    every = facts.sysctl.get("net.ipv4.conf.all.rp_filter")
    own = facts.sysctl.get(f"net.ipv4.conf.{ask.interface}.rp_filter")
    if every is None and own is None:
        return
    value = max(every or 0, own or 0)
    note = ": health checks over another interface than the route's would be dropped"
    yield Finding("rp_filter", Verdict.OK, f"{value}" + (note if value == 1 else ""))
