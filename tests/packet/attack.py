"""What attackers send, and honest clients beside them: how many of these are served?

Time goes in round trips. In each of them the attackers send so many packets for each bucket of the
flow table, every honest client goes one step on, and some more begin. A client whose packet is lost
sends it again in the next round trip, a few times.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from agent.dataplane import libbpf, pins
from agent.dataplane.abi import FlowState
from agent.model import Config, Forward, Protocol, Scheduler, SynProtection
from tests.packet import nodes, wrapper
from tests.packet.frames import ROUTER_MAC, VIP4
from tests.packet.harness import (
    SMALL,
    Rig,
    Verdict,
    all_features,
    backend,
    instance_name,
    load,
    service,
)
from tests.packet.pieces import fragments, framed
from tests.packet.wires import Packet

BACKENDS = ("a", "b", "c")
STRANGERS = 0x0B000000  # from 11.0.0.0 on
HONEST = "192.0.2.{}"
TRIES = 5
ROUTER = bytes.fromhex(ROUTER_MAC.replace(":", ""))
ESTABLISHED = 100
ISN, SERVER_ISN = 1000, 7000
REQUEST, ANSWER = b"POST /v1/completions".ljust(400), b"HTTP/1.1 200 OK".ljust(200)
UDP_PORT = 53
WENT = (Verdict.TX, Verdict.REDIRECT)

type Act = Callable[[Rig, "Field"], None]


@dataclass(frozen=True, slots=True)
class Flood:
    """Packets like this one, from ever new strangers; ``each``: in a row of one, ``ports``: so many
    strangers share an address.
    """

    frame: bytes
    each: int = 1
    ports: int = 1


def whose(rig: Rig, out: bytes) -> str | None:
    """The backend that gets the frame; None: it is an answer to the client."""
    return None if out[:6] == ROUTER else rig.name_of_mac(out[:6])


@dataclass
class Connection:
    """An honest client's: it connects, asks, is answered, and ends it."""

    packet: Packet  # that it sends next
    backend: str = ""
    step: int = 0
    tries: int = 0
    is_known: bool = False  # it has shown that it is there
    out: bytes = b""  # its newest packet as the backend got it

    @property
    def is_over(self) -> bool:
        return self.step == 5

    @property
    def is_lost(self) -> bool:
        return self.tries > TRIES

    def go_on(self, rig: Rig) -> None:
        """One step. Where the server's packets pass the balancer, they must come through too."""
        done = rig.send(self.packet.frame())
        if done.verdict not in WENT:
            self.tries += 1
            return
        if self.step == 0 and whose(rig, done.data) is None:
            self._obey(rig, done.data)
            return
        if not self._is_at_its_backend(rig, done.data):
            self.tries = TRIES + 1  # it is reset
            return
        if rig.config.services[0].forward.is_nat and not self._is_answered(rig):
            self.tries += 1
            return
        self.step += 1
        self.packet = self._next()

    def _obey(self, rig: Rig, challenge: bytes) -> None:
        """RFC 9293, section 3.10.7.3: reset what was not asked for, and ask again."""
        rig.send(replace(self.packet, flags="R", seq=int.from_bytes(challenge[42:46])).frame())
        self.tries += self.is_known
        self.is_known = True

    def _is_at_its_backend(self, rig: Rig, out: bytes) -> bool:
        """A SYN may go anywhere. Later, who does not know the connection resets it: a server, or
        the balancer.
        """
        backend = whose(rig, out)
        if backend is None or (self.step and backend != self.backend):
            return False
        self.backend, self.out = backend, out
        return True

    def _is_answered(self, rig: Rig) -> bool:
        if self.step not in (0, 2):
            return True
        said = {"flags": "SA", "payload": b"", "seq": SERVER_ISN, "ack": ISN + 1}
        if self.step == 2:
            said = {"flags": "PA", "payload": ANSWER, "seq": SERVER_ISN + 1,
                    "ack": ISN + 1 + len(REQUEST)}  # fmt: skip
        return rig.verdict(nodes.answer(self.packet, self.out, **said).frame()) in WENT

    def _next(self) -> Packet:
        first = replace(self.packet, flags="A", payload=b"", seq=ISN + 1, ack=SERVER_ISN + 1)
        if self.step == 2:
            return replace(first, flags="PA", payload=REQUEST)
        if self.step > 2:
            first = replace(first, seq=ISN + 1 + len(REQUEST), ack=SERVER_ISN + 1 + len(ANSWER))
        return replace(first, flags="FA") if self.step == 4 else first


