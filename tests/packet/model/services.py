"""Whom a packet is for: services, their backends, and which of them a destination names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from tests.packet.wires import packed

STATES = ("embryonic", "acked", "established", "closing")


@dataclass(slots=True, eq=False)
class Member:
    """A backend, and the way to it."""

    name: str
    address: str
    port: int | None  # nat, fullnat: its own
    head: bytes  # of a frame to it: addresses and tags
    own: str  # from where the balancer sends to it: outer headers
    mtu: int
    is_elsewhere: bool  # at another interface
    is_alive: bool = True  # its flows go on going there
    is_usable: bool = True  # new flows may go there

    @property
    def version(self) -> int:
        """Of IP, on the way to it."""
        return 4 if len(packed(self.address)) == 4 else 6


@dataclass(slots=True, eq=False)
class Target:
    """A service: an address or a prefix, a run of ports, and where that leads."""

    name: str
    network: IPv4Network | IPv6Network
    first: int  # 0: any port
    last: int
    protocol: int
    forward: str
    members: tuple[Member, ...]
    resets: bool  # tells the sender that nobody is there
    holds: bool  # lets new flows wait for somebody
    scheduler: str  # what cannot be foretold: "any"
    source_bits: int
    seed: int  # of the draws
    salt: int  # of its flows
    timeouts: dict[str, int]  # by state, in ticks
    number: int = 0  # its id
    challenges: bool = False  # who begins a connection has to show that it is there
    cookies: bool = False  # by what it answers to a SYN-ACK
    allow: tuple[str, ...] = ()  # names of lists
    deny: tuple[str, ...] = ()
    guard: str = "enforce"
    most: Mapping[str, int] = field(default_factory=dict)  # limits, of a time that does not pass
    ring: list[Member] = field(default_factory=list)
    near: dict[str, list[Member]] = field(default_factory=dict)  # rings by zone

    @property
    def is_prefix(self) -> bool:
        return self.network.num_addresses > 1

    @property
    def is_nat(self) -> bool:
        return self.forward in ("nat", "fullnat")


class Directory:
    """All services of a balancer."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self._vips: dict[str, IPv4Network | IPv6Network | None] = {}
        self._found: dict[tuple[str, int, int], Target | None] = {}

    def vip_of(self, dst: str) -> IPv4Network | IPv6Network | None:
        """The VIP is the narrowest that the address is in."""
        if dst not in self._vips:
            address = ip_address(dst)
            around = [
                t.network
                for t in self.targets
                if t.network.version == address.version and address in t.network
            ]
            self._vips[dst] = max(around, key=lambda n: n.prefixlen, default=None)
        return self._vips[dst]

    def find(self, dst: str, port: int, protocol: int) -> Target | None:
        """Of its VIP the exact port, then the range, then any port."""
        vip = self.vip_of(dst)
        if vip is None:
            return None
        key = dst, port, protocol
        if key not in self._found:
            own = [t for t in self.targets if (t.network, t.protocol) == (vip, protocol)]
            exact = [t for t in own if t.first == t.last == port and t.first]
            ranges = [t for t in own if t.first < t.last and 0 < t.first <= port <= t.last]
            anything = [t for t in own if not t.first]
            self._found[key] = next(iter(exact + ranges + anything), None)
        return self._found[key]

    def origin_of(self, src: str, port: int, protocol: int) -> tuple[Target, Member, int] | None:
        """nat: who answers from that address and port, and from which port of the VIP."""
        for target in self.targets:
            if target.forward != "nat" or target.protocol != protocol:
                continue
            for member in target.members:
                if member.address == src and port == (member.port or target.first):
                    return target, member, target.first
                is_any = member.port is None and target.first != target.last
                if member.address == src and is_any and target.first <= port <= target.last:
                    return target, member, port
        return None
