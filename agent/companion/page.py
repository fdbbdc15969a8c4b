"""Owns what a companion tells the balancers, and decides whether that is enough for cookies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from agent.model import Address

PATH = "/companion"
MOST_BYTES = 65_536
LONGEST_PROBLEM = 300
# cookie.h takes 8 s from a balancer that is ahead, and 69 s from one that is behind.
CLOCKS_APART_S = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a companion says of itself. ``time_s``: its wall clock, seconds since the epoch."""

    keys: tuple[str, ...]
    vips: tuple[str, ...]
    time_s: float
    problem: str = ""


def rendered(told: Told) -> bytes:
    """As it goes over the wire: JSON."""
    return json.dumps(asdict(told)).encode()


def parsed(page: bytes) -> Told:
    """What ``rendered`` made; ValueError: it is something else. What is new in it is left out.

    Whoever is at that port writes it, so it is read as a stranger's.
    """
    try:
        fields = json.loads(page)
        told = Told(
            tuple(map(str, fields["keys"])),
            tuple(map(str, fields["vips"])),
            float(fields["time_s"]),
            _plain(str(fields.get("problem", ""))),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no page of a companion") from error
    if not math.isfinite(told.time_s):
        raise ValueError("no page of a companion")
    return told


def _plain(text: str) -> str:
    """Nothing that a terminal would obey, and no more than fits on a few lines."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST_PROBLEM])


def lacking(told: Told, signing: str, vip: Address, apart_s: float) -> str:
    """Why a server would not take our cookies for that VIP; empty: it takes them.

    ``signing``: the name of our key; ``apart_s``: what the server's clock is ahead of ours.
    """
    if told.problem:
        return told.problem
    if signing not in told.keys:
        return "its companion has another key"
    if str(vip) not in told.vips:
        return f"its companion does not know {vip}"
    if abs(apart_s) > CLOCKS_APART_S:
        return f"its clock is {abs(apart_s):.0f} s {'ahead' if apart_s > 0 else 'behind'}"
    return ""
