"""``lbctl scale``: the load of services, the wanted number of backends, and why."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import scale_view

UNKNOWN = dict.fromkeys(("connections", "waiting_bytes", "requests", "queued"))


def asked(**changed: object) -> dict:
    """Of a service with a target of 64 connections and 32 requests."""
    targets = UNKNOWN | {"connections": 64, "requests": 32}
    load = {"connections": 130, "waiting_bytes": 91_200, "requests": 20.0, "queued": 0}
    told = {"target_per_backend": targets, "load": load, "wanted_backends": 3}
    return scale_view("chat", **(told | {"wanted_because": "connections"} | changed))


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_all_services_are_shown_with_their_load(agent, run):
    agent.services[0]["scale"] = asked(first_byte_p95_s=0.25)
    assert lines(run("scale").out) == [
        "SERVICE USABLE WANTED CONNS WAITING REQUESTS QUEUED FIRST BYTE P95 WHY",
        "chat 1 (+1 draining) 3 130 / 64 91.2k 20 / 32 0 250ms 130 connections, 64 for each",
    ]


def test_one_service_is_asked_for_by_its_name(agent, run):
    assert lines(run("scale", "chat").out)[1] == (
        "chat 1 (+1 draining) - 642 91.2k - - - no target is set"
    )
    assert "/v1/scale/chat" in [path for path, _ in agent.queries]
    assert run("scale", "none").code == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"wanted_because": "min"}, "min is 1"),
        ({"wanted_because": "max", "max_backends": 3}, "max is 3"),
        ({"wanted_because": "objective"}, "an objective is missed with 1 backend"),
        ({"wanted_because": "no_backend"}, "no backend is usable, and clients wait"),
        (
            {"wanted_because": "no_backend", "held_clients": 3},
            "no backend is usable, and 3 clients wait",
        ),
        (
            {"wanted_because": "no_backend", "held_clients": 1},
            "no backend is usable, and a client waits",
        ),
        ({"wanted_because": "requests"}, "20 requests, 32 for each"),
        ({"wanted_because": "unknown", "load": UNKNOWN | {"connections": 9}},
         "no fewer than now, because this is unknown: requests"),
        ({"wanted_because": None, "wanted_backends": None, "load": UNKNOWN},
         "unknown: connections and requests"),
    ],
)  # fmt: skip
def test_why_so_many_are_wanted_is_said(agent, run, changed, words):
    agent.services[0]["scale"] = asked(**changed)
    assert lines(run("scale").out)[1].endswith(words)


def test_json_is_what_the_agent_says(agent, run):
    agent.services[0]["scale"] = asked()
    assert json.loads(run("scale", "chat", "-o", "json").out) == asked()
    assert json.loads(run("scale", "-o", "json").out) == {"services": [asked()]}


def test_a_service_shows_what_it_wants_if_it_has_a_target(agent, run):
    assert "scale " not in run("service", "show", "chat").out
    agent.services[0]["scale"] = asked()
    shown = " ".join(run("service", "show", "chat").out.split())
    assert "scale 3 backends wanted (130 connections, 64 for each)" in shown
