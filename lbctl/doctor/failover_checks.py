"""Judges a balancer's failover: the process, its needs, and what would be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address

from agent.failover.model import Authentication, Method, Role
from agent.failover.plan import plan
from agent.model import Forward
from lbctl.doctor.facts import Facts, FailoverFacts, Finding, Question, Verdict

_MARKS_ADDRESSES = (5, 18)  # IFA_PROTO


def failover(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Report everything about failover; nothing if no instance is configured."""
    found = facts.failover
    if found is None:
        return
    for check in _CHECKS:
        yield from check(found, facts)


def _process(found: FailoverFacts, _facts: Facts) -> Iterator[Finding]:
    """Check that the failover process answers, and reports no problem."""
    status = found.status
    if status is None:
        if found.denied:
            yield Finding("failover", Verdict.WARNING, found.problem, "sudo lbctl doctor")
        else:
            yield Finding(
                "failover",
                Verdict.PROBLEM,
                f"{found.problem}: this node takes no part in failover",
                "systemctl enable --now lb-agent-failover"
                if "no such socket" in found.problem
                else found.remedy,
            )
        return
    bad = False
    if status.config_problem:
        bad = True
        yield Finding(
            "failover",
            Verdict.PROBLEM,
            f"configuration: {status.config_problem}",
            "correct the file, then systemctl reload lb-agent-failover",
        )
    for router in status.routers:
        if router.role is Role.FAULT:
            bad = True
            yield Finding(
                "failover",
                Verdict.PROBLEM,
                f"{router.name} cannot be master: {'; '.join(router.priority_reasons)}",
                "lbctl failover status",
            )
        for problem in router.problems:
            bad = True
            yield Finding(
                "failover",
                Verdict.PROBLEM,
                f"{router.name}: {problem.text}",
                "lbctl failover status",
            )
    if not bad:
        roles = ", ".join(f"{router.name} {router.role.value}" for router in status.routers)
        yield Finding("failover", Verdict.OK, f"the failover process answers: {roles}")


def _left(found: FailoverFacts, facts: Facts) -> Iterator[Finding]:
    """Check for VIPs left on a node that is not master: two nodes would answer for them."""
    status = found.status
    if found.denied:
        return
    roles = {router.name: router.role for router in status.routers} if status else {}
    for router in plan(found.config).routers:
        role = roles.get(router.name, Role.INIT)
        if router.instance.method is not Method.VRRP or role is Role.MASTER:
            continue
        for link in facts.links:
            left = [str(vip) for vip in router.vips if vip in link.addresses]
            if not left or link.name == "lo":
                continue
            yield Finding(
                "vip left",
                Verdict.PROBLEM,
                f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} on {link.name}, and this"
                f" node is {f'{role.value} of {router.name}' if status else 'out of failover'}:"
                " another node may be master, and both answer",
                _taken_off(left, link.name)
                if status
                else f"systemctl start lb-agent-failover, which removes them unless it becomes"
                f" master; or by hand: {_taken_off(left, link.name)}",
            )


def _taken_off(vips: Iterable[str], interface: str) -> str:
    return "; ".join(
        f"ip address del {vip}/{ip_address(vip).max_prefixlen} dev {interface}" for vip in vips
    )


def _standing(found: FailoverFacts, _facts: Facts) -> Iterator[Finding]:
    """Check scheduling: a process that waits for a CPU is taken for dead by the other node."""
    status = found.status
    if status is None:
        return
    missing = [
        what
        for what, there in (
            ("real-time scheduling", status.realtime),
            ("locked memory", status.memory_locked),
        )
        if not there
    ]
    if not missing:
        yield Finding("real time", Verdict.OK, "the failover process runs before all others")
        return
    yield Finding(
        "real time",
        Verdict.WARNING,
        f"the failover process has no {' and no '.join(missing)}: on a busy host its adverts come"
        " late, and the other node takes over",
        "run it by lb-agent-failover.service, which grants CAP_SYS_NICE and CAP_IPC_LOCK; with"
        " real-time groups in the kernel: sysctl -w kernel.sched_rt_runtime_us=-1",
    )


def _key(found: FailoverFacts, _facts: Facts) -> Iterator[Finding]:
    """Check the secret that the balancers share."""
    if found.key_problem is None:
        yield Finding(
            "failover key", Verdict.UNKNOWN, "the secret cannot be read by you", found.key_remedy
        )
    elif found.key_problem:
        yield Finding("failover key", Verdict.PROBLEM, found.key_problem, found.key_remedy)
    elif found.config.failover.key_file is not None:
        yield Finding("failover key", Verdict.OK, "only its owner can read it")


def _kernel(_found: FailoverFacts, facts: Facts) -> Iterator[Finding]:
    """Check whether the next process can recognise VIPs as ours."""
    if facts.host.kernel < _MARKS_ADDRESSES:
        yield Finding(
            "failover kernel",
            Verdict.PROBLEM,
            f"Linux {facts.host.kernel_release} does not record which process added an address:"
            " the VIPs of a killed failover process stay for good",
            "install Linux 5.18 or newer (Debian 12 and Ubuntu 24.04 have one)",
        )