@dataclass
class Field:
    """Where it happens, and what has become of everybody."""

    established: list[Connection] = field(default_factory=list)
    at_work: list[Connection] = field(default_factory=list)
    ended: list[Connection] = field(default_factory=list)
    moved: int = 0  # of the established, times that a packet did not come to its backend
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def goodput(self) -> float:
        """The honest clients that were served, as a part of all."""
        return sum(one.is_over for one in self.ended) / len(self.ended)

    @property
    def shares(self) -> dict[str, float]:
        """Of the honest clients, by backend."""
        count = Counter(one.backend for one in self.ended)
        return {name: count[name] / len(self.ended) for name in BACKENDS}


def serve(
    rig: Rig,
    forward: Forward,
    scheduler: Scheduler = Scheduler.LEAST_LOAD,
    *,
    challenges: bool = False,
) -> None:
    """A service of TCP and one of UDP with equal backends."""
    protection = SynProtection.ALWAYS if challenges else SynProtection.OFF
    rig.serve(
        service(*map(backend, BACKENDS), forward=forward, scheduler=scheduler,
                syn_protection=protection),
        service(*(backend(f"{name}-udp") for name in BACKENDS), name="dns", port=UDP_PORT,
                protocol=Protocol.UDP, forward=forward, scheduler=scheduler),
    )  # fmt: skip


def connections(first: int, count: int) -> Iterator[Connection]:
    for number in range(first, first + count):
        address = HONEST.format(1 + number % 250)
        yield Connection(Packet(address, VIP4, 1024 + number % 60_000, seq=ISN))


def happen(
    rig: Rig,
    attack: Flood | Act,
    *,
    density: float,
    round_trips: int,
    clients: int,
) -> Field:
    """``density``: packets of the attackers for each bucket and round trip; ``clients``: honest
    ones that begin in each.
    """
    here = Field()
    for one in connections(0, ESTABLISHED):
        while one.step < 4:
            one.go_on(rig)
            assert not one.tries
        one.packet = replace(one.packet, flags="A")  # it stays
        here.established.append(one)
    volley = _volley(rig, attack, max(1, round(density * rig.dataplane.size.flow_buckets)))
    for number in range(round_trips):
        volley(here)
        here.at_work += connections(ESTABLISHED + number * clients, clients)
        _step(rig, here)
    while here.at_work:
        volley(here)
        _step(rig, here)
    return here


def _volley(rig: Rig, attack: Flood | Act, packets: int) -> Callable[[Field], None]:
    if not isinstance(attack, Flood):
        return lambda here: attack(rig, here)
    flood = wrapper.in_front_of(
        rig.dataplane.program.fd, wrapper.FLOOD, "flood",
        LB_FIRST=f"{STRANGERS:#x}", LB_EACH=str(attack.each), LB_PORTS=str(attack.ports),
    )  # fmt: skip

    def send(_here: Field) -> None:
        libbpf.test_run(flood.fd, attack.frame, repeat=packets)

    return send


def _step(rig: Rig, here: Field) -> None:
    for one in here.established:
        out = rig.send(one.packet.frame())
        is_there = out.verdict in WENT and whose(rig, out.data) == one.backend
        here.moved += not is_there
    for one in here.at_work:
        one.go_on(rig)
    here.ended += [one for one in here.at_work if one.is_over or one.is_lost]
    here.at_work = [one for one in here.at_work if not (one.is_over or one.is_lost)]


# -- what they send


