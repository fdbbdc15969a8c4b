"""Rules of security, monitoring and logging. Pure."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Iterator

from agent.humanise import age, plural
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
    of_host,
    unknown,
)
from lbctl.environment import DEFAULT_SOCKET

_SCRAPED_WITHIN_S = 300.0
_AUTHENTICATED = ("ah", "hmac")  # a password can be read in any advert
_BY_VIP = ("dsr", "ipip", "gue")


def syn_protection(seen: Seen) -> Iterator[Finding]:
    """Check whether a SYN flood would reach the servers."""
    yield from each(
        seen.tcp,
        lambda one: one["syn_protection"] != "off",
        none="there is no tcp service",
        good="{count} tcp services challenge clients in a flood",
        bad="syn_protection is off",
        fix="lbctl service set {name} --syn-protection auto",
    )


def limits(seen: Seen) -> Iterator[Finding]:
    """Check whether one client could take all resources."""
    yield from each(
        seen.services,
        lambda one: bool(one["allow"]) or any(most is not None for most in one["limits"].values()),
        none="there is no service",
        good="{count} services have limits, or a list of allowed sources",
        bad="no limit for a source, and no list of allowed sources",
        fix="lbctl service set {name} --limit new_flows_per_source=50/s",
    )


def guard(seen: Seen) -> Iterator[Finding]:
    """Check whether blocks and lists are in force."""
    status = seen.guard
    problem = status["problem"] or status["unsaved_problem"]
    broken_lists = [one["name"] for one in status["lists"] if one.get("problem")]
    observed = [s["name"] for s in seen.services if s["guard"] != "enforce"]
    if problem or not status["in_force"]:
        yield broken(problem or "blocks and lists are not in force", "lbctl guard status")
    elif broken_lists:
        yield broken(f"{named(broken_lists)} cannot be read", "lbctl guard status names the line")
    elif observed:
        yield broken(
            f"{named(observed)}: the guard only counts, and lets packets pass",
            f"lbctl service set {observed[0]} --guard enforce",
        )
    else:
        evidence = (
            f"{plural(len(status['blocks']), 'block')}, {plural(len(status['lists']), 'list')}"
        )
        yield kept(f"in force: {evidence}")


def api(seen: Seen) -> Iterator[Finding]:
    """Check who can change the balancer."""
    if seen.socket_mode is None:
        yield unknown("the API's socket could not be examined")
        return
    mode = stat.S_IMODE(seen.socket_mode)
    evidence = f"the API's socket has mode {mode:04o}"
    others = mode & stat.S_IRWXO
    yield from check(
        not others, evidence, f"chmod o-rwx {seen.config.get('socket', DEFAULT_SOCKET)}"
    )


def commands(seen: Seen) -> Iterator[Finding]:
    """Check whether commands of checks and failover run as root."""
    found = [s["name"] for s in seen.services if s["health_check"]["type"] == "exec"]
    instances = seen.config.get("failover", {}).get("instances", ())
    found += [one["name"] for one in instances if one.get("track", {}).get("scripts")]
    user = seen.config.get("script_user")
    if not found:
        yield not_applicable("no check and no virtual router runs a command")
        return
    yield from check(
        user not in (None, "root"),
        f"commands of {named(found)} run as {user or 'the user of the agent, usually root'}",
        "script_user: steelyard-script in agent.yaml, for a user that owns nothing",
    )


def adverts(seen: Seen) -> Iterator[Finding]:
    """Check whether a host on the segment could take the VIPs."""
    instances = seen.config.get("failover", {}).get("instances", ())
    routers = {
        one["name"]: one.get("authentication", "none")
        for one in instances
        if one.get("method", "vrrp") == "vrrp"
    }
    if not routers:
        yield not_applicable("no virtual router sends adverts")
        return
    weak = [name for name, kind in routers.items() if kind not in _AUTHENTICATED]
    if weak:
        yield broken(
            f"{named(weak)}: anybody on the segment can forge adverts",
            "authentication: hmac and failover.key_file in agent.yaml, on all balancers",
        )
    else:
        yield kept(f"adverts of {named([*routers])} are authenticated")


def metrics_listen(seen: Seen) -> Iterator[Finding]:
    """Check who can read metrics."""
    where = seen.status["metrics"]["listen"]
    if where is None:
        yield not_applicable("metrics are only on the API's socket")
        return
    address = ipaddress.ip_address(where.rpartition(":")[0].strip("[]"))
    open_to_all = address.is_unspecified or address.is_global
    fix = "metrics: ADDRESS:9117 in agent.yaml, with an address of the management network"
    yield from check(not open_to_all, f"metrics listen on {where}", fix)


def checked(seen: Seen) -> Iterator[Finding]:
    """Check whether dead servers would be noticed."""
    yield from each(
        seen.services,
        lambda one: one["health_check"]["type"] != "none",
        none="there is no service",
        good="{count} services check their backends",
        bad="backends are not checked",
        fix="lbctl service set {name} --health http --health-path /health",
    )


def checks_answer(seen: Seen) -> Iterator[Finding]:
    """Check whether health checks ask the program, and not only the kernel of its host."""
    yield from each(
        seen.tcp,
        lambda one: one["health_check"]["type"] != "tcp" or "expect" in one["health_check"],
        none="there is no tcp service",
        good="{count} tcp services ask more than whether a connection opens",
        bad="the check only opens a connection, which works even if the program hangs",
        fix="lbctl service set {name} --health http --health-path /health, or completion",
    )


def checks_go_along(seen: Seen) -> Iterator[Finding]:
    """Check whether health checks take the path of clients' packets."""
    yield from each(
        [s for s in seen.tcp if s["forward"] in _BY_VIP and s["health_check"]["type"] != "none"],
        lambda one: one["health_check"]["via"] == "vip",
        none="no tcp service is dsr, ipip or gue",
        good="{count} services check by the VIP, on the path of clients' packets",
        bad="checks go to the server's own address",
        fix="lbctl service set {name} --health-via vip",
    )


