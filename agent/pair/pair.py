"""Owns this node's part in a group of balancers: its failover process and the exchange of flows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.dataplane import counters
from agent.dataplane.established import Established, ring_of
from agent.dataplane.hold import new_flows_held
from agent.dataplane.program import Dataplane
from agent.dataplane.survey import Counts, Slots
from agent.errors import ConflictError, SteelyardError
from agent.failover.model import FlowSync as SyncSettings
from agent.failover.model import Method, Mode, Role
from agent.failover.plan import claimed_vips
from agent.failover.secret import read_secret
from agent.failover.status import Problem
from agent.failover.syncstatus import LinkState, PeerSync, unknown
from agent.failover.times import (
    GOODBYE_S,
    OUTLAST_S,
    PREEMPT_PAUSE_S,
    STOPPED_TOO_LOOK_S,
    STRAGGLERS_S,
)
from agent.flowsync.exchange import Exchange
from agent.flowsync.kept import Kept, forget_all_but
from agent.flowsync.link import Presence
from agent.flowsync.sync import FlowSync
from agent.logs import get_logger
from agent.model import Address, CheckKind, Config, NextHop, Service
from agent.pair import comparing, mine, naming, preemption, witness
from agent.pair.agentstatus import AgentStatus
from agent.pair.detour import Detour
from agent.pair.handover import Peers, hand_over, take_over
from agent.pair.mastership import Mastership
from agent.pair.node import node_of
from agent.pair.peers import SyncPeers
from agent.pair.readiness import (
    Standing,
    follow,
    is_cut_off,
    is_reaching,
    settle_s,
    untold,
    waits_for,
)
from agent.state.blocks import Blocks
from agent.state.moves import Lacking, Moved, MoveOrder, MoveVerb
from agent.state.snapshot import FailoverView
from agent.state.tables import TableContents
from agent.weights.speeds import Speeds

log = get_logger()

# Looks at the failover process over half a second: if both processes are stopped together, both
# have been told to stop by then.
_LOOKS = 10


class Pair:
    """The peers of this node, and its role among them.

    ``word`` returns the agent's own part of the heartbeat to the failover process. ``contents``
    returns what the tables hold now, ``hop_of`` the next hop to an address, and ``complete``
    whether the tables have all backends that the checks have found. ``blocks``, ``blocked`` and
    ``speeds_heard`` are passed to ``FlowSync``.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        word: Callable[[], AgentStatus],
        contents: Callable[[], TableContents],
        hop_of: Callable[[Address], NextHop],
        complete: Callable[[], bool] = lambda: True,
        blocks: Callable[[], Blocks] = dict,
        blocked: Callable[[Blocks], None] = lambda _blocks: None,
        speeds_heard: Callable[[Speeds], None] = lambda _speeds: None,
    ) -> None:
        self._complete = complete
        # While it is held, the packet path takes no new flows.
        self._hold = lambda: new_flows_held(dataplane.tables.settings)
        self._status = word
        self._standing = Standing()
        self._waits_for = "the agent has just started"
        self._settle_s = 0.0
        self._checked: set[str] = set()  # services with health checks
        self._moving = asyncio.Lock()  # one move at a time; a second one is refused
        # The mode that this node will have after a takeover, and the instance (None: all).
        self._taking: tuple[Mode, str | None] | None = None
        self._sync_problem = ""
        self._unkeyed: tuple[PeerSync, ...] = ()  # the peers, while the secret cannot be read
        self._mismatches: dict[comparing.Place, Problem] = {}  # with peers, found by flow sync
        self._logged: frozenset[comparing.Place] = frozenset()  # mismatches that were logged
        self._has_witness = False
        self._interval_s = SyncSettings().interval_s  # assumed to be the peers' as well
        self._dataplane = dataplane
        self._lacking = Lacking()
        self._ends = False
        self._claimed: frozenset[Address] = frozenset()
        self._shares = False  # flows in our table can be in use at another node at the same time
        self._exchanges: dict[Address, Exchange] = {}  # by peer
        self._handed_s = -STRAGGLERS_S  # when this node last handed over
        self.mastership = Mastership(self._whole_status, lambda: self._sync.beat())
        self._node = node_of(dataplane, contents, self.mastership.is_behind)
        self._sync = FlowSync(
            SyncSettings(),
            b"",
            "",
            self._exchange,
            self._take,
            self._give,
            self._presence,
            self._heard,
            blocks,
            blocked,
            speeds_heard,
        )
        self.tell_blocks = self._sync.tell_blocks
        self.tell_speeds = self._sync.tell_speeds
        self.audit_heads = self._sync.audit_heads
        self.audit_head: Callable[[], str] = str  # of this node, as it is announced to the others
        self._new_flows = Established(lambda: ring_of(dataplane), self._sync.name)
        self._detour = Detour(dataplane, self._sync.others, hop_of)
        self._peers: Peers | None = None

    def _exchange(self, peer: Address) -> Exchange:
        """Make the exchange of flows with a peer, and remember it."""
        pins, slots = self._dataplane.pins, len(self._dataplane.tables.flows)
        exchange = self._exchanges[peer] = Exchange(self._node, Kept.of(pins, peer, slots))
        return exchange

    async def aim(self, config: Config) -> None:
        """Follow a configuration, at the start or after a reload."""
        failover = config.failover
        self._settle_s = settle_s(config.services)
        self._checked = {s.name for s in config.services if s.health.kind is not CheckKind.NONE}
        self.mastership.aim(failover, config.socket)
        self._detour.aim(config)
        self._claimed = claimed_vips(config)
        self._shares = any(i.method is Method.ANNOUNCE for i in failover.instances) or any(
            s.key.vip_bits is not None for s in config.services
        )
        settings, secret = failover.sync, b""
        self._has_witness, self._interval_s = settings.witness, settings.interval_s
        self._sync_problem, self._unkeyed = "", ()
        if settings.peers and failover.key_file is not None:
            try:
                secret = read_secret(failover.key_file)
            except SteelyardError as error:
                why = self._sync_problem = str(error)
                log.error("flows are not exchanged", problem=why)
                refused = LinkState.REFUSED
                self._unkeyed = tuple(unknown(peer, refused, why) for peer in settings.peers)
        if not secret:
            settings = SyncSettings()
        await self._sync.reconfigure(settings, secret, config.name)
        forget_all_but(self._dataplane.pins, failover.sync.peers)
        # Set even without the secret: no peer has the flows then, and a handover has to say so.
        self._peers = SyncPeers(self._sync) if failover.sync.peers else None

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the coroutines that have to run, by name."""
        own = {
            "failover": self.mastership.run(),
            "preemption": self._preempt(),
            "leaving": self._leave(),
            "detour": self._detour.run(),
        }
        return own | self._sync.tasks()

    def refresh(self) -> None:
        """Follow the program that runs now, which may have been replaced."""
        self._new_flows.refresh()

    def view(self) -> FailoverView:
        """Return what is known now."""
        mastership = self.mastership
        return FailoverView(
            configured=mastership.configured,
            process=mastership.status and comparing.shown(mastership.status, self._lasting()),
            problem=mastership.problem,
            sync=self._others(),
            sync_problem=self._sync_problem or self._sync.problem,
            sync_strangers=dict(self._sync.strangers),
            lacking=self._lacking,
            sync_counts=counters.of_sync(self._dataplane.tables) if self._peers is not None else {},
        )

    def serves(self, service: Service) -> bool:
        """Return whether the clients of a service come to this node."""
        return mine.serves(service, self._claimed, self.mastership.routers)

    def others(self, slots: Counts, words: Slots) -> npt.NDArray[np.bool_] | None:
        """Return which of these flows came from a peer and have had no packet here.

        None: no flow here can be in use at another node, because the nodes do not serve at the same
        time.
        """
        if not self._shares or not self._exchanges:
            return None
        masks = [one.is_untouched(words, slots) for one in self._exchanges.values()]
        theirs: npt.NDArray[np.bool_] = np.any(np.stack(masks), axis=0)
        return theirs

    async def move(self, order: MoveOrder) -> Moved:
        """Carry out an operator's order to move the VIPs. SteelyardError if that fails."""
        mastership, instance = self.mastership, order.instance
        await mastership.order({"do": "status"})
        mastership.check(instance)
        if order.dry_run:
            return Moved(self._outlook(order))
        async with self._alone():
            if order.verb is MoveVerb.HANDOVER:
                return await self._hand_over(self._peers, instance, force=order.force)
            mode = Mode.PROMOTED if order.verb is MoveVerb.PROMOTE else Mode.NORMAL
            if mode is Mode.NORMAL and not mastership.would_win(instance):
                await mastership.set_mode(mode, instance)
                return Moved("released: priorities decide again")
            with self._as(mode, instance):
                return await take_over(mastership, self._peers, instance, mode)

    def _outlook(self, order: MoveOrder) -> str:
        """Return in words what an order would do."""
        is_master = self.mastership.has_role(Role.MASTER, order.instance)
        match order.verb:
            case MoveVerb.HANDOVER if not is_master:
                return "this node is not master: it would stay behind until it is released"
            case MoveVerb.HANDOVER:
                return "the other balancer would become master, this node would stay behind it"
            case MoveVerb.PROMOTE if is_master:
                return "this node is master: it would stay so until it is released"
            case MoveVerb.PROMOTE:
                return "this node would become master, until it is released"
            case _ if self.mastership.would_win(order.instance):
                return "priorities would decide: this node would become master"
            case _:
                return "priorities would decide again"

    async def _preempt(self) -> None:
        """Take over from a master of lower priority by asking it for a handover.

        The failover process would take over by itself after its preempt_delay, but then the flows
        that the master got last would not be known here.
        """
        mastership, waiting = self.mastership, dict[str, float]()
        while True:
            await mastership.news.wait()
            mastership.news.clear()
            instances, now_s = mastership.instances, time.monotonic()
            wanted = preemption.candidates(mastership.routers, instances)
            waiting = preemption.since(waiting, wanted, now_s)
            if self._peers is None or self._moving.locked() or self._look():
                continue
            for instance in preemption.due(waiting, instances, now_s):
                try:
                    async with self._alone():
                        await take_over(mastership, self._peers, instance, Mode.NORMAL)
                except SteelyardError as error:
                    log.warning("not preempted", instance=instance, problem=str(error))
                except Exception:  # the task's root
                    log.exception("preemption broke", instance=instance)
                await asyncio.sleep(PREEMPT_PAUSE_S)

    async def _leave(self) -> None:
        """Hand over to a peer that has the flows when the failover process is being stopped."""
        mastership = self.mastership
        while True:
            await mastership.leaving.wait()
            mastership.leaving.clear()
            try:
                async with self._alone():
                    # The process stays behind until it ends, and does not save that mode.
                    await self._hand_over(self._peers, None)
            except SteelyardError as error:
                log.warning("no handover before the failover process stops", problem=str(error))
            except Exception:  # the task's root
                log.exception("the handover before a stop broke")
            await mastership.excuse()

    def _whole_status(self) -> AgentStatus:
        """Return the full heartbeat for the failover process: the agent's part and the peers'."""
        word = self._status()
        peers = self._others()
        waits = self._look(word)
        self._compare(peers)
        return replace(
            word,
            ready=not waits,
            waits_for=waits,
            cut_off=is_cut_off(peers, self._known(word), self._interval_s),
            hands_over=not self._ends and _is_connected(peers),
            vouchers=witness.vouchers(self.mastership.routers, peers) if self._has_witness else {},
        )

    def _presence(self) -> Presence:
        """Return what this node announces to the other balancers."""
        mastership = self.mastership
        names = tuple(mastership.instances)
        takes_at, head = self._detour.takes_at, self.audit_head()
        if mastership.status is None:
            return Presence(names, takes_at=takes_at, audit_head=head)
        words = witness.words(mastership.status, mastership.instances)
        return Presence(names, words, mastership.status_s, takes_at, head)

    def _heard(self) -> None:
        """Update the failover process at once, as a peer's heartbeat may vouch for a master."""
        if self._has_witness:
            self.mastership.wake()

    async def say_goodbye(self) -> None:
        """Prepare the failover process for the end of this agent.

        A process that is stopped later need not wait for the agent. If it is stopped at the same
        moment, as in a container, the VIPs are handed over first.
        """
        with contextlib.suppress(SteelyardError, TimeoutError):
            await self._leave_together()
        # The other balancer passes packets of unknown flows back to this node while this agent
        # lives.
        await asyncio.sleep(self._handed_s + STRAGGLERS_S - time.monotonic())
        self._ends = True
        with contextlib.suppress(SteelyardError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self.mastership.send_heartbeat()

    async def _leave_together(self) -> None:
        """If the failover process is being stopped too, wait until its VIPs are handed over."""
        mastership = self.mastership
        if not (mastership.has_role(Role.MASTER, None) and _is_connected(self._others())):
            return
        # This counts looks rather than time, because an agent that gets no CPU does not look.
        for _ in range(_LOOKS):
            if (await mastership.order({"do": "status"})).leaving:
                break
            await asyncio.sleep(STOPPED_TOO_LOOK_S)
        else:
            return
        log.info("the failover process is stopped too: the VIPs are handed over first")
        async with asyncio.timeout(OUTLAST_S):
            await mastership.excused.wait()

    def _others(self) -> tuple[PeerSync, ...]:
        """Return the flow sync status of each of the other balancers."""
        return self._unkeyed or self._sync.status()

    def _compare(self, peers: tuple[PeerSync, ...]) -> None:
        """Find mismatches between this node and its peers, and log those that are new."""
        mastership = self.mastership
        found = naming.unshared(mastership.instances, peers)
        if mastership.status is not None:
            own = witness.words(mastership.status, mastership.instances)
            found |= comparing.compare(own, peers, time.monotonic())
        self._mismatches = comparing.follow(self._mismatches, found, time.time())
        shown = self._lasting()
        for place in shown.keys() - self._logged:
            text = shown[place].text
            log.warning("mismatch", instance=place.instance, kind=place.kind, text=text)
        self._logged = frozenset(shown)

    def _lasting(self) -> dict[comparing.Place, Problem]:
        return comparing.lasting(self._mismatches, self.mastership.slowest_interval_s())

    def _known(self, word: AgentStatus) -> dict[str, tuple[int, int]]:
        """Return how many backends are up, for the services that have health checks."""
        return {name: word.services[name] for name in self._checked & word.services.keys()}

    def _look(self, word: AgentStatus | None = None) -> str:
        """Return what this node waits for before it may serve, or "" if it may."""
        now_s, before = time.monotonic(), self._waits_for
        lacks = untold(
            self._others(), self._interval_s, was=self._standing.synced_since is not None
        )
        self._standing = follow(
            self._standing,
            synced=not lacks,
            behind=self.mastership.masters_elsewhere(None),
            reaches=is_reaching(self._known(word or self._status())),
            now_s=now_s,
        )
        waits = waits_for(self._standing, self._settle_s, now_s, lacks)
        if before and not waits and not self._complete():
            waits = "the tables lack backends that the checks have found"
        if before and not waits and lacks:
            log.warning("ready without all flows: the wait is over", lacks="; ".join(lacks))
        self._waits_for = waits
        return waits

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the lock for a move, or raise ConflictError at once if another move is running.

        It does not wait, because two nodes that ask each other would wait for ever.
        """
        if self._moving.locked():
            raise ConflictError(
                "the VIPs are being moved already",
                where="failover",
                remedy="try again in some seconds",
            )
        async with self._moving:
            yield

    @contextlib.contextmanager
    def _as(self, mode: Mode, instance: str | None) -> Iterator[None]:
        """While it is open, a handover by the other node puts this node into ``mode``."""
        self._taking = mode, instance
        try:
            yield
        finally:
            self._taking = None

    async def _take(self, instance: str | None) -> str:
        """Become master, as the node that hands over asks."""
        mastership = self.mastership
        if self._taking is not None and self._taking[1] == instance:
            await mastership.set_mode(self._taking[0], instance)
        await mastership.send_heartbeat()
        await mastership.claim(instance)
        faults = mastership.names(Role.FAULT, instance)
        if faults and not any(mastership.has_role(r, instance) for r in (Role.MASTER, Role.BACKUP)):
            raise ConflictError(
                f"it cannot be master of {', '.join(faults)}",
                where="failover",
                remedy="see `lbctl failover status` on that node",
            )
        return "taken"

    async def _give(self, instance: str | None, *, asker: Address) -> str:
        """Hand over to the node that asks to become master."""
        peers = SyncPeers(self._sync, asker)
        async with self._alone():
            moved = await self._hand_over(peers, instance, force=True, stay=False)
        return moved.text

    async def _hand_over(
        self, peers: Peers | None, instance: str | None, *, force: bool = False, stay: bool = True
    ) -> Moved:
        moved = await hand_over(
            self.mastership, peers, self._hold, instance, force=force, stay=stay
        )
        self._handed_s = time.monotonic()
        if moved.lacking:
            self._lacking = self._lacking.and_one(moved.lacking, time.time())
        return moved


def _is_connected(peers: Iterable[PeerSync]) -> bool:
    """Return whether there is a peer to hand over to."""
    return any(peer.state is LinkState.CONNECTED for peer in peers)
