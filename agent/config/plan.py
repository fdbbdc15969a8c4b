"""Decides which changes lead from one configuration to another, and what each does to traffic.

Services and backends are identified by name. Their order means nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from agent.config import effects
from agent.config.redact import SECRETS
from agent.config.render import (
    backend_fields,
    global_fields,
    service_document,
    service_fields,
)
from agent.model import Backend, BackendRef, Config, Service

# The global settings that the agent can change while it runs. All others are compiled in, or are a
# path or table by which other processes find this agent.
LIVE_FIELDS = frozenset(
    {
        "api.listen",
        "api.certificate",
        "api.key_file",
        "api.client_ca",
        "api.crl_file",
        "api.user",
        "api.roles",
        "audit_log.required",
        "script_user",
        "socket_roles.viewer",
        "socket_roles.operator",
        "socket_roles.admin",
        "companion.key_file",
        "companion.port",
        "manage_vips",
        "metrics_backends",
        "hash_seed",
        "tunnel_source.ipv4",
        "tunnel_source.ipv6",
        "nat.sources_ipv4",
        "nat.sources_ipv6",
        "zones",
        "lists",
        "suricata.eve",
        "suricata.block_severity",
        "suricata.block_signatures",
        "suricata.log_signatures",
        "suricata.block_for",
        "suricata.most_blocked",
        "suricata.proxies",
        "failover",
    }
)

# The settings that the pinned tables are made for: other values need other tables.
TABLE_FIELDS = frozenset(
    {
        "tables.flows",
        "tables.services",
        "tables.backends",
        "tables.ring_slots",
        "tables.zone_rings",
        "tables.nat_blocks",
        "tables.guard_nodes",
        "nat.ports",
    }
)


class Action(enum.Enum):
    """What a change does with a service or backend."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class Kind(enum.Enum):
    """What a change is about."""

    SERVICE = "service"
    BACKEND = "backend"
    SETTINGS = "settings"  # global settings


@dataclass(frozen=True, slots=True)
class FieldChange:
    """The change of one value, as documents hold it; None is "not set"."""

    field: str
    old: object
    new: object
    needs_restart: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One service or backend that is added, changed or removed, or a change of global settings."""

    action: Action
    kind: Kind
    service: str
    backend: str | None
    fields: tuple[FieldChange, ...]
    effect: str

    def __str__(self) -> str:
        """Return the change on one line, for logs and for the running configuration."""
        name = f"{self.service}/{self.backend}" if self.backend else self.service
        fields = ", ".join(_field_text(self.action, field) for field in self.fields)
        head = f"{self.action.value} {self.kind.value} {name}".rstrip()
        return f"{head}: {fields}" if fields and self.action is not Action.REMOVE else head


def changed(old: Config, new: Config) -> frozenset[str] | None:
    """Return the names of the services that are only in one of the two, or differ.

    None means that a global setting changed, which may affect all services.
    """
    if old is new:
        return frozenset()
    if replace(old, services=()) != replace(new, services=()):
        return None
    before = {service.name: service for service in old.services}
    after = {service.name: service for service in new.services}
    return frozenset(
        name
        for name in before.keys() | after.keys()
        if (one := before.get(name)) is not (other := after.get(name)) and one != other
    )


def added_and_removed(old: Config, new: Config) -> tuple[list[Service], list[Service]]:
    """Return the services that only ``new`` has, and those that only ``old`` has, compared as
    objects.
    """
    before, after = {id(service) for service in old.services}, {id(s) for s in new.services}
    return (
        [service for service in new.services if id(service) not in before],
        [service for service in old.services if id(service) not in after],
    )


def gone_backends(old: Config, new: Config) -> set[BackendRef]:
    """Return the backends that only ``old`` has, by name."""
    come, gone = (
        {BackendRef(service.name, b.name) for service in services for b in service.backends}
        for services in added_and_removed(old, new)
    )
    return gone - come


def part_of(config: Config, names: frozenset[str]) -> Config:
    """Return the configuration with only these services."""
    return replace(config, services=tuple(s for s in config.services if s.name in names))


def keeping(old: Config, new: Config) -> Config:
    """Return ``new``, with the same objects as in ``old`` for services that have not changed.

    Other modules compare the objects to see which services have changed.
    """
    before = {service.name: service for service in old.services}
    services = (before.get(s.name, s) for s in new.services)
    pairs = zip(services, new.services, strict=True)
    return replace(new, services=tuple(was if was == now else now for was, now in pairs))


def plan(old: Config, new: Config) -> tuple[Change, ...]:
    """Return the changes of services and backends that lead from ``old`` to ``new``."""
    return tuple(_services(old, new))


class Planner:
    """Makes plans, and remembers the changes between the same two objects of a service."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Service, Service, tuple[Change, ...]]] = {}

    def plan(self, old: Config, new: Config) -> tuple[Change, ...]:
        """Return the same as the function ``plan``."""
        return tuple(_services(old, new, self._between))

    def _between(self, old: Service, new: Service) -> tuple[Change, ...]:
        held = self._known.get(old.name)
        if held is None or held[0] is not old or held[1] is not new:
            held = self._known[old.name] = old, new, tuple(_service_changes(old, new))
        return held[2]


def global_changes(old: Config, new: Config) -> tuple[FieldChange, ...]:
    """Return the changes of the global settings."""
    return tuple(
        FieldChange(change.field, change.old, change.new, change.field not in LIVE_FIELDS)
        for change in _differences(global_fields(old), global_fields(new))
    )


