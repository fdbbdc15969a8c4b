"""What clients, backends and routers send, in a random order, and what befalls the backends."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

from tests.packet.cookies import LINUX, WINDOWS, mss_option, timestamps
from tests.packet.frames import ROUTER_MAC
from tests.packet.model.flows import SYN
from tests.packet.model.mirror import Mirror
from tests.packet.model.mutations import mutated
from tests.packet.model.read import TCP_NUMBER, Ends, read
from tests.packet.model.services import Target
from tests.packet.pieces import (
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    extended,
    extension,
    fragments,
    framed,
    icmp,
    quoted,
)
from tests.packet.wires import Packet, Tags, cancelling

CLIENTS = {4: ("198.51.100.7", "198.51.100.8", "192.0.2.200", "10.200.0.1"),
           6: ("2001:db8:c::7", "2001:db8:c::8", "2001:db8:d::1")}  # fmt: skip
ROUTERS = {4: "192.0.2.1", 6: "2001:db8:f::1"}
MACS = (ROUTER_MAC, "02:00:00:00:00:77")
PORTS = (1024, 40_000, 40_001, 50_123, 65_535)
TAGS: tuple[Tags, ...] = ((), (), (), (), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 100)))
FLAGS = ("S",) * 6 + ("A",) * 4 + ("PA",) * 6 + ("FA", "FA", "R", "RA", "SA", "SPA", "F", "SF")
REPLIES = ("SA", "SA", "A", "PA", "PA", "PA", "FA", "RA", "R")
TTLS = (64,) * 25 + (255, 2, 1, 0)
LENGTHS = (0, 0, 1, 9, 10, 100, 101, 500, 700)
ERRORS = {4: ((3, 1), (3, 3), (3, 4), (4, 0), (11, 0), (12, 0), (5, 0), (8, 0)),
          6: ((1, 0), (1, 4), (2, 0), (3, 0), (4, 0), (5, 0), (128, 0))}  # fmt: skip
# RFC 791, section 3.1: nothing, more of it, the end, record route, loose and strict source route
OPTIONS = (b"\1" * 4, b"\1" * 4, b"\1" * 12, b"\1" * 40, bytes(4), b"\7\7\4\0\0\0\0\0",
           b"\1\x83\3\4", b"\7\7\4\0\0\0\0\1\x89\7\4\x0a\0\0\1\0")  # fmt: skip
# What SYNs come with: as Linux and Windows send them, and what nobody sends.
TCP_OPTIONS = (LINUX, LINUX, WINDOWS, mss_option(536), mss_option(8960) + b"\1" * 8, b"\1" * 40,
               timestamps(5) + b"\3\3\xff\0", b"\3\0\1\1", b"\2\4\5\xb4" * 9,
               LINUX + LINUX)  # fmt: skip
STRANGE = {4: ("127.0.0.1", "0.1.2.3", "224.0.0.1", "255.255.255.255"),
           6: ("::1", "::ffff:192.0.2.1", "ff02::1")}  # fmt: skip
MOST = 40  # of each kind are remembered


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A packet of a client as it came, and as a backend of nat or fullnat got it."""

    target: Target
    asked: Packet
    packet: bytes
    ends: Ends

    @property
    def seen(self) -> Packet:
        """As the backend sees it."""
        ends = self.ends
        return replace(self.asked, src=ends.src, dst=ends.dst, sport=ends.sport, dport=ends.dport)


