"""How a rollout goes on, by what the balancers report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.dataplane.latency import BOUNDS_US
from agent.fleet.reports import Report, Work
from agent.fleet.rollout import TAKE_S, Step, judge
from agent.fleet.versions import Rollout

ROLLOUT = Rollout(5, ("lb3",), since=0.0, bake_s=60.0)


def times(ms: float, count: int) -> tuple[int, ...]:
    """So many answers that began after this time."""
    place = max(n for n, bound in enumerate(BOUNDS_US) if bound <= ms * 1000)
    return tuple(count if n == place else 0 for n in range(len(BOUNDS_US)))


WELL = Work(1000, 990, 10, 1000, 5, times(100, 1000))


def report(node: str, version: int, taken_s: float, work: Work = WELL, **more: object) -> Report:
    made = Report(node, "id", "1", 1e9, "master", version, 1e9 - taken_s, work=work)
    return replace(made, **more)  # type: ignore[arg-type]


def reports(canary: Report | None, other: Work = WELL) -> dict[str, Report]:
    """Two others, and the canary. Their clocks have nothing to do with ours."""
    found = {
        "lb1": replace(report("lb1", 4, 500, other), at=5.0, since=-495.0),
        "lb2": report("lb2", 4, 500, other),
    }
    return found if canary is None else {**found, "lb3": canary}


def step(canary: Report | None, known_s: float = 100.0, other: Work = WELL) -> tuple[Step, str]:
    verdict = judge(ROLLOUT, reports(canary, other), known_s)
    return verdict.step, verdict.why


def test_a_version_that_does_well_for_its_time_is_promoted() -> None:
    assert step(report("lb3", 5, 59.0)) == (
        Step.WAIT,
        "it is promoted in 1 s unless something goes wrong",
    )
    assert step(report("lb3", 5, 60.0)) == (Step.PROMOTE, "nothing went wrong for 60 s")


def test_without_a_time_an_operator_decides() -> None:
    verdict = judge(replace(ROLLOUT, bake_s=0.0), reports(report("lb3", 5, 9999.0)), 9999.0)
    assert verdict.step is Step.WAIT
    assert "lbctl rollout promote" in verdict.why


def test_it_waits_until_all_have_taken_it() -> None:
    rollout = replace(ROLLOUT, nodes=("lb3", "lb4"))
    found = reports(report("lb3", 5, 100.0)) | {"lb4": report("lb4", 4, 100.0)}
    verdict = judge(rollout, found, 1.0)
    assert (verdict.step, verdict.why) == (Step.WAIT, "lb4 has yet to take it")
    verdict = judge(rollout, found, TAKE_S + 1)
    assert (verdict.step, verdict.why) == (Step.ABORT, "lb4 has not taken it within 30 s")


def test_one_that_has_just_vanished_is_waited_for() -> None:
    """The balancer that judges was started anew, so it has not known the rollout for long."""
    rollout = replace(ROLLOUT, nodes=("lb3", "lb4"))
    verdict = judge(rollout, reports(report("lb3", 5, 100.0)), 1.0)
    assert (verdict.step, verdict.why) == (Step.WAIT, "lb4 has yet to take it")
    assert judge(rollout, reports(None), 1.0).step is Step.WAIT


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (None, "lb3 reports nothing any more"),
        (report("lb3", 4, 100.0, refused=(5, "no zone east")), "lb3 refuses it: no zone east"),
        (report("lb3", 5, 100.0, problem="the map is full"), "lb3: the map is full"),
        (report("lb3", 5, 100.0, down=("chat",)), "lb3: no backend of chat is usable"),
        (
            report("lb3", 5, 100.0, replace(WELL, failed=80)),
            "lb3: 7% of the requests fail, 0% at the others",
        ),
        (
            report("lb3", 5, 100.0, replace(WELL, established=900)),
            "lb3: 10% of the connections are not established, 1% at the others",
        ),
        (
            report("lb3", 5, 100.0, replace(WELL, drops=600)),
            "lb3: 0.6 packets are dropped for each connection, 0.0 at the others",
        ),
    ],
)
def test_it_is_given_up(canary: Report | None, why: str) -> None:
    assert step(canary) == (Step.ABORT, why)


def test_it_is_given_up_if_answers_come_much_later() -> None:
    found, why = step(report("lb3", 5, 100.0, replace(WELL, first_byte=times(500, 100))))
    assert found is Step.ABORT
    assert why.startswith("lb3: 95 % of the answers begin within")
    assert step(report("lb3", 5, 100.0, replace(WELL, first_byte=times(130, 100))))[0] is not (
        Step.ABORT
    )


@pytest.mark.parametrize(
    "canary",
    [
        report("lb3", 4, 100.0, refused=(3, "an older version")),
        report("lb3", 5, 5.0, down=("chat",)),  # its health checks have hardly begun
        report("lb3", 5, 100.0, Work(40, 0, 40, 10, 30)),  # too few to say anything
        report("lb3", 5, 5.0, replace(WELL, failed=500)),
    ],
)
def test_it_is_not_given_up_for_nothing(canary: Report) -> None:
    assert step(canary, known_s=5.0)[0] is not Step.ABORT


def test_a_service_that_is_down_elsewhere_too_is_no_reason() -> None:
    found = reports(report("lb3", 5, 100.0, down=("chat",)))
    found["lb1"] = replace(found["lb1"], down=("chat",))
    assert judge(ROLLOUT, found, 100.0).step is Step.PROMOTE


def test_it_is_as_bad_at_the_others() -> None:
    """An attack, say, that all of them see."""
    attacked = replace(WELL, established=500, drops=5000, failed=200)
    assert step(report("lb3", 5, 100.0, attacked), other=attacked)[0] is Step.PROMOTE


def test_without_others_at_work_a_balancer_is_compared_with_itself_before() -> None:
    canary = report("lb3", 5, 100.0, replace(WELL, failed=80), before=WELL)
    assert step(canary, other=Work()) == (
        Step.ABORT,
        "lb3: 7% of the requests fail, 0% before",
    )
    assert step(replace(canary, before=canary.work), other=Work())[0] is Step.PROMOTE
