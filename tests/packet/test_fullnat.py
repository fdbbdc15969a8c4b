"""fullnat: server and source port name the slot; every answer reaches exactly its client."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import libbpf, pins
from agent.dataplane.abi import NAT_SOURCES, FlowState
from agent.model import Config, Forward, Nat, Protocol, Tables
from tests.examples import examples
from tests.packet import harness
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    ROUTER_MAC,
    VIP4,
    VIP6,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.pauses import undisturbed
from tests.packet.wires import Packet

SERVER4, SERVER6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = pytest.mark.parametrize(
    ("vip", "client", "server", "own"),
    [(VIP4, CLIENT4, SERVER4, BALANCER4), (VIP6, CLIENT6, SERVER6, BALANCER6)],
    ids=["v4", "v6"],
)
FIRST, PORTS = 20_000, 8
SOURCES = tuple(ip_address(f"10.0.0.{n}") for n in range(5, 8))
FEW = Nat(first_port=FIRST, last_port=FIRST + PORTS - 1)
SERVER_MAC = mac_of(ip_address(SERVER4))


@pytest.fixture(scope="module")
def few_ports() -> Iterator[harness.Dataplane]:
    """Eight ports, and room for more flows than that."""
    harness.require_root()
    config = Config(harness.instance_name("ports"), "lo", tables=Tables(4096, 4, 8, 251), nat=FEW)
    # A small program compiles fast.
    needing = tuple(service(vip=vip, forward=Forward.FULLNAT) for vip in (VIP4, VIP6))
    dataplane = harness.load(config, needing, keys=harness.KEYS)
    yield dataplane
    dataplane.tables.close()
    pins.remove(dataplane.pins)


@pytest.fixture
def few(few_ports: harness.Dataplane) -> Iterator[Rig]:
    rig = Rig(few_ports)
    rig.config = replace(rig.config, tables=Tables(4096, 4, 8, 251), nat=FEW)
    yield rig
    rig.reset()


@pytest.fixture
def few_blocks() -> Iterator[Rig]:
    """Two blocks of eight ports."""
    harness.require_root()
    tables = Tables(4096, 4, 8, 251, nat_blocks=2)
    config = Config(harness.instance_name("blocks"), "lo", tables=tables, nat=FEW)
    needing = (service(forward=Forward.FULLNAT),)  # one test's program: a small one compiles fast
    dataplane = harness.load(config, needing, keys=harness.KEYS)
    rig = Rig(dataplane)
    rig.config = replace(rig.config, tables=tables, nat=FEW)
    yield rig
    dataplane.tables.close()
    pins.remove(dataplane.pins)


def serve(rig: Rig, server: str = SERVER4, vip: str = VIP4, port: int | None = None,
          protocol: Protocol = Protocol.TCP, **config: object) -> None:  # fmt: skip
    member = backend("a", server, port=port)
    rig.serve(service(member, vip=vip, forward=Forward.FULLNAT, protocol=protocol), **config)


def ends(frame: bytes) -> tuple[str, int]:
    """The source address and port of an IPv4 frame."""
    at = 14 + (frame[14] & 15) * 4
    return str(ip_address(frame[26:30])), int.from_bytes(frame[at : at + 2])


def taken(rig: Rig, packet: Packet) -> tuple[str, int]:
    """The source that a client's packet, which must be forwarded, goes on with."""
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX, rig.reasons()
    return ends(done.data)


def connected(rig: Rig, packet: Packet, server: str = SERVER4, port: int = 80) -> tuple[str, int]:
    """The source of a client that has seen the server's SYN-ACK: the port is its own now."""
    source = taken(rig, packet)
    for sent in (
        answer(source, "SA", server, port, seq=7000, ack=packet.seq + 1).frame(src=SERVER_MAC),
        replace(packet, flags="A", seq=packet.seq + 1, ack=7001).frame(),
    ):
        assert rig.verdict(sent) == Verdict.TX
    return source


