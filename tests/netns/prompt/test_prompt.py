"""Waiting bytes and time to first byte, against what real clients sent and servers logged.

Every case is played through a service of its own, all of a mode at once; then each is judged.
"""

from __future__ import annotations

import pytest

from agent.model import Forward, Hook
from tests.netns.prompt import cases_http, cases_tls
from tests.netns.prompt.cases import Server, cases_for
from tests.netns.prompt.judge import (
    Answered,
    Span,
    Story,
    complaints,
    is_too_slow,
    misplaced,
    seen_while_computing,
    time_of,
)
from tests.netns.prompt.stage import Played, Show, perform

CASES = (*cases_http.CASES, *cases_tls.CASES)
MODES = (Forward.DSR, Forward.NAT, Forward.IPIP, Forward.FULLNAT, Forward.GUE)
# What the packet path sees of a connection is the same in tunnels as in dsr, and in nat as in
# fullnat.
ALIKE = (Forward.IPIP, Forward.GUE, Forward.NAT)
# Answers are read in nat and fullnat alone. Under tc most of a packet lies in pages that a program
# has to ask for, which no test shows that runs the program on a packet of its own.
HOOKS = {Forward.FULLNAT: Hook.TC}
PLAYS = [
    pytest.param((mode, case.name), marks=[pytest.mark.soak] if mode in ALIKE else [])
    for mode in MODES
    for case in cases_for(mode, CASES)
]
_FEWEST_READINGS = 3
_ENCORES = 2


@pytest.fixture(scope="module")
def shows() -> dict[Forward, Show]:
    """What has been performed so far, by mode."""
    return {}


@pytest.fixture(scope="module", params=PLAYS, ids=lambda play: f"{play[0].value}-{play[1]}")
def show(request: pytest.FixtureRequest, shows: dict[Forward, Show]) -> Show:
    """All of a mode; its first test performs it."""
    mode, _ = request.param
    if mode not in shows:
        hook = HOOKS.get(mode, Hook.NATIVE)
        shows[mode] = perform(mode, CASES, hook)
        for _ in range(_ENCORES):
            slow = [p.case for p in shows[mode].values() if is_undecided(p, mode)]
            if slow:
                shows[mode] |= perform(mode, slow, hook)
    return shows[mode]


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> Forward:
    """How the balancer forwards."""
    found: Forward = request.node.callspec.params["show"][0]
    return found


@pytest.fixture
def played(show: Show, mode: Forward, request: pytest.FixtureRequest) -> Played:
    """One case of a mode."""
    found = show[request.node.callspec.params["show"][1]]
    assert not found.trouble, found.trouble
    if is_undecided(found, mode):
        pytest.skip("too busy a host: too few readings, or other packets came as late as answers")
    return found


def is_undecided(played: Played, mode: Forward) -> bool:
    """Whether the host was too slow for a case.

    The kernel's figures could not be read often enough, or an answer has not come to the taps yet,
    or size and time tell what is an answer, and what is none came as late.
    """
    if played.case.loose or played.trouble:
        return False
    seen = seen_while_computing(played.readings, answered(played)) if played.talks else []
    if min(seen, default=99) <= _FEWEST_READINGS:
        return True
    if None in times(played, mode):
        return True
    if mode.is_nat and played.case.server is not Server.RPC_TLS and not played.case.front.tls:
        return False
    return any(
        is_too_slow(
            played.connections[port],
            request,
            not mode.is_nat,
            played.case.control,
            (before and before.first_ns) or 0,
        )
        for port, requests, _ in conversations(played)
        for request, before in zip(requests, [None, *requests[:-1]], strict=True)
        if request.first_ns is not None
    )


def answered(played: Played) -> list[Answered]:
    """The requests that are judged one by one and have an answer."""
    numbers = [number for talk in played.talks for number in talk.requests]
    return [r for n in numbers if (r := played.requests[n]).first_ns is not None]


def connection_of(request: Answered, played: Played) -> int:
    """On which connection a request came, by the client's port: the one that was just in use."""
    return max(
        played.connections,
        key=lambda port: played.connections[port].server.last_sent_ns(request.received_ns),
    )


def conversations(played: Played) -> list[tuple[int, list[Answered], int | None]]:
    """The connections that are judged: the client's port, the requests, when it broke off."""
    found = []
    for talk in played.talks:
        by_port: dict[int, list[Answered]] = {}
        for request in [played.requests[number] for number in talk.requests]:
            # A client may open a second one where one would do: curl does, on a busy machine.
            port = talk.port or connection_of(request, played)
            by_port.setdefault(port, []).append(request)
        found += [(port, requests, talk.broke_ns) for port, requests in by_port.items()]
    return found


def stories(played: Played, mode: Forward) -> list[Story]:
    """What the taps and the server say of each connection."""
    return [
        Story(played.connections[port], requests, not mode.is_nat, played.case.control, broke_ns)
        for port, requests, broke_ns in conversations(played)
    ]


def times(played: Played, mode: Forward) -> list[Span | None]:
    """What they say of how long each request that was answered had waited."""
    return [
        time_of(played.connections[port], request, not mode.is_nat, played.case.control)
        for port, requests, _ in conversations(played)
        for request in requests
        if request.first_ns is not None
    ]


def test_the_request_waits_until_its_answer_begins(mode: Forward, played: Played) -> None:
    if played.case.loose or not played.talks:
        return
    if played.case.relayed:
        assert played.relay
        assert min(played.relay.lost, played.relay.overtaken) > 0
    assert complaints(played.readings, stories(played, mode))[:5] == []


def test_every_answer_is_counted_once_and_by_its_time(mode: Forward, played: Played) -> None:
    counted, requests = played.counted, answered(played)
    assert counted is not None
    if played.case.loose:
        assert 1 <= counted.answers <= len(requests)
        return
    expected = len(requests) if played.case.answers is None else played.case.answers
    assert counted.answers == sum(counted.first_byte) == expected
    seen = [time for time in times(played, mode) if time is not None]  # or it is undecided
    assert misplaced(counted.first_byte, seen) == []


def test_nothing_waits_when_all_is_over(played: Played) -> None:
    assert played.left == 0


def test_the_metrics_say_the_same(played: Played) -> None:
    counted, labels = played.counted, f'{{backend="be1",service="{played.case.name}"}}'
    assert counted is not None
    said = dict(line.rsplit(" ", 1) for line in played.metrics.splitlines() if labels in line)
    if played.case.service.get("count_waiting") is False:
        assert f"steelyard_waiting_bytes{labels}" not in said
        return
    assert float(said[f"steelyard_waiting_bytes{labels}"]) == 0
    assert float(said[f"steelyard_answers_total{labels}"]) == counted.answers
    assert float(said[f"steelyard_first_byte_seconds_count{labels}"]) == counted.answers
    assert float(said[f"steelyard_first_byte_seconds_sum{labels}"]) * 1e6 == pytest.approx(
        counted.first_byte_us
    )
    # Of handshakes that meet in one place of a small table only the last is timed.
    handshakes = float(said[f"steelyard_handshake_seconds_count{labels}"])
    assert 0 < handshakes <= len(played.connections)
