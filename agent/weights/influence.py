"""Decides what reports and learned speed do to a backend's weight and eligibility. Pure.

Errors change whether a backend gets new flows and what share of its weight it has, never the
load score: a server that fails quickly has short queues.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import BackendState, ModelLoaded
from agent.telemetry.report import AgentCheck, AgentState, GpuReport, Models, NodeReport

LEARNED, THROTTLED, AGENT_CHECK, STALE = "learned", "throttled", "agent-check", "stale"
HASTY = "hasty"
LEAST_SHARE = 0.1  # a throttled backend keeps so much, so that its speed can still be measured
MOST_WEIGHT = 4000
FIRST_ANSWER_S = 2.0
# From this confidence on, the learned speed replaces the clocks, whose effect it includes.
BELIEVED = 0.5


@dataclass(frozen=True, slots=True)
class Influence:
    """What affects a backend besides configuration and health.

    ``out``: why the backend gets no new flows, or empty; ``state``: its state in that case.
    ``factors``: shares of its weight with their reasons. ``notes``: reasons that do not change the
    weight. ``bytes_per_connection``: the learned value; None: as configured.
    """

    out: str = ""
    state: BackendState = BackendState.DRAIN
    factors: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    bytes_per_connection: int | None = None

    def weight(self, configured: int) -> int:
        """Return the effective weight; a configured weight above 0 never becomes 0."""
        weight = float(configured)
        for _, share in self.factors:
            weight *= share
        return max(1, min(round(weight), MOST_WEIGHT)) if configured else 0

    @property
    def learned(self) -> float:
        """The factor by which the weight follows the learned speed."""
        return dict(self.factors).get(LEARNED, 1.0)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What determines the weight besides the configuration."""
        changing = [reason for reason, share in self.factors if share != 1.0]
        return tuple(dict.fromkeys([*changing, *self.notes]))


NOTHING = Influence()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict on eligibility; ``out`` and ``state`` are as in Influence."""

    out: str = ""
    state: BackendState = BackendState.DRAIN


def of_gpus(report: NodeReport) -> Verdict:
    """Return the verdict of a host's GPUs: one that is lost, needs a reset or has a hardware error
    keeps new flows away.
    """
    for gpu in report.gpus:
        if gpu.lost:
            return Verdict(f"GPU {gpu.name} is lost")
        if gpu.recovery_action is not None:
            return Verdict(f"GPU {gpu.name} wants {gpu.recovery_action}")
        if gpu.xid is not None:
            return Verdict(f"GPU {gpu.name} had XID {gpu.xid}, a hardware error")
    return Verdict()


def of_agent_check(report: AgentCheck) -> Verdict:
    """Return the verdict of an agent check, as in HAProxy: ``maint`` and ``drain`` keep new flows
    away, ``down`` is down.
    """
    nothing = report.weight_share == 0 and report.state in (None, AgentState.UP, AgentState.READY)
    why = "weight 0 %" if nothing else report.state.value if report.state else ""
    why = f"agent-check says {why}" + (f": {report.reason}" if report.reason else "")
    if nothing:
        return Verdict(why)
    match report.state:
        case AgentState.DOWN:
            return Verdict(why, BackendState.DOWN)
        case AgentState.DRAIN | AgentState.MAINT:
            return Verdict(why)
        case AgentState.UP | AgentState.READY | None:
            return Verdict()


def of_models(wanted: ModelLoaded, report: Models | None, waited_s: float) -> Verdict:
    """Return the verdict on the models: the wanted one must be loaded.

    For a short time after the first request it counts as loaded, so that neither a restart of the
    agent nor a change of the configuration interrupts a service.
    """
    if report is None:
        if waited_s <= wanted.interval_s + FIRST_ANSWER_S:
            return Verdict()
        return Verdict(f"it does not say whether model {wanted.name} is loaded")
    if wanted.name in report.names:
        return Verdict()
    loaded = ", ".join(sorted(report.names)[:3]) or "none"
    return Verdict(f"model {wanted.name} is not loaded (loaded: {loaded})")


def clock_share(report: NodeReport) -> float:
    """Return the share of the clock that throttling leaves to the slowest GPU.

    A model that is spread over several GPUs runs as fast as the slowest of them. The slow clock of
    an idle GPU is not throttling.
    """
    return max(LEAST_SHARE, min((_clock(gpu) for gpu in report.gpus), default=1.0))


def _clock(gpu: GpuReport) -> float:
    return gpu.clock_share if gpu.throttled and gpu.clock_share is not None else 1.0


def factors(
    learned: float, confidence: float, throttled: float, agent_check: float
) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """Return the shares of a weight with their reasons, and the reasons that are only shown."""
    notes: tuple[str, ...] = ()
    if throttled < 1.0 and confidence >= BELIEVED:
        throttled, notes = 1.0, (THROTTLED,)
    shares = ((LEARNED, learned), (THROTTLED, throttled), (AGENT_CHECK, agent_check))
    return tuple((reason, share) for reason, share in shares if share != 1.0), notes
