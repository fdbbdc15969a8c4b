"""Decides what the repetitions show together: medians, worst cases, heals, and targets met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.failover.cases import CASES, Case, case
from bench.failover.measure import Failure, Found, Sample
from bench.failover.network import Variant
from bench.failover.plan import FAST, OURS, PAIRINGS, THEIRS, VARIANTS
from bench.failover.steady import Steady

# The client probes once per millisecond, so a smaller difference is none.
RESOLUTION_MS = 1.0
BLACK_HOLE_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity over all repetitions, in ms."""

    median: float
    worst: float


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one pairing in one case."""

    variant: str
    case: str
    pairing: str
    repetitions: int
    outage: Figure
    back_outage: Figure  # after the fault was undone
    black_holed: int  # outages of more than 3 advert intervals, after the fault was undone
    hole_ms: float  # the longest of those
    given_up: int  # repetitions in which the client had to be helped
    two_owners_ms: float  # the longest time with two, after the backup heard the master again


@dataclass(frozen=True, slots=True)
class Mark:
    """A target, and whether it is met."""

    what: str
    found: str
    wanted: str
    reached: bool


def rows(found: Iterable[Found]) -> list[Row]:
    """Return a row for each pairing, case and variant with repetitions, in the plan's order."""
    held: dict[tuple[str, str, str], list[Sample]] = {}
    for one in found:
        if isinstance(one, Sample):
            held.setdefault((one.variant, one.case, one.pairing), []).append(one)
    return [
        _row(variant, one, samples)
        for variant in VARIANTS
        for one in CASES
        for pairing in PAIRINGS
        if (samples := held.get((variant.name, one.name, pairing.name)))
    ]


def _row(variant: Variant, one: Case, samples: Sequence[Sample]) -> Row:
    outcomes = [sample.outcome for sample in samples]
    limit_ms = 1000 * BLACK_HOLE_INTERVALS * variant.interval_s
    return Row(
        variant=variant.name,
        case=one.name,
        pairing=samples[0].pairing,
        repetitions=len(samples),
        outage=_figure(outage_ms(sample) for sample in samples),
        back_outage=_figure(outcome.back_outage_ms for outcome in outcomes),
        black_holed=sum(outcome.hole_ms > limit_ms for outcome in outcomes),
        hole_ms=max(outcome.hole_ms for outcome in outcomes),
        given_up=sum(sample.given_up for sample in samples),
        two_owners_ms=max(outcome.two_owners_ms or 0.0 for outcome in outcomes),
    )


def outage_ms(sample: Sample) -> float:
    """Return the outage in ms; answers of a dead node's kernel do not count."""
    outcome = sample.outcome
    if case(sample.case).dead and outcome.takeover_ms is not None:
        return outcome.takeover_ms
    return outcome.outage_ms


def _figure(values: Iterable[float]) -> Figure:
    all_values = list(values)
    return Figure(statistics.median(all_values), max(all_values))


def marks(all_rows: Sequence[Row], steady: Sequence[Steady]) -> list[Mark]:
    """Return the targets, as far as they were measured."""
    return [
        *_no_slower(all_rows),
        *_no_black_hole(all_rows),
        *_one_owner(all_rows),
        *_no_false_failover(steady),
    ]


def _no_slower(all_rows: Sequence[Row]) -> Iterable[Mark]:
    held = {(row.case, row.pairing): row for row in all_rows if row.variant == FAST.name}
    for one in CASES:
        ours, theirs = held.get((one.name, OURS.name)), held.get((one.name, THEIRS.name))
        if ours is None or theirs is None:
            continue
        pairs = [("back", ours.back_outage.median, theirs.back_outage.median)]
        if one.takes_over:
            pairs.insert(0, ("outage", ours.outage.median, theirs.outage.median))
        for what, mine, other in pairs:
            yield Mark(
                f"{one.name}, {what}: median, ms",
                f"{mine:.1f}",
                f"≤ {other:.1f} (keepalived's)",
                round(mine - other, 1) <= RESOLUTION_MS,
            )


def _no_black_hole(all_rows: Sequence[Row]) -> Iterable[Mark]:
    for row in all_rows:
        if row.pairing == OURS.name and case(row.case).heals:
            found = f"{row.black_holed} of {row.repetitions}"
            what = f"{row.case}, {row.variant}: black-holed heals"
            yield Mark(what, found, "0", row.black_holed == 0)


def _one_owner(all_rows: Sequence[Row]) -> Iterable[Mark]:
    for variant in VARIANTS:
        longest = [
            row.two_owners_ms
            for row in all_rows
            if row.pairing == OURS.name and row.variant == variant.name
        ]
        if longest:
            limit_ms = 1000 * variant.interval_s
            yield Mark(
                f"{variant.name}: two owners that see each other, ms",
                f"{max(longest):.1f}",
                f"≤ {limit_ms:.0f}",
                max(longest) <= limit_ms,
            )


def _no_false_failover(steady: Sequence[Steady]) -> Iterable[Mark]:
    for one in steady:
        if one.pairing == OURS.name:
            what = f"{one.variant}, every core busy: transitions"
            yield Mark(what, str(one.transitions), "0", one.transitions == 0)


def failures(found: Iterable[Found]) -> list[Failure]:
    """Return the failed measurements."""
    return [one for one in found if isinstance(one, Failure)]
