"""Everything that answers can have is as the OpenAPI document says; other tests see most of it."""

import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from agent.api import discoveryviews, failoverviews, guardviews, views
from agent.config.layers import LeftOut
from agent.discovery.answer import Refused
from agent.discovery.run import SourceView
from agent.model import (
    AdminState,
    BackendRef,
    BackendState,
    Detect,
    Discover,
    NoBackend,
    Objective,
    Override,
    Target,
)
from agent.state.alerts import Outcome, Seen
from agent.state.blocks import Block
from agent.state.causes import Cause, Late, Server, Troubles, Unconnected, Unserved
from agent.state.guardview import AlertsView, Guarded, LimitView, ListView, ThreatView, Verdicts
from agent.state.journal import Tally
from agent.state.moves import Lacking
from agent.state.slo import Watch
from agent.state.snapshot import Home, LearnedSpeed, Load, Reported
from agent.state.sources import Placed, SourceState
from agent.state.threats import Evidence, Sign, Threat
from agent.telemetry.report import GpuReport
from tests import described
from tests.unit.failover.samples import VIEW

RECENT = Tally({"warning": 2}, {})
WATCH = Watch.begin(Objective(95, 1.5), 0.0).add(10.0, 5, 2.0)


def test_everything_that_can_be_wrong(snapshot, now):
    ref = BackendRef("chat", "gpu-1")
    troubles = Troubles(
        unserved=(Unserved("chat", "no backend", now - 5, NoBackend.HOLD),),
        unconnected=(Unconnected("chat", 7, 2),),
        late=(Late("chat", replace(WATCH, is_missed=True)),),
        causes=(
            Cause(
                (Server("gpu-1", (ip_address("10.0.0.21"),)),),
                BackendState.DOWN,
                "no answer",
                now - 9,
                (ref,),
                1,
            ),
        ),
    )
    seen = replace(snapshot, failover=VIEW)
    body = views.status(seen, troubles, RECENT) | views.metrics_read(("::1", 9117), 1.0, 2.0)
    described.check_shape(("Status",), body)
    body = failoverviews.failover(replace(VIEW, lacking=Lacking(1, "slow", now - 5)), now)
    assert body["flow_sync"]["peers"]
    assert body["flow_sync"]["last_move_lacking_flows"]


def test_everything_that_a_backend_reports_and_teaches(snapshot, now):
    view = snapshot.services[0]
    gpus = (
        GpuReport("0", "GPU-1", False, 0.9, ("thermal",), True, 79, "reset", 0.5, 0.25, 61.5),
        GpuReport("1", lost=True),
    )
    numbers = dict.fromkeys(
        ("age_s", "every_s", "running", "waiting", "kv_usage", "gpu_share", "prompt_tokens"), 0.5
    )
    load = Load(
        reported=Reported(fresh=True, cached_share=0.1, gpus=gpus, gpus_age_s=1.0, **numbers),
        learned=LearnedSpeed(1.1, 300, 0.5, 1e-6, 1e-3, 0.1, 12.5),
    )
    backend = replace(view.backends[0], load=load)
    home = Home(4096, 0.5, 0.25, 0.125)
    changed = replace(view, backends=(backend,), slo=(WATCH,), home=home, held=3, draws=8)
    (shown,) = views.service(changed, now, RECENT)["backends"]
    assert len(shown["reported"]["gpus"]) == 2
    assert shown["learned"]["bytes_per_connection"] == 300


def test_everything_that_the_guard_has(snapshot, now):
    block = Block(ip_network("192.0.2.0/24"), "port scans", now - 5, now + 5)
    evidence = Evidence(Sign.NEW, 400.0, 0.5, 40)
    threat = Threat("chat", ip_network("192.0.2.7/32"), evidence, 1.0)
    seen = Seen(
        7, "scan", 2, Outcome.LOGGED, ip_address("192.0.2.7"), "10.0.0.10:80", 7, now - 5
    )  # fmt: skip
    guarded = Guarded(
        blocks=(block,),
        lists=(ListView("drop", 3, (Path("/etc/drop"),), now - 5, "", 1, 2, ("chat",)),),
        limits=(LimitView("chat", "new_flows", "10/s", 1, 2, 3),),
        threats=(ThreatView(threat, now - 5, Detect.BLOCK, proven=True),),
        alerts=AlertsView(Path("/eve"), "", (seen,), {(2, Outcome.LOGGED): 7}, 1, 2, 3),
    )
    body = guardviews.guard(replace(snapshot, guard=guarded))
    assert body["blocks"]
    assert body["lists"]
    assert body["limits"]
    assert body["threats"]
    assert body["alerts"]["recent"]
    assert body["alerts"]["counts"] == [{"severity": 2, "outcome": "logged", "alerts": 7}]
    assert body["services"]
    guardviews.tested(Verdicts(ip_address("192.0.2.7"), block, ("drop",), {"chat": "blocked"}))


def test_everything_that_a_source_can_name(config):
    now = time.time()
    targets = [Target(ip_address(f"10.0.0.{last}"), 8000, zone="a") for last in (1, 2, 3)]
    service = replace(
        config.services[0],
        discover=Discover(file=Path("/etc/targets"), match=(("gpu", "h100"),)),
        overrides=(Override(targets[0].address, 8000, 50, AdminState.DRAIN),),
    )
    placed = (Placed(targets[0]), Placed(targets[1], now - 5))
    state = SourceState("file", placed, now - 9, "fewer than min", now - 5, (targets[2],))
    view = SourceView(service, state, now - 1, (Refused("x:1", "is no address"),))
    left_out = {"chat": (LeftOut(targets[2], "the name is taken"),)}
    (shown,) = discoveryviews.sources((view,), left_out, now)["sources"]
    assert [bool(each["override"]) for each in shown["targets"]] == [True, False]
    assert (shown["held"], len(shown["left_out"])) == (1, 2)
