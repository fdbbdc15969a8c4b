"""Decides how the API shows what a scaler needs to know about a service."""

from __future__ import annotations

from collections.abc import Mapping

from agent.model import Signal
from agent.state.snapshot import ServiceSnapshot

type Json = dict[str, object]


def scale(view: ServiceSnapshot) -> Json:
    """Return the body of GET /v1/scale/SERVICE.

    Values that are not known are null, so that a scaler fails to read them, and keeps what it has.
    """
    scaling = view.scaling
    asked, seen = scaling.asked, scaling.seen
    p95_s = seen.first_byte_p95_s
    return {
        "service": view.service.name,
        "wanted_backends": scaling.wanted,
        "wanted_because": scaling.cause.value if scaling.cause else None,
        "wanted_by": _by_signal(scaling.alone),
        "min_backends": asked.min,
        "max_backends": asked.max,
        "usable_backends": seen.usable,
        "draining_backends": seen.draining,
        "held_clients": seen.held,
        "load": _by_signal(seen.load),
        "load_per_backend": _by_signal({each: seen.per_backend(each) for each in Signal}),
        "target_per_backend": _by_signal(asked.targets),
        "first_byte_p95_s": None if p95_s is None else round(p95_s, 6),
        "misses_objective": seen.misses_objective,
    }


def _by_signal(values: Mapping[Signal, float | None]) -> Json:
    found = {each.value: values.get(each) for each in Signal}
    return {name: None if at is None else round(at, 3) for name, at in found.items()}
