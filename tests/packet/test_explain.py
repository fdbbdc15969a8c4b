"""What ``explain`` says of a packet is what the kernel does with it, whatever the scheduler."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.dataplane.explain import explain
from agent.dataplane.flows import query_flows
from agent.model import BackendRef, Forward, Nat, Protocol, Scheduler
from agent.state.queries import Explanation, FiveTuple, FlowQuery, FlowView
from tests.packet import nodes
from tests.packet.frames import (
    ACK,
    FIN,
    SYN,
    VIP4,
    VIP6,
    Segments,
    random_clients,
    tcp,
    udp,
)
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

COMPARING = [Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD]
VIPS = [VIP4, VIP6]


def flow_of(vip: str, address, client_port: int, port: int = 80, protocol=Protocol.TCP):
    return FiveTuple(protocol, address, client_port, ip_address(vip), port)


def many(count: int) -> list:
    return [backend(f"b{n}", weight=10 + 13 * n) for n in range(count)]


def taken(rig: Rig, frame: bytes) -> str | None:
    """The backend that the kernel gives a frame; None: it is not forwarded."""
    done = rig.send(frame)
    return rig.name_of_mac(done.data[:6]) if done.verdict == Verdict.TX else None


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("scheduler", COMPARING)
def test_the_least_loaded_of_the_moment(rig: Rig, scheduler: Scheduler, vip: str):
    rig.serve(service(*many(20), vip=vip, scheduler=scheduler), hash_seed=77)
    for n in range(0, 20, 6):
        rig.make_unusable(f"b{n}")
    draw, segments = random.Random(3), Segments(vip)
    got = set()
    for address, port in random_clients(11, 600, ipv6=vip == VIP6):
        ident = rig.backend_id(f"b{draw.randrange(20)}")
        rig.tables.backend_load["waiting_fix"][ident] = draw.randrange(30_000)
        said = explain(rig.view(), flow_of(vip, address, port))
        got.add(said.backend)
        assert (said.verdict, said.depends_on) == ("forward", "load")
        assert said.backend == taken(rig, segments.frame(address.packed, port, SYN))
    assert len(got) > 10, "the load changed whom they got"


def test_reports_count_in_it_as_long_as_they_do_in_the_kernel(rig: Rig):
    rig.serve(service(*many(20), scheduler=Scheduler.LEAST_LOAD))
    draw, segments, loads = random.Random(5), Segments(), rig.tables.backend_load
    told_hot = 0
    for address, port in random_clients(14, 400):
        ident = rig.backend_id(f"b{draw.randrange(20)}")
        loads["queue"][ident], loads["is_hot"][ident] = draw.randrange(30_000), draw.random() < 0.3
        left_s = draw.choice([-60, 60])
        now = rig.dataplane.now_jiffies()
        loads["report_until"][ident] = (now + left_s * rig.clock.hz) & 0xFFFFFFFF
        said = explain(rig.view(), flow_of(VIP4, address, port))
        told_hot += any("(hot)" in step for step in said.steps)
        assert said.backend == taken(rig, segments.frame(address.packed, port, SYN))
    assert told_hot > 50


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("draws", [2, 8])
def test_so_many_draws_as_are_configured(rig: Rig, vip: str, draws: int):
    rig.serve(service(*many(20), vip=vip, scheduler=Scheduler.LEAST_LOAD, draws=draws))
    segments = Segments(vip)
    for address, port in random_clients(12, 400, ipv6=vip == VIP6):
        said = explain(rig.view(), flow_of(vip, address, port))
        assert len(said.draws) == draws
        assert said.backend == taken(rig, segments.frame(address.packed, port, SYN))


def test_where_none_of_the_draws_is_usable_the_next_is_taken(rig: Rig):
    rig.serve(service(*many(12), scheduler=Scheduler.LEAST_LOAD, draws=2))
    for n in range(11):
        rig.make_unusable(f"b{n}")
    segments = Segments()
    went_on = 0
    for address, port in random_clients(13, 300):
        said = explain(rig.view(), flow_of(VIP4, address, port))
        went_on += len(said.draws) > 2
        assert said.backend == taken(rig, segments.frame(address.packed, port, SYN))
    assert went_on > 50


@pytest.mark.parametrize(("vip", "bits"), [(VIP4, 32), (VIP4, 20), (VIP6, 128), (VIP6, 56)])
def test_the_clients_prefix_and_the_bound(rig: Rig, vip: str, bits: int):
    rig.serve(
        service(
            *(backend(f"b{n}") for n in range(6)), vip=vip,
            scheduler=Scheduler.SOURCE, source_bits=bits, source_bound=1.05,
        )
    )  # fmt: skip
    segments, passed_over = Segments(vip), 0
    for address, port in random_clients(14, 400, ipv6=vip == VIP6):
        said = explain(rig.view(), flow_of(vip, address, port))
        passed_over += any("passed over" in step for step in said.steps)
        assert said.backend == taken(rig, segments.frame(address.packed, port, SYN))
        rig.send(segments.frame(address.packed, port, ACK))
    assert passed_over > 2
    assert passed_over < 300


def test_clients_of_one_prefix_share_a_backend(rig: Rig):
    rig.serve(
        service(*many(9), scheduler=Scheduler.SOURCE, source_bits=24, source_bound=0),
    )
    segments = Segments()
    told, got = set(), set()
    for n in range(60):
        address = ip_address("198.51.100.0") + n
        said = explain(rig.view(), flow_of(VIP4, address, 1000 + n))
        told.add((said.backend, said.depends_on))
        got.add(taken(rig, segments.frame(address.packed, 1000 + n, SYN)))
    assert told == {(*got, None)}


def test_the_next_in_turn_of_the_cpu(rig: Rig, one_cpu: int):
    rig.serve(service(*many(5), scheduler=Scheduler.ROUND_ROBIN))
    rig.make_unusable("b3")
    segments, others = Segments(), 0
    for address, port in random_clients(15, 300):
        said = explain(rig.view(), flow_of(VIP4, address, port))
        assert said.depends_on == "turn"
        (mine,) = [each for each in said.draws if each.cpu == one_cpu]
        got = taken(rig, segments.frame(address.packed, port, SYN))
        if mine.usable:
            assert got == mine.backend
        else:
            assert any(step.endswith(f"names {got}, usable") for step in said.steps)
            others += 1
    assert others > 20


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_nobody_usable_is_a_drop(rig: Rig, scheduler: Scheduler):
    rig.serve(service(backend("a"), backend("b"), scheduler=scheduler), down={"a", "b"})
    said = explain(rig.view(), flow_of(VIP4, ip_address("198.51.100.7"), 1))
    assert (said.verdict, said.backend) == ("drop", None)
    assert rig.verdict(tcp(client_port=1)) == Verdict.DROP


@pytest.mark.parametrize(
    ("client", "kind"),
    [("127.0.0.1", "loopback"), ("224.0.0.5", "multicast"), (VIP4, "a VIP"), ("::1", "loopback"),
     ("203.0.112.7", "a VIP"), ("10.0.0.5", "a source address of fullnat"), (VIP6, "a VIP")],
)  # fmt: skip
def test_a_martian_is_a_drop(rig: Rig, client: str, kind: str):
    rig.serve(
        service(backend("a")),
        service(backend("b", "fd00:1::1"), name="web6", vip=VIP6),
        service(backend("c"), name="below", vip="203.0.112.0", vip_bits=24, port=81),
        service(backend("d"), name="full", port=82, forward=Forward.FULLNAT),
        nat=Nat(sources_v4=(ip_address("10.0.0.5"),)),
    )
    vip = VIP4 if "." in client else VIP6
    said = explain(rig.view(), flow_of(vip, ip_address(client), 4711))
    assert (said.verdict, said.reason, said.backend) == ("drop", "martian", None)
    assert kind in said.steps[-1]
    assert rig.verdict(tcp(vip=vip, client=client, client_port=4711)) == Verdict.DROP


def test_ranges_prefixes_and_any_port_are_found_as_the_kernel_finds_them(rig: Rig):
    rig.serve(
        service(backend("exact"), name="exact", vip="203.0.113.0", vip_bits=24),
        service(backend("range"), name="range", vip="203.0.113.0", vip_bits=24,
                port=8000, port_last=8037),
        service(backend("any"), name="any", vip="203.0.113.0", vip_bits=24, port=0),
        service(backend("host"), name="host", vip="203.0.113.40"),
        service(backend("lower"), name="lower", vip="203.0.112.0", vip_bits=23, port=443),
    )  # fmt: skip
    draw = random.Random(5)
    vips = [f"203.0.{third}.{last}" for third in (111, 112, 113) for last in (0, 1, 40, 255)]
    found = set()
    for number in range(1500):
        vip, port = draw.choice(vips), draw.choice([80, 443, 7999, 8000, 8021, 8037, 8038])
        protocol = draw.choice(list(Protocol))
        client = ip_address("198.51.100.0") + draw.randrange(256)
        make = tcp if protocol is Protocol.TCP else udp
        said = explain(rig.view(), flow_of(vip, client, 1024 + number, port, protocol))
        got = taken(rig, make(vip=vip, port=port, client=str(client), client_port=1024 + number))
        assert said.backend == got, (vip, port, protocol, said.steps)
        assert said.verdict == ("forward" if got else "pass")
        found.add(got)
    assert found == {None, "exact", "range", "any", "host", "lower"}


def answered(rig: Rig, flow: FiveTuple) -> Explanation:
    names = replace(rig.names(), counting=frozenset({rig.service_id()}))
    return explain(replace(rig.view(), names=names), flow)


@pytest.mark.parametrize("forward", list(Forward))
def test_a_recorded_flow_is_told_with_its_requests(rig: Rig, forward: Forward):
    rig.serve(service(backend("a"), forward=forward))
    goes_on = nodes.connected(rig, Packet())
    rig.send(goes_on.frame())
    request = b"GET / HTTP/1.1\r\n\r\n"
    rig.send(replace(goes_on, flags="PA", payload=request).frame())
    said = answered(rig, flow_of(VIP4, ip_address("198.51.100.7"), 40_000))
    assert (said.backend, said.reason) == ("a", "recorded flow")
    assert said.recorded.state == "established"
    requests = said.recorded.requests
    assert (requests.awaiting, requests.waiting_bytes, requests.talk) == (
        True, len(request), "plain",
    )  # fmt: skip
    assert requests.handshake_ms > 0
    assert (said.recorded.nat_source is not None) == (forward is Forward.FULLNAT)


def listed(rig: Rig, **query: object) -> list[FlowView]:
    dataplane = rig.dataplane
    names = replace(
        rig.names(),
        prefixes=frozenset(
            rig.ids.service_id(s) for s in rig.config.services if s.key.vip_bits is not None
        ),
    )
    page = query_flows(
        rig.tables, names, FlowQuery(**query), dataplane.keys, dataplane.clock,
        dataplane.now_jiffies(),
    )  # fmt: skip
    return list(page.flows)


@pytest.mark.parametrize(
    ("vip", "bits", "addresses"),
    [
        ("203.0.113.0", 24, ["203.0.113.1", "203.0.113.77", "203.0.113.255"]),
        ("2001:db8:1::", 48, ["2001:db8:1::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:ffff::"]),
    ],
)
def test_flows_below_a_prefix_are_listed_each_with_its_address(
    rig: Rig, vip: str, bits: int, addresses: list[str]
):
    rig.serve(service(backend("a"), vip=vip, vip_bits=bits))
    for address in addresses:
        rig.send(tcp("S", vip=address))
        rig.send(tcp("A", vip=address, payload=b"x"))
    assert {str(flow.tuple5.vip) for flow in listed(rig)} == set(addresses)
    for address in addresses:
        client = listed(rig)[0].tuple5.client
        said = explain(rig.view(), flow_of(address, client, 40_000))
        assert said.reason == "recorded flow"


def test_the_address_that_fullnat_gave_is_listed(rig: Rig):
    rig.serve(service(backend("a"), forward=Forward.FULLNAT))
    goes_on = nodes.connected(rig, Packet())
    out = rig.send(replace(goes_on, payload=b"x").frame()).data
    (flow,) = listed(rig)
    address, port = flow.nat_source
    assert (address.packed, port.to_bytes(2, "big")) == (out[26:30], out[34:36])
    assert rig.survey().nat_used.sum() == 1
    assert rig.names().backends[rig.backend_id("a")] == BackendRef("web", "a")


def test_ports_of_closed_and_forgotten_flows_are_not_in_use(rig: Rig):
    rig.serve(service(backend("a"), forward=Forward.FULLNAT))
    segments = Segments()
    for address, port in random_clients(16, 50):
        rig.send(segments.frame(address.packed, port, SYN))
    assert sorted(rig.survey().nat_used)[-2:] == [0, 50]
    for number, (address, port) in enumerate(random_clients(16, 50)):
        if number < 20:
            rig.send(segments.frame(address.packed, port, FIN | ACK))
    assert rig.survey().nat_used.sum() == 50, "a closing flow has its port"
    assert rig.survey(later_ticks=100).nat_used.sum() == 0, "all are idle past their timeout"
