"""Judges the running agent: its capabilities, its release, and how full its tables are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from agent.humanise import exact, percent, plural
from agent.model import Tables
from lbctl.doctor.facts import Facts, Finding, InstalledUnit, Question, Verdict

NEARLY_FULL = 0.8  # the threshold of the alerts
MOST_FLOWS = 268_435_456
FEW_FILES = 4096
# Kernels before this one count the memory of BPF maps as locked memory.
MAPS_ARE_NOT_LOCKED = (5, 11)
# What the agent cannot do without each capability. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
RIGHTS = {
    "CAP_BPF": "no program can be loaded when the configuration needs another",
    "CAP_PERFMON": "the verifier refuses the program when it is loaded anew",
    "CAP_NET_ADMIN": "neither programs, VIPs nor next hops can be changed",
    "CAP_SYS_ADMIN": "objects that a former agent pinned cannot be opened",
    "CAP_NET_RAW": "idle connections cannot be reset, and other hosts with the VIPs go unseen",
}
_RESTART = "systemctl restart lb-agent (no connection notices)"


def open_files(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the limit of open files: each health check in progress is an open file."""
    process = facts.agent.process
    running = process.open_files if process else None
    limit, where = (
        (running, "the agent") if running is not None else (facts.host.open_files, "here")
    )
    if limit >= FEW_FILES:
        yield Finding("open files", Verdict.OK, f"{limit} ({where})")
    elif running is not None:
        yield Finding(
            "open files",
            Verdict.WARNING,
            f"the agent may open {limit} files: too few for health checks of many backends",
            "systemctl edit lb-agent: [Service] LimitNOFILE=65536",
        )
    else:
        yield Finding(
            "open files",
            Verdict.OK,
            f"{limit} in this shell; an agent started by systemd has 65536 (lb-agent.service)",
        )


