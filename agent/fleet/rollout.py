"""Decides how a rollout goes on: it waits, the version is promoted, or it is given up. Pure.

Every balancer of the fleet decides for itself from the same reports, and the first decision that
reaches the store counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from agent.dataplane.latency import quantile_ms
from agent.fleet.reports import Report, Work
from agent.fleet.versions import Rollout

TAKE_S = 30.0  # a balancer that has not taken the version by then never will
SETTLE_S = 10.0  # after taking it, the health checks of new backends need some rounds
ENOUGH = 50  # connections, answers or packets; fewer say nothing
FAILED_MORE = 0.02  # of the answers, beyond twice the others' share
UNESTABLISHED_MORE = 0.05  # of the connections, likewise
DROPS_MORE = 0.5  # packets a connection, likewise
SLOWER, SLOWER_MS = 1.5, 100.0  # the first byte's p95: so many times the others', and so much more


class Step(enum.Enum):
    """What happens to a rollout."""

    WAIT = "wait"
    PROMOTE = "promote"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a rollout, and why."""

    step: Step
    why: str


def judge(rollout: Rollout, reports: Mapping[str, Report], known_s: float) -> Verdict:
    """Return what to do with a rollout that has been known here for ``known_s``.

    ``reports`` are those whose lease has not ended, by balancer. Only times by one and the same
    clock are compared, because the balancers' clocks may differ.
    """
    trying = [reports[node] for node in rollout.nodes if node in reports]
    others = [report for node, report in reports.items() if node not in rollout.nodes]
    objection = next(_objections(rollout, trying, others, known_s), None)
    if objection is not None:
        return Verdict(Step.ABORT, objection)
    taken = [report for report in trying if report.version == rollout.version]
    late = [node for node in rollout.nodes if node not in {each.node for each in taken}]
    if late:
        return Verdict(Step.WAIT, f"{', '.join(late)} has yet to take it")
    if not rollout.bake_s:
        return Verdict(Step.WAIT, "it waits for `lbctl rollout promote` or `lbctl rollout abort`")
    left_s = rollout.bake_s - min(report.at - report.since for report in taken)
    if left_s > 0:
        return Verdict(Step.WAIT, f"it is promoted in {left_s:.0f} s unless something goes wrong")
    return Verdict(Step.PROMOTE, f"nothing went wrong for {rollout.bake_s:g} s")


def _objections(
    rollout: Rollout, trying: Sequence[Report], others: Sequence[Report], known_s: float
) -> Iterator[str]:
    known = {report.node for report in trying}
    for node in rollout.nodes:
        if node not in known and known_s > TAKE_S:
            yield f"{node} reports nothing any more"
    for report in trying:
        if report.refused is not None and report.refused[0] == rollout.version:
            yield f"{report.node} refuses it: {report.refused[1]}"
        if report.version != rollout.version:
            if known_s > TAKE_S:
                yield f"{report.node} has not taken it within {TAKE_S:.0f} s"
            continue
        if report.problem:
            yield f"{report.node}: {report.problem}"
        if report.at - report.since < SETTLE_S:
            continue
        was_down = {service for other in others for service in other.down}
        for service in report.down:
            if service not in was_down:
                yield f"{report.node}: no backend of {service} is usable"
        for worse in _worse(report.work, *_reference(report, others)):
            yield f"{report.node}: {worse}"


def _reference(report: Report, others: Sequence[Report]) -> tuple[Work, str]:
    """Return what a balancer is compared with: the others, or itself before if these are idle."""
    together: Work = reduce(add, (other.work for other in others), Work())
    if together.opened >= ENOUGH:
        return together, "at the others"
    return report.before, "before"


def _worse(work: Work, other: Work, where: str) -> Iterator[str]:
    """Yield in what a balancer's figures are much worse than others."""
    shares = (
        (work.failed, work.answers + work.failed, other.failed, other.answers + other.failed,
         FAILED_MORE, "of the requests fail"),
        (work.opened - work.established, work.opened, other.opened - other.established,
         other.opened, UNESTABLISHED_MORE, "of the connections are not established"),
    )  # fmt: skip
    for part, whole, their_part, their_whole, more, what in shares:
        if whole < ENOUGH or their_whole < ENOUGH:
            continue
        mine, theirs = max(part, 0) / whole, max(their_part, 0) / their_whole
        if mine > 2 * theirs + more:
            yield f"{mine:.0%} {what}, {theirs:.0%} {where}"
    if work.opened >= ENOUGH and other.opened >= ENOUGH:
        mine, theirs = work.drops / work.opened, other.drops / other.opened
        if mine > 2 * theirs + DROPS_MORE:
            yield f"{mine:.1f} packets are dropped for each connection, {theirs:.1f} {where}"
    p95_ms, their_ms = _p95_ms(work), _p95_ms(other)
    if p95_ms is not None and their_ms is not None and p95_ms > SLOWER * their_ms + SLOWER_MS:
        yield f"95 % of the answers begin within {p95_ms:.0f} ms, {their_ms:.0f} ms {where}"


def _p95_ms(work: Work) -> float | None:
    if sum(work.first_byte) < ENOUGH:
        return None
    return quantile_ms(np.array(work.first_byte, np.uint64), 0.95)
