"""Decides which servers stand behind the balancers, and what they can do."""

from __future__ import annotations

from collections.abc import Sequence

from bench.ai.trace import Lengths
from lbctl.lab.engine.model import A100, H100, Hardware

FULL_WEIGHT = 100


def servers(count: int) -> tuple[Hardware, ...]:
    """Half of them fast, half slow, in turn."""
    return tuple((H100, A100)[index % 2] for index in range(count))


def capacity_per_s(hardware: Hardware, of: Lengths) -> float:
    """Requests a second with a full batch, as many as its KV cache holds of such requests."""
    context = of.mean_prompt + of.mean_answer / 2
    batch = min(hardware.max_batch, hardware.kv_tokens / (of.mean_prompt + of.mean_answer))
    step_s = hardware.step_s + batch * (
        hardware.step_s_per_request + hardware.step_s_per_context_token * context
    )
    prefill_s = of.mean_prompt * hardware.prefill_s_per_token
    return 1.0 / (prefill_s + of.mean_answer * step_s / batch)


def total_capacity_per_s(fleet: Sequence[Hardware], of: Lengths) -> float:
    """Of all servers together."""
    return sum(capacity_per_s(hardware, of) for hardware in fleet)


def right_weights(fleet: Sequence[Hardware], of: Lengths) -> tuple[int, ...]:
    """In proportion to capacity, the fastest has FULL_WEIGHT."""
    each = [capacity_per_s(hardware, of) for hardware in fleet]
    return tuple(round(FULL_WEIGHT * one / max(each)) for one in each)
