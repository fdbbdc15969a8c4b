"""Owns the relation to one peer: one stream at a time, and its status and log lines."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass

from agent.errors import SteelyardError
from agent.failover.model import Address, FlowSync
from agent.failover.syncstatus import LinkState, PeerSync
from agent.failover.times import FIRST_PATIENCE_S, STREAM_SETTLED_S, TURN_PATIENCE_S
from agent.flowsync import greet, pairing, sockets
from agent.flowsync.flows import Flows
from agent.flowsync.greet import Greeter
from agent.flowsync.handshake import Refused, Session, Why
from agent.flowsync.link import Callbacks, Link
from agent.flowsync.quiet import Quiet
from agent.flowsync.sockets import Streams
from agent.flowsync.tally import Tally
from agent.logs import get_logger

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Proven:
    """A connection after its handshake."""

    streams: Streams
    session: Session
    by_us: bool
    proof: bytes = b""  # completes the handshake, if the peer began it

    def refuse(self, why: Why) -> None:
        greet.refuse(self.streams[1], why)


class Peer:
    """One configured peer; ``run`` runs until it is cancelled."""

    def __init__(
        self,
        address: Address,
        config: FlowSync,
        greeter: Greeter,
        flows: Flows,
        callbacks: Callbacks,
    ) -> None:
        self.address = address
        self.link: Link | None = None
        self.tally = Tally()
        self._config = config
        self._greeter = greeter
        self._flows = flows
        self._callbacks = callbacks
        self._state, self._why, self._since = LinkState.CONNECTING, "just started", time.time()
        self._name = self._version = self._last_error = ""
        # The times up to which the peer had all our changes, and we all of the peer's, when the
        # last stream ended.
        self._held_s: float | None = None
        self._behind_s: float | None = None
        self._by_us = False
        self._connecting = False
        self._failures = 0
        self._offered: _Proven | None = None
        self._arrived = asyncio.Event()
        self._quiet = Quiet()

    def configure(self, config: FlowSync, greeter: Greeter) -> None:
        """Use these settings from now on; another secret or name ends the stream."""
        is_other = greeter != self._greeter
        self._config, self._greeter = config, greeter
        if self.link is not None:
            self.link.configure(config)
            if is_other:
                self.link.stop("the configuration has changed here")

    async def run(self) -> None:
        """Keep a stream with the peer."""
        try:
            while True:
                try:
                    await self._talk(await self._next())
                except Exception as error:  # the task's root: a defect here must not stop balancing
                    log.exception("the flow sync broke", peer=str(self.address))
                    self._failures += 1
                    self._failed("defect", f"a defect here: {error!r}", LinkState.CONNECTING)
        finally:
            if self._offered is not None:
                self._offered.refuse(Why.STRANGER)

    async def meet(self, streams: Streams) -> None:
        """Do the handshake on a connection that the peer opened; take or refuse its stream."""
        try:
            session, proof = await self._greeter.accept(streams)
            self._offer(_Proven(streams, session, False, proof))
        except Refused as refused:
            self._refused(refused, incoming=True)
            streams[1].close()
        except (OSError, TimeoutError) as error:
            self._broke(error, incoming=True)
            streams[1].close()

    def status(self) -> PeerSync:
        """Return the status as of now."""
        link, now = self.link, time.monotonic()
        if link is not None:
            lag_s, behind_s = link.lag_s(), link.behind_s()
        else:
            lag_s, behind_s = (
                None if at is None else now - at for at in (self._held_s, self._behind_s)
            )
        return PeerSync(
            address=self.address,
            name=self._name,
            version=self._version,
            state=self._state,
            why=self._why,
            since=self._since,
            lag_s=lag_s,
            behind_s=behind_s,
            rtt_ms=None if link is None or link.rtt_s is None else link.rtt_s * 1000,
            last_error=self._last_error,
            instances=None if link is None else link.instances,
            routers=None if link is None else link.routers,
            routers_s=None if link is None else link.routers_s,
            **self.tally.snapshot(),
        )

    # -- where a stream comes from

    def _offer(self, proven: _Proven) -> None:
        """Let the peer's stream replace the present one, or refuse it."""
        if not pairing.accepts(
            our_turn=self._is_our_turn(),
            connecting=self._connecting,
            connected=self.link is not None,
            by_us=self._by_us,
        ):
            proven.refuse(Why.ALREADY)
            self.tally.refused[Why.ALREADY.label] += 1
            return
        if self._offered is not None:
            self._offered.refuse(Why.ALREADY)
        self._offered = proven
        self._arrived.set()
        if self.link is not None:
            self.link.stop("the peer has opened a new connection")

    def _is_our_turn(self) -> bool:
        try:
            return pairing.connects(sockets.own_address(self._config, self.address), self.address)
        except SteelyardError:
            return True  # there is no route to the peer now; the attempt will report that

    async def _next(self) -> _Proven:
        """Wait for the next stream, opened by the peer or by us, and return it."""
        while True:
            if self._offered is None:
                await self._arrival(self._wait_s())
            if self._offered is None:
                await self._attempt()
            if (proven := self._offered) is not None:
                self._offered = None
                self._arrived.clear()
                return proven

    def _wait_s(self) -> float:
        if not self._is_our_turn():
            if self._failures:
                return TURN_PATIENCE_S
            why = "the peer has to connect: its address is lower"
            self._become(LinkState.CONNECTING, "its turn", why)
            return FIRST_PATIENCE_S
        if not self._failures:
            return 0.0
        return pairing.retry_s(self._failures, random.random())  # noqa: S311

    async def _arrival(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def _attempt(self) -> None:
        """Try to connect, unless the peer connects meanwhile."""
        self._connecting = True
        attempt = asyncio.create_task(self._connect())
        arrival = asyncio.create_task(self._arrived.wait())
        try:
            await asyncio.wait({attempt, arrival}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connecting = False
            arrival.cancel()
            if not attempt.done():
                attempt.cancel()
                await asyncio.wait({attempt})
        if attempt.cancelled():
            return
        try:
            proven = attempt.result()
        except Refused as refused:
            self._failures += 1
            self._refused(refused)
        except (OSError, TimeoutError, SteelyardError) as error:
            self._failures += 1
            self._broke(error)
        else:
            if self._offered is not None:
                proven.refuse(Why.ALREADY)
            else:
                self._offered = proven

    async def _connect(self) -> _Proven:
        sockets.own_address(self._config, self.address)  # raises if there is no route
        streams = await sockets.connect(self._config, self.address)
        try:
            return _Proven(streams, await self._greeter.initiate(streams), True)
        except BaseException:
            streams[1].close()
            raise

    # -- with a stream

    async def _talk(self, proven: _Proven) -> None:
        hello = proven.session.peer
        if proven.proof:
            proven.streams[1].write(proven.proof)
        self._name, self._version, self._by_us = hello.name, hello.project, proven.by_us
        self._quiet.clear()
        self.tally.connections += 1
        began = time.monotonic()
        link = Link(proven.streams, proven.session, self._flows, self.tally, self._callbacks)
        link.configure(self._config)
        self.link = link
        who = "this node" if proven.by_us else "the peer"
        self._become(LinkState.CONNECTED, "connected", f"{who} has connected")
        try:
            ended = await link.run()
        finally:
            self.link = None
            self._remember(link)
        if time.monotonic() - began >= STREAM_SETTLED_S:
            self._failures = 0
        self._failures += 1
        if ended.fault is not None:
            self.tally.refused[ended.fault.value] += 1
        self._last_error = str(ended)
        self._become(LinkState.CONNECTING, "ended", str(ended))

    def _remember(self, link: Link) -> None:
        """Remember both ages as times, so that they go on growing while there is no stream."""
        now = time.monotonic()
        if (lag_s := link.lag_s()) is not None:
            self._held_s = now - lag_s
        if (behind_s := link.behind_s()) is not None:
            self._behind_s = now - behind_s

    # -- status and log

    def _refused(self, refused: Refused, *, incoming: bool = False) -> None:
        self.tally.refused[refused.why.label] += 1
        lasting = refused.why is not Why.ALREADY
        state = LinkState.REFUSED if lasting else LinkState.CONNECTING
        self._failed(refused.why.label, str(refused), state, incoming=incoming)

    def _broke(self, error: Exception, *, incoming: bool = False) -> None:
        kind = type(error).__name__
        if isinstance(error, TimeoutError):
            text = "the peer does not answer"
        elif isinstance(error, SteelyardError):
            text = error.message
        elif isinstance(error, OSError) and error.errno is not None:
            kind = text = os.strerror(error.errno)
        else:
            text = str(error)
        self._failed(kind, text, LinkState.CONNECTING, incoming=incoming)

    def _failed(self, kind: str, text: str, state: LinkState, *, incoming: bool = False) -> None:
        self._last_error = text
        if self.link is None:
            self._become(state, kind, text)
        elif incoming:  # a stream exists, so this came from something else on the peer's host
            left_out = self._quiet.left_out(kind, time.monotonic())
            if left_out is not None:
                log.warning(
                    "flow sync: a second stream failed",
                    peer=str(self.address),
                    why=text,
                    left_out=left_out,
                )

    def _become(self, state: LinkState, kind: str, why: str) -> None:
        """Change the state and log it. Lines of the same ``kind`` are rate-limited together,
        because an unauthenticated sender can choose the words of ``why``.
        """
        old, self._state, self._why = self._state, state, why
        if state is not old:
            self._since = time.time()
        left_out = self._quiet.left_out(kind, time.monotonic())
        if left_out is None and LinkState.CONNECTED not in (state, old):
            return
        say = log.warning if self._failures and state is not LinkState.CONNECTED else log.info
        say(
            "flow sync",
            peer=str(self.address),
            old=old.value,
            new=state.value,
            why=why,
            left_out=left_out or 0,
        )
