"""A FIN or RST that a stranger sends for a client ends nothing (RFC 5961)."""

from __future__ import annotations

import pytest

from agent.dataplane.abi import FlowState
from agent.model import Scheduler
from tests.packet.harness import Rig
from tests.packet.talks import ANSWER, LATE_MS, MODES, POST, Wire, serve

WINDOW = 2**16
FAR = [WINDOW + 1, 2**20, 2**24, 2**31, 2**32 - WINDOW - 1]


def talking(rig: Rig, forward, **fields) -> Wire:
    """A connection that has had an answer, and is silent now."""
    serve(rig, forward, scheduler=Scheduler.LEAST_CONN, **fields)
    wire = Wire(rig).open().ask(POST)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.state, open_at(rig)) == (FlowState.ESTABLISHED, 1)
    return wire


def open_at(rig: Rig) -> int:
    return rig.load_of("a")["open"]


@MODES
@pytest.mark.parametrize(
    ("flags", "away"),
    [(flags, away) for flags in ("R", "RA", "FA") for away in FAR]
    + [(flags, away) for flags in ("R", "RA") for away in (2, 1460, WINDOW, 2**32 - 2)],
)
def test_what_is_far_from_where_the_client_is_ends_nothing(
    hooked: Rig, forward, flags: str, away: int
):
    wire = talking(hooked, forward)
    wire.client(flags, seq=wire.seq + away)
    assert (wire.state, open_at(hooked)) == (FlowState.ESTABLISHED, 1)
    wire.client(flags)
    assert (wire.state, open_at(hooked)) == (FlowState.CLOSING, 0)


@MODES
@pytest.mark.parametrize(
    ("flags", "away"),
    [("R", 0), ("R", 1), ("RA", 0), ("R", 2**32 - 1), ("FA", 0), ("FA", 1460), ("FA", WINDOW),
     ("FA", 2**32 - WINDOW)],
)  # fmt: skip
def test_what_is_near_ends_the_connection(hooked: Rig, forward, flags: str, away: int):
    """A FIN overtakes segments, and is sent again with them."""
    wire = talking(hooked, forward)
    wire.client(flags, seq=wire.seq + away)
    assert (wire.state, open_at(hooked)) == (FlowState.CLOSING, 0)


@MODES
def test_a_request_that_waits_goes_on_waiting(hooked: Rig, forward):
    wire = talking(hooked, forward).ask(POST)
    wire.client("R", seq=wire.seq + 2**24)
    assert (wire.state, wire.waiting) == (FlowState.ESTABLISHED, len(POST))
    wire.client("R")
    assert (wire.state, wire.waiting) == (FlowState.CLOSING, 0)


@MODES
def test_where_nothing_is_known_of_the_client_its_word_counts(hooked: Rig, forward):
    """A flow that another balancer has handed over."""
    wire = talking(hooked, forward)
    for field, value in (("seq", (wire.seq - 2**30) % 2**32), ("ack", 0)):
        wire.warm_set(field, value)
    wire.client("R")
    assert (wire.state, open_at(hooked)) == (FlowState.CLOSING, 0)
