"""nat: exact bytes there and back, and what a backend's packets do to a flow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane.abi import FLOW_EMBRYONIC_WAYS, FLOW_WAYS, FlowState
from agent.model import AdminState, Forward, Protocol, Scheduler
from tests.examples import examples
from tests.packet import nodes
from tests.packet.frames import (
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    ROUTER_MAC,
    VIP4,
    VIP6,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.wires import Packet, cancelling

SERVER4, SERVER6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = pytest.mark.parametrize(
    ("vip", "client", "server"),
    [(VIP4, CLIENT4, SERVER4), (VIP6, CLIENT6, SERVER6)],
    ids=["v4", "v6"],
)
TRANSPORTS = pytest.mark.parametrize("flags", ["S", None], ids=["tcp", "udp"])
SERVER_MAC = mac_of(ip_address(SERVER4))


def serve(rig: Rig, server: str = SERVER4, vip: str = VIP4, flags: str | None = "S",
          port: int | None = None, **more: object) -> None:  # fmt: skip
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(
        service(backend("a", server, port=port), vip=vip, forward=Forward.NAT, protocol=protocol),
        **more,
    )


def there(packet: Packet, server: str = SERVER4, port: int = 80, **changes: object) -> bytes:
    """A client's packet as its backend must get it."""
    sent = replace(packet, dst=server, dport=port, ttl=packet.ttl - 1, **changes)
    return sent.frame(mac_of(ip_address(server)), BALANCER_MAC)


def answer(packet: Packet, server: str = SERVER4, port: int = 80, **changes: object) -> Packet:
    """What a backend answers to a client's packet, as it comes to us."""
    return replace(packet.reply(**changes), src=server, sport=port)


def back(answered: Packet, vip: str = VIP4, port: int = 80) -> bytes:
    """That as the client must get it."""
    sent = replace(answered, src=vip, sport=port, ttl=answered.ttl - 1)
    return sent.frame(ROUTER_MAC, BALANCER_MAC)


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("port", [None, 8080])
def test_nat_is_exact_there_and_back(hooked: Rig, vip, client, server, flags, port):
    serve(hooked, server, vip, flags, port)
    asked = Packet(client, vip, flags=flags, payload=b"hello", tos=0xB9, ttl=17)
    done = hooked.send(asked.frame())
    assert (done.verdict, done.data) == (Verdict.TX, there(asked, server, port or 80))
    reply = answer(asked, server, port or 80, payload=b"odd", tos=0x46, ttl=2)
    done = hooked.send(reply.frame(src=SERVER_MAC))
    assert (done.verdict, done.data) == (Verdict.TX, back(reply, vip))
    counts = hooked.counts("a")
    assert (counts.packets, counts.bytes) == (1, len(asked.ip))
    assert (counts.reply_packets, counts.reply_bytes) == (1, len(reply.ip))


addresses4 = st.integers(0x01000000, 0xDFFFFFFF).map(IPv4Address).map(str)
addresses6 = st.integers(0x2 << 124, (0x4 << 124) - 1).map(IPv6Address).map(str)
ports = st.integers(1, 65_535)
words = st.integers(0, 2**32 - 1)


@st.composite
def packets(draw: st.DrawFn) -> tuple[Packet, str, int]:
    """A client's packet of either kind, its backend's address and port."""
    is_ipv4 = draw(st.booleans())
    addresses = addresses4 if is_ipv4 else addresses6
    client, vip, server = draw(st.lists(addresses, min_size=3, max_size=3, unique=True))
    packet = Packet(
        client, vip, draw(ports), draw(ports), draw(st.binary(max_size=64)),
        draw(st.sampled_from(["S", "A", "PA", None, None])), draw(words), draw(words),
        draw(st.sampled_from([b"", bytes.fromhex("020405b4"), b"\1" * 12])),
        draw(st.integers(2, 255)), draw(st.integers(0, 255)), draw(st.integers(0, 65_535)),
        ip_options=draw(st.sampled_from([b"", b"\1" * 8])) if is_ipv4 else b"",
    )  # fmt: skip
    if packet.flags is None:
        packet = replace(packet, unsummed=draw(st.booleans()))
    return packet, server, draw(ports)


