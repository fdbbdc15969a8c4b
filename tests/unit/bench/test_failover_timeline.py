"""What an outage was, from what a client recorded."""

from __future__ import annotations

import numpy as np
import pytest

from bench.failover import timeline
from bench.failover.timeline import LATE_NS, RECORD, Kind, Moments, Records

MS = 1_000_000
MASTER, BACKUP = 0, 1


def log(*entries: tuple[float, Kind, int, int]) -> Records:
    """Entries of (ms, kind, node, number)."""
    rows = [(int(at * MS), number, kind, node, 0) for at, kind, node, number in sorted(entries)]
    return np.array(rows, dtype=RECORD)


def asked(first: int, last: int, node: int | None) -> list[tuple[float, Kind, int, int]]:
    """Probes ``first`` to ``last`` - 1, one each ms, answered by a node or by nobody."""
    entries: list[tuple[float, Kind, int, int]] = [
        (float(at), Kind.SENT, 0, at) for at in range(first, last)
    ]
    if node is not None:
        entries += [(at + 0.1, Kind.ANSWERED, node, at) for at in range(first, last)]
    return entries


def test_a_hole_ends_with_the_next_probe_that_is_answered() -> None:
    records = log(*asked(0, 10, MASTER), *asked(10, 46, None), *asked(46, 60, BACKUP))
    (hole,) = timeline.probes(records).holes()
    assert (hole.start_ns, hole.ms) == (10 * MS, 36.0)


def test_an_answer_from_a_queue_comes_too_late() -> None:
    late = 5 + LATE_NS / MS + 1
    records = log(*asked(0, 5, MASTER), *asked(5, 6, None), (late, Kind.ANSWERED, MASTER, 5))
    assert not timeline.probes(records).all_by(MASTER)


def test_probes_of_before_the_records_are_left_out() -> None:
    records = log((0.1, Kind.ANSWERED, MASTER, 99), *asked(100, 110, MASTER))
    probes = timeline.probes(records)
    assert probes.all_by(MASTER)
    assert len(probes.sent_ns) == 10


def test_no_probe_at_all_is_no_service() -> None:
    assert not timeline.probes(log((0, Kind.TAKEN, MASTER, 0))).all_by(MASTER)


def test_an_address_put_on_twice_is_one_owner() -> None:
    records = log((1, Kind.TAKEN, BACKUP, 0), (2, Kind.TAKEN, BACKUP, 0), (3, Kind.DROPPED, 0, 0))
    spans = timeline.ownership(records, frozenset({MASTER}))
    assert [nodes for _, nodes in spans] == [{MASTER}, {MASTER, BACKUP}, {BACKUP}]


def test_a_dead_master_is_taken_over() -> None:
    records = log(
        *asked(0, 40, MASTER), *asked(40, 100, BACKUP), *asked(100, 200, MASTER),
        (39.5, Kind.TAKEN, BACKUP, 0), (99.5, Kind.DROPPED, BACKUP, 0),
        (3, Kind.HEARD, BACKUP, 150),
    )  # fmt: skip
    found = timeline.outcome(records, Moments(5 * MS, 80 * MS, 200 * MS), MASTER, BACKUP, False)
    assert found.takeover_ms == pytest.approx(35.1)
    assert found.from_advert_ms == pytest.approx(37.1)
    assert found.outage_ms == found.back_outage_ms == 0


def test_a_cut_network_is_timed_from_the_first_loss() -> None:
    records = log(*asked(0, 10, MASTER), *asked(10, 40, None), *asked(40, 60, BACKUP))
    found = timeline.outcome(records, Moments(5 * MS, 55 * MS, 60 * MS), MASTER, BACKUP, True)
    assert found.takeover_ms == pytest.approx(30.1)
    assert found.outage_ms == 30.0


def test_a_heal_that_black_holes() -> None:
    records = log(
        *asked(0, 50, BACKUP), *asked(50, 90, None), *asked(90, 100, MASTER),
        (1, Kind.TAKEN, BACKUP, 0), (51.5, Kind.DROPPED, BACKUP, 0),
        (49.5, Kind.HEARD, BACKUP, 150), (89.5, Kind.ANNOUNCED, MASTER, 0),
    )  # fmt: skip
    found = timeline.outcome(records, Moments(0, 45 * MS, 100 * MS), MASTER, BACKUP, True)
    assert (found.outage_ms, found.back_outage_ms, found.hole_ms) == (0, 40.0, 40.0)
    assert found.two_owners_ms == pytest.approx(2.0)
    assert found.announced_ms == pytest.approx(40.0)


def test_a_deaf_master_is_an_outage_of_the_fault_and_not_of_its_end() -> None:
    records = log(*asked(0, 10, MASTER), *asked(10, 50, None), *asked(50, 60, MASTER))
    found = timeline.outcome(records, Moments(9 * MS, 48 * MS, 60 * MS), MASTER, BACKUP, True)
    assert (found.takeover_ms, found.outage_ms, found.back_outage_ms) == (None, 40.0, 0)
    assert found.two_owners_ms is None


def test_two_owners_count_from_when_the_second_one_took_the_vip() -> None:
    records = log(
        *asked(0, 60, BACKUP),
        (1, Kind.TAKEN, BACKUP, 0), (10, Kind.DROPPED, MASTER, 0), (11, Kind.HEARD, BACKUP, 1),
        (40, Kind.TAKEN, MASTER, 0), (42, Kind.DROPPED, BACKUP, 0),
    )  # fmt: skip
    found = timeline.outcome(records, Moments(0, 5 * MS, 60 * MS), MASTER, BACKUP, False)
    assert found.two_owners_ms == pytest.approx(2.0)
