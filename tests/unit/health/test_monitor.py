"""The monitor with probes that a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.errors import NetworkError
from agent.health import monitor as module
from agent.health.monitor import HealthMonitor, Target
from agent.health.patience import Patience
from agent.health.rules import ProbeResult, adopted
from agent.model import (
    Address,
    BackendRef,
    CheckKind,
    Forward,
    Health,
    HealthCheck,
    HealthStatus,
)
from agent.state.way import Answer, Way, smaller_sizes
from tests.unit.health.targets import check_exactly

CHECK = HealthCheck(interval_s=0.02, timeout_s=0.01, rise=2, fall=2)
REF = BackendRef("chat", "gpu-1")
TARGET = Target(CHECK, ip_address("10.0.0.21"), 80)
WAY = Way(Forward.DSR, ip_address("10.9.0.100"), 80, TARGET.address)
OTHER_WAY = replace(WAY, forward=Forward.IPIP, vip=ip_address("10.9.0.101"))


class Servers:
    """Answers probes: up unless ``broken``; counts them."""

    def __init__(self) -> None:
        self.broken: set[Address] = set()
        self.silent: set[Address] = set()
        self.probes: dict[Address, int] = {}
        self.error: Exception | None = None

    async def probe(
        self, _check: HealthCheck, address: Address, _port: int, _: Patience
    ) -> ProbeResult:
        await asyncio.sleep(0)
        self.probes[address] = self.probes.get(address, 0) + 1
        if self.error is not None:
            raise self.error
        ok = address not in self.broken | self.silent
        return ProbeResult(ok, "scripted", 1.0, address in self.silent)


class Watch:
    """A running monitor, its servers, and the changes that it told of."""

    def __init__(self) -> None:
        self.servers = Servers()
        self.changes: list[tuple[BackendRef, Health, Health]] = []
        self.silences: list[Address] = []
        self.down = ""  # the link, why
        self.wrong: dict[Way, str | None] = {}  # by these ways; None: they cannot be asked
        self.lost: set[Way] = set()  # no answer comes by these
        self.most: dict[Way, int] = {}  # bytes of the packets that pass, where clients' have 1500
        self.sizes: list[int] = []  # that were asked about
        self.monitor = HealthMonitor(
            self._note,
            self.silences.append,
            lambda *_: self.down,
            through=self._through,
            probe=self.servers.probe,
        )

    def _note(self, ref: BackendRef, old: HealthStatus, new: HealthStatus) -> None:
        self.changes.append((ref, old.health, new.health))

    async def _through(self, way: Way, size: int) -> Answer | None:
        self.sizes.append(size)
        if way in self.lost or size > self.most.get(way, 1500):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        wrong = self.wrong.get(way, "")
        return None if wrong is None else Answer(wrong, 0 if wrong else 1500)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def until_health(self, ref: BackendRef, health: Health) -> None:
        await self.until(lambda: self.monitor.status(ref).health is health)

    async def until_probed(self, times: int) -> None:
        goal = sum(self.servers.probes.values()) + times
        await self.until(lambda: sum(self.servers.probes.values()) >= goal)


def play(story: Callable[[Watch], Awaitable[None]]) -> Watch:
    async def run() -> Watch:
        watch = Watch()
        runner = asyncio.create_task(watch.monitor.run())
        await asyncio.sleep(0)
        await story(watch)
        assert not runner.done()
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1
        return watch

    return asyncio.run(run())


def test_tells_of_each_change_once() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        watch.servers.broken.add(TARGET.address)
        await watch.until_health(REF, Health.DOWN)
        watch.servers.broken.clear()
        await watch.until_health(REF, Health.UP)

    assert play(story).changes == [
        (REF, Health.CHECKING, Health.UP),
        (REF, Health.UP, Health.DOWN),
        (REF, Health.DOWN, Health.UP),
    ]


def test_tells_of_silence_at_once_and_not_of_refusals() -> None:
    other = BackendRef("chat", "gpu-2")
    refusing = Target(CHECK, ip_address("10.0.0.22"), 80)

    async def story(watch: Watch) -> None:
        watch.servers.broken.add(refusing.address)
        check_exactly(watch.monitor, {REF: TARGET, other: refusing})
        await watch.until_health(REF, Health.UP)
        await watch.until_health(other, Health.DOWN)
        assert watch.silences == []
        watch.servers.silent.add(TARGET.address)
        await watch.until(lambda: bool(watch.silences))
        assert watch.monitor.status(REF).silent
        await watch.until_health(REF, Health.DOWN)
        watch.servers.silent.clear()
        await watch.until_health(REF, Health.UP)
        assert not watch.monitor.status(REF).silent

    watch = play(story)
    assert set(watch.silences) == {TARGET.address}


def test_a_server_of_several_services_is_asked_once_for_all_of_them() -> None:
    """A hundred services on the same hosts are no hundred times the checks."""
    others = [BackendRef(f"service-{n}", "gpu-1") for n in range(20)]

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET, **dict.fromkeys(others[:10], TARGET)})
        for ref in (REF, *others[:10]):
            await watch.until_health(ref, Health.UP)
        watch.monitor.change(dict.fromkeys(others[10:], TARGET), ())
        assert all(watch.monitor.status(ref).health is Health.UP for ref in others), (
            "what is known of the server holds for all"
        )
        watch.monitor.change({}, [REF, *others[:5]])
        watch.servers.broken.add(TARGET.address)
        for ref in others[5:]:
            await watch.until_health(ref, Health.DOWN)
        assert len(watch.monitor._tasks) == 1, "not one for each of them"
        assert watch.monitor.status(others[5]).failures >= CHECK.fall

    watch = play(story)
    assert sum(new is Health.DOWN for _, _, new in watch.changes) == 15


def test_another_check_of_the_same_server_is_another_question() -> None:
    other = BackendRef("other", "gpu-1")
    slower = replace(TARGET, check=replace(CHECK, path="/other"))

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET, other: slower})
        await watch.until_health(REF, Health.UP)
        await watch.until_health(other, Health.UP)
        assert len(watch.monitor._tasks) == 2
        watch.monitor.change({other: TARGET}, ())
        assert watch.monitor.status(other).health is Health.UP
        assert len(watch.monitor._tasks) == 1

    play(story)


def test_a_change_leaves_those_alone_that_it_does_not_name() -> None:
    other = BackendRef("chat", "gpu-2")
    refusing = Target(CHECK, ip_address("10.0.0.22"), 80)

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        watch.monitor.change({other: refusing}, ())
        assert watch.monitor.status(REF).health is Health.UP
        await watch.until_health(other, Health.UP)
        watch.monitor.change({}, [other])
        assert set(watch.monitor.statuses()) == {REF}
        await watch.until_probed(2)

    play(story)


def test_targets_set_before_it_runs_are_checked() -> None:
    async def run() -> None:
        watch = Watch()
        check_exactly(watch.monitor, {REF: TARGET})
        assert watch.monitor.status(REF).health is Health.CHECKING
        runner = asyncio.create_task(watch.monitor.run())
        await watch.until_health(REF, Health.UP)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)

    asyncio.run(run())


def test_setting_the_same_targets_again_changes_nothing() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        before = watch.monitor.status(REF).since
        check_exactly(watch.monitor, {REF: TARGET})
        assert watch.monitor.status(REF).since == before

    play(story)


def test_a_removed_target_is_probed_no_more() -> None:
    async def story(watch: Watch) -> None:
        other = BackendRef("chat", "gpu-2")
        keeps = Target(CHECK, ip_address("10.0.0.22"), 80)
        check_exactly(watch.monitor, {REF: TARGET, other: keeps})
        await watch.until_health(REF, Health.UP)
        check_exactly(watch.monitor, {other: keeps})
        count = watch.servers.probes[TARGET.address]
        await watch.until_probed(5)
        assert watch.servers.probes[TARGET.address] == count
        assert list(watch.monitor.statuses()) == [other]

    play(story)


def test_a_new_address_is_another_server() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        check_exactly(watch.monitor, {REF: Target(CHECK, ip_address("10.0.0.99"), 80)})
        assert watch.monitor.status(REF).health is Health.CHECKING

    play(story)


def test_an_edited_check_keeps_the_health() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        slower = HealthCheck(interval_s=0.03, timeout_s=0.01)
        check_exactly(watch.monitor, {REF: Target(slower, TARGET.address, 80)})
        assert watch.monitor.status(REF).health is Health.UP
        await watch.until_probed(2)

    assert len(play(story).changes) == 1


def test_an_adopted_health_stands_until_checks_contradict_it() -> None:
    async def story(watch: Watch) -> None:
        watch.servers.broken.add(TARGET.address)
        adoptee = Target(CHECK, TARGET.address, 80, initial=adopted(Health.UP, 1.0))
        check_exactly(watch.monitor, {REF: adoptee})
        assert watch.monitor.status(REF).reason == "as before the restart"
        await watch.until_health(REF, Health.DOWN)

    assert play(story).changes == [(REF, Health.UP, Health.DOWN)]


def test_without_a_check_a_backend_is_unchecked_and_left_in_peace() -> None:
    async def story(watch: Watch) -> None:
        none = Target(HealthCheck(kind=CheckKind.NONE), ip_address("10.0.0.50"), 80)
        check_exactly(watch.monitor, {BackendRef("chat", "gpu-9"): none, REF: TARGET})
        await watch.until_probed(3)
        assert watch.monitor.status(BackendRef("chat", "gpu-9")).health is Health.UNCHECKED
        assert none.address not in watch.servers.probes

    play(story)


def test_trouble_of_this_host_or_a_defect_changes_no_health() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        for error in (NetworkError("out of descriptors"), ZeroDivisionError()):
            watch.servers.error = error
            await watch.until_probed(CHECK.fall + 2)
            assert watch.monitor.status(REF).health is Health.UP
        watch.servers.error = None
        watch.servers.broken.add(TARGET.address)
        await watch.until_health(REF, Health.DOWN)

    play(story)


def test_thousands_of_backends_get_their_first_verdict() -> None:
    async def story(watch: Watch) -> None:
        check = HealthCheck(interval_s=5.0)
        targets = {
            BackendRef("chat", f"gpu-{n}"): Target(check, ip_address(0x0A000000 + n), 80)
            for n in range(4096)
        }
        check_exactly(watch.monitor, targets)
        await watch.until(lambda: len(watch.changes) == len(targets))

    play(story)


def test_there_is_room_for_so_many_probes_and_the_others_wait_for_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when some of them are removed while they wait, or while they are asked."""
    monkeypatch.setattr(module, "MAX_PROBES_AT_ONCE", 4)
    now = most = 0
    asked: set[Address] = set()
    go_on = asyncio.Event()

    async def probe(_check: HealthCheck, address: Address, *_: object) -> ProbeResult:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await go_on.wait()
        finally:
            now -= 1
        asked.add(address)
        return ProbeResult(True, "", 1.0)

    async def story() -> None:
        monitor = HealthMonitor(lambda *_: None, probe=probe)
        refs = [BackendRef("chat", f"gpu-{n}") for n in range(20)]
        targets = {ref: replace(TARGET, address=TARGET.address + n) for n, ref in enumerate(refs)}
        monitor.change(targets, ())
        running = asyncio.create_task(monitor.run())
        await _until(lambda: now == 4)
        monitor.change({}, refs[:10])  # some of these are asked, others wait
        await _until(lambda: now == 4)
        go_on.set()
        wanted = {targets[ref].address for ref in refs[10:]}
        await _until(lambda: wanted <= asked)
        running.cancel()
        await asyncio.wait([running])
        assert monitor._turns.room == 4

    asyncio.run(story())
    assert most == 4


