"""One service with two backends, as a snapshot."""

from ipaddress import ip_address

import pytest

from agent.model import (
    Backend,
    BackendState,
    Health,
    HealthStatus,
    Objective,
    Protocol,
    Scale,
    Service,
    ServiceKey,
    ServiceState,
    Signal,
)
from agent.state.scaling import Seen, decide
from agent.state.slo import Watch
from agent.state.snapshot import (
    BackendCounts,
    BackendSnapshot,
    DataplaneSnapshot,
    Latency,
    Load,
    NatPorts,
    Rates,
    ServiceSnapshot,
    Snapshot,
)
from agent.state.tables import ServiceSlot

SERVER = ServiceSlot(ip_address("192.0.2.1"), 80, 6)


def backend(name, address, state, latency_ms, load):
    return BackendSnapshot(
        backend=Backend(name, ip_address(address), weight=100),
        id=1,
        state=state,
        reason="",
        since=1_700_000_000.0,
        health=HealthStatus(Health.UP, "", 0.0, latency_ms=latency_ms),
        next_hop=None,
        weight_effective=50,
        weight_reason="",
        share_expected=0.5,
        share_actual=0.25,
        flows=4,
        counts=BackendCounts(10, 1000, 5, 1, 3, reply_packets=8, reply_bytes=800, answers=7),
        rates=Rates(),
        load=load,
    )


LOAD = Load(
    open=6,
    score=7.5,
    waiting_bytes=4096,
    awaiting=2,
    first_byte=Latency((*[0] * 13, 1, *[3] * 8), count=4, sum_s=3.25),
    handshake=Latency((9,) * 22, count=9, sum_s=0.125),
)


SCALING = decide(
    Scale(connections=16, requests=4, max=8),
    Seen(
        usable=1,
        draining=2,
        load={Signal.CONNECTIONS: 33, Signal.WAITING_BYTES: 700, Signal.QUEUED: 1.5},
        first_byte_p95_s=0.75,
        misses_objective=False,
    ),
)


@pytest.fixture
def snapshot():
    backends = (
        backend("gpu-1", "10.0.0.21", BackendState.UP, 12.5, LOAD),
        backend("gpu-2", "10.0.0.22", BackendState.DOWN, None, Load(open=3)),
    )
    service = Service(
        'odd"name',
        ServiceKey(ip_address("10.0.0.10"), 0, Protocol.TCP),
        backends=tuple(b.backend for b in backends),
    )
    return Snapshot(
        at=1_700_000_100.0,
        version="0.1.0",
        name="edge-1",
        pid=1,
        started=1_690_000_000.0,
        config_path="",
        config_problem="agent.yaml:3: bad",
        changes_since_file=2,
        reconcile_problem="",
        defects=0,
        events={},
        dataplane=DataplaneSnapshot(
            interface="eth0",
            ifindex=2,
            attached=True,
            hook="native",
            hook_reason="",
            driver="virtio_net",
            program_id=7,
            abi=1,
            features=(),
            compile_ms=220.0,
            instructions=900,
            jited_bytes=5000,
            verified_insns=12_345,
            flow_slots=1024,
            flows_by_state={"established": 6, "embryonic": 2},
            passed={"not-vip": 12},
            nat_ports=(NatPorts(ip_address("198.51.100.200"), SERVER, 5, 22_528),),
            events_lost=9,
        ),
        services=(
            ServiceSnapshot(
                service=service,
                id=1,
                state=ServiceState.DEGRADED,
                reason="",
                since=0.0,
                backends=backends,
                counts=BackendCounts(2**60, 2000, 10, 2, 6, reply_packets=16, reply_bytes=1600),
                drops={"no-backend": 3},
                not_recorded=1,
                rates=Rates(),
                replied=4,
                not_replied=1,
                slo=(Watch.begin(Objective(95, 2.0), 0.0).add(10.0, 40, 2.5),),
                scaling=SCALING,
            ),
        ),
    )
