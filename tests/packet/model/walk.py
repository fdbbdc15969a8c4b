"""The order of the steps: what becomes of one frame after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Protocol

from agent.model import Zone
from tests.packet.model import answers, synack, write
from tests.packet.model.flows import ACK, FIN, RST, SYN, Flow, FlowTable, Keys
from tests.packet.model.hashes import KEY, challenge_hash, draw, masked, tuple_hash
from tests.packet.model.ports import Ports
from tests.packet.model.read import (
    TCP_NUMBER,
    Ends,
    Reading,
    UnreadError,
    is_host,
    is_sound,
    is_source_routed,
    read,
)
from tests.packet.model.services import Directory, Member, Target
from tests.packet.wires import packed

PASSED = ("not-ip", "not-vip", "fragment")


class Choices(Protocol):
    """What the kernel chose where it may; the model says whether it might."""

    def member(self, target: Target, flow: Flow | None) -> Member: ...
    def port(self, flow: Flow) -> tuple[int, int] | None: ...
    def clock(self, at: int) -> bytes: ...


class IllegalError(Exception):
    """A choice that the kernel may not make."""


class RefusedError(Exception):
    """The packet is not forwarded; the argument is the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``answers``: the frame is not the packet, but what its sender is told."""

    verdict: str  # "pass", "drop", "tx" or "redirect"
    frame: bytes = b""
    reason: str = ""
    answers: bool = False


@dataclass(slots=True)
class Case:
    """A packet, and what has been found out about it."""

    read: Reading
    choices: Choices
    target: Target | None = None
    member: Member | None = None
    flow: Flow | None = None
    to: Ends | None = None  # nat, fullnat: as from and to whom it goes on
    is_reply: bool = False
    is_over: bool = False  # its sender is to learn that the connection is
    opens: bool = True  # a flow, if it is of none


@dataclass(frozen=True, slots=True)
class First:
    """The first fragment of a datagram."""

    case: Case
    seen: int


def is_of_nobody(read: Reading, target: Target) -> bool:
    """In the middle of a connection of nat or fullnat that nothing is known of: but where a ring
    tells whose it is, nat goes on.
    """
    goes_on = target.forward == "nat" and target.scheduler in ("maglev", "source")
    is_middle = read.protocol == TCP_NUMBER and read.flags & (SYN | ACK) != SYN
    return target.is_nat and not goes_on and is_middle


def is_in(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether one of the networks has that address."""
    found = ip_address(address)
    return any(found.version == net.version and found in net for net in networks)


