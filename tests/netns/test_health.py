"""The monitor with real probes over a real cable: servers that die, go silent and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.health.monitor import HealthMonitor, Target
from agent.health.patience import Patience
from agent.health.probe import probe
from agent.model import BackendRef, CheckKind, Health, HealthCheck, HealthStatus
from tests.unit.health.targets import check_exactly

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

SERVER = ip_address("10.9.0.21")
PORT = 8000
REF = BackendRef("chat", "gpu-1")
HTTP = HealthCheck(
    kind=CheckKind.HTTP, interval_s=0.3, timeout_s=0.2, rise=2, fall=2, path="/health"
)
# Where the server is not silent: on a busy host a good answer may be late.
PATIENT = replace(HTTP, timeout_s=20.0)
SERVE = """
import asyncio
async def answer(reader, writer):
    try:
        await reader.readuntil(b"\\r\\n\\r\\n")
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
    except asyncio.IncompleteReadError:
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", 8000, backlog=4096)
    print("serving", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass
class Net:
    """A namespace for us and one for the servers, with a cable between them."""

    us: str
    peer: str
    server: subprocess.Popen[str] | None = None

    def peers(self, command: str) -> None:
        ip("-n", self.peer, *command.split())

    def serve(self) -> None:
        command = ["ip", "netns", "exec", self.peer, sys.executable, "-c", SERVE]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "serving\n"

    def kill(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate(timeout=60)
            self.server = None


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net(f"st-net-{os.getpid()}-hc", f"st-net-{os.getpid()}-srv")
    try:
        for name in (made.us, made.peer):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(*f"-n {made.us} link add eth0 type veth peer name eth0 netns {made.peer}".split())
        ip("-n", made.us, "addr", "add", "10.9.0.2/24", "dev", "eth0")
        made.peers(f"addr add {SERVER}/24 dev eth0")
        ip("-n", made.us, "link", "set", "eth0", "up")
        made.peers("link set eth0 up")
        yield made
    finally:
        made.kill()
        for name in (made.us, made.peer):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@dataclass
class Watch:
    """A running monitor and the changes that it told of."""

    monitor: HealthMonitor = field(init=False)
    told: list[str] = field(default_factory=list)
    down: str = ""  # why nothing can leave
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.monitor = HealthMonitor(self._note, blocked=lambda *_: self.down)

    def _note(self, _ref: BackendRef, old: HealthStatus, new: HealthStatus) -> None:
        self.told.append(f"{old.health.value} -> {new.health.value}")
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(240):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"still {self.monitor.statuses()}, told of {self.told}")

    async def until_health(self, health: Health) -> HealthStatus:
        await self.until(lambda: self.monitor.status(REF).health is health)
        return self.monitor.status(REF)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch_in(net: Net, story: Callable[[Watch], Awaitable[None]]) -> None:
    """Run a monitor and a story with the sockets of our namespace, in a thread of its own."""
    failures: list[BaseException] = []

    async def main() -> None:
        async with asyncio.timeout(500):
            watch = Watch()
            runner = asyncio.create_task(watch.monitor.run())
            await story(watch)
            assert not runner.done()
            runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await runner

    def enter() -> None:
        try:
            with Path(f"/run/netns/{net.us}").open() as handle:
                os.setns(handle.fileno(), os.CLONE_NEWNET)
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)

    thread = threading.Thread(target=enter, name=net.us)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_server_that_dies_goes_down_with_the_reason_and_comes_back(net: Net) -> None:
    net.serve()

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: Target(PATIENT, SERVER, PORT)})
        assert (await watch.until_health(Health.UP)).reason.startswith("HTTP 200 in ")
        net.kill()
        before = time.time()
        down = await watch.until_health(Health.DOWN)
        assert down.reason == "connection refused"
        assert before <= down.since <= time.time()
        net.serve()
        await watch.until_health(Health.UP)
        assert watch.told == ["checking -> up", "up -> down", "down -> up"]

    watch_in(net, story)


def test_a_server_that_goes_silent_is_named_by_the_timeout(net: Net) -> None:
    net.serve()

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: Target(HTTP, SERVER, PORT)})
        await watch.until_health(Health.UP)
        net.peers("link set eth0 down")
        silent = await watch.until_health(Health.DOWN)
        # On a busy host it goes on: "and 50 ms in which this agent had no CPU".
        assert silent.reason.startswith("no answer within 200 ms")
        net.peers("link set eth0 up")
        await watch.until_health(Health.UP)

    watch_in(net, story)


