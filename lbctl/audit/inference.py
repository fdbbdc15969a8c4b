"""Rules of network latency, and rules that are specific to AI. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.humanise import duration, percent, plural
from lbctl.audit.rules import (
    Finding,
    Json,
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
)

_HANDSHAKES = 20  # of a backend in the last minute; with fewer its distance is unknown
_FAR_TIMES, _FAR_MS = 5.0, 5.0
_CACHES = 0.05  # below this share of tokens from the cache there are no conversations


def objectives_kept(seen: Seen) -> Iterator[Finding]:
    """Check whether services meet their objectives."""
    promising = [one for one in seen.services if one["slo"]]
    late = [
        f"{one['name']}: {slo['late_share_last_minute']:.1%} of the last minute's answers took"
        f" longer than {duration(slo['within_s'])}"
        for one in promising
        for slo in one["slo"]
        if slo["is_missed"]
    ]
    if not promising:
        yield not_applicable("no service has an objective")
        return
    for text in late:
        yield broken(text, "lbctl backend list shows which backends are slow or full")
    if not late:
        yield kept(f"kept by {plural(len(promising), 'service')}")


def hook(seen: Seen) -> Iterator[Finding]:
    """Check how early packets are seen."""
    plane = seen.status["dataplane"]
    evidence = f"hook {plane['hook']} on {plane['interface']} ({plane['hook_reason']})"
    fix = "set hook: auto in agent.yaml; lbctl doctor says what the driver can"
    yield from check(plane["attached"] and plane["hook"] != "generic", evidence, fix)


def packet_size(seen: Seen) -> Iterator[Finding]:
    """Check whether full packets fit through the interfaces."""
    good = "full packets fit, including the headers of tunnels"
    yield from of_host(seen, ("mtu", "tunnel mtu"), good)


def way(seen: Seen) -> Iterator[Finding]:
    """Check whether a backend is much farther away than the others of its service."""
    measured, far = 0, []
    for service in seen.services:
        times = {
            f"{service['name']}/{b['name']}": b["handshake"]["last_minute"]["p50_ms"]
            for b in service["backends"]
            if b["handshake"] and b["handshake"]["last_minute"]["count"] >= _HANDSHAKES
        }
        if len(times) < 2:
            continue
        measured += len(times)
        nearest = min(times.values())
        far += [n for n, ms in times.items() if ms > max(_FAR_TIMES * nearest, nearest + _FAR_MS)]
    if not measured:
        yield not_applicable(f"no two backends had {_HANDSHAKES} handshakes in the last minute")
        return
    evidence = (
        f"{named(far)}: handshakes take {_FAR_TIMES:.0f} times as long as at the nearest"
        if far
        else f"handshakes of {plural(measured, 'backend')} take about as long in each service"
    )
    fix = "zones and priorities keep clients near (docs/locality.md), or rtt_per_connection"
    yield from check(not far, evidence, fix)


def counts_work(seen: Seen) -> Iterator[Finding]:
    """Check whether connections go where the least work waits."""
    yield from each(
        seen.tcp,
        lambda one: one["scheduler"] == "least-load" and one["counts_waiting_bytes"],
        none="there is no tcp service",
        good="{count} tcp services balance by the request bytes that wait at each server",
        bad="requests are placed regardless of the work that waits",
        fix="lbctl service set {name} --scheduler least-load --count-waiting",
    )


def learns(seen: Seen) -> Iterator[Finding]:
    """Check whether weights follow the speed of the GPUs."""
    yield from each(
        [s for s in seen.tcp if s["scheduler"] == "least-load"],
        lambda one: one["learns_speed"],
        none="no tcp service is least-load",
        good="{count} services learn how fast their servers are",
        bad="weights stay as configured when a GPU throttles",
        fix="learn_speed: true for {name} in agent.yaml (it is the default), lbctl reload",
    )


def first_token(seen: Seen) -> Iterator[Finding]:
    """Check whether times to the first byte are those of first tokens."""
    found = [s for s in seen.tcp if s["first_byte_is"] and any(
        b["answers_total"] for b in s["backends"]
    )]  # fmt: skip
    yield from each(
        found,
        lambda one: one["first_byte_is"] == "token",
        none="no service has given an answer yet",
        good="{count} services know the first token of an answer",
        bad="heads of answers cannot be told from first tokens, so speed is not learned from them",
        fix="docs/prompt.md says when heads are learned; in nat and fullnat plain HTTP is read "
        "(lbctl service show {name})",
    )


def ejects(seen: Seen) -> Iterator[Finding]:
    """Check whether a server that answers with errors at once would draw all requests."""
    yield from each(
        seen.tcp,
        lambda one: one["outlier"] is not None,
        none="there is no tcp service",
        good="{count} tcp services eject backends at which clients fail",
        bad="a backend that answers with errors at once looks idle, and gets more requests",
        fix="lbctl service set {name} --outlier-eject 30s",
    )


def engine_checks(seen: Seen) -> Iterator[Finding]:
    """Check whether the engines' reports arrive."""
    asked = [
        backend
        for service in seen.services
        if service["telemetry"] != "none" or service["node_telemetry"] != "none"
        for backend in service["backends"]
    ]
    if not asked:
        yield not_applicable("no engine and no host is asked for reports")
        return
    stale = [_name(b) for b in asked if not b["reported"] or _problem(b)]
    if stale:
        yield broken(
            f"{named(stale)}: {_problem_of(asked, stale[0])}", f"lbctl backend show {stale[0]}"
        )
    else:
        yield kept(f"{plural(len(asked), 'backend')} report")


