"""``python -m bench.fleet``: how fast a change reaches all balancers of a fleet through etcd.

It starts three members of etcd on the loopback interface, and in one process many members of a
fleet. These have no data plane and no disk: taking a version means to note when. So the figures are
those of the store and of following it, and all members share the CPU time that a real fleet has on
as many machines. A load that one process cannot follow says nothing about a fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import logging
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import structlog

from agent.errors import OvertakenError, StoreError
from agent.fleet.member import Figures, Member
from agent.fleet.reports import Work
from agent.fleet.store import FleetStore, Order
from agent.fleet.versions import LOG, Document, Documents, FleetVersion, log_key
from agent.model import Etcd, Fleet
from bench import machine

SERVICES, BACKENDS = 1000, 10  # of the fleet, and of each service
MEMBERS = 3
RATE = 20  # changes a second
DEADLINE_S = 60.0  # a fleet that has not come so far by then is given up
_NOTHING = Figures("alone", "", "", (), Work(), {})


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; ``target``: the limit for it, if there is one."""

    balancers: int
    name: str
    value: float
    unit: str
    target: float | None = None


# -- etcd


class Cluster:
    """Members of etcd on free ports of the loopback interface, with their data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = iter(_free_ports(2 * MEMBERS))
        self._urls = [
            (f"http://127.0.0.1:{next(ports)}", f"http://127.0.0.1:{next(ports)}")
            for _ in range(MEMBERS)
        ]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' URLs for clients."""
        return tuple(client for client, _ in self._urls)

    def start(self) -> None:
        """Start the members that do not run; they need a moment to find each other."""
        everybody = ",".join(f"e{n}={peer}" for n, (_, peer) in enumerate(self._urls))
        for number, (client, peer) in enumerate(self._urls):
            if number in self._processes:
                continue
            command = [
                "etcd", "--name", f"e{number}", "--data-dir", str(self._folder / f"e{number}"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", everybody, "--log-level", "error",
            ]  # fmt: skip
            with (self._folder / f"e{number}.log").open("ab") as log:
                self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, *numbers: int) -> None:
        """Kill these members, or all."""
        for number in numbers or tuple(self._processes):
            process = self._processes.pop(number)
            process.kill()
            process.wait()

    def leader(self) -> int:
        """Wait until the members have a leader, and return its number."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for number in self._processes:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    status = self._status(number)
                    if status.get("leader") == status["header"]["member_id"]:
                        return number
            time.sleep(0.05)
        raise SystemExit(f"etcd has no leader after {DEADLINE_S:g} s: see {self._folder}")

    def _status(self, number: int) -> Any:
        address = self.endpoints[number].removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(address, timeout=1.0)) as talk:
            talk.request("POST", "/v3/maintenance/status", b"{}")
            return json.load(talk.getresponse())


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a cluster for the block; its files are on a disk, as those of a real one."""
    with tempfile.TemporaryDirectory(prefix="st-bench-fleet-", dir="/var/tmp") as folder:
        made = Cluster(Path(folder))
        try:
            made.start()
            made.leader()
            yield made
        finally:
            made.kill()


# -- the fleet


class Balancer(Member):
    """A member of the fleet that only notes when it took a version."""

    def __init__(self, fleet: Fleet, node: str, folder: Path) -> None:
        self.taken: dict[int, float] = {}
        super().__init__(fleet, node, folder / f"{node}.json", None, self._run, self._look)

    async def _run(self, number: int, documents: Documents, _entry: FleetVersion | None) -> None:
        self.taken[number] = time.monotonic()
        await self.took(number, documents)

    async def took(self, number: int, documents: Documents) -> None:
        """Note it, without a digest and without a file: 200 balancers have as many CPUs."""
        self.version, self.services = number, documents
        async with self._news:
            self._news.notify_all()

    async def _look(self) -> Figures:
        return _NOTHING


def service(number: int, weight: int = 100) -> Document:
    """Return a service as the fleet stores it."""
    backends = [
        {"name": f"b{n}", "address": f"10.{n}.{number // 250}.{number % 250 + 1}", "weight": weight}
        for n in range(BACKENDS)
    ]
    vip = f"192.168.{number // 250}.{number % 250 + 1}"
    return {"name": f"service-{number}", "vip": vip, "port": 80, "backends": backends}


