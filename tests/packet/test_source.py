"""source: the client's address, or its prefix, decides; too much for one goes to the next."""

from __future__ import annotations

from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import flowhash
from agent.model import Scheduler
from tests.examples import examples
from tests.packet.frames import SYN, VIP4, VIP6, random_clients, tcp
from tests.packet.harness import Rig, backend, service
from tests.packet.scheduling import SEGMENTS, chosen, draws, loads, named, opened, row
from tests.packet.wires import Packet

NEVER_TOO_MANY = 16  # open connections that a backend may have whatever the others have


@pytest.mark.parametrize("client", ["198.51.100.9", "198.51.100.12", "192.0.2.77"])
def test_a_lone_client_finds_the_same_server_again(rig: Rig, client: str):
    """A control and a data connection, as of FTP or iperf3, or the few of a browser."""
    rig.serve(service(*(backend(n) for n in "abcd"), scheduler=Scheduler.SOURCE, source_bound=1.25))
    first = {rig.backend_of(tcp(client=client, client_port=5000 + n)) for n in range(16)}
    assert len(first) == 1
    more = {rig.backend_of(tcp(client=client, client_port=6000 + n)) for n in range(16)}
    assert len(more | first) == 2, "from then on there is something to balance"


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


@pytest.mark.parametrize(
    ("vip", "bits", "client"),
    [(VIP4, 8, "198.51.100.7"), (VIP4, 20, "198.51.100.7"), (VIP4, 24, "198.51.100.7"),
     (VIP4, 31, "198.51.100.7"), (VIP4, 32, "198.51.100.7"), (VIP6, 32, "2001:db8:c::7"),
     (VIP6, 48, "2001:db8:c::7"), (VIP6, 64, "2001:db8:c::7"), (VIP6, 96, "2001:db8:c::7"),
     (VIP6, 127, "2001:db8:c::7"), (VIP6, 128, "2001:db8:c::7")],
)  # fmt: skip
def test_the_first_bits_of_the_client_decide_and_no_others(rig: Rig, vip, bits, client):
    rig.serve(
        service(*named(40, [100]), vip=vip, scheduler=Scheduler.SOURCE, source_bits=bits,
                source_bound=0)
    )  # fmt: skip
    home = int(ip_address(client))
    width = 32 if vip == VIP4 else 128
    make = ip_address if vip == VIP4 else IPv6Address

    def of(value: int, port: int) -> int:
        return chosen(rig, Packet(str(make(value)), vip, port))

    own = of(home, 1)
    assert all(of(home, port) == own for port in range(2, 20))
    beyond = [*range(width - bits)[-12:], *range(width - bits)[:12]]
    assert all(of(home ^ (1 << bit), 1) == own for bit in beyond)
    within = [width - bits + n for n in range(min(bits, 12))]
    assert any(of(home ^ (1 << bit), 1) != own for bit in within)


def test_a_bound_passes_on_what_is_too_much_for_one_to_the_next(rig: Rig):
    rig.serve(service(*(backend(n) for n in "abcd"), scheduler=Scheduler.SOURCE, source_bound=1.25))
    opened(rig, 400)
    before = loads(rig, *"abcd")
    assert max(before) <= 1.25 * sum(before) / 4 + 1
    for port in range(1000, 1400):
        rig.send(tcp(client="198.51.100.9", client_port=port))
        rig.send(tcp(client="198.51.100.9", client_port=port, flags="A"))
    after = loads(rig, *"abcd")
    # a SYN may push an older one out of its bucket, so others may have fewer
    grown = {name: n for name, n in zip("abcd", np.subtract(after, before), strict=True) if n > 0}
    assert len(grown) == 2, "its own, and one more: the second choice has no bound"
    assert min(loads(rig, *grown)) <= 1.25 * sum(after) / 4 + 1, "its own"
    assert int(rig.tables.service_load["open"][rig.service_id()]) == sum(after)


@settings(
    deadline=None,
    max_examples=examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    is_open=st.lists(st.integers(0, 400), min_size=5, max_size=5),
    fix=st.lists(st.integers(-20, 20), min_size=5, max_size=5),
    embryonic=st.lists(st.integers(0, 400), min_size=5, max_size=5),
    weights=st.lists(st.integers(1, 1000), min_size=5, max_size=5),
    bound=st.sampled_from([1.0, 1.25, 1.5, 2.0, 10.0]),
    host=st.integers(1 << 24, (127 << 24) - 1),
)
def test_who_is_over_the_bound_is_passed_over_once(
    rig: Rig, is_open, fix, embryonic, weights, bound, host
):
    rig.reset()
    members = [backend(f"b{n:03}", f"10.0.{n}.1", w) for n, w in enumerate(weights)]
    rig.serve(service(*members, scheduler=Scheduler.SOURCE, source_bound=bound))
    ids = [rig.backend_id(m.name) for m in members]
    for ident, n, f, e in zip(ids, is_open, fix, embryonic, strict=True):
        rig.tables.backend_load["open"][ident] = n
        rig.tables.backend_load["open_fix"][ident] = f
        rig.tables.backend_load["embryonic"][ident] = e
    whole = rig.service_id()
    rig.tables.service_load["open"][whole] = sum(is_open)
    rig.tables.service_load["open_fix"][whole] = sum(fix)
    assert rig.tables.service_load["weight"][whole] == sum(weights)
    client = str(ip_address(host))
    pick = flowhash.source_hash(int(row(rig)["pick_seed"]), ip_address(host), 32)
    first, second = draws(rig, pick, 2)
    own = ids.index(first)
    total = max(0, sum(is_open) + sum(fix))
    share = Fraction(bound) * (total + 1) * weights[own] / sum(weights)
    others = is_open[own] + fix[own] - embryonic[own]
    most = 16 + max(0, others) // 8
    each = 2**32 if embryonic[own] <= most else most * 2**32 // (embryonic[own] | 1)
    is_over = max(0, others + (embryonic[own] * each >> 32)) + 1 > max(NEVER_TOO_MANY, ceil(share))
    assert chosen(rig, Packet(client)) == (second if is_over else first)


def test_below_the_bound_a_client_keeps_its_backend(rig: Rig):
    rig.serve(service(*named(4, [100]), scheduler=Scheduler.SOURCE, source_bound=1.25))
    first = {}
    for address, port in random_clients(6, 200):
        first[address] = rig.backend_of(tcp(client=str(address), client_port=port))
    for name in (f"b{n:03}" for n in range(4)):
        rig.tables.backend_load["open_fix"][rig.backend_id(name)] -= 40
    again = {a: rig.backend_of(tcp(client=str(a), client_port=9)) for a in first}
    moved = [a for a in first if first[a] != again[a]]
    seed = int(row(rig)["pick_seed"])
    for address in moved:
        pick = flowhash.source_hash(seed, address, 32)
        own, other = draws(rig, pick, 2)
        assert rig.backend_id(again[address]) == own, "it comes back as soon as there is room"
        assert rig.backend_id(first[address]) == other
    assert len(moved) < 50