def test_a_link_that_is_down_is_no_verdict_on_who_is_behind_it() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)
        since = watch.monitor.status(REF).since
        watch.down = "eth0 has no carrier"
        watch.servers.silent.add(TARGET.address)
        await watch.until_probed(10 * CHECK.fall)
        status = watch.monitor.status(REF)
        assert (status.health, status.since, status.failures) == (Health.UP, since, 0)
        assert status.reason == "not checked: eth0 has no carrier"
        assert watch.silences == [], "nobody's MAC is doubted for it"
        watch.down = ""
        await watch.until_health(REF, Health.DOWN)

    assert play(story).changes == [
        (REF, Health.CHECKING, Health.UP),
        (REF, Health.UP, Health.DOWN),
    ]


def test_an_answer_counts_whatever_is_said_of_the_link() -> None:
    async def story(watch: Watch) -> None:
        watch.down = "eth0 has no carrier"
        check_exactly(watch.monitor, {REF: TARGET})
        await watch.until_health(REF, Health.UP)

    play(story)


def test_everybody_is_checked_as_soon_as_the_link_is_up() -> None:
    """Not at the end of an interval, here an hour."""
    slow = replace(TARGET, check=replace(CHECK, interval_s=3600.0))

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: slow})
        await watch.until_health(REF, Health.UP)
        watch.servers.probes.clear()
        watch.monitor.resume()
        await watch.until_probed(1)

    play(story)


