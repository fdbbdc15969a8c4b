"""The values that scrapes return: reports on an engine, a node's GPUs, the models loaded."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# No real server has more requests than this, so larger values are not believed.
MOST_REQUESTS = 1e6
MOST_TOKENS = 1e18


class AgentState(enum.Enum):
    """What an agent-check answer asks for."""

    UP = "up"
    DOWN = "down"
    DRAIN = "drain"
    MAINT = "maint"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """How busy an engine is; None: it does not report that.

    ``kv_usage`` and ``gpu_share`` are shares from 0 to 1; ``gpu_share`` is how much of the loaded
    models is in GPU memory (only Ollama reports it). ``prompt_tokens`` counts all prompt tokens
    since the engine started, ``cached_tokens`` those of them that its prefix cache held.
    ``dropped`` counts the implausible values that were treated as missing.
    """

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    gpu_share: float | None = None
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    dropped: int = 0

    @property
    def queue(self) -> float | None:
        """Requests in the engine, running and waiting; None if it reports neither."""
        if self.running is None and self.waiting is None:
            return None
        return (self.running or 0.0) + (self.waiting or 0.0)


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """An answer in HAProxy's agent-check protocol; ``weight_share`` is from 0 to 1."""

    weight_share: float | None = None
    state: AgentState | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU; None: not reported.

    ``throttled`` names the reasons that slow it down against the operator's wish. A power cap,
    which many set on purpose, is ``power_capped`` instead. ``xid`` is an error that points to the
    hardware.
    """

    name: str
    uuid: str = ""
    lost: bool = False
    clock_share: float | None = None  # SM clock as a share of its maximum
    throttled: tuple[str, ...] = ()
    power_capped: bool = False
    xid: int | None = None
    recovery_action: str | None = None  # None: none is needed, or not reported
    utilization: float | None = None
    memory_used_share: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """The GPUs of one host; ``dropped`` as in EngineReport."""

    gpus: tuple[GpuReport, ...] = ()
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """The models that a server has ready."""

    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no report, in words for the operator."""

    reason: str


type Report = EngineReport | AgentCheck | NodeReport | Models


def plausible(value: float, most: float) -> bool:
    """Return whether a value is a number from 0 to ``most``: not NaN, not a sentinel, not a counter
    that went below 0.
    """
    return 0 <= value <= most


def share(value: float) -> float | None:
    """Return a value as a share, tolerating rounding above 1; None if it cannot be one."""
    return min(value, 1.0) if plausible(value, 1.01) else None