def _tcp(flags: str, **fields: object) -> bytes:
    return Packet("11.0.0.0", flags=flags, seq=ISN + 1, ack=SERVER_ISN + 1, **fields).frame()


def _first_fragment() -> bytes:
    whole = Packet("11.0.0.0", flags=None, dport=UDP_PORT, payload=bytes(400))
    return framed(fragments(whole.ip, 128)[0])


def _later_fragment() -> bytes:
    whole = Packet("11.0.0.0", flags=None, dport=UDP_PORT, payload=bytes(400))
    return framed(fragments(whole.ip, 128)[1])


def _forged(flags: str, payload: bytes = b"") -> Act:
    """In the name of clients whose addresses and ports are known, with any sequence number."""

    def act(rig: Rig, here: Field) -> None:
        for one in here.established:
            for _ in range(3):
                seq, ack = here.draw.getrandbits(32), here.draw.getrandbits(32)
                forged = replace(one.packet, flags=flags, seq=seq, ack=ack, payload=payload)
                rig.send(forged.frame())

    return act


def _client_of(rig: Rig, here: Field) -> Connection:
    """A connection of the attackers' own, established."""
    port = 1024 + here.draw.randrange(60_000)
    own = Connection(Packet("11.9.9.9", VIP4, port, seq=ISN))
    while own.step < 4 and not own.is_lost:
        own.go_on(rig)
    own.packet = replace(own.packet, flags="A")
    return own


def _jumps(rig: Rig, here: Field) -> None:
    """One byte far ahead, of every order of size: it says that so many were sent."""
    for power in range(32):
        own = _client_of(rig, here)
        seq = own.packet.seq + 2**power - 2
        rig.send(replace(own.packet, flags="PA", seq=seq % 2**32, payload=b"x").frame())


def _acknowledges_the_unsent(rig: Rig, here: Field) -> None:
    """Requests that are "answered" at once: the server looks fast."""
    for power in range(32):
        own = _client_of(rig, here)
        rig.send(replace(own.packet, flags="PA", payload=REQUEST).frame())
        seq, ack = own.packet.seq + len(REQUEST), own.packet.ack + 2**power
        rig.send(replace(own.packet, flags="A", seq=seq, ack=ack % 2**32).frame())


def _martians(rig: Rig, here: Field) -> None:
    for source in ("127.0.0.1", "0.0.0.1", "224.0.0.1", "255.255.255.255", VIP4):
        for flags in ("S", "PA", "A"):
            port = 1 + here.draw.randrange(65_535)
            rig.send(Packet(source, sport=port, flags=flags, payload=b"x").frame())


ATTACKS: dict[str, Flood | Act] = {
    "SYN": Flood(_tcp("S")),
    "SYN, one source": Flood(_tcp("S"), ports=60_000),
    "ACK": Flood(_tcp("A")),
    "RST": Flood(_tcp("R")),
    "FIN": Flood(_tcp("FA")),
    "SYN-ACK": Flood(_tcp("SA")),
    "data, three packets each": Flood(_tcp("PA", payload=b"x" * 100), each=3),
    "UDP, two datagrams each": Flood(
        Packet("11.0.0.0", flags=None, dport=UDP_PORT, payload=bytes(64)).frame(), each=2
    ),
    "first fragments": Flood(_first_fragment()),
    "later fragments": Flood(_later_fragment()),
    "forged RST": _forged("R"),
    "forged RST-ACK": _forged("RA"),
    "forged FIN": _forged("FA"),
    "forged data": _forged("PA", bytes(1000)),
    "forged SYN": _forged("S"),
    "jumped sequence numbers": _jumps,
    "acknowledgements of the unsent": _acknowledges_the_unsent,
    "martians": _martians,
}
# With SYN protection.
CHALLENGED = {f"{name}, challenged": ATTACKS[name] for name in ("SYN", "ACK", "SYN-ACK")} | {
    "data, three packets each, challenged": ATTACKS["data, three packets each"]
}
ATTACKS |= CHALLENGED
# A blind FIN is within 64 KiB of a client's next byte once in 32,768 times, and is believed then.
LOST_BY_CHANCE = 3
LEAST = {mode: 0.97 if mode.is_nat else 0.99 for mode in Forward}
# A third, and what chance adds to some hundred clients.
MOST_SHARE = 0.46
# Where strangers look like clients: the server is not seen, or the connections are known to them.
WEIGHTY = {
    "data, three packets each": (Forward.DSR, Forward.IPIP, Forward.GUE),
    "jumped sequence numbers": tuple(Forward),
    "acknowledgements of the unsent": tuple(Forward),
    "forged data": tuple(Forward),
}
DENSITY = 0.1
DENSITIES = (0.1, 1.0, 4.0)  # with 1M flows and round trips of 10 ms: 1.3M, 13M, 52M packets/s


