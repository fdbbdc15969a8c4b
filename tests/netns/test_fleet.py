"""Three balancers that share one desired state in a real etcd cluster, and what can go wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import ApiRefusedError
from agent.api.routes import ROUTES
from agent.dataplane import pins
from lbctl.lab import netns
from tests import described
from tests.netns import fleetnet
from tests.netns.etcdcluster import certificates, cluster, needs_etcd
from tests.netns.fleetnet import CHAT, OWN_OF_LB3, PREFIX, Balancer, Fleet, in_step, soon

pytestmark = [pytest.mark.kernel, needs_etcd]
ACTIVE = f"{PREFIX}versions/active"


@pytest.fixture(scope="module")
def shared() -> Iterator[Fleet]:
    """The fleet, with the services of lb1's file as its first version."""
    with fleetnet.fleet() as made:
        made.everywhere("it reaches the store", lambda each: each.own()["store_away_s"] is None)
        assert [each.services() for each in made.balancers] == [["chat", "embed"], [], []]
        none = "none yet: lbctl fleet import"
        soon("lbctl says so", lambda: none in made.balancers[1].lbctl("fleet").text)
        assert made.balancers[0].lbctl("fleet", "import", "-y", "-m", "the first").status == 0
        yield made


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    """The fleet in order, with its first services."""
    shared.put_right()
    return shared


@pytest.fixture
def lb1(fleet: Fleet) -> Balancer:
    return fleet.balancers[0]


@pytest.fixture
def lb2(fleet: Fleet) -> Balancer:
    return fleet.balancers[1]


@pytest.fixture
def lb3(fleet: Fleet) -> Balancer:
    return fleet.balancers[2]


def canary(*nodes: str, bake_s: float = 0) -> dict[str, object]:
    return {"nodes": list(nodes), "bake_s": bake_s}


def refusal(attempt: Callable[[], object]) -> str:
    """Return what the agent says when it refuses, with the remedy."""
    with pytest.raises(ApiRefusedError) as refused:
        attempt()
    return str(refused.value)


def is_edited(balancer: Balancer, **values: object) -> bool:
    """Edit chat/a. False: the store did not answer in time, and the agent says so."""
    try:
        balancer.edit("chat", "a", **values)
    except ApiRefusedError as error:
        if "store" not in str(error) and "etcd" not in str(error):
            raise
        return False
    return True


def edit_at_last(balancer: Balancer, **values: object) -> None:
    """Edit chat/a. The store may not answer at first; then it says so."""
    soon("the edit succeeds", lambda: is_edited(balancer, **values))


def newest(balancer: Balancer, count: int) -> list[Any]:
    """Return the newest versions, newest first."""
    answer = balancer.api.get("/v1/fleet/history", {"limit": count})
    described.check_shape(("FleetHistory",), answer)
    versions: list[Any] = answer["versions"]
    return versions


def how_it_ended(fleet: Fleet) -> Any:
    """Wait until no rollout is left anywhere; return how the last one ended."""
    fleet.everywhere("the rollout has ended", lambda each: each.fleet()["rollout"] is None)
    fleet.everywhere(
        "all run the stable version",
        lambda each: each.own()["version"] == each.own()["stable_version"],
    )
    return fleet.balancers[0].fleet()["last_rollout"]


# -- changes


def test_what_one_balancer_imports_and_changes_all_run(fleet: Fleet, lb3: Balancer) -> None:
    first = lb3.api.get("/v1/fleet/versions/1")
    assert (first["how"], first["node"], first["message"]) == ("import", "lb1", "the first")
    assert lb3.lbctl("backend", "set", "chat/a", "--weight", "300", "-m", "a is new").status == 0
    fleet.agrees("chat", a=300, b=100)
    described.check_shape(("FleetOverview",), lb3.fleet())
    names = ["lb1", "lb2", "lb3"]  # fewer for a moment, if a report has just expired
    soon("all are shown", lambda: [each["node"] for each in lb3.fleet()["balancers"]] == names)
    (version,) = newest(lb3, 1)
    assert (version["node"], version["message"], version["state"]) == ("lb3", "a is new", "stable")
    soon("lbctl says all are in step", lambda: lb3.lbctl("fleet", "status").status == 0)
    soon("no difference", lambda: lb3.lbctl("fleet", "compare", "lb1", "lb2").status == 0)