@settings(
    deadline=None,
    max_examples=examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=packets(), zero=st.sampled_from(["", "before", "after"]), payload=st.binary(max_size=9))
def test_checksums_are_exact_whatever_is_rewritten(hooked: Rig, case, zero: str, payload: bytes):
    packet, server, port = case
    if zero:
        summed = replace(packet, unsummed=False)
        if zero == "after":
            summed = replace(summed, dst=server, dport=port)
        packet = replace(packet, payload=cancelling(summed), unsummed=False)
    protocol = Protocol.UDP if packet.flags is None else Protocol.TCP
    hooked.reset()
    hooked.serve(
        service(backend("a", server, port=port), vip=packet.dst, port=packet.dport,
                forward=Forward.NAT, protocol=protocol)
    )  # fmt: skip
    done = hooked.send(packet.frame())
    assert (done.verdict, done.data) == (Verdict.TX, there(packet, server, port))
    reply = replace(answer(packet, server, port, payload=payload), unsummed=packet.unsummed)
    done = hooked.send(reply.frame(src=SERVER_MAC))
    assert (done.verdict, done.data) == (Verdict.TX, back(reply, packet.dst, packet.dport))


@FAMILIES
def test_a_datagram_whose_checksum_comes_out_as_zero_carries_all_ones(
    hooked: Rig, vip, client, server
):
    serve(hooked, server, vip, None)
    packet = Packet(client, vip, flags=None)
    packet = replace(packet, payload=cancelling(replace(packet, dst=server)))
    sent = there(packet, server)
    at = 14 + (20 if vip == VIP4 else 40) + 6
    assert sent[at : at + 2] == b"\xff\xff"
    assert hooked.send(packet.frame()).data == sent


@FAMILIES
def test_a_datagram_without_a_checksum_gets_none(hooked: Rig, vip, client, server):
    serve(hooked, server, vip, None)
    packet = Packet(client, vip, flags=None, payload=b"x", unsummed=True)
    assert hooked.send(packet.frame()).data == there(packet, server)


@pytest.mark.parametrize(
    "tags", [((0x8100, 0x2064),), ((0x88A8, 7), (0x8100, 0xE00A))], ids=["one", "two"]
)
def test_the_answer_has_the_tags_and_the_macs_of_the_question(rig: Rig, tags):
    serve(rig)
    asked = Packet()
    done = rig.send(asked.frame("02:00:00:00:00:77", "02:00:00:00:00:88", tags))
    assert done.data == there(asked), "the backend's segment has no tags"
    reply = answer(asked)
    done = rig.send(reply.frame(src=SERVER_MAC))
    sent = replace(reply, src=VIP4, ttl=63)
    assert done.data == sent.frame("02:00:00:00:00:88", "02:00:00:00:00:77", tags)


def test_the_tags_of_the_backends_segment_are_put_on(rig: Rig):
    serve(rig, vlans={"a": ((0x88A8, 5), (0x8100, 6))})
    asked = Packet()
    sent = replace(asked, dst=SERVER4, ttl=63)
    tags = ((0x88A8, 5), (0x8100, 6))
    assert rig.send(asked.frame()).data == sent.frame(SERVER_MAC, BALANCER_MAC, tags)
    reply = answer(asked)
    assert rig.send(reply.frame(src=SERVER_MAC, tags=tags)).data == back(reply)


def test_the_answer_goes_the_way_that_the_clients_last_packet_came(rig: Rig):
    serve(rig)
    asked = Packet()
    rig.send(asked.frame(src="02:00:00:00:00:88"))
    rig.send(replace(asked, flags="A").frame(src="02:00:00:00:00:99", tags=((0x8100, 3),)))
    reply = answer(asked, flags="A")
    sent = replace(reply, src=VIP4, ttl=63)
    done = rig.send(reply.frame(src=SERVER_MAC))
    assert done.data == sent.frame("02:00:00:00:00:99", BALANCER_MAC, ((0x8100, 3),))


