"""What the core does with what it hears: its passes, starts and changes, on tables in memory."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from agent import core as module
from agent.core import Core
from agent.dataplane import abi, contents
from agent.dataplane.constants import Features
from agent.errors import DataplaneError, NetworkError
from agent.health.monitor import HealthMonitor, Target
from agent.model import (
    Address,
    Backend,
    BackendRef,
    Config,
    Health,
    HealthStatus,
    Hook,
    NextHop,
    Protocol,
    Service,
    ServiceKey,
)
from agent.network.nexthop import NextHops
from agent.state.tables import TableContents
from tests.unit.dataplane.fakes import CLOCK, KEYS, SMALL, FakeTables

WEB, API = BackendRef("web", "a"), BackendRef("api", "c")


def service(name: str, port: int, *backends: Backend) -> Service:
    return Service(
        name, ServiceKey(ip_address("203.0.113.10"), port, Protocol.TCP), backends=backends
    )


def backend(name: str, last: int, **fields: object) -> Backend:
    return Backend(name, ip_address(f"10.0.0.{last}"), **fields)  # type: ignore[arg-type]


def two_services(folder: Path) -> Config:
    return Config(
        "st-core",
        "eth0",
        services=(
            service("web", 80, backend("a", 1), backend("b", 2)),
            service("api", 81, backend("c", 3)),
        ),
        tables=SMALL,
        state_dir=folder,
        hash_seed=1,
    )


class FakeDataplane:
    """Tables in memory, and a program that is attached when it is told to be."""

    def __init__(self, config: Config) -> None:
        self.tables = FakeTables(config.tables)
        self.clock, self.keys, self.ifindex = CLOCK, KEYS, 2
        self.features, self.program = Features(), SimpleNamespace()
        self.takes_over, self.replaced, self.old = False, [], None
        self.attachment = SimpleNamespace(mode=Hook.NATIVE, interface="eth0", reason="")
        self.attachments = (self.attachment,)
        self.lacks_pins = False
        self.is_there = False
        self.refusal: Exception | None = None

    def load(self, *_: object, **__: object) -> None:
        """Nothing is compiled."""

    def attach(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.is_there = True

    def is_attached(self) -> bool:
        return self.is_there

    def ensure_features(self, *_: object, **__: object) -> bool:
        if self.refusal is not None:
            raise self.refusal
        return False

    def keep_pins(self) -> str:
        return ""


class FakeMonitor:
    """Health as the test sets it. ``targets``: what the core wants checked."""

    def __init__(self, on_change: Callable[..., None], *_: object) -> None:
        self.changed = on_change
        self.targets: dict[BackendRef, Target] = {}
        self.known: dict[BackendRef, HealthStatus] = {}
        self.first = Health.UP

    def change(self, targets: Mapping[BackendRef, Target], gone: Any) -> None:
        for ref in gone:
            del self.targets[ref], self.known[ref]
        self.targets.update(targets)
        for ref, target in targets.items():
            self.known[ref] = target.initial or HealthStatus(self.first, "test", 0.0)

    def statuses(self) -> dict[BackendRef, HealthStatus]:
        return dict(self.known)

    def status(self, ref: BackendRef) -> HealthStatus:
        return self.known[ref]

    def turn(self, ref: BackendRef, health: Health) -> None:
        """What a check has found."""
        old, self.known[ref] = self.known[ref], HealthStatus(health, "test", 1.0)
        self.changed(ref, old, self.known[ref])


class FakeHops:
    """Every backend is on the link."""

    def __init__(self, *_: object) -> None:
        self.ready = mock.AsyncMock()
        self.blocked_now: frozenset[Address] = frozenset()
        self.addresses: set[Address] = set()
        self.unknown: set[Address] = set()

    def set_addresses(self, addresses: set[Address]) -> None:
        self.addresses = addresses

    def get(self, address: Address) -> NextHop:
        mac = None if address in self.unknown else f"02:00:00:00:00:{address.packed[-1]:02x}"
        source = ip_address("10.0.0.254")
        return NextHop(address, 2, mac, "02:00:00:00:00:fe", 1500, on_link=True, source=source)

    def all_blocked(self, _since_s: float) -> frozenset[Address]:
        return self.blocked_now

    def troubles(self) -> tuple[str, ...]:
        return ()

    def doubt(self, _address: Address) -> None:
        """It is there all the same."""

    def blocked(self, _address: Address, _since_s: float) -> str:
        return ""


def idle(**attributes: object) -> mock.MagicMock:
    """A part that this test is not about: it does nothing, and has these attributes."""
    made = mock.MagicMock(**attributes)
    made.tasks.return_value = {}
    return made


class World:
    """A core, and what its parts were told."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = idle(sync=mock.AsyncMock())
        self.weigher = idle(influences={}, draws={})
        self.pair = idle(aim=mock.AsyncMock(), say_goodbye=mock.AsyncMock())
        self.pair.mastership.reload = mock.AsyncMock()
        self.resetter = idle(
            remove=mock.AsyncMock(return_value={}), end_blocked=mock.AsyncMock(return_value={}),
            take=mock.AsyncMock(),
        )  # fmt: skip
        self.guarding = idle(is_used=False, blocks={}, problem="")
        self.guarding.is_behind.return_value = False
        self.observer = idle(look_at_flows=mock.AsyncMock(), survey_cpu_s=0.0)
        self.observer.outcomes.tallies = {}
        companions = idle()
        companions.ready.return_value = frozenset()
        floods = idle(services=frozenset())
        floods.take.return_value = frozenset()
        self.rebalancer = idle(take=mock.AsyncMock())
        parts = {
            "Host": self.host, "Weigher": self.weigher, "Pair": self.pair, "Watch": idle(),
            "Resetter": self.resetter, "Guarding": self.guarding, "Limiting": idle(),
            "Companions": companions, "Observer": self.observer, "Floods": floods,
            "Rebalancer": self.rebalancer, "TrueUp": idle(), "Tracer": idle(),
        }  # fmt: skip
        for name, part in parts.items():
            monkeypatch.setattr(module, name, mock.MagicMock(return_value=part))
        monkeypatch.setattr(module, "Dataplane", FakeDataplane)
        monkeypatch.setattr(module, "HealthMonitor", FakeMonitor)
        monkeypatch.setattr(module, "NextHops", FakeHops)
        monkeypatch.setattr(module.carry, "prepare", lambda _: None)
        monkeypatch.setattr(module.survey, "forget", lambda *_: None)
        self.core = Core(config)
        self.dataplane: FakeDataplane = self.core.dataplane  # type: ignore[assignment]
        self.monitor: FakeMonitor = self.core._monitor  # type: ignore[assignment]
        self.hops: FakeHops = self.core._hops  # type: ignore[assignment]

    def held(self) -> TableContents:
        return contents.read(self.dataplane.tables)  # type: ignore[arg-type]

    def usable(self, ref: BackendRef) -> bool:
        """Whether the tables say that a backend takes new flows."""
        return bool(self.dataplane.tables.backends["flags"][self._id(ref)] & abi.BACKEND_F_USABLE)

    def spoil(self, ref: BackendRef) -> None:
        """Somebody else writes into the row of a backend."""
        self.dataplane.tables.backends["flags"][self._id(ref)] ^= abi.BACKEND_F_USABLE

    def _id(self, ref: BackendRef) -> int:
        now = self.core.now.situation
        return next(
            now.ids.backend_id(service, one)
            for service in now.config.services
            for one in service.backends
            if (service.name, one.name) == (ref.service, ref.backend)
        )

    async def until(self, condition: Callable[[], object]) -> None:
        """Let passes run until this holds."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.001)


type Story = Callable[[World], Awaitable[None]]
type Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a story with a core that has started, or with ``started=False`` one that is loaded."""

    def run(story: Story, *, started: bool = True, first: Health = Health.UP) -> None:
        async def all_of_it() -> None:
            world = World(two_services(tmp_path), monkeypatch)
            world.monitor.first = first
            await world.core.load()
            passes = asyncio.create_task(world.core._reconcile())
            try:
                if started:
                    await world.core.start()
                await story(world)
            finally:
                passes.cancel()

        asyncio.run(all_of_it())

    return run


