"""Kernel and model play random histories; they must agree on verdict, backend and bytes."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest

from agent.dataplane import pins
from agent.dataplane.constants import Clock
from agent.model import (
    Config,
    Forward,
    GuardMode,
    Hook,
    Limits,
    Nat,
    NoBackend,
    Protocol,
    Rate,
    Scheduler,
    Service,
    SynProtection,
    Tables,
    Zone,
)
from tests.packet import harness
from tests.packet.frames import VIP6
from tests.packet.harness import Rig, TcRig, backend, service
from tests.packet.model.histories import History
from tests.packet.model.mirror import Mirror, StillDataplane, Surroundings, timeouts_of

# Few buckets and ports, so that flows get into each other's way.
TINY = Tables(flows=256, services=40, backends=128, ring_slots=251)
NAT = Nat(
    sources_v4=(IPv4Address("10.0.0.5"), IPv4Address("10.0.0.6")),
    first_port=20_000, last_port=20_002,
)  # fmt: skip
ZONES = (
    Zone("east", (ip_network("198.51.100.0/24"), ip_network("2001:db8:c::/48"))),
    Zone("west", (ip_network("198.51.100.8/32"), ip_network("2001:db8:c::8/128"))),
)
AROUND = Surroundings(
    mtu=700, elsewhere=("web-1", "nat4-0", "gue6-1"),
    vlans={"web-2": ((0x8100, 7),), "tun4-1": ((0x88A8, 5), (0x8100, 9)),
           "nat4-1": ((0x8100, 9),), "full6-0": ((0x88A8, 5), (0x8100, 9))},
    zones=ZONES,
)  # fmt: skip
HOUR = 3600.0
PART, MOST_PARTS = 5000, 20  # packets of a history; histories
# What must have come about for histories to be worth something.
OFTEN = ("dsr4", "dsr6", "ipip4", "ipip6", "gue4", "gue6", "nat4", "nat6", "fullnat4", "fullnat6",
         "reply", "fragment", "client-error", "backend-error", "answered", "not-ip", "not-vip",
         "malformed", "no-backend", "no-flow", "ttl-exceeded", "too-big")  # fmt: skip
SELDOM = (
    "extension",
    "no-port",
    "no-room",
    "held",
    "challenged",
    "verified",
    "cookie",
    "blocked",
    "denied",
    "not-allowed",
    "limited",
)


def services(clock: Clock) -> tuple[Service, ...]:
    """Every mode, both families, both protocols; backends of either family behind the tunnels."""
    made: list[Service] = []

    def add(
        name: str, port: int, forward: Forward, addresses: tuple[str, ...],
        ports: tuple[int | None, ...] = (None, None, None), **fields: object,
    ) -> None:  # fmt: skip
        number = len(made)
        # where the draws can be foretold, some have their backends in zones
        in_zones = number % 2 == 0 and fields.get("scheduler") in (None, Scheduler.SOURCE)
        places = ("east", "west", None) if in_zones else (None, None, None)
        members = [
            backend(
                f"{name}-{n}", address.format(number), 100 + 50 * n, port=ports[n], zone=places[n]
            )
            for n, address in enumerate(addresses)
        ]
        timeouts = timeouts_of(clock, embryonic=1, acked=2, established=4, closing=1)
        made.append(service(*members, name=name, port=port, forward=forward, timeouts=timeouts,
                            **fields))  # fmt: skip

    four = ("10.1.{}.1", "10.1.{}.2", "10.1.{}.3")
    six = ("fd00:1::{}:1", "fd00:1::{}:2", "fd00:1::{}:3")
    mixed = ("10.2.{}.1", "fd00:2::{}:1")
    udp: dict[str, object] = {"protocol": Protocol.UDP}
    # No history takes the minutes after which one more may come.
    few = Limits(Rate(6, HOUR), Rate(9, HOUR), Rate(12, HOUR))
    reset: dict[str, object] = {"no_backend": NoBackend.RESET}
    shy: dict[str, object] = {"syn_protection": SynProtection.ALWAYS}
    add("web", 80, Forward.DSR, four, **shy, syn_cookies=True)
    add("dns", 53, Forward.DSR, four, deny=("bad",), limits=few, **udp)
    add("any", 0, Forward.DSR, four, vip="203.0.113.77")
    add("source", 90, Forward.DSR, four, scheduler=Scheduler.SOURCE, source_bits=24, source_bound=0)
    add("turns", 91, Forward.DSR, four, scheduler=Scheduler.ROUND_ROBIN, **udp)
    add("web6", 80, Forward.DSR, six, vip=VIP6, allow=("good",), **reset)
    add("dns6", 53, Forward.DSR, six, vip=VIP6, **udp, **reset)
    add("tun4", 443, Forward.IPIP, mixed, **reset)
    add("late4", 445, Forward.IPIP, four, no_backend=NoBackend.HOLD)
    add("tun6", 443, Forward.IPIP, mixed, vip=VIP6, limits=few, **shy)
    add("tun6u", 444, Forward.IPIP, mixed, vip=VIP6, **udp)
    add("gue4", 500, Forward.GUE, mixed, deny=("bad",), guard=GuardMode.DRY_RUN, limits=few)
    add("gue4u", 501, Forward.GUE, mixed, **udp, **reset)
    add("gue6", 500, Forward.GUE, mixed, vip=VIP6, guard=GuardMode.OFF, **shy, syn_cookies=True)
    add("gue6u", 501, Forward.GUE, mixed, vip=VIP6, **udp)
    add("below", 100, Forward.IPIP, four, vip="198.18.0.0", vip_bits=24, port_last=300)
    add("nat4", 8080, Forward.NAT, four, (None, 80, 8080), deny=("bad",), allow=("good",), **shy)
    add("nat4u", 8053, Forward.NAT, four, (53, None, 53), **udp)
    add("ranges", 8000, Forward.NAT, four, port_last=8009, scheduler=Scheduler.LEAST_CONN)
    add("load", 8090, Forward.NAT, four, scheduler=Scheduler.LEAST_LOAD)
    add(
        "nat6",
        8080,
        Forward.NAT,
        six,
        (None, 80, 8080),
        vip=VIP6,
        limits=Limits(packets_per_source=Rate(8, HOUR)),
    )
    add("nat6u", 8053, Forward.NAT, six, (53, None, 53), vip=VIP6, **udp)
    add("full4", 9000, Forward.FULLNAT, four, (None, 80, 8080), limits=few, **reset)
    add("full4u", 9053, Forward.FULLNAT, four, (53, None, 53), **udp)
    add("full6", 9000, Forward.FULLNAT, six, (None, 80, 8080), vip=VIP6, **shy)
    add("full6u", 9053, Forward.FULLNAT, six, (53, None, 53), vip=VIP6, **udp)
    add("hidden", 80, Forward.FULLNAT, four, vip="198.18.1.0", vip_bits=28,
        scheduler=Scheduler.LEAST_LOAD)  # fmt: skip
    return tuple(made)


def loaded(what: str, hook: Hook) -> Iterator[StillDataplane]:
    harness.require_root()
    config = Config(harness.instance_name(what), "lo", hook=hook, tables=TINY, nat=NAT)
    dataplane = StillDataplane(config)
    dataplane.load(harness.all_features(), sync=True)
    try:
        yield dataplane
    finally:
        dataplane.tables.close()
        pins.remove(dataplane.pins)


@pytest.fixture(scope="module")
def still_dataplane() -> Iterator[StillDataplane]:
    """Time passes only when a test says so, and few flows and ports have room."""
    yield from loaded("model", Hook.AUTO)


@pytest.fixture(scope="module")
def still_tc_dataplane() -> Iterator[StillDataplane]:
    """The same for tc."""
    yield from loaded("model-tc", Hook.TC)


def emptied(rig: Rig) -> Iterator[Rig]:
    rig.config = replace(rig.config, tables=TINY, nat=NAT)
    yield rig
    rig.reset()


@pytest.fixture
def still(still_dataplane: StillDataplane) -> Iterator[Rig]:
    yield from emptied(Rig(still_dataplane))


@pytest.fixture
def still_tc(still_tc_dataplane: StillDataplane) -> Iterator[Rig]:
    yield from emptied(TcRig(still_tc_dataplane))


def play(
    rig: Rig, seed: int, packets: int, around: Surroundings = AROUND, **kind: Any
) -> Counter[str]:
    """One history; what has happened, and how often."""
    rig.reset()
    mirror = Mirror(rig, services(rig.clock), around)
    history = History(mirror, seed, **kind)
    try:
        history.play(packets)
        mirror.check_counters()
        mirror.check_flows()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, packet {history.sent}: {error}") from None
    return history.done + mirror.found


@pytest.mark.parametrize(
    ("seed", "parts"), [(0, 1), *(pytest.param(n, 5, marks=pytest.mark.soak) for n in range(6))]
)
def test_histories_end_as_the_model_says(still: Rig, seed: int, parts: int):
    # The kernel draws at random too, so histories of one seed differ, and what is rare may need
    # some more of them.
    done: Counter[str] = Counter()
    for part in range(MOST_PARTS):
        done += play(still, 100 * seed + part, PART)
        if part + 1 >= parts and all(done[what] for what in SELDOM):
            break
    assert min(done[what] for what in OFTEN) > parts * PART / 1000, done
    assert min(done[what] for what in SELDOM) > 0, done


@pytest.mark.soak
def test_histories_end_alike_under_tc(still_tc: Rig):
    """BPF_PROG_TEST_RUN hides a tag that is put on, and refuses what is shorter than IP headers."""
    plain = Surroundings(AROUND.mtu, zones=ZONES)
    done = play(still_tc, 1, PART, plain, tags=((),), shortest=54)
    assert min(done[what] for what in OFTEN) > 0, done


@pytest.mark.parametrize("budget_s", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_a_random_history_ends_as_the_model_says(still: Rig, budget_s: int):
    """The seed is in the message where it does not."""
    end = time.monotonic() + budget_s
    while time.monotonic() < end:
        play(still, secrets.randbits(32), 2000)
