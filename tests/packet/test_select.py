"""Which backend a new flow gets: by weight, deterministic, past those that are not usable."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest

from agent.dataplane import abi, flowhash, survey
from agent.dataplane.explain import explain
from agent.model import Forward, Protocol, Scheduler
from agent.rings import maglev
from agent.state.queries import FiveTuple
from tests.packet.frames import ACK, FIN, SYN, VIP4, VIP6, Segments, random_clients, tcp
from tests.packet.harness import Rig, Verdict, backend, service

FLOWS = 100_000
CHI2_999 = 27.9  # 9 degrees of freedom, 1 in 1,000; the flows are always the same ones


def picks(rig: Rig, segments: Segments, clients, flags: int = FIN | ACK) -> Counter[str]:
    """Backends of flows; FIN picks and records nothing."""
    names = {}
    found: Counter[str] = Counter()
    for address, port in clients:
        mac = rig.send(segments.frame(address.packed, port, flags)).data[:6]
        if mac not in names:
            names[mac] = rig.name_of_mac(mac)
        found[names[mac]] += 1
    return found


def ring_shares(rig: Rig, name: str = "web") -> dict[str, float]:
    entry = next(e for e in rig.view().contents.services.values() if e.id == rig.service_id(name))
    ids = {rig.backend_id(b.name): b.name for s in rig.config.services for b in s.backends}
    ring = np.frombuffer(entry.ring, dtype="u2")
    return {ids[ident]: share for ident, share in maglev.shares(ring).items()}


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_the_share_of_100000_random_flows_follows_the_weights(rig: Rig, vip: str):
    weights = [100 * n for n in range(1, 11)]
    rig.serve(service(*(backend(f"b{w}", weight=w) for w in weights), vip=vip))
    found = picks(rig, Segments(vip), random_clients(1, FLOWS, ipv6=vip == VIP6))
    chi2 = sum(
        (found[f"b{w}"] - FLOWS * w / sum(weights)) ** 2 / (FLOWS * w / sum(weights))
        for w in weights
    )
    assert sum(found.values()) == FLOWS
    assert chi2 < CHI2_999, found


@pytest.mark.parametrize("spread", ["port", "address"])
def test_clients_that_differ_in_little_are_spread_all_the_same(rig: Rig, spread: str):
    rig.serve(service(*(backend(f"b{n}") for n in range(10))))
    base = int(IPv4Address("198.51.0.0"))
    clients = [
        (IPv4Address(base), 1024 + n) if spread == "port" else (IPv4Address(base + n), 50_000)
        for n in range(60_000)
    ]
    found = picks(rig, Segments(), clients)
    chi2 = sum((found[f"b{n}"] - 6000) ** 2 / 6000 for n in range(10))
    assert chi2 < CHI2_999, found


def test_unequal_weights_1_to_1000_are_kept(rig: Rig):
    rig.serve(service(backend("small", weight=1), backend("big", weight=1000)))
    found = picks(rig, Segments(), random_clients(2, 50_000))
    expected = 50_000 * ring_shares(rig)["small"]
    assert 0.3 * expected < found["small"] < 2 * expected


def test_draws_pass_over_a_backend_before_any_ring_is_rebuilt(rig: Rig):
    rig.serve(
        service(backend("a"), backend("b"), backend("c", weight=200), backend("d", weight=400))
    )
    clients = list(random_clients(3, 20_000))
    segments = Segments()

    def backends() -> list[str]:
        return [
            rig.name_of_mac(rig.send(segments.frame(a.packed, p, FIN | ACK)).data[:6])
            for a, p in clients
        ]

    before = backends()
    rig.make_unusable("a")
    after = backends()
    assert "a" not in after
    assert all(new == old for new, old in zip(after, before, strict=True) if old != "a")
    moved = Counter(new for new, old in zip(after, before, strict=True) if old == "a")
    total = sum(moved.values())
    for name, share in (("b", 1 / 7), ("c", 2 / 7), ("d", 4 / 7)):
        assert abs(moved[name] / total - share) < 0.05, moved


def test_hardly_a_flow_is_lost_while_three_of_four_are_passed_over(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcd")))
    for name in "abc":
        rig.make_unusable(name)
    segments = Segments()
    found = Counter(
        rig.verdict(segments.frame(a.packed, p, SYN)) for a, p in random_clients(4, 20_000)
    )
    assert found[Verdict.TX] > 0.999 * 20_000
    assert found[Verdict.TX] + found[Verdict.DROP] == 20_000
    assert rig.service_counts().drops["no-backend"] == found[Verdict.DROP]


@pytest.mark.parametrize("scheduler", Scheduler)
def test_who_has_no_ring_does_not_draw_from_what_others_left(rig: Rig, scheduler: Scheduler):
    web = service(backend("a"), scheduler=scheduler)
    others = [backend(f"b{n}", f"10.7.0.{n + 1}") for n in range(3)]
    for n in range(4):  # its rings were everywhere
        rig.serve(web, service(*others, name="other", port=81, scheduler=scheduler), down=[f"b{n}"])
    rig.serve(web, service(*others, name="other", port=81, scheduler=scheduler), down="a")
    assert rig.verdict(tcp()) == Verdict.DROP
    assert rig.service_counts().drops["no-backend"] == 1


def test_two_balancers_with_one_seed_pick_alike_whatever_the_history(rig: Rig):
    names = "abcdefgh"
    clients = list(random_clients(5, 3000))

    def all_picks() -> list[bytes]:
        segments = Segments()
        return [rig.send(segments.frame(a.packed, p, FIN | ACK)).data[:6] for a, p in clients]

    rig.serve(service(*(backend(name, weight=50 + 10 * n) for n, name in enumerate(names))))
    first = all_picks()
    rig.reset()
    rig.serve(service(backend("x"), name="other", port=99))
    for count in (3, 1, 8, 5):
        rig.serve(
            service(backend("x"), name="other", port=99),
            service(
                *reversed([backend(n, weight=50 + 10 * i) for i, n in enumerate(names)][:count])
            ),
        )
    rig.serve(
        service(*reversed([backend(n, weight=50 + 10 * i) for i, n in enumerate(names)])),
        service(backend("x"), name="other", port=99),
    )
    assert all_picks() == first


def test_another_seed_picks_otherwise(rig: Rig):
    web = service(*(backend(name) for name in "abcd"))
    clients = list(random_clients(6, 500))
    segments = Segments()
    found = []
    for seed in (0, 2**63 + 12345):
        rig.serve(web, hash_seed=seed)
        found.append(
            [rig.send(segments.frame(a.packed, p, FIN | ACK)).data[:6] for a, p in clients]
        )
    same = sum(one == other for one, other in zip(*found, strict=True))
    assert 50 < same < 250
    rig.serve(web, hash_seed=0)


# -- what Python says of a flow is what the kernel does


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_explain_foretells_the_kernels_pick(rig: Rig, vip: str):
    rig.serve(
        service(*(backend(f"b{n}", weight=10 + 7 * n) for n in range(20)), vip=vip),
        hash_seed=0xDEADBEEF12345678,
    )
    for n in range(0, 20, 3):
        rig.make_unusable(f"b{n}")
    view, segments = rig.view(), Segments(vip)
    for address, port in random_clients(8, 3000, ipv6=vip == VIP6):
        said = explain(
            view, FiveTuple(Protocol.TCP, address, port, rig.config.services[0].key.vip, 80)
        )
        done = rig.send(segments.frame(address.packed, port, FIN | ACK))
        assert (said.verdict, said.backend) == ("forward", rig.name_of_mac(done.data[:6]))
        assert [draw.usable for draw in said.draws] == [False] * (len(said.draws) - 1) + [True]
    rig.serve(hash_seed=0)


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_every_flow_is_recorded_where_the_mirror_of_the_hash_says(rig: Rig, vip: str):
    rig.serve(service(backend("a"), vip=vip))
    segments = Segments(vip)
    for address, port in random_clients(9, 3000, ipv6=vip == VIP6):
        rig.send(segments.frame(address.packed, port, SYN))
        found = rig.slot(str(address), port)
        assert found is not None
        assert found.backend_id == rig.backend_id("a")


def test_flows_of_two_services_do_not_share_records(rig: Rig):
    rig.serve(service(backend("a")), service(backend("b"), name="two", vip="203.0.113.11"))
    assert rig.backend_of(tcp()) == "a"
    assert rig.backend_of(tcp(vip="203.0.113.11")) == "b"
    assert rig.salt("web") != rig.salt("two")


def test_the_flow_hash_spreads_flows_over_buckets_and_tags(rig: Rig):
    rig.serve(service(backend("a")))
    keys, salt = rig.dataplane.keys, rig.salt()
    values = [
        flowhash.flow_hash(keys, salt, IPv4Address("10.0.0.1") + n // 64, 1024 + n % 64, 80)
        for n in range(8192)
    ]
    assert len({v & 0xFFFFFFFF for v in values}) > 8180
    per_bucket = Counter((v >> 32) & (rig.dataplane.size.flow_buckets - 1) for v in values)
    assert sum(max(0, n - abi.FLOW_WAYS) for n in per_bucket.values()) < 8192 / 100


def test_explain_says_what_becomes_of_recorded_unknown_and_dropped_flows(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), forward=Forward.IPIP))
    vip = IPv4Address(VIP4)
    flow = FiveTuple(Protocol.TCP, IPv4Address("198.51.100.7"), 40_000, vip, 80)
    rig.send(tcp("S"))
    rig.send(tcp("A", payload=b"x"))
    at = rig.slot("198.51.100.7").backend_id
    name = next(n for n in "ab" if rig.backend_id(n) == at)
    said = explain(rig.view(), flow)
    assert (said.backend, said.reason, said.recorded.state) == (
        name,
        "recorded flow",
        "established",
    )
    other = FiveTuple(Protocol.UDP, flow.client, 1, vip, 80)
    assert explain(rig.view(), other).verdict == "pass"
    rig.serve(service(backend("a"), backend("b")), down={"a", "b"})
    fresh = FiveTuple(Protocol.TCP, IPv6Address("::1"), 1, vip, 80)
    assert explain(rig.view(), fresh).verdict == "drop"
    assert survey.named_backends(rig.tables.flows) == {at}