@pytest.mark.parametrize("was", [((0x8100, 3), (0x8100, 4)), ((0x88A8, 5), (0x8100, 6)), ()])
def test_an_inner_tag_that_alone_is_another_is_that_of_the_answer(rig: Rig, was):
    serve(rig)
    asked, tags = Packet(), ((0x8100, 3), (0x8100, 5))
    rig.send(asked.frame(tags=was))
    rig.send(replace(asked, flags="A").frame(tags=tags))
    reply = answer(asked, flags="A")
    sent = replace(reply, src=VIP4, ttl=63)
    done = rig.send(reply.frame(src=SERVER_MAC))
    assert done.data == sent.frame(ROUTER_MAC, BALANCER_MAC, tags)


def test_the_answer_leaves_by_the_interface_that_the_question_came_in_by(rig: Rig):
    serve(rig)
    rig.send(Packet().frame())
    slot = rig.slot(CLIENT4)
    assert slot is not None
    assert rig.tables.flows_warm["ifindex"][slot.index] == 1, "lo, by which the kernel tests"
    rig.tables.flows_warm["ifindex"][slot.index] = 4711
    assert rig.verdict(answer(Packet()).frame()) == Verdict.REDIRECT


@FAMILIES
@TRANSPORTS
def test_an_answer_of_no_flow_is_the_hosts_own(hooked: Rig, vip, client, server, flags):
    serve(hooked, server, vip, flags)
    asked = Packet(client, vip, flags=flags)
    hooked.send(asked.frame())
    before = hooked.tables.flows.copy()
    strangers = (
        answer(replace(asked, sport=40_001), server),
        answer(asked, server, 81),
        answer(replace(asked, src="198.51.100.8" if vip == VIP4 else "2001:db8:c::8"), server),
        answer(asked, "10.1.2.4" if vip == VIP4 else "fd00:1::2:4"),
    )
    for reply in strangers:
        frame = reply.frame(src=SERVER_MAC)
        done = hooked.send(frame)
        assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert hooked.reasons() == {"not-vip": len(strangers)}
    assert (hooked.tables.flows == before).all()
    assert hooked.counts("a").reply_packets == 0


def test_a_clients_packet_is_never_taken_for_an_answer(rig: Rig):
    """A backend that is a client of another service talks to a VIP."""
    serve(rig)
    rig.send(Packet().frame())
    frame = Packet(SERVER4, VIP4, 80, 9999, flags="A").frame()
    assert rig.verdict(frame) == Verdict.PASS
    assert rig.counts("a").reply_packets == 0


def test_an_answer_with_lengths_that_no_sender_makes_is_dropped(hooked: Rig):
    serve(hooked)
    asked = Packet()
    hooked.send(asked.frame())
    frame = bytearray(answer(asked).frame())
    frame[46] = 0x40  # the TCP header's length
    assert hooked.verdict(bytes(frame)) == Verdict.DROP
    assert hooked.reasons() == {"malformed": 1}


def test_an_answer_still_comes_back_from_a_draining_backend(rig: Rig):
    serve(rig)
    asked = Packet()
    rig.send(asked.frame())
    drained = backend("a", SERVER4, admin=AdminState.DRAIN)
    rig.serve(service(drained, forward=Forward.NAT))
    reply = answer(asked)
    assert rig.send(reply.frame()).data == back(reply)


# -- what answers do to a flow


