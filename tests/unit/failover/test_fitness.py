"""What tracking makes of a node's priority, and what the operator reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.failover.fitness import (
    UNHEARD,
    AgentHeartbeat,
    Observations,
    ScriptState,
    fitness,
    judged,
)
from agent.failover.model import (
    OWNER,
    Instance,
    Method,
    Track,
    TrackedInterface,
    TrackedScript,
)
from agent.failover.times import AGENT_HEARTBEAT_S, RESTARTED_S
from agent.failover.vrrp.states import Fitness

WEB = Instance("web", priority=100)
WELL = Observations(
    interfaces={"eth0": True, "eth1": True},
    word=AgentHeartbeat(True, services={"web": (1, 2), "web6": (0, 2), "dns": (0, 0)}),
    program=True,
)
CHECK = TrackedScript("check", ("true",), rise=2, fall=3)


def judge(
    instance: Instance = WEB, observed: Observations = WELL, services: tuple[str, ...] = ("web",)
) -> tuple[Fitness, tuple[str, ...]]:
    found = fitness(instance, "eth0", services, observed)
    return found.fitness, found.reasons


def tracking(**changes: object) -> Instance:
    return replace(WEB, track=replace(Track(), **changes))  # type: ignore[arg-type]


def test_all_well_is_the_configured_priority() -> None:
    assert judge() == (Fitness(100), ())


def test_the_own_interface_has_to_be_up() -> None:
    down = replace(WELL, interfaces={"eth0": False})
    assert judge(observed=down) == (Fitness(100, "eth0 is down"), ("eth0 is down",))
    assert judge(observed=replace(WELL, interfaces={}))[0].fault == "there is no eth0"


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(0, (Fitness(100, "eth1 is down"), ("eth1 is down",)))]
    + [(weight, (Fitness(80), ("eth1 is down: -20",))) for weight in (20, -20)],
)
def test_another_interface_is_a_fault_or_costs_its_weight(
    weight: int, expected: tuple[Fitness, tuple[str, ...]]
) -> None:
    instance = tracking(interfaces=(TrackedInterface("eth1", weight),))
    assert judge(instance) == (Fitness(100), ())
    assert judge(instance, replace(WELL, interfaces={"eth0": True, "eth1": False})) == expected


def test_the_own_interface_is_a_fault_though_it_is_tracked_with_a_weight() -> None:
    instance = tracking(interfaces=(TrackedInterface("eth0", 20),))
    found = judge(instance, replace(WELL, interfaces={"eth0": False}))
    assert found == (Fitness(100, "eth0 is down"), ("eth0 is down",))


@pytest.mark.parametrize(
    ("weight", "ok", "expected"),
    [
        (0, False, (Fitness(100, "script check fails (exit status 1)"),)),
        (0, True, (Fitness(100),)),
        (0, None, (Fitness(100),)),
        (-30, False, (Fitness(70), "script check fails (exit status 1): -30")),
        (-30, True, (Fitness(100),)),
        (30, True, (Fitness(130), "script check succeeds: +30")),
        (30, False, (Fitness(100),)),
        (30, None, (Fitness(100),)),
    ],
)
def test_scripts_count_as_keepalived_counts_them(
    weight: int, ok: bool | None, expected: tuple[Fitness, str]
) -> None:
    instance = tracking(scripts=(replace(CHECK, weight=weight),))
    observed = replace(WELL, scripts={"check": ScriptState(ok, 0, "exit status 1")})
    found, reasons = judge(instance, observed)
    assert found == expected[0]
    assert reasons == (expected[1:] or ((found.fault,) if found.fault else ()))


def test_a_script_flips_after_rise_or_fall_results_in_a_row() -> None:
    state, seen = ScriptState(), []
    for ok in (True, False, False, True, False, False, False, True, False, True, True):
        state = judged(CHECK, state, ok, "")
        seen.append(state.ok)
    assert seen == [True] * 6 + [False] * 4 + [True]
    assert judged(CHECK, ScriptState(), False, "x") == ScriptState(False, 0, "x")


def test_services_cost_once_none_of_them_has_a_backend() -> None:
    assert judge(services=("web", "web6")) == (Fitness(100), ())
    dead = replace(WELL, word=AgentHeartbeat(True, services={"web": (0, 2), "web6": (0, 1)}))
    assert judge(observed=dead, services=("web", "web6")) == (
        Fitness(50),
        ("services web, web6 have no backend up: -50",),
    )
    assert judge(observed=dead)[1] == ("service web has no backend up: -50",)
    assert judge(tracking(services=0), dead) == (Fitness(100), ())


def test_a_node_that_reaches_nobody_is_behind_all_others_and_still_fit() -> None:
    word = AgentHeartbeat(
        True, services={"web": (1, 2)}, cut_off=True
    )  # one without checks is "up"
    found, reasons = judge(observed=replace(WELL, word=word))
    assert found == Fitness(1)
    assert reasons == ("neither a backend nor another balancer is reached: -254",)


def test_services_without_backends_and_unknown_ones_cost_nothing() -> None:
    assert judge(services=("dns", "new")) == (Fitness(100), ())


def test_without_elections_dead_services_are_a_fault() -> None:
    announce = replace(WEB, method=Method.ANNOUNCE)
    dead = replace(WELL, word=AgentHeartbeat(True, services={"web": (0, 2)}))
    assert judge(announce, dead)[0].fault == "service web has no backend up"


@pytest.mark.parametrize(
    ("observed", "fault"),
    [
        (replace(WELL, word=None), "the agent has not reported yet"),
        (
            replace(WELL, word=AgentHeartbeat(False, "no such interface")),
            "the agent's program is not attached: no such interface",
        ),
        (replace(WELL, word=AgentHeartbeat(False)), "the agent's program is not attached"),
        (replace(WELL, program=False), "the agent's XDP program is gone"),
        (replace(WELL, program=None), ""),
    ],
)
def test_without_its_data_plane_a_node_may_not_be_master(
    observed: Observations, fault: str
) -> None:
    assert judge(observed=observed)[0] == Fitness(100, fault)
    assert judge(tracking(dataplane=False), observed)[0] == Fitness(100)


def test_an_agent_that_is_away_for_long_costs_its_weight_and_no_more() -> None:
    assert judge(observed=replace(WELL, agent_away_s=29.9)) == (Fitness(100), ())
    assert judge(observed=replace(WELL, agent_away_s=30.0)) == (
        Fitness(80),
        ("the agent has been away for more than 30 s: -20",),
    )
    assert judge(tracking(agent=0), replace(WELL, agent_away_s=99.0)) == (Fitness(100), ())
    at_once = tracking(agent_grace_s=0.0)
    assert judge(at_once, replace(WELL, agent_away_s=AGENT_HEARTBEAT_S)) == (Fitness(100), ()), (
        "it is there"
    )
    assert judge(at_once, replace(WELL, agent_away_s=RESTARTED_S)) == (
        Fitness(80),
        ("the agent has been away for more than 2 s: -20",),
    )
    # Since the boot, it compiles: that it cannot be master is all there is to say.
    never = replace(WELL, word=None, agent_away_s=99.0)
    assert judge(observed=never) == (Fitness(100, UNHEARD), (UNHEARD,))
    assert judge(tracking(dataplane=False), never)[0] == Fitness(80)


@pytest.mark.parametrize(("configured", "weight", "left"), [(10, -50, 1), (250, 50, 254)])
def test_the_priority_stays_one_that_can_be_advertised(
    configured: int, weight: int, left: int
) -> None:
    track = Track(scripts=(replace(CHECK, weight=weight),))
    observed = replace(WELL, scripts={"check": ScriptState(weight > 0)})
    assert judge(replace(WEB, priority=configured, track=track), observed)[0] == Fitness(left)


def test_an_owner_stays_one_unless_it_has_a_fault() -> None:
    owner = replace(WEB, priority=OWNER)
    assert judge(owner, replace(WELL, agent_away_s=99.0)) == (Fitness(OWNER), ())
    assert judge(owner, replace(WELL, program=False))[0].fault


def test_several_faults_are_all_told() -> None:
    found = judge(observed=Observations())
    faults = ("there is no eth0", "the agent has not reported yet")
    assert found == (Fitness(100, "; ".join(faults)), faults)
