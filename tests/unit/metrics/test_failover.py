"""Failover as metrics: absent where nothing is configured or known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.metrics.failover import FAILOVER_FAMILIES
from agent.state.snapshot import FailoverView, Snapshot
from tests.unit.failover.samples import VIEW


def values(snapshot: Snapshot, view: FailoverView) -> dict[str, dict[tuple[str, ...], float]]:
    snapshot = replace(snapshot, failover=view)
    return {
        family.name.removeprefix("steelyard_"): {
            tuple(labels): value for labels, value in family.samples(snapshot)
        }
        for family in FAILOVER_FAMILIES
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("failover_process_up", (), 1),
        ("failover_role", ("web/ipv4", "backup"), 1),
        ("failover_role", ("web/ipv4", "master"), 0),
        ("failover_role", ("web/ipv6", "master"), 1),
        ("failover_priority", ("web/ipv4",), 1),
        ("failover_transitions_total", ("web/ipv4", "master"), 1),
        ("failover_adverts_received_total", ("web/ipv4",), 900),
        ("failover_adverts_discarded_total", ("web/ipv4", "checksum"), 3),
        ("failover_announcements_total", ("web/ipv4",), 10),
        ("failover_problem", ("web/ipv4", "vips"), 1),
        ("flow_sync_connected", ("10.0.0.2",), 1),
        ("flow_sync_lag_seconds", ("10.0.0.2",), 0.21),
        ("flow_sync_flows_sent_total", ("10.0.0.2",), 1000),
        ("flow_sync_flows_dropped_total", ("10.0.0.2", "no-backend"), 100),
        ("flow_sync_full_resyncs_total", ("10.0.0.2",), 1),
        ("flow_sync_strangers_total", ("stranger",), 3),
        ("flow_sync_untold_total", (), 5),
        ("flow_sync_packets_total", ("passed_on",), 7),
    ],
)
def test_every_figure_is_there(snapshot, name, labels, value) -> None:
    assert values(snapshot, VIEW)[name][labels] == value


def test_a_process_that_does_not_answer_has_no_role(snapshot) -> None:
    found = values(snapshot, replace(VIEW, process=None, problem="gone"))
    assert found["failover_process_up"] == {(): 0}
    assert not found["failover_role"]


def test_nothing_is_told_where_nothing_is_configured(snapshot) -> None:
    assert not any(values(snapshot, FailoverView()).values())
