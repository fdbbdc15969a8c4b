"""Decides whether a service meets its latency objectives. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from agent.model import Objective

SPAN_S = 60.0
# Fewer late answers do not count as a miss: one in a hundred may be chance.
LEAST_LATE = 5
# A missed objective counts as met again only when the late answers are down to this part of the
# budget, so that it does not flap.
KEPT_AGAIN = 0.8


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals since the watch began. ``late`` is fractional, because it comes from time buckets."""

    at_s: float
    answers: int
    late: float


@dataclass(frozen=True, slots=True)
class Watch:
    """One objective of one service: readings of the last minute, oldest first."""

    objective: Objective
    readings: tuple[Reading, ...]
    is_missed: bool = False

    @classmethod
    def begin(cls, objective: Objective, at_s: float) -> Self:
        """Return a watch before the first answer."""
        return cls(objective, (Reading(at_s, 0, 0.0),))

    @property
    def answers_total(self) -> int:
        """The number of answers since the watch began."""
        return self.readings[-1].answers

    @property
    def late_total(self) -> float:
        """The number of answers since the watch began that were later than the objective."""
        return self.readings[-1].late

    @property
    def answers(self) -> int:
        """The number of answers in the last minute."""
        return self.readings[-1].answers - self.readings[0].answers

    @property
    def late(self) -> float:
        """The number of answers in the last minute that were later than the objective."""
        return self.readings[-1].late - self.readings[0].late

    @property
    def late_share(self) -> float | None:
        """The share of late answers in the last minute; None: there were no answers."""
        return self.late / self.answers if self.answers else None

    def add(self, at_s: float, answers: int, late: float) -> Self:
        """Return the watch with the answers that have come since the last reading."""
        last = self.readings[-1]
        outside = sum(1 for each in self.readings if each.at_s <= at_s - SPAN_S)
        # The span starts at the newest reading that is outside it.
        kept = self.readings[max(0, outside - 1) :]
        now = Reading(at_s, last.answers + answers, last.late + late)
        seen = replace(self, readings=(*kept, now))
        return replace(seen, is_missed=seen._judged())

    def _judged(self) -> bool:
        may_be = self.objective.budget * self.answers
        if self.is_missed:
            return self.late > KEPT_AGAIN * may_be
        return self.late >= LEAST_LATE and self.late > may_be