def answer(source: tuple[str, int], flags: str | None = "SA", server: str = SERVER4,
           port: int = 80, **more: object) -> Packet:  # fmt: skip
    """What the backend answers to that source."""
    return Packet(server, source[0], port, source[1], flags=flags, **more)  # type: ignore[arg-type]


def receiver(rig: Rig, source: tuple[str, int], flags: str = "A") -> tuple[str, int] | None:
    """The client that gets the backend's answer; None: the backend learns that it is over."""
    frame = answer(source, flags).frame(src=SERVER_MAC)
    done = rig.send(frame)
    assert done.verdict == Verdict.TX
    if done.data[:12] == frame[6:12] + frame[:6]:
        assert done.data[26:34] == frame[30:34] + frame[26:30]
        assert done.data[47] == 4  # RST
        return None
    return str(ip_address(done.data[30:34])), int.from_bytes(done.data[36:38])


@FAMILIES
@pytest.mark.parametrize("flags", ["S", None], ids=["tcp", "udp"])
@pytest.mark.parametrize("port", [None, 8080])
def test_fullnat_is_exact_there_and_back(hooked: Rig, vip, client, server, own, flags, port):
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    serve(hooked, server, vip, port, protocol)
    asked = Packet(client, vip, flags=flags, payload=b"hello", tos=0xB9, ttl=17)
    done = hooked.send(asked.frame())
    at = 14 + (20 if vip == VIP4 else 40)
    sport = int.from_bytes(done.data[at : at + 2])
    sent = replace(asked, src=own, dst=server, sport=sport, dport=port or 80, ttl=16)
    expected = sent.frame(mac_of(ip_address(server)), BALANCER_MAC)
    assert (done.verdict, done.data) == (Verdict.TX, expected)
    reply = replace(sent.reply(b"odd"), ttl=5, tos=0x46)
    done = hooked.send(reply.frame())
    seen = replace(reply, src=vip, dst=client, sport=80, dport=40_000, ttl=4)
    assert (done.verdict, done.data) == (Verdict.TX, seen.frame(ROUTER_MAC, BALANCER_MAC))
    assert hooked.send(replace(asked, flags="A" if flags else None).frame()).data[at : at + 2] == (
        sport.to_bytes(2)
    ), "a flow keeps its port"


@FAMILIES
def test_the_port_is_the_number_of_the_slot(rig: Rig, vip, client, server, own):
    serve(rig, server, vip)
    done = rig.send(Packet(client, vip).frame())
    at = 14 + (20 if vip == VIP4 else 40)
    sport = int.from_bytes(done.data[at : at + 2])
    held = np.flatnonzero(rig.tables.nat_slots["owner"])
    size = rig.dataplane.size
    assert held[0] % size.nat_ports + size.nat_first_port == sport
    slot, found = rig.tables.nat_slots[held[0]], rig.slot(client)
    assert slot["source"] == (0 if vip == VIP4 else NAT_SOURCES)
    assert found is not None
    assert int(slot["owner"]) == (found.index + 1) << 32 | found.word >> 32
    assert rig.tables.flows_warm["nat"][found.index] == held[0] + 1


@pytest.mark.soak
def test_all_ports_of_all_sources_are_given_once_and_then_no_more(few: Rig):
    serve(few, nat=replace(FEW, sources_v4=SOURCES))
    *clients, late = few.lone_ports(CLIENT4, 25)
    sources = [connected(few, Packet(sport=port)) for port in clients]
    assert set(sources) == {(str(s), FIRST + n) for s in SOURCES for n in range(PORTS)}
    for flags in ("S", "A"):
        assert few.verdict(Packet(sport=late, flags=flags).frame()) == Verdict.DROP
    assert few.service_counts().drops["no-port"] == 2
    for port, source in zip(clients, sources, strict=True):
        assert receiver(few, source) == (CLIENT4, port)