def is_even(here: Field, name: str, mode: Forward) -> bool:
    """Whether each of the equal backends gets its share of the honest clients, where it should."""
    return mode in WEIGHTY.get(name, ()) or max(here.shares.values()) <= MOST_SHARE


def lost(rig: Rig, here: Field) -> int:
    """How many of the established connections are not recorded as established any more, or not
    where they were.
    """

    def is_kept(one: Connection) -> bool:
        slot = rig.slot(one.packet.src, one.packet.sport)
        is_open = slot is not None and slot.state is FlowState.ESTABLISHED
        return is_open and slot.backend_id == rig.backend_id(one.backend)

    return sum(not is_kept(one) for one in here.established)


def main() -> int:
    """Every attack in every mode, for ``make attack``; 1: not as many are served as should be."""
    config = Config(instance_name("attack"), "lo", tables=SMALL)
    dataplane = load(config, all_features())
    is_well, largest = True, {}
    modes = [mode.value for mode in Forward]
    print("Honest clients that are served, of a hundred; in brackets, if there are any, packets of")
    print("established connections that went elsewhere, and such connections that are recorded no")
    print(
        "more. Columns: the mode, and how many packets of the attackers come to each bucket of the"
    )
    print("flow table within a round trip.")
    print(f"{'':36}", *(f"{mode:>22}" for mode in modes))
    print(f"{'':36}", *(f"{' '.join(f'{d:>6g}' for d in DENSITIES):>22}" for _ in modes))
    try:
        for name, attack in ATTACKS.items():
            cells = []
            for mode in Forward:
                for density in DENSITIES if isinstance(attack, Flood) else (DENSITY,):
                    rig = Rig(dataplane)
                    serve(rig, mode, challenges=name in CHALLENGED)
                    here = happen(rig, attack, density=density, round_trips=100, clients=10)
                    gone = lost(rig, here)
                    is_well &= not here.moved and gone <= LOST_BY_CHANCE
                    if density == DENSITY:
                        largest[name, mode] = max(here.shares.values())
                        is_well &= is_even(here, name, mode)
                    is_well &= density > DENSITY or here.goodput >= LEAST[mode]
                    harm = f"[{here.moved}/{gone}]" if here.moved or gone else ""
                    cells.append(f"{100 * here.goodput:.1f}{harm}")
                    rig.reset()
                cells += [""] * ((len(DENSITIES) - len(cells)) % len(DENSITIES))
            rows = [cells[n : n + len(DENSITIES)] for n in range(0, len(cells), len(DENSITIES))]
            print(f"{name:36}", *(f"{' '.join(f'{c:>6}' for c in row):>22}" for row in rows),
                  flush=True)  # fmt: skip
    finally:
        dataplane.tables.close()
        pins.remove(dataplane.pins)
    print("\nOf these clients the share of the busiest of three equal backends, in percent, where")
    print(f"{DENSITY:g} packets of the attackers come to each bucket.")
    print(f"{'':36}", *(f"{mode:>8}" for mode in modes))
    for name in ATTACKS:
        print(f"{name:36}", *(f"{100 * largest[name, mode]:8.0f}" for mode in Forward))
    return not is_well


if __name__ == "__main__":
    sys.exit(main())
