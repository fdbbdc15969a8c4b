"""Plans: every difference is named once, and says what it does to traffic."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.config import plan as plan_module
from agent.config.load import parse
from agent.config.plan import (
    Action,
    Change,
    FieldChange,
    Kind,
    global_changes,
    plan,
    settings_change,
)
from agent.model import BackendRef, Config, RoleNames

BASE: dict[str, Any] = {
    "interface": "eth0",
    "services": [
        {
            "name": "chat",
            "vip": "10.0.0.10",
            "port": 80,
            "backends": [
                {"name": "gpu-1", "address": "10.0.0.21"},
                {"name": "gpu-2", "address": "10.0.0.22"},
                {"name": "gpu-3", "address": "10.0.0.23"},
            ],
        }
    ],
}


def config(backends: list[dict[str, Any]] | None = None, **values: Any) -> Config:
    import yaml

    service = BASE["services"][0] | values
    if backends is not None:
        service |= {"backends": backends}
    return parse(yaml.safe_dump(BASE | {"services": [service]}), "f")


def backends(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """The three backends, ``gpu_2={"weight": 5}`` changed."""
    return [
        backend | changed.get(backend["name"].replace("-", "_"), {})
        for backend in BASE["services"][0]["backends"]
    ]


def only(old: Config, new: Config) -> Change:
    (change,) = plan(old, new)
    return change


def test_nothing_changes_between_equals() -> None:
    assert plan(config(), config()) == ()


def test_order_means_nothing() -> None:
    assert plan(config(), config(backends()[::-1])) == ()


def test_a_new_backend_takes_its_share_of_new_flows() -> None:
    more = [*backends(), {"name": "gpu-4", "address": "10.0.0.24"}]
    change = only(config(), config(more))
    assert (change.action, change.kind, change.backend) == (Action.ADD, Kind.BACKEND, "gpu-4")
    assert change.effect == (
        "once its check passes, about 25 % of new flows move to it; established flows stay"
    )
    assert change.fields == (
        FieldChange("address", None, "10.0.0.24"),
        FieldChange("weight", None, 100),
        FieldChange("state", None, "active"),
    )


def test_a_new_backend_that_is_not_active_says_why_it_gets_nothing() -> None:
    more = [*backends(), {"name": "gpu-4", "address": "10.0.0.24", "state": "maintenance"}]
    effect = only(config(), config(more)).effect
    assert effect == "it gets no new flow: its state is maintenance"


def test_a_weight_says_how_much_moves_and_where() -> None:
    change = only(config(), config(backends(gpu_1={"weight": 200})))
    assert change.fields == (FieldChange("weight", 100, 200),)
    assert change.effect == (
        "about 17 % of new flows move to it (its share: 33 % → 50 %); established flows stay"
    )
    back = only(config(backends(gpu_1={"weight": 200})), config())
    assert "move from it to others" in back.effect


def test_weight_zero_and_drain_let_connections_finish() -> None:
    for values in ({"weight": 0}, {"state": "drain"}):
        effect = only(config(), config(backends(gpu_1=values))).effect
        assert effect == "its open connections finish, and it gets no new flow"


def test_maintenance_cuts_connections() -> None:
    effect = only(config(), config(backends(gpu_1={"state": "maintenance"}))).effect
    assert effect == "nothing is sent to it anymore: its open connections are cut"


def test_enabling_brings_flows_back() -> None:
    old = config(backends(gpu_1={"state": "drain"}), health={"type": "none"})
    effect = only(old, config(health={"type": "none"})).effect
    assert effect == "about 33 % of new flows go to it; established flows stay"


def test_a_weight_changes_nothing_while_draining() -> None:
    old = config(backends(gpu_1={"state": "drain"}))
    new = config(backends(gpu_1={"state": "drain", "weight": 5}))
    assert only(old, new).effect == "none while its state is drain"


def test_removing_a_backend_advises_draining() -> None:
    effect = only(config(), config(backends()[1:])).effect
    assert effect == (
        "its open connections are cut (drain it first and they finish); "
        "its 33 % of new flows move to the other backends"
    )


def test_the_last_backend_is_missed() -> None:
    one = backends()[:1]
    drained = [one[0] | {"state": "drain"}]
    assert "no backend is left for new flows" in only(config(one), config(drained)).effect
    assert "no backend is left for new flows" in only(config(one), config([])).effect


def test_a_renamed_backend_keeps_its_connections() -> None:
    renamed = [backends()[0] | {"name": "big-1"}, *backends()[1:]]
    effects = [change.effect for change in plan(config(), config(renamed))]
    assert effects == [
        "it goes on as backend big-1, open connections stay",
        "this was backend gpu-1: the same address, open connections stay",
    ]


def test_a_renamed_service_keeps_its_connections() -> None:
    changes = plan(config(), config(name="talk"))
    assert [change.kind for change in changes][:2] == [Kind.SERVICE, Kind.SERVICE]
    assert changes[0].effect == "tcp://10.0.0.10:80 goes on as service talk, open connections stay"
    assert changes[1].effect.startswith("this was service chat")


def test_an_added_service_names_what_it_sets_and_each_backend() -> None:
    empty = dataclasses.replace(config(), services=())
    changes = plan(empty, config(forward="ipip", health={"type": "http"}))
    assert [field.field for field in changes[0].fields] == [
        "vip", "port", "protocol", "forward", "health.type",
    ]  # fmt: skip
    assert [change.backend for change in changes] == [None, "gpu-1", "gpu-2", "gpu-3"]
    removed = only(config(), empty)
    assert removed.effect == (
        "tcp://10.0.0.10:80 is no longer balanced: open connections to its 3 backends are cut"
    )


def test_each_setting_of_a_service_says_what_it_does() -> None:
    for values, fields, words in (
        ({"forward": "ipip"}, ["forward"], "sent by ipip at once"),
        ({"timeouts": {"established": "5m"}}, ["timeouts.established"], "open flows too"),
        ({"down_flows": "reroute"}, ["down_flows"], "move to others at once"),
        ({"health": {"type": "none"}}, ["health.type"], "no longer checked"),
        ({"health": {"interval": "3s"}}, ["health.interval"], "tcp every 3s"),
        ({"port": 81}, ["port"], "open connections are cut"),
        ({"forward": "nat"}, ["forward"], "refused while there are any"),
        ({"scheduler": "maglev"}, ["scheduler"], "new flows are placed by maglev"),
        ({"draws": 2}, ["draws"], "new settings of least-load"),
        ({"bytes_per_connection": 9}, ["bytes_per_connection"], "new settings of least-load"),
        ({"count_waiting": False}, ["count_waiting"], "no longer counted"),
        (
            {"limits": {"new_flows_per_source": "50/s", "open_flows_per_source": 9}},
            ["limits.new_flows_per_source", "limits.open_flows_per_source"],
            "limits: 50/s new flows from each source, no new flows from a source with 9 open ones",
        ),
        (
            {"limits": {"waiting_per_source": 8 << 20}},
            ["limits.waiting_per_source"],
            "from a source with 8MiB of waiting request bytes",
        ),
        ({"detect": "off"}, ["detect"], "nobody looks for sources that behave unlike all"),
        ({"slow_start": "30s"}, ["slow_start"], "reach their weight in 30s"),
        ({"no_backend": "reset"}, ["no_backend"], "they are answered with a reset"),
    ):
        change = only(config(), config(**values))
        assert (change.kind, change.backend) == (Kind.SERVICE, None)
        assert [field.field for field in change.fields] == fields
        assert words in change.effect


def test_a_setting_that_is_taken_back_says_what_holds_then() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"slow_start": "30s"}, "have their weight at once"),
        ({"count_waiting": False}, "are counted from now on"),
        ({"no_backend": "any"}, "they are dropped"),
        ({"forward": "fullnat"}, "refused while there are any"),
    )
    for values, words in cases:
        assert words in only(config(**values), config()).effect


def test_quic_ids_say_where_their_packets_go() -> None:
    udp: dict[str, Any] = {"protocol": "udp"}
    named = backends(
        gpu_1={"quic_server_id": "01"},
        gpu_2={"quic_server_id": "02"},
        gpu_3={"quic_server_id": "03"},
    )
    quic = udp | {"quic_server_id_bytes": 1}
    on = only(config(named, **udp), config(named, **quic))
    assert on.effect == (
        "QUIC packets go to the backend that the server id in their connection id names (1 byte)"
    )
    off = only(config(named, **quic), config(named, **udp))
    assert off.effect == "QUIC packets go by their addresses and ports alone"
    other = [named[0] | {"quic_server_id": "ff"}, *named[1:]]
    change = only(config(named, **quic), config(other, **quic))
    assert change.effect == "QUIC packets with the server id ff go to it, and no others"


def test_a_range_that_grows_keeps_the_connections_to_what_is_in_both() -> None:
    cases: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"port": "80-90"}, {"port": "80-99"}),
        ({"port": 80}, {"port": "80-99"}),
        ({"vip": "192.0.2.0/24"}, {"vip": "192.0.2.0/25"}),
    )
    for old, new in cases:
        assert "to the ports in both stay" in only(config(**old), config(**new)).effect
    moved = only(config(vip="192.0.2.0"), config(vip="192.0.2.0/24"))
    assert "its open connections are cut" in moved.effect


def test_a_backup_gets_new_flows_only_when_nobody_else_does() -> None:
    backup = backends(gpu_3={"backup": True})
    change = only(config(), config(backup))
    assert change.fields == (FieldChange("backup", False, True),)
    assert change.effect == (
        "it gets no new flow: it is a backup, for when no other backend is usable; "
        "established flows stay"
    )
    assert "about 33 % of new flows go to it" in only(config(backup), config()).effect
    heavier = backends(gpu_3={"backup": True, "weight": 500})
    assert only(config(backup), config(heavier)).effect.startswith("it still gets no new flow")
    alone = [backup[0] | {"state": "drain"}, backup[2]]
    assert "no backend is left" not in only(config([backup[0], backup[2]]), config(alone)).effect


def test_what_happens_without_a_backend_is_the_service_s_choice() -> None:
    one = backends()[:1]
    drained = [one[0] | {"state": "drain"}]
    for choice, words in (
        ("drop", "they are dropped"),
        ("reset", "they are answered with a reset"),
        ("any", "they go to any backend that can be reached and is not in maintenance"),
    ):
        effect = only(config(one, no_backend=choice), config(drained, no_backend=choice)).effect
        assert f"no backend is left for new flows: {words}" in effect


def test_another_port_of_a_backend_cuts_its_connections() -> None:
    old = backends(gpu_1={"port": 8000})
    new = backends(gpu_1={"port": 8001})
    change = only(config(old, forward="nat"), config(new, forward="nat"))
    assert change.effect == (
        "open connections to 10.0.0.21 port 8000 are cut; new flows go to 10.0.0.21 port 8001"
    )


def test_a_backend_on_another_port_is_not_that_backend_renamed() -> None:
    old = backends(gpu_1={"port": 8000})
    renamed = [old[0] | {"name": "big", "port": 8001}, *old[1:]]
    effects = [c.effect for c in plan(config(old, forward="nat"), config(renamed, forward="nat"))]
    assert effects[0].startswith("its open connections are cut")
    assert effects[1].startswith("once its check passes")


def test_a_change_reads_as_one_line() -> None:
    change = only(config(), config(backends(gpu_1={"weight": 50, "state": "drain"})))
    assert str(change) == "change backend chat/gpu-1: weight 100 → 50, state active → drain"


def test_global_changes_say_what_needs_a_restart() -> None:
    old = config()
    new = dataclasses.replace(old, manage_vips=False, interface="eth1", metrics_listen=None)
    assert global_changes(old, new) == (
        FieldChange("interface", "eth0", "eth1", needs_restart=True),
        FieldChange("metrics", "127.0.0.1:9117", "off", needs_restart=True),
        FieldChange("manage_vips", True, False),
    )
    sources = dataclasses.replace(old.nat, sources_v4=(IPv4Address("192.0.2.1"),))
    new = dataclasses.replace(old, nat=sources, gue_port=1, backend_interfaces=("eth1",))
    assert global_changes(old, new) == (
        FieldChange("backend_interfaces", [], ["eth1"], needs_restart=True),
        FieldChange("gue.port", 6080, 1, needs_restart=True),
        FieldChange("nat.sources_ipv4", [], ["192.0.2.1"]),
    )
    assert global_changes(old, old) == ()


def test_plans_do_without_pydantic_and_yaml() -> None:
    code = (
        "import sys, agent.config.plan, agent.config.render; "
        "sys.exit(bool({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_services_are_told_apart_by_their_objects_and_then_by_what_they_are() -> None:
    old = config()
    heavier = config(BASE["services"][0]["backends"][1:], slow_start="9s")
    assert plan_module.changed(old, old) == frozenset()
    assert plan_module.changed(old, config()) == frozenset(), "others, and the same"
    assert plan_module.changed(old, heavier) == {"chat"}
    assert plan_module.changed(old, config(name="new")) == {"chat", "new"}
    elsewhere = dataclasses.replace(old, hash_seed=7)
    assert plan_module.changed(old, elsewhere) is None
    assert plan_module.gone_backends(old, heavier) == {BackendRef("chat", "gpu-1")}
    assert plan_module.gone_backends(old, config()) == set()
    assert plan_module.added_and_removed(old, old) == ([], [])
    assert plan_module.added_and_removed(old, heavier) == ([*heavier.services], [*old.services])


def test_what_has_not_changed_stays_the_same_object() -> None:
    old, new = config(), config()
    kept = plan_module.keeping(old, new)
    assert kept == new
    assert kept.services[0] is old.services[0]
    other = config(slow_start="9s")
    assert plan_module.keeping(old, other).services[0] is other.services[0]


def test_a_planner_finds_what_a_plan_finds_and_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    once = plan_module._service_changes
    monkeypatch.setattr(
        plan_module, "_service_changes", lambda *pair: looked.append(pair) or once(*pair)
    )
    planner = plan_module.Planner()
    old, new = config(), config(slow_start="9s")
    assert planner.plan(old, new) == planner.plan(old, new) != ()
    assert len(looked) == 1
    assert planner.plan(old, new) == plan(old, new)
    assert planner.plan(new, old) == plan(new, old)


def test_a_change_of_roles_is_live_and_shown() -> None:
    old = Config("default", "eth0")
    new = dataclasses.replace(old, socket_roles=RoleNames(operator=("lb-ops",)), hash_seed=7)
    fields = global_changes(old, new)
    assert not any(field.needs_restart for field in fields)
    (change,) = settings_change(fields)
    assert str(change) == "change settings: socket_roles.operator [] → ['lb-ops']"
    assert change.effect == "taken over while it runs: hash_seed"
