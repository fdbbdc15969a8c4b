"""Who is remembered, in which state, and for how long: what DESIGN.md promises of the flow table.

Eight flows a bucket. At most two of them are embryonic; any other gives its place up only when it
is idle past its timeout, has closed and been silent for two ticks, or its backend is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.packet.model.hashes import MUL0, address_key, tuple_hash
from tests.packet.model.read import TCP_NUMBER, Ends, Reading
from tests.packet.model.services import Member, Target
from tests.packet.wires import packed

WAYS, EMBRYONIC_WAYS = 8, 4
CLOSING_TICKS = 2  # after so long a closed flow gives way to who wants its place or port
FIN, SYN, RST, ACK = 1, 2, 4, 16
WINDOW = 2**16  # a FIN may be so far from where the client is
FAR = 2**20  # what is so far behind is no old segment: it tells where the client is


@dataclass(frozen=True, slots=True)
class Keys:
    """The secret of the table's hash, and the number of its buckets."""

    key: int
    mul0: int
    mul1: int
    buckets: int


@dataclass(slots=True, eq=False)
class Flow:
    """``ends``: the client's, as its packets have them."""

    target: Target
    ends: Ends
    member: Member
    place: int  # bucket * 8 + way
    stamp: int
    state: str = "embryonic"
    back: bytes = b""  # the head of a frame to the client
    port: tuple[int, int] | None = None  # fullnat: number of the source, port
    port_towards: tuple[str, int, int] | None = None  # and of which server (see Ports)
    seq: int | None = None  # one past the client's highest byte; None: not known
    told: int | None = None  # nat, fullnat: what acknowledges all that the server has said

    def is_expired(self, now: int) -> bool:
        return not self.member.is_alive or now - self.stamp > self.target.timeouts[self.state]

    def is_in_the_way(self, now: int) -> bool:
        """Whether nobody else may have its place."""
        has_closed = self.state == "closing" and now - self.stamp >= CLOSING_TICKS
        return not has_closed and not self.is_expired(now)

    def is_flow(self, other: Flow | None) -> bool:
        """The same client talks to the same port of the same service."""
        return other is not None and (self.target, self.ends) == (other.target, other.ends)

    def stands(self, flags: int, now: int, held: bool) -> bool:
        """Does it decide? Not for a SYN that begins a new connection or can go elsewhere."""
        if not self.member.is_alive or not flags & SYN:
            return self.member.is_alive
        if self.state == "closing" or (
            self.state == "embryonic" and (held or not self.member.is_usable)
        ):
            return False
        return not self.is_expired(now)

    def sent(self, read: Reading, now: int) -> None:
        """A packet of the client's."""
        self.stamp = now
        if self._is_stray(read):
            return
        if not self._is_believed(read):
            return
        if not read.flags & (RST | SYN):
            self._follow(read)
        if read.flags & (FIN | RST):
            self.state = "closing"
        elif not read.flags & SYN and self.state != "closing":
            if read.payload or self.ends.protocol != TCP_NUMBER:
                self.state = "established"
            elif self.state == "embryonic":
                self.state = "acked"

    def _is_believed(self, read: Reading) -> bool:
        """nat, fullnat: not before the server has answered to what this client says."""
        if not self.target.is_nat or self.state != "embryonic":
            return True
        return self.ends.protocol == TCP_NUMBER and self.told == read.ack

    def _is_stray(self, read: Reading) -> bool:
        """A FIN or RST that is not where the client is (RFC 5961)."""
        if not read.flags & (FIN | RST) or self.seq is None or self.state == "embryonic":
            return False
        near = 1 if read.flags & RST else WINDOW
        return (read.seq - self.seq + near) % 2**32 > 2 * near

    def _follow(self, read: Reading) -> None:
        """Where the client is now."""
        if self.ends.protocol != TCP_NUMBER:
            return
        if self.state == "embryonic":
            self.seq = read.seq
        end = (read.seq + read.payload) % 2**32
        is_old = self.seq is not None and (end - self.seq + FAR) % 2**32 <= FAR
        if self.seq is not None and read.payload and not is_old:
            self.seq = end

    def replied(self, read: Reading, now: int) -> None:
        """A packet of the backend's. A SYN-ACK, RST or datagram can be the answer to a forgery; who
        acknowledges it has seen it.
        """
        self.stamp = now
        if self.ends.protocol != TCP_NUMBER:
            self.state = "acked" if self.state == "embryonic" else self.state
        elif self.state == "embryonic":
            self.told = (read.seq + read.payload + bool(read.flags & (SYN | FIN))) % 2**32 or None
        elif read.flags & (FIN | RST):
            self.state = "closing"
        elif self.state == "acked":
            self.state = "established"


class FlowTable:
    """Buckets of eight."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.slots: dict[int, Flow] = {}  # by place
        self.last: dict[int, int] = {}  # by bucket: where a flow was recorded last

    def _first_of(self, target: Target, ends: Ends) -> int:
        """Where the bucket begins that a flow belongs to."""
        keys = self.keys
        key = keys.key ^ (target.salt * MUL0 & (1 << 64) - 1)
        if target.is_prefix:
            key ^= address_key(ends.dst)
        value = tuple_hash(packed(ends.src), ends.sport, ends.dport, key, keys.mul0, keys.mul1)
        return (value >> 32) % keys.buckets * WAYS

    def find(self, target: Target, ends: Ends) -> Flow | None:
        first = self._first_of(target, ends)
        for place in range(first, first + WAYS):
            flow = self.slots.get(place)
            if flow and flow.target is target and flow.ends == ends:
                return flow
        return None

    def record(self, target: Target, ends: Ends, member: Member, now: int) -> Flow | None:
        """A new flow, in the place of its last connection if it has one; None: no room."""
        flow = self.find(target, ends)
        if flow:
            flow.member, flow.stamp, flow.state, flow.told = member, now, "embryonic", None
            flow.seq = None
            self.last[flow.place // WAYS] = flow.place
            return flow
        place = self._room(self._first_of(target, ends), now)
        if place is None:
            return None
        self.last[place // WAYS] = place
        self.slots[place] = Flow(target, ends, member, place, now)
        return self.slots[place]

    def _room(self, first: int, now: int) -> int | None:
        """Free places are taken from the last; of equally old flows the next in turn goes."""
        places = range(first, first + WAYS)
        held = {place: self.slots[place] for place in places if place in self.slots}
        young = [place for place in held if held[place].state == "embryonic"]
        if len(young) >= EMBRYONIC_WAYS:
            last = self.last.get(first // WAYS, 0)
            return min(young, key=lambda place: (held[place].stamp, (last - place - 1) % WAYS))
        free = [place for place in places if place not in held]
        if free:
            return free[-1]
        return next((place for place in places if not held[place].is_in_the_way(now)), None)
