"""What holds for every scheduler: shares, who is passed over, backups, and who fails open."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.model import NoBackend, Protocol, Scheduler
from tests.packet.frames import ACK, VIP4, VIP6, random_clients, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.scheduling import SEGMENTS, loads, opened

EVERY = [*Scheduler]


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


@pytest.mark.parametrize(
    "scheduler", [Scheduler.ROUND_ROBIN, Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD]
)
def test_a_connection_that_goes_on_is_picked_for_by_its_hash(rig: Rig, scheduler: Scheduler):
    """So one whose record is lost has the same backend each time, also at another balancer."""
    rig.serve(service(backend("a"), backend("b"), scheduler=scheduler))
    clients = list(random_clients(1, 20))

    def picks() -> dict[tuple[object, int], str]:
        rig.tables.flows[:] = 0
        return {
            (a, p): rig.name_of_mac(rig.send(SEGMENTS.frame(a.packed, p, ACK)).data[:6])
            for a, p in clients
        }

    first = picks()
    clients.reverse()
    assert picks() == first
    assert set(first.values()) == {"a", "b"}
