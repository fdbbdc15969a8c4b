"""One balancer of a fleet: what it runs, whatever happens to the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agent.errors import ConfigError, ConflictError, OvertakenError, StoreError
from agent.fleet import member as members
from agent.fleet import saved as disk
from agent.fleet.member import Figures, Member
from agent.fleet.reports import NODES, PARTS, SEEN, Part, Work
from agent.fleet.saved import Saved
from agent.fleet.store import FleetStore, Known
from agent.fleet.versions import ACTIVE, Documents, FleetVersion, Trial
from tests.unit.fleet.conftest import FLEET, runs
from tests.unit.fleet.memory import Memory
from tests.unit.fleet.test_store import PREFIX, order, services

FIGURES = Figures("alone", "", "rr", (), Work(), {"chat": Part("a", "b", "c")})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("POLL_S", 0.02), ("SILENT_S", 0.01), ("AGAIN_S", 0.01), ("MOST_AGAIN_S", 0.05),
        ("REFUSED_AGAIN_S", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(members, name, value)


@dataclass
class Balancer:
    """A member, and what it has run."""

    folder: Path
    name: str = "lb1"
    saved: Saved | None = None
    refuses: Callable[[int], str] = lambda _number: ""
    figures: Figures = FIGURES
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.folder / f"{self.name}.json"
        fleet = replace(FLEET, node=self.name, report_s=0.02)
        self.member = Member(fleet, self.name, self.path, self.saved, self.take, self.look)

    async def take(self, number: int, documents: Documents, _entry: FleetVersion | None) -> None:
        if why := self.refuses(number):
            raise ConfigError(why, where="service chat", remedy="mend it")
        self.ran.append(number)
        await self.member.took(number, documents)

    async def look(self) -> Figures:
        return self.figures

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.005)

    async def at(self, number: int) -> None:
        """Wait until it runs a version, and has saved it."""

        def is_there() -> bool:
            found = disk.read(self.path, "prod")
            return self.member.version == number and found is not None and found.version == number

        await self.until(is_there)


@contextlib.asynccontextmanager
async def works(*balancers: Balancer) -> AsyncGenerator[None]:
    tasks = [asyncio.create_task(t) for b in balancers for t in b.member.tasks().values()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def begin(*weights: int) -> tuple[FleetStore, Known]:
    """Write these versions."""
    store = FleetStore(FLEET)
    known = await store.read()
    for weight in weights:
        known, _ = await store.add(known, order(weight))
    return store, known


@runs
async def test_it_takes_what_is_active_and_what_comes(memory: Memory, tmp_path: Path) -> None:
    store, known = await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        known, _ = await store.add(known, order(2))
        await one.at(2)
        assert one.ran == [1, 2]
        assert disk.read(one.path, "prod") == Saved(2, one.member.since, services(2), None)
    assert one.member.problem() == ""


@runs
async def test_without_a_version_nothing_is_taken(memory: Memory, tmp_path: Path) -> None:
    one = Balancer(tmp_path)
    async with works(one):
        await one.until(lambda: one.member.status().away_since is None)
        await asyncio.sleep(0.1)
        assert one.ran == []
        assert not one.member.has_versions
        await begin(1)
        await one.at(1)


@runs
async def test_what_runs_stays_while_the_store_is_away(memory: Memory, tmp_path: Path) -> None:
    memory.away = True
    one = Balancer(tmp_path, saved=Saved(7, 5.0, services(7)))
    async with works(one):
        await one.until(lambda: "refused" in one.member.problem())
        status = one.member.status()
        assert (status.version, status.wanted, status.away_since is None) == (7, None, False)
        assert (
            "the fleet's store cannot be used: http://e1:2379: connection refused" in status.problem
        )
        assert "version 7 stays" in status.problem
        with pytest.raises(StoreError, match="lbctl fleet freeze"):
            one.member.writable()
    assert one.ran == []


@runs
async def test_a_change_waits_for_a_store_that_has_failed_just_now(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        memory.away = True
        await one.until(lambda: one.member.problem())
        with pytest.raises(StoreError, match="cannot be used"):
            one.member.writable()
        waiting = asyncio.create_task(one.member.reached())
        memory.away = False
        await waiting
        assert one.member.writable().active.stable == 1


@runs
async def test_it_goes_on_when_the_store_is_back_even_if_it_was_compacted(
    memory: Memory, tmp_path: Path
) -> None:
    store, known = await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        known, _ = await store.add(known, order(2))
        await one.at(2)
        memory.away = True
        await one.until(lambda: one.member.status().away_since is not None)
        memory.away = False
        for weight in (3, 4):
            known, _ = await store.add(known, order(weight))
        memory.compact()
        await one.at(4)
        assert one.member.problem() == ""


@runs
async def test_a_watch_that_says_nothing_is_left(memory: Memory, tmp_path: Path) -> None:
    """A member that hangs holds its watches open."""
    store, known = await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        memory.silent = True
        await store.add(known, order(2))
        await one.at(2)
        # That is no reason to say that the store is away.
        assert one.member.status().away_since is None


@runs
async def test_who_was_overtaken_waits_for_the_other_change(memory: Memory, tmp_path: Path) -> None:
    """The watch may be late: without the wait, each new attempt would be overtaken as well."""
    store, known = await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        memory.silent = True
        await store.add(known, order(2))
        with pytest.raises(OvertakenError):
            await one.member.publish(one.member.writable(), order(3))
        await one.member.caught_up()
        assert one.member.version == 2
        assert await one.member.publish(one.member.writable(), order(3)) == 3


@runs
async def test_an_empty_store_is_not_believed_and_can_be_written_again(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1, 2)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(2)
    memory.rows.clear()
    one = Balancer(tmp_path, saved=disk.read(one.path, "prod"))
    async with works(one):
        await one.until(lambda: "nothing of this fleet" in one.member.problem())
        assert one.member.version == 2
        assert "lbctl fleet import" in one.member.problem()
        with pytest.raises(ConflictError):
            one.member.writable()
        number = await one.member.publish(one.member.importable(), order(2, number=3))
        await one.at(number)
        assert number == 3
        assert one.member.problem() == ""


@runs
async def test_an_older_store_is_not_believed_either(memory: Memory, tmp_path: Path) -> None:
    """It was restored from a backup."""
    await begin(1)
    one = Balancer(tmp_path, saved=Saved(9, 5.0, services(9)))
    async with works(one):
        await one.until(lambda: "versions up to 1" in one.member.problem())
        assert one.ran == []


@runs
async def test_a_store_that_was_written_anew_counts_though_its_revisions_are_lower(
    memory: Memory, tmp_path: Path
) -> None:
    """This balancer has not seen it empty."""
    await begin(1, 2)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(2)
    memory.rows.clear()
    memory.log.clear()
    memory.revision = 1
    store = FleetStore(FLEET)
    await store.add(await store.read(), order(7, number=3))
    async with works(one):
        await one.at(3)
    assert one.member.services == services(7)


@runs
async def test_a_version_that_is_refused_is_tried_again(memory: Memory, tmp_path: Path) -> None:
    store, known = await begin(1)
    why = "there is no zone east"
    shown: list[str] = []  # while it is tried

    def refuses(number: int) -> str:
        if number == 2:
            shown.append(one.member.problem())
        return why if number == 2 else ""

    one = Balancer(tmp_path, refuses=refuses)
    async with works(one):
        await one.at(1)
        known, _ = await store.add(known, order(2))
        await one.until(lambda: one.member.status().refused == 2)
        assert one.member.problem() == (
            "version 2 of the fleet is refused here, 1 stays: service chat: there is no zone east"
        )
        with pytest.raises(ConflictError, match="no zone east"):
            one.member.writable()
        await one.until(lambda: len(shown) > 1)
        why = ""
        await one.at(2)
        assert one.member.status().refused is None
        assert len(shown) > 1, "it was tried again"
        assert shown[0] == ""
        assert all("version 2 of the fleet is refused" in each for each in shown[1:]), shown
        why = "again"
        one.refuses = lambda _number: why
        await store.add(known, order(3))
        await one.until(lambda: one.member.status().refused == 3)


@runs
async def test_a_version_that_is_on_its_way_is_waited_for(memory: Memory, tmp_path: Path) -> None:
    store, known = await begin(1)
    go = asyncio.Event()
    one = Balancer(tmp_path)
    take = one.take

    async def slowly(number: int, documents: Documents, entry: FleetVersion | None) -> None:
        if number == 2:
            await go.wait()
        await take(number, documents, entry)

    one.member._take = slowly
    async with works(one):
        await one.at(1)
        await store.add(known, order(2))
        await one.until(lambda: one.member.status().stable == 2)
        with pytest.raises(OvertakenError):
            one.member.writable()
        go.set()
        await one.member.caught_up()
        assert one.member.writable().active.stable == 2


@runs
async def test_a_version_that_is_being_taken_is_taken_whole_whatever_the_store_does(
    memory: Memory, tmp_path: Path
) -> None:
    store, known = await begin(1)
    begun, go = asyncio.Event(), asyncio.Event()
    one = Balancer(tmp_path)
    take, broken = one.take, []

    async def slowly(number: int, documents: Documents, version: FleetVersion | None) -> None:
        if number == 2:
            begun.set()
            try:
                await go.wait()
            except asyncio.CancelledError:
                broken.append(number)
                raise
        await take(number, documents, version)

    one.member._take = slowly
    async with works(one):
        await one.at(1)
        await store.add(known, order(2))
        await begun.wait()
        memory.away = True
        memory.write({})  # the watch notices it
        await one.until(lambda: one.member.status().away_since is not None)
        memory.away = False
        await one.until(lambda: one.member.status().away_since is None)
        assert broken == []
        go.set()
        await one.at(2)


@runs
async def test_a_frozen_balancer_stays_and_thawed_it_follows(
    memory: Memory, tmp_path: Path
) -> None:
    store, known = await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        await one.member.freeze("moving etcd (anna)")
        known, _ = await store.add(known, order(2))
        await one.member.took(1, services(44))  # changed here alone
        await one.until(lambda: one.member.status().stable == 2)
        assert one.member.version == 1
        assert one.member.problem().startswith(
            "this balancer is frozen at version 1: moving etcd (anna); `lbctl fleet thaw`"
        )
        found = disk.read(one.path, "prod")
        assert found is not None
        assert (found.version, found.services, found.frozen) == (
            1, services(44), "moving etcd (anna)",
        )  # fmt: skip
        with pytest.raises(ConflictError, match="has changed since"):
            one.member.importable()
        await one.member.freeze(None)
        assert one.member.version == 2
        assert one.member.services == services(2)


@runs
async def test_freezing_and_thawing_are_kept_over_a_restart(memory: Memory, tmp_path: Path) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        for why in ("by anna", None):
            await one.member.freeze(why)
            found = disk.read(one.path, "prod")
            assert found is not None
            assert found.frozen == why
    assert one.ran == [1]


@runs
async def test_freezing_while_a_version_is_saved_is_kept_over_a_restart(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun, go = disk.write, threading.Event(), threading.Event()

    def slow(path: Path, fleet: str, state: Saved) -> None:
        if state.frozen is None:
            begun.set()
            go.wait(10)
        write(path, fleet, state)

    monkeypatch.setattr(disk, "write", slow)
    one = Balancer(tmp_path)
    taking = asyncio.create_task(one.member.took(1, services(1)))
    await one.until(begun.is_set)
    freezing = asyncio.create_task(one.member.freeze("by anna"))
    await asyncio.wait([freezing], timeout=0.5)  # it would be done if it did not wait
    go.set()
    await asyncio.gather(taking, freezing)
    assert disk.read(one.path, "prod") == Saved(1, one.member.since, services(1), "by anna")


@runs
async def test_a_late_message_of_the_watch_does_not_undo_a_newer_version(
    memory: Memory, tmp_path: Path
) -> None:
    store, _ = await begin(1)
    late = await store.read()
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        number = await one.member.publish(one.member.writable(), order(2))
        await one.member.took(number, services(2))
        await one.member._learn(late)
        assert one.member.wanted == 2
        await one.member.run_wanted()
    assert one.ran == [1]


@runs
async def test_thawing_undoes_a_change_made_here_alone(memory: Memory, tmp_path: Path) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        await one.member.freeze("by anna")
        await one.member.took(1, services(44))
        assert one.member.importable().active.stable == 1
        await one.member.freeze(None)
        assert (one.member.version, one.member.services) == (1, services(1))
    assert one.ran == [1, 1]


@runs
async def test_thawing_undoes_it_also_before_the_store_is_reached(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    one = Balancer(tmp_path, saved=Saved(1, 5.0, services(44), "by anna"))
    await one.member.freeze(None)
    async with works(one):
        await one.until(lambda: one.member.services == services(1))
    assert one.ran == [1]


@runs
async def test_it_reports_under_a_lease_and_again_when_that_has_ended(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.until(lambda: PREFIX + NODES + "lb1" in memory.rows)
        report = await one.member.store.report_of("lb1")
        assert report is not None
        assert (report.version, report.role, report.rings) == (1, "alone", "rr")
        assert await one.member.store.parts(["lb1"]) == {"lb1": FIGURES.parts}
        (lease,) = memory.leases
        memory.end_lease(lease)
        assert PREFIX + NODES + "lb1" not in memory.rows
        one.figures = replace(FIGURES, down=("chat",))
        await one.until(lambda: PREFIX + NODES + "lb1" in memory.rows)
        await one.until(lambda: PREFIX + PARTS + "lb1" in memory.rows)
        await one.until(lambda: len(memory.leases) == 2)


@runs
async def test_that_it_reports_stays_known_when_its_lease_has_ended(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.until(lambda: PREFIX + SEEN + "lb1" in memory.rows)
        (lease,) = memory.leases
    memory.end_lease(lease)
    assert await one.member.store.reports() == {}
    (at,) = (await one.member.store.seen()).values()
    assert abs(at - time.time()) < 60


@runs
async def test_its_lease_is_kept_alive(memory: Memory, tmp_path: Path) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    one.member.fleet = replace(FLEET, lease_s=0.3, report_s=0.02)
    async with works(one):
        await one.until(lambda: len(memory.kept_alive) >= 3)
    (lease,) = memory.leases
    assert set(memory.kept_alive) == {lease}


@runs
async def test_a_report_that_the_store_does_not_take_is_a_problem(
    memory: Memory, tmp_path: Path
) -> None:
    """The store can be read, so nothing else shows that the others do not see this balancer."""
    await begin(1)
    memory.read_only = True
    one = Balancer(tmp_path)
    one.member.fleet = replace(FLEET, lease_s=0.1, report_s=0.02)
    async with works(one):
        await one.at(1)
        await one.until(lambda: "does not take this balancer's report" in one.member.problem())
        assert "http://e1:2379: permission denied (grant it)" in one.member.problem()
        memory.read_only = False
        await one.until(lambda: not one.member.problem())
        # What it reported before is not kept alive either.
        memory.read_only = True
        kept = len(memory.kept_alive)
        await one.until(lambda: "does not take this balancer's report" in one.member.problem())
        assert len(memory.kept_alive) <= kept + 1


@runs
async def test_its_lease_is_kept_alive_also_during_a_rollout(
    memory: Memory, tmp_path: Path
) -> None:
    """Reports come more often then, and none of them prolongs the lease."""
    store, known = await begin(1)
    one = Balancer(tmp_path)
    one.member.fleet = replace(FLEET, lease_s=0.3, report_s=0.02)
    async with works(one):
        await store.add(known, order(2, trial=Trial(("lb3",), 0)))
        row = PREFIX + NODES + "lb1"
        await one.until(lambda: row in memory.rows and one.member._rollout_since[0] == 2)
        before = len(memory.kept_alive)
        await one.until(lambda: len(memory.kept_alive) >= before + 3)


@runs
async def test_two_balancers_with_one_name_both_notice_it(memory: Memory, tmp_path: Path) -> None:
    await begin(1)
    fleet = replace(FLEET, lease_s=0.3, report_s=0.02)
    one, other = Balancer(tmp_path / "a"), Balancer(tmp_path / "b")
    one.member.fleet = other.member.fleet = fleet
    async with works(one):
        await one.until(lambda: PREFIX + NODES + "lb1" in memory.rows)
        async with works(other):
            for each in (one, other):
                await each.until(lambda each=each: "is called lb1, too" in each.member.problem())
        await one.until(lambda: not one.member.problem())  # the other one is gone


@runs
async def test_what_it_reported_before_it_was_started_anew_is_no_other_balancer(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    row = PREFIX + NODES + "lb1"
    async with works(before := Balancer(tmp_path)):
        await before.until(lambda: row in memory.rows)
    one = Balancer(tmp_path)
    one.member.fleet = replace(FLEET, lease_s=0.1, report_s=0.02)
    old, puts = memory.rows[row], set[int]()

    def has_reported() -> bool:
        assert "is called" not in one.member.problem()
        puts.add(memory.rows[row][1])
        return len(puts - {old[1]}) >= 3

    async with works(one):
        await one.until(has_reported)


@runs
async def test_a_rollout_is_promoted_by_its_time(memory: Memory, tmp_path: Path) -> None:
    store, known = await begin(1)
    one, three = Balancer(tmp_path, "lb1"), Balancer(tmp_path, "lb3")
    async with works(one, three):
        await one.at(1)
        await three.at(1)
        await store.add(known, order(2, trial=Trial(("lb3",), 3600.0)))
        await three.at(2)
        reported = set[int]()

        def has_judged() -> bool:
            assert one.member.version == 1
            value, revision, _ = memory.rows.get(PREFIX + NODES + "lb3", (b"{}", 0, None))
            if json.loads(value).get("version") == 2:
                reported.add(revision)
            return len(reported) >= 3  # it judges after each report

        await one.until(has_judged)
        with pytest.raises(ConflictError, match="lbctl rollout promote"):
            three.member.writable()
        three.member.since -= 3600.0  # an hour goes by
        await one.at(2)
        active = one.member.active
        assert active is not None
        assert active.ended is not None
        assert (active.stable, active.ended.outcome) == (2, "promoted")


@runs
async def test_a_rollout_is_given_up_when_it_is_refused(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "REFUSED_AGAIN_S", 3600.0)  # nothing is refused afterwards
    store, known = await begin(1)
    one = Balancer(tmp_path, "lb1")
    three = Balancer(tmp_path, "lb3", refuses=lambda number: "no zone" if number == 2 else "")
    async with works(one, three):
        await three.at(1)
        await store.add(known, order(2, trial=Trial(("lb3",), 60.0)))

        def is_over() -> bool:
            active = one.member.active
            return active is not None and active.ended is not None

        await one.until(is_over)
        active = one.member.active
        assert active is not None
        assert active.ended is not None
        assert active.ended.why == "lb3 refuses it: service chat: no zone"
        await three.until(lambda: three.member.status().refused is None)
        assert (three.member.version, three.member.problem()) == (1, "")


@runs
async def test_what_a_newer_release_writes_is_refused_and_named(
    memory: Memory, tmp_path: Path
) -> None:
    await begin(1)
    one = Balancer(tmp_path)
    async with works(one):
        await one.at(1)
        memory.write({PREFIX + ACTIVE: json.dumps({"format": 2}).encode()})
        await one.until(lambda: "upgrade this balancer too" in one.member.problem())
        assert "versions/active" in one.member.problem()
        assert one.member.version == 1
        assert one.member.status().away_since is None
        with pytest.raises(StoreError, match="format 2"):
            one.member.writable()
        row = PREFIX + NODES + "lb1"
        await one.until(
            lambda: b"format 2" in memory.rows.get(row, (b"",))[0]
        )  # the others see it, too
        memory.write({PREFIX + ACTIVE: b"garbage"})
        await one.until(lambda: "see who else writes below" in one.member.problem())
        assert one.member.version == 1


@runs
async def test_a_disk_that_is_full_is_said(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    one = Balancer(tmp_path)
    async with works(one):
        await one.until(lambda: "No space left on device" in one.member.problem())
        assert one.member.version == 1
        monkeypatch.undo()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"fleet": "prod", "version": 1, "since": 1, "services": [3]}']
)
def test_a_damaged_file_is_refused_with_the_remedy(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lb1.fleet.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="remove it"):
        disk.read(path, "prod")


def test_what_another_fleet_ran_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "lb1.fleet.json"
    assert disk.read(path, "prod") is None
    disk.write(path, "test", Saved(3, 1.0, services(1), "why"))
    assert disk.read(path, "prod") is None
    assert disk.read(path, "test") == Saved(3, 1.0, services(1), "why")


def test_the_window_begins_anew_with_a_version() -> None:
    window = members._Window()
    totals: Mapping[float, int] = {0.0: 10, 30.0: 40, 60.0: 70, 90.0: 100}
    for at, opened in totals.items():
        window.add(at, Work(opened=opened))
    assert window.work.opened == 60
    window.restart()
    window.add(91.0, Work(opened=105))
    assert (window.work.opened, window.before.opened) == (5, 60)