def test_a_start_fills_the_tables_and_then_attaches(play: Play) -> None:
    async def story(world: World) -> None:
        assert not world.held().services
        assert world.hops.addresses >= {ip_address(f"10.0.0.{n}") for n in (1, 2, 3)}
        world.dataplane.attach = lambda: found.append(len(world.held().services))  # type: ignore[method-assign]
        await world.core.start()
        world.host.sync.assert_awaited_once()

    found: list[int] = []
    play(story, started=False)
    assert found == [2], "both services are there before the first packet comes"


def test_a_host_that_refuses_stops_no_start(play: Play) -> None:
    async def story(world: World) -> None:
        world.host.sync.side_effect = NetworkError("no", where="eth0", remedy="none")
        await world.core.start()
        assert world.dataplane.is_there
        assert "no" in world.core.problem
        world.host.sync.side_effect = None
        world.core.passes.wake(())
        await world.until(lambda: world.core.problem == "")

    play(story, started=False)


@pytest.mark.parametrize("takes_over", [False, True])
def test_new_tables_beside_a_program_that_balances_wait_for_the_first_checks(
    play: Play, monkeypatch: pytest.MonkeyPatch, takes_over: bool
) -> None:
    monkeypatch.setattr(module, "FIRST_CHECKS_S", 30.0)

    async def story(world: World) -> None:
        world.dataplane.takes_over = takes_over
        starting = asyncio.create_task(world.core.start())
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert world.dataplane.is_there is not takes_over
        for ref in world.monitor.statuses():
            world.monitor.turn(ref, Health.UP)
        async with asyncio.timeout(20):
            await starting
        assert world.dataplane.is_there
        await world.until(lambda: world.usable(WEB))

    play(story, started=False, first=Health.CHECKING)