def test_an_unreachable_server_is_down_not_an_error(net: Net) -> None:
    async def story(watch: Watch) -> None:
        elsewhere = Target(HTTP, ip_address("192.0.2.99"), PORT)
        check_exactly(watch.monitor, {REF: elsewhere})
        assert (await watch.until_health(Health.DOWN)).reason == "network unreachable"

    watch_in(net, story)


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
def test_a_link_that_goes_down_during_a_check_is_no_verdict(net: Net, kind: CheckKind) -> None:
    net.serve()
    check = replace(PATIENT, kind=kind, send="GET / HTTP/1.1\r\n\r\n", expect="200 OK")

    async def story(watch: Watch) -> None:
        check_exactly(watch.monitor, {REF: Target(check, SERVER, PORT)})
        await watch.until_health(Health.UP)
        assert net.server is not None
        net.server.send_signal(signal.SIGSTOP)  # its kernel takes connections, and nothing answers
        talks = watch.monitor._prober._talks
        async with asyncio.timeout(120):
            while not any(talk.is_connected for talk in talks.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        ip("-n", net.us, "link", "set", "eth0", "down")
        watch.down = "eth0 is down"
        async with asyncio.timeout(120):
            while "not checked" not in watch.monitor.status(REF).reason:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # the next ones find no route
        status = watch.monitor.status(REF)
        assert (status.health, status.reason) == (Health.UP, "not checked: eth0 is down")
        net.server.send_signal(signal.SIGCONT)
        ip("-n", net.us, "link", "set", "eth0", "up")
        watch.down = ""
        watch.monitor.resume()
        async with asyncio.timeout(120):
            while watch.monitor.status(REF).passes < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert watch.told == ["checking -> up"]

    watch_in(net, story)


@pytest.mark.parametrize("kind", [CheckKind.TCP, CheckKind.HTTP])
def test_two_thousand_servers_are_told_from_two_thousand_dead_ones(
    net: Net, kind: CheckKind
) -> None:
    net.serve()
    # Every address of two /20s is the peer's own; nothing listens on the second port.
    net.peers("route add local 10.64.0.0/16 dev lo")
    ip("-n", net.us, "route", "add", "10.64.0.0/16", "via", str(SERVER))
    check = HealthCheck(kind=kind, interval_s=5.0, timeout_s=60.0)  # of a busy host's servers
    targets = {
        BackendRef("chat", f"{'live' if alive else 'dead'}-{n}"): Target(
            check, ip_address(f"10.64.{n >> 8}.{n & 255}"), PORT if alive else 81
        )
        for n in range(1, 2001)
        for alive in (True, False)
    }

    async def story(watch: Watch) -> None:
        files = open_files()
        check_exactly(watch.monitor, targets)
        await watch.until(lambda: len(watch.told) == len(targets))
        for ref, status in watch.monitor.statuses().items():
            assert status.health is (Health.UP if ref.backend.startswith("live") else Health.DOWN)
        check_exactly(watch.monitor, {})
        await asyncio.sleep(0.2)
        assert open_files() <= files + 1

    watch_in(net, story)


def test_an_echo_is_answered_or_not(net: Net) -> None:
    """Both families; another echo of the same host is not taken for ours."""
    net.peers("addr add fd09::21/64 dev eth0 nodad")
    ip("-n", net.us, *["addr", "add", "fd09::2/64", "dev", "eth0", "nodad"])
    ping = HealthCheck(CheckKind.PING, timeout_s=20.0)
    short = replace(ping, timeout_s=0.3)

    async def story(_: Watch) -> None:
        patience = Patience()
        for address in (SERVER, ip_address("fd09::21")):
            found = await asyncio.gather(*(probe(ping, address, 0, patience) for _ in range(20)))
            assert all(each.ok and each.detail.startswith("echo in ") for each in found), found
        ip("netns", "exec", net.peer, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
        silent = await probe(short, SERVER, 0, patience)
        assert (silent.ok, silent.silent, silent.detail) == (False, True, "no answer within 300 ms")
        reject = (
            "add table ip t; add chain ip t in {type filter hook input priority 0;};"
            "add rule ip t in icmp type echo-request reject with icmp host-unreachable"
        )
        ip("netns", "exec", net.peer, "nft", reject)
        told = await probe(ping, SERVER, 0, patience)
        assert (told.ok, told.silent, told.detail) == (False, True, "no route to host")

    watch_in(net, story)
