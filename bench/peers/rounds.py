"""Decides the order of measurements and takes them: contenders in turn, round after round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers import accounting, load, wiring
from bench.peers.accounting import Spent
from bench.peers.contender import Contender, Running
from bench.peers.load import Load
from lbctl.lab import topology

_GB = 10**9
QUIET_PATIENCE_S = 2.0
AT_ONCE, PACE = 64, 4000  # short connections open at once; new ones per second, if paced
FLOOD, HONEST, FLOOD_S = 20_000, 500, 4  # packets, and connections beside them, a second
GIVEN_UP_S = 3  # a client in a flood waits so long after the last one has begun


@dataclass(frozen=True, slots=True)
class Plan:
    """The load of each round."""

    rounds: int
    warm_up: Load
    loads: tuple[Load, ...]


def plan(quick: bool) -> Plan:
    """Return the plan of the whole measurement, or of one round with a fifth of its load.

    All short connections of a round must find a free port in fullnat's default pool: 22,528 for
    one source address, where a port rests for some seconds after its connection.
    """
    part = 5 if quick else 1
    return Plan(
        rounds=1 if quick else 3,
        warm_up=Load("short", 500, AT_ONCE),
        loads=(
            Load("short", 10_000 // part, AT_ONCE),
            Load("short", 5_000 // part, AT_ONCE, rate=PACE),
            Load("up", 4, 4, _GB // 4 // part),
            Load("down", 4, 4, _GB // 4 // part),
            Load(
                "short",
                HONEST * FLOOD_S // part,
                HONEST * FLOOD_S,
                rate=HONEST,
                flood=FLOOD,
                limit_s=FLOOD_S // part + GIVEN_UP_S,
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of one load of one contender in one round."""

    contender: str
    round: int
    load: Load
    seconds: float
    spent: Spent
    failed: int = 0  # connections, in a flood


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of a contender."""

    contender: Contender
    running: Running  # of the last round
    measurements: tuple[Measurement, ...]


def run(
    contenders: Sequence[Contender], plan: Plan, progress: Callable[[str], None]
) -> list[Result]:
    """Measure each contender in a network of its own, made for the round."""
    on = wiring.cores()
    found: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    last: dict[str, Running] = {}
    with tempfile.TemporaryDirectory(prefix="steelyard-peers-") as folder:
        tool = load.compile_tool(Path(folder))
        for number in range(plan.rounds):
            # Each round begins with another contender, so that drift affects all alike.
            for contender in [*contenders[number:], *contenders[:number]]:
                progress(f"round {number + 1} of {plan.rounds}: {contender.name}")
                running, taken = _measure(contender, plan, number, on, tool)
                last[contender.name] = running
                found[contender.name] += taken
    return [Result(c, last[c.name], tuple(found[c.name])) for c in contenders]


def _measure(
    contender: Contender, plan: Plan, number: int, on: wiring.Cores, tool: Path
) -> tuple[Running, list[Measurement]]:
    taken = []
    with wiring.wired(wiring.Wired(contender.lab, on, tool), load.serve) as wired:
        running = contender.start(wired)
        data = (wired.divide(contender.by_xdp), *running.data)
        targets = running.targets or (f"{wired.vip}:{topology.PORT}",)
        load.lead_back(wired)
        load.send(wired, plan.warm_up, targets)
        for each in plan.loads:
            accounting.await_idle({on.balancer, *on.others}, QUIET_PATIENCE_S)
            with load.flooded(wired, each, targets):
                before = accounting.now(on.balancer, data, running.control)
                sent = load.send(wired, each, targets)
                after = accounting.now(on.balancer, data, running.control)
            spent = accounting.between(before, after)
            taken.append(
                Measurement(contender.name, number, each, sent.seconds, spent, sent.failed)
            )
    return running, taken
