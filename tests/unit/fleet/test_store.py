"""A fleet's keys in its store: versions by compare-and-swap, history, trimming, reports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agent.errors import NotFoundError, OvertakenError, StoreError, UncertainError
from agent.fleet.etcd import Listing
from agent.fleet.reports import (
    NODES,
    PARTS,
    SEEN,
    Part,
    Report,
    write_parts,
    write_report,
    write_seen,
)
from agent.fleet.store import FleetStore, Known, Order
from agent.fleet.versions import (
    ACTIVE,
    LOG,
    SNAPSHOT_EVERY,
    SNAPSHOTS,
    Rollout,
    Trial,
    log_key,
    write_active,
)
from tests.unit.fleet.conftest import FLEET, runs
from tests.unit.fleet.memory import Memory

PREFIX = "/steelyard/prod/"


def services(weight: int, *names: str) -> dict[str, Mapping[str, object]]:
    return {name: {"name": name, "weight": weight} for name in names or ("chat", "embed")}


def order(weight: int, **more: object) -> Order:
    made = {
        "after": services(weight),
        "at": 1.0,
        "node": "lb1",
        "how": "edit",
        "who": "anna",
        "message": "",
        "changes": (f"weight {weight}",),
    }
    return Order(**{**made, **more})  # type: ignore[arg-type]


async def add(store: FleetStore, *weights: int) -> Known:
    known = await store.read()
    for weight in weights:
        known, _ = await store.add(known, order(weight))
    return known


@runs
async def test_a_fleet_begins_with_nothing_and_then_has_what_was_written(memory: Memory) -> None:
    store = FleetStore(FLEET)
    empty = await store.read()
    assert not empty.exists
    assert empty.log.documents(empty.active.stable) == {}
    await add(store, 1, 2)
    known = await FleetStore(FLEET).read()
    assert known.exists
    assert (known.active.stable, known.active.newest) == (2, 2)
    assert known.log.documents(1) == services(1)
    assert known.log.documents(2) == services(2)


@runs
async def test_of_two_who_change_the_same_version_one_is_overtaken(memory: Memory) -> None:
    one, other = FleetStore(FLEET), FleetStore(FLEET)
    await add(one, 1)
    ours, theirs = await one.read(), await other.read()
    await one.add(ours, order(2))
    with pytest.raises(OvertakenError):
        await other.add(theirs, order(3))
    known = await other.read()
    assert known.log.documents(known.active.stable) == services(2)
    await other.add(known, order(3))
    assert (await one.read()).active.stable == 3


@runs
async def test_of_two_who_write_a_lost_store_anew_one_is_overtaken(memory: Memory) -> None:
    """They give their versions different numbers, so no two keys of versions are the same."""
    one, other = FleetStore(FLEET), FleetStore(FLEET)
    ours, theirs = await one.read(), await other.read()
    await one.add(ours, order(1, number=41))
    with pytest.raises(OvertakenError):
        await other.add(theirs, order(2))
    assert (await other.read()).active.newest == 41


@runs
async def test_of_two_who_end_a_rollout_one_is_overtaken(memory: Memory) -> None:
    one, other = FleetStore(FLEET), FleetStore(FLEET)
    known, _ = await one.add(await add(one, 1), order(2, trial=Trial(("lb3",), 60.0)))
    theirs = await other.read()
    await one.set_active(known, known.active.aborted("bad", "anna", 2.0))
    with pytest.raises(OvertakenError):
        await other.set_active(theirs, theirs.active.promoted("well", "bob", 2.0))
    assert (await other.read()).active.stable == 1


@runs
async def test_a_change_whose_answer_got_lost_is_found_and_not_made_twice(memory: Memory) -> None:
    store = FleetStore(FLEET)
    known = await add(store, 1)
    memory.loses = 1
    known, entry = await store.add(known, order(2))
    assert entry.number == 2
    assert (await store.read()).active == known.active
    # It may have been another balancer's.
    known = await store.read()
    await FleetStore(FLEET).add(await store.read(), order(8))
    memory.loses = 1
    with pytest.raises(OvertakenError):
        await store.add(known, order(9))
    assert memory.loses == 0


@runs
async def test_a_change_that_may_still_come_is_said_to_be_uncertain(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FleetStore(FLEET)
    known = await add(store, 1)

    async def lost(*_: object, **__: object) -> int | None:
        raise UncertainError("no answer", where="e1", remedy="")

    monkeypatch.setattr(store.client, "commit", lost)
    with pytest.raises(UncertainError, match="lbctl fleet history"):
        await store.add(known, order(2))
    tried = known.active.with_version(2, Rollout(2, ("lb3",), 1.0))
    promoted = tried.promoted("well", "bob", 2.0)
    with pytest.raises(UncertainError, match="lbctl fleet history"):
        await store.set_active(known, promoted)
    await FleetStore(FLEET).client.put(ACTIVE, write_active(tried.aborted("bad", "anna", 2.0)))
    with pytest.raises(OvertakenError):
        await store.set_active(known, promoted)
    memory.write({PREFIX + ACTIVE: None})  # nobody can tell whether it was ours
    with pytest.raises(UncertainError):
        await store.set_active(known, promoted)


@pytest.mark.parametrize("is_refused", [True, False])
@runs
async def test_the_end_of_a_rollout_is_found_although_the_fleet_was_changed_since(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """The answer gets lost, and another balancer makes a version before it is looked for."""
    store, other = FleetStore(FLEET), FleetStore(FLEET)
    known, _ = await store.add(await add(store, 1), order(2, trial=Trial(("lb3",), 60.0)))
    commit, calls = store.client.commit, [0]

    async def lost(*args: Any) -> int | None:
        calls[0] += 1
        if calls[0] > 1 and is_refused:
            return await commit(*args)
        if calls[0] == 1:
            await commit(*args)
            await other.add(await other.read(), order(3))
        raise UncertainError("no answer", where="e1", remedy="")

    monkeypatch.setattr(store.client, "commit", lost)
    found = await store.set_active(known, known.active.promoted("well", "bob", 2.0))
    assert calls == [2]
    assert found.active == (await other.read()).active
    assert (found.active.stable, found.revision) == (3, (await other.read()).revision)


@runs
async def test_the_end_of_another_rollout_says_nothing_about_ours(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = FleetStore(FLEET), FleetStore(FLEET)
    known, _ = await store.add(await add(store, 1), order(2, trial=Trial(("lb3",), 60.0)))
    commit = store.client.commit

    async def lost(*args: Any) -> int | None:
        await commit(*args)
        theirs, _ = await other.add(await other.read(), order(3, trial=Trial(("lb3",), 60.0)))
        await other.set_active(theirs, theirs.active.aborted("bad", "anna", 3.0))
        raise UncertainError("no answer", where="e1", remedy="")

    monkeypatch.setattr(store.client, "commit", lost)
    with pytest.raises(UncertainError):
        await store.set_active(known, known.active.promoted("well", "bob", 2.0))


@runs
async def test_a_change_that_was_lost_on_its_way_is_sent_once_more(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the leader dies before it has told the others."""
    store = FleetStore(FLEET)
    known = await add(store, 1)
    commit, lost = store.client.commit, [True]

    async def lost_at_first(*args: Any) -> int | None:
        if lost.pop() if lost else False:
            raise UncertainError("no answer", where="e1", remedy="")
        return await commit(*args)

    monkeypatch.setattr(store.client, "commit", lost_at_first)
    known, entry = await store.add(known, order(2))
    assert entry.number == 2
    assert (await store.read()).active == known.active