class Services:
    """The services of the fleet, and one change of them after the other."""

    def __init__(self) -> None:
        made = (service(number) for number in range(SERVICES))
        self._now: Documents = {str(each["name"]): each for each in made}
        self._turn = itertools.count()

    def order(self, node: str) -> Order:
        """Return an order that gives other weights to the backends of one service."""
        turn = next(self._turn)
        changed = service(turn % SERVICES, 101 + turn)
        self._now = {**self._now, str(changed["name"]): changed}
        change = (f"change service {changed['name']}",)
        return Order(self._now, time.time(), node, "edit", "bench", "", change)


@contextlib.asynccontextmanager
async def running(count: int, endpoints: Sequence[str]) -> AsyncIterator[list[Balancer]]:
    """Run so many balancers for the block, which all have a first version."""
    # None is trimmed, because each is looked for at the end.
    fleet = Fleet(f"bench-{count}", "", Etcd(endpoints=tuple(endpoints)), history=100_000)
    balancers = [Balancer(fleet, f"lb{n}", Path("/nonexistent")) for n in range(count)]
    tasks = [asyncio.create_task(work) for each in balancers for work in each.tasks().values()]
    try:
        store = FleetStore(fleet)
        try:
            await store.add(await store.read(), Services().order("lb0"))
        finally:
            await store.close()
        await all_have(balancers, 1)
        yield balancers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in balancers:
            await each.close()


async def all_have(balancers: Sequence[Balancer], number: int) -> None:
    """Wait until all run a version, or a newer one."""
    end = time.monotonic() + DEADLINE_S
    while late := [each for each in balancers if each.version < number]:
        if time.monotonic() > end:
            raise SystemExit(f"{len(late)} balancers have not taken version {number}")
        await asyncio.sleep(0.002)


async def publish(balancer: Balancer, services: Services) -> int:
    """Write a version; return its number. Raises StoreError."""
    return await balancer.publish(balancer.writable(), services.order(balancer.node))


async def seconds_until_written(balancer: Balancer, services: Services) -> float:
    """Return for how long no change could be written; each attempt is made as soon as it can be."""
    began = time.monotonic()
    while True:
        try:
            await publish(balancer, services)
        except StoreError as error:
            if time.monotonic() - began > DEADLINE_S:
                raise SystemExit(f"nothing is written after {DEADLINE_S:g} s: {error}") from error
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - began


# -- what is measured


async def edits(balancers: list[Balancer], services: Services, count: int) -> list[Figure]:
    """Measure how long a change takes to be written, and to be with the last balancer."""
    written, last = [], []
    for turn in range(count):
        at = balancers[turn % len(balancers)]
        await all_have([at], max(each.version for each in balancers))
        began = time.monotonic()
        number = await publish(at, services)
        written.append(1000 * (time.monotonic() - began))
        await all_have(balancers, number)
        last.append(1000 * (max(each.taken[number] for each in balancers) - began))
        await asyncio.sleep(0.02)
    target = {20: 25.0, 200: 50.0}.get(len(balancers))
    rows = (
        ("change written, p50", statistics.median(written), None),
        ("change at the last balancer, p50", statistics.median(last), target),
        ("change at the last balancer, p99", _quantile(last, 0.99), None),
        ("change at the last balancer, max", max(last), None),
    )
    return [Figure(len(balancers), name, value, "ms", limit) for name, value, limit in rows]


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


async def faults(
    balancers: list[Balancer], services: Services, store: Cluster, rounds: int
) -> list[Figure]:
    """Measure until when nothing can be written after the leader died, and after a majority."""
    count, leaderless, back = len(balancers), [], []
    for _ in range(rounds):
        store.kill(await asyncio.to_thread(store.leader))
        leaderless.append(await seconds_until_written(balancers[0], services))
        await _mended(balancers, services, store)
        leader = await asyncio.to_thread(store.leader)
        store.kill(leader, (leader + 1) % MEMBERS)
        await asyncio.sleep(3.0)
        if len({each.version for each in balancers}) > 1:
            raise SystemExit("without a majority, balancers have changed their version")
        store.start()
        back.append(await seconds_until_written(balancers[0], services))
        await _mended(balancers, services, store)
    return [
        Figure(count, "leader killed: written again, max", max(leaderless), "s", 3.0),
        Figure(count, "majority started again: written again, max", max(back), "s", 2.0),
    ]


