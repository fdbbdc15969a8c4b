"""Decides what is reported of each contender and case: percentiles, tokens, errors, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.ai.cases import WORSE, Case
from bench.ai.run import Measured, RunError
from bench.ai.simulator import PREFILL_SHARE, Outcome, Scenario, chances, percentiles

PERCENTILES = ("p50", "p95", "p99", "p99.9")
# Beyond these limits, the figures may be the machine's rather than the balancer's.
LEAST_IDLE = 0.1
MOST_CLIENT_CPU = 0.7
MOST_LATE_S = 0.01  # in the machine's time, at the 99th percentile


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one case; times are the engines' own."""

    contender: str
    case: str
    waits_s: tuple[float, ...]  # until the first token, of requests that went through a balancer
    percentiles_s: tuple[float, ...]  # as PERCENTILES
    tokens_per_s: float
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Health:
    """How well the machine kept up while a row was measured; in the machine's time."""

    contender: str
    case: str
    idle_share: float  # of all processors
    client_cpu: float  # of one processor
    late_p50_s: float  # how late requests were sent
    late_p99_s: float
    duration_s: float

    @property
    def kept_up(self) -> bool:
        """Whether all values are within their limits."""
        return (
            self.idle_share >= LEAST_IDLE
            and self.client_cpu <= MOST_CLIENT_CPU
            and self.late_p99_s <= MOST_LATE_S
        )


def simulated(contender: str, case: str, outcomes: Sequence[Outcome]) -> Row:
    """Return the row of one or more simulated runs that differ only by their seed."""
    waits_s = np.concatenate([outcome.counted for outcome in outcomes])
    tokens_per_s = float(np.mean([outcome.tokens_per_s for outcome in outcomes]))
    return Row(contender, case, tuple(waits_s.tolist()), percentiles(waits_s), tokens_per_s, {})


def measured(
    contender: str, case: str, scenario: Scenario, found: Measured, time_scale: float
) -> tuple[Row, Health]:
    """Return the row of one real run; raises RunError if no balanced request was answered."""
    answers, bypasses = found.played.answers, chances(scenario).bypasses
    first = int(PREFILL_SHARE * len(answers))
    waits_s = tuple(
        answer.first_token_s * time_scale
        for number, answer in enumerate(answers)
        if answer.first_token_s is not None and number >= first and not bypasses[number]
    )
    if not waits_s:
        raise RunError("no request was answered", where=f"{contender}, {case}")
    done = [
        (request.at_s + answer.done_s * time_scale, request.answer_tokens)
        for request, answer in zip(scenario.requests, answers, strict=True)
        if answer.done_s is not None
    ]
    last_s = max((at_s for at_s, _ in done), default=1.0)
    late = np.array([answer.late_s for answer in answers])
    row = Row(
        contender,
        case,
        waits_s,
        percentiles(waits_s),
        sum(tokens for _, tokens in done) / last_s,
        dict(Counter(answer.error for answer in answers if answer.error)),
    )
    health = Health(
        contender,
        case,
        found.idle_share,
        found.played.cpu_s / found.played.wall_s,
        float(np.percentile(late, 50)),
        float(np.percentile(late, 99)),
        found.duration_s,
    )
    return row, health


def ratios(row: Row, reference: Row) -> tuple[float, ...]:
    """Return its percentiles as shares of the reference's."""
    pairs = zip(row.percentiles_s, reference.percentiles_s, strict=True)
    return tuple(own / other for own, other in pairs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target: a percentile of a case, as a share of the reference's."""

    case: str
    percentile: str
    most: float
    found: float

    @property
    def reached(self) -> bool:
        return self.found <= self.most


def verdicts(case: Case, row: Row, reference: Row) -> list[Verdict]:
    """Judge a row by the case's targets; a percentile without one must not be clearly worse."""
    wanted = dict(zip(PERCENTILES, (None, case.p95, case.p99, case.p999), strict=True))
    return [
        Verdict(case.name, name, wanted[name] or WORSE, ratio)
        for name, ratio in zip(PERCENTILES, ratios(row, reference), strict=True)
    ]
