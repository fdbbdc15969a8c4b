"""Reports, or what stands in for them, become words of the loads, as long as they are fresh."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.model import Protocol, Scheduler, Service, Telemetry, TelemetryKind
from agent.state.identities import assign, server_of
from agent.state.loads import KAPPA
from agent.state.tables import TableContents
from agent.telemetry.report import EngineReport
from agent.weighing import scores
from agent.weighing.scores import RATIO_HELD_S, Scores
from tests.unit.dataplane.fakes import CLOCK
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import A_REF, B_REF, World

VLLM = Telemetry(TelemetryKind.VLLM, interval_s=0.2)
FRESH_S = 3 * 0.2
FRESH_JIFFIES = round(FRESH_S * CLOCK.hz)
STAND_IN_JIFFIES = CLOCK.hz  # a second
REQUEST_BYTES = 500.0


class Here(World):
    """With scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scores = Scores(self.plane, lambda _service: REQUEST_BYTES)
        self.place()

    def place(self, service: Service | None = None) -> None:
        """A pass, maybe with the service changed."""
        if service is not None:
            self.config = replace(self.config, services=(service,))
        self.scores.place(self.config, self.ids)

    def words(self, name: str, *which: str) -> tuple[int, ...]:
        return tuple(int(self.load(name)[word]) for word in which)


def here(**fields: object) -> Here:
    return Here(web(A, B, **({"telemetry": VLLM, "scheduler": Scheduler.LEAST_LOAD} | fields)))


# -- an engine's report


def test_a_report_is_written_with_the_connections_as_of_the_asking():
    world = here()
    world.put_load("a", open=7, open_fix=-2)
    world.scores.asked(A_REF)
    world.put_load("a", open=12)
    world.scores.reported(A_REF, EngineReport(running=3.5), 10.0, FRESH_S)
    assert world.words("a", "queue", "report_open", "is_hot") == (896, 5, 0)
    assert world.load("a")["report_until"] == world.plane.jiffies + FRESH_JIFFIES
    assert world.load("b")["report_until"] == 0


def test_connections_of_the_asking_survive_a_pass():
    world = here()
    world.put_load("a", open=7, waiting=500)
    world.scores.asked(A_REF)
    world.put_load("a", open=0, waiting=0)
    world.place()
    world.scores.reported(A_REF, EngineReport(running=0, waiting=1), 10.0, FRESH_S)
    assert world.words("a", "report_open", "queue") == (7, 256)


@pytest.mark.parametrize(
    ("open_", "embryonic", "waiting", "queue"),
    [(6, 0, 0, 6), (6, 0, 2, 6), (6, 0, 9, 9), (6, 4, 1, 2), (0, 0, 0, 0)],
)
def test_where_running_is_not_told_open_connections_stand_in(
    open_: int, embryonic: int, waiting: int, queue: int
):
    """Triton with most of its backends: 6 long streams looked like none, and got all that came."""
    world = here()
    world.put_load("a", open=open_, embryonic=embryonic)
    world.scores.asked(A_REF)
    world.scores.reported(A_REF, EngineReport(waiting=float(waiting)), 10.0, FRESH_S)
    hidden = 2 * waiting  # requests of 500 bytes that are not among those that wait here
    assert world.words("a", "queue", "report_open") == (256 * (queue + hidden), open_)


def test_hot_is_written_and_taken_back():
    world = here()
    world.scores.reported(A_REF, EngineReport(running=1, waiting=5), 10.0, FRESH_S)
    assert world.load("a")["is_hot"] == 1
    world.scores.reported(A_REF, EngineReport(running=1, waiting=0), 10.2, FRESH_S)
    assert world.load("a")["is_hot"] == 0


def test_jiffies_go_round():
    world = here()
    world.plane.jiffies = 2**32 - 5
    world.scores.reported(A_REF, EngineReport(running=1), 10.0, FRESH_S)
    assert world.load("a")["report_until"] == FRESH_JIFFIES - 5


def test_what_tells_no_queue_writes_none():
    world = here()
    world.put_load("a", queue=77)
    world.scores.reported(A_REF, EngineReport(kv_usage=0.9), 10.0, FRESH_S)
    assert world.words("a", "queue", "report_until") == (77, 0)


def test_a_connection_since_a_report_weighs_its_request_too():
    world = here(bytes_per_connection=250)
    world.scores.reported(A_REF, EngineReport(running=3), 10.0, FRESH_S)
    assert world.load("a")["kappa"] == pytest.approx(256 * (1 + 500 / 250), abs=1)


