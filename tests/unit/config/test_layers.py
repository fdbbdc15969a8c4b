"""What runs, of what operators wrote, sources named, and operators decided about that."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.document import Document
from agent.config.edit import Edit, EditOp, apply_edits
from agent.config.layers import check, compose, name_of, written
from agent.config.load import build, parse
from agent.config.render import document
from agent.errors import ConfigError, ConflictError
from agent.model import AdminState, Backend, Config, Target
from agent.state.sources import Placed

TEXT = """\
interface: eth0
failover:
  instances:
    - {{name: web, vrid: 51, vips: [10.0.0.250]}}
nat: {{sources_ipv4: [10.0.0.3]}}
zones: {{a: [198.51.100.0/24]}}
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    forward: {forward}
    discover: {{file: /etc/gpu.yaml}}
    backends: [{{name: mine, address: 10.0.0.21{port}}}]
  - name: other
    vip: 10.0.0.11
    port: 81
    forward: {forward}
    backends: [{{name: mine, address: 10.0.0.31{other}}}]
"""


def base(forward: str = "fullnat") -> Config:
    port = ", port: 8000" if forward == "fullnat" else ""
    return parse(TEXT.format(forward=forward, port=port, other=port), "agent.yaml")


def target(address: str, port: int | None = 8000, **more: object) -> Target:
    return Target(ip_address(address), port, **more)


def placed(*targets: Target, left: float | None = None) -> dict[str, tuple[Placed, ...]]:
    return {"chat": tuple(Placed(each, left) for each in targets)}


def discovered(config: Config) -> list[Backend]:
    return [backend for backend in config.services[0].backends if backend.discovered]


def test_targets_become_backends_behind_those_of_the_configuration():
    config = base()
    found = compose(config, placed(target("10.0.0.40", weight=7, zone="a", priority=2)))
    assert [backend.name for backend in found.config.services[0].backends] == [
        "mine",
        "10.0.0.40-8000",
    ]
    (backend,) = discovered(found.config)
    assert (backend.weight, backend.zone, backend.priority, backend.port) == (7, "a", 2, 8000)
    assert found.config.services[1] is config.services[1]
    assert not found.left_out["chat"]
    check(config, found.config)


@pytest.mark.parametrize(
    ("forward", "given", "why"),
    [
        ("fullnat", target("10.0.0.21"), "a backend of the configuration has its address and port"),
        ("dsr", target("10.0.0.21", 80), "a backend of the configuration has its address and port"),
        ("dsr", target("10.0.0.21", None), "a backend of the configuration has its address"),
        ("dsr", target("10.0.0.40"), "its port is 8000, and dsr changes no port"),
        ("dsr", target("2001:db8::1", 80), "it is not of the VIP's family, IPv4"),
        ("fullnat", target("10.0.0.10"), "its address is a VIP"),
        ("fullnat", target("10.0.0.11"), "its address is a VIP"),
        ("fullnat", target("10.0.0.250"), "its address is one of this balancer"),
        ("fullnat", target("10.0.0.3"), "its address is one of this balancer"),
        ("fullnat", target("10.0.0.9"), "its address is one of this balancer"),
        ("fullnat", target("10.0.0.40", name="mine"), "another backend is called mine"),
    ],
)
def test_a_target_that_cannot_be_a_backend_is_left_out_and_the_others_are_not(forward, given, why):
    config = base(forward)
    good = target("10.0.0.41", None)
    found = compose(config, placed(given, good), own={ip_address("10.0.0.9")})
    (left_out,) = found.left_out["chat"]
    assert left_out.target == given
    assert left_out.why.startswith(why)
    assert [backend.address for backend in discovered(found.config)] == [good.address]
    check(config, found.config)


def test_a_target_within_the_prefix_of_a_vip_is_left_out():
    text = TEXT.format(forward="fullnat", port="", other="").replace("10.0.0.11", "192.0.2.0/24")
    found = compose(parse(text, "agent.yaml"), placed(target("192.0.2.9"), target("192.0.3.9")))
    assert [each.why for each in found.left_out["chat"]] == ["its address is a VIP"]
    assert len(discovered(found.config)) == 1


def test_two_targets_at_one_place_are_one_backend():
    found = compose(base("dsr"), placed(target("10.0.0.40", 80), target("10.0.0.40", None)))
    assert len(discovered(found.config)) == 1
    assert found.left_out["chat"][0].why == "another target has its address and port"


def test_a_zone_that_the_configuration_does_not_have_is_ignored():
    (backend,) = discovered(compose(base(), placed(target("10.0.0.40", zone="b"))).config)
    assert backend.zone is None


def test_a_target_that_is_no_longer_named_drains_unless_it_is_in_maintenance():
    gone = target("10.0.0.40"), target("10.0.0.41", admin=AdminState.MAINTENANCE)
    found = discovered(compose(base(), placed(*gone, left=5.0)).config)
    assert [backend.admin for backend in found] == [AdminState.DRAIN, AdminState.MAINTENANCE]


def test_without_a_source_there_are_no_discovered_backends():
    config = base()
    none = {"discover": {"file": None}}
    off = apply_edits(config, [Edit(EditOp.SERVICE_SET, "chat", values=none)])
    assert not discovered(compose(off, placed(target("10.0.0.40"))).config)


def test_what_runs_is_written_without_what_sources_named():
    config = base()
    assert document(compose(config, placed(target("10.0.0.40"))).config) == document(config)


@pytest.mark.parametrize("forward", ["fullnat", "dsr"])
def test_what_operators_decide_outlives_the_source_forgetting_the_target(forward: str):
    config = base(forward)
    named = placed(target("10.0.0.40", 80, weight=30), target("10.0.0.41", 80))
    running = compose(config, named).config
    edits = [
        Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-80", {"weight": 5}),
        Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-80", {"state": "drain"}),
        Edit(EditOp.BACKEND_SET, "chat", "10.0.0.41-80", {"weight": 9}),
        Edit(EditOp.BACKEND_SET, "chat", "mine", {"weight": 11}),
    ]
    after = apply_edits(config, list(written(running, edits, named)))
    for found in (named, {}, named):
        now = compose(after, found).config
    first, second = discovered(now)
    assert (first.weight, first.admin) == (5, AdminState.DRAIN)
    assert (second.weight, second.admin) == (9, AdminState.ACTIVE)
    assert now.services[0].backends[0].weight == 11
    reset = [
        Edit(EditOp.BACKEND_SET, "chat", name, {"weight": None, "state": None})
        for name in ("10.0.0.40-80", "10.0.0.41-80")
    ]
    before = apply_edits(after, list(written(now, reset, named)))
    assert not before.services[0].overrides
    assert discovered(compose(before, named).config) == discovered(running)


def test_what_the_source_says_too_needs_no_override():
    """Else what somebody enabled once could never be drained by the source again."""
    named = placed(target("10.0.0.40", weight=30))
    config = base()
    for values, overrides in (
        ({"state": "drain"}, 1), ({"weight": 7}, 1), ({"state": "active"}, 1), ({"weight": 30}, 0),
    ):  # fmt: skip
        running = compose(config, named).config
        edit = Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-8000", values)
        config = apply_edits(config, list(written(running, [edit], named)))
        assert len(config.services[0].overrides) == overrides


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(EditOp.BACKEND_REMOVE, "chat", "10.0.0.40-8000"), "its source names it"),
        (Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-8000", {"zone": "a"}), "zone: its source"),
    ],
)
def test_the_rest_is_changed_at_the_source(edit: Edit, message: str):
    running = compose(base(), placed(target("10.0.0.40"))).config
    with pytest.raises(ConflictError, match=message) as refused:
        list(written(running, [edit], {}))
    assert "at its source" in refused.value.remedy


def test_a_wrong_value_is_refused_like_any_other():
    config = base()
    running = compose(config, placed(target("10.0.0.40"))).config
    edit = Edit(EditOp.BACKEND_SET, "chat", "10.0.0.40-8000", {"weight": 5000})
    with pytest.raises(ConfigError, match="5000 is out of range"):
        apply_edits(config, list(written(running, [edit], {})))


def test_targets_that_do_not_fit_the_tables_are_refused_with_the_name_of_the_service():
    config = base()
    config = replace(config, tables=replace(config.tables, backends=3))
    found = compose(config, placed(target("10.0.0.40"), target("10.0.0.41")))
    with pytest.raises(ConfigError, match="4 backends do not fit"):
        check(config, found.config)


def test_a_server_of_two_nat_services_is_refused():
    """Its answers could not be told apart."""
    config = base("nat")
    found = compose(config, placed(target("10.0.0.31", 81)))
    with pytest.raises(ConfigError) as refused:
        check(config, found.config)
    assert "10.0.0.31-81" in str(refused.value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (target("10.0.0.40"), "10.0.0.40-8000"),
        (target("2001:db8::5", None), "2001-db8--5"),
        (target("::5:1"), "ip--5-1-8000"),
        (target("10.0.0.40", name="gpu-7"), "gpu-7"),
    ],
)
def test_a_target_without_a_name_is_named_after_its_address(given: Target, name: str):
    assert name_of(given) == name


ADDRESSES = st.integers(1, 60).map(lambda n: f"10.0.0.{n}") | st.just("2001:db8::1")


@given(
    st.sampled_from(["dsr", "ipip", "gue", "fullnat"]),
    st.lists(
        st.builds(
            target,
            ADDRESSES,
            st.sampled_from([None, 80, 8000]),
            name=st.none() | st.sampled_from(["mine", "gpu-1"]),
            weight=st.integers(0, 1000),
            zone=st.sampled_from([None, "a", "b"]),
            admin=st.sampled_from(AdminState),
        ),
        max_size=8,
    ),
)
def test_whatever_a_source_names_the_result_is_a_valid_configuration(forward, targets):
    config = base(forward)
    found = compose(config, placed(*targets))
    whole = replace(
        found.config,
        services=tuple(
            replace(s, backends=tuple(replace(b, discovered=False) for b in s.backends))
            for s in found.config.services
        ),
    )

    build(document(whole), Document("composed"))
    assert len(discovered(found.config)) + len(found.left_out.get("chat", ())) == len(targets)
