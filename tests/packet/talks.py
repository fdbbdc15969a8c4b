"""A client and a server that talk over TCP, as the balancer sees it: in dsr the client's packets
alone, in nat the server's as well.
"""

from __future__ import annotations

import time

import pytest

from agent.dataplane.abi import FlowState, Talk
from agent.model import Forward
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pauses import packet_sent
from tests.packet.wires import Packet

SERVER = "10.1.2.3"
SERVER6 = "fd00::1:2:3"
RTT_US = 1000

MODES = pytest.mark.parametrize("forward", [Forward.DSR, Forward.NAT], ids=["dsr", "nat"])
FEW = 128  # so few bytes can be no answer for longer
LATE_MS = 500.0  # no bytes that are no answer come so late
POST = b"POST /v1/completions HTTP/1.1\r\n\r\n" + b"x" * 465  # 498 bytes
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 600\r\n\r\n" + b"y" * 600


def delayed_ms(forward: Forward, size: int) -> int:
    """How much longer bytes can be no answer where only their acknowledgement is seen."""
    return 40 if forward is Forward.DSR and size > FEW else 0


def serve(rig: Rig, forward: Forward, **more: object) -> None:
    """One backend, ``a``, of a service that counts what waits."""
    rig.serve(service(backend("a", SERVER), forward=forward, **more))


def serve6(rig: Rig, forward: Forward, **more: object) -> None:
    """The same over IPv6."""
    rig.serve(service(backend("a", SERVER6), vip=VIP6, forward=forward, **more))


def opened(rig: Rig, forward: Forward, **wire: int) -> Wire:
    """A connection whose handshake is done."""
    serve(rig, forward)
    return Wire(rig, **wire).open()


class Wire:
    """One connection. ``seq`` and ``sent``: the next byte of the client, of the server."""

    def __init__(
        self, rig: Rig, sport: int = 40_000, seq: int = 1000, sent: int = 7_000_000
    ) -> None:
        self.rig = rig
        self.sport = sport
        self.seq = seq
        self.sent = sent
        self.acked = sent  # by the client
        self.at_ns = time.monotonic_ns()  # of the newest packet
        forward = rig.config.services[0].forward
        self.is_nat = forward is Forward.NAT
        is_v6 = rig.config.services[0].key.vip.version == 6
        self.ends = (CLIENT6, VIP6, SERVER6) if is_v6 else (CLIENT4, VIP4, SERVER)

    # -- packets

    def client(
        self, flags: str = "A", payload: bytes = b"", *, seq: int | None = None,
        ack: int | None = None,
    ) -> None:  # fmt: skip
        """A packet of the client's: the next, unless ``seq`` says which."""
        client, vip, _ = self.ends
        packet = Packet(
            client, vip, self.sport, 80, payload, flags,
            self.seq if seq is None else seq, (self.acked if ack is None else ack)
            if "A" in flags else 0,
        )  # fmt: skip
        self.send(packet)
        if seq is None:
            self.seq = (self.seq + len(payload) + ("S" in flags) + ("F" in flags)) % 2**32

    def server(self, payload: bytes = b"", flags: str = "PA", *, seq: int | None = None) -> None:
        """A packet of the server's: seen where answers pass."""
        if self.is_nat:
            client, _, server = self.ends
            packet = Packet(
                server, client, 80, self.sport, payload, flags,
                self.sent if seq is None else seq, self.seq,
            )  # fmt: skip
            self.send(packet)
        if seq is None:
            self.sent = (self.sent + len(payload) + ("S" in flags) + ("F" in flags)) % 2**32

    def send(self, packet: Packet) -> None:
        assert self.rig.verdict(packet.frame()) == Verdict.TX
        self.at_ns = packet_sent(self.rig, self.at_ns)

    def acknowledge(self) -> None:
        """The client has got all that the server has sent, and says so."""
        self.acked = self.sent
        self.client("A")

    def gets(self, payload: bytes) -> None:
        """The server sends, and the client acknowledges."""
        self.server(payload)
        self.acknowledge()

    def open(self) -> Wire:
        """The handshake, which took a millisecond."""
        self.client("S")
        self.server(flags="SA")
        self.acknowledge()
        self.warm_set("rtt_us", RTT_US)
        return self

    def ask(self, payload: bytes, flags: str = "PA") -> Wire:
        """Bytes of the client's."""
        self.client(flags, payload)
        return self

    # -- time

    def warm_set(self, field: str, value: int) -> None:
        self.rig.tables.flows_warm[field][self.index] = value

    def after(self, ms: float) -> Wire:
        """As if the newest request byte had come so long ago."""
        self.at_ns = time.monotonic_ns()
        self.warm_set("request", self.at_ns - round(ms * 1e6))
        self.warm_set("request_jiffies", 0)
        return self

    # -- what is recorded

    @property
    def index(self) -> int:
        found = self.rig.slot(self.ends[0], self.sport)
        assert found is not None, "the flow is not recorded"
        return found.index

    @property
    def waiting(self) -> int:
        """Bytes that wait: of the flow, which are those of the backend."""
        held = int(self.rig.tables.flows_warm["waiting"][self.index])
        assert self.rig.load_of("a")["waiting"] == held
        found = self.rig.slot(self.ends[0], self.sport)
        assert found is not None
        assert found.awaits == bool(held)
        return held

    @property
    def state(self) -> FlowState:
        return self.rig.state(self.ends[0], self.sport)

    @property
    def talk(self) -> Talk:
        return Talk(int(self.rig.tables.flows_warm["talk"][self.index]))

    @property
    def answers(self) -> int:
        """Answers that the backend has begun; each is in the histogram."""
        count = self.rig.counts("a").answers
        assert self.rig.latency("a")["first_byte"].sum() == count
        return count