def test_where_bytes_do_not_weigh_a_connection_and_a_request_are_one():
    world = here(count_waiting=False)
    world.put_load("a", kappa=0)
    world.scores.reported(A_REF, EngineReport(waiting=4), 10.0, FRESH_S)
    assert world.words("a", "kappa", "queue") == (KAPPA, 4 * 256)


# -- who has none


@pytest.mark.parametrize(
    "fields",
    [
        {"scheduler": Scheduler.MAGLEV},
        {"telemetry": Telemetry(TelemetryKind.AGENT_CHECK), "count_waiting": False},
    ],
)
def test_who_is_not_compared_by_load_has_no_words(fields: dict):
    world = here(**fields)
    world.put_load("a", open=4)
    world.scores.asked(A_REF)
    world.scores.reported(A_REF, EngineReport(running=3), 10.0, FRESH_S)
    world.scores.tick({A_REF: 0.001}.get, 10.0)
    world.scores.stand_in(10.0)
    assert world.words("a", "queue", "report_open", "report_until") == (0, 0, 0)


def test_a_backend_that_is_gone_gets_no_words():
    world = here()
    world.place(replace(world.service, backends=(B,)))
    world.scores.asked(A_REF)
    world.scores.reported(A_REF, EngineReport(running=3), 10.0, FRESH_S)
    world.scores.stand_in(10.0)
    assert world.load("a")["report_until"] == 0
    assert world.load("b")["report_until"] > 0


def test_where_scores_say_no_more_a_connection_weighs_one_again():
    world = here()
    world.scores.stand_in(10.0)
    assert world.load("b")["kappa"] != KAPPA
    world.place(replace(world.service, scheduler=Scheduler.LEAST_CONN))
    world.scores.stand_in(11.0)
    assert (world.load("a")["kappa"], world.load("b")["kappa"]) == (KAPPA, KAPPA)


# -- requests that came another way


def test_requests_that_wait_but_did_not_come_through_here_weigh_with_their_bytes():
    world = here(bytes_per_connection=250)
    world.put_load("a", waiting=1200, waiting_fix=-200)
    world.scores.asked(A_REF)
    world.put_load("a", waiting=0)
    world.scores.reported(A_REF, EngineReport(waiting=4), 10.0, FRESH_S)
    hidden = (4 * 500 - 1000) / 250
    assert world.load("a")["queue"] == pytest.approx((4 + hidden) * 256, abs=1)
    world.scores.reported(A_REF, EngineReport(running=4, waiting=2), 10.2, FRESH_S)
    assert world.load("a")["queue"] == 6 * 256, "all of them came through here"


def test_the_ratio_of_requests_to_connections_is_that_of_those_who_report():
    world = here()
    assert world.scores.ratio("web") is None
    world.put_load("a", open=9)
    world.put_load("b", open=1000)
    world.scores.reported(A_REF, EngineReport(running=29), 10.0, FRESH_S)
    world.scores.tick({}.get, 10.1)
    assert world.scores.ratio("web") == 3.0
    world.scores.reported(A_REF, EngineReport(running=9), 10.2, FRESH_S)
    world.scores.tick({}.get, 10.3)
    assert 2.9 < world.scores.ratio("web") < 3.0, "slowly"
    world.scores.tick({}.get, 20.0)
    assert 2.9 < world.scores.ratio("web") < 3.0, "over a gap"
    world.scores.tick({}.get, 11.0 + RATIO_HELD_S)
    assert world.scores.ratio("web") is None


def test_few_requests_tell_no_ratio():
    world = here()
    world.scores.reported(A_REF, EngineReport(running=3), 10.0, FRESH_S)
    world.scores.tick({}.get, 10.1)
    assert world.scores.ratio("web") is None


# -- round trips


def test_the_way_to_a_backend_weighs_with_its_report():
    world = here(rtt_per_connection_s=0.002)
    world.scores.tick({A_REF: 0.003, B_REF: None}.get, 10.0)
    world.scores.reported(A_REF, EngineReport(running=2), 10.0, FRESH_S)
    world.scores.reported(B_REF, EngineReport(running=2), 10.0, FRESH_S)
    assert (world.load("a")["queue"], world.load("b")["queue"]) == (round(3.5 * 256), 2 * 256)


def test_the_way_weighs_without_a_report():
    world = here(telemetry=Telemetry(), rtt_per_connection_s=0.002)
    world.put_load("a", open=9)
    world.scores.tick({A_REF: 0.005}.get, 10.0)
    world.scores.stand_in(10.0)
    assert world.words("a", "queue", "report_open") == (round(11.5 * 256), 9)
    assert world.words("b", "queue", "report_open") == (0, 0)


# -- what stands in for reports


