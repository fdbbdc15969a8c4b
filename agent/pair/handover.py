"""Decides the order of the steps of a planned handover, so that it loses no connection.

First the other balancer gets all flows. Then new flows are held back for some tenths of a second
(their clients send the first packet again), and it gets the flows that are new since. Then the
other balancer takes the VIPs, and only after that does this one give them up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from agent.errors import ConflictError, SteelyardError
from agent.failover.model import Mode, Role
from agent.failover.syncstatus import FlushResult
from agent.failover.times import (
    FLUSH_S,
    HANDSHAKE_S,
    HELD_S,
    LATE_S,
    LONGEST_TAKER_S,
    TAKEN_LOOK_S,
    TAKER_INTERVALS,
    TAKER_MORE_S,
)
from agent.logs import get_logger
from agent.pair.mastership import Mastership
from agent.state.moves import Moved

log = get_logger()

# The hold ended earlier than it should have, so there may be new flows since.
HELD_UP = "this agent was held up, so new flows came in that the other balancer does not have"

type Hold = Callable[[], AbstractContextManager[Held]]


class Held(Protocol):
    """A hold of new flows, which ends by itself at a deadline."""

    def renew(self) -> bool:
        """Move the deadline; return False if the hold had ended already."""
        ...


class Peers(Protocol):
    """The exchange of flows with the other balancers."""

    async def flush(self, timeout_s: float) -> FlushResult:
        """Send everything that has changed, new flows too, and wait until the peers have it."""
        ...

    async def ask_take(self, instance: str | None) -> str:
        """Ask the peer to become master; return its answer. SteelyardError if it does not."""
        ...

    async def ask_give(self, instance: str | None) -> str:
        """Ask the peer that is master to hand over to this node; return its answer. SteelyardError
        if it does not.
        """
        ...


async def hand_over(
    mastership: Mastership,
    peers: Peers | None,
    hold: Hold,
    instance: str | None,
    *,
    force: bool = False,
    stay: bool = True,
) -> Moved:
    """Give the VIPs to the other balancer; with ``stay``, remain behind it until released.

    Raises SteelyardError if no other balancer has the flows, unless ``force``, or if none takes the
    VIPs. In these cases, and if this is cancelled, this node goes back to the modes it was in.
    """
    mastership.check(instance)
    if not mastership.has_role(Role.MASTER, instance):
        if not stay:
            raise ConflictError(
                "this node is not master", where="failover", remedy="ask the one that is"
            )
        await mastership.set_mode(Mode.HANDED_OVER, instance)
        return Moved("this node is not master; it stays behind until it is released")
    transfer = _Transfer(peers, force)
    await transfer.flush(FLUSH_S)
    transfer.lacking = ""  # the flush during the hold is another chance
    before = mastership.modes(instance)
    try:
        await _give(mastership, transfer, hold, instance)
    except BaseException:
        await _put_back(mastership, before)
        raise
    try:
        await transfer.flush_last()
    finally:
        if not stay:
            await _put_back(mastership, _afterwards(before))
    flows, lacking = transfer.flows, transfer.lacking
    log.info("handed over", instance=instance or "all", flows=flows)
    if lacking:
        log.warning("the other balancer may not have all flows", why=lacking)
    end = "; this node stays behind until it is released" if stay else ""
    less = f", but connections may be cut: {lacking}" if lacking else ""
    return Moved(f"handed over{less}{end}", flows, lacking)


class _Transfer:
    """The transfer of flows to the other balancer: ``flows`` is how many were sent, ``lacking`` why
    it may not have all of them, or empty.
    """

    def __init__(self, peers: Peers | None, force: bool) -> None:
        self.peers = peers
        self._force = force
        self.flows = 0
        self.lacking = ""

    async def flush(self, timeout_s: float) -> None:
        """Send the flows. ConflictError, unless forced, if the other does not get them in time."""
        if self.peers is None:
            return
        result = await self.peers.flush(timeout_s)
        self.flows += result.flows
        if not result.done:
            self.lack(
                f"the other balancer does not have the flows: {result.text}",
                "wait for it (`lbctl failover status`), or hand over with --force: open "
                "connections may be cut then",
                "failover.sync",
            )

    async def flush_last(self) -> None:
        """Send the flows that are new since. A failure is only noted: the other is master now."""
        if self.peers is not None:
            result = await self.peers.flush(FLUSH_S)
            if not result.done:
                self.lacking = self.lacking or f"it did not get the last flows: {result.text}"

    def lack(self, why: str, remedy: str, where: str = "failover") -> None:
        """Note that the other balancer lacks flows; ConflictError unless forced."""
        if not self._force:
            raise ConflictError(why, where=where, remedy=remedy)
        self.lacking = why


async def _give(
    mastership: Mastership, transfer: _Transfer, hold: Hold, instance: str | None
) -> None:
    """Give the other balancer the new flows and make it master; ConflictError if none takes the
    VIPs.
    """
    peers, refusal = transfer.peers, ""
    with hold() if peers is not None else contextlib.nullcontext() as held:

        def go_on() -> None:
            if held is not None and not held.renew():
                transfer.lacking = transfer.lacking or HELD_UP

        if peers is not None and held is not None:
            # A flow that has had only a SYN cannot be sent, because its addresses are not recorded.
            # Its client answers the server within a round trip. Waiting for that costs the clients
            # that are held back nothing: they send their SYN again only after a second.
            await asyncio.sleep(HANDSHAKE_S)
            await transfer.flush(HELD_S)
            if not held.renew():
                transfer.lack(
                    HELD_UP, "try again; if it happens again, the host has too little CPU"
                )
        await mastership.set_mode(Mode.HANDED_OVER, instance)
        go_on()
        if peers is not None:
            refusal = await _ask(peers, instance)
        go_on()
        taken = await _taken(mastership, instance, HELD_S)
        go_on()
        await asyncio.sleep(LATE_S)
    patience_s = taker_s(mastership.slowest_interval_s())
    if not taken and not await _taken(mastership, instance, patience_s):
        left = ", ".join(mastership.names(Role.MASTER, instance))
        raise ConflictError(
            f"nobody took the VIPs of {left} within {patience_s:.1f} s, so this node is still"
            " their master" + (f": {refusal}" if refusal else ""),
            where="failover",
            remedy="see `lbctl failover status` on the other balancer",
        )


def taker_s(interval_s: float) -> float:
    """Return how long a balancer that learns of the handover only by adverts may take."""
    return min(TAKER_INTERVALS * interval_s + TAKER_MORE_S, LONGEST_TAKER_S)


def _afterwards(before: Mapping[str, Mode]) -> dict[str, Mode]:
    """Return the modes after a handover that another node asked for. An instance stays behind only
    if the operator wanted that before.
    """
    behind = Mode.HANDED_OVER
    return {name: behind if mode is behind else Mode.NORMAL for name, mode in before.items()}


async def _put_back(mastership: Mastership, modes: Mapping[str, Mode]) -> None:
    for name, mode in modes.items():
        try:
            await mastership.set_mode(mode, name)
        except SteelyardError as error:
            log.error(
                "this node may stay behind the others: lbctl failover release",
                instance=name,
                problem=str(error),
            )


async def take_over(
    mastership: Mastership, peers: Peers | None, instance: str | None, mode: Mode
) -> Moved:
    """Put this node into ``mode``. If another node is master and can be asked, ask it first for a
    handover.
    """
    mastership.check(instance)
    text = "done"
    if peers is not None and mastership.masters_elsewhere(instance):
        try:
            text = f"the other balancer says: {await peers.ask_give(instance)}"
        except SteelyardError as error:
            log.warning("the other balancer did not hand over", problem=str(error))
            text = f"left to the adverts, the other balancer did not hand over: {error.message}"
    await mastership.set_mode(mode, instance)
    if cannot := mastership.names(Role.FAULT, instance):
        text += f"; in fault here, see `lbctl failover status`: {', '.join(cannot)}"
    return Moved(text)


async def _ask(peers: Peers, instance: str | None) -> str:
    """Ask the peer to take over at once. Return its answer, or why it could not be asked; it then
    learns of the handover by our adverts.
    """
    try:
        async with asyncio.timeout(HELD_S):
            return await peers.ask_take(instance)
    except SteelyardError as error:
        problem = error.message
    except TimeoutError:
        problem = f"the other balancer did not answer within {HELD_S:g} s"
    log.warning("the other balancer did not take over when it was asked", problem=problem)
    return problem


async def _taken(mastership: Mastership, instance: str | None, patience_s: float) -> bool:
    """Wait until this node is no longer master; return False if that takes too long."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while True:
        await mastership.order({"do": "status"})
        if not mastership.has_role(Role.MASTER, instance):
            return True
        if loop.time() >= until:
            return False
        await asyncio.sleep(TAKEN_LOOK_S)