def _macvlan(found: FailoverFacts, _facts: Facts) -> Iterator[Finding]:
    """Check for macvlan, of which virtual MACs are made."""
    if not any(instance.virtual_mac for instance in found.config.failover.instances):
        return
    if found.macvlan is None:
        yield Finding("macvlan", Verdict.UNKNOWN, "only root can ask for it", "sudo lbctl doctor")
    elif found.macvlan:
        yield Finding("macvlan", Verdict.OK, "the kernel has it, for virtual_mac")
    else:
        yield Finding(
            "macvlan",
            Verdict.PROBLEM,
            "virtual_mac is set, and the kernel has no macvlan",
            "modprobe macvlan, or virtual_mac: false",
        )


def _ipv6(found: FailoverFacts, facts: Facts) -> Iterator[Finding]:
    """Check whether IPv6 VIPs can be added where they belong."""
    for interface in sorted(
        {
            router.interface
            for router in plan(found.config).routers
            if any(vip.version == 6 for vip in router.vips)
        }
    ):
        if facts.sysctl.get(f"net.ipv6.conf.{interface}.disable_ipv6"):
            yield Finding(
                "failover ipv6",
                Verdict.PROBLEM,
                f"IPv6 is switched off on {interface}: it cannot have the IPv6 VIPs",
                f"sysctl -w net.ipv6.conf.{interface}.disable_ipv6=0",
            )


def _firewall(found: FailoverFacts, _facts: Facts) -> Iterator[Finding]:
    """Check the firewall: without rules for failover there are two masters, or no flow sync."""
    wall, config = found.firewall, found.config.failover
    if wall is None:
        return
    elected = [i for i in config.instances if i.method is Method.VRRP]
    sealed = any(i.authentication is Authentication.AH for i in elected)
    wanted: list[tuple[str, tuple[str, ...], str]] = []
    if elected and not sealed:
        wanted.append(("adverts of other nodes (VRRP)", ("vrrp", "112"), "meta l4proto vrrp"))
    if sealed:
        wanted.append(("adverts of other nodes (AH)", ("ah", "51"), "meta l4proto ah"))
    if config.sync.peers:
        port = str(config.sync.port)
        wanted.append(("flows of other nodes", (port,), f"tcp dport {port}"))
    for what, words, rule in wanted:
        if not wall.names(*words):
            yield Finding(
                "firewall",
                Verdict.UNKNOWN,
                f"nftables drops by default ({wall.chain}), and no rule names {words[0]}: {what}"
                " may not come in",
                f"nft insert rule {wall.chain} {rule} accept, and into the firewall's own file",
            )


def _kept(found: FailoverFacts, facts: Facts) -> Iterator[Finding]:
    """Report which connections would not outlive a failover."""
    config = found.config
    announced = [i.name for i in config.failover.instances if i.method is Method.ANNOUNCE]
    if not config.failover.sync.peers:
        yield Finding(
            "flow sync",
            Verdict.WARNING,
            "no flows are exchanged (sync.peers is empty): "
            + (
                f"connections to {', '.join(announced)} break when a router sends them to another"
                " balancer"
                if announced
                else "connections break at a failover, except those of maglev and source"
            ),
            "failover.sync.peers: the addresses of the other balancers (docs/flow-sync.md)",
        )
    yield from _fullnat(found)
    for peer in (facts.agent.status or {}).get("failover", {}).get("flow_sync", ()):
        if peer["state"] != "connected":
            yield Finding(
                "flow sync",
                Verdict.WARNING,
                f"no flows are exchanged with {peer['peer']} ({peer['state']})",
                "lbctl failover status says why",
            )


def _fullnat(found: FailoverFacts) -> Iterator[Finding]:
    """Check that the source addresses of fullnat, to which answers go, move with the VIPs."""
    config = found.config
    moving = {vip for router in plan(config).routers if router.family for vip in router.vips}
    sources = (*config.nat.sources_v4, *config.nat.sources_v6)
    left = [str(source) for source in sources if source not in moving]
    names = [
        service.name
        for service in config.services
        if service.forward is Forward.FULLNAT and service.key.vip in moving
    ]
    if names and left:
        yield Finding(
            "fullnat",
            Verdict.WARNING,
            f"connections of {', '.join(names)} break at a failover: their answers go to"
            f" {', '.join(left)}, which does not move with the VIPs",
            "add nat's sources to `vips` of the instance, or omit `vips`",
        )


_CHECKS: tuple[Callable[[FailoverFacts, Facts], Iterable[Finding]], ...] = (
    _process,
    _left,
    _standing,
    _key,
    _kernel,
    _macvlan,
    _ipv6,
    _firewall,
    _kept,
)
