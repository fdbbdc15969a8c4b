"""Whatever the configuration: it is written and read without loss, and plans lead all the way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.defaults import CHECK_KEYS
from agent.config.document import write_yaml
from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.load import parse
from agent.config.plan import Action, Change, plan
from agent.config.render import document, service_fields
from agent.errors import ConfigError
from agent.model import (
    AdminState,
    Backend,
    CheckKind,
    Config,
    DownFlows,
    Forward,
    HealthCheck,
    KernelHeaders,
    Protocol,
    Service,
    ServiceKey,
    Tables,
    Timeouts,
    XdpMode,
)

settings.register_profile("config", max_examples=60, deadline=None)
settings.load_profile("config")

# Names that YAML takes for something else are names all the same.
names = st.sampled_from(
    [
        "chat",
        "a",
        "b-1",
        "null",
        "true",
        "on",
        "1",
        "1.5",
        "1e5",
        "0x1f",
        "0o17",
        "2024-01-01",
        "no",
    ]
) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)
idle = st.integers(4, 25_200).map(float) | st.floats(4, 25_200)
vips = st.integers(1, 30).flatmap(
    lambda n: st.sampled_from([IPv4Address(f"10.0.0.{n}"), IPv6Address(f"fd00::{n:x}")])
)
statuses = st.tuples(st.integers(100, 599), st.integers(100, 599)).map(lambda t: (min(t), max(t)))


@st.composite
def checks(draw: st.DrawFn, key: ServiceKey) -> HealthCheck:
    kind = draw(st.sampled_from(CheckKind))
    interval_s = draw(st.integers(1, 3600).map(float) | st.floats(0.1, 3600))
    needs_port = kind is not CheckKind.NONE and (key.protocol is Protocol.UDP or key.port == 0)
    ports = st.integers(1, 65535)
    check = HealthCheck(
        kind=kind,
        port=draw(ports if needs_port else st.none() | ports),
        interval_s=interval_s,
        timeout_s=draw(st.floats(0.01, min(interval_s, 2)) | st.just(min(interval_s, 1.0))),
        rise=draw(st.integers(1, 100)),
        fall=draw(st.integers(1, 100)),
        jitter=draw(st.floats(0, 1)),
    )
    if kind is CheckKind.TCP:
        return check
    check = dataclasses.replace(
        check,
        method=draw(st.sampled_from(["GET", "HEAD"])),
        path=draw(st.from_regex(r"/[\x21-\x7e]{0,20}", fullmatch=True)),
        host=draw(st.none() | st.just("chat.example.com")),
        expect_status=draw(st.lists(statuses, min_size=1, max_size=3).map(tuple)),
    )
    if kind is CheckKind.HTTP:
        return check
    return dataclasses.replace(check, verify_tls=draw(st.booleans()))


@st.composite
def services(draw: st.DrawFn, name: str, key: ServiceKey) -> Service:
    forward = draw(st.sampled_from(Forward))
    v4 = st.integers(1, 250).map(lambda n: IPv4Address(f"10.9.0.{n}"))
    v6 = st.integers(1, 250).map(lambda n: IPv6Address(f"fd09::{n:x}"))
    same_family = v4 if key.vip.version == 4 else v6
    addresses = same_family if forward is Forward.DSR else v4 | v6
    pairs = draw(
        st.lists(
            st.tuples(names, addresses),
            max_size=6,
            unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
        )
    )
    return Service(
        name=name,
        key=key,
        forward=forward,
        timeouts=draw(st.builds(Timeouts, idle, idle, idle, idle)),
        down_flows=draw(st.sampled_from(DownFlows)),
        health=draw(checks(key)),
        backends=tuple(
            Backend(
                name=backend,
                address=address,
                weight=draw(st.integers(0, 1000)),
                admin=draw(st.sampled_from(AdminState)),
            )
            for backend, address in pairs
        ),
    )


keys = st.builds(ServiceKey, vips, st.integers(0, 65535), st.sampled_from(Protocol))
service_lists = st.lists(
    st.tuples(names, keys),
    max_size=4,
    unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
).flatmap(lambda pairs: st.tuples(*(services(name, key) for name, key in pairs)))
configs = st.builds(
    Config,
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,10}", fullmatch=True),
    interface=st.sampled_from(["eth0", "on", "1", "en.0", "wlan-ä"]),
    xdp_mode=st.sampled_from(XdpMode),
    socket=st.sampled_from([Path("/run/steelyard/agent.sock"), Path("/run/a b/x: y #.sock")]),
    socket_group=st.none() | st.sampled_from(["adm", "no"]),
    state_dir=st.just(Path("/var/lib/steelyard")),
    metrics_listen=st.none() | st.sampled_from([("127.0.0.1", 9117), ("::1", 1), ("0.0.0.0", 80)]),
    manage_vips=st.booleans(),
    hash_seed=st.integers(0, 2**32 - 1),
    ipip_source_v4=st.none() | st.just(IPv4Address("10.0.0.2")),
    ipip_source_v6=st.none() | st.just(IPv6Address("fd00::2")),
    kernel_headers=st.sampled_from(KernelHeaders),
    tables=st.builds(
        Tables,
        flows=st.integers(10, 28).map(lambda n: 1 << n),
        services=st.integers(10, 65535),
        backends=st.integers(100, 65535),
        ring_slots=st.sampled_from([251, 65537]),
    ),
    services=service_lists,
)


@given(configs)
def test_what_is_written_is_read_again(config: Config) -> None:
    assert parse(write_yaml(document(config)), "f") == config
    assert parse(yaml.dump(document(config)), "f") == config


@given(configs)
def test_nothing_lies_between_a_configuration_and_itself(config: Config) -> None:
    assert plan(config, config) == ()


@given(service_lists, service_lists)
def test_a_plan_leads_all_the_way(before: tuple[Service, ...], after: tuple[Service, ...]) -> None:
    old = Config(name="default", interface="eth0", services=before)
    new = dataclasses.replace(old, services=after)
    changes = plan(old, new)
    assert all(change.effect for change in changes)
    assert _sorted(_carried_out(old, changes)) == _sorted(new)
    assert (changes == ()) == (_sorted(old) == _sorted(new))


@given(service_lists, service_lists)
def test_applying_services_makes_them_equal(
    before: tuple[Service, ...], after: tuple[Service, ...]
) -> None:
    old = Config(name="default", interface="eth0", services=before)
    new = dataclasses.replace(old, services=after)
    edit = Edit(EditOp.SERVICES_APPLY, values={"services": document(new)["services"]})
    assert apply_edit(old, edit) == new


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_keys = st.sampled_from(
    ["name", "vip", "port", "weight", "state", "address", "health", "timeouts", "services", "zzz"]
)


@given(configs, st.sampled_from(EditOp), st.dictionaries(_keys, _values, max_size=4), st.data())
def test_an_edit_never_touches_what_it_was_given(
    config: Config, op: EditOp, values: dict[str, object], data: st.DataObject
) -> None:
    service = data.draw(st.sampled_from([*(s.name for s in config.services), "none"]))
    config_before, values_before = copy.deepcopy(config), copy.deepcopy(values)
    result, error = _outcome(lambda: apply_edit(config, Edit(op, service, "a", values)))
    if error:
        assert all(problem.message and problem.remedy for problem in error.problems)
    if result:
        assert parse(write_yaml(document(result)), "f") == result
    assert config == config_before
    assert repr(values) == repr(values_before)


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace"))
)
def test_any_text_is_a_configuration_or_an_error(raw: bytes) -> None:
    result, error = _outcome(lambda: parse(raw.decode(errors="replace"), "f"))
    assert result or (error and all(problem.remedy for problem in error.problems))


def _outcome(make: Callable[[], Config]) -> tuple[Config | None, ConfigError | None]:
    try:
        return make(), None
    except ConfigError as error:
        return None, error


def _carried_out(config: Config, changes: tuple[Change, ...]) -> Config:
    """The plan done by hand, on the document."""
    data = copy.deepcopy(document(config))
    services_ = data["services"]
    assert isinstance(services_, list)
    for change in changes:
        items = services_
        name = change.service
        if change.backend is not None:
            (owner,) = (item for item in services_ if item["name"] == change.service)
            items, name = owner["backends"], change.backend
        if change.action is Action.REMOVE:
            items[:] = [item for item in items if item["name"] != name]
            continue
        if change.action is Action.ADD:
            items.append({"name": name} | ({} if change.backend else {"backends": []}))
        (item,) = (item for item in items if item["name"] == name)
        if change.backend is None and change.action is Action.CHANGE:
            # The document leaves defaults out, and they can depend on what changes.
            (service,) = (s for s in config.services if s.name == change.service)
            _fill(item, service)
        for field in change.fields:
            _put(item, field.field, field.new)
    for item in services_:
        health = item.get("health", {})
        useful = CHECK_KEYS[CheckKind(health["type"])] if "type" in health else health
        item["health"] = {key: health[key] for key in health if key in useful}
    return parse(write_yaml(data), "f")


def _fill(item: dict[str, object], service: Service) -> None:
    for name, value in service_fields(service).items():
        _put(item, name, value)


def _put(item: dict[str, object], name: str, value: object) -> None:
    section, _, key = name.rpartition(".")
    target = item.setdefault(section, {}) if section else item
    assert isinstance(target, dict)
    target[key] = value


def _sorted(config: Config) -> Config:
    ordered = (
        dataclasses.replace(s, backends=tuple(sorted(s.backends, key=lambda b: b.name)))
        for s in config.services
    )
    return dataclasses.replace(config, services=tuple(sorted(ordered, key=lambda s: s.name)))
