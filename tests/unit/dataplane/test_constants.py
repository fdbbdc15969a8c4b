"""What is compiled in, from the configuration."""

from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane.constants import (
    ALL_FEATURES,
    HZ_CHOICES,
    Clock,
    Features,
    HashKeys,
    Reading,
    clock_for,
    definitions,
    needed_features,
    possible_hz,
    sizes,
)
from agent.dataplane.program import JiffiesClock
from agent.model import (
    Backend,
    Forward,
    Nat,
    NoBackend,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
    Tables,
)

A = Backend("a", ip_address("10.0.0.21"))
features = st.builds(Features, *[st.booleans() for _ in fields(Features)])


def one(
    vip: str = "203.0.113.10",
    port: int = 80,
    forward: Forward = Forward.DSR,
    protocol: Protocol = Protocol.TCP,
    port_last: int | None = None,
    vip_bits: int | None = None,
    **changes,
) -> Service:
    """Needs nothing but what is asked for."""
    key = ServiceKey(ip_address(vip), port, protocol, port_last, vip_bits)
    return Service("x", key, forward=forward, **({"count_waiting": False} | changes))


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ((), Features()),
        ((one(),), Features()),
        ((one("2001:db8::1"),), Features(ipv6=True)),
        ((one(port=0),), Features(any_port=True)),
        ((one(port_last=90),), Features(ranges=True)),
        ((one("203.0.113.0", vip_bits=28),), Features(prefix=True)),
        ((one(forward=Forward.IPIP),), Features(ipip=True)),
        ((one(forward=Forward.GUE),), Features(gue=True)),
        ((one(forward=Forward.NAT),), Features(nat=True)),
        ((one(forward=Forward.FULLNAT),), Features(fullnat=True)),
        ((one(scheduler=Scheduler.SOURCE),), Features(source=True)),
        ((one(scheduler=Scheduler.ROUND_ROBIN),), Features(round_robin=True)),
        ((one(scheduler=Scheduler.LEAST_CONN),), Features(least_conn=True)),
        ((one(scheduler=Scheduler.LEAST_LOAD),), Features(least_load=True)),
        ((one(count_waiting=True),), Features(waiting=True)),
        ((one(protocol=Protocol.UDP, count_waiting=True),), Features()),
        ((one(protocol=Protocol.UDP, quic_id_bytes=4),), Features(quic=True)),
        ((one(no_backend=NoBackend.RESET),), Features(reset=True)),
        ((one(no_backend=NoBackend.HOLD),), Features(hold=True)),
        ((one(no_backend=NoBackend.ANY),), Features()),
        ((one(backends=(A, replace(A, name="b", zone="east"))),), Features(zones=True)),
        ((one(backends=(A, replace(A, name="b", priority=1))),), Features(zones=True)),
        ((one(backends=(replace(A, priority=1),)),), Features()),
        (
            (one(), one("2001:db8::1", 0, Forward.IPIP)),
            Features(ipv6=True, any_port=True, ipip=True),
        ),
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
    assert ALL_FEATURES.names[:3] == ("ipv4", "ipv6", "any-port")
    assert {"round-robin", "least-load", "fullnat"} < set(ALL_FEATURES.names)
    assert len(ALL_FEATURES.names) == len(fields(Features)) + 1


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_a_tick_is_about_four_seconds(hz: int):
    assert 2.8 < clock_for(hz).tick_s < 5.7


@given(st.sampled_from([100, 250, 300, 1000]), st.floats(0.001, 7 * 3600))
def test_ticks_are_no_shorter_than_the_seconds_and_fit_the_stamp(hz: int, seconds: float):
    clock = clock_for(hz)
    assert seconds <= clock.ticks(seconds) * clock.tick_s < seconds + clock.tick_s + 1e-6
    assert clock.ticks(seconds) < 8192 - 1


def test_sizes_leave_room_for_every_ring_and_a_flip():
    tables = Tables(flows=1024, services=8, backends=32, ring_slots=101, zone_rings=5)
    size = sizes(tables, cpus=3)
    assert size.lines_per_ring * 32 >= 101
    assert size.ring_lines == size.lines_per_ring * 15
    assert size.flow_buckets * 8 == 1024
    assert size.rows == 4
    assert size.service_keys >= 16


@pytest.mark.parametrize(("first", "last", "slots"), [(10_240, 32_767, 720_896), (5, 5, 32)])
def test_every_port_of_every_block_has_a_nat_slot(first: int, last: int, slots: int):
    size = sizes(Tables(), cpus=2, nat=Nat(first_port=first, last_port=last))
    assert size.nat_slots == slots
    assert (size.nat_first_port, size.nat_ports) == (first, last - first + 1)


def test_constants_are_what_they_stand_for():
    clock = Clock(250, 10)
    size = sizes(Tables(), cpus=2)
    keys = HashKeys(1, 3, 2**64 - 1)
    found = definitions(Path("/sys/fs/bpf/x"), size, Features(gue=True), keys, clock, 6081)
    assert found["LB_PIN"] == '"/sys/fs/bpf/x"'
    assert found["LB_FLOW_MUL1"] == "0xffffffffffffffffULL"
    assert (found["LB_IPV6"], found["LB_ANY_PORT"], found["LB_GUE"]) == ("0", "0", "1")
    assert found["LB_TICK_SHIFT"] == "10"
    assert (found["LB_GUE_PORT"], found["LB_TC"]) == ("6081", "0")
    assert definitions(Path("/x"), size, Features(), keys, clock, 1, tc=True)["LB_TC"] == "1"


# -- how fast the kernel counts


@given(
    hz=st.sampled_from(HZ_CHOICES),
    start_s=st.floats(0.0, 100.0),
    wait_s=st.floats(0.1, 3.0),
    delays=st.lists(st.floats(0.0, 0.5), min_size=4, max_size=4),
)
def test_who_loses_the_cpu_while_it_reads_rules_out_no_rate_that_is_true(
    hz: int, start_s: float, wait_s: float, delays: list[float]
) -> None:
    moments = [start_s]
    for pause_s in (delays[0], delays[1], wait_s, delays[2], delays[3]):
        moments.append(moments[-1] + pause_s)
    before, read, after, before_last, read_last, after_last = moments
    first = Reading(before, int(read * hz), after)
    last = Reading(before_last, int(read_last * hz) % 2**32, after_last)
    assert hz in possible_hz(first, last)
    if wait_s >= 0.12 and not any(delays):
        assert possible_hz(first, last) == [hz]


class Interrupted(JiffiesClock):
    """A clock of 250 jiffies a second, at whose first reading others had the CPU for a while."""

    def __init__(self, lost_s: float) -> None:
        self.now_s, self._lost_s = 7.0, lost_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def jiffies(self) -> int:
        read = int(self.now_s * 250)
        self.now_s += self._lost_s
        self._lost_s = 0.0
        return read


@pytest.mark.parametrize("lost_s", [0.0, 0.02, 0.1, 0.3])
def test_the_rate_of_a_busy_host_is_not_taken_for_another(
    lost_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Interrupted(lost_s)
    monkeypatch.setattr("agent.dataplane.program.time", clock)
    assert clock.measure_hz() == 250
