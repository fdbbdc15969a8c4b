"""Decides which packets the kernel gives us, as classic BPF: what may be an advert to one of ours,
and apart from it what is only worth a report.

Adverts must not wait behind what strangers send, and what they send must cost next to nothing. So
there are two sets of sockets, with the same question asked of every packet and opposite answers.
The question is only about cost: whatever comes by either is decoded, and believed, by the same
rules.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.failover.vrrp.auth import IPPROTO_AH, PASSWORD_BYTES, TRAILER_BYTES, ah_bytes
from agent.failover.vrrp.checksum import IPPROTO_VRRP
from agent.failover.vrrp.headers import HOPS
from agent.sockfilter import Step

# From linux/filter.h; an offset from _NET on is one from the IP header.
_LD_B, _LD_H, _LD_LEN, _LD_MEM = 0x30, 0x28, 0x80, 0x60
_LD_H_X, _LD_IMM, _LDX_MEM, _ST = 0x48, 0x00, 0x61, 0x02
_ADD, _ADD_X, _SUB, _SUB_X, _AND, _LSH, _MOD = 0x04, 0x0C, 0x14, 0x1C, 0x54, 0x64, 0x94
_JA, _JEQ, _JGE, _RET, _TAX, _TXA = 0x05, 0x15, 0x35, 0x06, 0x07, 0x87
_NET = 0xFFF00000
_ALL = 0xFFFF
_ADVERT, _SUM = 0, 1  # places in its memory: length of the advert, sum so far

_HEAD_BYTES = 8
_IPV4_BYTES, _NO_OPTIONS = 20, 0x45
_ADVERTISEMENT = 1
# Adverts with more VIPs pass without a look at their checksum: a program has a limit of size.
_SUMMED_VIPS = {4: 16, 6: 6}


class Lane(enum.Enum):
    """Which packets."""

    EXPECTED = enum.auto()  # by its form an advert to a virtual router of ours
    OTHER = enum.auto()


@dataclass(slots=True)
class _Program:
    """Steps, with jumps to what stands further down."""

    steps: list[Step] = field(default_factory=list)
    jumps: dict[int, str] = field(default_factory=dict)  # from, to
    places: dict[str, int] = field(default_factory=dict)

    def add(self, code: int, operand: int = 0) -> None:
        self.steps.append((code, 0, 0, operand))

    def go(self, place: str) -> None:
        self.jumps[len(self.steps)] = place
        self.add(_JA)

    def go_if(self, code: int, operand: int, place: str) -> None:
        """A conditional jump reaches 255 steps only, so it is one over a jump."""
        self.steps.append((code, 0, 1, operand))
        self.go(place)

    def go_unless(self, code: int, operand: int, place: str) -> None:
        self.steps.append((code, 1, 0, operand))
        self.go(place)

    def here(self, place: str) -> None:
        self.places[place] = len(self.steps)

    def done(self) -> tuple[Step, ...]:
        for at, place in self.jumps.items():
            self.steps[at] = (_JA, 0, 0, self.places[place] - at - 1)
        return tuple(self.steps)


def program(
    lane: Lane,
    protocol: int,
    family: int,
    vrids: Iterable[int],
    *,
    hops: Iterable[int] = (HOPS,),
    sums: bool = True,
) -> tuple[Step, ...]:
    """For a raw socket of this protocol and family; ``sums``: checksums are looked at."""
    made = _Program()
    start = _IPV4_BYTES if family == 4 else 0  # where the socket's packets have their payload
    hop_limit = 8 if family == 4 else _NET + 7
    if protocol == IPPROTO_AH:
        start = _begin_ah(made, start)
    made.add(_LD_LEN)
    made.go_unless(_JGE, start + _HEAD_BYTES, "other")
    if family == 4:
        made.add(_LD_B, 0)
        made.go_unless(_JEQ, _NO_OPTIONS, "other")
    _one_of(made, hop_limit, hops, "near")
    _one_of(made, start + 1, vrids, "ours")
    _form(made, family, start)
    if sums:
        _checksum(made, family, start)
    is_expected = lane is Lane.EXPECTED
    made.here("expected")
    made.add(_RET, _ALL if is_expected else 0)
    made.here("other")
    made.add(_RET, 0 if is_expected else _ALL)
    made.here("nothing")
    made.add(_RET, 0)
    return made.done()


def nothing() -> tuple[Step, ...]:
    """No packet at all."""
    return ((_RET, 0, 0, 0),)


def _begin_ah(made: _Program, start: int) -> int:
    """Of IPsec only what has an advert in it, whatever options the IP header has."""
    made.steps += [(0xB1, 0, 0, 0), (0x50, 0, 0, 0)]  # ldxb 4*([0]&0xf), ldb [x + 0]
    made.go_unless(_JEQ, IPPROTO_VRRP, "nothing")
    return start + ah_bytes()


def _one_of(made: _Program, at: int, values: Iterable[int], place: str) -> None:
    made.add(_LD_B, at)
    for value in sorted(set(values)):
        made.go_if(_JEQ, value, place)
    made.go("other")
    made.here(place)


def _form(made: _Program, family: int, start: int) -> None:
    """An advertisement, as long as its VIPs and one of the ways to authenticate make it."""
    made.add(_LD_B, start)
    made.add(_AND, 0xF)
    made.go_unless(_JEQ, _ADVERTISEMENT, "other")
    made.add(_LD_IMM, 0)
    made.add(_ST, _SUM)
    made.add(_LD_B, start + 3)
    made.go_if(_JEQ, 0, "other")
    made.add(_LSH, 2 if family == 4 else 4)
    made.add(_ADD, _HEAD_BYTES)
    made.add(_ST, _ADVERT)
    made.add(_TAX)
    made.add(_LD_LEN)
    made.add(_SUB, start)
    made.add(_SUB_X)
    for more in (0, TRAILER_BYTES):
        made.go_if(_JEQ, more, "bare")
    made.go_unless(_JEQ, PASSWORD_BYTES, "other")
    for at in range(start, start + PASSWORD_BYTES, 2):  # which the checksum covers
        made.add(_LDX_MEM, _ADVERT)
        made.add(_LD_H_X, at)
        made.add(_LDX_MEM, _SUM)
        made.add(_ADD_X)
        made.add(_ST, _SUM)
    made.here("bare")


def _checksum(made: _Program, family: int, start: int) -> None:
    """Right in one of its variants: without the pseudo-header, or with it."""
    most, size = _SUMMED_VIPS[family], 4 if family == 4 else 16
    made.add(_LDX_MEM, _SUM)
    made.add(_LD_B, start + 3)
    for count in range(1, most + 1):
        made.go_if(_JEQ, count, f"from {count}")
    made.go("expected")
    for count in range(most, 0, -1):
        made.here(f"from {count}")
        end = start + _HEAD_BYTES + count * size
        _sum(made, range(end - size, end, 2))
    _sum(made, range(start, start + _HEAD_BYTES, 2))
    made.add(_TXA)
    made.add(_MOD, 0xFFFF)
    made.go_if(_JEQ, 0, "expected")
    addresses = range(12, 20, 2) if family == 4 else range(_NET + 8, _NET + 40, 2)
    _sum(made, addresses)
    made.add(_LD_MEM, _ADVERT)
    made.add(_ADD, IPPROTO_VRRP)
    made.add(_ADD_X)
    made.add(_MOD, 0xFFFF)
    made.go_unless(_JEQ, 0, "other")


def _sum(made: _Program, places: Iterable[int]) -> None:
    """Add these halves of words to X."""
    for at in places:
        made.add(_LD_H, at)
        made.add(_ADD_X)
        made.add(_TAX)