def test_every_read_of_the_fleet_answers_as_described(lb1: Balancer) -> None:
    for route in ROUTES:
        if route.method == "GET" and route.path.startswith("/v1/fleet"):
            answer = json.dumps(lb1.api.get(route.example))
            described.check("GET", route.example, 200, "application/json", answer)


def test_two_that_change_it_at_the_same_time_both_succeed(fleet: Fleet) -> None:
    first, rounds = fleet.next(), (150, 200, 250)
    lb1, lb2, lb3 = fleet.balancers
    with ThreadPoolExecutor(2) as pool:
        for weight in rounds:
            works = [(lb1, "a"), (lb2, "b")]
            made = [pool.submit(at.edit, "chat", name, weight=weight) for at, name in works]
            assert all(each.result()["changes"] for each in made)
    assert fleet.version() == first + 2 * len(rounds) - 1
    numbers = [each["number"] for each in newest(lb3, 2 * len(rounds))]
    assert numbers == list(range(first + 2 * len(rounds) - 1, first - 1, -1))
    fleet.agrees("chat", a=250, b=250)


def test_rollback_diff_export_and_apply(
    fleet: Fleet, lb1: Balancer, lb2: Balancer, tmp_path: Path
) -> None:
    before, first = fleet.version(), fleet.next()
    lb1.edit("chat", "a", weight=400)
    fleet.agrees("chat", a=400, b=100)
    exported = tmp_path / "services.yaml"
    exported.write_text(lb2.lbctl("fleet", "export").text)
    assert "weight: 400" in exported.read_text()
    said = lb2.lbctl("apply", "-f", str(exported), "-y").text
    assert said.splitlines()[-1] == "no change", said  # before it, that a slow agent still works
    assert fleet.version() == first, "no change is no version"
    assert "chat/a" in lb2.lbctl("fleet", "diff", str(before)).text
    assert "no difference" in lb2.lbctl("fleet", "diff", str(first)).text
    assert lb2.lbctl("fleet", "rollback", str(before), "-y").status == 0
    fleet.agrees("chat", a=100, b=100)
    assert newest(lb1, 1)[0]["how"] == f"rollback to {before}"
    assert "no difference" in lb1.lbctl("fleet", "diff", str(before), str(first + 1)).text
    assert lb1.lbctl("apply", "-f", str(exported), "-y").status == 0
    fleet.agrees("chat", a=400, b=100)


# -- rollouts


def test_a_canary_runs_on_one_until_an_operator_gives_it_up(
    fleet: Fleet, lb1: Balancer, lb2: Balancer, lb3: Balancer
) -> None:
    number = fleet.next()
    lb1.edit("chat", "a", weight=300, canary=canary("lb3"))
    soon("lb3 runs it", lambda: lb3.own()["version"] == number)
    soon("in the kernel", lambda: lb3.shares(CHAT).get(f"{fleetnet.NETWORK}.11", 0) > 0.7)
    for balancer in (lb1, lb2):
        assert balancer.weights("chat") == {"a": 100, "b": 100}
        assert balancer.shares(CHAT)[f"{fleetnet.NETWORK}.11"] < 0.52
    for balancer in fleet.balancers:
        said = refusal(lambda at=balancer: at.edit("chat", "b", weight=7))
        assert f"version {number} is being tried on lb3" in said
        assert "lbctl rollout promote, or lbctl rollout abort" in said
    assert f"version {number} on lb3" in lb2.lbctl("rollout").text
    assert lb2.lbctl("rollout", "abort", "-m", "it was a test").status == 0
    ended = how_it_ended(fleet)
    assert (ended["version"], ended["outcome"], ended["why"]) == (
        number,
        "aborted",
        "it was a test",
    )
    fleet.agrees("chat", a=100, b=100)
    assert newest(lb1, 1)[0]["state"] == "aborted"
    lb3.edit("chat", "a", weight=200)  # a version that was given up is no base of the next
    fleet.agrees("chat", a=200, b=100)
    assert newest(lb1, 1)[0]["number"] == number + 1
    lb3.edit("chat", "a", weight=300, canary=canary("lb2"))
    assert lb3.lbctl("rollout", "promote").status == 0
    how_it_ended(fleet)
    states = ["stable", "", "aborted"]
    soon("lb1 knows it", lambda: [each["state"] for each in newest(lb1, 3)] == states)
    assert lb1.api.get(f"/v1/fleet/versions/{number}")["state"] == "aborted"


