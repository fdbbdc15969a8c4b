"""What a scaler is told: plain numbers at fixed places, and null for what is not known."""

from __future__ import annotations

import dataclasses

from agent.api import scaleviews
from agent.model import Scale, Signal
from agent.state.scaling import Scaling, Seen, decide

ASKED = Scale(connections=16, requests=4, max=8)
SEEN = Seen(
    usable=3,
    draining=1,
    load={Signal.CONNECTIONS: 100, Signal.WAITING_BYTES: 500, Signal.REQUESTS: None},
    first_byte_p95_s=0.123456789,
    misses_objective=False,
    held=5,
)


def shown(snapshot, scaling: Scaling) -> dict:
    return scaleviews.scale(dataclasses.replace(snapshot.services[0], scaling=scaling))


def test_a_scaler_is_told_what_is_wanted_and_why(snapshot):
    assert shown(snapshot, decide(ASKED, SEEN)) == {
        "service": "chat",
        "wanted_backends": 7,
        "wanted_because": "connections",
        "wanted_by": {"connections": 7, "waiting_bytes": None, "requests": None, "queued": None},
        "min_backends": 1,
        "max_backends": 8,
        "usable_backends": 3,
        "draining_backends": 1,
        "load": {"connections": 100, "waiting_bytes": 500, "requests": None, "queued": None},
        "load_per_backend": {
            "connections": 33.333, "waiting_bytes": 166.667, "requests": None, "queued": None,
        },
        "target_per_backend": {
            "connections": 16, "waiting_bytes": None, "requests": 4, "queued": None,
        },
        "first_byte_p95_s": 0.123457,
        "misses_objective": False,
        "held_clients": 5,
    }  # fmt: skip


def test_without_targets_nothing_is_wanted_and_the_load_is_there_all_the_same(snapshot):
    found = shown(snapshot, decide(Scale(), dataclasses.replace(SEEN, usable=0)))
    assert (found["wanted_backends"], found["wanted_because"]) == (None, None)
    assert found["load"]["connections"] == 100
    assert found["load_per_backend"]["connections"] is None
