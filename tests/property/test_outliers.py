"""Services that nobody asks are left alone, and nothing else comes out than if they were not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import Backend, BackendRef, Config, Outlier, Service
from agent.state import outliers
from agent.state.outliers import Tally, Watch
from agent.weighing.outliers import Outcomes, Outliers
from tests.examples import examples
from tests.unit.state.world import web

BACKENDS = tuple(Backend(f"b{n}", ip_address(f"10.0.1.{n + 1}")) for n in range(3))
SHORT = Outlier(eject_s=5.0, threshold=0.5, window_s=6.0, requests=10, max_ejected=0.5)
SERVICE: Service = web(*BACKENDS, outlier=SHORT)
REFS = tuple(BackendRef("web", backend.name) for backend in BACKENDS)
CONFIG = Config("test", "eth0", services=(SERVICE,))

good, bad = Tally(20, 20, 20), Tally(20, 20, 20, errors=20)
seconds = st.tuples(*[st.sampled_from([Tally(), good, bad, Tally(20), Tally(3, 3, 3, 2)])] * 3)
quiet = st.integers(1, 40).map(lambda n: [(Tally(),) * 3] * n)
histories = st.lists(seconds.map(lambda one: [one]) | quiet, min_size=1, max_size=25).map(
    lambda parts: [second for part in parts for second in part]
)


@settings(deadline=None, max_examples=examples(150))
@given(histories)
def test_what_is_left_alone_comes_to_the_same(history: list[tuple[Tally, ...]]) -> None:
    found, watches = Outliers(), dict.fromkeys(REFS, Watch())
    totals = dict.fromkeys(REFS, Tally(7, 7, 7))
    out: frozenset[BackendRef] = frozenset()
    at, last = 100.0, Outcomes()
    for second in [(Tally(),) * 3, *history]:
        more = dict(zip(REFS, second, strict=True))
        before = totals
        totals = {r: t if r in out else t + more[r] for r, t in totals.items()}
        moved = frozenset(r for r in REFS if totals[r] != before[r])
        last = Outcomes(totals, last.tallies, moved, last.at_s, at)
        usable = frozenset(REFS) - out
        found.take(CONFIG, last, usable)
        watches = outliers.follow(SERVICE, watches, totals, usable, at)
        out = frozenset(ref for ref, watch in watches.items() if watch.ejected)
        assert {ref for ref in REFS if found.verdict(ref).out} == out
        assert [found.ejections(ref) for ref in REFS] == [watches[r].ejections for r in REFS]
        at += 1.0


def test_who_is_down_by_its_check_and_well_again_is_put_back() -> None:
    found, totals, last = Outliers(), dict.fromkeys(REFS, Tally()), Outcomes()

    def second(at: float, *more: Tally) -> None:
        nonlocal totals, last
        before, out = totals, {ref for ref in REFS if found.verdict(ref).out}
        totals = {
            r: t if r in out else t + m for (r, t), m in zip(totals.items(), more, strict=True)
        }
        moved = frozenset(r for r in REFS if totals[r] != before[r])
        last = Outcomes(totals, before, moved, last.at_s, at)
        found.take(CONFIG, last, frozenset(REFS) - out)

    for at in range(100, 104):
        second(float(at), bad, good, good)
    assert found.verdict(REFS[0]).out
    found.recovered(REFS[1])  # who is not ejected stays as it is
    second(104.0, good, good, good)
    assert found.verdict(REFS[0]).out
    found.recovered(REFS[0])
    second(105.0, good, good, good)
    assert not found.verdict(REFS[0]).out
    assert found.ejections(REFS[0]) == 1


def test_a_service_that_nobody_asks_is_not_looked_at() -> None:
    found, tallies = Outliers(), dict.fromkeys(REFS, Tally())
    looked = []
    for at in range(60):
        last = Outcomes(
            tallies, tallies, frozenset(REFS[:1] if at == 5 else ()), at - 1.0, float(at)
        )
        found.take(CONFIG, last, frozenset(REFS))
        looked.append(bool(found._awake))
    assert looked[:5] == [False] * 5
    assert looked[5]
    assert looked[15]
    assert not any(looked[30:])
    other = replace(CONFIG, services=())
    found.take(other, Outcomes(at_s=61.0), frozenset())
    assert found.marked == set()
