"""Schedulers on the tables that the agent writes: who gets the next flow, and who never does."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import numpy as np
import pytest

from agent.model import NoBackend, Protocol, Scheduler
from tests.packet.frames import ACK, FIN, SYN, VIP4, VIP6, Segments, random_clients, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

SEGMENTS = Segments()
EVERY = [*Scheduler]


def opened(rig: Rig, count: int, seed: int = 1, vip: str = VIP4) -> list[str]:
    """Backends of so many new flows, in their order."""
    segments = Segments(vip)
    found = []
    for address, port in random_clients(seed, count, ipv6=vip == VIP6):
        done = rig.send(segments.frame(address.packed, port, SYN))
        found.append(rig.name_of_mac(done.data[:6]))
    return found


def loads(rig: Rig, *names: str) -> list[int]:
    """Open flows by the counters that schedulers compare."""
    return [int(row["open"] + row["open_fix"]) for row in map(rig.load_of, names)]


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("scheduler", EVERY)
def test_every_backend_gets_flows_by_its_weight(rig: Rig, scheduler: Scheduler, vip: str):
    weights = {"a": 100, "b": 200, "c": 300}
    rig.serve(
        service(
            *(backend(name, weight=w) for name, w in weights.items()), vip=vip,
            scheduler=scheduler,
        )
    )  # fmt: skip
    found = Counter(opened(rig, 6000, vip=vip))
    for name, weight in weights.items():
        assert found[name] == pytest.approx(10 * weight, rel=0.15), found


@pytest.mark.parametrize("scheduler", EVERY)
def test_who_went_down_a_moment_ago_is_passed_over(rig: Rig, scheduler: Scheduler):
    rig.serve(service(*(backend(name) for name in "abc"), scheduler=scheduler))
    rig.make_unusable("b")
    assert set(opened(rig, 300)) == {"a", "c"}


@pytest.mark.parametrize("scheduler", EVERY)
def test_nobody_is_no_backend(rig: Rig, scheduler: Scheduler):
    rig.serve(service(backend("a"), scheduler=scheduler), down="a")
    assert rig.verdict(tcp()) == Verdict.DROP
    assert rig.service_counts().drops["no-backend"] == 1


def test_round_robin_goes_through_the_round_in_its_order(rig: Rig):
    members = backend("a", "10.0.0.1", 500), backend("b", "10.0.0.2"), backend("c", "10.0.0.3")
    rig.serve(service(*members, scheduler=Scheduler.ROUND_ROBIN))
    found = "".join(opened(rig, 70))
    assert "aabacaa" * 8 in found


def test_least_conn_keeps_open_flows_even_by_weight(rig: Rig):
    rig.serve(service(backend("a"), backend("b", weight=300), scheduler=Scheduler.LEAST_CONN))
    opened(rig, 400)
    assert loads(rig, "a", "b") == [100, 300]
    clients = list(random_clients(1, 400))
    for address, port in clients:
        rig.send(SEGMENTS.frame(address.packed, port, FIN | ACK))
    assert loads(rig, "a", "b") == [0, 0]
    assert [rig.counts(n).closed for n in "ab"] == [100, 300]


def test_least_conn_gives_to_whoever_has_fewest(rig: Rig):
    rig.serve(service(*(backend(n) for n in "abc"), scheduler=Scheduler.LEAST_CONN))
    first = opened(rig, 30)
    for (address, port), name in zip(random_clients(1, 30), first, strict=True):
        if name == "b":
            rig.send(SEGMENTS.frame(address.packed, port, FIN | ACK))
    assert set(opened(rig, 10, seed=2)) == {"b"}
    assert loads(rig, *"abc") == [10, 10, 10]


def test_least_conn_compares_hundreds_of_backends(rig: Rig):
    names = [f"b{n:03}" for n in range(250)]
    members = [backend(name, f"10.2.{n}.1") for n, name in enumerate(names)]
    rig.serve(service(*members, scheduler=Scheduler.LEAST_CONN))
    opened(rig, 2500)
    found = loads(rig, *names)
    assert max(found) - min(found) <= 1, "all of 250 are compared"


@pytest.mark.parametrize("draws", [2, 8])
def test_least_load_prefers_the_idle_by_so_many_draws(rig: Rig, draws: int):
    rig.serve(
        service(*(backend(f"b{n}") for n in range(10)), scheduler=Scheduler.LEAST_LOAD, draws=draws)
    )
    for n in range(5):
        rig.tables.backend_load["open_fix"][rig.backend_id(f"b{n}")] = 1_000_000
    busy = sum(int(name[1:]) < 5 for name in opened(rig, 4000)) / 4000
    assert busy == pytest.approx(0.5**draws, rel=0.3), "all draws have to fall on a busy one"


def test_waiting_bytes_weigh_as_connections(rig: Rig):
    rig.serve(
        service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8,
                bytes_per_connection=1000)
    )  # fmt: skip
    rig.tables.backend_load["waiting_fix"][rig.backend_id("a")] = 50_000
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 40
    first = Counter(opened(rig, 9))
    assert first["b"] > first["a"], "40 connections are less than 50,000 bytes"
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 80
    second = Counter(opened(rig, 9, seed=2))
    assert second["a"] > second["b"]


def test_a_client_keeps_its_backend_by_its_address_alone(rig: Rig):
    rig.serve(
        service(*(backend(f"b{n}") for n in range(10)), scheduler=Scheduler.SOURCE, source_bound=0)
    )
    for address, port in random_clients(1, 50):
        found = {
            rig.name_of_mac(rig.send(SEGMENTS.frame(address.packed, p, SYN)).data[:6])
            for p in (port, 1, 2, 3)
        }
        assert len(found) == 1


def test_clients_of_one_prefix_go_together(rig: Rig):
    rig.serve(
        service(*(backend(f"b{n}") for n in range(10)), scheduler=Scheduler.SOURCE,
                source_bits=24, source_bound=0)
    )  # fmt: skip
    by_network = {
        network: {
            rig.backend_of(tcp(client=str(IPv4Address("198.51.0.0") + 256 * network + host)))
            for host in range(1, 40)
        }
        for network in range(20)
    }
    assert all(len(names) == 1 for names in by_network.values())
    assert len(set.union(*by_network.values())) > 3


def test_a_bound_passes_on_what_is_too_much_for_one_to_the_next(rig: Rig):
    rig.serve(service(*(backend(n) for n in "abcd"), scheduler=Scheduler.SOURCE, source_bound=1.25))
    opened(rig, 400)
    before = loads(rig, *"abcd")
    assert max(before) <= 1.25 * sum(before) / 4 + 1
    for port in range(1000, 1400):
        rig.send(tcp(client="198.51.100.9", client_port=port))
    after = loads(rig, *"abcd")
    # a SYN may push an older one out of its bucket, so others may have fewer
    grown = {name: n for name, n in zip("abcd", np.subtract(after, before), strict=True) if n > 0}
    assert len(grown) == 2, "its own, and one more: the second choice has no bound"
    own = rig.backend_of(tcp(client="198.51.100.9", client_port=1000))
    assert loads(rig, own)[0] <= 1.25 * sum(after) / 4 + 1
    assert int(rig.tables.service_load["open"][rig.service_id()]) == sum(after)


def test_open_flows_are_counted_only_where_a_scheduler_reads_them(rig: Rig):
    for scheduler, expected in ((Scheduler.MAGLEV, 0), (Scheduler.LEAST_LOAD, 5)):
        rig.reset()
        rig.serve(service(backend("a"), scheduler=scheduler))
        opened(rig, 5)
        assert loads(rig, "a") == [expected]
        assert rig.counts("a").opened == 5


@pytest.mark.parametrize("scheduler", EVERY)
def test_a_backup_is_used_only_when_no_primary_is_left(rig: Rig, scheduler: Scheduler):
    members = backend("a"), backend("b"), backend("spare", backup=True)
    rig.serve(service(*members, scheduler=scheduler))
    assert set(opened(rig, 100)) == {"a", "b"}
    rig.serve(service(*members, scheduler=scheduler), down=("a",))
    assert set(opened(rig, 100, seed=2)) == {"b"}
    rig.serve(service(*members, scheduler=scheduler), down=("a", "b"))
    assert set(opened(rig, 100, seed=3)) == {"spare"}
    rig.serve(service(*members, scheduler=scheduler))
    assert "spare" not in opened(rig, 100, seed=4)


def test_flows_that_a_backup_got_stay_there(rig: Rig):
    members = backend("a"), backend("spare", backup=True)
    rig.serve(service(*members), down=("a",))
    assert rig.backend_of(tcp("S")) == "spare"
    rig.serve(service(*members))
    assert rig.backend_of(tcp("A")) == "spare"
    assert rig.backend_of(tcp("S", client_port=40_001)) == "a"


@pytest.mark.parametrize("scheduler", EVERY)
def test_a_service_that_fails_open_gives_new_flows_to_who_is_down(rig: Rig, scheduler: Scheduler):
    members = backend("a"), backend("b", weight=0)
    rig.serve(service(*members, scheduler=scheduler, no_backend=NoBackend.ANY), down=("a", "b"))
    found = Counter(opened(rig, 1000))
    assert set(found) == {"a", "b"}
    assert found["a"] > 20 * found["b"]


def test_udp_is_scheduled_alike(rig: Rig):
    rig.serve(
        service(
            backend("a"), backend("b"), port=53, protocol=Protocol.UDP,
            scheduler=Scheduler.LEAST_CONN,
        )
    )  # fmt: skip
    for port in range(1000, 1010):
        rig.send(udp(client_port=port))
    assert loads(rig, "a", "b") == [5, 5]


def test_ack_flags_do_not_matter_to_a_new_flow(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.ROUND_ROBIN))
    found = Counter(
        rig.name_of_mac(rig.send(SEGMENTS.frame(a.packed, p, ACK)).data[:6])
        for a, p in random_clients(1, 10)
    )
    assert found == {"a": 5, "b": 5}
