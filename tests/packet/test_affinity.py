"""least-load with affinity: a client's new flows go home, unless its home has too much to do."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import flowhash, score
from agent.dataplane.explain import explain
from agent.model import Affinity, AffinityBy, Forward, Protocol, Scheduler, Service
from agent.state.queries import FiveTuple
from tests.examples import examples
from tests.packet.frames import ACK, SYN, VIP4, VIP6, Segments, random_clients
from tests.packet.harness import Rig, backend, service
from tests.packet.scheduling import (
    chance,
    chosen,
    draws,
    load_rows,
    load_score,
    named,
    picks_from,
    put_loads,
    row,
    share,
)
from tests.packet.talks import ANSWER, LATE_MS, MODES, POST, Wire, serve, serve6
from tests.packet.wires import Packet

BY_SOURCE = Affinity(AffinityBy.SOURCE)
FREELY = 100_000  # waiting bytes
VIPS = pytest.mark.parametrize("vip", [VIP4, VIP6])


def with_homes(*members, vip: str = VIP4, bits: int | None = None, **more: object) -> Service:
    affinity = Affinity(AffinityBy.SOURCE, bits)
    return service(*members, vip=vip, scheduler=Scheduler.LEAST_LOAD, affinity=affinity, **more)


def let(rig: Rig, escape: int) -> None:
    """So many bytes more may wait at a home."""
    rig.tables.service_load["escape"][rig.service_id()] = escape


def home_of(rig: Rig, client: str, bits: int | None = None) -> int:
    """The id of the backend that the client's address names: the ring's own word."""
    whole = 32 if "." in client else 128
    pick = flowhash.source_hash(int(row(rig)["pick_seed"]), ip_address(client), bits or whole)
    return draws(rig, pick, 1)[0]


@MODES
@VIPS
def test_a_clients_flows_go_home(rig: Rig, forward: Forward, vip: str):
    rig.serve(with_homes(*(backend(n) for n in "abcde"), vip=vip, forward=forward))
    let(rig, FREELY)
    homes = set()
    for address, _ in random_clients(1, 40, ipv6=vip == VIP6):
        found = {rig.name_of_mac(rig.send(Segments(vip).frame(address.packed, port, SYN)).data[:6])
                 for port in range(5000, 5012)}  # fmt: skip
        assert [rig.backend_id(name) for name in found] == [home_of(rig, str(address))]
        homes |= found
    assert homes == set("abcde")


@pytest.mark.parametrize(
    ("vip", "bits", "client"),
    [(VIP4, 24, "198.51.100.7"), (VIP4, None, "198.51.100.7"), (VIP6, 64, "2001:db8:c::7"),
     (VIP6, None, "2001:db8:c::7")],
)  # fmt: skip
def test_the_first_bits_of_the_client_name_its_home(rig: Rig, vip, bits, client):
    rig.serve(with_homes(*named(30, [100]), vip=vip, bits=bits))
    let(rig, FREELY)
    width = 32 if vip == VIP4 else 128
    make, own = (IPv4Address if vip == VIP4 else IPv6Address), int(ip_address(client))

    def of(value: int) -> int:
        return chosen(rig, Packet(str(make(value)), vip, 1))

    beyond, within = range(width - (bits or width)), range(width - (bits or width), width - 4)
    assert {of(own ^ (1 << bit)) for bit in beyond} <= {of(own)}
    assert len({of(own ^ (1 << bit)) for bit in within}) > 5


@settings(
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(load_rows, min_size=6, max_size=6),
    port=st.integers(1, 65_535),
    escape=st.sampled_from([0, 1, 4096, 50_000, 1 << 24]),
    is_near=st.booleans(),
)
def test_unless_it_has_more_to_do_than_the_best_by_more_than_it_is_worth(
    rig: Rig, rows, port: int, escape: int, is_near: bool
):
    rig.reset()
    rig.serve(with_homes(*named(6, [100])))
    let(rig, escape)
    ids = [rig.backend_id(f"b{n:03}") for n in range(6)]
    packet = Packet(sport=port)
    home = home_of(rig, packet.src)
    loads = dict(zip(ids, rows, strict=True))
    if is_near:  # what is far beside an escape is decided anyhow
        loads = {ident: rows[0] | {"waiting": load["waiting"] % 60_000}
                 for ident, load in loads.items()}  # fmt: skip
    put_loads(rig, loads)
    pick = flowhash.pick_hash(int(row(rig)["pick_seed"]), ip_address(packet.src), port, 80)
    drawn, picks = draws(rig, pick, 7), picks_from(pick, 7)  # and the home
    now = score.as_of(rig.tables.backend_load, rig.dataplane.now_jiffies())
    took = chosen(rig, packet)

    # By the words: work by weight, with chance for the draws alone.
    of_first, scale = share(loads[drawn[0]]), loads[drawn[0]]["weight"]
    is_hot, own = load_score(loads[home], of_first)
    best_is_hot, best = min(
        (hot, float(work) + chance(each) / scale)
        for (hot, work), each in zip(
            (load_score(loads[ident], of_first) for ident in drawn), picks, strict=True
        )
    )
    allowed = escape * loads[home]["per_byte"] / 2**24 / loads[home]["weight"]
    about = 0.06 * best + 0.15 / scale + 1 / 256 + 0.01 * allowed
    if is_hot > best_is_hot or (is_hot == best_is_hot and own > best + allowed + about):
        assert took in drawn
        assert took != home or home in drawn
    elif is_hot < best_is_hot or own < best + allowed - about:
        assert took == home

    # To the digit: what the agent shows is what decided.
    exact = score.of_draws([now[ident] for ident in drawn], picks)
    at_home = score.of_load(now[home], score.share(now[drawn[0]]))
    if at_home <= min(exact) + score.worth_of(now[home], escape):
        assert took == home
    else:
        assert took == drawn[exact.index(min(exact))]


def test_what_is_open_stays_and_new_flows_come_home_again(rig: Rig):
    rig.serve(with_homes(backend("a"), backend("b")))
    let(rig, FREELY)
    client, segments = ip_address("198.51.100.9"), Segments()

    def gets(port: int, flags: int) -> str:
        return rig.name_of_mac(rig.send(segments.frame(client.packed, port, flags)).data[:6])

    home = gets(5000, SYN)
    other = "b" if home == "a" else "a"
    load, ident = rig.tables.backend_load["waiting_fix"], rig.backend_id(home)
    load[ident] = 500_000
    assert [gets(5001 + n, SYN) for n in range(5)] == [other] * 5
    assert gets(5000, ACK) == home, "its flow stays"
    assert gets(5001, ACK) == other
    load[ident] = 0
    assert [gets(6000 + n, SYN) for n in range(5)] == [home] * 5


def test_a_home_that_is_gone_is_passed_over_at_once_and_then_another(rig: Rig):
    members = [backend(n) for n in "abcd"]
    rig.serve(with_homes(*members))
    let(rig, FREELY)
    clients = [str(IPv4Address("198.51.100.0") + n) for n in range(1, 60)]
    names = {rig.backend_id(n): n for n in "abcd"}

    def homes(port: int) -> dict[str, str]:
        return {each: names[chosen(rig, Packet(each, sport=port))] for each in clients}

    before = homes(5000)
    rig.make_unusable("b")  # before any ring is rebuilt
    rig.tables.backend_load["inverse_weight"][rig.backend_id("b")] = 0xFFFFFFFF
    at_once = homes(5001)
    rig.serve(with_homes(*members), down=["b"])
    let(rig, FREELY)
    after = homes(5002)
    for moment in (at_once, after):
        assert "b" not in moment.values()
        assert all(moment[each] == home for each, home in before.items() if home != "b")
    assert homes(5003) == after, "who has lost its home has one other"
    rig.serve(with_homes(*members))
    let(rig, FREELY)
    assert homes(5004) == before, "and comes back"


def test_a_connection_that_nobody_here_knows_goes_home(rig: Rig):
    """As after a failover without flow sync: most connections are at their clients' homes."""
    rig.serve(with_homes(*(backend(n) for n in "abcde")))
    let(rig, FREELY)
    for address, port in random_clients(4, 60):
        frame = Segments().frame(address.packed, port, ACK)
        found = rig.name_of_mac(rig.send(frame).data[:6])
        assert rig.backend_id(found) == home_of(rig, str(address))


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_in_nat_it_is_over(rig: Rig, forward: Forward):
    rig.serve(with_homes(*(backend(n) for n in "abc"), forward=forward))
    let(rig, FREELY)
    for address, port in random_clients(4, 20):
        rig.send(Segments().frame(address.packed, port, ACK))
    assert [rig.counts(n).opened for n in "abc"] == [0, 0, 0]


