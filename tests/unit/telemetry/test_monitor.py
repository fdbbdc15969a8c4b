"""When targets are asked, and what is told of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest

from agent.model import BackendRef, Telemetry, TelemetryKind
from agent.telemetry import monitor
from agent.telemetry.asks import Ask, Target, Topic, ask_of
from agent.telemetry.fetch import Link
from agent.telemetry.monitor import Key, TelemetryMonitor
from agent.telemetry.report import EngineReport, Failure, Report
from tests.unit.telemetry.scraped import FAST, KEY, Engine, Scrapes, page, scrape

TGI = page(b"tgi_batch_current_size 4\ntgi_queue_size 6\n")
LOOPBACK = ip_address("127.0.0.1")


def key(number: int) -> Key:
    return BackendRef("chat", f"gpu-{number}"), Topic.ENGINE


def test_the_ask_is_told_before_the_answer_and_both_are_timed() -> None:
    scrapes = asyncio.run(scrape(Engine(TGI), 3))
    assert scrapes.asked[:3] == [KEY] * 3
    asked = [told[2] for told in scrapes.told]
    assert asked == sorted(asked)
    assert all(asked_at <= got_at for _, _, asked_at, got_at in scrapes.told)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For when each request was planned: the host may be late with it."""
    dues: list[float] = []
    wait = TelemetryMonitor._wait

    def noted(self: TelemetryMonitor, watch: Any, due: float) -> None:
        dues.append(due)
        wait(self, watch, due)

    monkeypatch.setattr(TelemetryMonitor, "_wait", noted)
    return dues