@runs
async def test_a_version_that_some_try_is_not_the_stable_one(memory: Memory) -> None:
    store = FleetStore(FLEET)
    known = await add(store, 1)
    known, _ = await store.add(known, order(2, trial=Trial(("lb3",), 60.0)))
    assert (known.active.of("lb1"), known.active.of("lb3")) == (1, 2)
    known = await store.set_active(known, known.active.aborted("bad", "anna", 2.0))
    known, entry = await store.add(known, order(3))
    assert (entry.number, entry.base) == (3, 1)
    again = await FleetStore(FLEET).read()
    assert again.active == known.active
    assert again.log.documents(3) == services(3)


@runs
async def test_who_follows_sees_each_version_and_what_is_active(memory: Memory) -> None:
    store = FleetStore(FLEET)
    known = await add(store, 1)
    changes = FleetStore(FLEET).follow(await store.read())
    known, _ = await store.add(known, order(2))
    await store.add(known, order(3))
    stables = [(await anext(changes)).active.stable for _ in range(2)]
    assert stables == [2, 3]
    await changes.aclose()


@runs
async def test_old_versions_are_removed_behind_a_snapshot_and_the_rest_can_be_read(
    memory: Memory,
) -> None:
    store = FleetStore(FLEET)  # it keeps 64 versions
    await add(store, *range(1, 200))
    kept = sorted(key for key in memory.rows if key.startswith(PREFIX + LOG))
    whole = sorted(key for key in memory.rows if key.startswith(PREFIX + SNAPSHOTS))
    assert [int(key[-12:]) for key in whole] == [128, 192]
    assert kept[0] == PREFIX + log_key(128)
    known = await FleetStore(FLEET).read()
    assert known.log.documents(199) == services(199)
    for number in (128, 150, 191, 192, 199):
        entry, found = await store.version(number)
        assert (entry.number, found) == (number, services(number))
    for number in (127, 200):
        with pytest.raises(NotFoundError, match=f"no version {number}"):
            await store.version(number)
    newest = await store.history(3)
    assert [entry.number for entry in newest] == [199, 198, 197]


