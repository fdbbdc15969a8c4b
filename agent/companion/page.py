"""Owns what a companion reports to the balancers, and decides whether that allows cookies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from agent.model import Address

PATH = "/companion"
MOST_BYTES = 65_536
LONGEST_PROBLEM = 300
# cookie.h accepts 8 s from a balancer whose clock is ahead, and 69 s from one whose is behind.
CLOCKS_APART_S = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """What a companion reports. ``time_s``: its wall clock, seconds since the epoch."""

    keys: tuple[str, ...]
    vips: tuple[str, ...]
    time_s: float
    problem: str = ""


def rendered(status: Status) -> bytes:
    """Return a status as it goes over the wire: JSON."""
    return json.dumps(asdict(status)).encode()


def parsed(page: bytes) -> Status:
    """Parse what ``rendered`` made; fields that are new to us are ignored.

    Raises ValueError if it is something else. The sender may be any program at that port, so
    nothing in it is trusted.
    """
    try:
        fields = json.loads(page)
        status = Status(
            tuple(map(str, fields["keys"])),
            tuple(map(str, fields["vips"])),
            float(fields["time_s"]),
            _plain(str(fields.get("problem", ""))),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no page of a companion") from error
    if not math.isfinite(status.time_s):
        raise ValueError("no page of a companion")
    return status


def _plain(text: str) -> str:
    """Return a text without control characters, cut to what fits on a few lines."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST_PROBLEM])


def lacking(status: Status, signing: str, vip: Address, apart_s: float) -> str:
    """Return why a server would not accept our cookies for that VIP; empty: it accepts them.

    ``signing``: the name of our signing key; ``apart_s``: how far the server's clock is ahead of
    ours.
    """
    if status.problem:
        return status.problem
    if signing not in status.keys:
        return "its companion has another key"
    if str(vip) not in status.vips:
        return f"its companion does not know {vip}"
    if abs(apart_s) > CLOCKS_APART_S:
        return f"its clock is {abs(apart_s):.0f} s {'ahead' if apart_s > 0 else 'behind'}"
    return ""
