"""What a monitor is to check, in the tests' words."""

from __future__ import annotations

from collections.abc import Mapping

from agent.health.monitor import HealthMonitor, Target
from agent.model import BackendRef


def check_exactly(monitor: HealthMonitor, targets: Mapping[BackendRef, Target]) -> None:
    """These from now on, and no others."""
    monitor.change(targets, monitor.statuses().keys() - targets.keys())
