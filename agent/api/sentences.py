"""Decides the sentences that ``lbctl`` and the status page show for troubles and events.

All functions are pure, and take the API's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.humanise import age, count, duration, exact, plural

type Json = Mapping[str, Any]

SHOWN_TROUBLES = 10
UNSYNCED_GRACE_S = 5.0  # seconds without flow sync before it is a problem
_CLIENTS = {
    "drop": "its clients' packets are dropped",
    "reset": "its clients are answered with a reset",
    "any": "no backend can be reached at all",
    "hold": "its clients wait for the first one",
}


def problems(status: Json) -> list[str]:
    """Return what is wrong, the worst for clients first. ``status`` is the answer of GET
    /v1/status.
    """
    agent, plane = status["agent"], status["dataplane"]
    found = [
        *(_unserved(each) for each in status.get("unserved", ())),
        *(_unconnected(each) for each in status.get("unconnected", ())),
        *(_late(each) for each in status.get("late", ())),
        *(_trouble(each) for each in status.get("troubles", ())),
    ]
    more = len(found) - SHOWN_TROUBLES
    if more > 0:
        found = [*found[:SHOWN_TROUBLES], f"and {more} more: lbctl server list --sort state"]
    found += [agent[key] for key in ("config_problem", "reconcile_problem") if agent[key]]
    if problem := agent.get("unsaved_problem"):
        found.append(f"changes are in memory only, and a restart forgets them: {problem}")
    if problem := agent.get("audit_problem"):
        found.append(f"changes are not recorded in the audit log: {problem}")
    if (fleet := status.get("fleet")) and fleet["problem"]:
        found.append(fleet["problem"])
    if tier := status.get("tier"):
        found += [f"the tier of this host: {problem}" for problem in tier["problems"]]
    found += agent.get("discovery_problems", ())
    found += [f"fullnat: {problem}" for problem in plane["nat_problems"]]
    found += plane.get("vip_problems", ())
    found += [text for each in status["failover"].get("flow_sync", ()) if (text := _apart(each))]
    return found


def host_problems(status: Json) -> list[str]:
    """Return what is wrong with the balancer itself: its interfaces, and its part in failover."""
    plane, failover = status["dataplane"], status["failover"]
    where = ", ".join((plane["interface"], *plane["backend_interfaces"]))
    found = [] if plane["attached"] else [f"the program is NOT attached to {where}"]
    found += plane.get("link_problems", ())
    if failover["problem"]:
        found.append(f"failover: {failover['problem']}")
    for router in failover["instances"]:
        found += [f"failover {router['name']}: {problem}" for problem in router["problems"]]
    return found


def membership(fleet: Json, since: str) -> str:
    """Return on one line what a balancer runs of its fleet, and what it should run.

    ``fleet`` is the object in GET /v1/status, ``since`` its time as readers want to see it.
    """
    version, wanted, trying = fleet["version"], fleet["wanted_version"], fleet["trying"]
    tries = fleet["node"] in trying
    which = ""
    if version == fleet["stable_version"]:
        which = ", the stable one,"
    elif tries and version == wanted:
        which = ", which is being tried,"
    runs = f"has run version {version}{which} since {since}"
    parts = [runs if version else "runs the services of its own file"]
    if wanted not in (None, version):
        parts.append(f"version {wanted} is wanted")
    if trying and not tries:
        parts.append(f"version {fleet['newest_version']} is being tried on {', '.join(trying)}")
    if fleet["store_away_s"] is not None:
        parts.append(f"the store has not answered for {age(fleet['store_away_s'])}")
    elif wanted is None:
        parts.append("the store has no version of this fleet")
    if fleet["frozen"] is not None:
        parts.append(f"frozen: {fleet['frozen']}")
    return f"{fleet['name']}: {fleet['node']} {'; '.join(parts)}"


def tier_load(load: Json) -> str:
    """Return on one line what HAProxy does. ``load`` is part of the tier in GET /v1/status."""
    rates = [f"{count(load['requests_per_s'])} requests/s"]
    rates += [
        f"{count(load[f'{what}_per_s'])} {what}/s"
        for what in ("refused", "failed")
        if load[f"{what}_per_s"]
    ]
    queued = f", {exact(load['queued'])} queued" if load["queued"] else ""
    connections = plural(load["connections"], "connection")
    return f"{connections}, {', '.join(rates)}, {exact(load['current'])} at engines{queued}"


def _apart(peer: Json) -> str:
    """Return a sentence about a peer without flow sync, or an empty text if that is new or not
    so.
    """
    if peer["state"] == "connected" or peer.get("since_s", 0) < UNSYNCED_GRACE_S:
        return ""
    who = f"{peer['name']} ({peer['peer']})" if peer["name"] else peer["peer"]
    return (
        f"no flows are exchanged with {who} for {age(peer['since_s'])}, so connections break if the"
        f" VIPs move: {peer['why']}"
    )


def _unserved(each: Json) -> str:
    clients = _CLIENTS[each["clients"]]
    lasts = age(each["since_s"])
    return f"service {each['service']} serves nobody for {lasts}: {each['reason']}; {clients}"


def _unconnected(each: Json) -> str:
    name, up = each["service"], plural(each["backends_up"], "backend")
    return (
        f"nobody gets a connection to {name}: {exact(each['begun'])} were begun in the last half "
        f"minute, and no handshake was completed, with {up} up; lbctl trace service {name}"
    )


def _late(each: Json) -> str:
    name, share = each["service"], each["late_share_last_minute"]
    return (
        f"answers of {name} begin too late: {share:.1%} of those of the last minute took longer"
        f" than {duration(each['within_s'])}, and {100 - each['percentile']}% may;"
        f" lbctl service show {name}"
    )


def _trouble(each: Json) -> str:
    """Return a sentence: which servers are in which state, in which services, since when, and
    why.
    """
    servers = each["servers"]
    if each["servers_total"] == 1:
        who = f"{servers[0]['name']} ({', '.join(servers[0]['addresses'])}) is"
    else:
        named = ", ".join(server["name"] for server in servers[:3])
        more = ", …" if each["servers_total"] > 3 else ""
        who = f"{each['servers_total']} servers ({named}{more}) are"
    where = ", ".join(each["services"][:3])
    if each["services_total"] > 3:
        where = plural(each["services_total"], "service")
    only = f", not in {plural(each['other_backends'], 'other')}" if each["other_backends"] else ""
    lasts = age(each["since_s"])
    return f"{who} {each['state']} in {where}{only} for {lasts}: {each['reason']}"


def event_text(event: Json) -> str:
    """Return an event of GET /v1/events on one line: what happened, why, its effect, and all other
    fields.
    """
    fields = dict(event["fields"])
    for name in ("service", "backend"):
        fields.pop(name, None)
    head = [] if event["event"] in ("backend", "service", "change") else [event["event"]]
    if change := fields.pop("change", None):
        head.append(_without_name(change, event))
    if "old" in fields and "new" in fields:
        head.append(f"{fields.pop('old')} → {fields.pop('new')}")
    text = " ".join(head)
    if why := fields.pop("why", None) or fields.pop("problem", None):
        text += f": {why}"
    if effect := fields.pop("effect", None):
        text += f"; {effect}"
    by, message = fields.pop("by", None), fields.pop("message", None)
    rest = [f"{name}={value}" for name, value in fields.items()]
    text += f" ({', '.join(rest)})" if rest else ""
    if by:
        text += f", by {by}"
    return f"{text}: “{message}”" if message else text


def _without_name(change: str, event: Json) -> str:
    """Return a change without the name of its service or backend, which the line begins with."""
    about = f" backend {event['backend']}" if event["backend"] else f" service {event['service']}"
    return change.replace(about, "", 1)
