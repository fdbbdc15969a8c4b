"""Two data planes as two nodes of a pair: what one records, the other is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

import numpy as np

from agent.dataplane import contents
from agent.dataplane.constants import HashKeys
from agent.flowsync.export import SYNCED, Exporter
from agent.flowsync.identity import from_plain, id_map, to_plain
from agent.flowsync.install import Arrival, Installer, Outcome, account
from agent.flowsync.ledger import Ledger
from agent.flowsync.records import Records, from_bytes, joined, to_bytes
from agent.flowsync.view import View, view_of
from agent.model import Forward, Nat, Protocol, Scheduler, Service, Tables
from tests.packet.frames import BALANCER_MAC, CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

MAC = np.frombuffer(bytes.fromhex(BALANCER_MAC.replace(":", "")), dtype=np.uint8)

KEYS = HashKeys(0x0F1E_2D3C_4B5A_6978, 0xD6E8_FEB8_6659_FD93, 0xA076_1D64_78BD_642F)
OTHER = Tables(flows=16_384, services=8, backends=64, ring_slots=251)
SOURCES4 = (ip_address("10.0.0.5"), ip_address("10.0.0.6"))
SOURCES6 = (ip_address("fd00::5"), ip_address("fd00::6"))
NAT = Nat(sources_v4=SOURCES4, sources_v6=SOURCES6)
FLOWS = 24


def view(rig: Rig) -> View:
    """What flow sync knows of a data plane."""
    held, dataplane = contents.read(rig.tables), rig.dataplane
    return view_of(rig.tables, held, dataplane.keys, dataplane.clock)


@dataclass
class Node:
    """One end: a data plane, what it knows of the other end, and both halves of flow sync."""

    rig: Rig
    ledger: Ledger
    exporter: Exporter
    installer: Installer

    def changed(self) -> Records:
        return self.exporter.changed(view(self.rig), self.jiffies())

    def named(self, slots: np.ndarray) -> Records:
        return self.exporter.named(view(self.rig), self.jiffies(), slots)

    def everything(self, states: frozenset[int] = SYNCED) -> Records:
        return joined(list(self.exporter.everything(view(self.rig), self.jiffies(), states)))

    def take(self, told: Records, *, elsewhere: bool = False) -> Outcome:
        """Take records as they come over the wire; ``elsewhere``: the other node has the VIPs."""
        rig = self.rig
        arrival = Arrival(rig.dataplane.ifindex, MAC, elsewhere)
        told = from_bytes(to_bytes(told))
        done = self.installer.install(view(rig), told, self.jiffies(), arrival)
        account(rig.tables, done)
        return done

    def jiffies(self) -> int:
        return self.rig.dataplane.now_jiffies()


def pair(a: Rig, b: Rig) -> tuple[Node, Node]:
    """Two nodes that have met; their services are what they are now."""

    def node(own: Rig, other: Rig) -> Node:
        ledger = Ledger(len(own.tables.flows))
        theirs = from_plain(to_plain(view(other).ids))
        ids = id_map(theirs, view(own).ids)
        return Node(own, ledger, Exporter(ledger), Installer(ledger, ids))

    return node(a, b), node(b, a)


@dataclass(frozen=True)
class Case:
    """A service, and the address and port that clients talk to."""

    service: Service
    vip: str
    port: int

    @property
    def is_udp(self) -> bool:
        return self.service.key.protocol is Protocol.UDP

    def client(self, number: int) -> Packet:
        """The first packet of a client."""
        source = CLIENT4 if ip_address(self.vip).version == 4 else CLIENT6
        flags = None if self.is_udp else "S"
        return Packet(source, self.vip, 20_000 + number, self.port, flags=flags)

    def goes_on(self, number: int) -> Packet:
        first = self.client(number)
        if self.is_udp:
            return first
        return replace(first, flags="A", payload=b"GET /", seq=1001, ack=7001)

    def begin(self, rig: Rig, number: int) -> bytes:
        """A client's first packet, which is given back as its backend gets it; where answers
        pass, one follows.
        """
        first = self.client(number)
        out = rig.send(first.frame()).data
        if self.service.forward.is_nat:
            more = {} if self.is_udp else {"flags": "SA", "payload": b"", "seq": 7000}
            assert rig.verdict(answer(first, out, **more).frame()) == Verdict.TX
        return out


def answer(sent: Packet, out: bytes, **changes: object) -> Packet:
    """What the backend answers to what it got."""
    l3 = out[14:]
    is_ipv4 = l3[0] >> 4 == 4
    ends = (l3[12:16], l3[16:20]) if is_ipv4 else (l3[8:24], l3[24:40])
    l4 = l3[20:] if is_ipv4 else l3[40:]
    src, dst = (str(ip_address(end)) for end in ends)
    sport, dport = int.from_bytes(l4[:2]), int.from_bytes(l4[2:4])
    flags = None if sent.flags is None else "PA"
    whole = Packet(dst, src, dport, sport, b"answer", flags)
    return replace(whole, **changes)  # type: ignore[arg-type]


def connected(rig: Rig, first: Packet) -> Packet:
    """Send a client's SYN, and the SYN-ACK where answers pass; returns the client's next packet."""
    out = rig.send(first.frame()).data
    if rig.config.services[0].forward.is_nat:
        syn_ack = answer(first, out, flags="SA", payload=b"", seq=7000)
        assert rig.verdict(syn_ack.frame()) == Verdict.TX
    return replace(first, flags="A", seq=first.seq + 1, ack=7001)


def case(forward: Forward, family: int, form: str = "port") -> Case:
    vip, port = (VIP4 if family == 4 else VIP6), 80
    given: dict[str, object] = {"port": 80}
    if form == "any":
        given, port = {"port": 0}, 4711
    elif form == "range":
        given, port = {"port": 8000, "port_last": 8010}, 8007
    elif form == "prefix":
        vip, net = ("203.0.113.37", "203.0.113.32") if family == 4 else ("2001:db8::25",) * 2
        given |= {"vip_bits": 28 if family == 4 else 124}
        vip_net = net if family == 4 else "2001:db8::20"
        return Case(_service(forward, family, vip=vip_net, **given), vip, port)
    elif form == "udp":
        given |= {"protocol": Protocol.UDP}
    return Case(_service(forward, family, vip=vip, **given), vip, port)


def _service(forward: Forward, family: int, **given: object) -> Service:
    servers = (f"10.1.2.{n}" if family == 4 else f"fd00:1::{n}" for n in range(1, 6))
    backends = (backend(name, next(servers)) for name in "abcde")
    return service(*backends, forward=forward, scheduler=Scheduler.MAGLEV, **given)


def serve(rig: Rig, other: Rig, *cases: Case) -> tuple[Node, Node]:
    """The same services on both, under other ids; the other draws from other rings."""
    services = [each.service for each in cases]
    rig.serve(*services, nat=NAT)
    strange = service(*(backend(f"x{n}") for n in range(3)), name="x", vip="203.0.113.99")
    more = service(backend("y", "10.2.0.1"), backend("z", "fd00:2::99"), name="y", port=81,
                   forward=Forward.FULLNAT)  # fmt: skip
    other.serve(strange, more, nat=Nat(sources_v4=SOURCES4[1:], sources_v6=SOURCES6[1:]))
    turned = [replace(each, backends=each.backends[::-1]) for each in services]
    other.serve(strange, more, *turned, nat=NAT)
    return pair(rig, other)


def opened(rig: Rig, case: Case, count: int = FLOWS) -> dict[int, str]:
    """Flows that have carried payload; the backend of each."""
    for number in range(count):
        case.begin(rig, number)
        rig.send(case.goes_on(number).frame())
    return where(rig, case, range(count))


def where(rig: Rig, case: Case, numbers: range) -> dict[int, str]:
    return {number: rig.backend_of(case.goes_on(number).frame()) for number in numbers}
