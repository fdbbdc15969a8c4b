"""Runtime edits: what each does, and what each refuses."""

from __future__ import annotations

import contextlib

import pytest

from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.load import parse
from agent.errors import ConfigError, ConflictError, NotFoundError
from agent.model import AdminState, CheckKind, Config, Scheduler, Service

CONFIG = parse(
    """
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    health: {type: http, path: /health, rise: 5}
    timeouts: {established: 5m}
    backends:
      - {name: gpu-1, address: 10.0.0.21}
      - {name: gpu-2, address: 10.0.0.22}
  - {name: dns, vip: 10.0.0.10, port: 53, protocol: udp}
""",
    "agent.yaml",
)


def edit(
    op: EditOp, service: str | None = None, backend: str | None = None, **values: object
) -> Config:
    return apply_edit(CONFIG, Edit(op, service, backend, values))


def named(config: Config, name: str) -> Service:
    return next(service for service in config.services if service.name == name)


def test_a_service_is_added() -> None:
    config = edit(
        EditOp.SERVICE_ADD,
        "new",
        vip="10.0.0.11",
        port=80,
        backends=[{"name": "a", "address": "10.0.0.30"}],
    )
    assert [service.name for service in config.services] == ["chat", "dns", "new"]
    assert named(config, "new").backends[0].weight == 100


def test_a_setting_of_a_service_leaves_the_others_alone() -> None:
    chat = named(edit(EditOp.SERVICE_SET, "chat", health={"fall": 9}), "chat")
    assert (chat.health.fall, chat.health.rise, chat.health.path) == (9, 5, "/health")
    assert chat.timeouts.established_s == 300
    assert len(chat.backends) == 2


def test_null_puts_a_setting_back_to_its_default() -> None:
    chat = named(edit(EditOp.SERVICE_SET, "chat", timeouts=None, health={"rise": None}), "chat")
    assert (chat.timeouts.established_s, chat.health.rise) == (900, 2)


@pytest.mark.parametrize(
    ("kind", "path"), [("completion", "/v1/completions"), ("https", "/health")]
)
def test_a_page_of_health_is_no_place_for_prompts(kind: str, path: str) -> None:
    to = edit(EditOp.SERVICE_SET, "chat", health={"type": kind})
    assert named(to, "chat").health.path == path
    back = apply_edit(to, Edit(EditOp.SERVICE_SET, "chat", None, {"health": {"type": "http"}}))
    assert named(back, "chat").health.path == ("/" if kind == "completion" else "/health")


def test_another_health_type_leaves_behind_what_it_has_no_use_for() -> None:
    chat = named(edit(EditOp.SERVICE_SET, "chat", health={"type": "tcp"}), "chat")
    assert (chat.health.kind, chat.health.path, chat.health.rise) == (CheckKind.TCP, "/", 5)


def test_another_scheduler_or_protocol_leaves_behind_what_it_has_no_use_for() -> None:
    few = edit(EditOp.SERVICE_SET, "chat", draws=2, bytes_per_connection=10, count_waiting=False)
    maglev = apply_edit(few, Edit(EditOp.SERVICE_SET, "chat", None, {"scheduler": "maglev"}))
    chat = named(maglev, "chat")
    assert (chat.draws, chat.bytes_per_connection, chat.count_waiting) == (8, 250, False)
    udp = apply_edit(
        few, Edit(EditOp.SERVICE_SET, "chat", None, {"protocol": "udp", "health": {"type": "none"}})
    )
    chat = named(udp, "chat")
    assert (chat.draws, chat.bytes_per_connection, chat.count_waiting) == (2, 250, False)


def test_a_setting_can_come_with_the_scheduler_that_uses_it() -> None:
    source = edit(EditOp.SERVICE_SET, "chat", scheduler="source", source_prefix=24)
    chat = named(source, "chat")
    assert (chat.scheduler, chat.source_bits) == (Scheduler.SOURCE, 24)


def test_an_address_is_added_again_with_another_port_where_ports_change() -> None:
    config = edit(EditOp.SERVICE_SET, "chat", forward="fullnat")
    more = Edit(EditOp.BACKEND_ADD, "chat", "gpu-3", {"address": "10.0.0.21", "port": 8001})
    assert [b.port for b in named(apply_edit(config, more), "chat").backends] == [None, None, 8001]


def test_a_check_that_is_switched_off_and_on_again_keeps_its_keys() -> None:
    off = edit(EditOp.SERVICE_SET, "chat", health={"type": "none"})
    on = apply_edit(off, Edit(EditOp.SERVICE_SET, "chat", None, {"health": {"type": "http"}}))
    assert on == CONFIG


def test_a_backend_is_drained_weighted_added_and_removed() -> None:
    drained = edit(EditOp.BACKEND_SET, "chat", "gpu-1", state="drain", weight=7)
    assert named(drained, "chat").backends[0].admin is AdminState.DRAIN
    assert named(drained, "chat").backends[0].weight == 7
    added = edit(EditOp.BACKEND_ADD, "chat", "gpu-3", address="10.0.0.23")
    assert [backend.name for backend in named(added, "chat").backends][-1] == "gpu-3"
    removed = edit(EditOp.BACKEND_REMOVE, "chat", "gpu-1")
    assert [backend.name for backend in named(removed, "chat").backends] == ["gpu-2"]