def objectives(seen: Seen) -> Iterator[Finding]:
    """Check whether services have an objective."""
    yield from each(
        [s for s in seen.tcp if s["counts_waiting_bytes"]],
        lambda one: bool(one["slo"]),
        none="no service counts when answers begin",
        good="{count} services have an objective for the first byte",
        bad="no objective says how soon answers should begin",
        fix="lbctl service set {name} --slo-first-byte-p95 2s",
    )


def scraped(seen: Seen) -> Iterator[Finding]:
    """Check whether Prometheus reads the metrics."""
    told = seen.status["metrics"]
    read_s = told["last_read_s"]
    if read_s is None:
        evidence = "nobody has read the metrics since the agent started"
    else:
        evidence = f"metrics were read {age(read_s)} ago"
    where = told["listen"] or "the API's socket"
    fix = f"let Prometheus scrape {where} and load deploy/prometheus/steelyard.rules.yml"
    yield from check(read_s is not None and read_s <= _SCRAPED_WITHIN_S, evidence, fix)


def certificates(seen: Seen) -> Iterator[Finding]:
    """Check whether certificates are renewed in time: the tier's, the API's, the engines'."""
    yield from of_host(seen, ("certificate",), "no certificate ends soon")


RULES = (
    Rule(
        "syn-protection",
        Practice.SECURITY,
        "In a SYN flood, clients have to prove that they exist.",
        "A flood of forged SYNs reaches the servers, and fills their backlogs.",
        syn_protection,
    ),
    Rule(
        "limits",
        Practice.SECURITY,
        "Every service limits what one source may use.",
        "One client takes all connections, or all of the GPUs' time.",
        limits,
    ),
    Rule(
        "guard",
        Practice.SECURITY,
        "Blocks and lists are in force.",
        "Blocked sources are served.",
        guard,
    ),
    Rule(
        "api",
        Practice.SECURITY,
        "Only root and the group of the socket may change the balancer.",
        "Every user of this host can redirect your clients.",
        api,
    ),
    Rule(
        "commands",
        Practice.SECURITY,
        "Commands of checks and of failover do not run as root.",
        "Whoever can change such a command can do everything on this host.",
        commands,
    ),
    Rule(
        "adverts",
        Practice.SECURITY,
        "Adverts of virtual routers are authenticated.",
        "A host on the segment can take the VIPs, and with them your clients.",
        adverts,
    ),
    Rule(
        "certificates",
        Practice.SECURITY,
        "No certificate has ended or ends soon.",
        "From one second to the next, clients, operators or checks are refused.",
        certificates,
    ),
    Rule(
        "metrics-address",
        Practice.SECURITY,
        "Metrics do not listen on public addresses.",
        "Everybody can read which servers exist, and how busy they are.",
        metrics_listen,
    ),
    Rule(
        "checked",
        Practice.MONITORING,
        "Every service checks its backends.",
        "A dead server keeps getting its share of the clients.",
        checked,
    ),
    Rule(
        "checks-ask",
        Practice.MONITORING,
        "Health checks ask the program, instead of only opening a connection.",
        "An engine that hangs stays up, because the kernel answers for it.",
        checks_answer,
    ),
    Rule(
        "checks-by-vip",
        Practice.MONITORING,
        "Health checks take the path of clients' packets.",
        "A server without the VIP or the tunnel device counts as up, and its clients wait in vain.",
        checks_go_along,
    ),
    Rule(
        "objectives",
        Practice.MONITORING,
        "Every service has an objective for its first byte.",
        "Nobody notices when answers become slow.",
        objectives,
    ),
    Rule(
        "scraped",
        Practice.MONITORING,
        "Somebody reads the metrics.",
        "No alert is sent, whatever happens.",
        scraped,
    ),
)
