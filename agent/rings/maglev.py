"""Decides which backend each slot of a ring names: Maglev with weights, vectorised.

Maglev (Eisenbud et al., NSDI 2016, section 3.4) gives each backend a permutation of the slots and
lets the backends claim their next slot in turn. Here a backend of twice the weight claims twice as
often: its k-th claim falls at the time (k + phase) / weight, and a slot goes to the earliest claim,
until each backend has its exact quota (largest remainders). NumPy makes and settles claims in
slices of time.

The result depends on the set of (identity, weight) alone: it is the same on every balancer,
whatever the order of events.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SLICE_CLAIMS = 3.0  # claims per slice of time: at most this multiple of the free slots
_MAX_SLICE = 1 << 17

type Ring = npt.NDArray[np.uint16]


class Member(NamedTuple):
    """A backend in a ring; ``identity`` (its packed address) determines its permutation."""

    identity: bytes
    weight: int
    id: int


def quotas(weights: npt.NDArray[np.float64], slots: int) -> npt.NDArray[np.int64]:
    """Return the slots of each member, proportional to its weight by largest remainders; at least
    one.

    There must be at least as many slots as members.
    """
    share = np.maximum(weights * (slots / weights.sum()), 1.0)
    # members that are raised to one slot take it from the others
    for _ in range(8):
        lifted = share <= 1.0
        rest = slots - lifted.sum()
        if lifted.all():
            break
        scaled = weights * (rest / weights[~lifted].sum())
        fixed = np.where(lifted, 1.0, np.maximum(scaled, 1.0))
        if np.array_equal(fixed, share):
            break
        share = fixed
    whole = np.floor(share).astype(np.int64)
    missing = slots - int(whole.sum())
    order = np.argsort(whole - share, kind="stable")
    whole[order[:missing]] += 1
    return whole


def build(members: tuple[Member, ...], slots: int) -> Ring:
    """Return a ring of ``slots`` (prime) backend ids, read-only; all 0 if there is no member.

    ValueError: there are more members than slots.
    """
    ring = np.zeros(slots, dtype=np.uint16)
    ordered = sorted(member for member in members if member.weight > 0)
    if len(ordered) > slots:
        raise ValueError(f"{len(ordered)} backends do not fit into {slots} slots")
    if ordered:
        ids = np.array([member.id for member in ordered], dtype=np.uint16)
        ring[:] = ids[_claim(ordered, slots)]
    ring.setflags(write=False)
    return ring


def _permutations(
    members: list[Member], slots: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return offset and skip of each member's permutation, and its phase in [0, 1)."""
    digests = b"".join(hashlib.blake2b(m.identity, digest_size=24).digest() for m in members)
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, 3)
    offset = (words[:, 0] % np.uint64(slots)).astype(np.int64)
    skip = (words[:, 1] % np.uint64(slots - 1)).astype(np.int64) + 1 if slots > 1 else offset
    phase = (words[:, 2] >> np.uint64(11)).astype(np.float64) / 2.0**53
    return offset, skip, phase


def _claim(members: list[Member], slots: int) -> npt.NDArray[np.int64]:
    """Return the index of the member that each slot goes to."""
    weight = np.array([member.weight for member in members], dtype=np.float64)
    offset, skip, phase = _permutations(members, slots)
    left = quotas(weight, slots)
    owner = np.full(slots, -1, dtype=np.int64)
    claimed = np.zeros(len(members), dtype=np.int64)  # claims made so far
    first = np.zeros(slots, dtype=np.int64)
    now, free = 0.0, slots
    while free:
        active = np.flatnonzero(left > 0)
        total = float(weight[active].sum())
        now += min(_SLICE_CLAIMS * max(free, 512), _MAX_SLICE) / total
        upto = np.maximum(np.ceil(now * weight[active] - phase[active]).astype(np.int64), 0)
        made = np.maximum(upto - claimed[active], 0)
        claimant = np.repeat(active, made)
        before = np.repeat(np.cumsum(made) - made, made)
        turn = np.arange(len(claimant)) - before + claimed[claimant]
        claimed[active] += made
        slot = (offset[claimant] + turn * skip[claimant]) % slots
        open_ = np.flatnonzero(owner[slot] < 0)
        free -= _settle(
            claimant[open_], turn[open_], slot[open_], weight, phase, owner, left, first
        )
    return owner


def _settle(
    claimant: npt.NDArray[np.int64],
    turn: npt.NDArray[np.int64],
    slot: npt.NDArray[np.int64],
    weight: npt.NDArray[np.float64],
    phase: npt.NDArray[np.float64],
    owner: npt.NDArray[np.int64],
    left: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
) -> int:
    """Give free slots to the earliest claims within quota; return how many were given.

    ``first`` is scratch space with one element for each slot.
    """
    if not len(claimant):
        return 0
    # stable, and claims come in the order of the members: ties go to the lower one
    order = np.argsort((turn + phase[claimant]) / weight[claimant], kind="stable")
    claimant, slot = claimant[order], slot[order]
    claim = np.arange(len(slot))
    first[slot[::-1]] = claim[::-1]  # the last store wins; stored backwards, the earliest wins
    earliest = claim[first[slot] == claim]
    claimant, slot = claimant[earliest], slot[earliest]
    # the n-th win of a member counts only up to its quota
    by_member = np.argsort(claimant, kind="stable")
    sorted_claimants = claimant[by_member]
    starts = np.flatnonzero(np.r_[True, sorted_claimants[1:] != sorted_claimants[:-1]])
    run = np.diff(np.r_[starts, len(sorted_claimants)])
    nth = np.arange(len(sorted_claimants)) - np.repeat(starts, run)
    kept = by_member[nth < left[sorted_claimants]]
    owner[slot[kept]] = claimant[kept]
    np.subtract.at(left, claimant[kept], 1)
    return len(kept)


def shares(ring: Ring) -> dict[int, float]:
    """Return each backend's share of the slots, by backend id."""
    ids, counts = np.unique(ring, return_counts=True)
    return {int(i): int(n) / len(ring) for i, n in zip(ids, counts, strict=True) if i}
