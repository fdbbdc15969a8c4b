"""Decides how the API shows the sources of backends and what they have named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.api.times import age_s, rfc3339
from agent.config.layers import LeftOut, name_of, override_of
from agent.discovery.answer import Refused
from agent.discovery.run import SourceView
from agent.model import Service, Target
from agent.state.sources import Placed

type Json = dict[str, object]

MAX_SHOWN = 1000  # targets of one source that are left out or refused


def sources(
    views: Iterable[SourceView], left_out: Mapping[str, tuple[LeftOut, ...]], at: float
) -> Json:
    """Return the body of GET /v1/discovery."""
    return {"sources": [_source(view, left_out.get(view.service.name, ()), at) for view in views]}


def _source(view: SourceView, left_out: tuple[LeftOut, ...], at: float) -> Json:
    state, discover = view.state, view.service.discover
    unusable = {each.target for each in left_out}
    return {
        "service": view.service.name,
        "source": discover.source,
        "match": dict(discover.match),
        "min": discover.min,
        "max": discover.max,
        "most_removed": discover.most_removed,
        "asked": _moment(view.asked),
        "asked_s": _age(view.asked, at),
        "answered": _moment(state.answered),
        "answered_s": _age(state.answered, at),
        "problem": state.problem,
        "problem_since_s": _age(state.since, at) if state.problem else None,
        "held": None if state.held is None else len(state.held),
        "targets": [
            _target(view.service, each, at) for each in state.placed if each.target not in unusable
        ],
        "left_out": [
            {"target": _endpoint(each.target), "why": each.why} for each in left_out[:MAX_SHOWN]
        ]
        + [_refused(each) for each in view.refused[:MAX_SHOWN]],
        "left_out_total": len(left_out) + len(view.refused),
    }


def _target(service: Service, placed: Placed, at: float) -> Json:
    target = placed.target
    override = override_of(service, target.address, target.port)
    return {
        "name": name_of(target),
        "address": str(target.address),
        "port": target.port,
        "weight": target.weight,
        "state": target.admin.value,
        "backup": target.backup,
        "priority": target.priority,
        "zone": target.zone,
        "left_s": _age(placed.left, at),
        "override": None
        if override is None
        else {"weight": override.weight, "state": override.admin and override.admin.value},
    }


def _refused(each: Refused) -> Json:
    return {"target": each.what, "why": each.why}


def _endpoint(target: Target) -> str:
    if target.port is None:
        return str(target.address)
    host = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    return f"{host}:{target.port}"


def _moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


def _age(since: float | None, at: float) -> float | None:
    return None if since is None else age_s(since, at)
