"""What a backend is for the data plane, and why."""

import pytest

from agent.model import (
    AdminState,
    Backend,
    BackendState,
    DownFlows,
    Forward,
    Health,
    NoBackend,
    ServiceState,
)
from agent.state.eligibility import (
    Eligibility,
    eligibility,
    influenced,
    service_state,
    together,
)
from agent.weights.influence import NOTHING, Influence
from tests.unit.state.world import A, hop, status, web

HOP = hop("10.0.0.21")


def backend(**fields: object) -> Backend:
    return Backend("a", A.address, **fields)


@pytest.mark.parametrize(
    ("fields", "health", "state", "usable", "alive"),
    [
        ({}, Health.UP, BackendState.UP, True, True),
        ({}, Health.UNCHECKED, BackendState.UP, True, True),
        ({}, Health.CHECKING, BackendState.CHECKING, False, True),
        ({}, Health.DOWN, BackendState.DOWN, False, True),
        ({"weight": 0}, Health.UP, BackendState.DRAIN, False, True),
        ({"weight": 0}, Health.DOWN, BackendState.DOWN, False, True),
        ({"admin": AdminState.DRAIN}, Health.UP, BackendState.DRAIN, False, True),
        ({"admin": AdminState.DRAIN}, Health.DOWN, BackendState.DRAIN, False, True),
        ({"admin": AdminState.MAINTENANCE}, Health.UP, BackendState.MAINTENANCE, False, False),
        ({"admin": AdminState.MAINTENANCE}, Health.DOWN, BackendState.MAINTENANCE, False, False),
    ],
)
def test_the_operators_word_then_health_then_weight(fields, health, state, usable, alive):
    found = eligibility(web(), backend(**fields), status(health), HOP)
    assert (found.state, found.usable, found.alive) == (state, usable, alive)
    assert found.reason


@pytest.mark.parametrize("admin", [AdminState.ACTIVE, AdminState.DRAIN])
def test_reroute_gives_up_the_flows_of_a_backend_that_is_down(admin: AdminState):
    service = web(down_flows=DownFlows.REROUTE)
    assert not eligibility(service, backend(admin=admin), status(Health.DOWN), HOP).alive
    assert eligibility(service, backend(admin=admin), status(Health.UP), HOP).alive


@pytest.mark.parametrize(
    ("forward", "nexthop", "reason"),
    [
        (Forward.DSR, None, "not looked up yet"),
        (Forward.DSR, hop("10.0.0.21", mac=None), "does not answer"),
        (Forward.DSR, hop("10.0.0.21", mac=None, reason="no route"), "no route"),
        (Forward.DSR, hop("10.0.0.21", on_link=False), "use forward: ipip"),
        (Forward.IPIP, hop("10.0.0.21", on_link=False), ""),
        (Forward.IPIP, hop("10.0.0.21", mac=None, on_link=False), "does not answer"),
        (Forward.GUE, hop("10.0.0.21", on_link=False), ""),
        (Forward.NAT, hop("10.0.0.21", on_link=False), ""),
        (Forward.NAT, hop("10.0.0.21", mac=None), "does not answer"),
        (Forward.FULLNAT, hop("10.0.0.21", on_link=False), ""),
    ],
)
def test_where_no_packet_can_go_no_packet_goes(forward: Forward, nexthop, reason: str):
    found = eligibility(web(forward=forward), backend(), status(), nexthop)
    assert (found.state is BackendState.UNREACHABLE) == bool(reason)
    assert reason in found.reason
    assert found.alive == (not reason)


def test_a_healthy_backend_tells_why_the_check_thinks_so():
    assert eligibility(web(), backend(), status(Health.UP), HOP).reason == "it is up"


SERVICE = web(A)
USABLE = Eligibility(BackendState.UP, "", True, True, 100, "configured")


def beside(*members: tuple[Backend, Health], **fields: object) -> list[Eligibility]:
    """What backends of one service are beside each other."""
    service = web(*(b for b, _ in members), **fields)
    alone = [eligibility(service, b, status(health), HOP) for b, health in members]
    return list(together(service, alone))


def weights(found: list[Eligibility]) -> list[tuple[int, str]]:
    return [(one.weight, one.weight_reason) for one in found]


SPARE = Backend("spare", A.address, backup=True)