def test_a_server_proves_nothing_before_its_client_has_acknowledged(hooked: Rig):
    """A SYN that was forged is answered, too, more than once."""
    serve(hooked)
    asked = Packet()
    hooked.send(asked.frame())
    for flags in ("SA", "SA", "A"):
        assert hooked.verdict(answer(asked, flags=flags, seq=7000).frame()) == Verdict.TX
        assert hooked.state(CLIENT4) is FlowState.EMBRYONIC
    hooked.send(answer(asked, flags="SA", seq=7000).frame())
    for ack in (0, 1000, 7000, 7002):  # guessed
        for flags, payload in (("A", b""), ("PA", b"GET /")):
            guess = replace(asked, flags=flags, payload=payload, seq=1001, ack=ack)
            assert hooked.verdict(guess.frame()) == Verdict.TX
            assert hooked.state(CLIENT4) is FlowState.EMBRYONIC
    hooked.send(replace(asked, flags="A", seq=1001, ack=7001).frame())
    assert hooked.state(CLIENT4) is FlowState.ACKED
    for _ in range(2):
        hooked.send(answer(asked, flags="A").frame())
        assert hooked.state(CLIENT4) is FlowState.ESTABLISHED
    counts = hooked.counts("a")
    assert (counts.opened, counts.established, counts.closed) == (1, 1, 0)


def test_the_answer_to_an_acked_flow_establishes_it(rig: Rig):
    serve(rig)
    asked = Packet()
    for frame in (asked, answer(asked, seq=7000), replace(asked, flags="A", seq=1001, ack=7001)):
        rig.send(frame.frame())
    assert rig.state(CLIENT4) is FlowState.ACKED
    rig.send(answer(asked, flags="PA", payload=b"220 hello").frame())
    assert rig.state(CLIENT4) is FlowState.ESTABLISHED
    assert rig.counts("a").established == 1


def test_a_datagram_of_a_backend_makes_a_flow_acked_and_the_clients_next_established(hooked: Rig):
    serve(hooked, flags=None)
    asked = Packet(flags=None)
    hooked.send(asked.frame())
    for _ in range(2):
        hooked.send(answer(asked).frame())
        assert hooked.state(CLIENT4) is FlowState.ACKED
    hooked.send(asked.frame())
    hooked.send(answer(asked).frame())
    assert hooked.state(CLIENT4) is FlowState.ESTABLISHED
    assert hooked.counts("a").established == 1


def test_a_flow_that_its_answer_makes_known_is_written_down(hooked: Rig):
    """A datagram and its answer, as of DNS: there may be no more."""
    serve(hooked, flags=None)
    asked = Packet(flags=None, payload=b"x")
    hooked.send(asked.frame())
    hooked.tables.flows_cold[hooked.slot(CLIENT4).index] = 0
    hooked.send(answer(asked).frame())
    cold = hooked.tables.flows_cold[hooked.slot(CLIENT4).index]
    ends = (cold["saddr"][0], cold["daddr"][0], cold["sport"], cold["dport"])
    assert ends == (int(ip_address(CLIENT4)), int(ip_address(VIP4)), 40_000, 80)
    assert (cold["service"], cold["family"]) == (hooked.service_id(), 4)
    assert cold["l4_proto"] == asked.number


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
@pytest.mark.parametrize("before", [["A"], ["A", "PA"]], ids=["acked", "open"])
def test_fin_and_rst_of_the_server_close_a_flow_once(rig: Rig, flags: str, before: list[str]):
    serve(rig)
    asked = Packet()
    goes_on = nodes.connected(rig, asked)
    for each in before:
        rig.send(replace(goes_on, flags=each, payload=b"x" if each == "PA" else b"").frame())
    for _ in range(2):
        assert rig.verdict(answer(asked, flags=flags).frame()) == Verdict.TX
        assert rig.state(CLIENT4) is FlowState.CLOSING
    assert rig.verdict(replace(asked, flags="FA").frame()) == Verdict.TX
    assert rig.verdict(answer(asked, flags="A").frame()) == Verdict.TX
    assert rig.state(CLIENT4) is FlowState.CLOSING
    assert (rig.counts("a").opened, rig.counts("a").closed) == (1, 1)


def test_an_answer_makes_its_flow_young_again(rig: Rig):
    serve(rig)
    asked = Packet()
    rig.send(asked.frame())
    rig.send(answer(asked, flags="A").frame())
    slot = rig.slot(CLIENT4)
    assert slot is not None
    rig.make_idle(slot.index, 5)
    rig.send(answer(asked, flags="A").frame())
    assert rig.slot(CLIENT4).idle_ticks <= 1


