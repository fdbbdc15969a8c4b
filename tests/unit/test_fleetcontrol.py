"""Agents of one fleet: edits, rollouts, freezing, reloads, and what they report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from agent.auditlog import AuditLog
from agent.config.edit import Edit, EditOp, with_services
from agent.config.store import RunningStore
from agent.config.versions import Author
from agent.control import AgentControl
from agent.core import Core
from agent.errors import ConfigError, ConflictError, NotFoundError, StoreError
from agent.fleet import member as members
from agent.fleet.reports import Part
from agent.fleet.saved import Saved
from agent.fleet.versions import Documents, Trial
from agent.fleetcontrol import FleetControl, Written, saved_of, with_saved
from agent.journal import Journal
from agent.metrics.observer import AgentFacts
from agent.model import Forward, ServiceState
from agent.notify import Notifier
from agent.state.identities import slot_of
from agent.state.tables import BackendEntry, ServiceEntry, TableContents
from tests.unit.fleet.conftest import memory, runs
from tests.unit.fleet.memory import Memory
from tests.unit.test_control import FakeCore

assert memory  # the fixture

ANNA = Author("anna", "because")
HEAD = """\
interface: eth0
state_dir: {folder}
fleet: {{name: prod, node: {node}, etcd: {{endpoints: ["http://127.0.0.1:1"]}}, report: 500ms}}
"""
SERVICES = """\
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends: [{name: gpu-1, address: 10.0.0.21}, {name: gpu-2, address: 10.0.0.22}]
  - {name: embed, vip: 10.0.0.11, port: 80, backends: [{name: gpu-1, address: 10.0.0.21}]}