def test_every_server_has_all_ports(few: Rig):
    """As with NAT in the kernel: the same source and port towards two servers is two flows."""
    servers = [("10.1.2.3", 80), ("10.1.2.4", 80), ("10.1.2.3", 8080)]
    vips = [str(ip_address(VIP4) + n) for n in range(3)]
    few.serve(*(service(backend("a", server, port=port), name=vip, vip=vip,
                        forward=Forward.FULLNAT)
                for vip, (server, port) in zip(vips, servers, strict=True)))  # fmt: skip
    given: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
    for vip, server in zip(vips, servers, strict=True):
        *clients, late = few.lone_ports(CLIENT4, PORTS + 1, vip)
        given[server] = {
            connected(few, Packet(dst=vip, sport=port), *server): port for port in clients
        }
        assert few.verdict(Packet(dst=vip, sport=late).frame()) == Verdict.DROP
    assert [sorted(sources) for sources in given.values()] == [
        [(BALANCER4, FIRST + n) for n in range(PORTS)]
    ] * 3
    for (server, port), sources in given.items():
        for source, client in sources.items():
            frame = answer(source, "A", server, port).frame(src=SERVER_MAC)
            done = few.send(frame)
            assert done.verdict == Verdict.TX
            assert int.from_bytes(done.data[36:38]) == client
    assert few.reasons() == {"no-port": 3}


def test_servers_that_share_a_block_share_its_ports(few_blocks: Rig):
    members = [backend(f"b{n}", f"10.1.2.{n}") for n in range(1, 7)]
    few_blocks.serve(service(*members, forward=Forward.FULLNAT))
    held: dict[tuple[str, tuple[str, int]], int] = {}
    for client in few_blocks.lone_ports(CLIENT4, 40):
        done = few_blocks.send(Packet(sport=client).frame())
        if done.verdict == Verdict.TX:
            ends_there = str(ip_address(done.data[30:34])), ends(done.data)
            assert ends_there not in held
            connected(few_blocks, Packet(sport=client), ends_there[0])
            held[ends_there] = client
    assert 2 * PORTS >= len(held) > PORTS
    for (server, source), client in held.items():
        done = few_blocks.send(answer(source, "A", server).frame())
        assert done.verdict == Verdict.TX
        assert int.from_bytes(done.data[36:38]) == client


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_source_address_there_is_no_port(few: Rig, family: int):
    serve(few, *((SERVER4, VIP4) if family == 4 else (SERVER6, VIP6)))
    few.tables.nat_sources["count"][:] = 0
    packet = Packet() if family == 4 else Packet(CLIENT6, VIP6)
    assert few.verdict(packet.frame()) == Verdict.DROP
    assert few.reasons() == {"no-port": 1}


@pytest.mark.parametrize(
    ("last", "state_s"), [(["A"], 60), (["PA"], 900), (["A", "FA"], 4)],
    ids=["acked", "established", "closing"],
)  # fmt: skip
@undisturbed
def test_a_port_is_free_again_when_its_flow_is_over_and_not_before(few: Rig, last, state_s: int):
    serve(few)
    few.avoid_tick()
    *clients, last_port = few.lone_ports(CLIENT4, 9)
    sources = [connected(few, Packet(sport=port)) for port in clients]
    for flags in last:
        payload = b"x" if flags == "PA" else b""
        few.send(Packet(sport=clients[2], flags=flags, payload=payload, seq=1001).frame())
    late = Packet(sport=last_port)
    slot = few.slot(CLIENT4, clients[2])
    assert slot is not None
    few.make_idle(slot.index, few.clock.ticks(state_s))
    assert few.verdict(late.frame()) == Verdict.DROP
    few.make_idle(slot.index, few.clock.ticks(state_s) + 1)
    assert taken(few, late) == sources[2]
    assert receiver(few, sources[2]) == (CLIENT4, last_port)
    assert few.reasons() == {"no-port": 1}