def test_the_kernel_s_word_of_a_link_may_come_after_the_failure() -> None:
    async def unsent(*_: object) -> ProbeResult:
        watch.down = ""
        asyncio.get_running_loop().call_later(0.01, setattr, watch, "down", "eth0 is down")
        return ProbeResult(False, "network unreachable", 0.1, silent=True, unsent=True)

    watch = Watch()

    async def story() -> None:
        monitor = HealthMonitor(
            watch._note, watch.silences.append, lambda *_: watch.down, probe=unsent
        )
        initial = adopted(Health.UP, 0.0)
        check_exactly(monitor, {REF: replace(TARGET, initial=initial)})
        runner = asyncio.create_task(monitor.run())
        await watch.until(lambda: monitor.status(REF).reason == "not checked: eth0 is down")
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)

    asyncio.run(story())
    assert watch.changes == []


def test_a_completion_is_asked_for_now_and_then_and_again_while_it_fails() -> None:
    asked: list[CheckKind] = []
    well = True

    async def probe(check: HealthCheck, *_: object) -> ProbeResult:
        asked.append(check.kind)
        ok = well or check.kind is not CheckKind.COMPLETION
        return ProbeResult(ok, "", None, busy=not ok)

    async def story() -> None:
        nonlocal well
        served = {REF: 0}
        monitor = HealthMonitor(lambda *_: None, served=served.__getitem__, probe=probe)
        check = replace(CHECK, kind=CheckKind.COMPLETION, every_s=3600.0)
        check_exactly(monitor, {REF: replace(TARGET, check=check)})
        running = asyncio.create_task(monitor.run())
        await _until(lambda: len(asked) >= 5)
        assert asked[0] is CheckKind.COMPLETION
        assert set(asked[1:]) == {CheckKind.TCP}
        well = False
        check_exactly(monitor, {REF: replace(TARGET, check=replace(check, every_s=0.1))})
        await _until(lambda: monitor.status(REF).health is Health.DOWN)
        well = True
        await _until(lambda: monitor.status(REF).health is Health.UP)
        running.cancel()

    asyncio.run(story())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_an_engine_that_is_busy_with_clients_stays_up() -> None:
    served = 0
    asked = 0

    async def probe(_check: HealthCheck, *_: object) -> ProbeResult:
        nonlocal served, asked
        asked += 1
        served += 7
        return ProbeResult(False, "no answer within 10 s", None, busy=True)

    async def story() -> None:
        monitor = HealthMonitor(lambda *_: None, served=lambda _: served, probe=probe)
        check = replace(CHECK, kind=CheckKind.COMPLETION, every_s=0.1)
        check_exactly(monitor, {REF: replace(TARGET, check=check)})
        running = asyncio.create_task(monitor.run())
        await _until(lambda: asked >= 5)
        status = monitor.status(REF)
        running.cancel()
        assert status.health is Health.UP
        assert status.reason == "no answer within 10 s, but it answered 7 clients meanwhile"

    asyncio.run(story())


