"""Decides which of the adverts that one virtual router hears are acted upon, counted and logged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from agent.failover.plan import VirtualRouter
from agent.failover.process.ledger import Ledger
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.compare import problems
from agent.logs import get_logger
from agent.model import Address

log = get_logger()


class Inbox:
    """Counts ``received`` adverts, and those ``discarded`` by reason.

    ``ledger`` holds the problems that they revealed.
    """

    def __init__(self, interval_s: float) -> None:
        self.ledger = Ledger(interval_s)
        self.received = 0
        self.discarded: Counter[str] = Counter()
        # The last advert with no problem, as a master sends the same one again and again.
        self._well: tuple[Advert, VirtualRouter, Address, int] | None = None

    def take(
        self, found: Iterable[Advert | Refusal], router: VirtualRouter, own: Address, priority: int
    ) -> list[Advert]:
        """Return the last advert of each node, so that a node which sent several is answered once.

        Of the adverts refused for the same reason all are counted, and only the last is examined.
        """
        latest: dict[Address, Advert] = {}
        refused: dict[Reason, tuple[Refusal, int]] = {}
        for heard in found:
            if isinstance(heard, Refusal):
                refused[heard.reason] = heard, refused.get(heard.reason, (heard, 0))[1] + 1
            else:
                self.received += 1
                latest.pop(heard.source, None)
                latest[heard.source] = heard
        adverts = list(latest.values())
        for refusal, count in refused.values():
            self.discarded[refusal.reason.value] += count
            self._note(router, own, priority, refusal, count)
        for advert in adverts:
            if not self._is_known(advert, router, own, priority):
                self._note(router, own, priority, advert, 1)
        return adverts

    def _is_known(self, advert: Advert, router: VirtualRouter, own: Address, priority: int) -> bool:
        if self._well is None:
            return False
        heard, for_router, for_own, for_priority = self._well
        # Identity is enough: comparing all fields would cost as much as checking the advert again.
        return (
            heard is advert and for_router is router and (for_own, for_priority) == (own, priority)
        )

    def _note(
        self,
        router: VirtualRouter,
        own: Address,
        priority: int,
        heard: Advert | Refusal,
        count: int,
    ) -> None:
        wrong = problems(router, own, priority, heard)
        if not wrong and isinstance(heard, Advert):
            self._well = heard, router, own, priority
        if wrong:
            for news in self.ledger.note(wrong, time.time(), count):
                log.warning("mismatch", router=router.name, kind=news.kind, text=news.text)
