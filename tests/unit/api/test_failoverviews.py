"""How failover reads in JSON."""

from __future__ import annotations

from dataclasses import replace

from agent.api.failoverviews import failover, summary
from agent.state.moves import Lacking
from agent.state.snapshot import FailoverView
from tests.unit.failover.samples import NOW, VIEW


def test_everything_is_told_with_ages_and_words() -> None:
    body = failover(VIEW, NOW)
    assert (body["configured"], body["problem"]) == (True, "")
    assert body["process"] == {
        "pid": 77,
        "version": "0.5.0",
        "uptime_s": 3600.0,
        "realtime": True,
        "memory_locked": False,
        "agent_seen_s": 0.25,
        "config_problem": "",
    }
    first, second = body["instances"]
    assert (first["role"], first["mode"], first["since_s"]) == ("backup", "handed-over", 90.0)
    assert (first["priority_effective"], first["priority_configured"]) == (1, 100)
    assert first["problems"] == [
        {"kind": "vips", "text": "10.0.0.2 has other VIPs", "since_s": 60.0, "last_s": 2.0,
         "count": 580}
    ]  # fmt: skip
    assert first["adverts_discarded_total"] == {"checksum": 3}
    assert (second["family"], second["unicast_peers"]) == (6, ["fd00::2"])
    (peer,) = body["flow_sync"]["peers"]
    assert (peer["address"], peer["state"], peer["lag_s"]) == ("10.0.0.2", "connected", 0.21)
    assert peer["flows_dropped_total"] == {"no-backend": 100, "over": 7}


def test_strangers_connections_and_strangers_packets_are_told_apart() -> None:
    counts = {"untold": 5, "passed_on": 7, "strangers": 9}
    told = failover(replace(VIEW, sync_strangers={"busy": 2}, sync_counts=counts), NOW)["flow_sync"]
    assert told["strangers_total"] == {"busy": 2}
    assert told["untold_total"] == 5
    assert told["packets_total"] == {"passed_on": 7, "strangers": 9}


def test_a_move_that_lacked_flows_is_told_with_its_reason() -> None:
    assert failover(VIEW, NOW)["flow_sync"]["last_move_lacking_flows"] is None
    lacking = Lacking().and_one("it was slow", NOW - 5)
    told = failover(replace(VIEW, lacking=lacking), NOW)["flow_sync"]
    assert told["moves_lacking_flows_total"] == 1
    assert told["last_move_lacking_flows"] == {"why": "it was slow", "age_s": 5.0}


def test_the_summary_has_what_status_shows() -> None:
    body = summary(VIEW, NOW)
    assert body["instances"][0] == {
        "name": "web/ipv4",
        "role": "backup",
        "since_s": 90.0,
        "why": "10.0.0.2 has priority 150",
        "master": "10.0.0.2",
        "mode": "handed-over",
        "problems": ["10.0.0.2 has other VIPs"],
    }
    (sync,) = body["flow_sync"]
    assert (sync["peer"], sync["state"], sync["lag_s"]) == ("10.0.0.2", "connected", 0.21)
    assert sync.keys() == {"peer", "name", "state", "why", "since_s", "lag_s"}


def test_a_process_that_does_not_answer_is_told_as_such() -> None:
    body = failover(replace(VIEW, process=None, problem="no failover process"), NOW)
    assert (body["process"], body["instances"]) == (None, [])
    assert body["problem"] == "no failover process"


def test_nothing_is_configured() -> None:
    assert summary(FailoverView(), NOW) == {
        "configured": False, "problem": "", "instances": [], "flow_sync": [],
    }  # fmt: skip
