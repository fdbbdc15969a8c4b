"""A node of a pair as it tells of itself: backup for IPv4 with a mismatch, master for IPv6."""

from __future__ import annotations

from ipaddress import ip_address

from agent.failover.model import Method, Mode, Role
from agent.failover.status import FailoverStatus, Problem, RouterStatus
from agent.failover.syncstatus import LinkState, PeerSync, RouterReport
from agent.state.snapshot import FailoverView

NOW = 1_700_000_000.0
BACKUP = RouterStatus(
    name="web/ipv4",
    instance="web",
    method=Method.VRRP,
    group="web",
    interface="eth0",
    family=4,
    vrid=51,
    version=3,
    role=Role.BACKUP,
    since=NOW - 90,
    why="10.0.0.2 has priority 150",
    mode=Mode.HANDED_OVER,
    priority=1,
    configured_priority=100,
    priority_reasons=("handed over",),
    interval_s=0.1,
    vips=("10.0.0.10",),
    peers=(),
    master="10.0.0.2",
    master_priority=150,
    problems=(Problem("vips", "10.0.0.2 has other VIPs", NOW - 60, NOW - 2, 580),),
    transitions={"backup": 2, "master": 1},
    adverts_sent=7,
    adverts_received=900,
    adverts_discarded={"checksum": 3},
    announcements=10,
)
MASTER = RouterStatus(
    name="web/ipv6",
    instance="web",
    method=Method.VRRP,
    group="web",
    interface="eth0",
    family=6,
    vrid=51,
    version=3,
    role=Role.MASTER,
    since=NOW - 10,
    why="nobody else was heard",
    mode=Mode.NORMAL,
    priority=100,
    configured_priority=100,
    priority_reasons=(),
    interval_s=0.1,
    vips=("fe80::200:5eff:fe00:233", "fd00::10"),
    peers=("fd00::2",),
    master="fe80::1",
    master_priority=100,
)
STATUS = FailoverStatus(
    pid=77,
    started=NOW - 3600,
    version="0.5.0",
    realtime=True,
    memory_locked=False,
    agent_seen=NOW - 0.25,
    config_problem="",
    routers=(BACKUP, MASTER),
)
PEER = PeerSync(
    address=ip_address("10.0.0.2"),
    name="edge-2",
    version="0.5.0",
    state=LinkState.CONNECTED,
    why="",
    since=NOW - 30,
    lag_s=0.21,
    behind_s=0.3,
    rtt_ms=0.4,
    flows_sent=1000,
    flows_received=2000,
    flows_installed=1900,
    flows_dropped={"no-backend": 100, "over": 7},
    bytes_sent=123_456,
    full_sent=1,
    full_received=1,
)
WORD = RouterReport(
    instance="web",
    family=4,
    method=Method.VRRP,
    role=Role.MASTER,
    priority=150,
    well=True,
    vouched=False,
    vrid=51,
    version=3,
    interval_s=0.1,
    authentication="none",
    vips="0a33",
)
VIEW = FailoverView(
    configured=True, process=STATUS, problem="", sync=(PEER,), sync_strangers={"stranger": 3},
    sync_counts={"untold": 5, "passed_on": 7},
)  # fmt: skip
