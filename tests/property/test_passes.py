"""Passes over some services leave the tables as a pass over all of them would."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.plan import changed
from agent.dataplane import abi, contents
from agent.model import BackendRef, Config
from agent.reconcile.passes import Scope, joined
from agent.reconcile.reconciler import Pass, Reconciler
from agent.state.desired import Surroundings, desired, differing
from agent.state.identities import slot_of
from agent.state.rings import KeptRings
from tests.examples import examples
from tests.property.worlds import worlds
from tests.unit.dataplane.fakes import FakeTables
from tests.unit.state.world import TABLES

type World = tuple[Config, Surroundings]


def told(past: World | None, now: World) -> Scope:
    """The services of which a pass hears: those that are configured or surrounded otherwise."""
    if past is None:
        return None
    (before, was), (config, around) = past, now
    scope = joined(changed(before, config), differing(was, around))
    return joined(
        scope,
        frozenset(
            service.name
            for service in config.services
            if any(
                was.eligibility.get(ref) != around.eligibility[ref]
                or was.hops.get(backend.address) != around.hops.get(backend.address)
                for backend in service.backends
                for ref in (BackendRef(service.name, backend.name),)
            )
        ),
    )


def check(tables: FakeTables, done: Pass, world: World) -> None:
    config, around = world
    wanted = desired(config, done.ids, around)
    assert done.contents == wanted
    assert contents.read(tables) == wanted


def mixed(first: World, second: World, names: Iterable[str], data: st.DataObject) -> World:
    """The second world, but for services that are as they were in the first one, as objects."""
    (before, was), (config, around) = first, second
    kept = {service.name: service for service in before.services if service.name in names}
    keys = {slot_of(service.key) for service in kept.values()}
    others = [s for s in config.services if s.name not in kept and slot_of(s.key) not in keys]
    services = (*kept.values(), *others)
    refs = {BackendRef(s.name, b.name) for s in services for b in s.backends}
    both = {**around.eligibility, **{r: v for r, v in was.eligibility.items() if r.service in kept}}
    return (
        replace(before, services=services),
        replace(
            around,
            eligibility={ref: both[ref] for ref in refs},
            hops={**around.hops, **was.hops},
            pick_seed=data.draw(st.sampled_from([was.pick_seed, was.pick_seed, 7])),
            draws={**around.draws, **{n: was.draws[n] for n in kept if n in was.draws}},
        ),
    )


@settings(deadline=None, max_examples=examples(100))
@given(st.lists(worlds(), min_size=1, max_size=4), st.data())
def test_what_a_pass_is_told_of_is_enough(history: list[World], data: st.DataObject) -> None:
    async def story() -> None:
        tables = FakeTables(TABLES)
        reconciler = Reconciler(tables, lambda: 0.0)  # type: ignore[arg-type]
        past: World | None = None
        for drawn in history:
            world = drawn
            if past is not None:
                names = [service.name for service in past[0].services]
                kept = data.draw(st.sets(st.sampled_from(names)) if names else st.just(set()))
                world = mixed(past, drawn, kept, data)
            if data.draw(st.booleans()):
                reconciler.identities(world[0])  # an edit asks before
            done = await reconciler.run(*world, told(past, world))
            check(tables, done, world)
            past = world

    asyncio.run(story())


@settings(deadline=None, max_examples=examples(50))
@given(worlds(), st.data())
def test_what_somebody_else_has_written_is_mended_when_its_service_is_looked_at(
    world: World, data: st.DataObject
) -> None:
    async def story() -> None:
        tables = FakeTables(TABLES)
        reconciler = Reconciler(tables, lambda: 0.0)  # type: ignore[arg-type]
        config = world[0]
        done = await reconciler.run(*world)
        idents = [(s, i) for s in config.services for i in done.ids.backend_ids(s)]
        if not idents:
            return
        service, ident = data.draw(st.sampled_from(idents))
        tables.backends["flags"][ident] ^= abi.BACKEND_F_USABLE
        done = await reconciler.run(*world, frozenset({service.name}))
        check(tables, done, world)

    asyncio.run(story())


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(worlds(), min_size=1, max_size=3))
def test_rings_that_are_kept_are_those_that_would_be_built(history: list[World]) -> None:
    kept = KeptRings()
    for config, around in history:
        ids = Reconciler(FakeTables(TABLES), lambda: 0.0).identities(config)  # type: ignore[arg-type]
        assert desired(config, ids, around, kept) == desired(config, ids, around)
