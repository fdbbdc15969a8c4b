"""Clients of a zone get its backends first, and who has a place keeps it."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network

import pytest

from agent.dataplane.explain import explain
from agent.model import Address, Protocol, Scheduler, Service, Zone
from agent.state.queries import FiveTuple
from tests.packet.frames import ACK, FIN, SYN, VIP4, VIP6, Segments, tcp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pieces import framed, icmp, quoted
from tests.packet.wires import Packet

ZONES = (
    Zone("east", (ip_network("10.1.0.0/16"), ip_network("2001:db8:1::/48"))),
    Zone("west", (ip_network("10.1.2.0/24"), ip_network("2001:db8:1:2::/64"))),
    Zone("point", (ip_network("10.1.2.3/32"), ip_network("2001:db8:1:2::3/128"))),
)
EAST, WEST, POINT, NOWHERE = range(4)
CLIENTS = {
    VIP4: ("10.1.3.0", "10.1.2.4", "10.1.2.3", "10.2.0.0"),
    VIP6: ("2001:db8:1:3::", "2001:db8:1:2::4", "2001:db8:1:2::3", "2001:db8:2::"),
}
SCHEDULERS = pytest.mark.parametrize("scheduler", Scheduler)
FAMILIES = pytest.mark.parametrize("vip", [VIP4, VIP6])


def near(name: str, zone: str | None, **fields: object):
    return backend(name, zone=zone, **fields)


def three(**fields: object) -> Service:
    return service(near("e", "east"), near("w", "west"), near("n", None), **fields)


def client_of(vip: str, zone: int) -> Address:
    return ip_address(CLIENTS[vip][zone])


def opened(
    rig: Rig,
    client: Address,
    count: int = 40,
    flags: int = SYN,
    first: int = 1024,
) -> Counter[str]:
    """The backends of so many new flows of one client."""
    segments = Segments(VIP4 if client.version == 4 else VIP6)
    found: Counter[str] = Counter()
    for port in range(first, first + count):
        done = rig.send(segments.frame(client.packed, port, flags))
        assert done.verdict == Verdict.TX, Verdict(done.verdict).name
        found[rig.name_of_mac(done.data[:6])] += 1
    return found


@FAMILIES
def test_the_longest_prefix_tells_the_zone(hooked: Rig, vip: str):
    hooked.serve(three(vip=vip), zones=ZONES)
    assert set(opened(hooked, client_of(vip, EAST))) == {"e"}
    assert set(opened(hooked, client_of(vip, WEST))) == {"w"}
    assert set(opened(hooked, client_of(vip, POINT))) == {"e", "w", "n"}, "nobody is near it"
    assert set(opened(hooked, client_of(vip, NOWHERE))) == {"e", "w", "n"}


@FAMILIES
@SCHEDULERS
def test_every_scheduler_draws_from_the_ring_of_the_zone(rig: Rig, scheduler: Scheduler, vip: str):
    members = [near(f"{zone}{n}", zone) for zone in ("east", "west") for n in range(3)]
    rig.serve(service(*members, vip=vip, scheduler=scheduler), zones=ZONES)
    alone = scheduler is Scheduler.SOURCE  # one client has one backend
    found = opened(rig, client_of(vip, EAST))
    assert set(found) < {"east0", "east1", "east2"} if alone else set(found) == {
        "east0", "east1", "east2",
    }  # fmt: skip
    assert all(name.startswith("west") for name in opened(rig, client_of(vip, WEST)))
    if not alone:
        assert len(opened(rig, client_of(vip, NOWHERE), 80)) == 6


@SCHEDULERS
def test_who_goes_on_or_ends_is_drawn_from_the_same_ring(rig: Rig, scheduler: Scheduler):
    """They have no record, and no SYN has told anything."""
    rig.serve(three(scheduler=scheduler), zones=ZONES)
    assert set(opened(rig, client_of(VIP4, EAST), flags=FIN | ACK)) == {"e"}
    assert set(opened(rig, client_of(VIP4, WEST), flags=ACK)) == {"w"}


@FAMILIES
@SCHEDULERS
def test_where_a_zone_has_nobody_left_the_whole_service_serves(
    rig: Rig, scheduler: Scheduler, vip: str
):
    rig.serve(three(vip=vip, scheduler=scheduler), zones=ZONES)
    rig.make_unusable("e")
    assert set(opened(rig, client_of(vip, EAST))) <= {"w", "n"}
    rig.make_unusable("w")
    assert set(opened(rig, client_of(vip, EAST), first=5000)) == {"n"}
    rig.make_unusable("n")
    client = str(client_of(vip, EAST))
    assert rig.verdict(tcp(vip=vip, client=client)) == Verdict.DROP
    assert rig.reasons() == {"no-backend": 1}


@SCHEDULERS
def test_a_recorded_flow_stays_whatever_becomes_of_its_zone(rig: Rig, scheduler: Scheduler):
    rig.serve(three(scheduler=scheduler), zones=ZONES)
    segments, client = Segments(), client_of(VIP4, EAST)
    assert set(opened(rig, client)) == {"e"}
    moved = (Zone("west", (ip_network("10.1.0.0/16"),)),)
    rig.serve(three(scheduler=scheduler), zones=moved)
    for port in range(1024, 1064):
        done = rig.send(segments.frame(client.packed, port, ACK))
        assert rig.name_of_mac(done.data[:6]) == "e"
    assert set(opened(rig, client, first=5000)) == {"w"}
    rig.serve(three(scheduler=scheduler), zones=())
    assert set(opened(rig, client)) == {"e"}, "the same connections again"


@FAMILIES
def test_an_error_follows_the_zone_of_the_client_it_is_about(rig: Rig, vip: str):
    """The router that sends it is in no zone, and the flow has no record."""
    members = [near(f"{zone}{n}", zone) for zone in ("east", "west") for n in range(3)]
    rig.serve(service(*members, vip=vip), zones=ZONES)
    client, router = client_of(vip, EAST), client_of(vip, NOWHERE)
    for port in range(1024, 1044):
        (own,) = opened(rig, client, 1, FIN | ACK, port)
        answer = Packet(vip, str(client), 80, port, flags="A")
        kind, code = (3, 4) if client.version == 4 else (2, 0)
        error = framed(icmp(str(router), vip, kind, code, 1400, quoted(answer.ip, 20)))
        assert rig.backend_of(error) == own
        assert own.startswith("east")


# -- shares: 2 of 5 near backends are up, so 1.4 * 2/5 of the load stays there


def five_and_two(zone: bool, **fields: object) -> Service:
    first = [near(f"a{n}", "east" if zone else None) for n in range(5)]
    after = [near(f"b{n}", None, priority=0 if zone else 1) for n in range(2)]
    return service(*first, *after, **fields)


def share_of_first(rig: Rig, flows: int, first: int = 1024) -> float:
    """Of the flows of as many clients in east."""
    segments, found = Segments(), 0
    for n in range(flows):
        client = ip_address("10.1.4.0") + 7 * n % 20_000
        done = rig.send(segments.frame(client.packed, first + n, SYN))
        found += rig.name_of_mac(done.data[:6]).startswith("a")
    return found / flows


@SCHEDULERS
@pytest.mark.parametrize("zone", [True, False], ids=["zone", "priority"])
def test_what_a_level_cannot_take_spills_over(rig: Rig, scheduler: Scheduler, zone: bool):
    """Schedulers that compare, too, though who gets the spill-over has less to do."""
    rig.serve(five_and_two(zone, scheduler=scheduler), down={"a0", "a1", "a2"}, zones=ZONES)
    assert share_of_first(rig, 2500) == pytest.approx(0.56, abs=0.05)
    rig.serve(five_and_two(zone, scheduler=scheduler), down={"a0"}, zones=ZONES)
    assert share_of_first(rig, 300, 10_000) == 1.0, "four of five take all"


@pytest.mark.parametrize("scheduler", [Scheduler.LEAST_LOAD, Scheduler.LEAST_CONN])
def test_within_a_level_the_less_loaded_gets_more(rig: Rig, scheduler: Scheduler):
    rig.serve(five_and_two(True, scheduler=scheduler), down={"a0", "a1", "a2"}, zones=ZONES)
    for name, load in (("a3", 50), ("b0", 50)):
        row = rig.tables.backend_load[rig.backend_id(name)]
        row["open_fix"], row["waiting_fix"] = load, 0
    found = opened(rig, client_of(VIP4, EAST), 60)
    assert found["a4"] > 5 * found["a3"]
    assert found["b1"] > 5 * found["b0"]


def test_each_zone_takes_its_own_turns(rig: Rig, one_cpu: int):
    """Clients that come one after the other: with turns in common, each would see every other."""
    members = [near(f"{zone}{n}", zone) for zone in ("east", "west") for n in range(2)]
    rig.serve(service(*members, scheduler=Scheduler.ROUND_ROBIN), zones=ZONES)
    found: Counter[str] = Counter()
    for port in range(1024, 1064):
        found += opened(rig, client_of(VIP4, EAST), 1, first=port)
        found += opened(rig, client_of(VIP4, WEST), 1, first=port)
    assert set(found.values()) == {20}


def test_a_service_without_levels_asks_for_no_zone(rig: Rig):
    plain = service(near("p", None), near("q", None), name="plain", port=81)
    rig.serve(three(), plain, zones=ZONES)
    client = str(client_of(VIP4, EAST))
    got = {rig.backend_of(tcp(port=81, client=client, client_port=n)) for n in range(1, 40)}
    assert got == {"p", "q"}


@FAMILIES
@SCHEDULERS
def test_explain_knows_the_zone(rig: Rig, scheduler: Scheduler, vip: str, one_cpu: int):
    members = [near(f"{zone or 'none'}{n}", zone) for zone in ("east", "west", None)
               for n in range(4)]  # fmt: skip
    rig.serve(service(*members, vip=vip, scheduler=scheduler), down={"east0", "east1"}, zones=ZONES)
    rig.make_unusable("east2")
    for n in range(4):
        rig.make_unusable(f"west{n}")
    draw, segments, words = random.Random(7), Segments(vip), set()
    for n in range(140):
        zone = draw.randrange(4)
        client = client_of(vip, zone)
        ident = rig.backend_id(draw.choice(members).name)
        rig.tables.backend_load["waiting_fix"][ident] = draw.randrange(30_000)
        flow = FiveTuple(Protocol.TCP, client, 1024 + n, ip_address(vip), 80)
        said = explain(rig.view(), flow)
        words |= {step for step in said.steps if "zone" in step or "ring of" in step}
        got = rig.name_of_mac(rig.send(segments.frame(client.packed, 1024 + n, SYN)).data[:6])
        if said.backend is not None:
            assert said.backend == got, said.steps
        else:
            assert scheduler is Scheduler.ROUND_ROBIN
    said = " | ".join(words)
    for expected in ("is in zone east", "ring of east", "is in no zone", "no backend is near it",
                     "on to the service's own ring"):  # fmt: skip
        assert expected in said