def test_a_strangers_syn_costs_nobody_a_port(few: Rig):
    """Nor do its data, a FIN or RST, or the RST that the server answers with."""
    serve(few)
    mine, *strangers = few.lone_ports(CLIENT4, 200)
    source = connected(few, Packet(sport=mine))
    for port in strangers:
        assert taken(few, Packet(sport=port)) != source
        for flags in ("PA", "PA", "FA", "RA"):
            payload = b"x" * 100 if "P" in flags else b""
            stranger = Packet(sport=port, flags=flags, payload=payload, seq=1001, ack=4711)
            found = taken(few, stranger)
            assert found != source
        assert few.verdict(answer(found, "RA", seq=0, ack=1101).frame()) == Verdict.TX
        assert state_of(few, port) is FlowState.EMBRYONIC
    assert receiver(few, source) == (CLIENT4, mine)
    assert few.reasons() == {}


def test_a_port_goes_to_another_flow_while_the_first_is_not_answered(few: Rig):
    """And the first takes another one, if it is somebody after all."""
    serve(few)
    first, *others = few.lone_ports(CLIENT4, 9)
    source = taken(few, Packet(sport=first))
    assert source in [connected(few, Packet(sport=port)) for port in others]
    assert few.verdict(Packet(sport=first).frame()) == Verdict.DROP, "now all are held"
    assert few.reasons() == {"no-port": 1}


def state_of(rig: Rig, port: int) -> FlowState:
    slot = rig.slot(CLIENT4, port)
    assert slot is not None
    return slot.state


@undisturbed
def test_a_flow_that_another_cpu_stamped_a_tick_later_keeps_its_port(few: Rig):
    # `now` was read before that CPU's packet: the difference must not count as nine hours.
    serve(few)
    few.avoid_tick()
    *clients, late = few.lone_ports(CLIENT4, 9)
    sources = [connected(few, Packet(sport=port)) for port in clients]
    slot = few.slot(CLIENT4, clients[2])
    assert slot is not None
    few.make_idle(slot.index, -1)
    assert few.verdict(Packet(sport=late).frame()) == Verdict.DROP
    assert receiver(few, sources[2]) == (CLIENT4, clients[2])


def test_a_flow_that_is_swept_gives_its_port_back(few: Rig):
    serve(few)
    *clients, late = few.lone_ports(CLIENT4, 9)
    sources = [connected(few, Packet(sport=port)) for port in clients]
    slot = few.slot(CLIENT4, clients[4])
    assert slot is not None
    few.tables.flows[slot.index] = 0
    assert receiver(few, sources[4]) is None
    assert taken(few, Packet(sport=late)) == sources[4]


def test_a_flow_that_was_without_a_port_gets_one_with_its_next_packet(few: Rig):
    serve(few)
    *clients, last = few.lone_ports(CLIENT4, 9)
    for port in clients:
        connected(few, Packet(sport=port))
    late = Packet(sport=last)
    assert few.verdict(late.frame()) == Verdict.DROP
    slot = few.slot(CLIENT4, clients[0])
    assert slot is not None
    few.tables.flows[slot.index] = 0
    source = taken(few, late)
    assert receiver(few, source) == (CLIENT4, last)
    assert few.counts("a").opened == 9, "it was recorded the first time"


@pytest.mark.usefixtures("one_cpu")
def test_ports_are_given_in_turn_so_that_one_rests_as_long_as_can_be(few: Rig):
    serve(few)
    found = []
    for n in range(1, 17):
        found.append(taken(few, Packet(sport=n))[1])
        few.tables.flows[few.slot(CLIENT4, n).index] = 0
    assert sorted(found[:8]) == list(range(FIRST, FIRST + PORTS))
    assert found[8:] == found[:8]