def test_a_backup_gets_nothing_while_a_primary_is_usable_and_keeps_its_flows():
    main, idle = beside((backend(), Health.UP), (SPARE, Health.UP))
    assert weights([main, idle]) == [(100, "configured"), (0, "backup")]
    assert (idle.state, idle.usable, idle.alive) == (BackendState.UP, False, True)


@pytest.mark.parametrize("health", [Health.DOWN, Health.CHECKING])
def test_a_backup_is_used_when_no_primary_is_usable(health: Health):
    main, spare = beside((backend(), health), (SPARE, Health.UP))
    assert (main.usable, spare.usable, spare.weight) == (False, True, 100)


def test_a_backup_that_is_down_helps_nobody():
    assert weights(beside((backend(), Health.DOWN), (SPARE, Health.DOWN))) == [
        (0, "down"),
        (0, "down"),
    ]
    assert weights(beside((backend(), Health.UP), (SPARE, Health.DOWN)))[1] == (0, "down")


def test_fail_open_gives_all_new_flows_but_those_that_nobody_can_or_may_reach():
    drained = backend(admin=AdminState.DRAIN)
    disabled = backend(admin=AdminState.MAINTENANCE)
    found = beside(
        (backend(), Health.DOWN), (drained, Health.UP), (disabled, Health.UP),
        (SPARE, Health.CHECKING), (backend(weight=0), Health.UP), no_backend=NoBackend.ANY,
    )  # fmt: skip
    assert [one.usable for one in found] == [True, True, False, True, True]
    assert [one.weight for one in found] == [100, 100, 0, 100, 1]
    assert found[0].state is BackendState.DOWN
    assert "fail open" in found[0].reason
    gone = eligibility(web(), backend(), status(), hop("10.0.0.21", mac=None))
    assert together(web(backend(), no_backend=NoBackend.ANY), [gone]) == (gone,)


def test_fail_open_keeps_flows_even_where_those_of_the_dead_are_rerouted():
    (found,) = beside(
        (backend(), Health.DOWN), no_backend=NoBackend.ANY, down_flows=DownFlows.REROUTE
    )
    assert (found.usable, found.alive) == (True, True)


def test_one_that_is_up_ends_fail_open():
    down, up = beside((backend(), Health.DOWN), (backend(), Health.UP), no_backend=NoBackend.ANY)
    assert (down.usable, up.usable) == (False, True)
    down, spare = beside((backend(), Health.DOWN), (SPARE, Health.UP), no_backend=NoBackend.ANY)
    assert (down.usable, spare.usable) == (False, True)


@pytest.mark.parametrize("policy", [NoBackend.DROP, NoBackend.RESET])
def test_other_policies_leave_the_service_without_backends(policy: NoBackend):
    (found,) = beside((backend(), Health.DOWN), no_backend=policy)
    assert not found.usable


# -- panic


def many(up: int, down: int, **fields: object) -> list[Eligibility]:
    members = [(backend(), Health.UP)] * up + [(backend(), Health.DOWN)] * down
    return beside(*members, **fields)


@pytest.mark.parametrize(
    ("up", "down", "share", "panics"),
    [(2, 2, 0.5, False), (1, 3, 0.5, True), (0, 4, 0.5, True), (1, 3, 0.0, False),
     (0, 4, 0.0, False), (3, 1, 1.0, True), (4, 0, 1.0, False)],
)  # fmt: skip
def test_in_a_panic_all_get_new_flows(up: int, down: int, share: float, panics: bool):
    found = many(up, down, panic=share)
    assert sum(one.usable for one in found) == (up + down if panics else up)
    for one in found[up:]:
        assert (one.weight_reason, one.state) == ("panic" if panics else "down", BackendState.DOWN)
        assert ("panic: too few backends are up" in one.reason) is panics


def test_who_was_taken_out_or_is_new_says_nothing_of_the_checks_and_gets_nothing():
    drained, disabled = backend(admin=AdminState.DRAIN), backend(admin=AdminState.MAINTENANCE)
    found = beside((backend(), Health.UP), (drained, Health.UP), (disabled, Health.UP),
                   (backend(weight=0), Health.UP), (backend(), Health.CHECKING),
                   panic=0.9)  # fmt: skip
    assert [one.usable for one in found] == [True, False, False, False, False]
    gone = eligibility(web(), backend(), status(), hop("10.0.0.21", mac=None))
    down = eligibility(web(), backend(), status(Health.DOWN), HOP)
    service = web(backend(), backend(), panic=0.5)
    assert [one.usable for one in together(service, [gone, down])] == [False, True]


