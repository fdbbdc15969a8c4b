"""What of much that is heard at once counts, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace

from agent.failover.process.inbox import Inbox
from agent.failover.vrrp.advert import Reason, Refusal
from tests.unit.failover.process.fakes import OTHER, OWN, ROUTER, THIRD, VIP, advert


def test_the_last_word_of_each_node_counts_and_all_are_counted() -> None:
    inbox = Inbox(10.0)
    found = [advert(50), advert(60, THIRD), advert(70), Refusal(Reason.TTL, "far", OTHER)]
    assert inbox.take(found, ROUTER, OWN, 100) == [advert(60, THIRD), advert(70)]
    assert (inbox.received, inbox.discarded) == (3, {"ttl": 1})


def test_of_many_refused_for_one_reason_one_is_looked_at_and_all_are_counted() -> None:
    inbox = Inbox(10.0)
    found = [Refusal(Reason.TTL, f"far {n}", OTHER) for n in range(500)]
    inbox.take(found, ROUTER, OWN, 100)
    (entry,) = inbox.ledger._entries.values()
    assert (entry.count, inbox.discarded["ttl"]) == (500, 500)
    assert "far 499" in entry.text


def test_what_was_well_is_looked_at_again_when_anything_differs() -> None:
    """Also when it is this node that has another priority, or other VIPs."""
    inbox, heard = Inbox(10.0), advert(200)
    for _ in range(3):
        inbox.take([heard], ROUTER, OWN, 100)
    assert not inbox.ledger._entries
    inbox.take([heard], ROUTER, OWN, 200)
    assert [kind for kind, _ in inbox.ledger._entries] == ["priority"]
    inbox.take([heard], replace(ROUTER, vips=(VIP, OTHER)), OWN, 100)
    assert [kind for kind, _ in inbox.ledger._entries] == ["priority", "vips"]
