"""Decides the order of a planned move of the VIPs, so that no connection is lost by it.

The other balancer gets the flows; for what is new since, new flows are held back for some tenths
of a second: their clients send the first packet again. Then the other one takes the VIPs, and only
then does this one give them up.
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

# The hold was over before it was to end: there are new flows since.
HELD_UP = "this agent was held up, so new flows came in that the other balancer does not have"

type Hold = Callable[[], AbstractContextManager[Held]]


class Held(Protocol):
    """New flows are held back, until a moment after which they come in by themselves."""

    def renew(self) -> bool:
        """Move that moment; false if it was over already."""
        ...


class Peers(Protocol):
    """The exchange of flows with the other balancers."""

    async def flush(self, timeout_s: float) -> FlushResult:
        """Send all that has changed, new flows too; returns when the peers have it."""
        ...

    async def ask_take(self, instance: str | None) -> str:
        """Have the peer become master; what it says. Raises SteelyardError if it will not."""
        ...

    async def ask_give(self, instance: str | None) -> str:
        """Have the peer that is master hand over to this node; what it says. Likewise."""
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
    """Give the VIPs to the other balancer; with ``stay``, be behind it until released.

    Raises SteelyardError, with this node as it was, if there is nobody who knows the flows,
    unless ``force``, or nobody who takes the VIPs. It is as it was, too, if this is cancelled.
    """
    mastership.check(instance)
    if not mastership.has_role(Role.MASTER, instance):
        if not stay:
            raise ConflictError(
                "this node is not master", where="failover", remedy="ask the one that is"
            )
        await mastership.set_mode(Mode.HANDED_OVER, instance)
        return Moved("this node is not master; it stays behind until it is released")
    telling = _Telling(peers, force)
    await telling.flush(FLUSH_S)
    telling.lacking = ""  # there is another chance
    before = mastership.modes(instance)
    try:
        await _give(mastership, telling, hold, instance)
    except BaseException:
        await _put_back(mastership, before)
        raise
    try:
        await telling.flush_last()
    finally:
        if not stay:
            await _put_back(mastership, _afterwards(before))
    flows, lacking = telling.flows, telling.lacking
    log.info("handed over", instance=instance or "all", flows=flows)
    if lacking:
        log.warning("the other balancer may not have all flows", why=lacking)
    end = "; this node stays behind until it is released" if stay else ""
    less = f", but connections may be cut: {lacking}" if lacking else ""
    return Moved(f"handed over{less}{end}", flows, lacking)


class _Telling:
    """What the other balancer was told, and in ``lacking`` why that may not have been all."""

    def __init__(self, peers: Peers | None, force: bool) -> None:
        self.peers = peers
        self._force = force
        self.flows = 0
        self.lacking = ""

    async def flush(self, timeout_s: float) -> None:
        """Raises ConflictError, unless forced, if it was not told in time."""
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
        """What came in since; it is master, so there is no way back."""
        if self.peers is not None:
            result = await self.peers.flush(FLUSH_S)
            if not result.done:
                self.lacking = self.lacking or f"it was not told the last flows: {result.text}"

    def lack(self, why: str, remedy: str, where: str = "failover") -> None:
        """It does not know all; an error unless forced."""
        if not self._force:
            raise ConflictError(why, where=where, remedy=remedy)
        self.lacking = why


async def _give(
    mastership: Mastership, telling: _Telling, hold: Hold, instance: str | None
) -> None:
    """Have the other one be master, with all that it must know."""
    peers, told = telling.peers, ""
    with hold() if peers is not None else contextlib.nullcontext() as held:

        def go_on() -> None:
            if held is not None and not held.renew():
                telling.lacking = telling.lacking or HELD_UP

        if peers is not None and held is not None:
            # Of a flow with nothing but a SYN the peer could be told no addresses. Its client
            # answers the server within a round trip; who is held back waits a second anyway.
            await asyncio.sleep(HANDSHAKE_S)
            await telling.flush(HELD_S)
            if not held.renew():
                telling.lack(HELD_UP, "try again; if it stays so, the host has too little CPU")
        await mastership.set_mode(Mode.HANDED_OVER, instance)
        go_on()
        if peers is not None:
            told = await _ask(peers, instance)
        go_on()
        taken = await _taken(mastership, instance, HELD_S)
        go_on()
        await asyncio.sleep(LATE_S)
    patience_s = taker_s(mastership.slowest_interval_s())
    if not taken and not await _taken(mastership, instance, patience_s):
        left = ", ".join(mastership.names(Role.MASTER, instance))
        raise ConflictError(
            f"nobody took the VIPs of {left} within {patience_s:.1f} s, so this node is still"
            " their master" + (f": {told}" if told else ""),
            where="failover",
            remedy="see `lbctl failover status` on the other balancer",
        )


def taker_s(interval_s: float) -> float:
    """How long a balancer may take that hears of it by adverts alone."""
    return min(TAKER_INTERVALS * interval_s + TAKER_MORE_S, LONGEST_TAKER_S)


def _afterwards(before: Mapping[str, Mode]) -> dict[str, Mode]:
    """What instances are that another node wanted: behind it by the operator's word alone."""
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
    """Make this node what ``mode`` says, and where that makes it master, by a handover of the
    one that is, if it can be asked.
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
    """Have the peer take over at once; one that cannot be asked hears of it by our adverts."""
    try:
        async with asyncio.timeout(HELD_S):
            return await peers.ask_take(instance)
    except SteelyardError as error:
        told = error.message
    except TimeoutError:
        told = f"the other balancer did not answer within {HELD_S:g} s"
    log.warning("the other balancer did not take over when it was asked", problem=told)
    return told


async def _taken(mastership: Mastership, instance: str | None, patience_s: float) -> bool:
    """Wait until the other one is master."""
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    while True:
        await mastership.order({"do": "status"})
        if not mastership.has_role(Role.MASTER, instance):
            return True
        if loop.time() >= until:
            return False
        await asyncio.sleep(TAKEN_LOOK_S)
