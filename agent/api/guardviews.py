"""Decides how the API shows blocks, lists and limits: snapshots become JSON."""

from __future__ import annotations

from agent.api.times import age_s, rfc3339
from agent.state.blocks import Block, shown
from agent.state.guardview import LimitView, ListView, Verdicts
from agent.state.queries import TopPage
from agent.state.snapshot import Snapshot

type Json = dict[str, object]


def guard(snapshot: Snapshot) -> Json:
    """Return the body of GET /v1/guard."""
    view, at = snapshot.guard, snapshot.at
    return {
        "blocks": [_block(block, at) for block in sorted(view.blocks, key=lambda b: b.until)],
        "lists": [_list(each, at) for each in view.lists],
        "limits": [_limit(each) for each in view.limits],
        "services": [
            {
                "name": each.service.name,
                "guard": each.service.guard.value,
                "allow": list(each.service.allow),
                "deny": list(each.service.deny),
            }
            for each in snapshot.services
        ],
        "blocked_packets_total": view.blocked_packets,
        "would_block_packets_total": view.would_block_packets,
        "not_allowed_packets_total": view.not_allowed_packets,
        "would_not_allow_packets_total": view.would_not_allow_packets,
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
