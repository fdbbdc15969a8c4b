"""Decides how the API shows failover: instances, the failover process, flow sync."""

from __future__ import annotations

from agent.api.times import age_s, rfc3339
from agent.failover.status import FailoverStatus, Problem, RouterStatus
from agent.failover.syncstatus import PeerSync
from agent.state.moves import Lacking
from agent.state.snapshot import FailoverView

type Json = dict[str, object]


def failover(view: FailoverView, at: float) -> Json:
    """Return the body of GET /v1/failover; ``at`` is when the view was taken."""
    process = view.process
    return {
        "configured": view.configured,
        "problem": view.problem,
        "process": _process(process, at) if process else None,
        "instances": [router(each, at) for each in process.routers] if process else [],
        "flow_sync": {
            "problem": view.sync_problem,
            "peers": [_peer(peer, at) for peer in view.sync],
            "strangers_total": dict(view.sync_strangers),
            "moves_lacking_flows_total": view.lacking.total,
            "last_move_lacking_flows": _lacking(view.lacking, at),
            "untold_total": view.sync_counts.get("untold", 0),
            "packets_total": {n: c for n, c in view.sync_counts.items() if n != "untold"},
        },
    }


def _lacking(lacking: Lacking, at: float) -> Json | None:
    return {"why": lacking.why, "age_s": age_s(lacking.at, at)} if lacking.total else None


def summary(view: FailoverView, at: float) -> Json:
    """Return the part of GET /v1/status about failover."""
    routers = view.process.routers if view.process else ()
    return {
        "configured": view.configured,
        "problem": view.problem or view.sync_problem,
        "instances": [
            {
                "name": each.name,
                "role": each.role.value,
                "since_s": age_s(each.since, at),
                "why": each.why,
                "master": each.master,
                "mode": each.mode.value,
                "problems": [problem.text for problem in each.problems],
            }
            for each in routers
        ],
        "flow_sync": [
            {
                "peer": str(peer.address),
                "name": peer.name,
                "state": peer.state.value,
                "why": peer.why,
                "since_s": age_s(peer.since, at),
                "lag_s": peer.lag_s,
            }
            for peer in view.sync
        ],
    }


def _process(status: FailoverStatus, at: float) -> Json:
    return {
        "pid": status.pid,
        "version": status.version,
        "uptime_s": age_s(status.started, at),
        "realtime": status.realtime,
        "memory_locked": status.memory_locked,
        "agent_seen_s": None if status.agent_seen is None else age_s(status.agent_seen, at),
        "config_problem": status.config_problem,
    }


def router(status: RouterStatus, at: float) -> Json:
    """Return one virtual router as JSON."""
    return {
        "name": status.name,
        "instance": status.instance,
        "method": status.method.value,
        "group": status.group,
        "interface": status.interface,
        "family": status.family or None,
        "vrid": status.vrid,
        "version": status.version,
        "role": status.role.value,
        "since": rfc3339(status.since),
        "since_s": age_s(status.since, at),
        "why": status.why,
        "mode": status.mode.value,
        "priority_effective": status.priority,
        "priority_configured": status.configured_priority,
        "priority_reasons": list(status.priority_reasons),
        "advert_interval_s": status.interval_s,
        "vips": list(status.vips),
        "unicast_peers": list(status.peers),
        "master": status.master,
        "master_priority": status.master_priority,
        "problems": [_problem(problem, at) for problem in status.problems],
        "transitions_total": dict(status.transitions),
        "adverts_sent_total": status.adverts_sent,
        "adverts_received_total": status.adverts_received,
        "adverts_discarded_total": dict(status.adverts_discarded),
        "announcements_total": status.announcements,
    }


def _problem(problem: Problem, at: float) -> Json:
    return {
        "kind": problem.kind,
        "text": problem.text,
        "since_s": age_s(problem.since, at),
        "last_s": age_s(problem.last, at),
        "count": problem.count,
    }


def _peer(peer: PeerSync, at: float) -> Json:
    return {
        "address": str(peer.address),
        "name": peer.name,
        "version": peer.version,
        "state": peer.state.value,
        "why": peer.why,
        "since_s": age_s(peer.since, at),
        "lag_s": None if peer.lag_s is None else round(peer.lag_s, 3),
        "behind_s": None if peer.behind_s is None else round(peer.behind_s, 3),
        "rtt_ms": None if peer.rtt_ms is None else round(peer.rtt_ms, 3),
        "flows_sent_total": peer.flows_sent,
        "flows_received_total": peer.flows_received,
        "flows_installed_total": peer.flows_installed,
        "flows_dropped_total": dict(peer.flows_dropped),
        "flows_gone_sent_total": peer.gone_sent,
        "flows_gone_received_total": peer.gone_received,
        "peer_installed_total": peer.peer_installed,
        "peer_dropped_total": dict(peer.peer_dropped),
        "bytes_sent_total": peer.bytes_sent,
        "bytes_received_total": peer.bytes_received,
        "full_resyncs_sent_total": peer.full_sent,
        "full_resyncs_received_total": peer.full_received,
        "connections_total": peer.connections,
        "refused_total": dict(peer.refused),
        "last_error": peer.last_error,
    }
