"""Builds the classic BPF filters that sort packets: possible adverts to us, and all others.

Adverts must not wait behind what unknown senders send, and those packets must cost next to nothing;
they are only worth a report. So there are two sets of sockets, whose filters ask the same question
of every packet and give opposite answers. The question is only about cost: packets from either set
are decoded and accepted by the same rules.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.failover.vrrp.auth import IPPROTO_AH, PASSWORD_BYTES, TRAILER_BYTES, ah_bytes
from agent.failover.vrrp.checksum import IPPROTO_VRRP
from agent.failover.vrrp.headers import HOPS
from agent.sockfilter import Step

# From linux/filter.h. An offset of _NET or more counts from the IP header.
_LD_B, _LD_H, _LD_LEN, _LD_MEM = 0x30, 0x28, 0x80, 0x60
_LD_H_X, _LD_IMM, _LDX_MEM, _ST = 0x48, 0x00, 0x61, 0x02
_ADD, _ADD_X, _SUB, _SUB_X, _AND, _LSH, _MOD = 0x04, 0x0C, 0x14, 0x1C, 0x54, 0x64, 0x94
_JA, _JEQ, _JGE, _RET, _TAX, _TXA = 0x05, 0x15, 0x35, 0x06, 0x07, 0x87
_NET = 0xFFF00000
_ALL = 0xFFFF
_ADVERT, _SUM = 0, 1  # slots of the filter's scratch memory: length of the advert, sum so far

_HEAD_BYTES = 8
_IPV4_BYTES, _NO_OPTIONS = 20, 0x45
_ADVERTISEMENT = 1
# Adverts with more VIPs pass without a check of their checksum, as the size of a filter is limited.
_SUMMED_VIPS = {4: 16, 6: 6}


class Lane(enum.Enum):
    """Which packets a socket gets."""

    EXPECTED = enum.auto()  # those that have the form of an advert to a virtual router of ours
    OTHER = enum.auto()  # all others


@dataclass(slots=True)
class _Program:
    """A filter under construction: its steps, with jumps to labels further down."""

    steps: list[Step] = field(default_factory=list)
    jumps: dict[int, str] = field(default_factory=dict)  # index of the jump, label
    places: dict[str, int] = field(default_factory=dict)  # label, index of its step

    def add(self, code: int, operand: int = 0) -> None:
        self.steps.append((code, 0, 0, operand))

    def go(self, place: str) -> None:
        self.jumps[len(self.steps)] = place
        self.add(_JA)

    def go_if(self, code: int, operand: int, place: str) -> None:
        """Add a jump if the condition holds.

        A conditional jump reaches only 255 steps, so it skips an unconditional one.
        """
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
    """Return the filter for a raw socket of this protocol and family.

    ``sums``: whether it checks checksums.
    """
    made = _Program()
    start = _IPV4_BYTES if family == 4 else 0  # where the payload starts in the socket's packets
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
    """Return a filter that passes no packet at all."""
    return ((_RET, 0, 0, 0),)


def _begin_ah(made: _Program, start: int) -> int:
    """Pass IPsec packets only with an advert in them, whatever options the IP header has.

    Returns where the advert starts if the header has no options.
    """
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
    """Check the type, and that the length fits the VIPs and one of the ways to authenticate."""
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
    for at in range(start, start + PASSWORD_BYTES, 2):  # the checksum covers the password
        made.add(_LDX_MEM, _ADVERT)
        made.add(_LD_H_X, at)
        made.add(_LDX_MEM, _SUM)
        made.add(_ADD_X)
        made.add(_ST, _SUM)
    made.here("bare")


def _checksum(made: _Program, family: int, start: int) -> None:
    """Check that the checksum is right, either without or with the pseudo-header."""
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
    """Add the 16-bit words at these offsets to X."""
    for at in places:
        made.add(_LD_H, at)
        made.add(_ADD_X)
        made.add(_TAX)