# -- what nat cannot do without a record


@FAMILIES
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_the_last_packet_of_an_unknown_flow_is_no_flow(hooked: Rig, vip, client, server, flags):
    serve(hooked, server, vip)
    assert hooked.verdict(Packet(client, vip, flags=flags).frame()) == Verdict.DROP
    assert hooked.reasons() == {"no-flow": 1}
    assert hooked.service_counts().drops["no-flow"] == 1
    assert not hooked.tables.flows.any()
    assert hooked.counts("a").opened == 0


def request(rig: Rig, address: str, port: int) -> None:
    """A client that connects and asks; the server has answered its SYN."""
    there = rig.send(Packet(address, sport=port).frame()).data
    source = str(ip_address(there[26:30])), int.from_bytes(there[34:36])
    syn_ack = Packet(SERVER4, source[0], 80, source[1], flags="SA", seq=7000, ack=1001)
    asks = Packet(address, sport=port, flags="PA", payload=b"GET /", seq=1001, ack=7001)
    for sent in (syn_ack, asks):
        assert rig.verdict(sent.frame()) == Verdict.TX


@pytest.mark.parametrize(
    ("forward", "scheduler", "ways"),
    [
        (Forward.NAT, Scheduler.MAGLEV, FLOW_EMBRYONIC_WAYS),
        (Forward.NAT, Scheduler.LEAST_LOAD, 0),
        (Forward.FULLNAT, Scheduler.MAGLEV, 0),
    ],
)
def test_strangers_who_send_data_take_no_room_of_anybody(
    hooked: Rig, forward: Forward, scheduler: Scheduler, ways: int
):
    """Two packets made a flow established for a quarter of an hour, with no word of the server."""
    hooked.serve(service(backend("a", SERVER4), forward=forward, scheduler=scheduler))
    (mine, port), *strangers = hooked.clients_in_bucket(99, 40)
    request(hooked, str(mine), port)
    for address, theirs in strangers:
        for _ in range(3):
            forged = Packet(str(address), sport=theirs, flags="PA", payload=b"x", ack=4711)
            assert hooked.verdict(forged.frame()) == Verdict.TX, "to the server, or reset"
    held = [hooked.slot(str(address), theirs) for address, theirs in strangers]
    assert len([slot for slot in held if slot]) == ways
    assert hooked.state(str(mine), port) is FlowState.ESTABLISHED
    assert hooked.reasons() == ({} if ways else {"no-flow": 3 * len(strangers)})


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_a_flow_without_room_in_the_table_is_dropped(hooked: Rig, forward: Forward):
    hooked.serve(service(backend("a", SERVER4), forward=forward))
    *held, late = hooked.clients_in_bucket(99, FLOW_WAYS + 1)
    for address, port in held:
        request(hooked, str(address), port)
    for _ in range(2):
        frame = Packet(str(late[0]), sport=late[1]).frame()
        assert hooked.verdict(frame) == Verdict.DROP
    assert hooked.service_counts().drops["no-room"] == 2
    assert hooked.service_counts().not_recorded == 2
    rst = Packet(str(held[0][0]), sport=held[0][1], flags="R", seq=1006).frame()
    assert hooked.verdict(rst) == Verdict.TX
    slot = hooked.slot(str(held[0][0]), held[0][1])
    hooked.make_idle(slot.index, hooked.clock.ticks(30) + 1)
    assert hooked.verdict(Packet(str(late[0]), sport=late[1]).frame()) == Verdict.TX


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_at_the_end_of_its_ttl_goes_no_further(rig: Rig, forward: Forward, ttl: int):
    rig.serve(service(backend("a", SERVER4), forward=forward))
    rig.send(Packet(ttl=ttl).frame())
    assert rig.service_counts().drops["ttl-exceeded"] == 1
