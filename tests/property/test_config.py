"""Whatever the configuration: it is written and read without loss, and plans lead all the way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import edit as edit_module
from agent.config.defaults import CHECK_KEYS, PROTOCOL_KEYS, SCHEDULER_KEYS
from agent.config.document import write_yaml
from agent.config.edit import Edit, EditOp, apply_edit, with_services
from agent.config.load import parse
from agent.config.plan import Action, Change, plan
from agent.config.render import document, service_fields
from agent.errors import ConfigError, SteelyardError
from agent.model import CheckKind, Config, Service
from tests.examples import examples
from tests.property.configurations import KNOWN_ZONES, configs, service_lists

some = settings(max_examples=examples(60))


PLAIN_CONFIG = Config(
    name="default",
    interface="eth0",
    zones=KNOWN_ZONES,
    companion_key_file=Path("/etc/steelyard/cookies.key"),
)


@some
@given(configs)
def test_what_is_written_is_read_again(config: Config) -> None:
    assert parse(write_yaml(document(config)), "f") == config
    assert parse(yaml.dump(document(config)), "f") == config


@some
@given(configs)
def test_nothing_lies_between_a_configuration_and_itself(config: Config) -> None:
    assert plan(config, config) == ()


@some
@given(service_lists, service_lists)
def test_a_plan_leads_all_the_way(before: tuple[Service, ...], after: tuple[Service, ...]) -> None:
    old = dataclasses.replace(PLAIN_CONFIG, services=before)
    new = dataclasses.replace(old, services=after)
    changes = plan(old, new)
    assert all(change.effect for change in changes)
    assert _sorted(_carried_out(old, changes)) == _sorted(new)
    assert (changes == ()) == (_sorted(old) == _sorted(new))


@some
@given(service_lists, service_lists)
def test_applying_services_makes_them_equal(
    before: tuple[Service, ...], after: tuple[Service, ...]
) -> None:
    old = dataclasses.replace(PLAIN_CONFIG, services=before)
    new = dataclasses.replace(old, services=after)
    edit = Edit(EditOp.SERVICES_APPLY, values={"services": document(new)["services"]})
    assert apply_edit(old, edit) == new


@some
@given(service_lists, service_lists, st.data())
def test_services_by_their_documents_are_as_applied_services(
    before: tuple[Service, ...], after: tuple[Service, ...], data: st.DataObject
) -> None:
    """So that a fleet's balancers, which read them, run what was meant. Those that stay the same
    are the same objects.
    """
    old = dataclasses.replace(PLAIN_CONFIG, services=before)
    ours = {each["name"]: each for each in document(old)["services"]}
    theirs = dataclasses.replace(PLAIN_CONFIG, services=after)
    wanted = {each["name"]: each for each in document(theirs)["services"]}
    some_of_ours = {name: ours[name] for name in ours if data.draw(st.booleans(), label=name)}
    for name in some_of_ours:
        changed = copy.deepcopy(some_of_ours[name])
        for backend in changed["backends"]:
            backend["weight"] = data.draw(st.integers(1, 1001), label=f"weight in {name}")
        some_of_ours[name] = data.draw(st.sampled_from([ours[name], changed]))
    mixed = {**wanted, **some_of_ours}
    by_all = outcome(
        lambda: apply_edit(old, Edit(EditOp.SERVICES_APPLY, values={"services": [*mixed.values()]}))
    )
    found = outcome(lambda: with_services(old, ours, mixed))
    assert found == by_all
    if isinstance(found, Config):
        same = [s for s in found.services if ours.get(s.name) == mixed[s.name]]
        assert all(any(one is known for known in before) for one in same)


@some
@given(configs, st.data())
def test_an_edit_of_one_service_is_what_comes_of_the_whole(
    config: Config, data: st.DataObject
) -> None:
    """It is checked without the others where they cannot matter."""
    if not config.services:
        return
    service = data.draw(st.sampled_from(config.services))
    backend = data.draw(st.sampled_from([b.name for b in service.backends] or ["none"]))
    addresses = [str(b.address) for s in config.services for b in s.backends]
    vips = [str(s.key.vip) for s in config.services]
    address = data.draw(st.sampled_from(["198.51.100.1", *addresses, *vips]))
    zone = data.draw(st.sampled_from([None, *(zone.name for zone in config.zones)]))
    edit = data.draw(
        st.sampled_from(
            [
                Edit(EditOp.BACKEND_SET, service.name, backend, {"weight": 7}),
                Edit(EditOp.BACKEND_SET, service.name, backend, {"state": "drain", "zone": zone}),
                Edit(EditOp.BACKEND_REMOVE, service.name, backend),
                Edit(EditOp.BACKEND_ADD, service.name, "new", {"address": address, "zone": zone}),
                Edit(EditOp.SERVICE_SET, service.name, None, {"port": 4711}),
                Edit(EditOp.SERVICE_SET, service.name, None, {"forward": "nat"}),
                Edit(EditOp.SERVICE_SET, service.name, None, {"slow_start": "7s"}),
            ]
        )
    )
    quick, whole = outcome(lambda: apply_edit(config, edit)), outcome(lambda: by_all(config, edit))
    assert quick == whole
    if isinstance(quick, Config):
        others = [one for one in quick.services if one.name != service.name]
        assert all(any(one is before for before in config.services) for one in others)


def by_all(config: Config, edit: Edit) -> Config:
    """With every service built anew."""
    with mock.patch.object(edit_module, "_edit_one", return_value=None):
        return apply_edit(config, edit)


def outcome(work: Callable[[], Config]) -> Config | tuple[type[SteelyardError], str]:
    try:
        return work()
    except SteelyardError as error:
        return type(error), str(error)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_keys = st.sampled_from(
    [
        "name",
        "vip",
        "port",
        "weight",
        "state",
        "address",
        "backup",
        "quic_server_id",
        "scheduler",
        "draws",
        "source_bound",
        "protocol",
        "health",
        "timeouts",
        "services",
        "zzz",
    ]
)


@some
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


@some
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
        _drop_useless(item)
    return parse(write_yaml(data), "f")


def _drop_useless(item: dict[str, object]) -> None:
    scheduler, protocol = item.get("scheduler", "least-load"), item.get("protocol", "tcp")
    for key, user in SCHEDULER_KEYS.items():
        if user.value != scheduler:
            item.pop(key, None)
    for key, of in PROTOCOL_KEYS.items():
        if of.value != protocol:
            item.pop(key, None)


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
