"""What an explanation says, step by step."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from agent.dataplane import abi, contents
from agent.dataplane.explain import DataplaneView, explain
from agent.dataplane.flows import Names
from agent.model import BackendRef, Forward, Scheduler
from agent.rings import maglev
from agent.state.tables import ServiceEntry, ServiceSlot
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.dataplane.test_contents import entry

VIP = ip_address("203.0.113.10")
NOW = 1_000_000
NAMES = Names({3: "web"}, {5: BackendRef("web", "a"), 6: BackendRef("web", "b")}, {3: 77})


def tables_with(**flags: dict) -> FakeTables:
    """A service with the backends a and b; ``flags`` changes an entry by name."""
    tables = FakeTables()
    members = []
    for ident, name in ((5, "a"), (6, "b")):
        value = entry(f"10.0.0.{ident}", **flags.get(name, {}))
        tables.backends[ident] = contents.backend_row(value)[0]
        members.append(maglev.Member(value.address.packed, 100, ident))
    ring = maglev.build(tuple(members), 101)
    tables.rings[:101] = ring
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, ring.tobytes())
    tables.put_service(ServiceSlot(VIP, 80, 6), contents.service_row(value, 0))
    tables.put_service(ServiceSlot(VIP, 0, 0), np.zeros(1, dtype=abi.SERVICE))
    return tables


def said(tables: FakeTables, flow=None):
    view = DataplaneView(tables, contents.read(tables), NAMES, KEYS, CLOCK, NOW)
    return explain(view, flow or five("198.51.100.7"))


def test_a_new_flow_is_picked_from_the_ring():
    found = said(tables_with())
    assert (found.verdict, found.service, found.reason) == (
        "forward",
        "web",
        "picked from the ring",
    )
    assert found.backend in ("a", "b")
    assert found.ring_slots == 101
    assert [draw.usable for draw in found.draws] == [True]


def test_draws_that_are_passed_over_are_told():
    picked = said(tables_with()).backend
    other = {"a": "b", "b": "a"}[picked]
    found = said(tables_with(**{picked: {"usable": False}}))
    assert found.backend == other
    assert [draw.usable for draw in found.draws[:-1]] == [False] * (len(found.draws) - 1)
    assert f"names {picked}, not usable, next draw" in " ".join(found.steps)


def test_no_usable_backend_is_a_drop():
    down = {"usable": False}
    found = said(tables_with(a=down, b=down))
    assert (found.verdict, found.reason, found.backend) == ("drop", "no-backend", None)
    assert len(found.draws) == 32


def test_a_service_without_a_ring_is_a_drop():
    tables = tables_with()
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"")
    tables.put_service(ServiceSlot(VIP, 80, 6), contents.service_row(value, 0))
    assert said(tables).verdict == "drop"


def test_what_is_not_ours_passes():
    found = said(tables_with(), five("198.51.100.7", port=81))
    assert (found.verdict, found.service) == ("pass", None)
    assert "is a VIP, but has no service on port 81" in " ".join(found.steps)
    found = said(tables_with(), five("198.51.100.7", vip="203.0.113.11"))
    assert "is not a VIP" in " ".join(found.steps)


def test_any_port_answers_where_no_exact_port_does():
    tables = tables_with()
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"\5\0" * 101)
    tables.rings[128:229] = 5
    tables.put_service(ServiceSlot(VIP, 0, 6), contents.service_row(value, 4))
    assert said(tables, five("198.51.100.7", port=8080)).backend == "a"


def with_flow(tables: FakeTables, backend: int, state=abi.FlowState.ESTABLISHED) -> FakeTables:
    record(
        tables, five("198.51.100.7"), service=3, salt=77, backend=backend, state=state,
        jiffies=NOW - 8 * CLOCK.hz, start=NOW - 100 * CLOCK.hz,
    )  # fmt: skip
    return tables


def test_a_recorded_flow_stays():
    for ident, name in ((5, "a"), (6, "b")):
        found = said(with_flow(tables_with(), ident))
        assert (found.backend, found.reason, found.draws) == (name, "recorded flow", ())
        assert (found.recorded.state, found.recorded.age_s) == ("established", 100)


def test_a_recorded_flow_stays_at_a_backend_that_drains():
    found = said(with_flow(tables_with(a={"usable": False}), 5))
    assert (found.backend, found.reason) == ("a", "recorded flow")


def test_a_flow_that_its_backend_gives_up_is_picked_for_anew():
    gone = {"usable": False, "alive": False}
    found = said(with_flow(tables_with(a=gone), 5))
    assert (found.backend, found.reason) == ("b", "picked from the ring")
    assert found.recorded is not None


def test_a_flow_of_a_backend_that_is_gone_is_picked_for_anew():
    found = said(with_flow(tables_with(), 9))
    assert (found.recorded, found.reason) == (None, "picked from the ring")


def test_an_embryonic_flow_has_no_age():
    found = said(with_flow(tables_with(), 5, abi.FlowState.EMBRYONIC))
    assert (found.recorded.state, found.recorded.age_s) == ("embryonic", 0)
