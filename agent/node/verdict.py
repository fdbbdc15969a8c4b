"""Decides how much work a host's GPUs should get, in the terms of HAProxy's agent check.

What is not known does not lower the weight: no GPUs, figures that a driver does not have, or a
driver that refuses to answer. A driver that hangs does, because whatever uses its GPUs hangs too.
Draining is expressed as ``up 0%``, not as ``drain``: HAProxy stays in ``drain`` until it gets
``ready``, and ``ready`` would also end a drain that a person has asked for.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from agent.node.reading import Driver, Fault, Gpu, GpuReading, NodeReading, Recovery, Throttle

SILENT_S = 30.0  # a driver that does not answer for this long hangs, and so do its GPUs
FAULT_HOLD_S = 60.0  # how long the driver may take to ask for a recovery action after an XID

# A power cap is not among them, because it is how a busy GPU keeps within its limit.
_SLOWED = frozenset(
    {Throttle.SW_THERMAL, Throttle.HW_THERMAL, Throttle.HW_SLOWDOWN, Throttle.HW_POWER_BRAKE}
)
_STEP_PERCENT = 5
_LOGGED_PERCENT = 20
_MOST_REASON = 100  # characters; HAProxy shows little more


class ServerState(enum.Enum):
    """The state in an agent check's answer. With SILENT, HAProxy keeps the last one that it got."""

    UP = "up"
    DOWN = "down"
    SILENT = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to HAProxy; ``percent`` is of the configured weight, and 0 drains."""

    word: ServerState
    percent: int | None = None
    reason: str = ""

    @property
    def line(self) -> str:
        """The line as it goes over the wire, with its newline."""
        words = [self.word.value] if self.word.value else []
        if self.percent is not None:
            words.append(f"{self.percent}%")
        if self.reason:
            words.append(f"# {self.reason}")
        return " ".join(words) + "\n"


def verdict(node: NodeReading, engine: Collection[str] = ()) -> Verdict:
    """Return the verdict on all GPUs, or on those that ``engine`` names by number or uuid.

    Named GPUs belong to one engine, which needs all of them and is as fast as the slowest.
    """
    if node.gpu_age_s > SILENT_S:
        return Verdict(ServerState.DOWN, None, f"no reading of the GPUs for {node.gpu_age_s:.0f} s")
    if node.gpus is None:
        return Verdict(ServerState.SILENT, None, "no reading of the GPUs yet")
    if node.gpus.driver is Driver.UNREADABLE:
        return Verdict(ServerState.SILENT, None, _clean(node.gpus.problem))
    missing = missing_of(node.gpus, engine)
    if missing:
        return _down(f"no GPU {missing[0]}", node.gpus)
    gpus = [gpu for gpu in chosen(node.gpus, engine) if gpu.mig is None]
    if not gpus:
        return Verdict(
            ServerState.UP, 100, _clean(f"no GPU: {node.gpus.problem or 'the driver has none'}")
        )
    lost = [gpu for gpu in gpus if not gpu.up]
    if lost and (engine or len(lost) == len(gpus)):
        return _down(f"GPU {lost[0].index} is lost", node.gpus)
    for gpu in gpus:
        reason = drain_reason(gpu)
        if reason:
            return Verdict(ServerState.UP, 0, _clean(f"GPU {gpu.index}: {reason}"))
    return _weighed(gpus, node.clock_shares, slowest=bool(engine))


def worth_logging(before: Verdict, now: Verdict) -> bool:
    """Return whether a change matters to a person.

    To log every step of a throttled GPU would fill the log.
    """
    if now.word is not before.word or now.percent is None or before.percent is None:
        return (now.word, now.percent) != (before.word, before.percent)
    moved = abs(now.percent - before.percent)
    at_an_end = bool({now.percent, before.percent} & {0, 100})
    return moved >= _LOGGED_PERCENT or (moved > 0 and at_an_end)


def chosen(reading: GpuReading, engine: Collection[str]) -> tuple[Gpu, ...]:
    """Return the GPUs that ``engine`` names, each with its MIG instances; all if it names none.

    The name of an instance stands for its GPU, because it is as healthy and as fast as that is.
    """
    if not engine:
        return reading.gpus
    wanted = {_whole(gpu) for gpu in reading.gpus if gpu.index in engine or gpu.uuid in engine}
    return tuple(gpu for gpu in reading.gpus if _whole(gpu) in wanted)


def missing_of(reading: GpuReading, engine: Collection[str]) -> list[str]:
    """Return the names in ``engine`` that no GPU of the reading has."""
    here = {name for gpu in reading.gpus for name in (gpu.index, gpu.uuid)}
    return sorted(name for name in engine if name not in here)


def drain_reason(gpu: Gpu) -> str:
    """Return why this GPU should get no new work; empty: it may get some."""
    if gpu.recovery is not None and gpu.recovery is not Recovery.NONE:
        return f"recovery action {gpu.recovery.value}"
    if gpu.fault is not None and not _cleared(gpu.fault, gpu.recovery):
        return f"XID {gpu.fault.xid}"
    return ""


def clock_share(gpu: Gpu) -> float:
    """Return the share of its maximum clock that heat or a lack of power leaves a GPU; 1: all."""
    clock, most = gpu.sm_clock_hertz, gpu.sm_clock_max_hertz
    throttles = gpu.throttles or frozenset()
    # An idle GPU lowers its clock by itself, which says nothing about how fast it would be.
    if not throttles & _SLOWED or Throttle.IDLE in throttles or clock is None or not most:
        return 1.0
    return min(clock / most, 1.0)


def mean_clock_shares(readings: Sequence[GpuReading]) -> dict[str, float]:
    """Return the mean of ``clock_share`` over a few readings, by uuid.

    Throttling comes and goes within a second.
    """
    shares: dict[str, list[float]] = {}
    for reading in readings:
        for gpu in reading.gpus:
            if gpu.up and gpu.mig is None:
                shares.setdefault(gpu.uuid, []).append(clock_share(gpu))
    return {uuid: sum(found) / len(found) for uuid, found in shares.items()}


def _cleared(fault: Fault, recovery: Recovery | None) -> bool:
    """Return whether a fault is over.

    It is if the driver knows recovery actions, has had the time to ask for one, and did not.
    """
    return recovery is Recovery.NONE and fault.age_s > FAULT_HOLD_S


def _weighed(gpus: Sequence[Gpu], shares: dict[str, float], slowest: bool) -> Verdict:
    each = [(shares.get(gpu.uuid, 1.0) if gpu.up else 0.0, gpu) for gpu in gpus]
    least, worst = min(each, key=lambda pair: pair[0])
    share = least if slowest else sum(found for found, _ in each) / len(each)
    percent = max(_STEP_PERCENT, round(share * 100 / _STEP_PERCENT) * _STEP_PERCENT)
    if percent == 100:
        return Verdict(ServerState.UP, 100)
    if not worst.up:
        return Verdict(ServerState.UP, percent, f"GPU {worst.index} is lost")
    slowed = sorted(reason.value for reason in (worst.throttles or ()) if reason in _SLOWED)
    why = ",".join(slowed) or "throttled"
    reason = f"GPU {worst.index}: {why}, {least:.0%} of its clock"
    return Verdict(ServerState.UP, percent, _clean(reason))


def _whole(gpu: Gpu) -> str:
    return gpu.index.partition(":")[0]


def _down(what: str, reading: GpuReading) -> Verdict:
    because = f": {reading.problem}" if reading.problem else ""
    return Verdict(ServerState.DOWN, None, _clean(what + because))


def _clean(text: str) -> str:
    """Return the text as one line of ASCII, without the ``#`` that starts a reason."""
    printable: Iterable[str] = (c if c.isascii() and c.isprintable() else "?" for c in text)
    return "".join(printable).replace("#", "?")[:_MOST_REASON]
