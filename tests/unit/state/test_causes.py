"""Troubles by server and cause: one line for what one thing has brought about."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import (
    AdminState,
    Backend,
    BackendRef,
    BackendState,
    Config,
    Health,
    HealthStatus,
    NoBackend,
    Objective,
)
from agent.state.causes import Late, Server, Troubles, Unconnected, troubles
from agent.state.identities import assign
from agent.state.situation import Past, Situation, emptied, situation, verdicts
from agent.state.slo import Watch
from agent.state.tables import TableContents
from tests.unit.state.world import TABLES, hop, web


def at(name: str, last: int, family: int = 4) -> Backend:
    prefix = "10.0.0." if family == 4 else "fd00::"
    return Backend(name, ip_address(f"{prefix}{last}"))


def seen(*services, down: dict[str, str] | None = None, gone: tuple[str, ...] = ()) -> Situation:
    """``down``: reasons by SERVICE/BACKEND; ``gone``: addresses that do not answer ARP."""
    config = Config("test", "eth0", tables=TABLES, services=services)
    health, hops = {}, {}
    for service in services:
        for backend in service.backends:
            ref = BackendRef(service.name, backend.name)
            why = (down or {}).get(str(ref))
            state = Health.DOWN if why else Health.UP
            health[ref] = HealthStatus(state, why or "HTTP 200 in 3 ms", 0.0)
            mac = {"mac": None, "reason": f"no ARP answer from {backend.address} on eth0"}
            is_gone = str(backend.address) in gone
            hops[backend.address] = hop(str(backend.address), **(mac if is_gone else {}))
    found = verdicts(config, health, hops)
    ids = assign(config, TableContents(), frozenset(), lambda: 7)
    return situation(Past({}, {}), config, ids, health, hops, found, 1000.0)


def left_without(before: Situation, *services) -> frozenset[str]:
    after = replace(before.config, services=services)
    return emptied(before, after, before.health, {})


def test_a_plan_that_leaves_nobody_who_is_well_is_known_by_how_things_are():
    a, b = at("a", 1), at("b", 2)
    drained = replace(a, admin=AdminState.DRAIN)
    one_is_down = seen(web(a, b), down={"web/b": "refused"})
    assert left_without(one_is_down, web(drained, b)) == {"web"}
    assert left_without(one_is_down, web(at("new", 3), b)) == {"web"}, "not known to be well"
    assert left_without(seen(web(a, b)), web(drained, b)) == frozenset()
    nobody = seen(web(a, b), down={"web/a": "refused", "web/b": "refused"})
    assert left_without(nobody, web(drained, b)) == frozenset(), "as before"


def troubles_of(situation: Situation) -> Troubles:
    return troubles(situation, {}, {})


def test_a_server_that_is_down_in_three_services_is_one_cause():
    services = [web(at("gpu-1", 1), at("gpu-2", 2), name=f"s{n}", vip=f"203.0.113.{n}")
                for n in range(1, 4)]  # fmt: skip
    down = {f"s{n}/gpu-1": f"HTTP 503 in {n} ms" for n in range(1, 4)}
    (cause,) = troubles_of(seen(*services, down=down)).causes
    assert cause.servers == (Server("gpu-1", (ip_address("10.0.0.1"),)),)
    assert (cause.state, cause.reason) == (BackendState.DOWN, "HTTP 503")
    assert (cause.services, len(cause.backends), cause.others) == (("s1", "s2", "s3"), 3, 0)
    assert cause.since == 1000.0


def test_where_the_server_is_well_elsewhere_that_is_told():
    one, two = (web(at("gpu-1", 1), at("b", 2), name=n, vip=v)
                for n, v in (("one", "203.0.113.1"), ("two", "203.0.113.2")))  # fmt: skip
    (cause,) = troubles_of(seen(one, two, down={"one/gpu-1": "no answer by the VIP"})).causes
    assert (cause.services, cause.others) == (("one",), 1)


def test_a_vip_that_is_missing_in_several_services_is_one_cause():
    """As the check by the VIP says it."""
    services, down = [], {}
    for name, vip, family in (("a", "203.0.113.1", 4), ("b", "203.0.113.12", 4),
                              ("c", "2001:db8::1", 6)):  # fmt: skip
        services.append(web(at("gpu-1", 1, family), at("gpu-2", 2, family), name=name, vip=vip))
        where = f"[{vip}]:80" if family == 6 else f"{vip}:80"
        down[f"{name}/gpu-1"] = (
            f"no answer from {where} by dsr within 500 ms: is the VIP on its lo?"
        )
    (cause,) = troubles_of(seen(*services, down=down)).causes
    assert cause.reason == "no answer from the VIP by dsr within 500 ms: is the VIP on its lo?"
    assert cause.services == ("a", "b", "c")


def test_both_families_of_a_server_are_one():
    four = web(at("gpu-1", 1), at("b", 2), name="four")
    six = web(at("gpu-1", 1, 6), at("b", 2, 6), name="six", vip="2001:db8::10")
    found = troubles_of(seen(four, six, gone=("10.0.0.1", "fd00::1")))
    (cause,) = found.causes
    assert cause.servers[0].addresses == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert (cause.state, cause.reason) == (BackendState.UNREACHABLE, "no ARP answer on eth0")


@pytest.mark.parametrize(("many", "lines"), [(3, 3), (4, 1)])
def test_many_servers_with_one_trouble_are_one_line(many: int, lines: int):
    backends = [at(f"gpu-{n}", n) for n in range(1, 8)]
    gone = tuple(f"10.0.0.{n}" for n in range(1, many + 1))
    found = troubles_of(seen(web(*backends), gone=gone)).causes
    assert len(found) == lines
    assert sum(len(cause.servers) for cause in found) == many


def test_the_cause_of_most_backends_comes_first():
    services = [web(at("a", 1), at("b", 2), at("c", 3), name=f"s{n}", vip=f"203.0.113.{n}")
                for n in range(1, 4)]  # fmt: skip
    down = {"s1/a": "refused", "s1/b": "HTTP 500", "s2/b": "HTTP 500"}
    assert [c.servers[0].name for c in troubles_of(seen(*services, down=down)).causes] == ["b", "a"]


@pytest.mark.parametrize("clients", list(NoBackend))
def test_a_service_that_serves_nobody_says_what_its_clients_get(clients: NoBackend):
    service = web(at("a", 1), at("b", 2), no_backend=clients)
    found = troubles_of(seen(service, down={"web/a": "refused", "web/b": "refused"}))
    if clients is NoBackend.ANY:
        assert found.unserved == (), "it fails open"
        return
    (unserved,) = found.unserved
    assert (unserved.service, unserved.clients) == ("web", clients)
    assert unserved.reason == "all 2 backends are down"


def test_what_the_operator_took_out_is_no_trouble():
    out = replace(at("a", 1), admin=AdminState.MAINTENANCE)
    drained = replace(at("b", 2), admin=AdminState.DRAIN)
    assert troubles_of(seen(web(out, drained, at("c", 3)))).causes == ()


def test_all_well_is_nothing():
    found = troubles_of(seen(web(at("a", 1))))
    assert (found.unserved, found.causes) == ((), ())


def test_a_service_to_which_nobody_gets_a_connection_says_how_many_backends_are_up():
    found = troubles(seen(web(at("a", 1), at("b", 2)), down={"web/b": "refused"}), {"web": 57}, {})
    assert found.unconnected == (Unconnected("web", 57, 1),)


def test_services_that_answer_too_late_are_told_and_others_not():
    missed = Watch.begin(Objective(95, 2.0), 0.0).add(10.0, 100, 50.0)
    kept = Watch.begin(Objective(50, 2.0), 0.0).add(10.0, 100, 50.0)
    promising = replace(web(at("a", 1)), slo=(kept.objective, missed.objective))
    found = troubles(seen(promising), {}, {"web": (kept, missed)})
    assert found.late == (Late("web", missed),)
    assert troubles(seen(replace(promising, slo=())), {}, {"web": (missed,)}).late == ()