def test_first_checks_that_never_end_do_not_keep_it_from_starting(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_CHECKS_S", 0.01)

    async def story(world: World) -> None:
        world.dataplane.takes_over = True
        async with asyncio.timeout(20):
            await world.core.start()
        assert world.dataplane.is_there

    play(story, started=False, first=Health.CHECKING)


def test_a_failed_check_takes_that_backend_out_and_looks_at_no_other_service(play: Play) -> None:
    async def story(world: World) -> None:
        world.spoil(API)
        world.monitor.turn(WEB, Health.DOWN)
        await world.until(lambda: not world.usable(WEB))
        assert world.usable(BackendRef("web", "b"))
        assert not world.usable(API), "it was nobody's turn to look at it"
        world.monitor.turn(WEB, Health.UP)
        await world.until(lambda: world.usable(WEB))
        world.weigher.recovered.assert_called_once_with(WEB)

    play(story)


def test_what_somebody_else_wrote_is_corrected_within_a_round_of_the_audit(play: Play) -> None:
    async def story(world: World) -> None:
        for _ in range(2):
            world.spoil(WEB)
            world.spoil(API)
            for second in range(int(module.AUDIT_S) + 1):
                await world.core._sample_once(float(second))
            assert world.usable(WEB)
            assert world.usable(API)

    play(story)


def test_a_neighbour_that_changes_wakes_the_services_that_have_it(play: Play) -> None:
    async def story(world: World) -> None:
        address = ip_address("10.0.0.3")
        world.hops.unknown.add(address)
        world.core._adopted_until = 0.0
        world.spoil(WEB)
        world.core._hops_changed({address})
        await world.until(lambda: not world.usable(API))
        assert not world.usable(WEB), "nobody looked at it"
        world.hops.unknown.clear()
        world.core._hops_changed(None)
        await world.until(lambda: world.usable(API) and world.usable(WEB))

    play(story)


def test_shortly_after_a_restart_a_forgotten_neighbour_is_where_it_was(play: Play) -> None:
    async def story(world: World) -> None:
        address = ip_address("10.0.0.3")
        was = world.hops.get(address)
        world.hops.unknown.add(address)
        world.core._adopted = replace(world.core._adopted, hops={address: was})
        assert world.core._hop(address) == was
        world.core._adopted_until = 0.0
        assert world.core._hop(address).mac is None

    play(story)


def test_another_configuration_is_taken_whole(play: Play) -> None:
    async def story(world: World) -> None:
        config = world.core.config
        web = config.services[0]
        new = service("new", 82, backend("d", 4))
        wanted = replace(config, services=(replace(web, backends=web.backends[:1]), new))
        await world.core.take(wanted)
        found = {slot.port for slot in world.held().services}
        assert found == {80, 82}
        assert world.monitor.targets.keys() == {WEB, BackendRef("new", "d")}
        assert world.core.now.situation.config is wanted
        assert world.resetter.remove.await_count == 2, "before the tables change, and after"
        world.pair.mastership.reload.assert_not_awaited()

    play(story)


def test_a_renamed_backend_keeps_its_health(play: Play) -> None:
    async def story(world: World) -> None:
        world.monitor.turn(API, Health.DOWN)
        await world.until(lambda: not world.usable(API))
        config = world.core.config
        api = replace(config.services[1], backends=(backend("other", 3),))
        await world.core.take(replace(config, services=(config.services[0], api)))
        assert world.core.health()[BackendRef("api", "other")].health is Health.DOWN

    play(story)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataplaneError("full", where="tables", remedy="more"), "full"),
        (ZeroDivisionError("oh"), "a defect of the agent: ZeroDivisionError: oh"),
    ],
)
def test_a_configuration_that_cannot_be_carried_out_is_kept_and_tried_again(
    play: Play, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    from agent.reconcile import passes

    monkeypatch.setattr(passes, "RETRY_S", (0.01,))

    async def story(world: World) -> None:
        config = world.core.config
        wanted = replace(config, services=config.services[:1])
        world.dataplane.refusal = error
        with pytest.raises(DataplaneError, match=told) as caught:
            await world.core.take(wanted)
        assert caught.value.remedy
        assert told in world.core.problem
        assert world.core.config is wanted
        assert world.core.now.situation.config is config
        world.dataplane.refusal = None
        await world.until(lambda: world.core.problem == "")
        assert world.core.now.situation.config is wanted

    play(story)


def test_a_program_that_was_taken_off_is_attached_again_or_the_reason_is_told(play: Play) -> None:
    async def story(world: World) -> None:
        world.dataplane.is_there = False
        world.dataplane.refusal = DataplaneError("another one is there", where="eth0", remedy="ask")
        await world.core._sample_once(1.0)
        assert "another one is there" in world.core.problem
        status = world.core._status()
        assert not status.attached
        assert "another one is there" in status.why
        world.dataplane.refusal = None
        await world.core._sample_once(2.0)
        assert world.dataplane.is_there
        assert world.core.problem == ""
        assert world.core._status().attached

    play(story)


def test_statistics_that_break_do_not_end_the_balancing(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_S", 0.001)

    async def story(world: World) -> None:
        world.observer.look_at_flows.side_effect = ValueError("odd")
        sampling = asyncio.create_task(world.core._sample())
        await world.until(lambda: world.observer.look_at_flows.await_count >= 3)
        assert not sampling.done()
        sampling.cancel()

    play(story)


def test_equal_verdicts_of_another_pass_are_compared_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat compared those of ten thousand backends each time until one of them changed."""

    class Verdicts(dict[BackendRef, object]):
        __hash__ = None  # type: ignore[assignment]
        compared = 0

        def __eq__(self, other: object) -> bool:
            Verdicts.compared += 1
            return super().__eq__(other)

    async def story(world: World) -> None:
        before = world.core._status().services
        now = world.core.now
        situation = replace(now.situation, verdicts=Verdicts(now.situation.verdicts))
        monkeypatch.setattr(world.core, "now", replace(now, situation=situation))
        for _ in range(5):
            assert world.core._status().services == before
        assert Verdicts.compared == 1

    play(story)


def test_backends_behind_a_link_without_carrier_count_as_unreachable_from_here(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.core._status().services == {"web": (2, 2), "api": (1, 1)}
        world.hops.blocked_now = frozenset({ip_address("10.0.0.2")})
        assert world.core._status().services["web"] != (2, 2)
        world.hops.blocked_now = frozenset()
        assert world.core._status().services == {"web": (2, 2), "api": (1, 1)}

    play(story)


def test_it_is_complete_when_the_last_pass_knew_what_the_checks_know(play: Play) -> None:
    async def story(world: World) -> None:
        assert world.core._is_complete()
        world.monitor.turn(WEB, Health.DOWN)
        assert not world.core._is_complete()
        assert world.core.refreshed().health[WEB].health is Health.DOWN
        await world.until(world.core._is_complete)

    play(story)


def test_an_edit_that_leaves_a_service_without_anybody_is_known_beforehand(play: Play) -> None:
    async def story(world: World) -> None:
        config = world.core.config
        web, api = config.services
        without = replace(config, services=(web, replace(api, backends=())))
        assert world.core.emptied(without) == {"api"}
        assert world.core.emptied(config) == frozenset()
        world.monitor.turn(API, Health.DOWN)
        await world.until(lambda: not world.usable(API))
        assert world.core.emptied(without) == frozenset(), "it has nobody now either"

    play(story)


def test_the_stand_ins_are_called_as_the_real_ones() -> None:
    for fake, real in ((FakeMonitor, HealthMonitor), (FakeHops, NextHops)):
        public = {name for name in vars(fake) if not name.startswith("_")} - {"turn"}
        assert public <= set(dir(real)), fake


def test_a_stop_before_the_start_warns_of_nothing_that_did_not_run(
    tmp_path: Path,
):
    """Ctrl-C during a first start printed a warning for each of fourteen coroutines."""

    async def stopped() -> None:
        core = Core(two_services(tmp_path))
        task = asyncio.create_task(core._once_started(asyncio.sleep(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    # Other tests may have left an open stream, which warns here, when it is collected.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(stopped())
        gc.collect()
    assert not [str(each.message) for each in told if "never awaited" in str(each.message)]
