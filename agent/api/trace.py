"""Decides how events travel: a line of JSON each, and between them what was lost.

A line that is no event, once a second, shows each side that the other one still lives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from agent.api.control import Following
from agent.state.events import Event, Lost

CONTENT_TYPE = "application/x-ndjson"
HEARTBEAT_S = 1.0
CHUNK_EVENTS = 256  # written at once; some 3 ms

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}


def event(seen: Event) -> dict[str, object]:
    """An event as the API tells it."""
    return {
        "event": seen.kind.value,
        "at": _rfc3339(seen.at),
        "protocol": PROTOCOLS.get(seen.protocol, str(seen.protocol)),
        "client": str(seen.client),
        "client_port": seen.client_port,
        "vip": str(seen.vip),
        "port": seen.port,
        "length_bytes": seen.length,
        "tcp_flags": seen.tcp_flags,
        "service": seen.service,
        "backend": seen.backend,
        "backend_address": None if seen.backend_address is None else str(seen.backend_address),
        "scheduler": seen.scheduler,
        "reason": seen.reason,
        "fate": None if seen.fate is None else seen.fate.value,
        "flow_state": seen.state,
        "waited_bytes": seen.waited_bytes,
        "waited_us": seen.waited_us,
    }


def lost(so_far: Lost) -> dict[str, object]:
    """What tells that the agent lives, and how much the client has missed so far."""
    return {"lost_in_ring": so_far.ring, "lost_by_client": so_far.follower}


async def stream(
    request: web.Request,
    following: Following,
    shown: Callable[[dict[str, object]], dict[str, object]] = lambda event: event,
) -> web.StreamResponse:
    """Answer with events, as they are ``shown``, until the client leaves or the following ends."""
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    try:
        await response.prepare(request)
        told = following.lost
        await response.write(_line(lost(told)))  # says that it follows, from now on
        while not following.ended:
            events = await following.next(HEARTBEAT_S, CHUNK_EVENTS)
            lines = [_line(shown(event(each))) for each in events]
            if not events or following.lost != told:
                told = following.lost
                lines.append(_line(lost(told)))
            await response.write(b"".join(lines))
            await asyncio.sleep(0)  # a fast client must not keep the others waiting
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client left: nobody is there to be told anything
    return response


def _rfc3339(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def _line(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"
