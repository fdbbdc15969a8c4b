"""Decides whether the source address and port of a fullnat flow are free here, and takes them.

As in the packet path, a NAT slot is free when the flow that it names is no longer in the flow
table, or is over. It is also free when that flow belongs to the peer, because the peer has since
given the port to another flow.
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
    """Return the owner words with which NAT slots name the flows in these slots."""
    named: Slots = (slots + 1).astype(np.uint64) << np.uint64(32)
    return named | words >> np.uint64(abi.FLOW_TAG_SHIFT)


def can_have(
    view: View, ledger: Ledger, planned: Plan, slots: Counts, now: int, *, peer_wins: bool
) -> tuple[Mask, Slots]:
    """Return which of these flows, in these slots, can have the NAT slots that they need, and the
    present owner words of those NAT slots.

    ``peer_wins``: flows of ours give up their NAT slots, because the peer has assigned the ports
    since.
    """
    index = np.maximum(planned.nat, 0)
    owner = view.tables.nat_slots["owner"][index].copy()
    held = _held(view, ledger, index, owner, now) & (not peer_wins)
    free: Mask = ~held | (owner == owners(slots, planned.word)) | (planned.nat < 0)
    return free & _is_first(planned.nat), owner


def _held(view: View, ledger: Ledger, index: Counts, owner: Slots, now: int) -> Mask:
    """Return which of these NAT slots still belong to the live flows that they name."""
    tables = view.tables
    holder = (owner >> np.uint64(32)).astype(np.int64) - 1
    named = (holder >= 0) & (holder < len(tables.flows))
    holder = np.where(named, holder, 0)
    words = tables.flows[holder]
    held: Mask = named & (owner == owners(holder, words)) & (words != 0)
    held &= tables.flows_warm["nat"][holder] == index + 1
    return held & ~over(tables, words, now) & ~ledger.is_untouched(words, holder)


def _is_first(nat: Counts) -> Mask:
    """Return a mask that keeps one of the flows that want the same NAT slot."""
    first = np.zeros(len(nat), dtype=bool)
    first[np.unique(nat, return_index=True)[1]] = True
    return first | (nat < 0)


def take(view: View, planned: Plan, slots: Counts, cold: Table, seen: Slots) -> Mask:
    """Give these flows, which are in these slots, the NAT slots that they need. Return a mask of
    those that got theirs; the owner of a NAT slot must still be the one in ``seen``, since a
    client's flow may have taken it meanwhile.
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
