"""Decides how many backends a service wants, from its load and the operator's targets. Pure.

The targets say what one backend takes. They are not learned: how fast a server answers does not
tell how much more load it takes (docs/learning.md, "What it cannot tell"). There is no hysteresis
either: the scaler that starts and stops servers has its own.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.model import Scale, Signal

type Load = float | None  # None: not known


class Cause(enum.Enum):
    """What determines the wanted number of backends."""

    CONNECTIONS = Signal.CONNECTIONS.value
    WAITING_BYTES = Signal.WAITING_BYTES.value
    REQUESTS = Signal.REQUESTS.value
    QUEUED = Signal.QUEUED.value
    OBJECTIVE = "objective"  # it is missed: one more than are usable
    UNKNOWN = "unknown"  # a signal with a target is not known: no fewer than are usable
    NO_BACKEND = "no_backend"  # something waits, and no backend is usable
    MIN = "min"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Seen:
    """A service as one balancer sees it.

    ``load`` is the sum over all backends, whatever their state, because the clients of a backend
    that drains or fails come back to the others. A signal that is not in it is not known.
    """

    usable: int = 0  # backends that may get new flows now
    draining: int = 0
    load: Mapping[Signal, Load] = field(default_factory=dict)
    first_byte_p95_s: float | None = None  # over the last minute; None: no answers, or not timed
    misses_objective: bool | None = None  # None: there is no objective
    held: int | None = None  # clients that wait for a backend; None: the service lets none wait

    @property
    def is_anything_waiting(self) -> bool:
        """Whether anything known about the service is load, or clients wait for a backend."""
        return any(self.load.values()) or bool(self.held)

    def per_backend(self, signal: Signal) -> Load:
        """Return the load for each usable backend; None: not known, or no backend is usable."""
        load = self.load.get(signal)
        return None if load is None or not self.usable else load / self.usable


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a scaler needs to know about a service.

    ``alone``: the number that each target asks for by itself; None: the load is not known.
    ``wanted`` None: there are no targets, or none whose load is known and no client waits.
    """

    asked: Scale = field(default_factory=Scale)
    seen: Seen = field(default_factory=Seen)
    alone: Mapping[Signal, int | None] = field(default_factory=dict)
    wanted: int | None = None
    cause: Cause | None = None


def decide(asked: Scale, seen: Seen) -> Scaling:
    """Return the wanted number of backends, and what determines it.

    It is the largest of the numbers that the targets ask for, within ``min`` and ``max``. It is
    one more than are usable while an objective is missed, and no fewer than are usable while the
    load of some target is not known, as with several metrics of a HorizontalPodAutoscaler.
    """
    alone = {
        signal: None if (load := seen.load.get(signal)) is None else math.ceil(load / target)
        for signal, target in asked.targets.items()
    }
    numbers = [
        (number, Cause(signal.value)) for signal, number in alone.items() if number is not None
    ]
    if not numbers and not (alone and seen.held):
        return Scaling(asked, seen, alone)
    if seen.misses_objective:
        numbers.append((seen.usable + 1, Cause.OBJECTIVE))
    if None in alone.values():
        numbers.append((seen.usable, Cause.UNKNOWN))
    if not seen.usable and seen.is_anything_waiting:
        numbers.append((1, Cause.NO_BACKEND))
    numbers.append((asked.min, Cause.MIN))
    wanted, cause = max(numbers, key=lambda each: each[0])  # the first of equal ones
    if asked.max is not None and wanted > asked.max:
        wanted, cause = asked.max, Cause.MAX
    return Scaling(asked, seen, alone, wanted, cause)


def reported(values: Sequence[tuple[bool, float | None]]) -> float | None:
    """Return the requests at all backends: whether each is usable, and what its engine reports.

    A usable backend that does not report counts as the mean of those that do. Without that, an
    engine too busy to report would look like less load. None: more than half of them are silent, or
    there are backends, and none reports: perhaps it is this balancer that reaches nobody.
    """
    found = [value for _, value in values if value is not None]
    usable = [value for is_usable, value in values if is_usable]
    speaking = [value for value in usable if value is not None]
    silent = len(usable) - len(speaking)
    if silent > len(speaking) or (values and not found):
        return None
    return sum(found) + (sum(speaking) * silent / len(speaking) if silent else 0)
