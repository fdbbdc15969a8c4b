"""Owns the exchange of flows with all other balancers of a group."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from agent import __version__
from agent.errors import SteelyardError
from agent.failover.model import Address
from agent.failover.model import FlowSync as Settings
from agent.failover.syncstatus import FlushResult, PeerSync, TakeResult, unknown
from agent.failover.times import ASK_S, LISTEN_RETRY_S
from agent.flowsync import greet, handshake, records, sockets
from agent.flowsync.flows import Flows, SlotNumbers
from agent.flowsync.framing import Kind
from agent.flowsync.greet import Greeter
from agent.flowsync.handshake import Hello, Why
from agent.flowsync.link import Callback, Callbacks, Ended, Presence
from agent.flowsync.peer import Peer
from agent.logs import get_logger
from agent.state.blocks import Blocks
from agent.weights.speeds import Speeds

log = get_logger()

_MOST_GREETINGS = 8  # handshakes begun by other nodes at the same time
_MOST_STRANGERS = 64  # refused addresses that are logged, once each


class Give(Protocol):
    """Let the asker become master of an instance, or of all; return the outcome in words."""

    async def __call__(self, instance: str | None, /, *, asker: Address) -> str: ...


@dataclass(frozen=True, slots=True)
class Other:
    """A peer, and the address by which it knows this node.

    ``takes_at``: the port at which it takes packets of flows that are not known here; 0: it is not
    connected, or takes none. ``heard_s``: when its last data arrived, on the monotonic clock.
    """

    address: Address
    own: Address
    takes_at: int
    heard_s: float


class FlowSync:
    """Sends this node's flows to every peer, and takes theirs, while its task runs.

    ``flows`` makes the exchange with one peer. ``on_take`` is called when a peer asks this node to
    become master of an instance (None: of all), ``on_give`` when the peer that is passed wants to
    become master; both return an answer in words, or raise SteelyardError. ``presence`` returns
    what this node announces to its peers, and ``heard`` is called after each heartbeat of a peer.
    ``blocks`` returns all blocks of sources that are known here; ``blocked`` is called with those
    that a peer sends, and ``speeds_heard`` with what a peer has learned of backends' speeds.
    """

    def __init__(
        self,
        settings: Settings,
        key: bytes,
        name: str,
        flows: Callable[[Address], Flows],
        on_take: Callback,
        on_give: Give,
        presence: Callable[[], Presence] = Presence,
        heard: Callable[[], None] = lambda: None,
        blocks: Callable[[], Blocks] = dict,
        blocked: Callable[[Blocks], None] = lambda _blocks: None,
        speeds_heard: Callable[[Speeds], None] = lambda _speeds: None,
    ) -> None:
        self.problem = ""  # why peers cannot connect to us, or empty
        self.strangers: Counter[str] = Counter()  # connections refused without a handshake
        self._settings = settings
        self._process = secrets.token_hex(16)
        self._greeter = self._greeter_of(key, name)
        self._flows = flows
        self._on_take, self._on_give = on_take, on_give
        self._presence, self._heard = presence, heard
        self._blocks, self._blocked, self._speeds_heard = blocks, blocked, speeds_heard
        self._peers: dict[Address, Peer] = {}
        self._running: dict[Address, asyncio.Task[None]] = {}
        self._servers: list[asyncio.Server] = []
        self._listening: tuple[tuple[Address, ...], int] = ((), 0)
        self._greetings = 0
        self._logged: set[Address] = set()
        self._changed = asyncio.Event()

    # -- called by the agent

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the coroutines that have to run, by name."""
        return {"flow sync": self._run()}

    async def reconfigure(self, settings: Settings, key: bytes, name: str) -> None:
        """Use other settings from now on. Streams with peers that stay are kept if the key and the
        name are the same.
        """
        self._settings = settings
        self._greeter = self._greeter_of(key, name)
        self._changed.set()

    def status(self) -> tuple[PeerSync, ...]:
        """Return the status of each configured peer, as of now."""
        return tuple(
            self._peers[address].status() if address in self._peers else unknown(address)
            for address in self._settings.peers
        )

    def others(self) -> tuple[Other, ...]:
        """Return the configured peers to which there is a route, as of now."""
        found = []
        for address in self._settings.peers:
            link = self._peers[address].link if address in self._peers else None
            with contextlib.suppress(SteelyardError):
                own = sockets.own_address(self._settings, address)
                takes_at, heard_s = (link.takes_at, link.heard_s) if link else (0, 0.0)
                found.append(Other(address, own, takes_at, heard_s))
        return tuple(found)

    def audit_heads(self) -> dict[str, str]:
        """Return the heads of the audit logs of connected peers, ``NUMBER:HASH`` by address."""
        links = {str(address): peer.link for address, peer in self._peers.items()}
        return {
            address: link.audit_head
            for address, link in links.items()
            if link is not None and link.audit_head
        }

    def beat(self) -> None:
        """Send the next heartbeat to each peer at once, because this node has news."""
        for peer in self._peers.values():
            if peer.link is not None:
                peer.link.beat()

    def tell_blocks(self, blocks: Blocks) -> int:
        """Send these blocks to every connected peer; return how many peers take them."""
        links = (peer.link for peer in self._peers.values())
        return sum(link.tell_blocks(blocks) for link in links if link is not None)

    def tell_speeds(self, speeds: Speeds) -> None:
        """Send what was learned of backends' speeds to every connected peer."""
        for peer in self._peers.values():
            if peer.link is not None:
                peer.link.tell_speeds(speeds)

    def name(self, slots: SlotNumbers) -> None:
        """Send the new flows in these slots to every connected peer at once."""
        for peer in self._peers.values():
            if peer.link is not None:
                peer.link.name(slots)

    async def flush(self, timeout_s: float) -> FlushResult:
        """Send every flow to every connected peer, including those with an unfinished handshake,
        and wait until they have them.
        """
        asked = [(peer, peer.link) for peer in self._peers.values() if peer.link is not None]
        if not asked:
            return FlushResult(False, "no other balancer is connected", 0)
        tasks = [asyncio.create_task(link.flush()) for _, link in asked]
        try:
            await asyncio.wait(tasks, timeout=timeout_s)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        failed, flows = [], 0
        for (peer, _), task in zip(asked, tasks, strict=True):
            if task.cancelled():
                failed.append(f"{peer.address}: not within {timeout_s:g} s")
            elif (error := task.exception()) is not None:
                failed.append(f"{peer.address}: {error}")
            else:
                flows += task.result()
        if failed:
            return FlushResult(False, "; ".join(failed), flows)
        return FlushResult(True, f"sent to {len(asked)}", flows)

    async def ask_take(
        self,
        instance: str | None,
        only: Address | None = None,
        timeout_s: float = ASK_S,
    ) -> TakeResult:
        """Ask the peers in turn, or only one, to become master, until one says that it is."""
        return await self._ask(Kind.TAKE, instance, only, timeout_s)

    async def ask_give(self, instance: str | None, timeout_s: float = ASK_S) -> TakeResult:
        """Ask the peers in turn to let this node become master, until a master has done so."""
        return await self._ask(Kind.GIVE, instance, None, timeout_s)

    async def _ask(
        self, kind: Kind, instance: str | None, only: Address | None, timeout_s: float
    ) -> TakeResult:
        result = TakeResult(False, "", "no other balancer is connected")
        for peer in tuple(self._peers.values()):  # a copy, as they may change meanwhile
            if peer.link is None or only not in (None, peer.address):
                continue
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await peer.link.ask(kind, instance)
                result = TakeResult(answer.done, str(peer.address), answer.text)
            except TimeoutError:
                text = f"no answer within {timeout_s:g} s"
                result = TakeResult(False, str(peer.address), text)
            except Ended as ended:
                result = TakeResult(False, str(peer.address), str(ended))
            if result.done:
                break
        return result

    # -- its task

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    self._follow(group)
                    listens = await self._listen()
                    try:
                        async with asyncio.timeout(None if listens else LISTEN_RETRY_S):
                            await self._changed.wait()
                    except TimeoutError:
                        continue
        finally:
            self._close_servers()

    def _follow(self, group: asyncio.TaskGroup) -> None:
        """Start, configure and stop peers so that they match the settings."""
        wanted = self._settings.peers
        for address in [address for address in self._peers if address not in wanted]:
            self._running.pop(address).cancel()
            del self._peers[address]
        for address in wanted:
            if address in self._peers:
                self._peers[address].configure(self._settings, self._greeter)
                continue
            on_give = partial(self._on_give, asker=address)
            callbacks = Callbacks(
                self._on_take,
                on_give,
                self._presence,
                self._heard,
                self._blocks,
                self._blocked,
                self._speeds_heard,
            )
            peer = Peer(address, self._settings, self._greeter, self._flows(address), callbacks)
            self._peers[address] = peer
            self._running[address] = group.create_task(peer.run(), name=f"flow sync: {address}")

    async def _listen(self) -> bool:
        """Listen as configured; return whether that has worked."""
        wanted = (sockets.addresses_to_listen_at(self._settings), self._settings.port)
        if wanted == self._listening:
            return True
        self._close_servers()
        try:
            for address in wanted[0]:
                sock = sockets.listen(address, wanted[1])
                self._servers.append(await sockets.serve(sock, self._met))
        except SteelyardError as error:
            self._close_servers()
            if str(error) != self.problem:
                log.error("flow sync: nobody can connect", problem=str(error))
            self.problem = str(error)
            return False
        self.problem, self._listening = "", wanted
        return True

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._listening = ((), 0)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection that was accepted, from a peer or from an unknown address."""
        try:
            address = sockets.peer_address(writer)
            sockets.tune(writer)
        except OSError:
            writer.close()
            return
        peer = self._peers.get(address)
        if peer is None:
            self._refuse(writer, Why.STRANGER, address)
        elif self._greetings >= _MOST_GREETINGS:
            self._refuse(writer, Why.BUSY, address)
        else:
            self._greetings += 1
            try:
                await peer.meet((reader, writer))
            finally:
                self._greetings -= 1

    def _refuse(self, writer: asyncio.StreamWriter, why: Why, address: Address) -> None:
        greet.refuse(writer, why)
        self.strangers[why.label] += 1
        if address not in self._logged and len(self._logged) < _MOST_STRANGERS:
            self._logged.add(address)
            log.warning("flow sync: refused a connection", address=str(address), why=why.label)

    def _greeter_of(self, key: bytes, name: str) -> Greeter:
        own = Hello(
            __version__, handshake.PROTOCOL, records.VERSION, name, self._process, nonce=b""
        )
        return Greeter(key, own)