@pytest.mark.parametrize("kind", [TelemetryKind.NONE, TelemetryKind.AGENT_CHECK])
def test_the_connections_of_who_reports_no_queue_stand_in_for_it(kind: TelemetryKind):
    world = here(telemetry=Telemetry(kind), bytes_per_connection=250)
    world.put_load("a", open=7, open_fix=2, is_hot=1)
    world.put_load("b", open=2, open_fix=-3)
    world.scores.stand_in(10.0)
    assert world.words("a", "queue", "report_open", "is_hot") == (9 * 256, 9, 0)
    assert world.words("b", "queue", "report_open", "is_hot") == (0, 0, 0), "never less than none"
    for name in "ab":
        assert world.load(name)["kappa"] == pytest.approx(256 * (1 + 500 / 250), abs=1)
        assert world.load(name)["report_until"] == world.plane.jiffies + STAND_IN_JIFFIES


def test_what_stands_in_follows_the_connections():
    world = here(telemetry=Telemetry())
    for count in (3, 8):
        world.put_load("a", open=count)
        world.plane.jiffies += 50
        world.scores.stand_in(10.0)
        assert world.words("a", "queue", "report_open") == (count * 256, count)
        assert world.load("a")["report_until"] == world.plane.jiffies + STAND_IN_JIFFIES


def test_it_stands_in_again_and_again(monkeypatch: pytest.MonkeyPatch):
    world = here(telemetry=Telemetry())
    monkeypatch.setattr(scores, "STAND_IN_EVERY_S", 0.0)

    async def follow() -> None:
        run = asyncio.create_task(world.scores.run())
        for count in (3, 8):
            world.put_load("a", open=count)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert world.load("a")["report_open"] == count
        run.cancel()

    asyncio.run(follow())