def test_a_service_is_removed() -> None:
    assert [service.name for service in edit(EditOp.SERVICE_REMOVE, "chat").services] == ["dns"]


def test_apply_makes_the_services_those_of_the_document_with_its_defaults() -> None:
    config = edit(
        EditOp.SERVICES_APPLY,
        defaults={"forward": "ipip"},
        services=[{"name": "only", "vip": "10.0.0.12", "port": 1}],
    )
    assert [(service.name, service.forward.value) for service in config.services] == [
        ("only", "ipip")
    ]
    assert config.interface == "eth0"


@pytest.mark.parametrize(
    ("op", "service", "backend"),
    [
        (EditOp.SERVICE_SET, "caht", None),
        (EditOp.SERVICE_REMOVE, "caht", None),
        (EditOp.BACKEND_ADD, "caht", "gpu-9"),
        (EditOp.BACKEND_SET, "chat", "gpu1"),
        (EditOp.BACKEND_REMOVE, "chat", "gpu1"),
    ],
)
def test_what_does_not_exist_is_not_found_and_the_nearest_is_named(
    op: EditOp, service: str, backend: str | None
) -> None:
    with pytest.raises(NotFoundError) as caught:
        edit(op, service, backend)
    assert "did you mean" in caught.value.remedy


@pytest.mark.parametrize(
    ("op", "backend"), [(EditOp.SERVICE_ADD, None), (EditOp.BACKEND_ADD, "gpu-1")]
)
def test_what_exists_cannot_be_added(op: EditOp, backend: str | None) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        edit(op, "chat", backend, address="10.0.0.99")


@pytest.mark.parametrize(
    ("op", "backend", "values", "where", "message"),
    [
        (
            EditOp.BACKEND_SET,
            "gpu-1",
            {"weight": 2000},
            "service chat, backend gpu-1",
            "weight: 2000 is out of range",
        ),
        (
            EditOp.BACKEND_SET,
            "gpu-1",
            {"wieght": 1},
            "service chat, backend gpu-1",
            "wieght: unknown key",
        ),
        (
            EditOp.BACKEND_SET,
            "gpu-1",
            {"address": "10.0.0.9"},
            "service chat, backend gpu-1",
            "address: cannot be set",
        ),
        (
            EditOp.BACKEND_SET,
            "gpu-1",
            {"port": 8000},
            "service chat, backend gpu-1",
            "port: cannot be set",
        ),
        (
            EditOp.BACKEND_SET,
            "gpu-1",
            {"quic_server_id": "01"},
            "service chat, backend gpu-1",
            "quic_server_id: means nothing for a tcp service",
        ),
        (
            EditOp.BACKEND_ADD,
            "gpu-9",
            {"address": "10.0.0.22"},
            "service chat, backend gpu-9",
            "address: another backend of this service has 10.0.0.22 (service chat, backend gpu-2)",
        ),
        (
            EditOp.SERVICE_SET,
            None,
            {"health": {"rise": 0}},
            "service chat",
            "health.rise: 0 is out of range",
        ),
        (EditOp.SERVICE_SET, None, {"backends": []}, "service chat", "backends: cannot be set"),
        (EditOp.SERVICE_SET, None, {"name": "x"}, "service chat", "name: cannot be set"),
        (EditOp.SERVICE_SET, None, {"vip": None}, "service chat", "vip: is missing"),
        (
            EditOp.SERVICES_APPLY,
            None,
            {"services": 3},
            "the change",
            "services: 3 is not a list",
        ),
        (EditOp.SERVICES_APPLY, None, {}, "the change", "services: is missing"),
        (
            EditOp.SERVICES_APPLY,
            None,
            {"services": [], "name": "x"},
            "the change",
            "name: cannot be applied at run time",
        ),
    ],
)
def test_an_edit_that_is_not_valid_names_the_service_and_key(
    op: EditOp, backend: str | None, values: dict[str, object], where: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        edit(op, "chat", backend, **values)
    assert (caught.value.where, caught.value.message) == (where, message)
    assert caught.value.remedy


def test_an_edit_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no service is named"):
        edit(EditOp.SERVICE_REMOVE)
    with pytest.raises(ConfigError, match="no backend is named"):
        edit(EditOp.BACKEND_REMOVE, "chat")


@pytest.mark.parametrize("op", EditOp)
@pytest.mark.parametrize("junk", [None, 1, "x", [], [None], {"a": {}}, {"name": []}])
@pytest.mark.parametrize("service", ["chat", "new"])
def test_junk_values_are_refused_not_crashed_on(op: EditOp, junk: object, service: str) -> None:
    for key in ("services", "backends", "health", "name", "vip", "weight", "defaults"):
        with contextlib.suppress(ConfigError):
            edit(op, service, "gpu-1", **{key: junk})


def test_the_command_of_a_check_is_taken_back() -> None:
    to = edit(EditOp.SERVICE_SET, "chat", health={"type": "exec", "command": "/bin/true"})
    assert named(to, "chat").health.command == ("/bin/true",)
    values: dict[str, object] = {"health": {"type": "none", "command": []}}
    back = apply_edit(to, Edit(EditOp.SERVICE_SET, "chat", None, values))
    assert named(back, "chat").health.command == ()
