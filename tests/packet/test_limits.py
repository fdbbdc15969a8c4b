"""How much may be asked of a service: rates that the packet path keeps, and what sources have."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv6Address, ip_address

import numpy as np
import pytest

from agent.dataplane import abi, limits
from agent.dataplane.abi import Limit
from agent.dataplane.explain import explain
from agent.dataplane.flows import Since, crowds, heavy_sources
from agent.model import Forward, GuardMode, Limits, Protocol, Rate, SynProtection
from agent.state.queries import FiveTuple
from tests.packet.frames import udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pieces import framed
from tests.packet.places import PLACES, V4, V6, Place
from tests.packet.wires import Packet

MODES = pytest.mark.parametrize("forward", list(Forward), ids=lambda f: f.value)
HOUR = 3600.0
STEP = 3600 * 10**9 // 128 // 3  # as slots count
THREE = Rate(3, HOUR)  # no host is so slow that a fourth comes in time


def serve(rig: Rig, at: Place, limits: Limits, **fields: object) -> None:
    rig.serve(service(backend("a", at.server), vip=at.vip, limits=limits, **fields))
    rig.guard()


def sent(rig: Rig, at: Place, client: str = "", flags: str | None = "S", **fields) -> Verdict:
    return rig.verdict(framed(Packet(client or at.client, at.vip, flags=flags, **fields).ip))


def begin(rig: Rig, at: Place, client: str = "", sport: int = 1) -> None:
    """A flow that counts as open."""
    assert sent(rig, at, client, sport=sport) == Verdict.TX
    assert sent(rig, at, client, "A", sport=sport) == Verdict.TX


def beside(at: Place, bits: int) -> str:
    """An address that differs from the client's in that bit alone, of 32 or 128."""
    client = ip_address(at.client)
    return str(type(client)(int(client) ^ 1 << (client.max_prefixlen - bits)))


def counted(rig: Rig) -> dict[str, int]:
    """What was beyond a limit of the service, dropped or not."""
    ident = rig.ids.service_id(rig.config.services[0])
    dropped, spared = limits.counts(rig.tables)
    both = {f"{limit.name}": int(dropped[ident, limit]) for limit in Limit}
    both |= {f"would {limit.name}": int(spared[ident, limit]) for limit in Limit}
    return {name: packets for name, packets in both.items() if packets}


@MODES
@PLACES
def test_a_source_begins_so_many_flows_and_no_more(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, Limits(new_flows_per_source=THREE), forward=forward)
    assert [sent(rig, at, sport=port) for port in range(1, 6)] == [Verdict.TX] * 3 + [
        Verdict.DROP
    ] * 2
    assert rig.reasons() == {"limited": 2}
    assert counted(rig) == {"NEW_SOURCE": 2}
    assert np.count_nonzero(rig.tables.flows) == 3
    assert sent(rig, at, sport=1) == Verdict.TX, "a SYN that is sent again begins no other flow"
    assert sent(rig, at, beside(at, 64 if at is V6 else 32), sport=4) == Verdict.TX


@PLACES
def test_one_more_may_come_each_time_one_is_due(rig: Rig, at: Place):
    serve(rig, at, Limits(new_flows_per_source=THREE))
    port = iter(range(1, 99))
    for _ in range(3):
        assert sent(rig, at, sport=next(port)) == Verdict.TX
    for _ in range(4):
        assert sent(rig, at, sport=next(port)) == Verdict.DROP
        rig.limit_slots[rig.limit_slots > 0] -= STEP  # a third of an hour later
        assert sent(rig, at, sport=next(port)) == Verdict.TX
    rig.limit_slots[rig.limit_slots > 0] -= 72 * STEP  # a day later: no more than at first
    verdicts = [sent(rig, at, sport=next(port)) for _ in range(5)]
    assert verdicts == [Verdict.TX] * 3 + [Verdict.DROP] * 2


@PLACES
def test_of_a_network_all_count_together(rig: Rig, at: Place):
    serve(rig, at, Limits(new_flows_per_prefix=THREE))
    inside = beside(at, 25 if at is V4 else 49)
    assert sent(rig, at, sport=1) == sent(rig, at, inside, sport=1) == Verdict.TX
    assert sent(rig, at, inside, sport=2) == Verdict.TX
    assert sent(rig, at, sport=2) == sent(rig, at, inside, sport=3) == Verdict.DROP
    assert counted(rig) == {"NEW_PREFIX": 2}
    assert sent(rig, at, beside(at, 24 if at is V4 else 48), sport=1) == Verdict.TX


def test_64_bits_of_ipv6_are_one_source(rig: Rig):
    serve(rig, V6, Limits(new_flows_per_source=THREE))
    first = int(ip_address(V6.client)) >> 64 << 64
    hosts = [str(IPv6Address(first + n)) for n in (1, 2, 2**40, 2**63)]
    assert [sent(rig, V6, host) for host in hosts] == [Verdict.TX] * 3 + [Verdict.DROP]