"""


def weight(backend: str, value: int) -> Edit:
    return Edit(EditOp.BACKEND_SET, "chat", backend, {"weight": value})


class Agent:
    """One agent without a data plane, whose file has these services."""

    def __init__(self, folder: Path, node: str, services: str = SERVICES, flows: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "agent.yaml"
        self.head = HEAD.format(folder=folder, node=node)
        if not self.path.exists():
            self.path.write_text(self.head + services)
        text = self.path.read_text()
        store = RunningStore(folder, "default")
        loaded = store.load(text)
        saved = saved_of(loaded.config)
        config = with_saved(loaded.config, saved)
        loaded = replace(loaded, config=config, file_config=config, changes=())
        self.core = FakeCore(config, flows)
        self.audit = AuditLog(folder, "default", lambda: False)
        facts = AgentFacts("1", "default", 1, 0.0, str(self.path), "veth")
        self.control = AgentControl(
            cast("Core", self.core), self.path, loaded, store, facts, Notifier(),
            Journal(folder, "default"), {}, self.audit, saved,
        )  # fmt: skip
        self.fleet: FleetControl = self.control.in_fleet()
        self.fleet.member._figures = self.figures

    async def figures(self) -> members.Figures:
        return members.Figures("alone", "", "", (), members.Work(), {})

    def weights(self) -> dict[str, int]:
        (chat,) = (s for s in self.core.config.services if s.name == "chat")
        return {backend.name: backend.weight for backend in chat.backends}

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():  # noqa: ASYNC110 (what is waited for tells nobody)
            await asyncio.sleep(0.005)

    async def at(self, number: int) -> None:
        await self.until(lambda: self.fleet.member.version == number)


@contextlib.asynccontextmanager
async def works(*agents: Agent) -> AsyncGenerator[None]:
    tasks = [asyncio.create_task(t) for a in agents for t in a.fleet.member.tasks().values()]
    try:
        for each in agents:
            await each.until(lambda each=each: each.fleet.member.status().away_since is None)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.control.status_line", lambda _: "")
    for name, value in (
        ("BRIEF_S", 0.2),
        ("POLL_S", 0.05),
        ("AGAIN_S", 0.01),
        ("REFUSED_AGAIN_S", 0.05),
    ):
        monkeypatch.setattr(members, name, value)


@runs
async def test_an_edit_at_one_balancer_is_made_at_all(memory: Memory, tmp_path: Path) -> None:
    one, two = Agent(tmp_path / "1", "lb1"), Agent(tmp_path / "2", "lb2", "services: []\n")
    async with works(one, two):
        assert await one.fleet.import_services(ANNA) == 1
        await two.at(1)
        assert two.weights() == {"gpu-1": 100, "gpu-2": 100}
        changes = await two.control.edit(weight("gpu-1", 7), author=ANNA)
        assert [str(each) for each in changes] == ["change backend chat/gpu-1: weight 100 → 7"]
        await one.at(2)
        assert one.weights() == two.weights() == {"gpu-1": 7, "gpu-2": 100}
        (entry,) = await one.fleet.history(1)
        assert (entry.number, entry.node, entry.who, entry.message) == (2, "lb2", *_of(ANNA))
        assert entry.changes == ("change backend chat/gpu-1: weight 100 → 7",)
        # Only the service that was changed is in the version, and only it is another object.
        assert entry.changed.keys() == {"chat"}
        recorded = [record for record in one.audit.read(0.0, 100) if record["kind"] == "order"]
        assert [(r["by"], r["what"]) for r in recorded] == [("anna", "fleet version 2")]
        versions = await one.control.versions()
        assert (versions[-1].how, versions[-1].who) == ("fleet version 2", "anna")
        # What runs is what is meant to run: nothing differs from the file any more.
        assert one.control.file_changes() == ()
        assert {s.origin.value for s in one.control.origins("chat")} == {"fleet"}


def _of(author: Author) -> tuple[str, str]:
    return author.who, author.message


def note(member: members.Member) -> list[int]:
    """Return a list that gets each version that a balancer takes."""
    took, numbers = member.took, []

    async def noted(number: int, documents: Documents) -> None:
        numbers.append(number)
        await took(number, documents)

    member.took = noted  # type: ignore[method-assign]
    return numbers


@runs
async def test_edits_at_the_same_time_are_all_made(memory: Memory, tmp_path: Path) -> None:
    """And none goes back to an older version for a moment."""
    agents = [Agent(tmp_path / str(n), f"lb{n}") for n in (1, 2, 3)]
    took: dict[str, list[int]] = {}
    for each in agents:
        took[each.fleet.member.node] = note(each.fleet.member)
    async with works(*agents):
        await agents[0].fleet.import_services(ANNA)
        for each in agents:
            await each.at(1)
        edits = [
            agent.control.edit(weight(f"gpu-{1 + n % 2}", 10 * n + k), author=ANNA)
            for k in range(3)
            for n, agent in enumerate(agents, 1)
        ]
        await asyncio.gather(*edits)
        newest = agents[0].fleet.member.status().newest
        assert newest == 10
        for each in agents:
            await each.at(10)
        assert agents[0].weights() == agents[1].weights() == agents[2].weights()
        assert all(numbers == sorted(numbers) for numbers in took.values()), took


@runs
async def test_a_version_whose_turn_comes_late_is_not_run_after_a_newer_one(
    memory: Memory, tmp_path: Path
) -> None:
    """It waited while a change that is the next version was made here."""
    one = Agent(tmp_path / "1", "lb1")
    async with works(one):
        await one.fleet.import_services(ANNA)
        older = one.fleet.member.services
        await one.control.edit(weight("gpu-1", 7), author=ANNA)
        await one.control._take_version(1, older, None)
        assert one.fleet.member.version == 2
        assert one.weights()["gpu-1"] == 7


@runs
async def test_a_trial_runs_on_those_that_are_named(memory: Memory, tmp_path: Path) -> None:
    one, two = Agent(tmp_path / "1", "lb1"), Agent(tmp_path / "2", "lb2")
    async with works(one, two):
        await one.fleet.import_services(ANNA)
        await two.at(1)
        await one.until(lambda: len([k for k in memory.rows if "/nodes/" in k]) == 2)
        made = await one.control.edit(weight("gpu-1", 7), trial=Trial(("lb2",)), author=ANNA)
        assert len(made) == 1
        await two.at(2)
        assert (one.weights()["gpu-1"], two.weights()["gpu-1"]) == (100, 7)
        assert one.core.taken == []  # nor for a moment
        with pytest.raises(ConflictError, match="lbctl rollout promote"):
            await one.control.edit(weight("gpu-2", 5))
        await one.fleet.end_rollout(promote=True, author=ANNA)
        await one.at(2)
        assert one.weights()["gpu-1"] == 7
        with pytest.raises(ConflictError, match="no version is being tried"):
            await one.fleet.end_rollout(promote=False, author=ANNA)
        for nodes, why in (
            (("lb9",), "no balancer lb9 reports"),
            (("lb1", "lb2"), "these are all"),
        ):
            with pytest.raises(ConflictError, match=why):
                await one.control.edit(weight("gpu-2", 5), trial=Trial(nodes))
        await two.fleet.freeze(ANNA)
        row = "/steelyard/prod/nodes/lb2"
        await one.until(lambda: json.loads(memory.rows[row][0])["frozen"])  # it has reported that
        with pytest.raises(ConflictError, match="lb2 is frozen"):
            await one.control.edit(weight("gpu-2", 5), trial=Trial(("lb2",)))


@runs
async def test_a_trial_outside_of_a_fleet_is_refused(memory: Memory, tmp_path: Path) -> None:
    one = Agent(tmp_path / "1", "lb1")
    with pytest.raises(ConflictError, match="only a change of a fleet's version"):
        await one.control.edit(weight("gpu-1", 5), trial=Trial(("lb2",)))
    # Before its first version, a balancer of a fleet is as one without.
    await one.control.edit(weight("gpu-1", 5))
    assert len(one.control.file_changes()) == 1


@runs
async def test_while_the_store_is_away_only_a_frozen_balancer_is_changed(
    memory: Memory, tmp_path: Path
) -> None:
    one = Agent(tmp_path / "1", "lb1")
    async with works(one):
        await one.fleet.import_services(ANNA)
        memory.away = True
        # Whoever asks is the first to notice it, and is told all the same what is known.
        found = await one.fleet.overview()
        assert found.reports is None
        assert found.status.away_since is not None
        with pytest.raises(StoreError, match="lbctl fleet freeze"):
            await one.control.edit(weight("gpu-1", 7))
        await one.fleet.freeze(ANNA)
        await one.control.edit(weight("gpu-1", 7))
        assert one.weights()["gpu-1"] == 7
        memory.away = False
    # It is kept over a restart, and undone by thawing.
    again = Agent(tmp_path / "1", "lb1")
    assert again.weights()["gpu-1"] == 7
    async with works(again):
        assert again.fleet.member.frozen == "because (anna)"
        await again.fleet.thaw()
        assert again.weights()["gpu-1"] == 100
        with pytest.raises(ConflictError, match="is not frozen"):
            await again.fleet.thaw()


@runs
async def test_what_a_frozen_balancer_has_can_become_the_fleets(
    memory: Memory, tmp_path: Path
) -> None:
    one, two = Agent(tmp_path / "1", "lb1"), Agent(tmp_path / "2", "lb2")
    async with works(one, two):
        await one.fleet.import_services(ANNA)
        await two.at(1)
        await two.fleet.freeze(ANNA)
        await two.control.edit(weight("gpu-1", 7))
        await two.fleet.import_services(ANNA)
        await one.at(2)
        assert one.weights()["gpu-1"] == 7


@runs
async def test_an_import_into_a_lost_store_is_newer_than_what_anybody_runs(
    memory: Memory, tmp_path: Path
) -> None:
    one, two = Agent(tmp_path / "1", "lb1"), Agent(tmp_path / "2", "lb2")
    async with works(one, two):
        await one.fleet.import_services(ANNA)
        await two.at(1)
        await one.fleet.freeze(ANNA)
        for value in (5, 6, 7):
            await two.control.edit(weight("gpu-1", value))
        memory.away = True
        memory.write({})  # the watches notice it
        for each in (one, two):
            await each.until(lambda each=each: each.fleet.member.status().away_since)
        memory.rows.clear()
        memory.away = False
        await one.until(lambda: len([k for k in memory.rows if "/nodes/" in k]) == 2)
        await one.until(lambda: not one.fleet.member.active)
        assert await one.fleet.import_services(ANNA) == 5
        await two.at(5)
        assert two.weights()["gpu-1"] == 100


@runs
async def test_a_balancer_that_does_not_report_any_more_is_missed_until_it_is_forgotten(
    memory: Memory, tmp_path: Path
) -> None:
    one, two = Agent(tmp_path / "1", "lb1"), Agent(tmp_path / "2", "lb2")
    async with works(one):
        async with works(two):
            await one.until(lambda: len([k for k in memory.rows if "/seen/" in k]) == 2)
            assert not (await one.fleet.overview()).missing
            with pytest.raises(ConflictError, match="lb2 reports"):
                await one.fleet.forget("lb2")
            _, _, lease = memory.rows["/steelyard/prod/nodes/lb2"]
        assert lease is not None
        memory.end_lease(lease)
        missing = (await one.fleet.overview()).missing
        assert list(missing) == ["lb2"]
        assert abs(missing["lb2"] - time.time()) < 60
        await one.fleet.forget("lb2")
        assert not (await one.fleet.overview()).missing
        with pytest.raises(NotFoundError, match="no balancer lb2"):
            await one.fleet.forget("lb2")


def test_a_saved_version_that_does_not_fit_the_file_is_refused_by_its_number(
    tmp_path: Path,
) -> None:
    east = {"name": "gpu-1", "address": "10.0.0.21", "zone": "east"}
    chat = {"name": "chat", "vip": "10.0.0.10", "port": 80, "backends": [east]}
    config = Agent(tmp_path / "1", "lb1").core.config
    with pytest.raises(ConfigError, match="version 7 of the fleet, which ran here, does not fit"):
        with_saved(config, Saved(7, 1.0, {"chat": chat}))


@runs
async def test_a_version_that_cannot_run_here_is_refused(memory: Memory, tmp_path: Path) -> None:
    one = Agent(tmp_path / "1", "lb1")
    two = Agent(tmp_path / "2", "lb2", flows=3)  # open flows at every backend
    async with works(one, two):
        await one.fleet.import_services(ANNA)
        await two.at(1)
        await one.control.edit(Edit(EditOp.SERVICE_SET, "chat", None, {"forward": "nat"}))
        await two.until(lambda: two.fleet.member.status().refused == 2)
        assert "open flows could not continue" in two.fleet.member.problem()
        assert two.core.config.services[0].forward is Forward.DSR
        two.core._flows = 0  # they have ended
        await two.at(2)
        assert two.core.config.services[0].forward is Forward.NAT


@runs
async def test_a_reload_keeps_the_version_and_takes_the_rest(
    memory: Memory, tmp_path: Path
) -> None:
    one = Agent(tmp_path / "1", "lb1")
    async with works(one):
        await one.fleet.import_services(ANNA)
        await one.control.edit(weight("gpu-1", 7))
        one.path.write_text(f"{one.head}zones: {{east: [10.1.0.0/16]}}\nservices: []\n")
        await one.control.reload()
        assert [zone.name for zone in one.core.config.zones] == ["east"]
        assert one.weights() == {"gpu-1": 7, "gpu-2": 100}
        assert one.control.file_changes() == ()
        await one.control.edit(
            Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"zone": "east"}), author=ANNA
        )
        one.path.write_text(one.head)
        with pytest.raises(ConfigError, match="zone"):
            await one.control.reload()
        assert [zone.name for zone in one.core.config.zones] == ["east"]


@runs
async def test_a_restart_without_the_store_runs_the_last_version(
    memory: Memory, tmp_path: Path
) -> None:
    one = Agent(tmp_path / "1", "lb1")
    async with works(one):
        await one.fleet.import_services(ANNA)
        await one.control.edit(weight("gpu-1", 7))
    one.path.write_text(f"{one.head}services: []\n")
    again = Agent(tmp_path / "1", "lb1")
    assert again.weights() == {"gpu-1": 7, "gpu-2": 100}
    assert again.fleet.member.version == 2


@runs
async def test_a_rollback_over_the_fleet_makes_a_version(memory: Memory, tmp_path: Path) -> None:
    one = Agent(tmp_path / "1", "lb1")
    async with works(one):
        await one.fleet.import_services(ANNA)
        await one.control.edit(weight("gpu-1", 7))
        await one.control.edit(weight("gpu-2", 8))
        assert [str(c) for c in await one.fleet.diff(1, 2)] == [
            "change backend chat/gpu-1: weight 100 → 7"
        ]
        planned = await one.control.fleet_rollback(1, None, dry_run=True)
        assert len(planned) == 2
        assert one.fleet.member.version == 3
        await one.control.fleet_rollback(1, "chat", dry_run=False, author=ANNA)
        assert one.weights() == {"gpu-1": 100, "gpu-2": 100}
        (entry,) = await one.fleet.history(1)
        assert (entry.number, entry.how) == (4, "rollback to 1")
        assert await one.fleet.diff(1, None) == ()


def test_a_balancer_of_no_fleet_says_so(tmp_path: Path) -> None:
    one = Agent(tmp_path / "1", "lb1")
    one.control.fleet = None
    with pytest.raises(ConflictError, match="belongs to no fleet"):
        one.control.in_fleet()


# -- what is reported


def test_documents_that_did_not_change_are_not_written_anew(tmp_path: Path) -> None:
    config = Agent(tmp_path / "1", "lb1").core.config
    written = Written()
    first = written.of(config)
    foreign = {name: {**doc, "slow_start": "0s"} for name, doc in first.items()}
    written.keep(config, foreign)
    assert written.of(config) == foreign
    chat = {**foreign["chat"], "port": 81}
    after = with_services(config, foreign, {**foreign, "chat": chat})
    found = written.of(after)
    assert found["embed"] is foreign["embed"]
    assert found["chat"]["port"] == 81
    assert "slow_start" not in found["chat"]


def contents(config: Any, ids: dict[str, int], ring: list[str]) -> TableContents:
    """Tables in which the backends of ``chat`` have these ids, and its ring these backends."""
    chat = config.services[0]
    backends = {
        ids[b.name]: BackendEntry(1, b.address, True, True, Forward.DSR, 0, "", "", 0, (), None)
        for b in chat.backends
    }
    held = np.array([ids[name] for name in ring], np.uint16).tobytes()
    entry = ServiceEntry(1, 2, Forward.DSR, chat.scheduler, 3, held)
    return TableContents(backends, {slot_of(chat.key): entry})


def test_equal_rings_have_equal_digests_whatever_the_ids_are(tmp_path: Path) -> None:
    fleet, config = (one := Agent(tmp_path / "1", "lb1")).fleet, one.core.config
    ring = ["gpu-1", "gpu-2", "gpu-2", "gpu-1", "gpu-1"]
    some = fleet._parts_of(config, contents(config, {"gpu-1": 4, "gpu-2": 9}, ring))
    fleet._parts.clear()
    others = fleet._parts_of(config, contents(config, {"gpu-1": 7, "gpu-2": 2}, ring))
    assert some == others
    assert some["chat"].rings
    fleet._parts.clear()
    turned = fleet._parts_of(config, contents(config, {"gpu-1": 4, "gpu-2": 9}, ring[::-1]))
    assert turned["chat"].rings != some["chat"].rings
    assert turned["chat"].settings == some["chat"].settings
    assert turned["embed"].rings == ""  # it is not in the tables


def test_digests_say_what_differs(tmp_path: Path) -> None:
    fleet, config = (one := Agent(tmp_path / "1", "lb1")).fleet, one.core.config
    empty = TableContents()
    before = fleet._parts_of(config, empty)
    assert fleet._parts_of(config, empty) == before
    chat = config.services[0]
    found = replace(
        chat, backends=(*chat.backends, replace(chat.backends[0], name="x", discovered=True,
                                                address=ip_address("10.0.0.23")))
    )  # fmt: skip
    parts = fleet._parts_of(replace(config, services=(found, *config.services[1:])), empty)
    assert parts["chat"] == Part(
        before["chat"].settings, parts["chat"].discovered, before["chat"].rings
    )
    assert parts["chat"].discovered != before["chat"].discovered
    assert parts["embed"] == before["embed"]


@runs
async def test_what_is_down_and_what_was_done_is_reported(memory: Memory, tmp_path: Path) -> None:
    fleet, core = (one := Agent(tmp_path / "1", "lb1")).fleet, one.core
    states = {"chat": ServiceState.DOWN, "embed": ServiceState.UP}
    services = {name: SimpleNamespace(state=state) for name, state in states.items()}
    now = SimpleNamespace(
        situation=SimpleNamespace(services=services, config=core.config), contents=TableContents()
    )
    backends = np.arange(16).reshape(8, 2)
    totals = SimpleNamespace(backends=backends, services=np.arange(5).reshape(5, 1))
    fake: Any = SimpleNamespace(
        now=now,
        problem="the map is full",
        pair=core.pair,
        observer=SimpleNamespace(totals=totals, first_bytes=lambda: (1, 2)),
    )
    fleet._core = fake
    found = await FleetControl._figures(fleet)
    assert (found.role, found.problem, found.down) == ("alone", "the map is full", ("chat",))
    opened, established, drops = 4 + 5 + 3, 6 + 7 + 4, 0
    answers, failed = (8 + 9) - (10 + 11), (10 + 11) + (12 + 13)
    assert found.work == members.Work(opened, established, drops, answers, failed, (1, 2))
    assert found.parts.keys() == {"chat", "embed"}
