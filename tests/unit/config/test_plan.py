"""Plans: every difference is named once, and says what it does to traffic."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

from agent.config.load import parse
from agent.config.plan import Action, Change, FieldChange, Kind, global_changes, plan
from agent.model import Config

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
        assert effect == "its open connections finish, no new flow goes there"


def test_maintenance_cuts_connections() -> None:
    effect = only(config(), config(backends(gpu_1={"state": "maintenance"}))).effect
    assert effect == "nothing is sent there any more: its open connections are cut"


def test_enabling_brings_flows_back() -> None:
    old = config(backends(gpu_1={"state": "drain"}), health={"type": "none"})
    effect = only(old, config(health={"type": "none"})).effect
    assert effect == "about 33 % of new flows go to it; established flows stay"


def test_a_weight_changes_nothing_while_draining() -> None:
    old = config(backends(gpu_1={"state": "drain"}))
    new = config(backends(gpu_1={"state": "drain", "weight": 5}))
    assert only(old, new).effect == "nothing while its state is drain"


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
    ):
        change = only(config(), config(**values))
        assert (change.kind, change.backend) == (Kind.SERVICE, None)
        assert [field.field for field in change.fields] == fields
        assert words in change.effect


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
    assert global_changes(old, old) == ()


def test_plans_do_without_pydantic_and_yaml() -> None:
    code = (
        "import sys, agent.config.plan, agent.config.render; "
        "sys.exit(bool({'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
