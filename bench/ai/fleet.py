"""Decides which servers are behind the balancers, and what they can do."""

from __future__ import annotations

from collections.abc import Sequence

from bench.ai.trace import Lengths
from lbctl.lab.engine.model import A100, H100, Hardware

FULL_WEIGHT = 100


def servers(count: int) -> tuple[Hardware, ...]:
    """Return ``count`` servers, alternately fast and slow."""
    return tuple((H100, A100)[index % 2] for index in range(count))


def capacity_per_s(hardware: Hardware, of: Lengths) -> float:
    """Return the requests per second with a full batch: as many as fit into the KV cache."""
    context = of.mean_prompt + of.mean_answer / 2
    batch = min(hardware.max_batch, hardware.kv_tokens / (of.mean_prompt + of.mean_answer))
    step_s = hardware.step_s + batch * (
        hardware.step_s_per_request + hardware.step_s_per_context_token * context
    )
    prefill_s = of.mean_prompt * hardware.prefill_s_per_token
    return 1.0 / (prefill_s + of.mean_answer * step_s / batch)


def total_capacity_per_s(fleet: Sequence[Hardware], of: Lengths) -> float:
    """Return the capacity of all servers together, in requests per second."""
    return sum(capacity_per_s(hardware, of) for hardware in fleet)


def right_weights(fleet: Sequence[Hardware], of: Lengths) -> tuple[int, ...]:
    """Return weights in proportion to capacity; the fastest server has FULL_WEIGHT."""
    each = [capacity_per_s(hardware, of) for hardware in fleet]
    return tuple(round(FULL_WEIGHT * one / max(each)) for one in each)