def caches(seen: Seen) -> Iterator[Finding]:
    """Check whether conversations come back to the engine that caches them."""
    caching = [
        (service, backend["reported"]["cached_ratio"])
        for service in seen.tcp
        for backend in service["backends"]
        if backend["reported"] and (backend["reported"]["cached_ratio"] or 0.0) >= _CACHES
    ]
    if not caching:
        yield not_applicable("no engine reports prompt tokens from its prefix cache")
        return
    lost = list(dict.fromkeys(s["name"] for s, _ in caching if s["affinity"] is None))
    best = max(share for _, share in caching)
    if lost:
        yield broken(
            f"{named(lost)}: engines take up to {percent(best)}% of prompts from their caches, and"
            " clients are not sent back to them",
            f"lbctl service set {lost[0]} --affinity source (not behind a gateway)",
        )
    else:
        yield kept(f"up to {percent(best)}% of prompt tokens come from caches; clients come home")


def gpus(seen: Seen) -> Iterator[Finding]:
    """Check whether GPUs are lost, failing or throttled."""
    reported = [(b, gpu) for b in seen.backends if b["reported"] for gpu in b["reported"]["gpus"]]
    if not reported:
        yield not_applicable("no host reports its GPUs")
        return
    failing = [f"{_name(b)} GPU {gpu['gpu']}" for b, gpu in reported if gpu["lost"] or gpu["xid"]]
    slow = [f"{_name(b)} GPU {gpu['gpu']}" for b, gpu in reported if gpu["throttled_by"]]
    wrong = list(dict.fromkeys((*failing, *slow)))
    if wrong:
        words = "lost or failing" if failing else "throttled"
        yield broken(f"{named(wrong)}: {words}", f"lbctl backend show {wrong[0].partition(' ')[0]}")
    else:
        yield kept(f"{plural(len(reported), 'GPU')} without a problem")


def _name(backend: Json) -> str:
    return f"{backend['service']}/{backend['name']}"


def _problem(backend: Json) -> str:
    """Return why there is no fresh report; empty if there is one."""
    report = backend["reported"]
    if report["source"] != "none" and not report["fresh"]:
        return str(report["problem"] or "no fresh report")
    return str(report["gpus_problem"] or "") if report["gpus_source"] != "none" else ""


def _problem_of(asked: list[Json], name: str) -> str:
    found = next(b for b in asked if _name(b) == name)
    return _problem(found) if found["reported"] else "no report"


RULES = (
    Rule(
        "objectives-kept",
        Practice.LATENCY,
        "Answers begin as soon as promised.",
        "Clients wait longer than you promised.",
        objectives_kept,
    ),
    Rule(
        "hook",
        Practice.LATENCY,
        "Packets are seen early, in the driver or at tc.",
        "In generic XDP the kernel has already copied each packet.",
        hook,
    ),
    Rule(
        "packet-size",
        Practice.LATENCY,
        "Full packets fit through the interfaces.",
        "Large requests stall, or are cut into fragments.",
        packet_size,
    ),
    Rule(
        "distance",
        Practice.LATENCY,
        "No server is much farther away than the others of its service.",
        "Some clients pay for the distance with each round trip.",
        way,
    ),
    Rule(
        "counts-work",
        Practice.AI,
        "Requests go where the least work waits.",
        "A long prompt and a short one count the same, and queues grow behind the long ones.",
        counts_work,
    ),
    Rule(
        "learns-speed",
        Practice.AI,
        "Weights follow how fast the GPUs are.",
        "A GPU that throttles keeps its share, and its clients wait.",
        learns,
    ),
    Rule(
        "first-token",
        Practice.AI,
        "The time of an answer is that of its first token.",
        "A server that sends the head early looks fast, however long its tokens take.",
        first_token,
    ),
    Rule(
        "errors-eject",
        Practice.AI,
        "A server that fails its clients is ejected.",
        "An engine that answers 503 at once looks idle and draws most of the requests.",
        ejects,
    ),
    Rule(
        "reports",
        Practice.AI,
        "All engines and hosts that are asked for reports give them.",
        "Queues, caches and failing GPUs go unnoticed.",
        engine_checks,
    ),
    Rule(
        "prefix-caches",
        Practice.AI,
        "Conversations come back to the engine that has their prefix cached.",
        "Each turn of a conversation recomputes all former turns.",
        caches,
    ),
    Rule(
        "gpus",
        Practice.AI,
        "No GPU is throttled or failing.",
        "Its server is slow, or returns errors.",
        gpus,
    ),
)
