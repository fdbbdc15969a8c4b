"""Late answers of services with objectives are counted whatever becomes of their backends."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.dataplane import latency
from agent.metrics.objectives import Objectives
from agent.model import BackendRef, Config, Objective
from tests.unit.state.world import A, B, web

FAST, SLOW = 0.1, 5.0
WEB = replace(web(A, B), slo=(Objective(95, 2.0),))


class Fleet:
    """Backends of one service with their rows of counts, as the kernel's table has them."""

    def __init__(self) -> None:
        self.table = np.zeros(8, [(latency.FIRST_BYTE, "u8", (latency.BUCKETS,))])
        self.service, self.ids = WEB, {"a": 1, "b": 2}
        self.seen, self.at_s = Objectives(), 0.0

    def answers(self, name: str, took_s: float, times: int) -> None:
        bucket = np.searchsorted(latency.BOUNDS_US, took_s * 1e6, side="right") - 1
        self.table[latency.FIRST_BYTE][self.ids[name]][bucket] += times

    def look(self) -> None:
        """Ten seconds later."""
        self.at_s += 10.0
        refs = [BackendRef("web", each.name) for each in self.service.backends]
        ids = np.array([self.ids[ref.backend] for ref in refs], np.int64)
        known = SimpleNamespace(ids=ids, place={ref: n for n, ref in enumerate(refs)})
        config = Config("lb1", "eth0", services=(self.service,))
        self.seen.look(config, known, self.table, self.at_s)

    @property
    def counted(self) -> tuple[int, float]:
        (watch,) = self.seen.watches["web"]
        return watch.answers_total, round(watch.late_total, 6)


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet()
    found.answers("a", SLOW, 1000)  # before this agent looked for the first time
    found.look()
    return found


def test_what_came_before_the_first_look_is_not_counted(fleet: Fleet):
    assert fleet.counted == (0, 0)


def test_answers_of_all_backends_count(fleet: Fleet):
    fleet.answers("a", FAST, 60)
    fleet.answers("b", SLOW, 40)
    fleet.look()
    assert fleet.counted == (100, 40)


def test_a_backend_that_is_added_counts_from_its_first_answer(fleet: Fleet):
    fleet.service = replace(WEB, backends=(*WEB.backends, replace(A, name="c")))
    fleet.ids["c"] = 3
    fleet.answers("c", SLOW, 7)
    fleet.look()
    assert fleet.counted == (7, 7)


def test_a_backend_that_is_removed_takes_nothing_back(fleet: Fleet):
    fleet.answers("a", SLOW, 10)
    fleet.look()
    fleet.service = replace(WEB, backends=(B,))
    fleet.look()
    assert fleet.counted == (10, 10)


def test_counts_that_went_back_have_started_again(fleet: Fleet):
    """Its id was given to another one."""
    fleet.table[latency.FIRST_BYTE][1] = 0
    fleet.answers("a", SLOW, 3)
    fleet.look()
    assert fleet.counted == (3, 3)


def test_a_miss_is_said_once_and_its_end_once(fleet: Fleet):
    with capture_logs() as said:
        for _ in range(3):
            fleet.answers("a", SLOW, 10)
            fleet.look()
        for _ in range(9):
            fleet.answers("a", FAST, 100)
            fleet.look()
    assert [(each["event"], each["log_level"]) for each in said] == [
        ("answers begin too late", "warning"),
        ("answers begin in time again", "info"),
    ]
    assert said[0]["objective"] == "first_byte_p95: 2s"
    assert said[0]["late"] == "100.0%"


def test_another_objective_begins_anew(fleet: Fleet):
    fleet.answers("a", SLOW, 10)
    fleet.look()
    fleet.service = replace(fleet.service, slo=(Objective(95, 10.0),))
    fleet.answers("a", SLOW, 10)
    fleet.look()
    assert fleet.counted == (10, 0)


def test_without_objectives_there_is_nothing(fleet: Fleet):
    fleet.service = replace(fleet.service, slo=())
    fleet.look()
    assert fleet.seen.watches == {}
