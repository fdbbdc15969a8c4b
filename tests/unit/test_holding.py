"""Who waits for a backend is counted, and is sent on when there is one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Self, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.dataplane import abi
from agent.dataplane.held import HeldSyn, Waiting
from agent.dataplane.program import Dataplane
from agent.dataplane.rerun import Frame
from agent.dataplane.tables import Table
from agent.errors import NetworkError
from agent.holding import Holding
from agent.model import NoBackend, Service
from agent.state.situation import Situation
from agent.state.tables import ServiceEntry, TableContents
from tests.packet.wires import Packet
from tests.unit.state.world import A, web

WEB, OTHER = 3, 4
HOLDS = replace(web(A), no_backend=NoBackend.HOLD)
DROPS = replace(web(A), name="other")


def syns(*services: int) -> Waiting:
    """SYNs that wait for these services, each from a port of its own, by IPv4."""
    keys = np.zeros(len(services), dtype=abi.HELD_KEY)
    rows = np.zeros(len(services), dtype=abi.HELD_SYN)
    for n, service in enumerate(services):
        frame = Packet(sport=40_000 + n).frame()
        keys[n]["sport"], rows[n]["service"], rows[n]["ns"] = 40_000 + n, service, n
        rows[n]["len"] = len(frame)
        rows[n]["frame"][: len(frame)] = np.frombuffer(frame, dtype=np.uint8)
    return Waiting(keys, rows)


def frame(number: int) -> bytes:
    return Packet(sport=40_000 + number).frame()


@dataclass
class FakeSyns:
    """The table: what waits, and what was sent on or forgotten."""

    table: Waiting = field(default_factory=syns)
    full: bool = False  # no room for flows

    def read(self, _now_ns: int) -> Waiting:
        return self.table

    def send(self, one: HeldSyn, _service: ServiceEntry) -> Frame | None:
        self.forget(np.frombuffer(one.key, dtype=abi.HELD_KEY))
        return None if self.full else Frame(2, one.frame)

    def forget(self, keys: Table) -> None:
        keep = ~np.isin(self.table.keys["sport"], keys["sport"])
        self.table = Waiting(self.table.keys[keep], self.table.rows[keep])

    @property
    def left(self) -> list[int]:
        return [int(port) - 40_000 for port in self.table.keys["sport"]]


@dataclass
class FakeSender:
    """``sent``: the frames; ``broken``: none can be sent."""

    sent: list[bytes] = field(default_factory=list)
    has_sent: threading.Event = field(default_factory=threading.Event)
    broken: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def frame(self, _ifindex: int, data: bytes) -> None:
        if self.broken:
            raise NetworkError("no such device")
        self.sent.append(data)
        self.has_sent.set()


def seen(*services: Service, usable: bool) -> Situation:
    """A situation of these services; their backends are all usable, or none is."""
    ids = {service.name: WEB if service.name == HOLDS.name else OTHER for service in services}
    verdict = SimpleNamespace(usable=usable)
    return cast(
        "Situation",
        SimpleNamespace(
            config=SimpleNamespace(services=services),
            verdicts=_Always(verdict),
            ids=SimpleNamespace(service_id=lambda service: ids[service.name]),
        ),
    )


class _Always(dict[Any, Any]):
    def __init__(self, value: object) -> None:
        super().__init__()
        self._value = value

    def __missing__(self, _key: object) -> object:
        return self._value


CONTENTS = TableContents(
    services=cast("Any", {n: SimpleNamespace(id=n, vip_bits=None) for n in (WEB, OTHER)})
)


@dataclass
class Stage:
    syns: FakeSyns = field(default_factory=FakeSyns)
    sender: FakeSender = field(default_factory=FakeSender)

    def __post_init__(self) -> None:
        self.holding = Holding(cast("Dataplane", None), cast("Any", lambda: self.sender))
        self.holding._syns = cast("Any", self.syns)

    def look(self, situation: Situation) -> None:
        asyncio.run(self.holding.look(situation, CONTENTS))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_who_waits_is_counted_and_the_log_says_it_once(stage: Stage) -> None:
    stage.syns.table = syns(WEB, WEB)
    with capture_logs() as logs:
        for _ in range(2):
            stage.look(seen(HOLDS, DROPS, usable=False))
    assert stage.holding.waiting(HOLDS) == 2
    assert stage.holding.waiting(DROPS) is None
    assert stage.sender.sent == []
    (line,) = logs
    assert (line["event"], line["service"], line["clients"]) == (
        "clients wait for a backend", "web", 2,
    )  # fmt: skip


def test_with_a_backend_all_are_sent_on_and_nobody_waits(stage: Stage) -> None:
    stage.syns.table = syns(WEB, WEB)
    stage.look(seen(HOLDS, usable=False))
    stage.look(seen(HOLDS, usable=True))
    assert stage.sender.sent == [frame(0), frame(1)]
    assert stage.holding.waiting(HOLDS) == 0
    assert stage.syns.left == []


def test_a_service_that_is_gone_or_waits_no_longer_keeps_nobody(stage: Stage) -> None:
    stage.syns.table = syns(WEB, OTHER, 77)
    stage.look(seen(HOLDS, DROPS, usable=False))
    assert stage.syns.left == [0]
    stage.look(seen(replace(HOLDS, no_backend=NoBackend.DROP), usable=False))
    assert stage.syns.left == [0], "the table is not read where nobody may wait"
    assert stage.holding.waiting(HOLDS) == 0


def test_what_the_program_does_not_send_on_is_not_sent(stage: Stage) -> None:
    stage.syns.table, stage.syns.full = syns(WEB), True
    stage.look(seen(HOLDS, usable=True))
    assert stage.sender.sent == []


def test_a_pass_that_finds_a_backend_sends_them_on_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.holding.LOOK_S", 3600.0)
    now = [seen(HOLDS, usable=False)]

    async def play() -> None:
        stage.syns.table = syns(WEB)
        running = asyncio.create_task(stage.holding.run(lambda: (now[0], CONTENTS)))
        stage.holding.passed(now[0])
        for _ in range(10):
            await asyncio.sleep(0)
        assert stage.sender.sent == []
        now[0] = seen(HOLDS, usable=True)
        stage.holding.passed(now[0])
        assert await asyncio.to_thread(stage.sender.has_sent.wait, 60)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(play())


def test_frames_that_cannot_be_sent_are_told_once_and_stop_no_other(stage: Stage) -> None:
    stage.syns.table, stage.sender.broken = syns(WEB, WEB), True
    with capture_logs() as logs:
        stage.look(seen(HOLDS, usable=True))
    assert stage.syns.left == []
    told, served = logs
    assert "no such device" in told["problem"]
    assert (served["service"], served["clients"]) == ("web", 0)
    stage.syns.table = syns(WEB)
    with capture_logs() as logs:
        stage.look(seen(HOLDS, usable=True))
    assert [line["event"] for line in logs] == ["clients that waited for a backend are served"]
