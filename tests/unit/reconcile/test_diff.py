"""The steps between two contents, and their order."""

from dataclasses import replace
from ipaddress import ip_address

from agent.model import Forward, Scheduler
from agent.reconcile.diff import (
    ClearBackend,
    DeleteMark,
    DeleteService,
    PutBackend,
    PutMark,
    PutService,
    diff,
)
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot, TableContents

VIP = ip_address("203.0.113.10")
SLOT, MARK = ServiceSlot(VIP, 80, 6), ServiceSlot(VIP, 0, 0)
BACKEND = BackendEntry(
    1, ip_address("10.0.0.21"), True, True, Forward.DSR, 0, "02:00:00:00:00:aa",
    "02:00:00:00:00:01", 1500, (0,) * 8, None,
)  # fmt: skip
SERVICE = ServiceEntry(1, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"\5\0")
FULL = TableContents({5: BACKEND}, {SLOT: SERVICE}, frozenset({MARK}))
EMPTY = TableContents()


def test_equal_contents_need_no_steps():
    assert diff(FULL, FULL) == ()
    assert diff(EMPTY, EMPTY) == ()


def test_adding_goes_backend_service_mark():
    assert diff(EMPTY, FULL) == (
        PutBackend(5, BACKEND, fresh=True),
        PutService(SLOT, SERVICE, ring_changed=True, fresh=True),
        PutMark(MARK),
    )


def test_removing_goes_service_mark_backend():
    assert diff(FULL, EMPTY) == (DeleteService(SLOT), DeleteMark(MARK), ClearBackend(5, 1))


def test_a_changed_backend_is_not_a_fresh_one():
    down = replace(BACKEND, usable=False)
    assert diff(FULL, replace(FULL, backends={5: down})) == (PutBackend(5, down, fresh=False),)


def test_an_id_with_another_backend_is_fresh():
    other = replace(BACKEND, address=ip_address("10.0.0.22"))
    assert diff(FULL, replace(FULL, backends={5: other})) == (PutBackend(5, other, fresh=True),)


def test_a_service_changes_without_its_ring_or_with_it():
    seeded = replace(SERVICE, pick_seed=9)
    assert diff(FULL, replace(FULL, services={SLOT: seeded})) == (
        PutService(SLOT, seeded, ring_changed=False, fresh=False),
    )
    turned = replace(SERVICE, ring=b"\6\0")
    assert diff(FULL, replace(FULL, services={SLOT: turned})) == (
        PutService(SLOT, turned, ring_changed=True, fresh=False),
    )


def test_a_replacement_adds_before_it_takes_away():
    new = replace(BACKEND, address=ip_address("10.0.0.22"))
    wanted = TableContents({6: new}, {SLOT: replace(SERVICE, ring=b"\6\0")}, frozenset({MARK}))
    kinds = [type(step) for step in diff(FULL, wanted)]
    assert kinds == [PutBackend, PutService, ClearBackend]