def test_a_defect_does_not_end_the_standing_in(monkeypatch: pytest.MonkeyPatch):
    world = here(telemetry=Telemetry())
    monkeypatch.setattr(scores, "STAND_IN_EVERY_S", 0.0)
    broken = iter([RuntimeError("a defect")])
    stand_in = world.scores.stand_in

    def once(now: float) -> None:
        for error in broken:
            raise error
        stand_in(now)

    monkeypatch.setattr(world.scores, "stand_in", once)

    async def follow() -> None:
        world.put_load("a", open=3)
        run = asyncio.create_task(world.scores.run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert world.load("a")["report_open"] == 3
        run.cancel()

    asyncio.run(follow())


def test_nothing_stands_in_for_a_report_that_counts():
    world = here()
    world.put_load("a", open=5)
    world.put_load("b", open=4)
    world.scores.asked(A_REF)
    world.scores.reported(A_REF, EngineReport(running=20, waiting=5), 10.0, FRESH_S)
    before = world.load("a").copy()
    world.scores.stand_in(10.59)
    assert world.load("a") == before
    assert world.words("b", "queue", "report_open") == (4 * 256, 4)
    world.scores.stand_in(10.61)
    assert world.words("a", "queue", "report_open", "is_hot") == (5 * 256, 5, 0)


@pytest.mark.parametrize(("running", "requests"), [(19, 2.0), (4, 0.5), (999, 4.0), (0, 0.25)])
def test_connections_of_the_silent_are_what_requests_they_are_elsewhere(running, requests):
    world = here()
    world.put_load("a", open=9)
    world.put_load("b", open=12)
    world.scores.reported(A_REF, EngineReport(running=running), 10.0, FRESH_S)
    world.scores.tick({}.get, 10.1)
    world.scores.stand_in(10.1)
    assert world.words("b", "queue", "report_open") == (round(12 * requests * 256), 12)
    world.scores.tick({}.get, 11.0 + RATIO_HELD_S)
    world.scores.stand_in(11.0 + RATIO_HELD_S)
    assert world.words("b", "queue", "report_open") == (12 * 256, 12), "nobody tells any more"


def test_what_stands_in_tells_how_much_of_it_may_be_strangers_doing():
    world = here(telemetry=Telemetry())
    world.put_load("a", open=3040, embryonic=3000)
    world.put_load("b", open=3040, embryonic=3000)
    world.scores.stand_in(10.0)
    assert world.words("a", "report_open", "report_embryonic") == (3040, 3000)
    counted = int(world.words("a", "queue")[0]) / 256
    assert counted == pytest.approx(40 + 16 + 40 / 8, abs=1)


def test_a_queue_that_stands_in_always_fits():
    world = here(telemetry=Telemetry())
    world.put_load("a", open=2**28)  # no table has more slots
    world.scores.stand_in(10.0)
    assert world.words("a", "queue", "report_open") == (2**32 - 1, 2**28)


def test_where_another_kind_reports_from_now_on_the_last_report_is_old():
    world = here()
    world.put_load("a", open=3)
    world.scores.reported(A_REF, EngineReport(running=20), 10.0, FRESH_S)
    world.place(replace(world.service, telemetry=replace(VLLM, interval_s=1.0)))
    world.scores.stand_in(10.1)
    assert world.load("a")["queue"] == 20 * 256, "the same one, asked less often"
    world.place(replace(world.service, telemetry=Telemetry()))
    world.scores.stand_in(10.2)
    assert world.load("a")["queue"] == 3 * 256


def test_a_backend_with_another_id_starts_anew():
    world = here()
    world.scores.reported(A_REF, EngineReport(running=20), 10.0, FRESH_S)
    service_id = world.ids.service_id(world.service)
    own = world.ids.backends[service_id] | {server_of(A): 9}
    world.ids = replace(world.ids, backends={service_id: own})
    world.put_load("a", open=1)
    world.place()
    world.scores.stand_in(10.1)
    assert world.words("a", "queue", "report_open") == (256, 1)


def test_services_stand_in_each_by_itself():
    world = here(telemetry=Telemetry(), bytes_per_connection=250)
    key = replace(world.service.key, port=81)
    other = replace(world.service, name="other", key=key, bytes_per_connection=500)
    udp = replace(other, name="udp", key=replace(key, protocol=Protocol.UDP))
    world.config = replace(world.config, services=(world.service, other, udp))
    world.ids = assign(world.config, TableContents(), frozenset(), lambda: 77)
    world.place()
    world.scores.stand_in(10.0)
    rows = world.plane.tables.backend_load
    found = [
        (int(rows["kappa"][ident]), int(rows["report_until"][ident] > 0))
        for ident in (world.ids.backend_id(service, A) for service in world.config.services)
    ]
    assert found == [(768, 1), (512, 1), (KAPPA, 0)]


# -- backends that are done too fast


def test_a_hasty_backend_is_passed_over_but_for_half_of_its_even_share():
    world = here(telemetry=Telemetry())
    world.scores.hold(frozenset({A_REF}))
    seen = []
    for _ in range(40):
        world.scores.stand_in(10.0)
        seen.append(world.words("a", "is_hot")[0])
        assert world.load("b")["is_hot"] == 0
    assert seen.count(0) == 40 / (2 * 2)
    world.scores.hold(frozenset())
    world.scores.stand_in(10.0)
    assert world.load("a")["is_hot"] == 0


def test_a_hasty_backend_is_passed_over_whatever_its_engine_reports():
    world = here()
    world.scores.hold(frozenset({A_REF}))
    seen = []
    for _ in range(8):
        world.scores.asked(A_REF)
        world.scores.reported(A_REF, EngineReport(running=0.0, waiting=0.0), 10.0, FRESH_S)
        world.scores.stand_in(10.0)
        seen.append(world.words("a", "is_hot")[0])
    assert seen.count(0) <= 3
    assert seen.count(1) >= 5


def test_one_that_is_gone_is_not_passed_over():
    world = here(telemetry=Telemetry())
    world.scores.hold(frozenset({A_REF}))
    world.place(web(B, telemetry=Telemetry(), scheduler=Scheduler.LEAST_LOAD))
    world.scores.stand_in(10.0)
    assert world.load("b")["is_hot"] == 0


# -- figures that are old on the page


@pytest.mark.parametrize("kind", [TelemetryKind.RAY_SERVE, TelemetryKind.LMDEPLOY])
def test_figures_that_are_exported_now_and_then_are_as_old_as_they_have_been_the_same(kind):
    world = here(telemetry=replace(VLLM, kind=kind))

    def asked(at: float, open_now: int, running: float) -> int:
        world.put_load("a", open=open_now)
        world.scores.asked(A_REF)
        # LMDeploy counts tokens at once, and requests now and then.
        report = EngineReport(running=running, prompt_tokens=100 * at)
        world.scores.reported(A_REF, report, at, FRESH_S)
        return world.words("a", "report_open")[0]

    assert asked(10.0, 5, 3.0) == 5
    assert asked(10.2, 9, 3.0) == 5, "four were opened that they do not know of"
    assert asked(19.8, 12, 3.0) == 5
    assert asked(20.0, 12, 11.0) == 12, "they are new"
    assert asked(31.8, 20, 11.0) == 12
    assert asked(32.0, 20, 11.0) == 20, "they were exported again, and are the same"
    world = here()
    assert asked(10.0, 5, 3.0) == 5
    assert asked(10.2, 9, 3.0) == 9, "of another engine they are of the moment"
