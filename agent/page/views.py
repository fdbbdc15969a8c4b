"""Decides what the status page gets: one answer with everything that it shows without a click.

All functions are pure.
"""

from __future__ import annotations

from agent.api import failoverviews, views
from agent.api.sentences import event_text, host_problems, problems
from agent.api.times import rfc3339
from agent.state.causes import Troubles
from agent.state.journal import Entry, Tally
from agent.state.matrix import Matrix
from agent.state.snapshot import Page, Snapshot

type Json = dict[str, object]


def overview(
    snapshot: Snapshot,
    now: Troubles,
    recent: Tally,
    services: Page,
    servers: Matrix,
    events: tuple[Entry, ...],
) -> Json:
    """Return the body of GET /v1/page."""
    status = views.status(snapshot, now, recent)
    return {
        "at": rfc3339(snapshot.at),
        "problems": [*host_problems(status), *problems(status)],
        "status": status,
        "services": views.page("services", services, recent)["services"],
        "services_total": services.total,
        "matrix": _matrix(servers),
        "events": [_event(each) for each in reversed(views.event_list(events))],
        "failover": failoverviews.failover(snapshot.failover, snapshot.at)
        if snapshot.failover.configured
        else None,
    }


def _matrix(servers: Matrix) -> Json:
    return {
        "servers": [[name, ", ".join(map(str, addresses))] for name, addresses in servers.servers],
        "services": list(servers.services),
        "cells": [
            [cell.server, cell.service, cell.backend, cell.state.value, cell.load]
            for cell in servers.cells
        ],
    }


def _event(event: views.Json) -> Json:
    return {
        "at": event["at"],
        "level": event["level"],
        "about": event["backend"] or event["service"] or "",
        "text": event_text(event),
    }