@pytest.mark.parametrize("same_backend", [True, False])
def test_a_client_that_comes_again_with_its_port_is_a_new_flow(few: Rig, *, same_backend: bool):
    serve(few)
    first = taken(few, Packet())
    few.send(Packet(flags="FA").frame())
    if not same_backend:
        few.serve(service(backend("b", "10.1.2.4"), backend("a", SERVER4, weight=0),
                          forward=Forward.FULLNAT))  # fmt: skip
    again = taken(few, Packet())
    if same_backend:
        assert again == first
        assert receiver(few, again) == (CLIENT4, 40_000)
    else:
        assert again != first
        assert receiver(few, first) is None, "what is left of the old connection"
        frame = answer(again, "A", "10.1.2.4").frame()
        assert few.verdict(frame) == Verdict.TX


def test_a_flow_that_takes_the_place_of_another_takes_no_port_from_a_third(few: Rig):
    """Two SYNs a bucket: the third evicts the first, whose port nobody else may get its packets
    by.
    """
    serve(few)
    clients = few.clients_in_bucket(3, 6)
    sources = [taken(few, Packet(str(address), sport=port)) for address, port in clients]
    assert len(set(sources)) == 6
    for (address, port), source in zip(clients, sources, strict=True):
        expected = (str(address), port) if few.slot(str(address), port) else None
        assert receiver(few, source, "SA") == expected


@FAMILIES
@pytest.mark.parametrize("flags", ["S", None], ids=["tcp", "udp"])
def test_what_is_no_answer_of_the_flows_backend_is_the_hosts(
    hooked: Rig, vip, client, server, own, flags
):
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    serve(hooked, server, vip, protocol=protocol)
    done = hooked.send(Packet(client, vip, flags=flags).frame())
    at = 14 + (20 if vip == VIP4 else 40)
    sport = int.from_bytes(done.data[at : at + 2])
    size = hooked.dataplane.size
    right = Packet(server, own, 80, sport, flags="SA" if flags else None)
    other = "10.1.2.4" if vip == VIP4 else "fd00:1::2:4"
    wrong = [
        replace(right, src=other),
        replace(right, sport=81),
        replace(right, dport=sport + 1),
        replace(right, flags=None if flags else "SA"),
        replace(right, dport=22),
        replace(right, dport=size.nat_first_port - 1),
        replace(right, dport=size.nat_first_port + size.nat_ports),
    ]
    before = hooked.tables.flows.copy()
    for packet in wrong:
        frame = packet.frame()
        done = hooked.send(frame)
        assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert hooked.reasons() == {"not-vip": len(wrong)}
    assert (hooked.tables.flows == before).all()
    assert hooked.verdict(right.frame()) == Verdict.TX


def test_a_connection_of_the_hosts_own_to_a_backend_is_left_alone(rig: Rig):
    """From an ephemeral port of the source address, beyond those of fullnat."""
    serve(rig)
    taken(rig, Packet())
    frame = Packet(SERVER4, BALANCER4, 80, 45_000, flags="SA").frame()
    assert rig.send(frame).data == frame


# -- it never mixes two flows


