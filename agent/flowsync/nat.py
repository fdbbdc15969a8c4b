"""Decides whether the source address and port of a fullnat flow are free here, and takes them.

As in the packet path a NAT slot is free when the flow that it names is no longer in the flow
table, or is over; and when that flow is the peer's, who has given the port to another one.
"""

from __future__ import annotations

import numpy as np

from agent.dataplane import abi
from agent.dataplane.survey import Counts, Slots
from agent.dataplane.tables import Table
from agent.flowsync.ledger import Ledger
from agent.flowsync.plan import Mask, Plan
from agent.flowsync.view import View, over


def owners(slots: Counts, words: Slots) -> Slots:
    """How a NAT slot names the flow in a slot."""
    named: Slots = (slots + 1).astype(np.uint64) << np.uint64(32)
    return named | words >> np.uint64(abi.FLOW_TAG_SHIFT)


def can_have(
    view: View, ledger: Ledger, planned: Plan, slots: Counts, now: int, *, yields: bool
) -> tuple[Mask, Slots]:
    """Which of these flows, for these slots, can have the NAT slots that they need, and who has
    these now.

    ``yields``: whatever flow of ours has one gives it up; it was the peer's to give since.
    """
    tables = view.tables
    index = np.maximum(planned.nat, 0)
    owner = tables.nat_slots["owner"][index]
    holder = (owner >> np.uint64(32)).astype(np.int64) - 1
    named = (holder >= 0) & (holder < len(tables.flows))
    holder = np.where(named, holder, 0)
    words = tables.flows[holder]
    held = named & (owner == owners(holder, words)) & (words != 0)
    held &= tables.flows_warm["nat"][holder] == index + 1
    held &= ~over(tables, words, now) & ~ledger.is_untouched(words, holder)
    held &= not yields
    free: Mask = ~held | (owner == owners(slots, planned.word)) | (planned.nat < 0)
    return free & _is_first(planned.nat), owner


def _is_first(nat: Counts) -> Mask:
    """Of those that want the same NAT slot, one."""
    first = np.zeros(len(nat), dtype=bool)
    first[np.unique(nat, return_index=True)[1]] = True
    return first | (nat < 0)


def take(view: View, planned: Plan, slots: Counts, cold: Table, seen: Slots) -> None:
    """Fill the NAT slots of these flows, which are to be in these slots, unless somebody else than
    was ``seen`` has one by now: a client's flow may have taken it.
    """
    has = planned.nat >= 0
    has &= view.tables.nat_slots["owner"][np.maximum(planned.nat, 0)] == seen
    if not has.any():
        return
    mine, of = planned.take(has), cold[has]
    rows = np.zeros(len(mine), dtype=abi.NAT_SLOT)
    rows["client"], rows["vip"] = of["saddr"], of["daddr"]
    rows["client_port"], rows["vip_port"] = of["sport"], of["dport"]
    rows["backend"], rows["service"] = mine.backend, mine.service
    rows["l4_proto"], rows["family"] = of["l4_proto"], of["family"]
    rows["source"] = mine.source
    view.tables.nat_slots[mine.nat] = rows
    view.tables.nat_slots["owner"][mine.nat] = owners(slots[has], mine.word)


def is_kept(view: View, planned: Plan, slots: Counts) -> Mask:
    """Which of these flows have the NAT slots that they took: the packet path could take one
    until the flow was in its slot.
    """
    owner = view.tables.nat_slots["owner"][np.maximum(planned.nat, 0)]
    kept: Mask = (planned.nat < 0) | (owner == owners(slots, planned.word))
    return kept
