"""Steps between any two states: they lead there, and every prefix of them is safe to stop at."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.dataplane import contents
from agent.model import (
    AdminState,
    Backend,
    Config,
    DownFlows,
    Forward,
    Health,
    Protocol,
    Service,
    ServiceKey,
)
from agent.reconcile.apply import Applier
from agent.reconcile.diff import after, diff
from agent.state.desired import Surroundings, desired, desired_backends
from agent.state.identities import Identities, assign
from agent.state.tables import TableContents
from tests.unit.dataplane.fakes import FakeTables
from tests.unit.state.world import TABLES, hop, surroundings

KEYS = [
    ServiceKey(ip_address(vip), port, protocol)
    for vip, port, protocol in (
        ("203.0.113.10", 80, Protocol.TCP),
        ("203.0.113.10", 0, Protocol.UDP),
        ("203.0.113.11", 80, Protocol.TCP),
        ("2001:db8::10", 443, Protocol.TCP),
    )
]
ADDRESSES = [ip_address(a) for a in ("10.0.0.21", "10.0.0.22", "10.0.0.23", "fd00::21", "fd00::22")]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Config, Surroundings]:
    """A configuration, and health and next hops for its backends."""
    services, health, hops = [], {}, {}
    for n, key in enumerate(draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4))):
        backends = []
        for address in draw(st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=4)):
            name = f"b{ADDRESSES.index(address)}"
            backends.append(
                Backend(
                    name,
                    address,
                    draw(st.sampled_from([0, 1, 100, 1000])),
                    draw(st.sampled_from(AdminState)),
                )
            )
            health[name] = draw(st.sampled_from(Health))
            hops[name] = draw(
                st.sampled_from([hop("10.0.0.21"), hop("10.0.0.21", ifindex=9, mtu=9000), None])
            )
        services.append(
            Service(
                f"s{n}", key, draw(st.sampled_from(Forward)),
                down_flows=draw(st.sampled_from(DownFlows)), backends=tuple(backends),
            )
        )  # fmt: skip
    config = Config(
        "test", "eth0", tables=TABLES, services=tuple(services), hash_seed=draw(st.integers(0, 3)),
        ipip_source_v4=ip_address("10.0.0.1"), ipip_source_v6=ip_address("fd00::1"),
    )  # fmt: skip
    return config, surroundings(config, health, hops)


def ids_for(config: Config, held: TableContents) -> Identities:
    salts = itertools.count(len(held.services) * 100)
    return assign(config, held, frozenset(), lambda: next(salts))


def check_safe(held: TableContents) -> None:
    """What every packet relies on: a ring leads only to backends of its own service."""
    for entry in held.services.values():
        for ident in np.unique(np.frombuffer(entry.ring, dtype=np.uint16)):
            assert int(ident) in held.backends
            assert held.backends[int(ident)].service_id == entry.id
    ids = [entry.id for entry in held.services.values()]
    assert len(ids) == len(set(ids))


histories = st.lists(worlds(), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
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


@settings(deadline=None, max_examples=150)
@given(histories)
def test_every_prefix_is_safe(history):
    held = TableContents()
    for config, around in history:
        for step in diff(held, desired(config, ids_for(config, held), around)):
            held = after(held, step)
            check_safe(held)


@settings(deadline=None, max_examples=100)
@given(histories)
def test_the_backends_first_and_the_rest_after_is_safe_too(history):
    """What a pass does: flags at once, rings once they are built."""
    held = TableContents()
    for config, around in history:
        ids = ids_for(config, held)
        early = held.backends | desired_backends(config, ids, around)
        wanted = desired(config, ids, around)
        for goal in (replace(held, backends=early), wanted):
            for step in diff(held, goal):
                held = after(held, step)
                check_safe(held)
        assert held == wanted


@settings(deadline=None, max_examples=100)
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
        backends = {key: again.backends[key] for key in ids.backends if key in again.backends}
        known = {(e.service_id, e.address): i for i, e in held.backends.items()}
        assert all(backends[key] == known[key] for key in backends if key in known)
        wanted = desired(config, again, around)
        for step in diff(held, wanted):
            held = after(held, step)
            check_safe(held)
        assert held == wanted


@settings(deadline=None, max_examples=100)
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
