"""Decides how the API shows blocks, lists, limits and threats: snapshots become JSON."""

from __future__ import annotations

from agent.api.times import age_s, rfc3339
from agent.state.alerts import Seen
from agent.state.blocks import Block, shown
from agent.state.guardview import AlertsView, LimitView, ListView, ThreatView, Verdicts
from agent.state.queries import TopPage
from agent.state.snapshot import Snapshot
from agent.state.threats import sentence

type Json = dict[str, object]

MAX_THREATS = 1000


def guard(snapshot: Snapshot) -> Json:
    """Return the body of GET /v1/guard."""
    view, at = snapshot.guard, snapshot.at
    return {
        "blocks": [_block(block, at) for block in sorted(view.blocks, key=lambda b: b.until)],
        "lists": [_list(each, at) for each in view.lists],
        "limits": [_limit(each) for each in view.limits],
        "threats": [_threat(each, at) for each in view.threats[:MAX_THREATS]],
        "threats_total": len(view.threats),
        "alerts": _alerts(view.alerts, at),
        "services": [
            {
                "name": each.service.name,
                "guard": each.service.guard.value,
                "allow": list(each.service.allow),
                "deny": list(each.service.deny),
                "detect": each.service.detect.value,
                "trusted": list(each.service.trusted),
            }
            for each in snapshot.services
        ],
        "blocked_packets_total": view.blocked_packets,
        "would_block_packets_total": view.would_block_packets,
        "not_allowed_packets_total": view.not_allowed_packets,
        "would_not_allow_packets_total": view.would_not_allow_packets,
        "threats_blocked_total": view.threats_blocked,
        "in_force": view.in_force,
        "nodes": view.nodes,
        "nodes_total": view.nodes_total,
        "problem": view.problem,
        "unsaved_problem": view.unsaved,
    }


def tested(found: Verdicts) -> Json:
    """Return the body of GET /v1/guard/test."""
    return {
        "address": str(found.address),
        "block": None if found.block is None else _named(found.block),
        "lists": list(found.lists),
        "services": [
            {"name": name, "verdict": verdict} for name, verdict in found.services.items()
        ],
    }


def top(page: TopPage) -> Json:
    """Return the body of GET /v1/guard/top."""
    return {
        "sources": [
            {
                "source": str(each.source),
                "flows": each.flows,
                "waiting_bytes": each.waiting_bytes,
            }
            for each in page.sources
        ],
        "sources_total": page.total,
    }


def _named(block: Block) -> Json:
    return {
        "prefix": shown(block.prefix),
        "why": block.why,
        "since": rfc3339(block.since),
        "until": rfc3339(block.until),
    }


def _block(block: Block, at: float) -> Json:
    return _named(block) | {"left_s": max(0.0, round(block.until - at, 1))}


def _limit(each: LimitView) -> Json:
    return {
        "service": each.service,
        "limit": each.limit,
        "at_most": each.most,
        "dropped_packets_total": each.dropped,
        "would_drop_packets_total": each.would_drop,
        "sources": each.sources,
    }


def _threat(each: ThreatView, at: float) -> Json:
    threat, found = each.threat, each.threat.evidence
    return {
        "service": threat.service,
        "source": shown(threat.source),
        "sign": found.sign.value,
        "value": round(found.value, 1),
        "usual": round(found.usual, 1),
        "others": found.others,
        "usual_itself": round(found.own, 1),
        "why": sentence(found),
        "since": rfc3339(each.since),
        "since_s": age_s(each.since, at),
        "action": each.action.value,
        "address_proven": each.proven,
    }


def _alerts(view: AlertsView, at: float) -> Json:
    return {
        "file": None if view.path is None else str(view.path),
        "problem": view.problem,
        "recent": [_seen(each, at) for each in view.recent],
        "counts": [
            {"severity": severity, "outcome": outcome.value, "alerts": number}
            for (severity, outcome), number in sorted(
                view.counts.items(), key=lambda each: (each[0][0], each[0][1].value)
            )
        ],
        "blocked_total": view.blocked,
        "unreadable_lines_total": view.unreadable,
        "skipped_bytes_total": view.skipped_bytes,
    }


def _seen(each: Seen, at: float) -> Json:
    return {
        "signature": each.signature,
        "text": each.text,
        "severity": each.severity,
        "outcome": each.outcome.value,
        "source": str(each.source),
        "server": each.server,
        "alerts": each.count,
        "last": rfc3339(each.last),
        "last_s": age_s(each.last, at),
    }


def _list(each: ListView, at: float) -> Json:
    return {
        "name": each.name,
        "prefixes": each.prefixes,
        "files": [str(path) for path in each.files],
        "read_s": None if each.read_at is None else age_s(each.read_at, at),
        "used_by": list(each.used_by),
        "dropped_packets_total": each.dropped,
        "would_drop_packets_total": each.would_drop,
        "problem": each.problem,
    }
