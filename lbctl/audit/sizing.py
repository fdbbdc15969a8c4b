"""Rules of resources and scalability. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.humanise import exact, percent, plural
from lbctl.audit.rules import (
    Finding,
    Json,
    Practice,
    Rule,
    Seen,
    broken,
    check,
    kept,
    named,
    not_applicable,
    of_host,
)

FULL = 0.8  # of a table or of ports; above this, the room is too small for a peak
_KNOWN_ANSWERS = 1000  # after this many the speed of a backend should be known
_KNOWN_FROM = 0.5  # confidence
_UNEVEN = 0.1  # difference of shares, as in the alert SteelyardUnevenShare
_ENOUGH_FLOWS_PER_S = 20.0


def flow_table(seen: Seen) -> Iterator[Finding]:
    """Check how full the flow table is."""
    table = seen.status["dataplane"]["flow_table"]
    evidence = f"{percent(table['used_share'])}% of {exact(table['slots'])} slots are in use"
    fix = f"set tables.flows: {2 * table['slots']} in agent.yaml, then systemctl restart lb-agent"
    yield from check(table["used_share"] < FULL, evidence, fix)


def recorded(seen: Seen) -> Iterator[Finding]:
    """Check whether flows found no slot in the table."""
    lost = {s["name"]: s["flows_not_recorded_total"] + s["drops_total"].get("no-room", 0)
            for s in seen.services}  # fmt: skip
    wrong = [name for name, number in lost.items() if number]
    if wrong:
        number = sum(lost.values())
        yield broken(
            f"{named(wrong)}: {plural(number, 'flow')} found no slot since the service was added",
            "set tables.flows higher in agent.yaml, then systemctl restart lb-agent",
        )
    else:
        yield kept("every flow found a slot")


def ports(seen: Seen) -> Iterator[Finding]:
    """Check the source ports of fullnat towards the server with the fewest left."""
    found = seen.status["dataplane"]["nat_ports"]
    if not found:
        yield not_applicable("no service is fullnat, or none has a flow")
        return
    fullest = max(found, key=lambda one: one["used_ports"] / one["ports"])
    evidence = (
        f"{exact(fullest['used_ports'])} of {exact(fullest['ports'])} ports of {fullest['source']} "
        f"towards {fullest['server']} are in use, the most of all servers"
    )
    fix = "add a source address: nat.sources_ipv4 or sources_ipv6 in agent.yaml, lbctl reload"
    yield from check(fullest["used_ports"] < FULL * fullest["ports"], evidence, fix)


def speed(seen: Seen) -> Iterator[Finding]:
    """Check whether the speed of servers that gave enough answers is known."""
    learning = [s for s in seen.services if s["learns_speed"]]
    asked = [b for s in learning for b in s["backends"] if b["answers_total"] >= _KNOWN_ANSWERS]
    if not asked:
        yield not_applicable(
            f"no backend of a service that learns speed has given {exact(_KNOWN_ANSWERS)} answers"
        )
        return
    unsure = [f"{b['service']}/{b['name']}" for b in asked if not _knows(b)]
    if unsure:
        yield broken(
            f"{named(unsure)}: answered {exact(_KNOWN_ANSWERS)} times, and the speed is not known",
            f"lbctl backend show {unsure[0]} says what was learned; docs/learning.md says what is "
            "needed",
        )
    else:
        yield kept(f"the speed of {len(asked)} of {plural(len(asked), 'busy backend')} is known")


def _knows(backend: Json) -> bool:
    return bool(backend["learned"]) and backend["learned"]["confidence"] >= _KNOWN_FROM


def table_rows(seen: Seen) -> Iterator[Finding]:
    """Check the room for more services and backends."""
    tables = seen.tables
    services, backends = len(seen.services), len(seen.backends)
    evidence = (
        f"{exact(services)} of {exact(tables.services)} services, "
        f"{exact(backends)} of {exact(tables.backends)} backends"
    )
    room = services <= FULL * tables.services and backends <= FULL * tables.backends
    fix = "raise tables.services or tables.backends in agent.yaml, then systemctl restart lb-agent"
    yield from check(room, evidence, fix)


def shares(seen: Seen) -> Iterator[Finding]:
    """Check whether servers get the shares that their weights say, given enough new flows."""
    busy = [s for s in seen.services if s["rates"]["new_flows_per_s"] >= _ENOUGH_FLOWS_PER_S]
    if not busy:
        text = f"no service gets {_ENOUGH_FLOWS_PER_S:.0f} new flows a second: chance decides"
        yield not_applicable(text)
        return
    far = [
        f"{b['service']}/{b['name']}"
        for s in busy
        for b in s["backends"]
        if b["share_actual"] is not None and abs(b["share_actual"] - b["share_expected"]) > _UNEVEN
    ]
    if far:
        yield broken(
            f"{named(far)}: the share of new flows is more than 10 points from the expected one",
            f"lbctl backend list {far[0].partition('/')[0]} shows both, and the reasons",
        )
    else:
        yield kept(f"within 10 points of the weights in {plural(len(busy), 'busy service')}")


def cores(seen: Seen) -> Iterator[Finding]:
    """Check whether all processors receive packets."""
    yield from of_host(seen, ("queues",), "there are as many receive queues as are useful")


RULES = (
    Rule(
        "flow-table",
        Practice.RESOURCES,
        "The flow table has room for a peak.",
        "In a full table new flows are not recorded, and move when backends change.",
        flow_table,
    ),
    Rule(
        "flows-recorded",
        Practice.RESOURCES,
        "Every flow has found a slot in the flow table.",
        "Flows without a slot follow the ring alone, and in nat and fullnat they are dropped.",
        recorded,
    ),
    Rule(
        "ports",
        Practice.RESOURCES,
        "fullnat has source ports left towards every server.",
        "Without a free port, new connections to that server are dropped.",
        ports,
    ),
    Rule(
        "server-speed",
        Practice.RESOURCES,
        "The speed of every busy server is known.",
        "A slow GPU gets as much work as a fast one, and its queue grows.",
        speed,
    ),
    Rule(
        "table-rows",
        Practice.SCALABILITY,
        "The tables have room for more services and backends.",
        "Larger tables need a restart of the agent, just when you want to add servers.",
        table_rows,
    ),
    Rule(
        "shares",
        Practice.SCALABILITY,
        "Servers get the share of new flows that their weights say.",
        "An added server takes less load than it was bought for.",
        shares,
    ),
    Rule(
        "queues",
        Practice.SCALABILITY,
        "Packets are spread over the processors.",
        "One processor does all the work, and drops packets when it is busy.",
        cores,
    ),
)