def settings_change(fields: tuple[FieldChange, ...]) -> tuple[Change, ...]:
    """Return global changes as one change of a plan, or an empty tuple if there are none.

    Only simple values and the groups of roles are shown. Others are only named, because they can
    be long or hold a secret.
    """
    if not fields:
        return ()
    shown = tuple(f for f in fields if _is_shown(f))
    others = ", ".join(f.field for f in fields if f not in shown)
    effect = f"taken over while it runs: {others}" if others else "taken over while it runs"
    return (Change(Action.CHANGE, Kind.SETTINGS, "", None, shown, effect),)


def _is_shown(change: FieldChange) -> bool:
    if change.field in SECRETS:
        return False
    is_simple = not any(isinstance(each, dict | list | tuple) for each in (change.old, change.new))
    return is_simple or change.field == "api.roles" or change.field.startswith("socket_roles.")


def _services(
    old: Config,
    new: Config,
    between: Callable[[Service, Service], Iterable[Change]] | None = None,
) -> Iterator[Change]:
    between = between or _service_changes
    before = {service.name: service for service in old.services}
    after = {service.name: service for service in new.services}
    gone = {s.key: s.name for s in old.services if s.name not in after}
    come = {s.key: s.name for s in new.services if s.name not in before}
    for service in old.services:
        if after.get(service.name) is service:
            continue
        if service.name in after:
            yield from between(service, after[service.name])
        else:
            yield Change(
                Action.REMOVE,
                Kind.SERVICE,
                service.name,
                None,
                _removed_fields(_set_fields(service)),
                effects.service_removed(service, come.get(service.key)),
            )
    for service in new.services:
        if service.name not in before:
            yield Change(
                Action.ADD,
                Kind.SERVICE,
                service.name,
                None,
                _added_fields(_set_fields(service)),
                effects.service_added(service, gone.get(service.key)),
            )
            traffic = effects.traffic(service)
            for backend in service.backends:
                yield _backend_added(traffic, backend, None)


def _service_changes(old: Service, new: Service) -> Iterator[Change]:
    fields = _differences(service_fields(old), service_fields(new))
    if fields:
        effect = effects.service_changed(old, new)
        yield Change(Action.CHANGE, Kind.SERVICE, new.name, None, fields, effect)
    if old.backends != new.backends:
        yield from _backend_changes(effects.traffic(old), effects.traffic(new))


def _backend_changes(old: effects.Traffic, new: effects.Traffic) -> Iterator[Change]:
    service = new.service.name
    before = {backend.name: backend for backend in old.service.backends}
    after = {backend.name: backend for backend in new.service.backends}
    gone = {(b.address, b.port): b.name for b in before.values() if b.name not in after}
    come = {(b.address, b.port): b.name for b in after.values() if b.name not in before}
    for name, backend in before.items():
        if name not in after:
            fields = _removed_fields(_set_backend_fields(backend))
            renamed_to = come.get((backend.address, backend.port))
            effect = effects.backend_removed(old, new, backend, renamed_to)
            yield Change(Action.REMOVE, Kind.BACKEND, service, name, fields, effect)
        elif backend != after[name]:
            fields = _differences(backend_fields(backend), backend_fields(after[name]))
            effect = effects.backend_changed(old, new, backend, after[name])
            yield Change(Action.CHANGE, Kind.BACKEND, service, name, fields, effect)
    for name, backend in after.items():
        if name not in before:
            yield _backend_added(new, backend, gone.get((backend.address, backend.port)))


def _backend_added(traffic: effects.Traffic, backend: Backend, renamed_from: str | None) -> Change:
    return Change(
        Action.ADD,
        Kind.BACKEND,
        traffic.service.name,
        backend.name,
        _added_fields(_set_backend_fields(backend)),
        effects.backend_added(traffic, backend, renamed_from),
    )


def _set_fields(service: Service) -> dict[str, object]:
    """Return the fields that are not at their default: a new service is shown with what it sets."""
    set_here = _flat(service_document(service))
    return {key: value for key, value in service_fields(service).items() if key in set_here}


def _set_backend_fields(backend: Backend) -> dict[str, object]:
    """Return a backend's address, weight and state, and its other fields that are not at their
    default.
    """
    fields, default = backend_fields(backend), backend_fields(Backend("any", backend.address))
    always = {"address", "weight", "state"}
    return {key: value for key, value in fields.items() if key in always or value != default[key]}


def _flat(document: dict[str, object]) -> set[str]:
    return {
        f"{key}.{inner}" if inner else key
        for key, value in document.items()
        for inner in (value if isinstance(value, dict) else ("",))
    }


def _differences(old: dict[str, object], new: dict[str, object]) -> tuple[FieldChange, ...]:
    return tuple(
        FieldChange(key, old[key], new[key]) for key in old if not _same(old[key], new[key])
    )


# The types must match too: in Python, True == 1.
def _same(old: object, new: object) -> bool:
    return type(old) is type(new) and old == new


def _added_fields(fields: dict[str, object]) -> tuple[FieldChange, ...]:
    return tuple(FieldChange(key, None, value) for key, value in fields.items())


def _removed_fields(fields: dict[str, object]) -> tuple[FieldChange, ...]:
    return tuple(FieldChange(key, value, None) for key, value in fields.items())


def _field_text(action: Action, field: FieldChange) -> str:
    if action is Action.CHANGE:
        return f"{field.field} {_text(field.old)} → {_text(field.new)}"
    return f"{field.field} {_text(field.new)}"


def _text(value: object) -> str:
    if value and isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return "[" + ", ".join(" ".join(map(str, each.values())) for each in value) + "]"
    if value and isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return "(default)" if value is None else str(value)
