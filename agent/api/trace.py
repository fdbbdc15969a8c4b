"""Decides how events are sent: one line of JSON for each, with lines that count lost events
between.

If there is no event for a second, such a line shows each side that the other one is still there.
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
CHUNK_EVENTS = 256  # events written at once, which takes about 3 ms

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}


def event(seen: Event) -> dict[str, object]:
    """Return an event as the API shows it."""
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
    """Return the line that shows that the agent lives, and how much the client has missed so
    far.
    """
    return {"lost_in_ring": so_far.ring, "lost_by_client": so_far.follower}


async def stream(
    request: web.Request,
    following: Following,
    shown: Callable[[dict[str, object]], dict[str, object]] = lambda event: event,
) -> web.StreamResponse:
    """Send events until the client leaves or ``following`` ends. ``shown`` converts each event."""
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    try:
        await response.prepare(request)
        sent = following.lost
        await response.write(_line(lost(sent)))  # shows that it follows from now on
        while not following.ended:
            events = await following.next(HEARTBEAT_S, CHUNK_EVENTS)
            lines = [_line(shown(event(each))) for each in events]
            if not events or following.lost != sent:
                sent = following.lost
                lines.append(_line(lost(sent)))
            await response.write(b"".join(lines))
            await asyncio.sleep(0)  # a fast client must not keep the others waiting
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client left, so there is nobody to report an error to
    return response


def _rfc3339(at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def _line(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"
