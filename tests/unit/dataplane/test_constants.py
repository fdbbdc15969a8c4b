"""What is compiled in, from the configuration."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane.constants import (
    ALL_FEATURES,
    Clock,
    Features,
    HashKeys,
    clock_for,
    definitions,
    needed_features,
    sizes,
)
from agent.model import Forward, Protocol, Service, ServiceKey, Tables

features = st.builds(Features, st.booleans(), st.booleans(), st.booleans())


def one(vip: str = "203.0.113.10", port: int = 80, forward: Forward = Forward.DSR) -> Service:
    return Service("x", ServiceKey(ip_address(vip), port, Protocol.TCP), forward=forward)


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ((), Features()),
        ((one(),), Features()),
        ((one("2001:db8::1"),), Features(ipv6=True)),
        ((one(port=0),), Features(any_port=True)),
        ((one(forward=Forward.IPIP),), Features(ipip=True)),
        ((one(), one("2001:db8::1", 0, Forward.IPIP)), ALL_FEATURES),
    ],
)
def test_features_are_what_the_services_need(services, expected: Features):
    assert needed_features(services) == expected


@given(features, features)
def test_a_union_covers_both_and_nothing_less_does(one: Features, other: Features):
    assert (one | other).covers(one)
    assert (one | other).covers(other)
    assert one.covers(other) == ((one | other) == one)


def test_features_have_names():
    assert Features().names == ("ipv4",)
    assert ALL_FEATURES.names == ("ipv4", "ipv6", "any-port", "ipip")


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_a_tick_is_about_four_seconds(hz: int):
    assert 2.8 < clock_for(hz).tick_s < 5.7


@given(st.sampled_from([100, 250, 300, 1000]), st.floats(0.001, 7 * 3600))
def test_ticks_are_no_shorter_than_the_seconds_and_fit_the_stamp(hz: int, seconds: float):
    clock = clock_for(hz)
    assert seconds <= clock.ticks(seconds) * clock.tick_s < seconds + clock.tick_s + 1e-6
    assert clock.ticks(seconds) < 8192 - 1


def test_sizes_leave_room_for_every_ring_and_a_flip():
    size = sizes(Tables(flows=1024, services=8, backends=32, ring_slots=101), cpus=3)
    assert size.lines_per_ring * 32 >= 101
    assert size.ring_lines == size.lines_per_ring * 10
    assert size.flow_buckets * 8 == 1024
    assert size.rows == 4
    assert size.service_keys == 16


def test_every_constant_of_the_sources_is_defined():
    clock = Clock(250, 10)
    size = sizes(Tables(), cpus=2)
    found = definitions(Path("/sys/fs/bpf/x"), size, Features(), HashKeys(1, 3, 2**64 - 1), clock)
    assert found["LB_PIN"] == '"/sys/fs/bpf/x"'
    assert found["LB_FLOW_MUL1"] == "0xffffffffffffffffULL"
    assert (found["LB_IPV6"], found["LB_ANY_PORT"], found["LB_IPIP"]) == ("0", "0", "0")
    assert found["LB_TICK_SHIFT"] == "10"
