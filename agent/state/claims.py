"""Decides which hosts are taken to answer for our VIPs, of what was heard of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.model import Address

# Once can be the last word of a balancer that has just handed the VIP over.
BELIEVED_ROUNDS = 2
FORGOTTEN_ROUNDS = 3  # without a word
MOST = 64  # a host can say that it has every address, from as many MACs as it likes


class Claim(NamedTuple):
    """Another host says that it has a VIP of ours."""

    vip: Address
    mac: str


@dataclass(slots=True)
class _Heard:
    round: int  # the last in which it was
    rounds: int = 1  # how many in all


@dataclass(slots=True)
class Claims:
    """Who answers in which of the rounds in which everybody is asked."""

    standing: frozenset[Claim] = frozenset()
    _heard: dict[Claim, _Heard] = field(default_factory=dict)
    _round: int = 0

    @property
    def is_in_doubt(self) -> bool:
        """Somebody was heard and is not believed yet: ask again soon."""
        return any(h.rounds < BELIEVED_ROUNDS for h in self._heard.values())

    def hear(self, claim: Claim) -> None:
        """Somebody says so, in the present round."""
        heard = self._heard.get(claim)
        if heard is None:
            if len(self._heard) < MOST:
                self._heard[claim] = _Heard(self._round)
        elif heard.round != self._round:
            heard.round, heard.rounds = self._round, heard.rounds + 1

    def next_round(self, held: Collection[Address]) -> tuple[frozenset[Claim], frozenset[Claim]]:
        """End a round, with the VIPs that this host has: which claims stand since, and which no
        longer do.
        """
        self._round += 1
        oldest = self._round - FORGOTTEN_ROUNDS
        self._heard = {
            claim: heard
            for claim, heard in self._heard.items()
            if claim.vip in held and heard.round >= oldest
        }
        before = self.standing
        self.standing = frozenset(
            claim for claim, heard in self._heard.items() if heard.rounds >= BELIEVED_ROUNDS
        )
        return self.standing - before, before - self.standing