@runs
async def test_the_author_of_a_snapshots_version_is_known(memory: Memory) -> None:
    store = FleetStore(FLEET)
    known = await add(store, *range(1, SNAPSHOT_EVERY))
    changes = FleetStore(FLEET).follow(await store.read())
    await store.add(known, order(SNAPSHOT_EVERY))
    for found in (await anext(changes), await FleetStore(FLEET).read()):
        assert found.active.snapshot == SNAPSHOT_EVERY
        entry = found.log.entry(SNAPSHOT_EVERY)
        assert entry is not None
        assert entry.who == "anna"
    await changes.aclose()


@runs
async def test_a_version_that_is_written_while_the_store_is_read_is_not_missed(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the versions were read, and before what is active is."""
    store, other = FleetStore(FLEET), FleetStore(FLEET)
    known = await add(other, 1)
    active = store.active

    async def late() -> Listing:
        await other.add(known, order(2))
        return await active()

    monkeypatch.setattr(store, "active", late)
    found = await store.read()
    assert (found.active.stable, found.log.documents(2)) == (2, None)
    changes = store.follow(found)
    assert (await asyncio.wait_for(anext(changes), 5)).log.documents(2) == services(2)
    await changes.aclose()


@runs
async def test_a_number_is_at_least_what_is_asked_for(memory: Memory) -> None:
    """The store has lost its content, and the balancer runs version 40."""
    store = FleetStore(FLEET)
    known, entry = await store.add(await store.read(), order(1, number=41))
    assert (entry.number, entry.base, known.active.newest) == (41, 0, 41)
    assert (await FleetStore(FLEET).read()).log.documents(41) == services(1)


@runs
async def test_what_others_write_below_the_prefix_is_refused(memory: Memory) -> None:
    store = FleetStore(FLEET)
    await add(store, 1)
    memory.write({PREFIX + LOG + "000000000009": b"garbage"})
    with pytest.raises(StoreError, match="who else writes below the fleet's prefix"):
        await store.read()


@runs
async def test_reports_are_those_that_can_be_read(memory: Memory) -> None:
    store = FleetStore(FLEET)
    report = Report("lb2", "id", "1", 1.0, "alone", 1, 0.5)
    memory.write({PREFIX + NODES + "lb2": write_report(report), PREFIX + NODES + "lb3": b"?"})
    assert await store.reports() == {"lb2": report}
    assert await store.report_of("lb2") == report
    assert await store.report_of("lb9") is None
    memory.write({PREFIX + PARTS + "lb2": write_parts({"chat": Part("a", "b", "c")})})
    assert await store.parts(["lb2"]) == {"lb2": {"chat": Part("a", "b", "c")}}
    with pytest.raises(NotFoundError, match="no balancer lb9 reports"):
        await store.parts(["lb2", "lb9"])


@runs
async def test_who_has_reported_is_known_until_it_is_forgotten(memory: Memory) -> None:
    store = FleetStore(FLEET)
    await store.note_seen("lb2", 100.4)
    memory.write({PREFIX + SEEN + "lb3": b"?", PREFIX + SEEN + "lb22": write_seen(7)})
    assert await store.seen() == {"lb2": 100.0, "lb22": 7.0}
    assert await store.forget("lb2")
    assert not await store.forget("lb2")
    assert await store.seen() == {"lb22": 7.0}


@runs
async def test_nothing_is_removed_that_is_active(memory: Memory) -> None:
    store = FleetStore(FLEET)
    await add(store, 1)
    changes = store.follow(await store.read())
    memory.write({PREFIX + ACTIVE: None})  # somebody deletes it
    memory.write({PREFIX + LOG + "x": None})
    known = await asyncio.wait_for(anext(changes), 5)
    assert known.active.stable == 1
    await changes.aclose()
