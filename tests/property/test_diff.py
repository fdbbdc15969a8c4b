"""Steps between any two states: they lead there, and every prefix of them is safe to stop at."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.dataplane import addressfilter, contents
from agent.model import Address, Forward
from agent.reconcile.apply import Applier
from agent.reconcile.diff import after, at_once, diff
from agent.state.desired import desired, desired_backends
from agent.state.identities import Identities
from agent.state.lookups import mark_of
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot, TableContents
from tests.examples import examples
from tests.property.worlds import ids_for, worlds
from tests.unit.dataplane.fakes import FakeTables
from tests.unit.state.world import TABLES


def check_safe(held: TableContents) -> None:
    """What every packet relies on: whatever is named is there, and is its own."""
    for entry in held.services.values():
        for ident in np.unique(np.frombuffer(entry.ring, dtype=np.uint16)):
            assert held.backends[int(ident)].service_id == entry.id
    ids = [entry.id for entry in held.services.values()]
    assert len(ids) == len(set(ids))
    for origin in held.origins.values():
        if origin.backend_id:
            assert held.backends[origin.backend_id].service_id == origin.service_id
    for quic_id, ident in held.quic_ids.items():
        assert held.backends[ident].service_id == quic_id.service_id
    for block, first in held.ranges.items():
        assert ServiceSlot(block.vip, first, block.protocol) in held.services
    for prefix in held.prefixes:
        assert mark_of(prefix.network_address) in held.marks
    owners = {entry.id for entry in held.services.values()}
    for key, ring in held.zone_rings.items():
        assert key.service_id in owners
        for ident in np.unique(np.frombuffer(ring, dtype=np.uint16)):
            assert held.backends[int(ident)].service_id == key.service_id
    for number, address in held.nat_sources.items():
        assert number < 16
        assert held.marks[mark_of(address)].nat_source is not None


def check_answers(held: TableContents) -> None:
    """Who gets packets of nat and fullnat can be understood when it answers."""
    answering = {origin.backend_id for origin in held.origins.values()}
    families = {address.version for address in held.nat_sources.values()}
    for entry in held.services.values():
        for ident in np.unique(np.frombuffer(entry.ring, dtype=np.uint16)):
            backend = held.backends[int(ident)]
            if entry.forward is backend.forward is Forward.NAT and backend.usable:
                assert int(ident) in answering
            if entry.forward is backend.forward is Forward.FULLNAT and backend.usable:
                assert backend.address.version in families
                assert finds_ports(held, entry, backend)


def finds_ports(held: TableContents, entry: ServiceEntry, backend: BackendEntry) -> bool:
    """As the packet path looks, for every port that the service's packets can have."""
    (service,) = (slot for slot, one in held.services.items() if one is entry)
    server = ServiceSlot(backend.address, backend.port or service.port, service.protocol)
    found = [held.origins[s] for s in (server, server._replace(port=0)) if s in held.origins]
    return any(origin.blocks and origin.blocks[0] for origin in found)


def check_zones(held: TableContents, before: TableContents, wanted: TableContents) -> None:
    """No client is led to the ring of another zone: where a prefix has come to another id, the
    rings of that are all there, and no others.
    """
    came = {zone for prefix, zone in held.zones.items() if before.zones.get(prefix) != zone}
    for key in {*held.zone_rings, *wanted.zone_rings}:
        if key.zone in came:
            assert held.zone_rings.get(key) == wanted.zone_rings.get(key)


histories = st.lists(worlds(), min_size=1, max_size=4)


@settings(deadline=None, max_examples=examples(150))
@given(histories)
def test_the_steps_lead_from_the_one_to_the_other_and_then_there_are_none(history):
    held = TableContents()
    for config, around in history:
        wanted = desired(config, ids_for(config, held), around)
        reached = held
        for step in diff(held, wanted):
            reached = after(reached, step)
        assert reached == wanted
        assert diff(reached, wanted) == ()
        held = reached


@settings(deadline=None, max_examples=examples(150))
@given(histories)
def test_every_prefix_is_safe(history):
    held = TableContents()
    for config, around in history:
        wanted, before = desired(config, ids_for(config, held), around), held
        for step in diff(held, wanted):
            held = after(held, step)
            check_safe(held)
            check_zones(held, before, wanted)
        check_answers(held)


def usable_in_rings(held: TableContents) -> dict[ServiceSlot, bool]:
    """Whether a draw finds somebody, by service."""
    return {
        slot: any(
            held.backends[int(ident)].usable
            for ident in np.unique(np.frombuffer(entry.ring, dtype=np.uint16))
        )
        for slot, entry in held.services.items()
    }


@settings(deadline=None, max_examples=examples(100))
@given(histories)
def test_a_pass_is_safe_and_a_draw_finds_somebody_at_any_moment(history):
    """What a pass does: flags at once, rings once they are built."""
    held = TableContents()
    for config, around in history:
        ids = ids_for(config, held)
        wanted = desired(config, ids, around)
        early = at_once(held, desired_backends(config, ids, around))
        before, after_all = usable_in_rings(held), usable_in_rings(wanted)
        for goal in (early, wanted):
            for step in diff(held, goal):
                held = after(held, step)
                check_safe(held)
                now = usable_in_rings(held)
                for slot in before.keys() & after_all.keys():
                    assert now[slot] or not (before[slot] and after_all[slot])
        assert held == wanted


def by_place(ids: Identities) -> dict[tuple[int, Address, int], int]:
    return {
        (service_id, *server): ident
        for service_id, own in ids.backends.items()
        for server, ident in own.items()
    }


@settings(deadline=None, max_examples=examples(100))
@given(histories, st.data())
def test_a_pass_that_was_cut_off_is_taken_up_by_the_next(history, data):
    """Killed after any step, the next agent gives the same ids and ends at the same tables."""
    held = TableContents()
    for config, around in history:
        ids = ids_for(config, held)
        wanted = desired(config, ids, around)
        steps = diff(held, wanted)
        for step in steps[: data.draw(st.integers(0, len(steps)))]:
            held = after(held, step)
        again = ids_for(config, held)
        backends, later = by_place(ids), by_place(again)
        known = {e.identity: i for i, e in held.backends.items()}
        assert all(
            later[key] == known[key] for key in backends.keys() & later.keys() & known.keys()
        )
        wanted = desired(config, again, around)
        for step in diff(held, wanted):
            held = after(held, step)
            check_safe(held)
        assert held == wanted


def filter_of(held: TableContents) -> dict[str, np.ndarray]:
    """The least that the address filter must let through."""
    addresses = {slot.vip for slot in (*held.marks, *held.origins)}
    bits = [bit for prefix in held.prefixes for bit in addressfilter.prefix_bits(prefix)]
    return {
        "exact": addressfilter.words_of(addressfilter.exact_bit(a) for a in addresses),
        "prefix": addressfilter.words_of(bits),
    }


def is_within(inner, outer) -> bool:
    return all(not (inner[half] & ~outer[half]).any() for half in ("exact", "prefix"))


@settings(deadline=None, max_examples=examples(100))
@given(histories)
def test_the_tables_hold_after_each_step_what_the_model_says(history):
    tables = FakeTables(TABLES)
    applier = Applier(tables)
    held = contents.read(tables)
    assert held == TableContents()
    for config, around in history:
        for step in diff(held, desired(config, ids_for(config, held), around)):
            applier.apply(step)
            held = after(held, step)
            assert contents.read(tables) == held
            assert is_within(filter_of(held), tables.addresses)
        applier.hide_gone(held)
        assert is_within(tables.addresses, filter_of(held))
