"""``python -m bench.flowsync``: what flow sync costs two balancers.

It runs two processes with flow tables in memory, as the agents have them, and a stream over
loopback. The table of the first one changes as under load: flows open, close after a while, and
are swept out.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flowhash
from agent.dataplane.constants import Clock, HashKeys, clock_for, sizes
from agent.dataplane.flowhash import ServiceKeys
from agent.dataplane.survey import Counts
from agent.failover.model import FlowSync as Settings
from agent.flowsync.exchange import Exchange, Node
from agent.flowsync.identity import Identities
from agent.flowsync.install import Arrival
from agent.flowsync.natplaces import nat_places
from agent.flowsync.sync import FlowSync
from agent.flowsync.view import View
from agent.model import Tables
from agent.state.tables import ServiceSlot, TableContents
from bench import machine

SENDER, RECEIVER = ip_address("127.0.0.1"), ip_address("127.0.0.2")
VIP, PORT, TCP = ip_address("192.0.2.10"), 80, 6
BACKENDS = 64
SECRET = b"only for this measurement"
HZ = 250
OPEN_S, CLOSED_S = 5.0, 5.0  # how long a flow is open, and then kept as closed
STEP_S = 0.02
DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """``standing`` flows that stay, and ``rate`` more per second that open and close."""

    name: str
    standing: int
    rate: int = 0
    bytes_per_s: int = Settings().rate_bytes_per_s
    seconds: float = 10.0


CASES = (
    Case("100,000 flows, nothing happens", 100_000),
    Case("1,000,000 flows, nothing happens", 1_000_000),
    Case("1,000,000 flows, bound of 10 MB/s", 1_000_000, bytes_per_s=10_000_000, seconds=2.0),
    Case("10,000 new flows a second beside 100,000", 100_000, rate=10_000, seconds=20.0),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one case cost.

    ``resync_*``: the time until the peer has all flows, the bytes sent and the CPU time of both
    nodes until then. The other figures are over the seconds of the case: the share of one CPU of
    each node, what the sender sends, and the largest lag of the peer.
    """

    case: Case
    resync_s: float
    resync_bytes: int
    resync_cpu_s: tuple[float, float]
    cpu_share: tuple[float, float]
    bytes_per_s: float
    flows_per_s: float
    worst_lag_s: float
    installed: int
    dropped: dict[str, int] = field(default_factory=dict)


