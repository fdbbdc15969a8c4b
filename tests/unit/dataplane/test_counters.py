"""Counters: every CPU's row and the agent's, summed."""

from agent.dataplane import counters
from agent.dataplane.abi import Reason
from agent.state.snapshot import BackendCounts
from tests.unit.dataplane.fakes import FakeTables


def test_rows_of_all_cpus_and_the_agent_are_summed():
    tables = FakeTables(cpus=2)
    for row in range(3):
        tables.backend_count["packets"][row, 5] = 10**row
        tables.backend_count["closed"][row, 5] = 1
    found = counters.read(tables, [5, 6], [])
    assert found.of_backend(5) == BackendCounts(packets=111, closed=3)
    assert found.of_backend(6) == BackendCounts()
    assert found.of_backend(99) == BackendCounts(), "not asked for"


def test_reasons_are_told_apart_into_passed_and_dropped():
    tables = FakeTables()
    for reason in Reason:
        tables.service_count["reason"][0, 2, reason] = 100 + reason
    found = counters.read(tables, [], [2]).services[2]
    assert found.passed == {"not-ip": 101, "not-vip": 102, "fragment": 103}
    assert found.drops["malformed"] == 104
    assert found.drops["internal"] == 113
    assert len(found.passed) + len(found.drops) == len(Reason) - 1


def test_what_removed_backends_counted_is_kept_apart():
    tables = FakeTables()
    tables.service_count["gone_bytes"][-1, 1] = 7
    tables.service_count["gone_reply_packets"][-1, 1] = 5
    tables.service_count["not_recorded"][0, 1] = 3
    tables.service_count["replied"][:, 1] = 2
    tables.service_count["not_replied"][:, 1] = 1
    found = counters.read(tables, [], [1]).services[1]
    assert found.gone == BackendCounts(bytes=7, reply_packets=5)
    assert (found.not_recorded, found.replied, found.not_replied) == (3, 6, 3)


def test_big_counters_stay_exact():
    tables = FakeTables(cpus=2)
    tables.backend_count["bytes"][:2, 1] = 2**62 + 1
    assert counters.read(tables, [1], []).of_backend(1).bytes == 2**63 + 2


def test_no_ids_no_readings():
    assert counters.read(FakeTables(), [], []) == counters.Readings({}, {})


def test_replies_and_answers_are_counted():
    tables = FakeTables()
    for n, name in enumerate(("reply_packets", "reply_bytes", "answers"), 1):
        tables.backend_count[name][0, 4] = n
    found = counters.read(tables, [4], []).of_backend(4)
    assert found == BackendCounts(reply_packets=1, reply_bytes=2, answers=3)


def test_adding_two():
    one, other = BackendCounts(*range(1, 9)), BackendCounts(*range(10, 90, 10))
    assert counters.add(one, other) == BackendCounts(*range(11, 99, 11))
