"""Rules of redundancy and configuration. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.api.sentences import host_problems, problems
from agent.humanise import plural
from lbctl.audit.rules import (
    Finding,
    Practice,
    Rule,
    Seen,
    broken,
    check,
    each,
    kept,
    named,
    not_applicable,
    unknown,
)

_SYNC_BEHIND_S = 5.0


def two_servers(seen: Seen) -> Iterator[Finding]:
    """Check whether each service would outlive any one of its servers."""
    yield from each(
        seen.services,
        lambda one: len({b["address"] for b in one["backends"] if b["state"] == "up"}) > 1,
        none="there is no service",
        good="{count} services have two servers or more that are up",
        bad="one server or none is up; without it, clients get nothing",
        fix="lbctl backend add {name}/NAME --address ADDRESS, or repair what lbctl status names",
    )


def second_balancer(seen: Seen) -> Iterator[Finding]:
    """Check whether another balancer would take over."""
    failover = seen.status["failover"]
    if not failover["configured"]:
        yield broken(
            "failover is not configured: this is the only balancer",
            "docs/failover.md: a second balancer, and `failover:` in the agent.yaml of both",
        )
        return
    if failover["problem"]:
        yield broken(f"failover: {failover['problem']}", "systemctl start lb-agent-failover")
        return
    faulty = [one["name"] for one in failover["instances"] if one["role"] == "fault"]
    if faulty:
        why = "lbctl failover status says why"
        yield broken(f"{named(faulty)}: this balancer is not fit to be master", why)
        return
    peers = [one for one in failover["flow_sync"] if one["state"] == "connected"]
    heard = [one for one in seen.failover["instances"] if one["adverts_received_total"]]
    roles = ", ".join(f"{one['name']} {one['role']}" for one in failover["instances"])
    if peers or heard:
        yield kept(f"{roles}; {plural(len(peers), 'other balancer')} connected by flow sync")
    else:
        yield broken(
            f"{roles}; no other balancer was heard",
            "start the other one; lbctl failover status on both names what differs",
        )


def flows_follow(seen: Seen) -> Iterator[Finding]:
    """Check whether open connections would outlive this balancer."""
    failover = seen.status["failover"]
    if not failover["configured"]:
        yield not_applicable("there is no other balancer")
        return
    peers = seen.failover["flow_sync"]["peers"]
    if not peers:
        yield broken(
            "flow sync is not configured: open connections break when the VIPs move",
            "failover.sync.peers in the agent.yaml of both balancers (docs/flow-sync.md)",
        )
        return
    disconnected = [one["name"] or one["address"] for one in peers if one["state"] != "connected"]
    behind = max((one["behind_s"] or 0.0 for one in peers), default=0.0)
    if disconnected:
        yield broken(f"no flows are exchanged with {named(disconnected)}", "lbctl failover status")
        return
    evidence = f"{plural(len(peers), 'peer')} connected, {behind:.1f} s behind at most"
    yield from check(behind < _SYNC_BEHIND_S, evidence, "lbctl failover status says why")


def balancers_agree(seen: Seen) -> Iterator[Finding]:
    """Check whether the balancers' configurations match."""
    failover = seen.status["failover"]
    if not failover["configured"]:
        yield not_applicable("there is no other balancer")
        return
    differing = [
        f"{one['name']}: {each}" for one in failover["instances"] for each in one["problems"]
    ]
    for text in differing:
        yield broken(text, "lbctl failover status has the values of both sides")
    if not differing:
        yield kept("no difference and no second master was seen")


def saved(seen: Seen) -> Iterator[Finding]:
    """Check whether a restart would keep all changes."""
    problem = seen.status["agent"]["unsaved_problem"]
    fix = "free space on that file system or make it writable; the agent saves then"
    yield from check(not problem, problem or "changes are on disk", fix)


def wrong_now(seen: Seen) -> Iterator[Finding]:
    """Report the problems in the first lines of ``lbctl status``."""
    found = [*problems(seen.status), *host_problems(seen.status)]
    for text in found:
        yield broken(text, "lbctl status")
    if not found:
        states = seen.status["backends"]
        yield kept(
            f"{states['up']} of {plural(states['total'], 'backend')} are up, nothing is wrong"
        )


def as_written(seen: Seen) -> Iterator[Finding]:
    """Check whether the file matches the running configuration."""
    changes = seen.status["agent"]["changes_since_file"]
    path = seen.status["agent"]["config_file"]
    evidence = f"{plural(changes, 'change')} since {path}" if changes else f"as {path} says"
    fix = f"lbctl diff shows them; lbctl export > {path} keeps them"
    yield from check(not changes, evidence, fix)


def host_ready(seen: Seen) -> Iterator[Finding]:
    """Report the problems that the doctor finds."""
    if seen.host is None:
        yield unknown("this host could not be examined: sudo lbctl doctor")
        return
    bad = [one for one in seen.host if one["verdict"] == "problem"]
    for one in bad:
        yield broken(f"{one['check']}: {one['message']}", one["fix"] or "lbctl doctor")
    if not bad:
        yield kept(f"{plural(len(seen.host), 'check')} of lbctl doctor without a problem")


RULES = (
    Rule(
        "two-servers",
        Practice.REDUNDANCY,
        "Every service has two servers that are up.",
        "The next server that fails takes the service with it.",
        two_servers,
    ),
    Rule(
        "second-balancer",
        Practice.REDUNDANCY,
        "Another balancer takes over if this one dies.",
        "When this machine dies, every service is gone until it is back.",
        second_balancer,
    ),
    Rule(
        "flows-follow",
        Practice.REDUNDANCY,
        "The other balancer knows the open connections.",
        "When the VIPs move, running requests are cut off.",
        flows_follow,
    ),
    Rule(
        "balancers-agree",
        Practice.REDUNDANCY,
        "The balancers agree on all settings that must be equal.",
        "Two of them become master at the same time, or neither does.",
        balancers_agree,
    ),
    Rule(
        "saved",
        Practice.REDUNDANCY,
        "All changes are on disk.",
        "A restart of the agent forgets the changes.",
        saved,
    ),
    Rule(
        "nothing-wrong",
        Practice.CONFIGURATION,
        "Nothing is wrong now.",
        "Clients may already notice.",
        wrong_now,
    ),
    Rule(
        "as-written",
        Practice.CONFIGURATION,
        "The configuration file matches the running configuration.",
        "If this host is rebuilt from its file, the balancer differs.",
        as_written,
    ),
    Rule(
        "host",
        Practice.CONFIGURATION,
        "lbctl doctor finds no problem on this host.",
        "Such a problem breaks balancing, or the next start.",
        host_ready,
    ),
)
