"""The steps between two contents, and their order."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from agent.model import Forward, Scheduler
from agent.reconcile.diff import (
    ClearBackend,
    DeleteMark,
    DeleteOrigin,
    DeletePrefix,
    DeleteQuicId,
    DeleteRange,
    DeleteService,
    PutBackend,
    PutMark,
    PutOrigin,
    PutPrefix,
    PutQuicId,
    PutRange,
    PutService,
    SetNatSources,
    at_once,
    diff,
)
from agent.state.lookups import mark_of
from agent.state.tables import (
    BackendEntry,
    MarkEntry,
    OriginEntry,
    PortBlock,
    QuicId,
    ServiceEntry,
    ServiceSlot,
    TableContents,
)

VIP = ip_address("203.0.113.10")
SLOT, MARK = ServiceSlot(VIP, 80, 6), ServiceSlot(VIP, 0, 0)
BACKEND = BackendEntry(
    1, ip_address("10.0.0.21"), True, True, Forward.DSR, 0, "02:00:00:00:00:aa",
    "02:00:00:00:00:01", 1500, (0,) * 8, None,
)  # fmt: skip
SERVICE = ServiceEntry(1, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"\5\0")
FULL = TableContents({5: BACKEND}, {SLOT: SERVICE}, {MARK: MarkEntry()})
EMPTY = TableContents()


def test_equal_contents_need_no_steps():
    assert diff(FULL, FULL) == ()
    assert diff(EMPTY, EMPTY) == ()


def test_adding_goes_backend_service_mark():
    assert diff(EMPTY, FULL) == (
        PutBackend(5, BACKEND, fresh=True),
        PutService(SLOT, SERVICE, ring_changed=True, fresh=True),
        PutMark(MARK, MarkEntry()),
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
    wanted = TableContents({6: new}, {SLOT: replace(SERVICE, ring=b"\6\0")}, FULL.marks)
    kinds = [type(step) for step in diff(FULL, wanted)]
    assert kinds == [PutBackend, PutService, ClearBackend]


ORIGIN_SLOT = ServiceSlot(BACKEND.address, 80, 6)
ORIGIN = OriginEntry(VIP, 77, 1, 5, 80)
QUIC = QuicId(1, b"\1" * 8)
BLOCK = PortBlock(VIP, 6, 80, 16)
PREFIX = ip_network("203.0.113.8/29")
SOURCE = ip_address("10.0.0.1")
ALL = TableContents(
    {5: BACKEND}, {SLOT: SERVICE}, {MARK: MarkEntry(), mark_of(SOURCE): MarkEntry(nat_source=0)},
    frozenset({PREFIX}), {BLOCK: 80}, {ORIGIN_SLOT: ORIGIN}, {QUIC: 5}, {0: SOURCE},
)  # fmt: skip


def test_what_a_service_needs_comes_before_it_and_what_leads_to_it_after():
    assert [type(step) for step in diff(EMPTY, ALL)] == [
        PutBackend,
        PutOrigin,
        PutQuicId,
        PutMark,
        SetNatSources,
        PutService,
        PutRange,
        PutMark,
        PutPrefix,
    ]


def test_what_leads_to_a_service_goes_before_it_and_what_it_needs_after():
    steps = diff(ALL, EMPTY)
    assert [type(step) for step in steps] == [
        SetNatSources,
        DeletePrefix,
        DeleteRange,
        DeleteService,
        DeleteMark,
        DeleteMark,
        DeleteOrigin,
        DeleteQuicId,
        ClearBackend,
    ]


def test_a_source_that_is_a_vip_too_is_marked_as_both_in_its_turn():
    wanted = replace(FULL, marks={MARK: MarkEntry(ranges=True, nat_source=0)}, nat_sources={0: VIP})
    assert diff(FULL, wanted) == (
        PutMark(MARK, MarkEntry(nat_source=0)),
        SetNatSources({0: VIP}),
        PutMark(MARK, MarkEntry(ranges=True, nat_source=0)),
    )


def test_a_backend_at_another_port_is_fresh():
    other = replace(BACKEND, port=8080)
    assert diff(FULL, replace(FULL, backends={5: other})) == (PutBackend(5, other, fresh=True),)


def test_a_block_of_another_range_is_written_over():
    wanted = replace(ALL, ranges={BLOCK: 79})
    assert diff(ALL, wanted) == (PutRange(BLOCK, 79),)


SPARE = replace(BACKEND, address=ip_address("10.0.0.23"), usable=False)
BOTH = replace(FULL, backends={5: BACKEND, 6: SPARE})
HANDED_OVER = replace(
    FULL,
    backends={5: replace(BACKEND, usable=False), 6: replace(SPARE, usable=True)},
    services={SLOT: replace(SERVICE, ring=b"\6\0")},
)


def test_the_last_usable_backend_stays_so_until_another_ring_is_there():
    assert [getattr(step, "id", type(step)) for step in diff(BOTH, HANDED_OVER)] == [
        6,
        PutService,
        5,
    ]


def test_one_of_several_is_taken_away_first():
    three = {**BOTH.backends, 7: replace(BACKEND, address=ip_address("10.0.0.24"))}
    ring = {SLOT: replace(SERVICE, ring=b"\5\0\7\0")}
    actual = replace(BOTH, backends=three, services=ring)
    wanted = replace(HANDED_OVER, backends={**HANDED_OVER.backends, 7: three[7]})
    assert [getattr(step, "id", type(step)) for step in diff(actual, wanted)] == [5, 6, PutService]


def test_what_is_said_at_once_leaves_the_last_usable_and_what_nobody_wants():
    assert at_once(BOTH, HANDED_OVER.backends).backends == {
        5: BACKEND,
        6: HANDED_OVER.backends[6],
    }
    down = replace(BACKEND, usable=False, alive=False)
    other = replace(BACKEND, address=ip_address("10.0.0.24"))
    ring = {SLOT: replace(SERVICE, ring=b"\5\0\7\0")}
    two = replace(FULL, backends={5: BACKEND, 7: other}, services=ring)
    assert at_once(two, {5: down}).backends == {5: down, 7: other}
