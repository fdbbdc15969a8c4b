"""Decides how much work a host's GPUs should get, in the words of HAProxy's agent check.

What is not known takes nothing away: no GPUs, figures that a driver does not have, a driver
that refuses to answer. One that hangs does: what uses its GPUs hangs as well.
Draining is said as ``up 0%``, not as ``drain``: HAProxy stays in ``drain`` until it is told
``ready``, and ``ready`` would also end the drain that a person asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from agent.node.reading import Driver, Fault, Gpu, GpuReading, NodeReading, Recovery, Throttle

SILENT_S = 30.0  # a driver that says nothing for so long hangs, and its GPUs do
FAULT_HOLD_S = 60.0  # how long the driver may take to say what an XID means

# A power cap is how a busy GPU works within its limit; it is slow only in the others.
_SLOWED = frozenset(
    {Throttle.SW_THERMAL, Throttle.HW_THERMAL, Throttle.HW_SLOWDOWN, Throttle.HW_POWER_BRAKE}
)
_STEP_PERCENT = 5
_TOLD_PERCENT = 20
_MOST_REASON = 100  # HAProxy shows little more


class Word(enum.Enum):
    """SILENT changes nothing: HAProxy keeps what it was told last."""

    UP = "up"
    DOWN = "down"
    SILENT = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What HAProxy is told; ``percent`` of the configured weight, 0 drains."""

    word: Word
    percent: int | None = None
    reason: str = ""

    @property
    def line(self) -> str:
        """As it goes over the wire, newline included."""
        words = [self.word.value] if self.word.value else []
        if self.percent is not None:
            words.append(f"{self.percent}%")
        if self.reason:
            words.append(f"# {self.reason}")
        return " ".join(words) + "\n"


def verdict(node: NodeReading, engine: Collection[str] = ()) -> Verdict:
    """What to say of the GPUs, or of those that ``engine`` names by number or uuid.

    Named GPUs are one engine's: it needs them all, and is as fast as the slowest.
    """
    if node.gpu_age_s > SILENT_S:
        return Verdict(Word.DOWN, None, f"no reading of the GPUs for {node.gpu_age_s:.0f} s")
    if node.gpus is None:
        return Verdict(Word.SILENT, None, "no reading of the GPUs yet")
    if node.gpus.driver is Driver.UNREADABLE:
        return Verdict(Word.SILENT, None, _clean(node.gpus.problem))
    missing = missing_of(node.gpus, engine)
    if missing:
        return _down(f"no GPU {missing[0]}", node.gpus)
    gpus = [gpu for gpu in chosen(node.gpus, engine) if gpu.mig is None]
    if not gpus:
        return Verdict(
            Word.UP, 100, _clean(f"no GPU: {node.gpus.problem or 'the driver has none'}")
        )
    lost = [gpu for gpu in gpus if not gpu.up]
    if lost and (engine or len(lost) == len(gpus)):
        return _down(f"GPU {lost[0].index} is lost", node.gpus)
    for gpu in gpus:
        reason = drain_reason(gpu)
        if reason:
            return Verdict(Word.UP, 0, _clean(f"GPU {gpu.index}: {reason}"))
    return _weighed(gpus, node.clock_shares, slowest=bool(engine))


def worth_telling(before: Verdict, said: Verdict) -> bool:
    """Whether a person wants to know: a throttled GPU's every step would fill the log."""
    if said.word is not before.word or said.percent is None or before.percent is None:
        return (said.word, said.percent) != (before.word, before.percent)
    moved = abs(said.percent - before.percent)
    at_an_end = bool({said.percent, before.percent} & {0, 100})
    return moved >= _TOLD_PERCENT or (moved > 0 and at_an_end)


def chosen(reading: GpuReading, engine: Collection[str]) -> tuple[Gpu, ...]:
    """The GPUs that ``engine`` names, each with its MIG instances; all if it names none.

    Who names an instance means its GPU: it is as well and as fast as that is.
    """
    if not engine:
        return reading.gpus
    wanted = {_whole(gpu) for gpu in reading.gpus if gpu.index in engine or gpu.uuid in engine}
    return tuple(gpu for gpu in reading.gpus if _whole(gpu) in wanted)


def missing_of(reading: GpuReading, engine: Collection[str]) -> list[str]:
    """Names in ``engine`` of GPUs that are not here."""
    here = {name for gpu in reading.gpus for name in (gpu.index, gpu.uuid)}
    return sorted(name for name in engine if name not in here)


def drain_reason(gpu: Gpu) -> str:
    """Why this GPU should get no new work; empty: it may."""
    if gpu.recovery is not None and gpu.recovery is not Recovery.NONE:
        return f"recovery action {gpu.recovery.value}"
    if gpu.fault is not None and not _cleared(gpu.fault, gpu.recovery):
        return f"XID {gpu.fault.xid}"
    return ""


def clock_share(gpu: Gpu) -> float:
    """How much of its clock heat, or a lack of power, leaves the GPU; 1: all."""
    clock, most = gpu.sm_clock_hertz, gpu.sm_clock_max_hertz
    throttles = gpu.throttles or frozenset()
    # An idle GPU lowers its clock by itself: that says nothing about how fast it would be.
    if not throttles & _SLOWED or Throttle.IDLE in throttles or clock is None or not most:
        return 1.0
    return min(clock / most, 1.0)


def mean_clock_shares(readings: Sequence[GpuReading]) -> dict[str, float]:
    """Over a few readings, by uuid: throttling comes and goes within a second."""
    shares: dict[str, list[float]] = {}
    for reading in readings:
        for gpu in reading.gpus:
            if gpu.up and gpu.mig is None:
                shares.setdefault(gpu.uuid, []).append(clock_share(gpu))
    return {uuid: sum(found) / len(found) for uuid, found in shares.items()}


def _cleared(fault: Fault, recovery: Recovery | None) -> bool:
    """A driver that knows recovery actions had the time to ask for one, and did not."""
    return recovery is Recovery.NONE and fault.age_s > FAULT_HOLD_S


def _weighed(gpus: Sequence[Gpu], shares: dict[str, float], slowest: bool) -> Verdict:
    each = [(shares.get(gpu.uuid, 1.0) if gpu.up else 0.0, gpu) for gpu in gpus]
    least, worst = min(each, key=lambda pair: pair[0])
    share = least if slowest else sum(found for found, _ in each) / len(each)
    percent = max(_STEP_PERCENT, round(share * 100 / _STEP_PERCENT) * _STEP_PERCENT)
    if percent == 100:
        return Verdict(Word.UP, 100)
    if not worst.up:
        return Verdict(Word.UP, percent, f"GPU {worst.index} is lost")
    slowed = sorted(reason.value for reason in (worst.throttles or ()) if reason in _SLOWED)
    why = ",".join(slowed) or "throttled"
    reason = f"GPU {worst.index}: {why}, {least:.0%} of its clock"
    return Verdict(Word.UP, percent, _clean(reason))


def _whole(gpu: Gpu) -> str:
    return gpu.index.partition(":")[0]


def _down(what: str, reading: GpuReading) -> Verdict:
    because = f": {reading.problem}" if reading.problem else ""
    return Verdict(Word.DOWN, None, _clean(what + because))


def _clean(text: str) -> str:
    """One line of ASCII without the sign that starts a reason."""
    printable: Iterable[str] = (c if c.isascii() and c.isprintable() else "?" for c in text)
    return "".join(printable).replace("#", "?")[:_MOST_REASON]