def test_silence_after_a_refusal_brings_nobody_up() -> None:
    """Linux refuses one datagram a second: a port where nobody listens is silent in between."""
    asked = 0

    async def probe(_check: HealthCheck, *_: object) -> ProbeResult:
        nonlocal asked
        asked += 1
        if asked % 4 == 1:
            return ProbeResult(False, "connection refused", 0.1)
        return ProbeResult(True, "nothing refuses it", 10.0, vague=True)

    async def story() -> None:
        monitor = HealthMonitor(lambda *_: None, probe=probe)
        check_exactly(monitor, {REF: replace(TARGET, check=replace(CHECK, kind=CheckKind.UDP))})
        running = asyncio.create_task(monitor.run())
        await _until(lambda: asked >= 20)
        status = monitor.status(REF)
        running.cancel()
        assert (status.health, status.reason) == (Health.DOWN, "connection refused")

    asyncio.run(story())


def test_a_server_that_answers_for_itself_and_not_for_the_vip_is_down() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until_health(REF, Health.UP)
        watch.wrong[WAY] = "refused"
        await watch.until_health(REF, Health.DOWN)
        assert watch.monitor.status(REF).reason == "refused"
        watch.wrong.clear()
        await watch.until_health(REF, Health.UP)
        watch.lost.add(WAY)
        await watch.until_health(REF, Health.DOWN)
        wanted = "no answer from 10.9.0.100:80 by dsr within 10 ms: is the VIP on its lo?"
        assert watch.monitor.status(REF).reason == wanted
        assert watch.silences == []  # its host is there

    play(story)