@PLACES
def test_a_service_takes_so_many_of_all_and_another_is_another(rig: Rig, at: Place):
    rig.serve(
        service(backend("a", at.server), vip=at.vip, limits=Limits(new_flows=THREE)),
        service(backend("b", at.server), name="more", vip=at.vip, port=81, limits=Limits(
            new_flows=THREE)),
    )  # fmt: skip
    rig.guard()
    sources = [beside(at, bits) for bits in (17, 18, 19, 20, 21)]
    got = [sent(rig, at, source) for source in sources]
    assert got == [Verdict.TX] * 3 + [Verdict.DROP] * 2
    assert sent(rig, at, sources[3], dport=81) == Verdict.TX
    assert counted(rig) == {"NEW_SERVICE": 2}


def test_who_is_refused_takes_nothing_from_others(rig: Rig):
    serve(rig, V4, Limits(new_flows_per_source=THREE, new_flows=Rate(5, HOUR)))
    for port in range(1, 20):
        sent(rig, V4, sport=port)
    assert sent(rig, V4, beside(V4, 20)) == sent(rig, V4, beside(V4, 21)) == Verdict.TX
    assert sent(rig, V4, beside(V4, 22)) == Verdict.DROP
    assert counted(rig) == {"NEW_SOURCE": 16, "NEW_SERVICE": 1}


@MODES
def test_packets_of_a_source_are_limited_with_those_of_open_flows(rig: Rig, forward: Forward):
    serve(rig, V4, Limits(packets_per_source=Rate(4, HOUR)), forward=forward)
    sent(rig, V4, sport=7)
    rig.limit_slots[:] = 0
    got = [sent(rig, V4, flags="PA", sport=7, payload=b"x" * 9) for _ in range(6)]
    assert got[:4] == [Verdict.TX] * 4
    assert got[4:] == [Verdict.DROP] * 2
    assert counted(rig) == {"PACKETS": 2}
    assert sent(rig, V4, beside(V4, 32)) == Verdict.TX


@pytest.mark.parametrize("limit", [Limit.OPEN, Limit.WAITING])
@PLACES
def test_who_has_as_much_as_it_may_begins_no_flow_for_a_time(rig: Rig, at: Place, limit: Limit):
    serve(rig, at, Limits(open_flows_per_source=2, waiting_per_source=100))
    assert sent(rig, at, sport=1) == Verdict.TX
    ident = rig.ids.service_id(rig.config.services[0])
    key = limits.limited_key(ident, ip_address(at.client))
    limits.set_limited(rig.tables, {key: 1 << limit}, time.monotonic_ns())
    assert sent(rig, at, sport=2) == Verdict.DROP
    assert sent(rig, at, flags="A", sport=1) == Verdict.TX
    assert sent(rig, at, beside(at, 20), sport=2) == Verdict.TX
    flow = FiveTuple(Protocol.TCP, ip_address(at.client), 3, ip_address(at.vip), 80)
    assert explain(rig.view(), flow).reason == "limited"
    assert counted(rig) == {limit.name: 1}
    # An agent that is gone says no more that it has less.
    limits.set_limited(rig.tables, {}, 0)
    limits.set_limited(rig.tables, {key: 1 << limit}, time.monotonic_ns() - limits.HELD_NS)
    assert sent(rig, at, sport=2) == Verdict.TX
    assert explain(rig.view(), flow).verdict == "forward"


@pytest.mark.parametrize("mode", [GuardMode.DRY_RUN, GuardMode.OFF])
def test_a_dry_run_drops_nothing_and_counts_the_same(rig: Rig, mode: GuardMode):
    most = Limits(THREE, THREE, THREE, Rate(9, HOUR))
    serve(rig, V4, most, guard=mode)
    assert {sent(rig, V4, sport=port) for port in range(1, 6)} == {Verdict.TX}
    assert rig.reasons() == {}
    assert counted(rig) == ({"would NEW_SOURCE": 2} if mode is GuardMode.DRY_RUN else {})


def test_what_opens_no_flow_is_not_limited(rig: Rig):
    serve(rig, V4, Limits(new_flows=Rate(1, HOUR)))
    for port in range(1, 9):
        assert sent(rig, V4, flags="RA", sport=port) == Verdict.TX
    assert sent(rig, V4, sport=9) == Verdict.TX


def test_who_has_not_shown_that_it_is_there_uses_nothing_up(rig: Rig):
    serve(rig, V4, Limits(new_flows=Rate(1, HOUR)), syn_protection=SynProtection.ALWAYS)
    for port in range(1, 9):
        assert sent(rig, V4, beside(V4, 20), sport=port) == Verdict.TX  # the challenge
    assert rig.reasons() == {"challenged": 8}
    assert not rig.limit_slots.any()


def test_datagrams_are_limited_too(rig: Rig):
    rig.serve(service(backend("a"), protocol=Protocol.UDP, limits=Limits(new_flows=THREE)))
    rig.guard()
    got = [rig.verdict(udp(port=80, client_port=port)) for port in range(1, 6)]
    assert got == [Verdict.TX] * 3 + [Verdict.DROP] * 2
    assert rig.verdict(udp(port=80, client_port=1)) == Verdict.TX