def test_a_canary_that_does_well_is_promoted(fleet: Fleet, lb2: Balancer) -> None:
    number = fleet.next()
    lb2.edit("chat", "b", weight=300, canary=canary("lb1", bake_s=1))
    ended = how_it_ended(fleet)
    assert (ended["version"], ended["outcome"]) == (number, "promoted")
    fleet.agrees("chat", a=100, b=300)
    assert fleet.version() == number


def test_a_canary_that_refuses_the_version_ends_it(
    fleet: Fleet, lb1: Balancer, lb3: Balancer
) -> None:
    before, number = fleet.version(), fleet.next()
    own = fleetnet.services()[0] | {"name": "own", "vip": OWN_OF_LB3}
    body = {"op": "service.add", "service": "own", "values": own}
    lb1.api.post("/v1/edit", body | {"canary": canary("lb3", bake_s=60)})
    ended = how_it_ended(fleet)
    assert (ended["version"], ended["outcome"]) == (number, "aborted")
    assert "lb3 refuses it" in ended["why"]
    assert OWN_OF_LB3 in ended["why"]
    fleet.everywhere("nobody has it", lambda each: each.services() == ["chat", "embed"])
    assert lb3.own()["version"] == before


@pytest.mark.soak  # tests/unit/fleet/test_rollout.py has it too
def test_a_canary_where_a_service_loses_its_last_backend_ends_it(
    fleet: Fleet, lb1: Balancer
) -> None:
    number = fleet.next()
    lb1.edit("embed", "a", state="maintenance", canary=canary("lb2", bake_s=60))
    ended = how_it_ended(fleet)
    assert (ended["version"], ended["outcome"]) == (number, "aborted")
    assert ended["why"] == "lb2: no backend of embed is usable"
    fleet.agrees("embed", a=100)


def test_a_version_that_one_balancer_refuses_stays_away_from_it_alone(
    fleet: Fleet, lb1: Balancer, lb2: Balancer, lb3: Balancer
) -> None:
    number = fleet.next()
    own = fleetnet.services()[0] | {"name": "own", "vip": OWN_OF_LB3}
    lb1.api.post("/v1/edit", {"op": "service.add", "service": "own", "values": own})
    soon("lb3 refuses it", lambda: lb3.own()["refused_version"] == number)
    soon("lb2 runs it", lambda: lb2.own()["version"] == number)
    assert lb3.services() == ["chat", "embed"]
    # A version that was refused is tried again now and then; meanwhile it is no problem.
    soon("lb3 says why", lambda: OWN_OF_LB3 in lb3.own()["problem"])
    soon("it is reported", lambda: "lb3" in lb1.lbctl("fleet").text)
    soon("the exit status says so", lambda: lb1.lbctl("fleet", "status").status == 1)
    said = refusal(lambda: lb3.edit("chat", "a", weight=7))
    assert "make the change on another balancer" in said
    assert lb2.lbctl("service", "remove", "own", "-y").status == 0
    assert fleet.version() == number + 1


# -- frozen