NARROW = (
    "packets of 1500 bytes are lost on the way to 10.9.0.100:80 by dsr, of 1400 bytes arrive: is "
    "the MTU smaller somewhere in between, or are SYNs with data dropped?"
)


def test_a_way_on_which_full_packets_are_lost_takes_a_backend_out_and_says_what_fits() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until_health(REF, Health.UP)
        assert 1500 in watch.sizes
        watch.monitor._full.clear()  # six seconds later
        watch.most[WAY] = 1400
        await watch.until_health(REF, Health.DOWN)
        assert watch.monitor.status(REF).reason == NARROW
        watch.most.clear()
        await watch.until_health(REF, Health.UP)

    play(story)


def test_where_no_backend_answers_full_packets_none_is_down_for_it() -> None:
    """A firewall may drop SYNs with data: that is no fault of the backends, also of new ones."""

    async def story(watch: Watch) -> None:
        watch.most[WAY] = 0
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until_health(REF, Health.UP)
        await watch.until_probed(10)
        status = watch.monitor.status(REF)
        assert status.health is Health.UP
        assert "small ones arrive" in status.reason
        assert "(no backend of the service answers full packets: it counts as up)" in status.reason
        sent = len([size for size in watch.sizes if size])
        assert sent == 1 + len(smaller_sizes(1500)), "not again at each check"

    play(story)


def test_while_full_packets_are_lost_the_sizes_are_looked_for_once_a_minute() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until_health(REF, Health.UP)
        watch.monitor._full.clear()  # six seconds later
        watch.most[WAY] = 1400
        await watch.until_health(REF, Health.DOWN)
        await watch.until_probed(5)
        assert watch.sizes.count(1500) > 3
        assert watch.sizes.count(1400) == 1

    play(story)