def rights(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the agent's capabilities, because it notices a missing one only when it needs it."""
    process = facts.agent.process
    if process is None or process.capabilities is None:
        return
    held = process.capabilities
    if "CAP_SYS_ADMIN" in held:
        held |= {"CAP_BPF", "CAP_PERFMON"}
    missing = [name for name in RIGHTS if name not in held]
    for name in missing:
        yield Finding(
            "agent rights",
            Verdict.WARNING,
            f"the agent runs without {name}: {RIGHTS[name]}",
            "run it by lb-agent.service, which grants it; in a container: --cap-add"
            f" {name.removeprefix('CAP_')}",
        )
    counted = facts.host.kernel < MAPS_ARE_NOT_LOCKED
    limited = process.locked_memory not in (None, float("inf"))
    if counted and limited and "CAP_IPC_LOCK" not in held:
        yield Finding(
            "agent rights",
            Verdict.WARNING,
            f"the agent may lock {process.locked_memory:,.0f} bytes, and this kernel counts its"
            " tables as locked memory: new tables can be refused",
            "systemctl edit lb-agent: [Service] LimitMEMLOCK=infinity",
        )
    elif not missing:
        yield Finding("agent rights", Verdict.OK, "the agent has all that it needs")


def unit(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the installed units: those of another release have other capabilities and limits."""
    other = [each for each in facts.units if not each.as_shipped]
    if other:
        files = " and ".join(each.path for each in other)
        restart = f"systemctl restart {' '.join(e.name.removesuffix('.service') for e in other)}"
        yield Finding(
            "unit",
            Verdict.WARNING,
            f"{files} {'is' if len(other) == 1 else 'are'} not as this release ships it: of another"
            " release, or edited in place, which the next set-up overwrites",
            f"put own settings into drop-ins (systemctl edit); then {_restored(other)}, and"
            f" {restart}",
        )
    elif facts.units:
        names = ", ".join(each.name for each in facts.units)
        yield Finding("unit", Verdict.OK, f"{names} as shipped")


def _restored(units: Sequence[InstalledUnit]) -> str:
    """Return what puts the shipped units in force again."""
    if hiding := [each.path for each in units if each.hides]:
        return f"rm {' '.join(hiding)}, which hides the package's, and systemctl daemon-reload"
    if any(each.path.startswith("/usr/lib/") for each in units):
        return "apt-get install --reinstall steelyard"
    return "deploy/setup.sh --service"


def release(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the running release: an upgrade takes effect at the next start of each process."""
    installed, status = facts.installed, facts.agent.status
    if installed is None:
        return
    stale = False
    if status is not None and (why := _older(facts, status["agent"])):
        stale = True
        yield Finding("release", Verdict.WARNING, why, _RESTART)
    standing = facts.failover.status if facts.failover else None
    if standing is not None and standing.version != installed.version:
        stale = True
        yield Finding(
            "release",
            Verdict.WARNING,
            f"the failover process runs version {standing.version}, and {installed.version} is"
            " installed",
            "systemctl restart lb-agent-failover (the other balancer takes over meanwhile)",
        )
    if status is not None and not stale:
        yield Finding(
            "release", Verdict.OK, f"the installed version is running, {installed.version}"
        )


def _older(facts: Facts, about: Mapping[str, Any]) -> str:
    """Return why the running agent is not the installed one; empty if no difference is seen."""
    installed, process = facts.installed, facts.agent.process
    if installed is None:
        return ""
    if about["version"] != installed.version:
        return f"the agent runs version {about['version']}, and {installed.version} is installed"
    started = about.get("started_at")
    if process is None or not process.same_python or not started:
        return ""
    if datetime.fromisoformat(started).timestamp() < installed.written:
        return "the agent was started before the installed version was written"
    return ""


def flow_table(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the room in the flow table: new flows without a slot are forwarded, and forgotten."""
    table = ((facts.agent.status or {}).get("dataplane") or {}).get("flow_table")
    if not table:
        return
    slots, share = table["slots"], table["used_share"]
    text = f"{percent(share)}% of {exact(slots)} slots are in use"
    if share < NEARLY_FULL:
        yield Finding("flow table", Verdict.OK, text)
        return
    wanted = min(MOST_FLOWS, 2 * slots)
    yield Finding(
        "flow table",
        Verdict.WARNING,
        f"{text}: flows that find no slot are not recorded, and break when backends change",
        f"tables: {{flows: {wanted}}} in the configuration, then {_RESTART}; or shorter `timeouts`"
        " of the services",
    )


def ports(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the source ports of fullnat. If nearly all are in use, the agent itself says so."""
    plane = (facts.agent.status or {}).get("dataplane") or {}
    used, available = Counter[str](), Counter[str]()
    for each in plane.get("nat_ports", ()):
        used[each["server"]] += each["used_ports"]
        available[each["server"]] += each["ports"]
    problems = plane.get("nat_problems", ())
    near = [
        server
        for server, count in used.items()
        if count >= NEARLY_FULL * available[server]
        and not any(f" {server} " in text for text in problems)
    ]
    for server in near:
        yield Finding(
            "fullnat ports",
            Verdict.WARNING,
            f"{exact(used[server])} of {exact(available[server])} source ports towards {server} are"
            " in use",
            "add addresses of this host to nat.sources_ipv4 or nat.sources_ipv6, a wider nat.ports,"
            " or more backends",
        )
    pairs = len(plane.get("nat_ports", ()))
    blocks = _tables(facts).get("nat_blocks", Tables().nat_blocks)
    if pairs > blocks:
        yield Finding(
            "fullnat ports",
            Verdict.WARNING,
            f"there are {pairs} pairs of a source address and a server, and"
            f" {plural(blocks, 'block')} of ports: some pairs share one",
            f"tables: {{nat_blocks: {pairs}}} in the configuration, then {_RESTART}",
        )
    elif pairs and not near and not problems:
        yield Finding(
            "fullnat ports",
            Verdict.OK,
            f"enough ports are free towards {plural(len(available), 'server')}",
        )


def lists(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the room for blocks and lists. The agent itself reports what did not fit."""
    found = facts.agent.guard
    if not found or found.get("problem") or not found.get("nodes"):
        return
    used, size = found["nodes"], found["nodes_total"]
    text = f"{exact(used)} of {exact(size)} nodes are in use"
    if 2 * used <= size:
        yield Finding("blocks and lists", Verdict.OK, text)
        return
    room = _tables(facts).get("guard_nodes", Tables().guard_nodes)
    yield Finding(
        "blocks and lists",
        Verdict.WARNING,
        f"{text}: a list that changes is rebuilt beside the old one, so there may be no room for"
        " it then, and the old one stays",
        f"tables: {{guard_nodes: {2 * room}}} in the configuration, then {_RESTART}",
    )


def _tables(facts: Facts) -> Mapping[str, int]:
    return (facts.agent.config or {}).get("tables") or {}


def tier(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Report whether the tier of this host serves, and what is wrong with it."""
    found = facts.tier
    if found is None:
        return
    if found.problem:
        yield Finding(
            "tier",
            Verdict.UNKNOWN if found.denied else Verdict.PROBLEM,
            found.problem,
            "sudo lbctl doctor" if found.denied else found.remedy,
        )
        return
    if found.connections is None:
        yield Finding(
            "tier", Verdict.PROBLEM, "HAProxy does not answer",
            "systemctl start lb-agent-tier-proxy",
        )  # fmt: skip
    for each in found.problems:
        yield Finding("tier", Verdict.PROBLEM, each, "lbctl tier status")
    if found.connections is not None and not found.problems:
        yield Finding(
            "tier", Verdict.OK, f"HAProxy serves, {plural(found.connections, 'connection')}"
        )