class History:
    """One random history; the same for the same seed."""

    def __init__(
        self, mirror: Mirror, seed: int, tags: tuple[Tags, ...] = TAGS, shortest: int = 14
    ) -> None:
        self.mirror = mirror
        self.tags = tags  # that frames come with
        self.shortest = shortest  # bytes of a frame
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.sent = 0
        self._asked: deque[tuple[Target, Packet]] = deque(maxlen=MOST)
        self._forwarded: deque[Forwarded] = deque(maxlen=MOST)
        self._frames: deque[bytes] = deque([b"\0" * 60], maxlen=MOST)
        self._waiting: list[bytes] = []  # pieces of packets
        self._challenged: deque[bytes] = deque(maxlen=MOST)  # what was answered to SYNs
        self._down: set[str] = set()
        mirror.guard((), {"good": ("0.0.0.0/0", "::/0"), "bad": ()})
        # what happens, and how often
        self._events: dict[Callable[[], None], float] = {
            self._client: 36, self._reply: 24, self._client_error: 8, self._backend_error: 8,
            self._piece: 12, self._pieces: 3, self._zero: 1, self._mutant: 10, self._backend: 2,
            self._service: 0.5, self._hold: 0.5, self._time: 0.1, self._reconfigure: 0.05,
            self._obey: 0.5, self._forget: 0.1, self._guard: 0.2,
        }  # fmt: skip

    def play(self, packets: int) -> None:
        """Until so many packets were sent."""
        events, weights = [*self._events], [*self._events.values()]
        end = self.sent + packets
        while self.sent < end:
            for event in self.draw.choices(events, weights, k=50):
                event()

    def _one(self, chance: float) -> bool:
        return self.draw.random() < chance

    # -- clients

    def _client(self) -> None:
        target, packet = self._packet()
        frame = self._send(self._varied(packet))
        if frame:
            self.done[f"{target.forward}{4 if packet.is_ipv4 else 6}"] += 1
            self._asked.append((target, packet))
            if target.is_nat:
                self._note(target, packet, frame)

    def _packet(self) -> tuple[Target, Packet]:
        """Of a connection that there is, or of another."""
        draw = self.draw
        if self._asked and self._one(0.6):
            target, packet = draw.choice(self._asked)
        else:
            target = draw.choice(self.mirror.targets)
            net = target.network
            packet = Packet(
                self._source(net.version),
                str(net[draw.randrange(min(4, net.num_addresses))]),
                draw.choice(PORTS),
                draw.choice((target.first or 7, min(target.last, (target.first or 7) + 3))),
            )
        is_tcp = target.protocol == TCP_NUMBER
        packet = replace(packet, flags=draw.choice(FLAGS) if is_tcp else None, **self._fields())
        if is_tcp and self._one(0.7):
            packet = self._in_place(target, packet)
        return target, self._filled(packet)

    def _source(self, version: int) -> str:
        """A client's address, rarely one that no client has."""
        draw = self.draw
        if not self._one(0.02):
            return draw.choice(CLIENTS[version])
        networks = [t.network for t in self.mirror.targets if t.network.version == version]
        return draw.choice((*STRANGE[version], *(str(net[0]) for net in networks)))

    def _in_place(self, target: Target, packet: Packet) -> Packet:
        """Where its connection is, if it is known: at the next byte, or near it, and with what the
        server has said last.
        """
        ends = Ends(packet.src, packet.sport, packet.dst, packet.dport, TCP_NUMBER)
        flow = self.mirror.model.flows.find(target, ends)
        if flow and flow.seq is not None:
            away = self.draw.choice((0, 0, 0, 1, 2, -1, 1000, 2**16, 2**16 + 1, 2**20))
            packet = replace(packet, seq=(flow.seq + away) % 2**32)
        if flow and flow.told is not None:
            packet = replace(packet, ack=flow.told)
        return packet

    def _fields(self) -> dict[str, Any]:
        draw = self.draw
        return {
            "ttl": draw.choice(TTLS), "tos": draw.choice((0, 0, 0xB9, 3)),
            "ident": draw.randrange(65_536), "seq": draw.getrandbits(32),
            "ack": draw.getrandbits(32), "label": draw.choice((0, 0xABCDE)),
        }  # fmt: skip

    def _filled(self, packet: Packet) -> Packet:
        draw = self.draw
        length = draw.choice(LENGTHS)
        if packet.flags == "S" and not self._one(0.1):
            length = 0
        packet = replace(packet, payload=draw.randbytes(length), unsummed=False, trailer=b"",
                         ip_options=b"", options=b"")  # fmt: skip
        if packet.flags and "S" in packet.flags and self._one(0.6):
            packet = replace(packet, options=draw.choice(TCP_OPTIONS))
        if packet.is_ipv4 and self._one(0.06):
            packet = replace(packet, ip_options=draw.choice(OPTIONS))
        if packet.flags is None:
            match draw.randrange(12):
                case 0:
                    packet = replace(packet, unsummed=True)
                case 1:
                    packet = replace(packet, payload=cancelling(packet))
                case 2:
                    packet = replace(packet, trailer=b"behind")
        return packet

    def _varied(self, packet: Packet) -> bytes:
        """On the wire, maybe with extension headers."""
        if packet.is_ipv4 or not self._one(0.15):
            return packet.ip
        kinds = (HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION)
        chosen = self.draw.choices(kinds, k=self.draw.choice((1, 1, 2, 3, 6, 7)))
        return extended(packet.ip, *(extension(kind, self._length(kind)) for kind in chosen))

    def _length(self, kind: int) -> int:
        return 8 if kind == FRAGMENT else self.draw.choice((8, 8, 16, 64))

    def _send(self, packet: bytes, src: str = "") -> bytes:
        """The frame that went to a backend or a client; empty: none did."""
        frame = framed(packet, src=src or self.draw.choice(MACS), tags=self.draw.choice(self.tags))
        return self._put(frame)

    def _put(self, frame: bytes) -> bytes:
        self.sent += 1
        if len(frame) < self.shortest:
            return b""
        self._frames.append(frame)
        outcome = self.mirror.send(frame)
        if outcome.reason == "challenged" and outcome.answers:
            self._challenged.append(outcome.frame)
        return b"" if outcome.reason else outcome.frame

    def _note(self, target: Target, packet: Packet, frame: bytes) -> None:
        found = read(frame)
        if found.ends:
            self._forwarded.append(Forwarded(target, packet, found.packet, found.ends))

    def _zero(self) -> None:
        """Datagrams whose checksums come out as zero on the other side."""
        one = self.draw.choice(self._forwarded) if self._forwarded else None
        if one is None or one.target.protocol == TCP_NUMBER:
            return
        plain: dict[str, Any] = {
            "unsummed": False,
            "trailer": b"",
            "ip_options": b"",
            "ttl": 9,
            "payload": b"",
        }
        asked, seen = replace(one.asked, **plain), replace(one.seen, **plain)
        self._send(replace(asked, payload=cancelling(seen)).ip)
        self._send(replace(seen.reply(), payload=cancelling(asked.reply())).ip, MACS[1])

    # -- backends

    def _reply_packet(self) -> Packet | None:
        if not self._forwarded:
            return None
        one = self.draw.choice(self._forwarded)
        flags = self.draw.choice(REPLIES) if one.target.protocol == TCP_NUMBER else None
        packet = one.seen.reply(b"", flags, **self._fields())
        if self._one(0.03):
            packet = replace(packet, src=self.draw.choice(one.target.members).address)
        if self._one(0.03):
            packet = replace(packet, sport=packet.sport ^ 1)
        if self._one(0.03):
            packet = replace(packet, dport=packet.dport ^ 1)
        return self._filled(packet)

    def _reply(self) -> None:
        packet = self._reply_packet()
        if packet and self._send(self._varied(packet), MACS[1]):
            self.done["reply"] += 1

    # -- errors

    def _error(self, src: str, about: bytes, to: str) -> bytes:
        draw = self.draw
        version = 6 if ":" in to else 4
        kind, code = draw.choice(ERRORS[version])
        body = quoted(about, draw.choice((4, 8, 8, 12, 20, 30, 200)))
        packet = icmp(src, to, kind, code, draw.choice((0, 1400)), body, ttl=draw.choice(TTLS))
        if version == 6 and self._one(0.1):
            return extended(packet, extension(DESTINATION))
        return packet

    def _client_error(self) -> None:
        """About what the client was sent."""
        _, packet = self.draw.choice(self._asked) if self._asked and self._one(0.8) else (
            self._packet())  # fmt: skip
        about = packet.reply(b"x" * self.draw.choice((0, 50)), ident=77)
        src = self.draw.choice((packet.src, ROUTERS[4 if packet.is_ipv4 else 6]))
        if self._send(self._error(src, about.ip, packet.dst)):
            self.done["client-error"] += 1

    def _backend_error(self) -> None:
        """About what a backend was sent."""
        if not self._forwarded:
            return
        one = self.draw.choice(self._forwarded)
        src = self.draw.choice((one.ends.dst, ROUTERS[6 if ":" in one.ends.dst else 4]))
        if self._send(self._error(src, one.packet, one.ends.src), MACS[1]):
            self.done["backend-error"] += 1

    # -- fragments

    def _pieces(self) -> None:
        packet = self._reply_packet() if self._one(0.5) else None
        packet = packet or self._packet()[1]
        whole = replace(packet, payload=self.draw.randbytes(self.draw.choice((30, 150, 400))))
        pieces = fragments(self._varied(whole), self.draw.choice((24, 64, 160)),
                           self.draw.randrange(4))  # fmt: skip
        if self._one(0.2):
            self.draw.shuffle(pieces)
        self._waiting[:0] = [framed(piece, src=self.draw.choice(MACS)) for piece in pieces[::-1]]

    def _piece(self) -> None:
        if self._waiting and self._put(self._waiting.pop()):
            self.done["fragment"] += 1

    # -- what else there is

    def _mutant(self) -> None:
        self._put(mutated(self.draw, self.draw.choice(self._frames)))

    def _backend(self) -> None:
        """Drained, gone, or back."""
        names = [name for name in self.mirror.members if name not in self._down]
        alive, usable = self.draw.choice(
            ((True, True), (True, True), (True, False), (False, False))
        )
        self.mirror.set_backend(self.draw.choice(names), alive=alive, usable=usable)

    def _obey(self) -> None:
        """A client resets what it has not asked for, or ends its handshake; a stranger guesses."""
        if not self._challenged:
            return
        told = read(self.draw.choice(self._challenged))
        assert told.ends is not None
        ends, seq = told.ends, int.from_bytes(told.packet[told.at + 8 : told.at + 12])
        if self._one(0.2):
            seq ^= 1 << self.draw.randrange(32)
        there = (ends.dst, ends.src, ends.dport, ends.sport)
        if not told.packet[told.at + 13] & SYN:
            self._send(Packet(*there, flags="R", seq=seq).ip)
            return
        ack = int.from_bytes(told.packet[told.at + 4 : told.at + 8]) + 1
        flags, data = self.draw.choice((("A", b""), ("A", b""), ("PA", b"GET"), ("FA", b"")))
        packet = Packet(*there, payload=data, flags=flags, seq=seq, ack=ack)
        if self._send(packet.ip):
            self.done["cookie"] += 1

    def _forget(self) -> None:
        self.mirror.forget_sources()

    def _guard(self) -> None:
        """The operator blocks somebody, or changes lists; most of the time nobody is unwanted."""
        few = {kind: self._some() if self._one(0.3) else () for kind in ("blocked", "bad")}
        good = self._some() if self._one(0.3) else ("0.0.0.0/0", "::/0")
        self.mirror.guard(few["blocked"], {"good": good, "bad": few["bad"]})

    def _some(self) -> tuple[str, ...]:
        """Clients, or the networks that they are in."""
        clients = [client for each in CLIENTS.values() for client in each]
        chosen = self.draw.sample(clients, self.draw.choice((1, 1, 2)))
        lengths = {4: (32, 32, 31, 24, 17, 9), 6: (128, 128, 127, 64, 48, 33)}
        return tuple(
            str(ip_network(f"{client}/{self.draw.choice(lengths[6 if ':' in client else 4])}",
                           strict=False))
            for client in chosen
        )  # fmt: skip

    def _service(self) -> None:
        """All backends of a service at once."""
        usable = self._one(0.6)
        for member in self.draw.choice(self.mirror.targets).members:
            if member.name not in self._down:
                self.mirror.set_backend(member.name, alive=True, usable=usable)

    def _hold(self) -> None:
        """A handover begins or ends."""
        self.mirror.held = self._one(0.1)

    def _time(self) -> None:
        self.mirror.pass_time(self.draw.choice((1, 1, 2, 3)))

    def _reconfigure(self) -> None:
        names = [*self.mirror.members]
        self._down = set(self.draw.sample(names, self.draw.randrange(len(names) // 3)))
        self.mirror.reconfigure(self._down)