async def _mended(balancers: list[Balancer], services: Services, store: Cluster) -> None:
    """Start all members of etcd, and wait until all balancers follow again."""
    store.start()
    await asyncio.to_thread(store.leader)
    await seconds_until_written(balancers[0], services)
    await all_have(balancers, balancers[0].version)


async def steady(balancers: list[Balancer], services: Services, seconds: float) -> list[Figure]:
    """Measure changes at a steady rate, made at two balancers in turn."""
    count, numbers, conflicts = len(balancers), list[int](), 0
    writers = (balancers[0], balancers[count // 2])
    began, cpu_s = time.monotonic(), _cpu_s()
    for turn in range(int(RATE * seconds)):
        await asyncio.sleep(max(0.0, began + turn / RATE - time.monotonic()))
        writer = writers[turn % 2]
        while True:
            try:
                numbers.append(await publish(writer, services))
                break
            except OvertakenError:  # the agent, too, makes the change anew then
                conflicts += 1
                await writer.caught_up()
    passed = time.monotonic() - began
    share = 100 * (_cpu_s() - cpu_s) / passed
    await all_have(balancers, numbers[-1])
    listed = await balancers[0].store.client.list(LOG, keys_only=True)
    lost = {log_key(number) for number in numbers} - {row.key for row in listed.rows}
    rows = (
        (f"changes a second, of {RATE}", len(numbers) / passed, "a second", None),
        ("of those lost", float(len(lost)), "", 0.0),
        ("of those made anew, as another was faster", float(conflicts), "", None),
        ("CPU of all balancers together meanwhile", share, "% of a core", None),
    )
    return [Figure(count, name, value, unit, limit) for name, value, unit, limit in rows]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(
    count: int, changes: int, rounds: int, seconds: float, store: Cluster
) -> list[Figure]:
    """Measure a fleet of so many balancers."""
    services, found = Services(), list[Figure]()
    async with running(count, store.endpoints) as balancers:
        parts: tuple[tuple[str, Callable[[], Awaitable[list[Figure]]]], ...] = (
            ("edits", lambda: edits(balancers, services, changes)),
            ("faults", lambda: faults(balancers, services, store, rounds)),
            ("steady", lambda: steady(balancers, services, seconds)),
        )
        for name, part in parts:
            print(f"bench: {count} balancers, {name}", file=sys.stderr, flush=True)
            found += await part()
    return found


def markdown(figures: Sequence[Figure]) -> str:
    """Return the figures as a table."""
    lines = ["| balancers | what | value | unit | to reach |", "|-:|-|-:|-|-:|"]
    for each in figures:
        target = "" if each.target is None else f"{each.target:g}"
        lines.append(
            f"| {each.balancers} | {each.name} | {each.value:,.4g} | {each.unit} | {target} |"
        )
    return "\n".join(lines)


@click.command()
@click.option(
    "--balancers",
    "counts",
    multiple=True,
    type=click.IntRange(2, 1000),
    default=(20, 200),
    show_default=True,
    help="The size of the fleet; can be given more than once.",
)
@click.option("--edits", "changes", type=click.IntRange(1), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of faults.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=120.0, show_default=True, help="Of steady load."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(counts: tuple[int, ...], changes: int, rounds: int, seconds: float, as_json: bool) -> None:
    """Measure how fast a change reaches a fleet, and what happens when etcd fails."""
    if shutil.which("etcd") is None:
        raise click.ClickException("etcd is not installed: apt install etcd-server")
    # Each of the members would say what each fault does to it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    figures = []
    for count in counts:
        with cluster() as store:
            figures += asyncio.run(measure(count, changes, rounds, seconds, store))
    if as_json:
        print(json.dumps([asdict(each) for each in figures], indent=2))
        return
    on = machine.describe()
    print(f"{on.cpu}, {on.cpus} CPUs, {on.kernel}, Python {on.python}\n")
    print(f"{SERVICES:,} services with {BACKENDS} backends each, three members of etcd\n")
    print(markdown(figures))


if __name__ == "__main__":
    main()
