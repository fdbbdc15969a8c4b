"""What the sums are corrected by, and when not."""

import numpy as np

from agent.dataplane import survey, trueup
from agent.dataplane.abi import FlowState
from tests.unit.dataplane.fakes import FakeTables, word

NOW = 5000
OPEN = word(1, FlowState.ESTABLISHED, NOW)


def tables_with(flows: int, waiting: int = 0) -> FakeTables:
    """Backend 1 of service 2 with so many open flows; the packet path's sums say 0."""
    tables = FakeTables()
    tables.backends["service"][1] = 2
    tables.backends["timeout_ticks"][1] = 1000
    tables.flows[:flows] = OPEN
    if waiting:
        tables.flows[flows] = word(1, FlowState.CLOSING_AWAITING, NOW)
        tables.flows_warm["waiting"][flows] = waiting
    return tables


def take(keeper: trueup.TrueUp, tables: FakeTables, times: int = 1) -> list[int]:
    return [keeper.take(survey.survey(tables, NOW)) for _ in range(times)]


def test_a_difference_that_persists_is_corrected_at_once_and_for_all():
    tables = tables_with(5, waiting=700)
    keeper = trueup.TrueUp(tables)
    assert take(keeper, tables, trueup.SURVEYS + 6) == [0, 0, 0, 4, 0, 0, 0, 0, 0, 0]
    assert tables.backend_load["open_fix"][1] == 5
    assert tables.backend_load["waiting_fix"][1] == 700
    assert tables.service_load["open_fix"][2] == 5
    assert tables.backend_count["opened"][-1, 1] == 5


def test_what_is_too_much_is_taken_off_and_no_counter_goes_back():
    tables = tables_with(1)
    tables.backend_load["open"][1] = 4
    tables.backend_load["waiting"][1] = 900
    tables.service_load["open"][2] = 2
    tables.backend_count["opened"][0, 1] = 9
    take(trueup.TrueUp(tables), tables, trueup.SURVEYS)
    assert tables.backend_load["open_fix"][1] == -3
    assert tables.backend_load["waiting_fix"][1] == -900
    assert tables.service_load["open_fix"][2] == -1
    assert (tables.backend_count["opened"][-1, 1], tables.backend_count["closed"][-1, 1]) == (0, 8)


def test_what_the_packet_path_writes_is_never_written():
    tables = tables_with(5, waiting=700)
    take(trueup.TrueUp(tables), tables, trueup.SURVEYS)
    for field in ("open", "waiting", "report_open", "queue"):
        assert not tables.backend_load[field].any()
    assert not tables.service_load["open"].any()
    assert not tables.backend_count[:-1]["opened"].any()
    assert tables.backend_load["open_fix"].sum() == 5, "of that backend alone"


def test_the_smallest_of_several_differences_is_corrected():
    tables = tables_with(9)
    keeper = trueup.TrueUp(tables)
    for flows in (9, 5, 7, 6):
        tables.flows[:] = 0
        tables.flows[:flows] = OPEN
        take(keeper, tables)
    assert tables.backend_load["open_fix"][1] == 5


def test_differences_of_both_signs_are_noise():
    tables = tables_with(0)
    keeper = trueup.TrueUp(tables)
    tables.backend_load["open"][1] = 2
    for flows in (3, 1, 3, 1, 3, 1, 3, 3, 3, 1):
        tables.flows[:] = 0
        tables.flows[:flows] = OPEN
        take(keeper, tables)
    assert tables.backend_load["open_fix"][1] == 0


class MovingFlows(np.ndarray):
    """A flow table of which every read changes something."""

    def __getitem__(self, key):
        if isinstance(key, slice) and getattr(self, "on_read", None):
            self.on_read()
        return super().__getitem__(key)


def test_flows_that_open_and_close_during_the_survey_are_no_difference():
    tables = tables_with(0)
    moving = tables.flows = tables.flows.view(MovingFlows)
    keeper = trueup.TrueUp(tables)

    def close_one_seen_and_open_one():
        row = np.asarray(tables.flows)
        tables.backend_count["opened"][0, 1] += 3
        tables.backend_count["closed"][0, 1] += 2
        tables.backend_load["open"][1] += 1
        tables.service_load["open"][2] += 1
        row[np.flatnonzero(row == 0)[0]] = OPEN

    moving.on_read = close_one_seen_and_open_one
    assert take(keeper, tables, 20) == [0] * 20
    moving.on_read = None
    assert take(keeper, tables, 20) == [0] * 20


def test_no_service_has_no_sum():
    tables = tables_with(3)
    tables.backends["service"][1] = 0
    tables.service_load["open"][0] = 7
    assert take(trueup.TrueUp(tables), tables, 10) == [0] * 10
