"""What the repetitions say together, and how a run is divided."""

from __future__ import annotations

import json

from bench.failover import plan, report, results
from bench.failover.measure import Failure, Sample
from bench.failover.plan import FAST, OURS, THEIRS, WHOLE
from bench.failover.results import Mark
from bench.failover.steady import Steady
from bench.failover.timeline import Outcome
from bench.machine import Machine

MACHINE = Machine("cpu", 2, "L2", "yes", "Linux", "on", "none", "3.13", "abc", "2026-01-01")


def sample(
    pairing: str,
    case: str,
    takeover_ms: float | None = 30.0,
    hole_ms: float = 0.0,
    two_owners_ms: float | None = None,
) -> Sample:
    """An outcome; a dead node's kernel still answers, so nothing is unanswered."""
    outcome = Outcome(takeover_ms, None, 0.0, hole_ms, hole_ms, two_owners_ms, None)
    return Sample(FAST.name, pairing, case, outcome, given_up=False)


def said(marks: list[Mark]) -> dict[str, bool]:
    return {mark.what: mark.reached for mark in marks}


def test_a_dead_node_is_out_until_the_other_one_answers() -> None:
    assert results.outage_ms(sample(OURS.name, "kill")) == 30.0
    assert results.outage_ms(sample(OURS.name, "stop")) == 0.0


def test_slower_than_keepalived_by_more_than_the_client_can_see_is_missed() -> None:
    for ours, reached in ((30.9, True), (31.2, False)):
        found = [sample(OURS.name, "kill", ours), sample(THEIRS.name, "kill", 30.0)]
        assert said(results.marks(results.rows(found), []))["kill, outage: median, ms"] is reached


def test_more_than_three_adverts_without_an_answer_are_a_black_hole() -> None:
    for hole_ms, count in ((30.0, 0), (31.0, 1)):
        (row,) = results.rows([sample(OURS.name, "partition", hole_ms=hole_ms)])
        assert row.black_holed == count
    reached = said(results.marks([row], []))
    assert reached["partition, v3-10ms: black-holed heals"] is False


def test_two_owners_for_more_than_an_advert_are_missed() -> None:
    found = [sample(OURS.name, "freeze", two_owners_ms=10.5)]
    reached = said(results.marks(results.rows(found), []))
    assert reached["v3-10ms: two owners that see each other, ms"] is False


def test_a_transition_of_an_unharmed_pair_is_missed() -> None:
    one = Steady(FAST.name, OURS.name, 2, 0, 1000, 0.0, (1.0, 1.0))
    assert said(results.marks([], [one])) == {"v3-10ms, every core busy: transitions": False}


def test_the_page_is_made_of_what_is_kept() -> None:
    found = [
        sample(OURS.name, "kill"),
        sample(THEIRS.name, "kill", 32.0),
        Failure(FAST.name, OURS.name, "stop", "it does not\nstart"),
    ]
    document = {
        "outages": report.outages(MACHINE, "v2.3.3", found),
        "steady": report.steady(MACHINE, 600, [Steady("v3-10ms", OURS.name, 0, 0, 9, 0.0, (1, 1))]),
    }
    page = report.markdown(json.loads(report.as_json(document)))
    assert "| kill | keepalived | 1 | 32.0 |" in page
    assert "- v3-10ms, steelyard, stop: it does not start" in page
    assert "| v3-10ms | steelyard | 0 |" in page
    assert page == report.markdown(document)


def test_rounds_make_all_repetitions_and_begin_with_another_pairing() -> None:
    series = WHOLE[0]
    tasks = plan.tasks([series], seed=1)
    assert [task.pairing for task in tasks[:4]] == [OURS, THEIRS, THEIRS, OURS]
    for pairing in series.pairings:
        mine = [dict(task.repetitions) for task in tasks if task.pairing == pairing]
        for name, count in series.repetitions.items():
            assert sum(len(of.get(name, ())) for of in mine) == count


def test_both_pairings_meet_the_same_moments_all_over_an_interval() -> None:
    tasks = plan.tasks([WHOLE[0]], seed=1)
    met = {
        pairing.name: [task.repetitions for task in tasks if task.pairing == pairing]
        for pairing in (OURS, THEIRS)
    }
    assert met[OURS.name] == met[THEIRS.name]
    moments = sorted(m for of in met[OURS.name] for m in dict(of)["kill"])
    assert moments == [(number + 0.5) / 20 for number in range(20)]


def test_the_asked_for_heals_are_in_the_whole_run() -> None:
    assert WHOLE[0].variant == FAST
    assert min(WHOLE[0].repetitions[name] for name in ("partition", "cut")) >= 50


def test_narrowed_to_one_case() -> None:
    (one,) = plan.narrowed(WHOLE, ["deaf"], ["v3-10ms"], ["keepalived"], 3)
    assert one.repetitions == {"deaf": 3}
    assert one.pairings == (THEIRS,)