def test_a_frozen_balancer_is_changed_alone_and_follows_again_when_it_is_thawed(
    fleet: Fleet, lb1: Balancer, lb2: Balancer, lb3: Balancer
) -> None:
    number = fleet.next()
    assert lb2.lbctl("fleet", "freeze", "-m", "a repair").status == 0
    lb2.edit("chat", "a", weight=900)
    assert lb2.weights("chat") == {"a": 900, "b": 100}
    lb3.edit("chat", "b", weight=300)
    for balancer in (lb1, lb3):
        soon("it follows", lambda at=balancer: at.own()["version"] == number)
        assert balancer.weights("chat") == {"a": 100, "b": 300}
    assert lb2.weights("chat") == {"a": 900, "b": 100}

    def drifts() -> bool:
        return any(
            each["drift"] and each["behind_by"] == 1 and "a repair" in each["frozen"]
            for each in lb1.fleet()["balancers"]
            if each["node"] == "lb2"  # none, if its report has just expired
        )

    soon("the others see it", drifts)

    def is_told() -> bool:
        said = lb1.lbctl("fleet", "status")
        words = "runs other services than its version has (frozen: a repair"
        return said.status == 1 and words in said.text  # not while its report has expired

    soon("lbctl says so", is_told)
    soon("they differ", lambda: lb3.lbctl("fleet", "compare", "lb1", "lb2").status == 1)
    assert lb2.lbctl("fleet", "thaw", "-y").status == 0
    fleet.agrees("chat", a=100, b=300)


def test_what_was_changed_while_frozen_is_undone_at_the_same_version(
    fleet: Fleet, lb2: Balancer
) -> None:
    before = fleet.version()
    lb2.order("freeze")
    lb2.edit("chat", "a", weight=900)
    lb2.order("thaw")
    fleet.agrees("chat", a=100, b=100)
    assert fleet.version() == before


# -- the store


def test_the_leader_dies(fleet: Fleet, lb1: Balancer) -> None:
    """An edit waits for the election. On a busy host that may take longer: then once more."""
    weights = [200]

    def is_edited_at_once() -> bool:
        fleet.store.start()
        fleet.store.kill(fleet.store.leader())
        weights.append(weights[-1] + 100)  # each time something to change
        return is_edited(lb1, weight=weights[-1])

    soon("the edit after a leader's death succeeds", is_edited_at_once)
    fleet.agrees("chat", a=weights[-1], b=100)


# The balancers watch one member each, so each of them has to hang once: in the soak.
@pytest.mark.parametrize("member", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in (1, 2))])
def test_a_member_hangs(fleet: Fleet, lb1: Balancer, member: int) -> None:
    """It is the one that a balancer watches for one member at least."""
    fleet.store.pause(member)
    edit_at_last(lb1, weight=300)
    fleet.agrees("chat", a=300, b=100)


@pytest.mark.soak  # tests/unit/test_fleetcontrol.py has it too, and test_etcd.py a real majority
def test_most_members_are_gone(fleet: Fleet, lb1: Balancer) -> None:
    before = fleet.version()
    leader = fleet.store.leader()
    fleet.store.kill(leader, (leader + 1) % 3)
    fleet.everywhere("it is noticed", lambda each: each.own()["store_away_s"] is not None)
    said = refusal(lambda: lb1.edit("chat", "a", weight=300))
    assert "so nothing was changed" in said
    assert "lbctl fleet freeze" in said
    assert lb1.lbctl("fleet", "status").status == 1
    fleet.agrees("chat", a=100, b=100)
    assert f"version {before} stays" in lb1.own()["problem"]
    fleet.store.start()
    edit_at_last(lb1, weight=300)
    fleet.agrees("chat", a=300, b=100)
    fleet.version()


def test_etcd_forgets_its_past_while_a_balancer_is_away(
    fleet: Fleet, lb1: Balancer, lb3: Balancer
) -> None:
    lb3.stop()
    for weight in (200, 300):
        lb1.edit("chat", "a", weight=weight)
    fleet.store.compact()
    soon("it is missed", lambda: [each["node"] for each in lb1.fleet()["missing"]] == ["lb3"])
    assert "so it would be back at once" in lb1.lbctl("fleet", "forget", "lb2").text
    said = lb1.lbctl("fleet")
    assert said.status == 1
    assert "does not report" in said.text
    assert lb1.lbctl("fleet", "forget", "lb3").status == 0
    soon("it is not missed any more", lambda: lb1.lbctl("fleet").status == 0)
    lb3.start()
    lb3.wait()
    fleet.agrees("chat", a=300, b=100)
    fleet.version()


