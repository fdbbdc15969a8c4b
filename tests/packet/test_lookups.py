"""What leads a packet to its service, and an answer to its client: the tables that the agent
writes for port ranges, prefixes, any-port services, nat, fullnat and QUIC.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.dataplane import flowhash, keys, libbpf
from agent.model import AdminState, Config, DownFlows, Forward, Nat, Protocol
from agent.state.tables import ServiceSlot
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    VIP4,
    VIP6,
    network_layer,
    tcp,
    udp,
)
from tests.packet.harness import SMALL, Rig, Verdict, backend, load, mac_of, service

V4_SERVERS, V6_SERVERS = "10.1.2.{}", "fd00::2{}"
FAMILIES = pytest.mark.parametrize(
    ("vip", "client", "servers", "own"),
    [(VIP4, CLIENT4, V4_SERVERS, BALANCER4), (VIP6, CLIENT6, V6_SERVERS, BALANCER6)],
    ids=["v4", "v6"],
)


# -- exact ports: what is found is noted down


def unsaid(rig: Rig, port: int, value: bytes | None, vip: str = VIP4) -> bytes | None:
    """Change the service under a port without a word to the packet path; what was there."""
    table, slot = rig.tables, ServiceSlot(ip_address(vip), port, 6)
    name, key = keys.services_table(slot), keys.packed_slot(slot)
    was = dict(table.items(name)).get(key)
    if value is None:
        libbpf.map_delete(table._fds[name], key)
    else:
        libbpf.map_update(table._fds[name], key, value)
    return was


def place(port: int) -> int:
    """``found_at`` for TCP and VIP4."""
    vip = int.from_bytes(ip_address(VIP4).packed, "little")
    tail = int.from_bytes(port.to_bytes(2, "big"), "little") | 6 << 16 | 4 << 24
    return ((tail << 32 | vip) * flowhash.PICK_MUL0 & (1 << 64) - 1) >> 56


NEIGHBOUR = next(port for port in range(1000, 65_536) if place(port) == place(80))


@pytest.mark.usefixtures("one_cpu")
@FAMILIES
def test_a_service_is_looked_up_again_when_the_agent_says_so(rig: Rig, vip, client, servers, own):
    rig.serve(service(backend("a", servers.format(1)), vip=vip))
    assert rig.verdict(tcp(vip=vip)) == Verdict.TX
    row = unsaid(rig, 80, None, vip)
    assert rig.verdict(tcp(vip=vip)) == Verdict.TX
    rig.tables.services_changed()
    assert rig.verdict(tcp(vip=vip)) == Verdict.PASS
    unsaid(rig, 80, row, vip)
    assert rig.verdict(tcp(vip=vip)) == Verdict.PASS, "that there is none is noted down too"
    rig.tables.services_changed()
    assert rig.verdict(tcp(vip=vip)) == Verdict.TX


@pytest.mark.usefixtures("one_cpu")
def test_whoever_tries_ports_takes_no_services_place(rig: Rig):
    rig.serve(service(backend("a")))
    assert rig.verdict(tcp(port=NEIGHBOUR)) == Verdict.PASS
    assert rig.verdict(tcp()) == Verdict.TX
    assert rig.verdict(tcp(port=NEIGHBOUR)) == Verdict.PASS
    unsaid(rig, 80, None)
    assert rig.verdict(tcp()) == Verdict.TX, "it is where it was noted down"


def test_two_services_of_one_place_are_told_apart(rig: Rig):
    rig.serve(service(backend("a")), service(backend("b"), name="other", port=NEIGHBOUR))
    found = [rig.backend_of(tcp(port=port)) for port in (80, NEIGHBOUR, 80, 80, NEIGHBOUR)]
    assert found == ["a", "b", "a", "a", "b"]


def test_what_was_noted_down_of_one_protocol_and_family_is_not_for_another(rig: Rig):
    rig.serve(service(backend("a")), service(backend("b", "fd00::21"), name="six", vip=VIP6))
    for frame in (tcp(), tcp(vip=VIP6)):
        assert rig.verdict(frame) == Verdict.TX
    for frame in (udp(port=80), udp(vip=VIP6, port=80)):
        assert rig.verdict(frame) == Verdict.PASS


@pytest.mark.usefixtures("one_cpu")
def test_an_agent_that_starts_has_services_looked_up_again(instance: str):
    """The one before it may have been killed between a change and the word of it."""
    config, web = Config(instance, "lo", tables=SMALL), service(backend("a"))
    rig = Rig(load(config, (web,)))
    rig.serve(web)
    assert rig.verdict(tcp()) == Verdict.TX
    unsaid(rig, 80, None)
    assert rig.verdict(tcp()) == Verdict.TX
    load(config, (web,))
    assert rig.verdict(tcp()) == Verdict.PASS


# -- ranges


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize(("first", "last"), [(8000, 8010), (1, 65_534), (65_534, 65_535)])
def test_a_range_has_exactly_its_ports(rig: Rig, vip: str, first: int, last: int):
    rig.serve(service(backend("a", V4_SERVERS.format(1)), vip=vip, port=first, port_last=last,
                      forward=Forward.IPIP))  # fmt: skip
    inside = {first, last, (first + last) // 2}
    outside = {first - 1, last + 1} & set(range(1, 65_536))
    assert {rig.verdict(tcp(vip=vip, port=port)) for port in inside} == {Verdict.TX}
    assert all(rig.verdict(tcp(vip=vip, port=port)) == Verdict.PASS for port in outside)
    assert rig.verdict(udp(vip=vip, port=first)) == Verdict.PASS


def test_every_port_of_a_range_is_a_flow_of_its_own(rig: Rig):
    rig.serve(service(backend("a"), port=8000, port_last=8010))
    for port in (8000, 8005):
        rig.send(tcp(port=port))
    assert [bool(rig.slot(CLIENT4, port=port)) for port in (8000, 8005, 8006)] == [1, 1, 0]


def test_one_port_of_a_range_may_be_a_service_of_its_own(rig: Rig):
    rig.serve(
        service(backend("wide"), port=8000, port_last=8010),
        service(backend("narrow"), name="one", port=8005),
        service(backend("rest"), name="rest", port=0),
    )
    found = {port: rig.backend_of(tcp(port=port)) for port in (8000, 8005, 8010, 7999, 22)}
    assert found == {8000: "wide", 8005: "narrow", 8010: "wide", 7999: "rest", 22: "rest"}


def test_a_range_that_grows_and_shrinks_keeps_its_flows(rig: Rig):
    rig.serve(service(*(backend(n) for n in "abcd"), port=8000, port_last=8010))
    first = rig.backend_of(tcp(port=8005))
    for last, reaches in ((8063, True), (8005, True), (8004, False), (8010, True)):
        rig.serve(service(*(backend(n) for n in "abcd"), port=8000, port_last=last))
        verdict = rig.verdict(tcp("A", port=8005))
        assert verdict == (Verdict.TX if reaches else Verdict.PASS)
    assert rig.backend_of(tcp("A", port=8005)) == first
    assert rig.counts(first).opened == 1


# -- prefixes


@pytest.mark.parametrize(
    ("first", "bits", "inside", "outside"),
    [
        ("203.0.113.0", 28, ["203.0.113.0", "203.0.113.15"], ["203.0.113.16", "203.0.112.255"]),
        ("203.0.0.0", 16, ["203.0.255.255"], ["203.1.0.0"]),
        ("2001:db8:9::", 48, ["2001:db8:9::", "2001:db8:9:ffff::1"], ["2001:db8:a::"]),
        ("2001:db8::", 32, ["2001:db8:ffff::"], ["2001:db9::"]),
    ],
)
def test_a_prefix_has_exactly_its_addresses(rig: Rig, first, bits, inside, outside):
    member = backend("a", V4_SERVERS.format(1))
    rig.serve(service(member, vip=first, vip_bits=bits, forward=Forward.IPIP))
    client = "198.51.100.7" if "." in first else "fd00::7"  # not below the VIP itself
    assert {rig.verdict(tcp(vip=vip, client=client)) for vip in inside} == {Verdict.TX}
    assert {rig.verdict(tcp(vip=vip, client=client)) for vip in outside} == {Verdict.PASS}
    assert rig.verdict(tcp(vip=inside[0], port=81)) == Verdict.PASS


def test_the_address_below_a_prefix_is_part_of_the_flow(rig: Rig):
    rig.serve(service(backend("a"), vip="203.0.113.0", vip_bits=28))
    for host in (3, 4):
        rig.send(tcp(vip=f"203.0.113.{host}"))
    assert rig.counts("a").opened == 2
    found = [rig.slot(CLIENT4, below_prefix=f"203.0.113.{host}") for host in (3, 4, 5)]
    assert [bool(slot) for slot in found] == [True, True, False]


def test_a_vip_of_its_own_goes_before_the_prefix_around_it(rig: Rig):
    rig.serve(
        service(backend("wide"), name="wide", vip="203.0.113.0", vip_bits=24),
        service(backend("half"), name="half", vip="203.0.113.128", vip_bits=25),
        service(backend("own"), name="own", vip="203.0.113.10"),
    )
    found = {host: rig.backend_of(tcp(vip=f"203.0.113.{host}")) for host in (10, 11, 127, 128)}
    assert found == {10: "own", 11: "wide", 127: "wide", 128: "half"}


def test_a_prefix_may_have_ranges_and_any_port(rig: Rig):
    prefix = {"vip": "203.0.113.0", "vip_bits": 28}
    rig.serve(
        service(backend("range"), name="range", port=8000, port_last=8010, **prefix),
        service(backend("rest"), name="rest", port=0, **prefix),
    )
    found = {port: rig.backend_of(tcp(vip="203.0.113.9", port=port)) for port in (8003, 443)}
    assert found == {8003: "range", 443: "rest"}


def test_a_prefix_that_is_taken_away_is_nobodys(rig: Rig):
    member = backend("a")
    rig.serve(service(member, vip="203.0.113.0", vip_bits=28))
    rig.serve(service(member, vip="203.0.113.0", vip_bits=30))
    assert rig.verdict(tcp(vip="203.0.113.9")) == Verdict.PASS
    assert rig.verdict(tcp(vip="203.0.113.3")) == Verdict.TX
    rig.serve()
    assert rig.verdict(tcp(vip="203.0.113.3")) == Verdict.PASS


# -- nat and fullnat


def network(frame: bytes) -> IP | IPv6:
    packet = Ether(frame)
    return packet[IP] if IP in packet else packet[IPv6]


def reply(member, client: str, to_port: int, from_port: int, protocol=TCP) -> bytes:
    """A packet of a backend to somebody, as it comes in at the balancer."""
    ether = Ether(dst=BALANCER_MAC, src=mac_of(member.address))
    ip = network_layer(str(member.address), client)
    return bytes(ether / ip / protocol(sport=from_port, dport=to_port))


@FAMILIES
@pytest.mark.parametrize(
    ("ports", "asked", "own_port", "served"),
    [
        ({"port": 80}, 80, None, 80),
        ({"port": 80}, 80, 8080, 8080),
        ({"port": 0}, 5000, None, 5000),
        ({"port": 8000, "port_last": 8010}, 8004, None, 8004),
    ],
    ids=["one", "another", "any", "range"],
)
def test_nat_and_back(rig: Rig, vip, client, servers, own, ports, asked, own_port, served):
    member = backend("a", servers.format(1), port=own_port)
    rig.serve(service(member, vip=vip, forward=Forward.NAT, **ports))
    done = rig.send(tcp("S", vip=vip, port=asked))
    assert done.verdict == Verdict.TX
    there = network(done.data)
    assert (there.src, there.dst, there[TCP].dport) == (client, str(member.address), served)
    back = rig.send(reply(member, client, 40_000, served))
    assert back.verdict == Verdict.TX
    here = network(back.data)
    assert (here.src, here.dst) == (vip, client)
    assert (here[TCP].sport, here[TCP].dport) == (asked, 40_000)
    assert rig.counts("a").reply_packets == 1


@FAMILIES
def test_what_a_nat_backend_says_by_itself_is_the_hosts(rig: Rig, vip, client, servers, own):
    member = backend("a", servers.format(1))
    rig.serve(service(member, vip=vip, forward=Forward.NAT))
    for frame in (reply(member, client, 40_000, 80), reply(member, client, 40_000, 22)):
        done = rig.send(frame)
        assert (done.verdict, done.data) == (Verdict.PASS, frame)


def test_answers_of_one_address_for_two_services_go_by_its_port(rig: Rig):
    one, two = backend("one", "10.1.2.1", port=8001), backend("two", "10.1.2.1", port=8002)
    rig.serve(
        service(one, forward=Forward.NAT),
        service(two, name="other", port=443, forward=Forward.NAT),
    )
    rig.send(tcp("S", port=80))
    rig.send(tcp("S", port=443))
    found = [network(rig.send(reply(one, CLIENT4, 40_000, port)).data)[TCP].sport
             for port in (8001, 8002)]  # fmt: skip
    assert found == [80, 443]


@FAMILIES
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_fullnat_and_back(rig: Rig, vip, client, servers, own, protocol):
    member = backend("a", servers.format(1), port=8080)
    rig.serve(service(member, vip=vip, forward=Forward.FULLNAT, protocol=protocol))
    layer, make = (TCP, tcp) if protocol is Protocol.TCP else (UDP, udp)
    there = network(rig.send(make(vip=vip, port=80)).data)
    assert (there.src, there.dst, there[layer].dport) == (own, str(member.address), 8080)
    size, port = rig.dataplane.size, there[layer].sport
    assert size.nat_first_port <= port < size.nat_first_port + size.nat_ports
    slot = rig.nat_slot(0 if vip == VIP4 else 8, port)
    assert (slot["client_port"], slot["vip_port"]) == (40_000, 80)
    here = network(rig.send(reply(member, own, port, 8080, layer)).data)
    assert (here.src, here.dst) == (vip, client)
    assert (here[layer].sport, here[layer].dport) == (80, 40_000)


def test_fullnat_below_a_prefix_answers_from_the_address_that_was_asked(rig: Rig):
    member = backend("a", "10.1.2.1")
    rig.serve(service(member, vip="203.0.113.0", vip_bits=28, forward=Forward.FULLNAT))
    there = network(rig.send(tcp(vip="203.0.113.7")).data)
    here = network(rig.send(reply(member, there.src, there[TCP].sport, 80)).data)
    assert here.src == "203.0.113.7"


def test_fullnat_sends_from_all_of_its_sources_and_keeps_them_apart(rig: Rig):
    sources = tuple(ip_address(f"10.0.0.{n}") for n in (5, 6, 7))
    member = backend("a", "10.1.2.1")
    rig.serve(service(member, forward=Forward.FULLNAT), nat=Nat(sources_v4=sources))
    assert list(rig.tables.nat_sources["count"][[0, 8]]) == [3, 0]
    rig.send(tcp(client_port=1))
    taken = network(rig.send(tcp(client_port=2)).data)
    assert ip_address(taken.src) in sources
    back = network(rig.send(reply(member, taken.src, taken[TCP].sport, 80)).data)
    assert back[TCP].dport == 2
    other = next(str(s) for s in sources if str(s) != taken.src)
    frame = reply(member, other, taken[TCP].sport, 80)
    assert rig.verdict(frame) in (Verdict.PASS, Verdict.DROP)


def test_a_source_that_stays_keeps_the_flows_when_others_come_and_go(rig: Rig):
    one, two, three = (ip_address(f"10.0.0.{n}") for n in (5, 6, 7))
    web = service(backend("a", "10.1.2.1"), forward=Forward.FULLNAT)
    rig.serve(web, nat=Nat(sources_v4=(two,)))
    first = network(rig.send(tcp("S")).data)
    assert first.src == str(two)
    for sources in ((one, two), (one, two, three), (two, three)):
        rig.serve(web, nat=Nat(sources_v4=sources))
        again = network(rig.send(tcp("A")).data)
        assert (again.src, again[TCP].sport) == (first.src, first[TCP].sport)


# -- QUIC


def quic(server_id: bytes, client: str = CLIENT4, client_port: int = 40_000) -> bytes:
    """A short header whose connection id names a server."""
    payload = b"\x40" + b"\x07" + server_id.ljust(12, b"\x55") + bytes(20)
    return udp(port=443, client=client, client_port=client_port, payload=payload)


def quic_service(*members, **fields: object):
    return service(*members, port=443, protocol=Protocol.UDP, quic_id_bytes=4, **fields)


def test_a_quic_connection_follows_its_id_to_whatever_address(rig: Rig):
    members = [backend(n, quic_server_id=n.encode() * 4) for n in "abcd"]
    rig.serve(quic_service(*members))
    for name in "abcd":
        found = {
            rig.backend_of(quic(name.encode() * 4, f"198.51.100.{host}", 1000 + host))
            for host in range(1, 20)
        }
        assert found == {name}


def test_an_id_that_nobody_has_goes_by_the_ring_and_stays(rig: Rig):
    rig.serve(quic_service(*(backend(n, quic_server_id=n.encode() * 4) for n in "ab")))
    first = rig.backend_of(quic(b"zzzz"))
    assert rig.backend_of(quic(b"yyyy")) == first


@pytest.mark.parametrize("out", ["disabled", "down"])
def test_an_id_of_a_backend_that_gave_its_flows_up_goes_to_another(rig: Rig, out: str):
    admin = AdminState.MAINTENANCE if out == "disabled" else AdminState.ACTIVE
    members = (
        backend("a", quic_server_id=b"aaaa", admin=admin),
        backend("b", quic_server_id=b"bbbb"),
    )
    rig.serve(
        quic_service(*members, down_flows=DownFlows.REROUTE),
        down=("a",) if out == "down" else (),
    )
    assert rig.backend_of(quic(b"aaaa")) == "b"
    assert rig.backend_of(quic(b"aaaa")) == "b"
    assert rig.counts("b").opened == 1


def test_a_draining_backend_keeps_the_connections_that_name_it(rig: Rig):
    drained = backend("a", quic_server_id=b"aaaa", admin=AdminState.DRAIN)
    rig.serve(quic_service(drained, backend("b", quic_server_id=b"bbbb")))
    assert rig.backend_of(quic(b"aaaa")) == "a"