@VIPS
def test_the_agent_says_why(rig: Rig, vip: str):
    rig.serve(with_homes(*(backend(f"b{n}", weight=50 + n) for n in range(12)), vip=vip))
    rig.make_unusable("b3")
    let(rig, 5000)
    loads, said_home, said_away = rig.tables.backend_load, 0, 0
    for number, (address, port) in enumerate(random_clients(11, 300, ipv6=vip == VIP6)):
        loads["waiting_fix"][rig.backend_id(f"b{number % 12}")] = number * 7919 % 60_000
        flow = FiveTuple(Protocol.TCP, address, port, ip_address(vip), 80)
        said = explain(rig.view(), flow)
        done = rig.send(Segments(vip).frame(address.packed, port, SYN))
        assert said.backend == rig.name_of_mac(done.data[:6])
        said_home += any("as home: " in step for step in said.steps)
        said_away += any("has too much to do" in step for step in said.steps)
    assert min(said_home, said_away) > 50


@MODES
@pytest.mark.parametrize("served", [serve, serve6], ids=["v4", "v6"])
def test_a_sample_says_whose_it_was(hooked: Rig, forward: Forward, served):
    served(hooked, forward, scheduler=Scheduler.LEAST_LOAD, affinity=BY_SOURCE)
    for port in (40_000, 40_001):
        wire = Wire(hooked, port).open().ask(POST)
        wire.after(LATE_MS).gets(ANSWER)
    client = ip_address(Wire(hooked).ends[0])
    whole = 32 if client.version == 4 else 128
    of_client = flowhash.source_hash(0, client, whole) >> 32
    found = hooked.tables.sample_sources["hash"][hooked.backend_id("a")]
    assert found.tolist()[:3] == [of_client, of_client, 0]