@pytest.mark.soak  # tests/unit/test_fleetcontrol.py has it too
def test_a_start_without_the_store(fleet: Fleet, lb1: Balancer, lb2: Balancer) -> None:
    lb1.edit("chat", "a", weight=300)
    fleet.agrees("chat", a=300, b=100)
    version = fleet.version()
    fleet.store.kill()
    lb2.stop(signal.SIGKILL)
    lb2.start()
    lb2.wait()
    soon("it says so", lambda: f"version {version} stays" in lb2.own()["problem"])
    assert lb2.own()["version"] == version
    assert "the fleet's store cannot be used" in lb2.lbctl("status").text
    fleet.agrees("chat", a=300, b=100)
    fleet.store.start()
    assert fleet.version() == version
    lb2.edit("chat", "a", weight=200)
    fleet.agrees("chat", a=200, b=100)


def test_the_store_has_lost_everything(fleet: Fleet, lb1: Balancer) -> None:
    lb1.edit("chat", "a", weight=300)
    fleet.agrees("chat", a=300, b=100)
    before = fleet.version()
    fleet.store.clear()
    fleet.store.start()
    fleet.everywhere("it says so", lambda each: "lbctl fleet import" in each.own()["problem"])
    fleet.agrees("chat", a=300, b=100)
    said = refusal(lambda: lb1.edit("chat", "a", weight=7))
    assert "lbctl fleet import" in said
    assert lb1.lbctl("fleet", "import", "-y").status == 0
    assert fleet.version() == before + 1
    lb1.edit("chat", "a", weight=200)
    fleet.agrees("chat", a=200, b=100)


@pytest.mark.soak  # tests/unit/fleet/test_member.py has it too
def test_the_store_is_written_anew_while_a_balancer_does_not_reach_it(
    fleet: Fleet, lb1: Balancer, lb3: Balancer
) -> None:
    """It never sees the store empty, and the new one has had fewer changes than the old one."""
    before = fleet.version()
    netns.ip(["link set eth0 down"], lb3.namespace)
    fleet.store.clear()
    fleet.store.start()
    soon("lb1 says so", lambda: "lbctl fleet import" in lb1.own()["problem"])
    lb1.order("import")
    lb1.edit("chat", "a", weight=300)
    netns.ip(["link set eth0 up"], lb3.namespace)
    assert fleet.version() == before + 2
    fleet.agrees("chat", a=300, b=100)


# -- files


def test_a_reload_keeps_the_fleets_services(fleet: Fleet, lb2: Balancer) -> None:
    lb2.edit("chat", "a", weight=300)
    fleet.agrees("chat", a=300, b=100)
    version, before = fleet.version(), lb2.file()
    lb2.write_file(before | {"zones": {"east": ["10.1.0.0/16"]}})
    lb2.api.post("/v1/reload", {"confirmed": True})
    assert lb2.api.get("/v1/config")["config"]["zones"] == {"east": ["10.1.0.0/16"]}
    other = fleetnet.services()[0] | {"name": "mine", "vip": f"{fleetnet.NETWORK}.150"}
    lb2.write_file(before | {"services": [other]})
    lb2.api.post("/v1/reload", {"confirmed": True})
    assert lb2.services() == ["chat", "embed"]
    lb2.stop()
    lb2.start()
    lb2.wait()
    assert lb2.services() == ["chat", "embed"]
    assert fleet.version() == version
    fleet.agrees("chat", a=300, b=100)
    lb2.write_file(before)
    lb2.api.post("/v1/reload", {"confirmed": True})
    fleet.agrees("chat", a=300, b=100)


# -- what others write below the prefix


