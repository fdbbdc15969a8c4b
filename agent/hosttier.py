"""Follows the tier of this host (`lb-agent tier`), so that the balancer's status shows it, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from agent.logs import get_logger
from agent.state.tierview import TierLoad, TierStatus

log = get_logger()

LOOK_S = 2.0
ANSWER_S = 5.0
MOST_BYTES = 1 << 16  # of an answer, which usually has some hundred
SHOWN_PROBLEMS = 5
_UNREACHABLE = "lb-agent tier does not answer: systemctl restart lb-agent-tier"
_OTHER_RELEASE = (
    "lb-agent tier answers what this release does not understand: systemctl restart lb-agent-tier"
)


@dataclass(frozen=True, slots=True)
class Totals:
    """What HAProxy had counted at ``at``, in seconds of the monotonic clock."""

    at: float
    requests: int
    refused: int
    failed: int


def understood(
    answer: Mapping[str, Any], before: Totals | None, now: float
) -> tuple[TierStatus, Totals | None]:
    """Return what the answer of GET /v1/summary says, and the totals for the next one.

    Rates are 0 where the totals are new or begin again. Raises KeyError, TypeError or ValueError
    for an answer of another release.
    """
    named = [str(each) for each in answer["problems"]]
    more = len(named) - SHOWN_PROBLEMS
    if more > 0:
        named = [*named[:SHOWN_PROBLEMS], f"and {more} more: lbctl tier status"]
    seen = answer["load"]
    if seen is None:
        return TierStatus(tuple(named)), None
    totals = Totals(
        now,
        int(seen["requests_total"]),
        int(seen["refused_total"]),
        int(seen["failed_total"]),
    )
    load = TierLoad(
        connections=int(seen["connections"]),
        current=int(seen["current"]),
        queued=int(seen["queued"]),
        requests_per_s=_rate(before, totals, lambda each: each.requests),
        refused_per_s=_rate(before, totals, lambda each: each.refused),
        failed_per_s=_rate(before, totals, lambda each: each.failed),
    )
    return TierStatus(tuple(named), load), totals


def _rate(before: Totals | None, now: Totals, of: Callable[[Totals], int]) -> float:
    if before is None or now.at <= before.at:
        return 0.0
    return max(of(now) - of(before), 0) / (now.at - before.at)


class HostTier:
    """The tier whose socket is ``tier/tier.sock`` beside the agent's socket, where the defaults of
    both have it. A tier that was never started, or was stopped, has no socket there.
    """

    def __init__(self, agent_socket: Path) -> None:
        self.socket = agent_socket.parent / "tier" / "tier.sock"
        self.status: TierStatus | None = None  # None: this host has none
        self._totals: Totals | None = None

    async def run(self) -> None:
        """Ask it every two seconds, for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # the task's root: a defect here must not end the agent
                log.exception("a look at the tier of this host broke; it is tried again")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask the tier how it is. It may hang, lie, or be of another release."""
        if not await asyncio.to_thread(self._is_there):
            self.status, self._totals = None, None
            return
        try:
            answer = await self._ask()
            self.status, self._totals = understood(answer, self._totals, time.monotonic())
        except (aiohttp.ClientError, OSError, TimeoutError):
            self.status, self._totals = TierStatus((_UNREACHABLE,)), None
        except (LookupError, TypeError, ValueError):
            self.status, self._totals = TierStatus((_OTHER_RELEASE,)), None

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return self.socket.is_socket()
        return False

    async def _ask(self) -> Mapping[str, Any]:
        connector = aiohttp.UnixConnector(str(self.socket), force_close=True)
        limit = aiohttp.ClientTimeout(total=ANSWER_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limit) as session,
            session.get("http://tier/v1/summary") as response,
        ):
            if response.status != 200:
                raise ValueError(response.status)
            body = b""
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > MOST_BYTES:
                    raise ValueError(len(body))
            found: Mapping[str, Any] = json.loads(body)
            return found
