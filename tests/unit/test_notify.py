"""systemd hears what happens; without systemd nothing happens."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

from agent.notify import Notifier, catch_signals, catch_stop, feed_watchdog, work_until


@contextlib.contextmanager
def manager(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(90)
        yield sock


@pytest.fixture
def heard(tmp_path):
    """A manager's socket, and a notifier that talks to it."""
    path = str(tmp_path / "notify")
    with manager(path) as sock:
        yield sock, Notifier.from_environment({"NOTIFY_SOCKET": path}, os.getpid())


def received(sock):
    return sock.recv(4096).decode().split("\n")


def test_without_a_manager_every_call_does_nothing():
    notifier = Notifier.from_environment({}, 1)
    notifier.ready("up")
    notifier.reloading()
    notifier.stopping()
    notifier.watchdog()
    notifier.status("x")
    assert notifier.watchdog_interval_s is None


def test_ready_with_status(heard):
    sock, notifier = heard
    notifier.ready("balancing 2 services")
    assert received(sock) == ["READY=1", "STATUS=balancing 2 services"]


def test_reloading_carries_the_monotonic_clock_in_microseconds(heard):
    sock, notifier = heard
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second = received(sock)
    assert first == "RELOADING=1"
    key, value = second.split("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_stopping_and_watchdog(heard):
    sock, notifier = heard
    notifier.stopping("bye")
    assert received(sock) == ["STOPPING=1", "STATUS=bye"]
    notifier.watchdog()
    assert received(sock) == ["WATCHDOG=1"]


def test_status_cannot_smuggle_in_another_assignment(heard):
    sock, notifier = heard
    notifier.status("bad\nMAINPID=1")
    assert received(sock) == ["STATUS=bad MAINPID=1"]


def test_abstract_socket():
    name = f"steelyard-test-notify-{os.getpid()}"
    with manager(f"\0{name}") as sock:
        Notifier(f"@{name}").ready()
        assert received(sock) == ["READY=1"]


def test_manager_that_is_gone_does_not_stop_the_agent(tmp_path):
    Notifier(str(tmp_path / "nobody")).ready()


def test_watchdog_is_fed_twice_per_period():
    environ = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}
    assert Notifier.from_environment(environ, 42).watchdog_interval_s == 15.0


def test_a_watchdog_is_fed_from_the_start_and_without_one_there_is_nothing_to_do(heard):
    sock, notifier = heard

    async def feed(one):
        async with asyncio.timeout(0.05):
            await feed_watchdog(one)

    with pytest.raises(TimeoutError):
        asyncio.run(feed(replace(notifier, watchdog_s=60.0)))
    assert received(sock) == ["WATCHDOG=1"]
    asyncio.run(feed(notifier))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_goes_on_until_a_signal_and_is_cancelled_then(heard, number):
    sock, notifier = heard
    ended = []

    async def works():
        try:
            await asyncio.Event().wait()
        finally:
            ended.extend(received(sock) for _ in range(3))

    async def process():
        stop = catch_stop()
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        async with asyncio.timeout(60):
            await work_until(stop, replace(notifier, watchdog_s=60.0), {"it": works()})

    asyncio.run(process())
    assert ended == [["READY=1"], ["WATCHDOG=1"], ["STOPPING=1"]]


def test_work_that_fails_ends_the_process(heard):
    _, notifier = heard

    async def fails():
        raise OSError("no more")

    async def process():
        async with asyncio.timeout(60):
            await work_until(asyncio.Event(), notifier, {"it": fails()})

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(process())
    assert [str(error) for error in caught.value.exceptions] == ["no more"]


def test_a_hangup_does_not_stop_a_process_that_reloads():
    async def process():
        signals = catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(60):
            await signals.hangup.wait()
        return signals.stop.is_set()

    before = signal.getsignal(signal.SIGHUP)
    try:
        assert not asyncio.run(process())
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "41"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": ""},
    ],
)
def test_no_watchdog_when_it_is_not_ours_or_makes_no_sense(environ):
    assert Notifier.from_environment(environ, 42).watchdog_interval_s is None