def test_a_newer_release_has_written_the_active_version(
    fleet: Fleet, lb1: Balancer, lb3: Balancer
) -> None:
    version = fleet.version()
    (was,) = json.loads(fleet.store.etcdctl("get", ACTIVE, "--write-out", "json"))["kvs"]
    value = fleet.store.etcdctl("get", ACTIVE, "--print-value-only").strip()
    assert was
    newer = json.loads(value) | {"format": 2, "newest": version + 1}
    fleet.store.etcdctl("put", ACTIVE, json.dumps(newer))
    told = "the fleet's key versions/active: it has format 2"
    fleet.everywhere("it says so", lambda each: told in each.own()["problem"])
    fleet.everywhere("the remedy", lambda each: "upgrade this balancer" in each.own()["problem"])
    said = lb1.lbctl("fleet", "status")
    assert said.status == 1
    assert "format 2" in said.text
    assert "format 2" in refusal(lambda: lb3.edit("chat", "a", weight=7))
    fleet.agrees("chat", a=100, b=100)
    fleet.store.etcdctl("put", ACTIVE, value)
    assert fleet.version() == version
    lb3.edit("chat", "a", weight=300)
    fleet.agrees("chat", a=300, b=100)


def test_something_else_writes_below_the_prefix(fleet: Fleet, lb1: Balancer) -> None:
    version = fleet.version()
    key = f"{PREFIX}versions/log/{version + 1:012d}"
    fleet.store.etcdctl("put", key, "backup of router 7")
    told = f"the fleet's key {key.removeprefix(PREFIX)}"
    fleet.everywhere("it says so", lambda each: told in each.own()["problem"])
    fleet.everywhere(
        "the remedy",
        lambda each: "who else writes below the fleet's prefix" in each.own()["problem"],
    )
    assert told in refusal(lambda: lb1.edit("chat", "a", weight=7))
    fleet.agrees("chat", a=100, b=100)
    fleet.store.etcdctl("del", key)
    assert fleet.version() == version
    lb1.edit("chat", "a", weight=300)
    fleet.agrees("chat", a=300, b=100)


@pytest.mark.soak  # tests/unit/fleet/test_member.py has it too
def test_two_balancers_with_one_name_both_say_so(
    fleet: Fleet, lb2: Balancer, lb3: Balancer
) -> None:
    before = lb3.file()
    lb3.write_file(before | {"fleet": before["fleet"] | {"node": "lb2"}})
    lb3.stop()
    lb3.start()
    lb3.wait()
    try:
        for balancer in (lb2, lb3):
            soon("it says so", lambda at=balancer: "called lb2, too" in at.own()["problem"])
        fleet.agrees("chat", a=100, b=100)
    finally:
        lb3.write_file(before)
        lb3.stop()
        lb3.start()
        lb3.wait()
    fleet.version()


# -- TLS and users


def test_a_certificate_without_a_name_and_a_user_for_the_prefix_alone(tmp_path: Path) -> None:
    with cluster(members=1, tls=certificates(tmp_path)) as store:
        for words in (
            "user add root --new-user-password admin",
            "user grant-role root root",
            "role add lb",
            f"role grant-permission lb readwrite {PREFIX} --prefix",
            "user add lb --new-user-password secret",
            "user grant-role lb lb",
            "auth enable",
        ):
            store.etcdctl(*words.split())
        password = tmp_path / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        netns.ip(
            ["link add eth0 type veth peer name peer0", "link set eth0 up", "link set peer0 up",
             "addr add 10.9.0.1/24 dev eth0"],
            store.namespace,
        )  # fmt: skip
        etcd = replace(store.etcd, user="lb", password_file=password)
        alone = Balancer("lb1", store.namespace, tmp_path)
        alone.write_file(fleetnet.document(alone, etcd))
        try:
            alone.start()
            alone.wait()
            soon("it is in", lambda: alone.own()["store_away_s"] is None)
            assert alone.lbctl("fleet", "import", "-y").status == 0
            alone.edit("chat", "a", weight=300)
            soon("it reports", lambda: len(alone.fleet()["balancers"]) == 1)
            soon("it is in step", lambda: in_step(alone))
            assert alone.own()["version"] == 2
        finally:
            alone.stop(signal.SIGKILL)
            pins.remove(pins.pins_of(alone.namespace))