def test_full_packets_are_asked_about_now_and_then() -> None:
    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until_probed(20)
        assert watch.sizes.count(1500) == 1
        assert watch.sizes.count(0) > 10

    play(story)


def test_one_server_has_a_health_for_each_way_to_it() -> None:
    other, plain = BackendRef("other", "gpu-1"), BackendRef("plain", "gpu-1")

    async def story(watch: Watch) -> None:
        watch.lost.add(OTHER_WAY)
        targets = {
            REF: replace(TARGET, way=WAY),
            other: replace(TARGET, way=OTHER_WAY),
            plain: TARGET,
        }
        check_exactly(watch.monitor, targets)
        await watch.until_health(other, Health.DOWN)
        assert watch.monitor.status(REF).health is Health.UP
        assert watch.monitor.status(plain).health is Health.UP
        watch.servers.broken.add(TARGET.address)
        for ref in targets:
            await watch.until_health(ref, Health.DOWN)
            assert "scripted" in watch.monitor.status(ref).reason

    play(story)


def test_a_newcomer_by_another_way_is_up_once_that_was_asked() -> None:
    """What is known of the server is not known of the way."""
    other = BackendRef("other", "gpu-1")

    async def story(watch: Watch) -> None:
        watch.lost.add(OTHER_WAY)
        targets = {REF: replace(TARGET, way=WAY)}
        check_exactly(watch.monitor, targets)
        await watch.until_health(REF, Health.UP)
        check_exactly(watch.monitor, targets | {other: replace(TARGET, way=OTHER_WAY)})
        assert watch.monitor.status(other).health is Health.CHECKING
        await watch.until(lambda: watch.monitor.status(other).health is not Health.CHECKING)
        assert watch.monitor.status(other).health is Health.DOWN

    play(story)


def test_a_network_that_lets_no_backend_answer_so_takes_none_out_that_is_up() -> None:
    """As after an upgrade: they were up, and the check by the VIP is new."""
    second = BackendRef("chat", "gpu-2")
    other = replace(WAY, backend=ip_address("10.0.0.22"))

    async def story(watch: Watch) -> None:
        watch.lost |= {WAY, other}
        before = adopted(Health.UP, 0.0)
        targets = {
            REF: replace(TARGET, way=WAY, initial=before),
            second: Target(CHECK, other.backend, 80, before, other),
        }
        check_exactly(watch.monitor, targets)
        await watch.until(lambda: "it stays up" in watch.monitor.status(REF).reason)
        await watch.until_probed(12)
        assert {watch.monitor.status(ref).health for ref in targets} == {Health.UP}
        watch.lost.discard(other)  # so it is no network of that kind
        await watch.until_health(REF, Health.DOWN)
        assert watch.monitor.status(second).health is Health.UP

    play(story)


def test_a_newcomer_has_to_answer_by_the_vip_whatever_others_do() -> None:
    async def story(watch: Watch) -> None:
        watch.lost.add(WAY)
        check_exactly(watch.monitor, {REF: replace(TARGET, way=WAY)})
        await watch.until(lambda: watch.monitor.status(REF).health is not Health.CHECKING)
        assert watch.monitor.status(REF).health is Health.DOWN

    play(story)


def test_what_cannot_be_asked_proves_nothing() -> None:
    """A backend without a next hop has not answered for its VIP."""
    second = BackendRef("chat", "gpu-2")
    other = replace(WAY, backend=ip_address("10.0.0.22"))

    async def story(watch: Watch) -> None:
        watch.lost.add(WAY)
        watch.wrong[other] = None
        targets = {
            REF: replace(TARGET, way=WAY, initial=adopted(Health.UP, 0.0)),
            second: Target(CHECK, other.backend, 80, None, other),
        }
        check_exactly(watch.monitor, targets)
        await watch.until_health(second, Health.UP)
        await watch.until_probed(12)
        assert "it stays up" in watch.monitor.status(REF).reason

    play(story)