def test_a_thousand_sources_do_not_pay_for_each_other(rig: Rig):
    serve(rig, V4, Limits(new_flows_per_source=THREE))
    sources = [f"198.51.{n >> 8}.{n & 255}" for n in range(1000)]
    for port in range(3):
        assert {sent(rig, V4, source, sport=port + 1) for source in sources} == {Verdict.TX}
    refused = [sent(rig, V4, source, sport=9) for source in sources]
    assert set(refused) == {Verdict.DROP}


def test_rates_that_change_count_from_the_next_packet_on(rig: Rig):
    serve(rig, V4, Limits(new_flows=THREE))
    for port in range(1, 5):
        sent(rig, V4, sport=port)
    serve(rig, V4, Limits(new_flows=Rate(3, 1)))
    assert sent(rig, V4, sport=5) == Verdict.TX
    serve(rig, V4, Limits())
    assert {sent(rig, V4, sport=port) for port in range(10, 20)} == {Verdict.TX}


def test_the_agent_finds_those_that_have_as_much_as_they_may(rig: Rig):
    serve(rig, V4, Limits())
    for port in (1, 2, 3):
        begin(rig, V4, sport=port)
    begin(rig, V4, beside(V4, 20))
    sent(rig, V4, flags="PA", sport=2, payload=b"x" * 500)
    names, keys = rig.names(), rig.dataplane.keys
    ident = rig.ids.service_id(rig.config.services[0])
    me = limits.limited_key(ident, ip_address(V4.client))

    def found(**most: int) -> dict[bytes, int]:
        return heavy_sources(rig.tables, names, {ident: Limits(**most)}, keys)

    assert found(open_flows_per_source=3) == {me: 1 << Limit.OPEN}
    assert found(open_flows_per_source=4) == {}
    assert len(found(open_flows_per_source=1)) == 2
    both = 1 << Limit.OPEN | 1 << Limit.WAITING
    assert found(open_flows_per_source=3, waiting_per_source=500) == {me: both}
    assert found(waiting_per_source=501) == {}
    assert (
        heavy_sources(rig.tables, names, {ident + 1: Limits(open_flows_per_source=1)}, keys) == {}
    )


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_of_ipv6_the_flows_of_64_bits_are_those_of_one_source(rig: Rig, hosts: int):
    serve(rig, V6, Limits())
    first = int(ip_address(V6.client)) >> 64 << 64
    for host in range(1, hosts + 1):
        for port in range(1, -(-3 // hosts) + 1):
            begin(rig, V6, str(IPv6Address(first + host)), port)
    ident = rig.ids.service_id(rig.config.services[0])
    most = replace(Limits(), open_flows_per_source=3)
    found = heavy_sources(rig.tables, rig.names(), {ident: most}, rig.dataplane.keys)
    assert found == {limits.limited_key(ident, IPv6Address(first)): 1 << Limit.OPEN}


def test_a_forger_has_nobody_suspected_in_nat(rig: Rig):
    """Nor in fullnat: who does not see the server's answers gets no flow that counts."""

    def forged(forward: Forward) -> bool:
        serve(rig, V4, Limits(), forward=forward)
        for port in range(1, 9):
            sent(rig, V4, flags="S", sport=port)
            sent(rig, V4, flags="A", sport=port)
            sent(rig, V4, flags="PA", sport=port, payload=b"x" * 500)
        since = Since(rig.dataplane.now_jiffies(), rig.dataplane.clock.hz, 0)
        (crowd,) = crowds(rig.tables, rig.names(), rig.dataplane.keys, since).values()
        return crowd.sources > 0 or any(crowd.total.values())

    assert not forged(Forward.NAT)
    assert not forged(Forward.FULLNAT)
    assert forged(Forward.DSR), "which is why `detect: block` is refused there"


def test_what_is_refused_for_a_time_is_renewed_before_that_is_over(rig: Rig):
    keys = [limits.limited_key(1, ip_address(f"198.51.100.{n}")) for n in range(3)]
    bit, hold = 1 << Limit.OPEN, limits.HELD_NS

    def after(now_ns: int, *wanted: bytes) -> list[int]:
        limits.set_limited(rig.tables, dict.fromkeys(wanted, bit), now_ns)
        rows = {
            key: np.frombuffer(value, dtype=abi.LIMITED)[0]
            for key, value in rig.tables.items("limited")
        }
        assert rows.keys() == set(wanted)
        assert all(int(row["limits"]) == bit for row in rows.values())
        return [int(rows[key]["until"]) for key in wanted]

    assert after(0, *keys[:2]) == [hold, hold]
    assert after(hold // 3, *keys[:2]) == [hold, hold]
    assert after(hold // 3, *keys[1:]) == [hold, hold + hold // 3]
    assert after(hold, keys[1]) == [2 * hold]
    assert after(hold) == []