def test_a_failing_target_is_asked_ever_less_and_after_success_as_before(
    planned: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_PAUSE_FACTOR", 0.0)  # the time of reading counts elsewhere
    broken = page(b"", status=b"500 Oops")
    answers = [broken] * 5 + [TGI, TGI, broken, TGI]
    told = asyncio.run(scrape(Engine(*answers), 9)).told
    assert [isinstance(report, Failure) for _, report, _, _ in told] == [
        *[True] * 5,
        *[False] * 2,
        True,
        False,
    ]
    gaps = [later - earlier for earlier, later in pairwise(planned)]
    assert gaps[4] > 0.3  # 16 intervals of 20 ms
    for answer in (5, 6, 7):  # two pages, and then the first failure anew
        late = max(told[answer][3] - planned[answer], 0.0)  # what is overdue is asked for at once
        assert gaps[answer] < max(late, 0.021) + 1e-6


def test_targets_can_be_changed_while_it_runs() -> None:
    async def run() -> None:
        engines = [Engine(page(b"tgi_queue_size %d\n" % number)) for number in (1, 2)]
        servers = [await asyncio.start_server(engine, "127.0.0.1", 0) for engine in engines]
        targets = [Target(LOOPBACK, server.sockets[0].getsockname()[1], FAST) for server in servers]
        scrapes = Scrapes()
        running = asyncio.create_task(scrapes.monitor.run())
        await asyncio.sleep(0)
        scrapes.monitor.set_targets({key(1): targets[0]})
        await scrapes.until(lambda: len(scrapes.told) >= 2)
        scrapes.monitor.set_targets({key(1): targets[0], key(2): targets[1]})
        await scrapes.until(lambda: any(told[0] == key(2) for told in scrapes.told))
        assert engines[0].connections == 1  # what is as before is not disturbed
        scrapes.monitor.set_targets({key(2): targets[0]})
        scrapes.told.clear()
        await scrapes.until(lambda: len(scrapes.told) >= 3)
        assert {told[0] for told in scrapes.told} == {key(2)}
        assert set(scrapes.reports) == {EngineReport(waiting=1)}
        scrapes.monitor.set_targets({})
        scrapes.told.clear()
        await asyncio.sleep(0.1)
        assert scrapes.told == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for server in servers:
            server.close()

    asyncio.run(run())


def test_a_server_is_asked_once_for_all_who_ask_the_same() -> None:
    """Services of one server: its page costs it something."""

    async def run() -> None:
        engine = Engine(TGI)
        server = await asyncio.start_server(engine, "127.0.0.1", 0)
        target = Target(LOOPBACK, server.sockets[0].getsockname()[1], FAST)
        scrapes = Scrapes()
        running = asyncio.create_task(scrapes.monitor.run())
        await asyncio.sleep(0)
        slower = replace(target, question=replace(FAST, interval_s=0.3))
        scrapes.monitor.set_targets({key(1): target, key(2): target, key(3): slower})
        await scrapes.until(lambda: sum(told[0] == key(2) for told in scrapes.told) >= 4)
        assert engine.connections <= 2, "one for both, and one for who asks another way"
        for of in (1, 2):
            asked = [one for one in scrapes.asked if one == key(of)]
            assert len(asked) - sum(told[0] == key(of) for told in scrapes.told) in (0, 1)
        by = {of: [told[1:] for told in scrapes.told if told[0] == key(of)] for of in (1, 2)}
        assert by[1] == by[2]
        scrapes.monitor.set_targets({key(2): target})
        scrapes.told.clear()
        await scrapes.until(lambda: len(scrapes.told) >= 3)
        assert {told[0] for told in scrapes.told} == {key(2)}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()

    asyncio.run(run())


def test_a_hundred_targets_are_spread_over_the_interval() -> None:
    async def run() -> None:
        now = asyncio.get_running_loop().time
        server = await asyncio.start_server(Engine(TGI), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        asked = Telemetry(TelemetryKind.TGI, interval_s=0.5, timeout_s=60.0)
        targets = {
            key(number): Target(LOOPBACK, port, replace(asked, path=f"/{number}"))
            for number in range(100)
        }
        scrapes = Scrapes()
        running = asyncio.create_task(scrapes.monitor.run())
        await asyncio.sleep(0)  # it runs
        before = now()
        scrapes.monitor.set_targets(targets)
        after = now()
        planned = {watch.keys[0]: watch.due for watch in scrapes.monitor._watches.values()}
        first, last = min(planned.values()), max(planned.values())
        assert before <= first <= last <= after + 0.5
        assert len({int((due - first) * 20) for due in planned.values()}) >= 4  # of ten tenths
        await scrapes.until(lambda: len({told[0] for told in scrapes.told}) == 100)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
        for name, _, asked_at, _ in scrapes.told:  # however late: none comes before its time
            assert asked_at >= planned[name] - monitor._TOGETHER_S - 1e-6

    asyncio.run(run())


def test_a_defect_of_the_listener_does_not_end_the_scrapes() -> None:
    async def run() -> int:
        server = await asyncio.start_server(Engine(TGI), "127.0.0.1", 0)
        calls = 0
        enough = asyncio.Event()

        def on_report(
            _key: Key, _report: Report | Failure, _asked: float, _got: float, _pace: float
        ) -> None:
            nonlocal calls
            calls += 1
            if calls >= 3:
                enough.set()
            raise ZeroDivisionError

        monitor = TelemetryMonitor(lambda _key: None, on_report)
        port = server.sockets[0].getsockname()[1]
        monitor.set_targets({KEY: Target(LOOPBACK, port, FAST)})
        running = asyncio.create_task(monitor.run())
        async with asyncio.timeout(120):
            await enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
        return calls

    assert asyncio.run(run()) >= 3


def test_a_page_that_takes_long_to_read_is_asked_for_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(target: Target) -> Ask:
        ask = ask_of(target)

        def read(answer: bytes) -> Report | Failure:
            time.sleep(0.005)
            return ask.read(answer)

        return replace(ask, read=read)

    monkeypatch.setattr(monitor, "ask_of", slowly)
    question = Telemetry(TelemetryKind.TGI, interval_s=0.001, timeout_s=5.0)
    told = asyncio.run(scrape(Engine(TGI), 3, question)).told
    gaps = [later[2] - earlier[3] for earlier, later in pairwise(told)]
    assert min(gaps) > 0.05  # 20 times the reading, and no timer comes early by half


class Slow(Engine):
    """Makes each page in so many seconds, and nothing else meanwhile."""

    def __init__(self, takes_s: float) -> None:
        super().__init__(TGI)
        self.takes_s = takes_s

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(self.takes_s)
            writer.write(TGI)


@pytest.mark.parametrize(("takes_s", "least_s"), [(0.01, 0.25), (0.05, 1.0)])
def test_a_page_that_costs_its_server_much_is_asked_for_less_often(
    takes_s: float, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The time that a connect takes is not the engine's. On a busy host it is as long as the page.
    monkeypatch.setattr(
        Link, "rtt_s", property(lambda _link: 0.0, lambda _link, _value: None), raising=False
    )
    paces = asyncio.run(scrape(Slow(takes_s), 17)).paces
    assert paces[:15] == [FAST.interval_s] * 15, "too few pages to tell"
    assert least_s <= paces[16] <= 1.0
