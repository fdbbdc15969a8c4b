"""Who takes part in the tests of ICMP errors, and what they say to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from agent.model import Forward, Protocol
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC, CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.pieces import framed, icmp, quoted
from tests.packet.wires import Packet

MTU = 1400
NATS = (Forward.NAT, Forward.FULLNAT)


@dataclass(frozen=True)
class Place:
    """Who takes part, of one family."""

    vip: str
    client: str
    server: str
    own: str
    router: str
    too_big: tuple[int, int, int]
    unreachable: tuple[int, int, int]  # port

    @property
    def l4(self) -> int:
        """Where transport headers begin in a frame."""
        return 14 + (20 if ":" not in self.vip else 40)


V4 = Place(VIP4, CLIENT4, "10.1.2.3", BALANCER4, "192.0.2.1", (3, 4, MTU), (3, 3, 0))
V6 = Place(VIP6, CLIENT6, "fd00:1::2:3", BALANCER6, "2001:db8:f::1", (2, 0, MTU), (1, 4, 0))
PLACES = pytest.mark.parametrize("at", [V4, V6], ids=["v4", "v6"])
TRANSPORTS = pytest.mark.parametrize("flags", ["S", None], ids=["tcp", "udp"])


def serve(rig: Rig, at: Place, forward: Forward = Forward.DSR, flags: str | None = "S",
          **more: object) -> None:  # fmt: skip
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    web = service(
        backend("a", at.server, port=8080 if forward in NATS else None),
        vip=at.vip, forward=forward, protocol=protocol,
    )  # fmt: skip
    rig.serve(web, **more)


def asked_of(at: Place, flags: str | None = "S", **fields: object) -> Packet:
    return Packet(at.client, at.vip, flags=flags, **fields)


def answer_to(asked: Packet, **fields: object) -> Packet:
    """What the client gets, somewhere on its way: long enough to be worth an error."""
    flags = None if asked.flags is None else "PA"
    return asked.reply(bytes(range(256)) * 5, flags, **{"ttl": 60, "ident": 77, **fields})


def sent(rig: Rig, packet: bytes, verdict: Verdict = Verdict.TX) -> bytes:
    done = rig.send(framed(packet))
    assert done.verdict == verdict
    return done.data


def passes(rig: Rig, packet: bytes) -> bool:
    done = rig.send(framed(packet))
    return (done.verdict, done.data) == (Verdict.PASS, framed(packet))


def sport_of(frame: bytes, at: Place) -> int:
    return int.from_bytes(frame[at.l4 : at.l4 + 2])


def to_backend(rig: Rig, packet: bytes) -> bytes:
    return framed(packet, mac_of(rig.address_of("a")), BALANCER_MAC)


def error_of(kind: tuple[int, int, int], transport: int = 8) -> Callable[[str, str, Packet], bytes]:
    """Makes an ICMP error from one to another about a packet."""
    return lambda src, dst, about: icmp(src, dst, *kind, quoted(about.ip, transport))