class Model:
    """A balancer. ``now`` is in ticks, and only the caller moves it."""

    def __init__(
        self,
        targets: tuple[Target, ...],
        sources: dict[int, str],
        ports: range,
        keys: Keys,
        zones: Sequence[Zone] = (),
    ) -> None:
        self.directory = Directory(targets)
        self.flows = FlowTable(keys)
        several = {
            (member.address, target.protocol)
            for target in targets
            if target.forward == "fullnat" and (not target.first or target.first != target.last)
            for member in target.members
            if member.port is None
        }
        self.ports = Ports(sources, ports, self.flows, frozenset(several))
        self.zones = zones
        self.first_fragments: dict[tuple[object, ...], First] = {}
        self.now = 0
        self.held = False  # nobody gets a new flow
        self.blocked: Sequence[IPv4Network | IPv6Network] = ()
        self.lists: Mapping[str, Sequence[IPv4Network | IPv6Network]] = {}
        self.cookie_key = bytes(range(16))
        self.verified: set[bytes] = set()  # sources that have shown that they are there
        self.asked: Counter[tuple[int, str, bytes]] = Counter()  # of services, within limits

    def judge(self, frame: bytes, choices: Choices) -> Outcome:
        """What becomes of an Ethernet frame."""
        try:
            case = Case(read(frame), choices)
        except UnreadError as unread:
            return Outcome("pass", frame, str(unread))
        try:
            self._route(case)
            out = self._send(case)
        except RefusedError as refused:
            return self._refused(case, str(refused))
        if case.read.is_first and case.read.ident:
            self.first_fragments[case.read.ident] = First(case, self.now)
        goes_elsewhere = not case.is_reply and case.member and case.member.is_elsewhere
        return Outcome("redirect" if goes_elsewhere else "tx", out)

    def _refused(self, case: Case, reason: str) -> Outcome:
        if reason in PASSED:
            return Outcome("pass", case.read.frame, reason)
        own = case.read.dst
        # nat: to a backend we are the VIP, not the client that it has talked to
        if case.is_reply and case.to and self.ports.number_of(own) is None:
            own = case.to.src
        secret, options = None, None
        if reason == "challenged" and case.target and case.read.ends:
            secret = self._challenge_to(case.target, case.read.ends)
            is_plain = case.read.at == (20 if case.read.version == 4 else 40)
            if case.target.cookies and case.read.flags & SYN and is_plain:
                secret, options = self._synack(case, case.target, case.read.ends)
        told = answers.answer(
            case.read,
            reason,
            case.target,
            case.member,
            own,
            is_over=case.is_over,
            secret=secret,
            options=options,
        )
        return Outcome("tx" if told else "drop", told or b"", reason, told is not None)

    # -- where it goes

    def _route(self, case: Case) -> None:
        found = case.read
        if found.is_later and not found.is_endless and self._follows(case):
            return
        if found.ends is None:
            is_vip = self.directory.vip_of(found.dst) is not None
            ours = "extension" if found.is_endless else "fragment"
            raise RefusedError(ours if is_vip else "not-vip")
        case.target = self.directory.find(found.ends.dst, found.ends.dport, found.ends.protocol)
        if case.target:
            self._from_client(case, case.target, found.ends)
        else:
            self._from_backend(case, found.ends)

    def _follows(self, case: Case) -> bool:
        """A later fragment goes after the first."""
        first = self.first_fragments.get(case.read.ident or ())
        if first is None or first.seen != self.now:  # a tick is longer than it is remembered
            return False
        told = first.case
        if told.is_reply and told.flow:
            case.flow = self.flows.slots.get(told.flow.place)
            if not told.flow.is_flow(case.flow):
                return False
        if not case.read.at <= case.read.total <= len(case.read.packet):
            raise RefusedError("malformed")
        case.target, case.member = told.target, told.member
        case.to, case.is_reply = told.to, told.is_reply
        if not case.is_reply and case.member and not case.member.is_alive:
            raise RefusedError("no-backend")
        return True

    def _from_client(self, case: Case, target: Target, ends: Ends) -> None:
        if target.guard == "enforce" and is_in(ends.src, self.blocked):
            raise RefusedError("blocked")
        if not is_sound(case.read):
            raise RefusedError("malformed")
        begins = case.read.flags & (SYN | ACK) == SYN and not case.read.quote
        if begins:
            self._listed(target, ends)
        self._within(target, ends, "packets_per_source")
        if begins and self._is_stranger(target, ends):
            raise RefusedError("challenged")
        flow = self.flows.find(target, ends)
        if case.read.quote:
            self._quoted(case, target, flow)
        elif self._answers_cookie(case.read, target, ends, flow):
            self._new_flow(case, target, ends, is_shown=True)
        elif (
            flow
            and flow.stands(case.read.flags, self.now, self.held)
            and not self._may_answer(case.read, flow)
        ):
            case.flow, case.member = flow, flow.member
            flow.sent(case.read, self.now)
        else:
            self._new_flow(case, target, ends)
        if target.is_nat:
            self._bind(case, target, ends)

    def _guard(self, found: Reading, ends: Ends) -> None:
        """What no client begins a flow with."""
        if not ends.sport or not ends.dport:
            raise RefusedError("port-zero")
        is_own = self.directory.vip_of(ends.src) or self.ports.number_of(ends.src) is not None
        if is_own or not is_host(ends.src):
            raise RefusedError("martian")
        if found.frame[0] & 1:
            raise RefusedError("broadcast")
        if is_source_routed(found):
            raise RefusedError("source-route")

    def _listed(self, target: Target, ends: Ends) -> None:
        """What lists say of who begins a flow."""
        held = {name for name, networks in self.lists.items() if is_in(ends.src, networks)}
        if target.guard != "enforce":
            return
        if held.intersection(target.deny):
            raise RefusedError("denied")
        if target.allow and not held.intersection(target.allow):
            raise RefusedError("not-allowed")

    def _within(self, target: Target, ends: Ends, *limits: str) -> None:
        """No more than may be asked; what is refused by one counts for none."""
        client = packed(ends.src)[:8]
        whose = {"new_flows_per_prefix": client[: 3 if len(client) == 4 else 6], "new_flows": b""}
        keys = [
            (target.number, limit, whose.get(limit, client))
            for limit in limits
            if limit in target.most
        ]
        if all(self.asked[key] < target.most[key[1]] for key in keys):
            self.asked.update(keys)
        elif target.guard == "enforce":
            raise RefusedError("limited")

    def _quoted(self, case: Case, target: Target, flow: Flow | None) -> None:
        """An ICMP error goes where the flow is; without one, where it would be."""
        case.flow = flow
        if flow:
            case.member = flow.member
        elif target.scheduler == "maglev" and not target.is_nat and case.read.ends:
            case.member = self._pick(target, case.read.ends)
        if case.member is None or not case.member.is_alive:
            raise RefusedError("no-flow")

    def _pick(self, target: Target, ends: Ends) -> Member | None:
        client = packed(ends.src)
        if target.scheduler == "source":
            client = masked(client, target.source_bits)
            pick = tuple_hash(client, 0, 0, KEY ^ target.seed)
        else:
            pick = tuple_hash(client, ends.sport, ends.dport, KEY ^ target.seed)
        return draw(target.ring, target.near.get(self._zone_of(ends.src), []), pick)

    def _zone_of(self, client: str) -> str:
        """By the narrowest prefix that the address is in."""
        address = ip_address(client)
        around = [(net.prefixlen, zone.name) for zone in self.zones for net in zone.clients
                  if net.version == address.version and address in net]  # fmt: skip
        return max(around, default=(0, ""))[1]

    def _new_flow(self, case: Case, target: Target, ends: Ends, *, is_shown: bool = False) -> None:
        self._guard(case.read, ends)
        if case.read.flags & (SYN | ACK) != SYN:
            self._listed(target, ends)
        if self.held:
            raise RefusedError("held")
        case.opens = not case.read.flags & (FIN | RST)
        if is_shown:
            self.verified.add(packed(ends.src)[:8])
        else:
            self._answered(case, target, ends)
        if is_of_nobody(case.read, target):
            case.is_over = True
            raise RefusedError("no-flow")
        if case.opens:
            self._within(target, ends, "new_flows_per_source", "new_flows_per_prefix", "new_flows")
        is_free = target.scheduler == "any"
        usable = [member for member in target.members if member.is_usable]
        member = next(iter(usable), None) if is_free else self._pick(target, ends)
        if member is None:
            is_middle = ends.protocol == TCP_NUMBER and case.read.flags & (SYN | ACK) != SYN
            waits = target.holds and not is_middle
            raise RefusedError("held" if waits else "no-backend")
        self._record(case, target, ends, member)
        if case.flow and is_shown:
            case.flow.state, case.flow.seq = "acked", case.read.seq
        if is_free:
            member = case.choices.member(target, case.flow)
            if member not in usable:
                raise IllegalError(f"{member.name} is not usable for {target.name}")
        if case.flow:
            case.flow.member = member
        case.member = member

    def _record(self, case: Case, target: Target, ends: Ends, member: Member) -> None:
        if case.opens:
            case.flow = self.flows.record(target, ends, member, self.now)
            if case.flow is None and target.is_nat:
                raise RefusedError("no-room")
        elif target.is_nat:  # the end of a connection that nobody knows opens nothing
            raise RefusedError("no-flow")

    def _is_stranger(self, target: Target, ends: Ends) -> bool:
        """Nobody has shown to be there, and has to."""
        is_asked = target.challenges and ends.protocol == TCP_NUMBER
        return is_asked and packed(ends.src)[:8] not in self.verified

    def _may_answer(self, found: Reading, flow: Flow) -> bool:
        """A stranger's RST goes with no flow that has not begun, or is over."""
        is_reset = found.flags & RST and flow.state in ("embryonic", "closing")
        return bool(is_reset) and self._is_stranger(flow.target, flow.ends)

    def _answered(self, case: Case, target: Target, ends: Ends) -> None:
        """A stranger opens nothing, and its RST either shows that it is there or is dropped."""
        flags = case.read.flags
        if not self._is_stranger(target, ends):
            return
        case.opens = False
        if flags & RST and case.read.seq == self._challenge_to(target, ends) % 2**32:
            self.verified.add(packed(ends.src)[:8])
            raise RefusedError("verified")
        if flags & RST:
            raise RefusedError("challenged")

    def _answers_cookie(
        self, found: Reading, target: Target, ends: Ends, flow: Flow | None
    ) -> bool:
        """The first ACK of a connection whose SYN was answered in the server's name."""
        if not target.cookies or not target.challenges or ends.protocol != TCP_NUMBER:
            return False
        if found.flags & (SYN | RST | ACK) != ACK:
            return False
        if flow and flow.state not in ("embryonic", "closing"):
            return False
        cookie, isn = (found.ack - 1) % 2**32, (found.seq - 1) % 2**32
        ports = (ends.sport, ends.dport)
        return not cookie >> 7 & 1 and cookie == synack.signed(
            self.cookie_key, ends.src, ports, isn, 0, cookie & 0xFF
        )

    def _synack(self, case: Case, target: Target, ends: Ends) -> tuple[int, bytes]:
        """The cookie and the options of the answer to a SYN. Time stands still."""
        found = case.read
        length = (found.packet[found.at + 12] >> 4) * 4
        said = synack.said_in(found.packet[found.at + 20 : found.at + length])
        cookie = synack.number(
            self.cookie_key, ends.src, (ends.sport, ends.dport), found.seq, said, 0
        )
        mss = synack.ANNOUNCED[found.version] - synack.TAKES[target.forward]
        at = found.l3 + (20 if found.version == 4 else 40) + 28
        return cookie, synack.answered(said, mss, case.choices.clock(at))

    def _challenge_to(self, target: Target, ends: Ends) -> int:
        """Time stands still, so it is always the same."""
        keys, asked = self.flows.keys, (ends.src, ends.sport, ends.dport)
        return challenge_hash(keys.key, keys.mul1, asked, target.number, 0)

    def _bind(self, case: Case, target: Target, ends: Ends) -> None:
        """nat, fullnat: as from and to whom the packet goes on, and how the answers come back."""
        flow, member = case.flow, case.member
        if flow is None or member is None:
            raise RefusedError("no-flow")
        if not case.read.quote:
            frame = case.read.frame
            flow.back = frame[6:12] + frame[:6] + frame[12 : case.read.l3 - 2]
        src, sport = ends.src, ends.sport
        if target.forward == "fullnat":
            if not self.ports.keeps(flow):
                chosen = case.choices.port(flow)
                if not self.ports.give(flow, chosen, self.now):
                    raise IllegalError(f"the port {chosen} is not free for {flow.ends}")
            if flow.port is None:
                raise RefusedError("no-port")
            src, sport = self.ports.sources[flow.port[0]], flow.port[1]
        case.to = Ends(src, sport, member.address, member.port or ends.dport, ends.protocol)

    def _from_backend(self, case: Case, ends: Ends) -> None:
        """nat, fullnat: an answer, which goes back as from the VIP; else it is the host's."""
        number = self.ports.number_of(ends.dst)
        if number is not None:
            flow = self._answered_by_fullnat(case, (number, ends.dport), ends)
        else:
            flow = self._answered_by_nat(ends)
        case.is_reply, case.flow, case.member, case.target = True, flow, flow.member, flow.target
        if not is_sound(case.read):
            raise RefusedError("malformed")
        if not case.read.quote:
            flow.replied(case.read, self.now)
        own = flow.ends
        case.to = Ends(own.dst, own.dport, own.src, own.sport, own.protocol)

    def _answered_by_fullnat(self, case: Case, port: tuple[int, int], ends: Ends) -> Flow:
        """A backend may send to the ports that it was sent from, whatever became of the flow."""
        server = self.ports.server_of(ends.src, ends.sport, ends.protocol)
        holder = self.ports.holders.get((server, port))
        if holder is None or holder.protocol != ends.protocol:
            raise RefusedError("not-vip")
        member = holder.member
        if (ends.src, ends.sport) != (member.address, member.port or holder.vip_port):
            raise RefusedError("not-vip")
        flow = self.ports.flow_at(server, port)
        if flow:
            return flow
        if case.read.quote:
            raise RefusedError("not-vip")
        if not is_sound(case.read):
            raise RefusedError("malformed")
        case.is_over = True
        raise RefusedError("no-flow")

    def _answered_by_nat(self, ends: Ends) -> Flow:
        origin = self.directory.origin_of(ends.src, ends.sport, ends.protocol)
        if origin and self.directory.vip_of(ends.dst) is None:
            target, member, port = origin
            vip = str(target.network.network_address)
            asked = Ends(ends.dst, ends.dport, vip, port, ends.protocol)
            flow = self.flows.find(target, asked)
            if flow and flow.member is member:
                return flow
        raise RefusedError("not-vip")

    # -- as what

    def _send(self, case: Case) -> bytes:
        found, target, member = case.read, case.target, case.member
        assert target is not None
        assert member is not None
        if target.forward == "dsr":
            return write.plain(found, member.head)
        if found.ttl <= 1:
            raise RefusedError("ttl-exceeded")
        more = write.outer_length(member, target.forward)
        if not case.is_reply and found.total + more > member.mtu:
            raise RefusedError("too-big")
        if not target.is_nat:
            return write.tunnelled(found, member, target.forward)
        assert case.to is not None
        head = case.flow.back if case.is_reply and case.flow else member.head
        if found.quote:
            hides = target.forward == "fullnat" and not case.is_reply
            return write.requoted(found, case.to, head, hides_source=hides)
        return write.rewritten(found, case.to, head)