def test_a_backup_comes_before_a_panic_but_ends_none():
    down, spare = beside((backend(), Health.DOWN), (SPARE, Health.UP), panic=0.5)
    assert (down.usable, spare.usable) == (False, True)
    found = beside((backend(), Health.UP), (backend(), Health.DOWN), (backend(), Health.DOWN),
                   (SPARE, Health.UP), panic=0.5)  # fmt: skip
    assert [one.usable for one in found] == [True, True, True, False]


def test_an_ejected_backend_gets_nothing_and_keeps_its_flows_even_where_those_of_the_dead_move():
    moving = web(A, down_flows=DownFlows.REROUTE)
    out = influenced(moving, USABLE, Influence("3 of 3 failed", BackendState.EJECTED))
    assert (out.state, out.usable, out.alive) == (BackendState.EJECTED, False, True)
    panicked, _ = together(web(A, A, panic=0.6), [out, out])
    assert panicked.usable


@pytest.mark.parametrize("why", ["panic", "fail open"])
def test_a_service_says_that_others_get_new_flows(why: str):
    found = service_state((UP, DOWN, DOWN), in_spite=frozenset({"configured", why}))
    assert found == (
        ServiceState.DEGRADED,
        f"1 of 3 backends up; {why}: the others get new flows all the same",
    )


UP, DOWN, DRAIN, OUT = (
    BackendState.UP,
    BackendState.DOWN,
    BackendState.DRAIN,
    BackendState.MAINTENANCE,
)


@pytest.mark.parametrize(
    ("states", "expected", "reason"),
    [
        ((), ServiceState.DOWN, "no backend is configured"),
        ((UP, UP), ServiceState.UP, "all 2 backends up"),
        ((UP, DRAIN, OUT), ServiceState.UP, "1 backend up, 2 out"),
        ((UP, DOWN), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((UP, DOWN, DRAIN), ServiceState.DEGRADED, "1 of 2 backends up, 1 out"),
        ((UP, BackendState.CHECKING), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((UP, BackendState.UNREACHABLE), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((DOWN, DOWN), ServiceState.DOWN, "all 2 backends are down"),
        ((DRAIN,), ServiceState.DOWN, "its only backend is drained"),
        ((DRAIN, DRAIN), ServiceState.DOWN, "all 2 backends are drained"),
        (
            (DOWN, OUT, DOWN),
            ServiceState.DOWN,
            "none of 3 backends is up: 2 down, 1 in maintenance",
        ),
    ],
)
def test_a_service_is_what_its_backends_are(states, expected: ServiceState, reason: str):
    assert service_state(states) == (expected, reason)


# -- what reports and learned speed say


def test_a_factor_changes_the_weight_and_says_so():
    found = influenced(
        SERVICE, USABLE, Influence(factors=(("learned", 0.5),), bytes_per_connection=400)
    )
    assert (found.weight, found.weight_reason, found.usable) == (50, "learned", True)
    assert found.bytes_per_connection == 400
    assert influenced(SERVICE, USABLE, NOTHING) == USABLE


def test_a_note_is_told_and_changes_nothing():
    found = influenced(SERVICE, USABLE, Influence(notes=("stale",)))
    assert (found.weight, found.weight_reason) == (100, "stale")


@pytest.mark.parametrize("state", [BackendState.DRAIN, BackendState.DOWN])
def test_what_is_out_keeps_its_flows(state: BackendState):
    found = influenced(SERVICE, USABLE, Influence("GPU 0 is lost", state, (("learned", 2.0),)))
    assert (found.state, found.reason) == (state, "GPU 0 is lost")
    assert (found.usable, found.alive, found.weight) == (False, True, 0)


@pytest.mark.parametrize("state", [BackendState.DRAIN, BackendState.DOWN])
def test_where_flows_of_what_is_down_move_those_of_what_drains_stay(state: BackendState):
    moving = web(A, down_flows=DownFlows.REROUTE)
    assert influenced(moving, USABLE, Influence("it says so", state)).alive is (
        state is BackendState.DRAIN
    )


@pytest.mark.parametrize("health", [Health.DOWN, Health.CHECKING])
def test_who_is_out_already_stays_so_for_its_own_reason(health: Health):
    alone = eligibility(web(A), A, status(health), HOP)
    assert (
        influenced(SERVICE, alone, Influence("GPU 0 is lost", factors=(("learned", 2.0),))) == alone
    )
