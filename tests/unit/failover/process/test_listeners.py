"""When the listeners' sockets are read, and that everybody acts on what was."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from agent.failover.process import listeners as module
from agent.failover.process.listeners import Listeners


class Listener:
    """Of one socket; each datagram is for everybody in ``told``."""

    interval_s = 1.0
    is_used = True

    def __init__(self, one: socket.socket, listeners: list[Listeners]) -> None:
        self.sockets = (one,)
        self.read_at: list[int] = []  # how many at each reading
        self.rest_s = 0.0
        self.told: list[Callable[[], None]] = []
        self._listeners = listeners

    def read(self, only: socket.socket) -> None:
        count = 0
        while True:
            try:
                only.recv(10)
            except BlockingIOError:
                break
            count += 1
        self.read_at.append(count)
        for told in self.told:
            self._listeners[0].after_reading(told)

    def rests_s(self, one: socket.socket) -> float:
        return self.rest_s

    def close(self) -> None:
        pass


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def opened(monkeypatch: pytest.MonkeyPatch, one: socket.socket) -> tuple[Listeners, Listener]:
    made: list[Listeners] = []
    listener = Listener(one, made)
    monkeypatch.setattr(module, "Listener", lambda interface, family: listener)
    made.append(Listeners())
    assert made[0].listener("eth0", 2, 4) is listener
    return made[0], listener


def test_all_that_comes_is_read_however_it_comes(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    async def story() -> None:
        ours, theirs = ends
        _, listener = opened(monkeypatch, ours)
        for _ in range(50):
            theirs.send(b"x")
            await asyncio.sleep(0)
        await until(lambda: sum(listener.read_at) == 50)
        theirs.send(b"x")
        await until(lambda: sum(listener.read_at) == 51)

    asyncio.run(story())


def test_one_that_comes_right_after_another_waits_a_moment(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    """By a clock of the test's own."""

    async def story() -> None:
        ours, _ = ends
        listeners, listener = opened(monkeypatch, ours)
        now_s = 100.0
        monkeypatch.setattr(listeners._loop, "time", lambda: now_s)
        pauses = [listeners._pause_s(listener, ours)]  # type: ignore[arg-type]
        for step_s in (0.001, 0.009, 0.02, 0.001):
            now_s += step_s
            pauses.append(listeners._pause_s(listener, ours))  # type: ignore[arg-type]
        assert pauses == [0.0, 0.005, 0.005, 0.0, 0.005]
        listener.interval_s = 0.01
        assert listeners._pause_s(listener, ours) == 0.0005  # type: ignore[arg-type]
        monkeypatch.undo()

    asyncio.run(story())


def test_a_socket_that_rests_is_left_alone_and_read_afterwards(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    async def story() -> None:
        ours, theirs = ends
        listeners, listener = opened(monkeypatch, ours)
        listener.rest_s = 3600.0
        theirs.send(b"x")
        await until(lambda: listener.read_at == [1])
        theirs.send(b"x")
        for _ in range(10):
            await asyncio.sleep(0)
        assert listener.read_at == [1]
        listener.rest_s = 0.0
        listeners._resume(listener, ours)  # type: ignore[arg-type]
        assert sum(listener.read_at) == 2

    asyncio.run(story())


def test_who_fails_at_what_was_heard_is_no_matter_of_the_others(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    async def story() -> None:
        ours, theirs = ends
        _, listener = opened(monkeypatch, ours)
        acted: list[str] = []

        def fails() -> None:
            raise ValueError("a bug")

        listener.told = [fails, lambda: acted.append("other")]
        theirs.send(b"x")
        await until(lambda: acted == ["other"])

    asyncio.run(story())


def test_a_listener_that_nobody_uses_is_closed_and_not_read_after_its_rest(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]
) -> None:
    async def story() -> None:
        ours, theirs = ends
        listeners, listener = opened(monkeypatch, ours)
        listener.is_used = False
        listeners.tidy()
        theirs.send(b"x")
        listeners._resume(listener, ours)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert listener.read_at == []

    asyncio.run(story())
