"""One service with two backends, as a snapshot."""

from ipaddress import ip_address

import pytest

from agent.model import (
    Backend,
    BackendState,
    Health,
    HealthStatus,
    Protocol,
    Service,
    ServiceKey,
    ServiceState,
)
from agent.state.snapshot import (
    BackendCounts,
    BackendSnapshot,
    DataplaneSnapshot,
    Rates,
    ServiceSnapshot,
    Snapshot,
)


def backend(name, address, state, latency_ms):
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
        counts=BackendCounts(packets=10, bytes=1000, opened=5, closed=1, established=3),
        rates=Rates(),
    )


@pytest.fixture
def snapshot():
    backends = (
        backend("gpu-1", "10.0.0.21", BackendState.UP, 12.5),
        backend("gpu-2", "10.0.0.22", BackendState.DOWN, None),
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
        dataplane=DataplaneSnapshot(
            interface="eth0",
            ifindex=2,
            attached=True,
            xdp_mode="native",
            xdp_mode_reason="",
            driver="virtio_net",
            program_id=7,
            abi=1,
            features=(),
            compile_ms=220.0,
            instructions=900,
            flow_slots=1024,
            flows_by_state={"established": 6, "embryonic": 2},
            passed={"not-vip": 12},
        ),
        services=(
            ServiceSnapshot(
                service=service,
                id=1,
                state=ServiceState.DEGRADED,
                reason="",
                since=0.0,
                backends=backends,
                counts=BackendCounts(packets=2**60, bytes=2000, opened=10, closed=2, established=6),
                drops={"no-backend": 3},
                not_recorded=1,
                rates=Rates(),
            ),
        ),
    )
