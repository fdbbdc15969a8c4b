"""Owns the files between the bench and its client: what to send and when, and the result.

Times are the machine's, that is, engine time divided by the time scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.ai.simulator import Scenario, chances
from bench.ai.trace import Request

TAIL_S = 60.0  # engine time, the least that is left for the last answers


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a conversation: its source, and what its prompt begins with."""

    source: int  # number of the address that it comes from
    conversation: int
    tenant: int
    system_tokens: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; ``target`` is an index of ``Plan.targets``, 0: the balancer."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    client: int
    target: int
    turn: Turn | None = None  # None: a single request


@dataclass(frozen=True, slots=True)
class Throttle:
    """When a server becomes slower, and by which factor."""

    at_s: float
    target: int
    slow: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the client does in a case.

    ``keep_alive_s`` 0: each request has a connection of its own.
    """

    targets: tuple[str, ...]  # host:port
    asks: tuple[Ask, ...]
    throttles: tuple[Throttle, ...]
    keep_alive_s: float
    patience_s: float
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one request, in the order of the plan; in seconds since it was due."""

    first_token_s: float | None
    done_s: float | None
    late_s: float  # how late it was sent
    backend: str
    error: str


@dataclass(frozen=True, slots=True)
class Played:
    """The results of a plan."""

    answers: tuple[Answer, ...]
    wall_s: float
    cpu_s: float  # of the client itself


def make(scenario: Scenario, targets: Sequence[str], time_scale: float) -> Plan:
    """Return the plan for a scenario; ``targets``: the balancer, then each server."""
    drawn = chances(scenario)
    asks = tuple(
        Ask(
            request.at_s / time_scale,
            request.prompt_tokens,
            request.answer_tokens,
            drawn.client[number],
            1 + drawn.target[number] if drawn.bypasses[number] else 0,
            _turn(request),
        )
        for number, request in enumerate(scenario.requests)
    )
    throttles: tuple[Throttle, ...] = ()
    if slow := scenario.slowdown:
        throttles = (
            Throttle(slow.from_s / time_scale, 1 + slow.server, slow.factor),
            Throttle(slow.until_s / time_scale, 1 + slow.server, 1.0),
        )
    keep_alive_s = scenario.keep_alive_s / time_scale if scenario.clients else 0.0
    return Plan(tuple(targets), asks, throttles, keep_alive_s, TAIL_S / time_scale)


def _turn(request: Request) -> Turn | None:
    if request.source is None:
        return None
    tenant, system_tokens = request.prefixes[0]  # as ``trace.conversations`` makes them
    assert isinstance(tenant, tuple)
    assert isinstance(request.kept_as, tuple)
    return Turn(request.source, request.kept_as[1], tenant[1], system_tokens)


def write(path: Path, plan: Plan | Played) -> None:
    """Write a plan or its results, as JSON."""
    path.write_text(json.dumps(asdict(plan)))


def read_plan(path: Path) -> Plan:
    """Read a plan that ``write`` wrote."""
    document = json.loads(path.read_text())
    return Plan(
        tuple(document["targets"]),
        tuple(_ask(**ask) for ask in document["asks"]),
        tuple(Throttle(**throttle) for throttle in document["throttles"]),
        document["keep_alive_s"],
        document["patience_s"],
        document["tls"],
    )


def _ask(turn: Mapping[str, int] | None, **rest: Any) -> Ask:
    return Ask(**rest, turn=None if turn is None else Turn(**turn))


def read_played(path: Path) -> Played:
    """Read results that ``write`` wrote."""
    document = json.loads(path.read_text())
    answers = tuple(Answer(**answer) for answer in document["answers"])
    return Played(answers, document["wall_s"], document["cpu_s"])