class MemoryTables:
    """A node's tables, without a kernel (``view.FlowTables``)."""

    def __init__(self, slots: int, service: int) -> None:
        self.size = sizes(Tables(flows=slots), 2)
        self.flows = np.zeros(slots, dtype=np.uint64)
        self.flows_cold = np.zeros(slots, dtype=abi.FLOW_COLD)
        self.flows_warm = np.zeros(slots, dtype=abi.FLOW_WARM)
        self.nat_slots = np.zeros(1, dtype=abi.NAT_SLOT)
        self.backends = np.zeros(self.size.backends, dtype=abi.BACKEND)
        mine = self.backends[1 : BACKENDS + 1]
        mine["flags"], mine["service"] = abi.BACKEND_F_ALIVE | abi.BACKEND_F_USABLE, service
        mine["timeout_ticks"] = 225
        self.ident = f"bench/{service}"

    def nat_sources_of(self, nat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return them as they are: no flow here has a NAT source."""
        return nat


def node_of(tables: MemoryTables, service: int) -> Node:
    """Return a node with one service; ``service`` is its id, which differs between the nodes."""
    keys = HashKeys(0x1234_5678_9ABC_DEF0 ^ service, 0x9E3779B97F4A7C15, 0xB7E151628AED2A6B)
    clock = clock_for(HZ)
    ids = Identities(
        tables.ident,
        len(tables.flows),
        services={service: ServiceSlot(VIP, PORT, TCP)},
        backends={n: (service, ip_address("10.1.0.0") + n, PORT) for n in range(1, BACKENDS + 1)},
        nat_sources={},
    )
    nowhere = nat_places(TableContents(), len(tables.backends))
    view = View(tables, ServiceKeys.of(keys, {service: 7 * service}, ()), clock, ids, nowhere)
    arrival = Arrival(1, np.zeros(6, dtype=np.uint8))
    return Node(lambda: view, jiffies, lambda: arrival, lambda _outcome: None)


def jiffies() -> int:
    return int(time.monotonic() * HZ)


class Life:
    """The load on the master's table: flows that open, close and are swept out."""

    def __init__(self, node: Node) -> None:
        self._view = node.view()
        self._random = np.random.default_rng(1)
        self._open: deque[tuple[float, Counts]] = deque()
        self._closed: deque[tuple[float, Counts]] = deque()
        self.cpu_s = 0.0

    def open(self, count: int) -> Counts:
        """Open up to ``count`` more flows; return the slots in which they are."""
        view, tables = self._view, self._view.tables
        cold = np.zeros(count, dtype=abi.FLOW_COLD)
        cold["saddr"][:, 0] = self._random.integers(1 << 24, 1 << 31, count)
        cold["sport"] = self._random.integers(1024, 65536, count)
        cold["daddr"][:, 0], cold["dport"] = int(VIP), PORT
        cold["service"], cold["l4_proto"], cold["family"] = 1, TCP, 4
        cold["start"] = jiffies()
        hashes = view.keys.hashes(cold["service"], flowhash.wire_of(cold), flowhash.daddr_of(cold))
        buckets, chosen = np.unique(
            flowhash.buckets_of(hashes, tables.size.flow_buckets), return_index=True
        )
        rows = tables.flows.reshape(-1, abi.FLOW_WAYS)[buckets]
        way = (rows == 0).argmax(axis=1)
        free = rows[np.arange(len(rows)), way] == 0
        slots: Counts = (buckets * abi.FLOW_WAYS + way)[free]
        chosen = chosen[free]
        backend = self._random.integers(1, BACKENDS + 1, len(slots)).astype(np.uint64)
        tables.flows_cold[slots] = cold[chosen]
        tables.flows[slots] = (
            flowhash.tags_of(hashes[chosen]) << np.uint64(32)
            | backend << np.uint64(abi.FLOW_BACKEND_SHIFT)
            | np.uint64(_low(abi.FlowState.ESTABLISHED, view.clock))
        )
        return slots

    def fill(self, count: int) -> None:
        """Open ``count`` flows that stay."""
        filled = 0
        while filled < count:
            filled += len(self.open(min(20_000, count - filled)))

    def step(self, count: int, now: float) -> None:
        """Open ``count`` flows, and close and sweep out those that are due at ``now``."""
        began, flows = time.thread_time(), self._view.tables.flows
        self._open.append((now, self.open(count)))
        while self._open and self._open[0][0] < now - OPEN_S:
            slots = self._open.popleft()[1]
            low = np.uint64(_low(abi.FlowState.CLOSING, self._view.clock))
            flows[slots] = flows[slots] & ~np.uint64(0xFFFF) | low
            self._closed.append((now, slots))
        while self._closed and self._closed[0][0] < now - CLOSED_S:
            flows[self._closed.popleft()[1]] = 0
        self.cpu_s += time.thread_time() - began

    async def run(self, rate: int) -> None:
        due = time.monotonic()
        while True:
            await asyncio.to_thread(self.step, int(rate * STEP_S), time.monotonic())
            due += STEP_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))


def _low(state: abi.FlowState, clock: Clock) -> int:
    return state << abi.FLOW_STATE_SHIFT | (jiffies() >> clock.shift) & abi.FLOW_STAMP_MASK


