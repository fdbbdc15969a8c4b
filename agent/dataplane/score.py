"""Mirrors ``bpf/score.h``: the scores by which schedulers compare backends, for display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.dataplane.survey import Counts
from agent.dataplane.tables import Table
from agent.model import Scheduler
from agent.state.loads import KAPPA, NO_WEIGHT

WORST = (1 << 63) - 1
_CONNECTION = 256  # one connection in the load score
_CHANCE_MEAN = 171
_WEIGHT_ONE = 1 << 20
_EMBRYONIC_FROM, _EMBRYONIC_PART_LOG, _EMBRYONIC_ONE = 16, 3, 1 << 32
_BOUND_FROM = 16  # connections that a bounded ``source`` never counts as too many
_HOT_SHIFT = 62  # a hot backend loses against one that is not


def share(rows: Table) -> Counts:
    """Return ``score_share`` of loads: the part of a connection that an embryonic flow counts."""
    embryonic, others = _embryonic_and_others(rows)
    most = _EMBRYONIC_FROM + (np.maximum(others, 0) >> _EMBRYONIC_PART_LOG)
    found: Counts = np.where(embryonic > most, (most << 32) // (embryonic | 1), _EMBRYONIC_ONE)
    return found


def counted(rows: Table, shares: Counts | int | None = None) -> Counts:
    """Return ``score_counted`` of backends' loads: connections, with embryonic ones by their share.

    By default, each backend's own share is used.
    """
    embryonic, others = _embryonic_and_others(rows)
    found: Counts = np.maximum(
        others + (embryonic * (share(rows) if shares is None else shares) >> 32), 0
    )
    return found


def common_shares(rows: Table, group: Counts, groups: int) -> Counts:
    """Return the share by which the backends of each of ``groups`` groups can be compared.

    It is that of one backend with the mean of their loads. ``group``: the number of each row's
    group.
    """
    whole = np.zeros(groups, dtype=rows.dtype)
    sizes = np.maximum(np.bincount(group, minlength=groups), 1)
    for name in ("open", "open_fix", "embryonic", "embryonic_fix"):
        # In floats, which hold the sum of two million 32-bit numbers exactly.
        sums = np.bincount(group, rows[name], groups).astype(np.int64)
        whole[name] = sums // sizes
    return share(whole)


def _embryonic_and_others(rows: Table) -> tuple[Counts, Counts]:
    embryonic = np.maximum(rows["embryonic"].astype(np.int64) + rows["embryonic_fix"], 0)
    return embryonic, rows["open"].astype(np.int64) + rows["open_fix"] - embryonic


def waiting_bytes(row: Table) -> int:
    """Return the waiting bytes of a backend's load."""
    return max(0, int(row["waiting"]) + int(row["waiting_fix"]))


def as_of(rows: Table, now: int) -> Table:
    """Return a copy of loads without the reports that are old; ``now`` in jiffies."""
    fresh = rows.copy()
    left = (fresh["report_until"] - np.uint32(now & 0xFFFFFFFF)).astype(np.int32)
    for field in ("queue", "report_open", "report_embryonic", "is_hot"):
        fresh[field] = np.where(left > 0, fresh[field], 0)
    fresh["kappa"] = np.where(left > 0, fresh["kappa"], KAPPA)
    return fresh


def of_connections(row: Table, shares: Counts | None = None) -> int:
    """Return ``score_connections``."""
    return (int(counted(row, shares)) + 1) * int(row["inverse_weight"])


def of_load(row: Table, shares: Counts | None = None) -> int:
    """Return ``score_load`` of a load as it is now (``as_of``)."""
    embryonic, others = (int(each) for each in _embryonic_and_others(row))
    reported_embryonic = int(row["report_embryonic"])
    since = others - (int(row["report_open"]) - reported_embryonic)
    since += (embryonic - reported_embryonic) * int(share(row) if shares is None else shares) >> 32
    work = int(row["queue"]) + int(row["kappa"]) * max(0, since)
    work += waiting_bytes(row) * int(row["per_byte"]) >> 16
    return (int(row["is_hot"]) << _HOT_SHIFT) + work * int(row["inverse_weight"])


def worth_of(row: Table, escape_bytes: int) -> int:
    """Return by how much a home's score may be above the best of the draws (``select_home``)."""
    return (escape_bytes * int(row["per_byte"]) >> 16) * int(row["inverse_weight"])


def chance(pick: int) -> int:
    """Return ``chance``: exponential with mean 256, from the hash of a draw."""
    x = pick & 0xFFFF | 1
    zeros = 16 - x.bit_length()
    return ((zeros + 2 << 15) - (x << zeros)) * _CHANCE_MEAN >> 15


def of_draws(rows: Sequence[Table], picks: Sequence[int]) -> list[int]:
    """Return ``score_draw`` of one flow's draws, in order; loads as they are now (``as_of``)."""
    weighing = (int(row["inverse_weight"]) for row in rows)
    scale = next((inverse for inverse in weighing if inverse != NO_WEIGHT), 0)
    of_first = share(rows[0])
    return [
        WORST
        if row["inverse_weight"] == NO_WEIGHT
        else of_load(row, of_first) + chance(pick) * scale
        for row, pick in zip(rows, picks, strict=True)
    ]


def most_open(service_row: Table, row: Table, bound: int) -> int | None:
    """Return how many connections a bounded ``source`` allows the backend; None: any number."""
    weight = int(service_row["weight"])
    if not bound or not weight:
        return None
    mean = 256 * weight
    whole = max(0, int(service_row["open"]) + int(service_row["open_fix"]))
    most = bound * (whole + 1) * int(row["weight"])
    return max(_BOUND_FROM, -(-most // mean))


def shown(scheduler: Scheduler, row: Table) -> float | None:
    """Return what a scheduler compares, as connections that a weight of 100 would have; None:
    nothing.

    For ``least-load`` it is without the chance that is added to each draw.
    """
    match scheduler:
        case Scheduler.LEAST_CONN:
            return in_connections(scheduler, of_connections(row))
        case Scheduler.LEAST_LOAD:
            return in_connections(scheduler, of_load(row))
        case _:
            return None


def in_connections(scheduler: Scheduler, exact: int) -> float:
    """Return a score, of a backend that is hot or not, as connections that a weight of 100 would
    have.
    """
    if scheduler is Scheduler.LEAST_CONN:
        return exact * 100 / _WEIGHT_ONE
    return (exact & ((1 << _HOT_SHIFT) - 1)) * 100 / (_WEIGHT_ONE * _CONNECTION)
