"""Gathers how the tier of this host is, as `lb-agent tier` says."""

from __future__ import annotations

from pathlib import Path

from agent.errors import AgentUnreachableError, SteelyardError
from lbctl.doctor.facts import TierFacts

FILE = Path("/etc/steelyard/tier.yaml")
_ANSWER_S = 5.0


def gather(file: Path = FILE) -> TierFacts | None:
    """Return what the tier whose file this is says of itself; None: this host has none."""
    if not file.exists():
        return None
    from agent.api.client import Client  # not at the top: few hosts have a tier
    from agent.tier.settings import load

    try:
        found = Client(load(file).folder / "tier.sock", _ANSWER_S).get("/v1/tier")
    except AgentUnreachableError as error:
        denied = isinstance(error.__cause__, PermissionError)
        remedy = "systemctl start lb-agent-tier lb-agent-tier-proxy"
        return TierFacts(problem="lb-agent tier does not answer", remedy=remedy, denied=denied)
    except SteelyardError as error:
        denied = isinstance(error.__cause__, PermissionError)
        return TierFacts(problem=error.message, remedy=error.remedy, denied=denied)
    return TierFacts(connections=found["connections"], problems=tuple(found["problems"]))