async def _none(_instance: str | None, **_: object) -> str:
    return ""


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _balancer(case: Case, settings: Settings, service: int, pipe: Connection) -> None:
    """Run one of the two nodes; report its state and CPU time when the pipe asks for it."""
    slots = 1 << 20 if case.standing < 500_000 else 1 << 22
    node = node_of(MemoryTables(slots, service), service)
    life = Life(node)
    sends = service == 1
    if sends:
        life.fill(case.standing)
    sync = FlowSync(settings, SECRET, f"lb{service}", lambda _peer: Exchange(node), _none, _none)
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    (work,) = sync.tasks().values()
    tasks = [asyncio.create_task(work)]
    worst_lag_s = 0.0
    while (asked := await _command(pipe)) != "end":
        if asked == "load" and sends and case.rate:
            tasks.append(asyncio.create_task(life.run(case.rate)))
        for peer in sync.status():
            if asked == "lag":
                worst_lag_s = max(worst_lag_s, peer.lag_s or 0.0)
            elif asked == "state":
                used_s = {"cpu_s": _cpu_s() - life.cpu_s, "worst_lag_s": worst_lag_s}
                pipe.send(asdict(peer) | used_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _command(pipe: Connection) -> str:
    return str(await asyncio.to_thread(pipe.recv))


def _child(case: Case, settings: Settings, service: int, pipe: Connection) -> None:
    asyncio.run(_balancer(case, settings, service, pipe))


class Pair:
    """The processes of the two nodes."""

    def __init__(self, case: Case) -> None:
        with socket.socket() as sock:
            sock.bind((str(SENDER), 0))
            port = sock.getsockname()[1]
        settings = Settings(
            peers=(RECEIVER,), listen=SENDER, port=port, rate_bytes_per_s=case.bytes_per_s
        )
        others = replace(settings, peers=(SENDER,), listen=RECEIVER)
        context = multiprocessing.get_context("spawn")
        self.pipes, self._processes = [], []
        for service, own in ((1, settings), (2, others)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(case, own, service, theirs))
            process.start()
            self.pipes.append(ours)
            self._processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def say(self, word: str) -> None:
        for pipe in self.pipes:
            pipe.send(word)

    def states(self) -> list[Any]:
        self.say("state")
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> None:
        self.say("end")
        for process in self._processes:
            process.join(10)
            process.kill()


def measure(case: Case) -> Result:
    """Run one case."""
    pair = Pair(case)
    try:
        pair.say("go")
        started, before = time.monotonic(), None
        while True:
            now = pair.states()
            before = before or now
            if now[0]["full_sent"] and now[0]["lag_s"] is not None:
                break
            if time.monotonic() > started + DEADLINE_S:
                raise SystemExit(f"not resynchronised within {DEADLINE_S:g} s: {now}")
            time.sleep(0.005)
        resync_s = time.monotonic() - started
        resynced = now
        pair.say("load")
        # Wait until as many flows are swept out as open.
        time.sleep(OPEN_S + CLOSED_S if case.rate else 1.0)
        first, began = pair.states(), time.monotonic()
        while time.monotonic() < began + case.seconds:
            time.sleep(0.1)
            pair.pipes[0].send("lag")
        last, took_s = pair.states(), time.monotonic() - began
    finally:
        pair.end()

    def each(later: list[Any], sooner: list[Any]) -> tuple[float, float]:
        one, two = (float(b["cpu_s"] - a["cpu_s"]) for a, b in zip(sooner, later, strict=True))
        return one, two

    one, two = each(last, first)
    return Result(
        case,
        resync_s,
        resynced[0]["bytes_sent"],
        each(resynced, before),
        (one / took_s, two / took_s),
        (last[0]["bytes_sent"] - first[0]["bytes_sent"]) / took_s,
        (last[0]["flows_sent"] - first[0]["flows_sent"]) / took_s,
        last[0]["worst_lag_s"],
        last[1]["flows_installed"],
        last[1]["flows_dropped"],
    )


def markdown(results: list[Result]) -> str:
    lines = [
        "| flows | resync s | MB | CPU s, both | then CPU %, both | MB/s | lag ms | dropped |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for r in results:
        resync = " + ".join(f"{cpu_s:.2f}" for cpu_s in r.resync_cpu_s)
        share = " + ".join(f"{100 * share:.1f}" for share in r.cpu_share)
        lines.append(
            f"| {r.case.name} | {r.resync_s:.2f} | {r.resync_bytes / 1e6:.1f} | {resync} | {share} "
            f"| {r.bytes_per_s / 1e6:.2f} | {r.worst_lag_s * 1000:.0f} "
            f"| {sum(r.dropped.values())} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--only", default="", metavar="TEXT", help="Only cases whose name contains it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(only: str, as_json: bool) -> None:
    """Measure what flow sync costs two balancers."""
    results = []
    for case in CASES:
        if only in case.name:
            print(f"bench: {case.name}", file=sys.stderr, flush=True)
            results.append(measure(case))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        here = machine.describe()
        print(f"{here.cpu}, {here.cpus} CPUs, {here.kernel}, Python {here.python}\n")
        print(markdown(results))


if __name__ == "__main__":
    main()
