"""Waiting bytes and time to first byte, against what real clients sent and servers logged.

Every case is played through a service of its own, all of a mode at once; then each is judged.
"""

from __future__ import annotations

import pytest

from agent.model import Forward
from tests.netns.prompt import cases_http, cases_tls
from tests.netns.prompt.cases import cases_for
from tests.netns.prompt.judge import Answered, Story, complaints, misplaced, seen_while_computing
from tests.netns.prompt.stage import Played, Show, perform

pytestmark = [pytest.mark.timeout(150)]

CASES = (*cases_http.CASES, *cases_tls.CASES)
MODES = (Forward.DSR, Forward.NAT, Forward.IPIP, Forward.FULLNAT, Forward.GUE)
PLAYS = [(mode, case.name) for mode in MODES for case in cases_for(mode, CASES)]
_FEWEST_READINGS = 20


@pytest.fixture(scope="module")
def shows() -> dict[Forward, Show]:
    """What has been performed so far, by mode."""
    return {}


@pytest.fixture(scope="module", params=PLAYS, ids=lambda play: f"{play[0].value}-{play[1]}")
def show(request: pytest.FixtureRequest, shows: dict[Forward, Show]) -> Show:
    """All of a mode; its first test performs it."""
    mode, _ = request.param
    if mode not in shows:
        shows[mode] = perform(mode, CASES)
    return shows[mode]


@pytest.fixture
def played(show: Show, request: pytest.FixtureRequest) -> Played:
    """One case of a mode."""
    found = show.played[request.node.callspec.params["show"][1]]
    assert not found.trouble, found.trouble
    return found


def answered(played: Played) -> list[Answered]:
    """The requests that are judged one by one and have an answer."""
    numbers = [number for talk in played.talks for number in talk.requests]
    return [r for n in numbers if (r := played.requests[n]).first_ns is not None]


def stories(played: Played) -> list[Story]:
    """What the tap and the server say of each connection."""
    found = []
    for talk in played.talks:
        (port,) = played.connections if talk.port is None else (talk.port,)
        requests = [played.requests[number] for number in talk.requests]
        connection = played.connections[port]
        found.append(Story(connection, requests, played.case.control, talk.broke_ns))
    return found


def test_the_request_waits_until_its_answer_begins(show: Show, played: Played) -> None:
    if played.case.loose or not played.talks:
        return
    if played.case.relayed:
        assert min(show.relay.lost, show.relay.overtaken) > 0
    requests = answered(played)
    assert min(seen_while_computing(played.readings, requests), default=99) > _FEWEST_READINGS
    assert complaints(played.readings, stories(played))[:5] == []


def test_every_answer_is_counted_once_and_by_its_time(show: Show, played: Played) -> None:
    counted, requests = played.counted, answered(played)
    assert counted is not None
    if played.case.loose:
        assert 1 <= counted.answers <= len(requests)
        return
    expected = len(requests) if played.case.answers is None else played.case.answers
    assert counted.answers == sum(counted.first_byte) == expected
    delays_us = [((r.first_ns or 0) - r.received_ns) / 1000 for r in requests]
    assert misplaced(counted.first_byte, delays_us, not show.sees_replies) == []


def test_nothing_waits_when_all_is_over(played: Played) -> None:
    assert played.left == 0


def test_the_metrics_say_the_same(show: Show, played: Played) -> None:
    counted, labels = played.counted, f'{{backend="be1",service="{played.case.name}"}}'
    assert counted is not None
    said = dict(line.rsplit(" ", 1) for line in show.metrics.splitlines() if labels in line)
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
