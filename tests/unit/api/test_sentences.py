"""How troubles and events read."""

from __future__ import annotations

from typing import Any

import pytest

from agent.api.sentences import event_text, host_problems, membership, problems, tier_load

QUIET: dict[str, Any] = {
    "agent": {"config_problem": "", "reconcile_problem": "", "unsaved_problem": ""},
    "dataplane": {
        "interface": "eth0",
        "backend_interfaces": [],
        "attached": True,
        "nat_problems": [],
        "vip_problems": [],
        "link_problems": [],
    },
    "failover": {"problem": "", "instances": [], "flow_sync": []},
}


FLEET: dict[str, Any] = {
    "name": "prod",
    "node": "lb1",
    "version": 12,
    "since": "2026-01-02T03:04:05.000Z",
    "wanted_version": 12,
    "stable_version": 12,
    "newest_version": 12,
    "trying": [],
    "frozen": None,
    "refused_version": None,
    "problem": "",
    "store_away_s": None,
}


def test_nothing_is_wrong() -> None:
    assert problems(QUIET | {"fleet": FLEET}) == problems(QUIET | {"fleet": None}) == []
    assert (problems(QUIET), host_problems(QUIET)) == ([], [])


@pytest.mark.parametrize(
    ("state", "since_s", "is_wrong"),
    [("connected", 900.0, False), ("connecting", 3.0, False), ("connecting", 9.0, True),
     ("refused", 61.0, True)],
)  # fmt: skip
def test_a_balancer_that_is_apart_for_a_while_is_a_problem(
    state: str, since_s: float, is_wrong: bool
) -> None:
    peer = {"peer": "10.0.0.2", "name": "edge-2", "state": state, "why": "no answer",
            "since_s": since_s}  # fmt: skip
    found = problems(QUIET | {"failover": {"flow_sync": [peer]}})
    assert bool(found) is is_wrong
    if is_wrong:
        assert "with edge-2 (10.0.0.2) for" in found[0]
        assert found[0].endswith("break if the VIPs move: no answer")
        (unknown,) = problems(QUIET | {"failover": {"flow_sync": [peer | {"name": ""}]}})
        assert "with 10.0.0.2 for" in unknown


def test_a_service_that_answers_too_late_is_a_problem() -> None:
    late = {"service": "chat", "percentile": 95, "within_s": 2.0, "late_share_last_minute": 0.25}
    (said,) = problems(QUIET | {"late": [late]})
    assert said == (
        "answers of chat begin too late: 25.0% of those of the last minute took longer than 2s, and"
        " 5% may; lbctl service show chat"
    )


def test_an_agent_of_before_that_does_not_say_since_when_is_believed() -> None:
    peer = {"peer": "10.0.0.2", "state": "connecting", "lag_s": None}
    assert problems(QUIET | {"failover": {"flow_sync": [peer]}}) == []


def test_what_is_wrong_with_the_balancer_itself() -> None:
    plane = QUIET["dataplane"] | {"attached": False, "link_problems": ["eth0 has no carrier"]}
    router = {"name": "a/ipv4", "problems": ["two masters"]}
    failover = {"problem": "no failover process", "instances": [router], "flow_sync": []}
    assert host_problems(QUIET | {"dataplane": plane, "failover": failover}) == [
        "the program is NOT attached to eth0",
        "eth0 has no carrier",
        "failover: no failover process",
        "failover a/ipv4: two masters",
    ]


def test_an_event_says_what_why_and_by_whom() -> None:
    event = {"event": "change", "service": "chat", "backend": "chat/gpu-1", "fields": {
        "backend": "chat/gpu-1", "change": "change backend chat/gpu-1: weight 1 → 2",
        "effect": "it gets more", "by": "root", "message": "faster now", "version": 7}}  # fmt: skip
    text = "change: weight 1 → 2; it gets more (version=7), by root: “faster now”"
    assert event_text(event) == text


def test_what_is_wrong_with_the_tier_of_the_host_is_a_problem() -> None:
    tier = {"problems": ["HAProxy is not running"], "load": None}
    assert problems(QUIET | {"tier": tier}) == ["the tier of this host: HAProxy is not running"]
    assert problems(QUIET | {"tier": tier | {"problems": []}}) == problems(QUIET | {"tier": None})


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "1 connection, 38 requests/s, 12 at engines"),
        ({"refused_per_s": 2.0}, "1 connection, 38 requests/s, 2 refused/s, 12 at engines"),
        ({"failed_per_s": 1.0, "queued": 1200, "connections": 5000},
         "5,000 connections, 38 requests/s, 1 failed/s, 12 at engines, 1,200 queued"),
    ],
)  # fmt: skip
def test_what_a_tier_does_is_one_line(changed: dict[str, Any], text: str) -> None:
    load = {
        "connections": 1, "current": 12, "queued": 0,
        "requests_per_s": 38.0, "refused_per_s": 0.0, "failed_per_s": 0.0,
    }  # fmt: skip
    assert tier_load(load | changed) == text


def test_a_balancer_that_does_not_follow_its_fleet_is_a_problem() -> None:
    away = "the fleet's store is away: no answer; version 12 stays"
    assert problems(QUIET | {"fleet": FLEET | {"problem": away}}) == [away]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "has run version 12, the stable one, since noon"),
        (
            {"wanted_version": 13, "stable_version": 13, "newest_version": 13},
            "has run version 12 since noon; version 13 is wanted",
        ),
        (
            {"wanted_version": 12, "stable_version": 11, "trying": ["lb1"]},
            "has run version 12, which is being tried, since noon",
        ),
        (
            {"newest_version": 13, "trying": ["lb2", "lb3"]},
            "has run version 12, the stable one, since noon; version 13 is being tried on lb2, lb3",
        ),
        (
            {"store_away_s": 61.0},
            "has run version 12, the stable one, since noon; the store has not answered for 1m01s",
        ),
        (
            {"version": 0, "wanted_version": None, "stable_version": None, "newest_version": None},
            "runs the services of its own file; the store has no version of this fleet",
        ),
        (
            {"version": 0, "wanted_version": None, "stable_version": None, "store_away_s": 3.0},
            "runs the services of its own file; the store has not answered for 3s",
        ),
        (
            {"wanted_version": 14, "stable_version": 14, "frozen": "a repair (root)"},
            "has run version 12 since noon; version 14 is wanted; frozen: a repair (root)",
        ),
    ],
)
def test_what_a_balancer_runs_of_its_fleet_is_one_line(changed: dict[str, Any], text: str) -> None:
    assert membership(FLEET | changed, "noon") == f"prod: lb1 {text}"
