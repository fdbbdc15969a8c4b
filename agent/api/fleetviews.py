"""Decides how the fleet is shown: the JSON bodies of /v1/fleet."""

from __future__ import annotations

from agent.api.times import age_s, rfc3339
from agent.fleet.overview import Overview
from agent.fleet.reports import Difference, Report
from agent.fleet.versions import Active, Documents, FleetVersion, outcomes
from agent.state.fleetview import FleetStatus

type Json = dict[str, object]


def membership(status: FleetStatus | None, at: float) -> Json | None:
    """Return how this balancer stands to its fleet; null: it belongs to none."""
    if status is None:
        return None
    return {
        "name": status.name,
        "node": status.node,
        "version": status.version,
        "since": rfc3339(status.since),
        "wanted_version": status.wanted,
        "stable_version": status.stable,
        "newest_version": status.newest,
        "trying": list(status.trying),
        "frozen": status.frozen,
        "refused_version": status.refused,
        "problem": status.problem,
        "store_away_s": None if status.away_since is None else age_s(status.away_since, at),
    }


def overview(found: Overview, at: float) -> Json:
    """Return the body of GET /v1/fleet."""
    reports = found.reports or {}
    return {
        "fleet": membership(found.status, at),
        "rollout": _rollout(found.active),
        "last_rollout": _ended(found.active),
        "balancers": [
            _balancer(report, found.active, report.node in found.drifted)
            for report in reports.values()
        ],
        "missing": [
            {"node": node, "last_seen": rfc3339(at)} for node, at in sorted(found.missing.items())
        ],
    }


def _rollout(active: Active | None) -> Json | None:
    if active is None or active.rollout is None:
        return None
    rollout = active.rollout
    return {
        "version": rollout.version,
        "nodes": list(rollout.nodes),
        "since": rfc3339(rollout.since),
        "bake_s": rollout.bake_s,
    }


def _ended(active: Active | None) -> Json | None:
    if active is None or active.ended is None:
        return None
    ended = active.ended
    return {
        "version": ended.version,
        "outcome": ended.outcome,
        "why": ended.why,
        "who": ended.who,
        "at": rfc3339(ended.at),
    }


def _balancer(report: Report, active: Active | None, is_drifted: bool) -> Json:
    wanted = 0 if active is None else active.of(report.node)
    work = report.work
    return {
        "node": report.node,
        "release": report.release,
        "role": report.role,
        "version": report.version,
        "since": rfc3339(report.since),
        "reported": rfc3339(report.at),
        "behind_by": max(wanted - report.version, 0),
        "refused_version": None if report.refused is None else report.refused[0],
        "refused_why": "" if report.refused is None else report.refused[1],
        "problem": report.problem,
        "frozen": report.frozen,
        "drift": is_drifted,
        "services_digest": report.services,
        "rings_digest": report.rings,
        "services_down": list(report.down),
        "last_minute": {
            "opened": work.opened,
            "established": work.established,
            "drops": work.drops,
            "answers": work.answers,
            "failed": work.failed,
        },
    }


def _entry(each: FleetVersion, state: str) -> Json:
    """Return one version."""
    return {
        "number": each.number,
        "base": each.base,
        "at": rfc3339(each.at),
        "node": each.node,
        "how": each.how,
        "who": each.who,
        "message": each.message,
        "changes": list(each.changes),
        "changes_count": each.changes_count,
        "state": state,
    }


def history(entries: tuple[FleetVersion, ...], active: Active | None) -> Json:
    """Return the body of GET /v1/fleet/history. ``entries`` are the newest, newest first."""
    states = {} if active is None else outcomes(entries, active)
    return {"versions": [_entry(each, states.get(each.number, "")) for each in entries]}


def version(
    each: FleetVersion,
    services: Documents,
    entries: tuple[FleetVersion, ...],
    active: Active | None,
) -> Json:
    """Return the body of GET /v1/fleet/versions/NUMBER.

    ``entries`` are all versions from the newest one down to this one.
    """
    state = "" if active is None else outcomes(entries, active).get(each.number, "")
    return _entry(each, state) | {"services": [dict(service) for service in services.values()]}


def compared(one: str, other: str, found: tuple[Difference, ...]) -> Json:
    """Return the body of GET /v1/fleet/compare."""
    return {
        "one": one,
        "other": other,
        "differences": [{"service": each.service, "what": each.what} for each in found],
    }
