"""Two balancers on loopback, with flow tables that are dictionaries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import numpy as np

from agent.failover.model import FlowSync as Settings
from agent.failover.syncstatus import LinkState, PeerSync
from agent.flowsync.flows import Installed, Look
from agent.flowsync.link import Presence
from agent.flowsync.sync import FlowSync
from agent.state.blocks import Blocks
from agent.weights.speeds import Speeds

SECRET = b"a secret of the two balancers"
LOW, HIGH = ip_address("127.0.0.1"), ip_address("127.0.0.2")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pack(flows: dict[int, int], record_bytes: int) -> bytes:
    """Slot and value, 4 bytes each, and zeros; value 0: gone."""
    return b"".join(
        (slot << 32 | value).to_bytes(8, "big").ljust(record_bytes, b"\0")
        for slot, value in flows.items()
    )


@dataclass
class Table:
    """A flow table, and what is told of it to one peer; ``heard``: what the peer tells."""

    flows: dict[int, int] = field(default_factory=dict)
    unfinished: dict[int, int] = field(default_factory=dict)
    name: str = "ids"
    heard: dict[int, int] = field(default_factory=dict)
    heard_names: list[str] = field(default_factory=list)
    before_install: Callable[[], None] = lambda: None
    wants_resync: bool = False
    record_bytes: int = 8
    part_flows: int = 1000
    accounted: int = 0
    named_slots: list[list[int]] = field(default_factory=list)
    _told: dict[int, int] = field(default_factory=dict)
    _told_name: str = ""
    _parts: Iterator[dict[int, int]] = field(default_factory=lambda: iter(()))
    _unconfirmed: set[int] = field(default_factory=set)

    def begin(self) -> bytes:
        self._told = dict(self.flows)
        self._told_name = self.name
        items = list(self._told.items())
        size = self.part_flows
        self._parts = (dict(items[first : first + size]) for first in range(0, len(items), size))
        return json.dumps(self.name).encode()

    def part(self) -> Look | None:
        part = next(self._parts, None)
        return (
            None
            if part is None
            else Look(None, pack(part, self.record_bytes), len(part), 0, complete=True)
        )

    def changed(self, *, unfinished: bool = False) -> Look:
        now = self.flows | (self.unfinished if unfinished else {})
        fresh = {slot: value for slot, value in now.items() if self._told.get(slot) != value}
        gone = {slot: 0 for slot in self._told if slot not in now}
        name = None if self.name == self._told_name else json.dumps(self.name).encode()
        self._told, self._told_name = dict(now), self.name
        wants, self.wants_resync = self.wants_resync, False
        told = pack(gone | fresh, self.record_bytes)
        return Look(name, told, len(fresh), len(gone), True, wants)

    def named(self, slots: np.ndarray) -> Look:
        self.named_slots.append(slots.tolist())
        flows = {slot: self.flows[slot] for slot in slots.tolist() if slot in self.flows}
        fresh = {slot: value for slot, value in flows.items() if self._told.get(slot) != value}
        self._told |= fresh
        return Look(None, pack(fresh, self.record_bytes), len(fresh), 0, complete=False)

    def meet(self, identities: bytes) -> None:
        self.heard_names.append(json.loads(identities))

    def begin_full(self) -> None:
        self._unconfirmed = set(self.heard)

    def end_full(self) -> Installed:
        for slot in self._unconfirmed:
            del self.heard[slot]
        return self._installed(0, 0, 0)

    def install(self, records: bytes) -> Installed:
        self.before_install()
        if len(records) % self.record_bytes:
            raise ValueError("half a record")
        gone = flows = 0
        for first in range(0, len(records), self.record_bytes):
            slot = int.from_bytes(records[first : first + 4], "big")
            value = int.from_bytes(records[first + 4 : first + 8], "big")
            self._unconfirmed.discard(slot)
            if value:
                self.heard[slot] = value
                flows += 1
            else:
                self.heard.pop(slot, None)
                gone += 1
        return self._installed(flows, gone, flows)

    def _installed(self, flows: int, gone: int, installed: int) -> Installed:
        def account() -> None:
            self.accounted += installed

        return Installed(flows, gone, installed, {}, account)


@dataclass
class Node:
    """One balancer's flow sync, running or not."""

    address: object
    settings: Settings
    key: bytes = SECRET
    name: str = ""
    table: Table = field(default_factory=Table)
    taken: list[str | None] = field(default_factory=list)
    take: Callable[[str | None], str] = lambda instance: f"master of {instance}"
    presence: Presence = field(default_factory=Presence)
    heard: Callable[[], None] = lambda: None
    blocks: Blocks = field(default_factory=dict)
    blocked: list[Blocks] = field(default_factory=list)  # what the other has told
    speeds_heard: list[Speeds] = field(default_factory=list)  # likewise
    sync: FlowSync | None = None
    task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.sync = FlowSync(
            self.settings,
            self.key,
            self.name,
            lambda _peer: self.table,
            self._on_take,
            self._on_give,
            lambda: self.presence,
            lambda: self.heard(),
            lambda: self.blocks,
            self.blocked.append,
            self.speeds_heard.append,
        )
        (work,) = self.sync.tasks().values()
        self.task = asyncio.create_task(work)
        await asyncio.sleep(0)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    async def _on_take(self, instance: str | None) -> str:
        self.taken.append(instance)
        return self.take(instance)

    async def _on_give(self, instance: str | None, *, asker: object) -> str:
        return f"no longer master of {instance}, which {asker} is"

    @property
    def peer(self) -> PeerSync:
        assert self.sync is not None
        (peer,) = self.sync.status()
        return peer

    @property
    def is_connected(self) -> bool:
        assert self.sync is not None
        return any(peer.state is LinkState.CONNECTED for peer in self.sync.status())


def nodes(*, interval_s: float = 0.01, rate: int = 1_000_000_000) -> tuple[Node, Node]:
    """The one that connects, and the one that waits."""
    port = free_port()
    settings = Settings(listen=LOW, peers=(HIGH,), port=port, interval_s=interval_s)
    settings = replace(settings, rate_bytes_per_s=rate)
    other = replace(settings, listen=HIGH, peers=(LOW,))
    return Node(LOW, settings, name="lb1"), Node(HIGH, other, name="lb2")


async def until(what: str, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for it; fail with ``what`` otherwise."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 (there is nothing to wait for)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


@contextlib.asynccontextmanager
async def running(*those: Node, connected: bool = True) -> AsyncIterator[None]:
    """Start them, wait for their stream, stop them afterwards."""
    try:
        for node in those:
            await node.start()
        if connected:
            await until("connected", lambda: all(node.is_connected for node in those))
        yield
    finally:
        for node in those:
            await node.stop()
