"""Decides whether the source address and port of a fullnat flow are free here, and takes them.

As in the packet path a NAT slot is free when the flow that it names is no longer in the flow
table, or is over; and when that flow is the peer's, who has given the port to another one.
"""

from __future__ import annotations

import numpy as np

from agent.dataplane import abi
from agent.dataplane.atomics import exchange
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
    index = np.maximum(planned.nat, 0)
    owner = view.tables.nat_slots["owner"][index].copy()
    held = _held(view, ledger, index, owner, now) & (not yields)
    free: Mask = ~held | (owner == owners(slots, planned.word)) | (planned.nat < 0)
    return free & _is_first(planned.nat), owner


def _held(view: View, ledger: Ledger, index: Counts, owner: Slots, now: int) -> Mask:
    """Which of these NAT slots are still those of the flows that they name."""
    tables = view.tables
    holder = (owner >> np.uint64(32)).astype(np.int64) - 1
    named = (holder >= 0) & (holder < len(tables.flows))
    holder = np.where(named, holder, 0)
    words = tables.flows[holder]
    held: Mask = named & (owner == owners(holder, words)) & (words != 0)
    held &= tables.flows_warm["nat"][holder] == index + 1
    return held & ~over(tables, words, now) & ~ledger.is_untouched(words, holder)


def _is_first(nat: Counts) -> Mask:
    """Of those that want the same NAT slot, one."""
    first = np.zeros(len(nat), dtype=bool)
    first[np.unique(nat, return_index=True)[1]] = True
    return first | (nat < 0)


def take(view: View, planned: Plan, slots: Counts, cold: Table, seen: Slots) -> Mask:
    """Give these flows, which are in these slots, the NAT slots that they need; which have got
    theirs: unless somebody else than was ``seen`` has one by now, as a client's flow that took it.
    """
    table = view.tables.nat_slots
    taken = exchange(table["owner"], planned.nat, seen, owners(slots, planned.word))
    mine, of = planned.take(taken), cold[taken]
    for name, values in (
        ("client", of["saddr"]),
        ("vip", of["daddr"]),
        ("client_port", of["sport"]),
        ("vip_port", of["dport"]),
        ("backend", mine.backend),
        ("service", mine.service),
        ("l4_proto", of["l4_proto"]),
        ("family", of["family"]),
        ("source", mine.source),
    ):
        table[name][mine.nat] = values
    return taken