class Model:
    """Which client has which source, by what the packets must do."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.open: dict[int, tuple[str, int]] = {}  # client's port -> source
        self.closing: dict[int, tuple[str, int]] = {}

    def sources(self) -> dict[tuple[str, int], int]:
        return {source: port for held in (self.open, self.closing) for port, source in held.items()}

    def syn(self, port: int) -> None:
        """A client connects; it has its port once the server has answered."""
        done = self.rig.send(Packet(sport=port).frame())
        if done.verdict == Verdict.DROP:
            assert len(self.sources()) == 2 * PORTS, "dropped, though a port was free"
            assert port not in self.open
            return
        source = ends(done.data)
        assert self.sources().get(source, port) == port, "that source is another client's"
        assert self.open.get(port, source) == source, "a flow keeps its source"
        if port not in self.open:
            assert connected(self.rig, Packet(sport=port)) == source
        self.closing.pop(port, None)
        self.open[port] = source

    def data(self, port: int) -> None:
        if port in self.open:
            assert (
                taken(self.rig, Packet(sport=port, flags="PA", payload=b"x", seq=1001))
                == self.open[port]
            )

    def close(self, port: int) -> None:
        if port in self.open:
            source = self.open.pop(port)
            assert taken(self.rig, Packet(sport=port, flags="FA", seq=1001)) == source
            self.closing[port] = source

    def expire(self, port: int) -> None:
        slot = self.rig.slot(CLIENT4, port)
        if slot:
            self.rig.make_idle(slot.index, self.rig.clock.ticks(900) + 1)
            self.open.pop(port, None)
            self.closing.pop(port, None)
            if port % 2:
                self.rig.tables.flows[slot.index] = 0

    def check(self) -> None:
        held = self.sources()
        for source in ((str(s), FIRST + n) for s in SOURCES[:2] for n in range(PORTS)):
            if source in held:
                assert receiver(self.rig, source) == (CLIENT4, held[source])


ACTIONS = st.tuples(st.sampled_from(["syn", "syn", "data", "close", "expire"]), st.integers(0, 23))


@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(actions=st.lists(ACTIONS, min_size=10, max_size=80))
def test_every_answer_reaches_exactly_its_client(few: Rig, actions):
    few.reset()
    serve(few, nat=replace(FEW, sources_v4=SOURCES[:2]))
    model, ports = Model(few), few.lone_ports(CLIENT4, 24)
    for action, client in actions:
        getattr(model, action)(ports[client])
        model.check()


def test_two_cpus_at_a_time_give_no_port_twice(few: Rig):
    """Sixteen clients, each in a bucket of its own, want eight ports, and flows end all the
    time.
    """
    serve(few)
    fd = few.dataplane.program.fd
    clients = few.clients_in_buckets(range(16), 1)
    asked = [Packet(str(address), sport=port).frame() for address, port in clients]
    acked = [
        Packet(str(address), sport=port, flags="A", seq=1001, ack=7001).frame()
        for address, port in clients
    ]
    proven = (FlowState.ACKED, FlowState.ESTABLISHED)
    slots = []
    for frame, (address, port) in zip(asked, clients, strict=True):
        few.send(frame)
        found = few.slot(str(address), port)
        assert found is not None
        slots.append(found.index)
    wrong: list[tuple[int, bytes]] = []
    got = [0, 0]
    start = threading.Barrier(2)

    def connect(who: int) -> libbpf.TestRun:
        """Until the server has answered, another flow may take the port."""
        done = libbpf.test_run(fd, asked[who])
        if done.verdict == Verdict.TX:
            libbpf.test_run(fd, answer(ends(done.data), "SA", seq=7000).frame())
        return libbpf.test_run(fd, acked[who])

    def state(who: int) -> int:
        return int(few.tables.flows[slots[who]]) >> 13 & 7

    def traffic(half: int, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        start.wait()
        for n in range(6000):
            who = 2 * (n % 8) + half
            done = connect(who)
            if done.verdict != Verdict.TX or state(who) not in proven:
                continue
            got[half] += 1
            seen = libbpf.test_run(fd, answer(ends(done.data), "A").frame())
            address, port = clients[who]
            if (seen.data[30:34], seen.data[36:38]) != (address.packed, port.to_bytes(2)):
                wrong.append((who, seen.data))
            if n % 3 == 0:
                few.tables.flows[slots[who]] = 0

    cpus = sorted(os.sched_getaffinity(0))
    threads = [
        threading.Thread(target=traffic, args=(half, cpus[half % len(cpus)])) for half in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(got) > 100
    done = [connect(who) for who in range(len(clients))]
    sources = [ends(each.data) for each in done if each.verdict == Verdict.TX]
    assert len(set(sources)) == len(sources) == PORTS
