"""Decides which other hosts are considered to answer for our VIPs, from the replies heard."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.model import Address

# A single reply can be the last one of a balancer that has just handed the VIP over.
BELIEVED_ROUNDS = 2
FORGOTTEN_ROUNDS = 3  # without a reply
_VIRTUAL = re.compile(r"00:00:5e:00:0[12]:([0-9a-f]{2})")  # RFC 9568, section 7.3
MOST = 64  # claims to remember: a host can claim every address, from any number of MACs


class Claim(NamedTuple):
    """Another host claims to have a VIP of ours."""

    vip: Address
    mac: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a MAC: a backend, or another balancer of the group."""

    name: str
    is_balancer: bool = False


def not_taken(claim: Claim, owner: Owner | None, ifname: str) -> str:
    """Say that a VIP is not put on an interface because another host has it, and what to do."""
    whose = f" ({'balancer' if owner.is_balancer else 'backend'} {owner.name})" if owner else ""
    return (
        f"{claim.vip} is not put on {ifname}: {claim.mac}{whose} answers for it. Take it off that "
        f"host; or, if it only answers for others (proxy ARP), `ip address add {claim.vip}"
        f"/{claim.vip.max_prefixlen} dev {ifname}`"
    )


def in_words(claim: Claim, owner: Owner | None) -> str:
    """Say who answers for which VIP, and what that host has to do.

    ``owner`` None: the MAC belongs to no host that we know.
    """
    prefix = f"{claim.mac} answers for {claim.vip}, too: "
    if owner is not None and not owner.is_balancer:
        # With IPv6, a host does not answer for an address that is on another interface.
        silent = "keep silent (arp_ignore=1)" if claim.vip.version == 4 else "have it on lo alone"
        return f"{prefix}it is backend {owner.name}, which has to {silent}"
    if owner is not None:
        return (
            f"{prefix}it is balancer {owner.name}; lbctl failover status on both says who is master"
        )
    virtual = _VIRTUAL.fullmatch(claim.mac)
    if virtual:
        router = int(virtual[1], 16)
        return f"{prefix}it is the virtual MAC of VRRP router {router}, whose master is elsewhere"
    return f"{prefix}it is no backend's"


@dataclass(slots=True)
class _Heard:
    round: int  # the last round in which the claim was heard
    rounds: int = 1  # in how many rounds it was heard


@dataclass(slots=True)
class Claims:
    """The claims heard in each round, in which all hosts on the segment are asked for our VIPs."""

    standing: frozenset[Claim] = frozenset()
    _heard: dict[Claim, _Heard] = field(default_factory=dict)
    _round: int = 0

    @property
    def is_in_doubt(self) -> bool:
        """Whether a claim was heard that is not believed yet, so that we should ask again soon."""
        return any(h.rounds < BELIEVED_ROUNDS for h in self._heard.values())

    def hear(self, claim: Claim) -> None:
        """Record a claim heard in the current round."""
        heard = self._heard.get(claim)
        if heard is None:
            if len(self._heard) < MOST:
                self._heard[claim] = _Heard(self._round)
        elif heard.round != self._round:
            heard.round, heard.rounds = self._round, heard.rounds + 1

    def next_round(self, held: Collection[Address]) -> tuple[frozenset[Claim], frozenset[Claim]]:
        """End a round; return the claims that stand from now on, and those that no longer do.

        ``held``: the VIPs that this host has.
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
