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
LEAST_SHARE = 0.1  # a throttled backend keeps so much: its speed must go on being seen
MOST_WEIGHT = 4000
FIRST_ANSWER_S = 2.0
# From here on the learned speed is believed instead of the clocks: it has them in it.
BELIEVED = 0.5


@dataclass(frozen=True, slots=True)
class Influence:
    """What there is beside configuration and health.

    ``out``: why the backend gets no new flows, ``state`` what it is then; empty: nothing says
    so. ``factors``: shares of its weight by their reason. ``notes``: reasons that change no
    weight. ``bytes_per_connection``: learned; None: as configured.
    """

    out: str = ""
    state: BackendState = BackendState.DRAIN
    factors: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    bytes_per_connection: int | None = None

    def weight(self, configured: int) -> int:
        """The effective weight; one that is not 0 never becomes 0."""
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
        """What makes the weight what it is, beside the configuration."""
        told = [reason for reason, share in self.factors if share != 1.0]
        return tuple(dict.fromkeys([*told, *self.notes]))


NOTHING = Influence()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word on eligibility: ``out`` as in Influence."""

    out: str = ""
    state: BackendState = BackendState.DRAIN


def of_gpus(report: NodeReport) -> Verdict:
    """GPUs that are lost, want a reset or have a hardware error keep new flows away."""
    for gpu in report.gpus:
        if gpu.lost:
            return Verdict(f"GPU {gpu.name} is lost")
        if gpu.recovery_action is not None:
            return Verdict(f"GPU {gpu.name} wants {gpu.recovery_action}")
        if gpu.xid is not None:
            return Verdict(f"GPU {gpu.name} had XID {gpu.xid}, a hardware error")
    return Verdict()


def of_agent_check(report: AgentCheck) -> Verdict:
    """HAProxy's words: ``maint`` and ``drain`` keep new flows away, ``down`` is down."""
    nothing = report.weight_share == 0 and report.state in (None, AgentState.UP, AgentState.READY)
    said = "weight 0 %" if nothing else report.state.value if report.state else ""
    said = f"agent-check says {said}" + (f": {report.reason}" if report.reason else "")
    if nothing:
        return Verdict(said)
    match report.state:
        case AgentState.DOWN:
            return Verdict(said, BackendState.DOWN)
        case AgentState.DRAIN | AgentState.MAINT:
            return Verdict(said)
        case AgentState.UP | AgentState.READY | None:
            return Verdict()


def of_models(wanted: ModelLoaded, report: Models | None, waited_s: float) -> Verdict:
    """The model must be loaded. So soon after the first question it is taken to be: neither a
    restart of the agent nor a change of the configuration interrupts a service.
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
    """How much of their clock throttling leaves the GPUs: a model that is spread over several
    runs as fast as the slowest. Slow clocks of an idle GPU are no throttling.
    """
    return max(LEAST_SHARE, min((_clock(gpu) for gpu in report.gpus), default=1.0))


def _clock(gpu: GpuReport) -> float:
    return gpu.clock_share if gpu.throttled and gpu.clock_share is not None else 1.0


def factors(
    learned: float, confidence: float, throttled: float, agent_check: float
) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """The shares of a weight, and the reasons that are only told."""
    notes: tuple[str, ...] = ()
    if throttled < 1.0 and confidence >= BELIEVED:
        throttled, notes = 1.0, (THROTTLED,)
    told = ((LEARNED, learned), (THROTTLED, throttled), (AGENT_CHECK, agent_check))
    return tuple((reason, share) for reason, share in told if share != 1.0), notes
