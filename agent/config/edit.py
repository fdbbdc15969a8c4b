"""Applies an operator's change to a configuration, without side effects.

The change is made to the document, and the whole document is loaded again, so the API accepts
exactly what the file may hold. In ``values``, null resets a key to its default.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.config import document as doc
from agent.config import rules
from agent.config.kinds import suggestion
from agent.config.load import build, merge
from agent.config.plan import keeping
from agent.config.render import document, service_document
from agent.errors import ConfigError, ConflictError, NotFoundError, SteelyardError
from agent.model import Config, Service

type Mapped = dict[str, object]
type Document = Mapping[str, object]


class EditOp(enum.Enum):
    """What can be done to a running configuration."""

    SERVICE_ADD = "service.add"
    SERVICE_SET = "service.set"
    SERVICE_REMOVE = "service.remove"
    BACKEND_ADD = "backend.add"
    BACKEND_SET = "backend.set"
    BACKEND_REMOVE = "backend.remove"
    SERVICES_APPLY = "services.apply"


@dataclass(frozen=True, slots=True)
class Edit:
    """One change. ``values`` are keys of the service or backend, written as in the file."""

    op: EditOp
    service: str | None = None
    backend: str | None = None
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Names the service and backend that an edit concerns, because there is no file to point at."""

    data: Mapped

    def place(self, path: doc.Path) -> tuple[str, str]:
        names = []
        here: object = self.data
        for depth, part in enumerate(path):
            here = _child(here, part)
            if isinstance(part, int):
                kind = str(path[depth - 1]).removesuffix("s")
                name = here.get("name") if isinstance(here, dict) else None
                names.append(f"{kind} {name or f'number {part + 1}'}")
        last = max((n for n, part in enumerate(path) if isinstance(part, int)), default=-1)
        return ", ".join(names) or "the change", doc.dotted(path[last + 1 :])


def _child(data: object, part: str | int) -> object:
    if isinstance(data, dict):
        return data.get(part)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def apply_edit(config: Config, edit: Edit) -> Config:
    """Return the configuration after ``edit``. Services that it does not touch stay the same
    objects.

    Raises NotFoundError, ConflictError or ConfigError, each with a remedy.
    """
    quick = _edit_one(config, edit)
    if quick is not None:
        return quick
    data = document(config)
    _OPERATIONS[edit.op](data, edit)
    return keeping(config, build(data, _Place(data)))


def apply_edits(config: Config, edits: Sequence[Edit]) -> Config:
    """Return the configuration after all edits, in this order. Raises what ``apply_edit``
    raises.
    """
    for edit in edits:
        config = apply_edit(config, edit)
    return config


def with_services(
    config: Config, before: Mapping[str, Document], after: Mapping[str, Document]
) -> Config:
    """Return the configuration with the services ``after``, as ``service_document`` writes them.

    ``before`` are those that ``config`` was made from: a service whose document stays the same is
    the same object afterwards. Raises ConfigError if they are not valid together, or with the rest.
    """
    quick = _services_quickly(config, before, after)
    if quick is not None:
        return config if quick == config.services else replace(config, services=quick)
    data = document(replace(config, services=()))
    data["services"] = [copy.deepcopy(dict(each)) for each in after.values()]
    return keeping(config, build(data, _Place(data)))


def _services_quickly(
    config: Config, before: Mapping[str, Document], after: Mapping[str, Document]
) -> tuple[Service, ...] | None:
    """Return the services ``after``, or None if they must be checked together."""
    held = {each.name: each for each in config.services}
    base = document(replace(config, services=()))
    for name in after:
        old = held.get(name)
        if old is None:
            return None
        if before.get(name) == after[name]:
            continue
        data: Mapped = {**base, "services": [copy.deepcopy(dict(after[name]))]}
        try:
            (held[name],) = build(data, _Place(data)).services
        except SteelyardError:
            return None
        if not rules.only_within(old, held[name], replace(config, services=tuple(held.values()))):
            return None
    return tuple(held[name] for name in after)


def rollback_edit(config: Config, old: Config, service: str | None) -> Edit:
    """Return the edit that restores the services of ``old``, or only ``service`` if one is named.

    A named service is put back, or removed if ``old`` does not have it. Raises NotFoundError if
    neither configuration has it.
    """
    wanted = [service_document(each) for each in old.services]
    if service is not None:
        running = {each.name: service_document(each) for each in config.services}
        was = {str(each["name"]): each for each in wanted}
        if service not in was | running:
            hint = suggestion(service, [*was, *running])
            raise NotFoundError(
                f"there is no service {service}, neither now nor in that version",
                where=f"service {service}",
                remedy=f"{hint}`lbctl service list` shows the existing ones",
            )
        running.pop(service, None)
        place = [each.name for each in config.services]
        after = running | ({service: was[service]} if service in was else {})
        order = sorted(after, key=lambda name: place.index(name) if name in place else len(place))
        wanted = [after[name] for name in order]
    return Edit(EditOp.SERVICES_APPLY, values={"services": wanted})


_OF_ONE = frozenset(
    {EditOp.SERVICE_SET, EditOp.BACKEND_ADD, EditOp.BACKEND_SET, EditOp.BACKEND_REMOVE}
)


def _edit_one(config: Config, edit: Edit) -> Config | None:
    """Return the configuration after an edit that concerns one service alone, or None.

    This is a shortcut for ``apply_edit``. None means that the edit must be checked together with
    all other services, or is refused; the full check then makes the error.
    """
    number = next((n for n, s in enumerate(config.services) if s.name == edit.service), None)
    if edit.op not in _OF_ONE or number is None:
        return None
    data = document(replace(config, services=(config.services[number],)))
    try:
        _OPERATIONS[edit.op](data, edit)
        (after,) = build(data, _Place(data)).services
    except SteelyardError:
        return None
    services = (*config.services[:number], after, *config.services[number + 1 :])
    new = replace(config, services=services)
    return new if rules.only_within(config.services[number], after, new) else None


def _add_service(data: Mapped, edit: Edit) -> None:
    values = _copied(edit)
    name = edit.service or values.get("name")
    services = _list(data, "services")
    if any(service["name"] == name for service in services):
        raise ConflictError(
            f"service {name} exists already",
            where=f"service {name}",
            remedy="change it (service set), or give the new one another name",
        )
    services.append({"name": name} | values | {"name": name})


def _set_service(data: Mapped, edit: Edit) -> None:
    service = _service(data, edit)
    values = _copied(edit)
    for key, remedy in (
        ("name", "remove the service and add one with the new name"),
        ("backends", "change them one by one (backend set), or apply a whole document"),
    ):
        if key in values:
            raise ConfigError(f"{key}: cannot be set", where=_where(edit), remedy=remedy)
    merged = merge(service, values)
    service.clear()
    service.update(merged)


def _remove_service(data: Mapped, edit: Edit) -> None:
    _list(data, "services").remove(_service(data, edit))


def _add_backend(data: Mapped, edit: Edit) -> None:
    service = _service(data, edit)
    values = _copied(edit)
    name = edit.backend or values.get("name")
    backends = _list(service, "backends")
    if any(backend["name"] == name for backend in backends):
        raise ConflictError(
            f"backend {name} exists already",
            where=f"service {edit.service}, backend {name}",
            remedy="change it (backend set), or give the new one another name",
        )
    backends.append({"name": name} | values | {"name": name})


def _set_backend(data: Mapped, edit: Edit) -> None:
    backend = _backend(data, edit)
    for key in edit.values:
        if key in ("name", "address", "port"):
            raise ConfigError(
                f"{key}: cannot be set",
                where=_where(edit),
                remedy="add another backend, drain this one, and remove it when it is idle",
            )
    backend.update(_copied(edit))


def _remove_backend(data: Mapped, edit: Edit) -> None:
    _list(_service(data, edit), "backends").remove(_backend(data, edit))


def _apply_services(data: Mapped, edit: Edit) -> None:
    values = _copied(edit)
    unknown = sorted(set(values) - {"services", "defaults"})
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: cannot be applied at run time",
            where="the change",
            remedy="leave it out; everything but services is changed in the agent's file",
        )
    if "services" not in values:
        raise ConfigError(
            "services: is missing",
            where="the change",
            remedy="give the list of services; an empty list removes them all",
        )
    data.update(values)


_OPERATIONS: dict[EditOp, Callable[[Mapped, Edit], None]] = {
    EditOp.SERVICE_ADD: _add_service,
    EditOp.SERVICE_SET: _set_service,
    EditOp.SERVICE_REMOVE: _remove_service,
    EditOp.BACKEND_ADD: _add_backend,
    EditOp.BACKEND_SET: _set_backend,
    EditOp.BACKEND_REMOVE: _remove_backend,
    EditOp.SERVICES_APPLY: _apply_services,
}


def _copied(edit: Edit) -> Mapped:
    return copy.deepcopy(dict(edit.values))


def _list(parent: Mapped, key: str) -> list[Mapped]:
    value = parent[key]
    assert isinstance(value, list)  # noqa: S101 (the documents that we render have both lists)
    return value


def _service(data: Mapped, edit: Edit) -> Mapped:
    return _named(_list(data, "services"), "service", edit.service, "lbctl service list")


def _backend(data: Mapped, edit: Edit) -> Mapped:
    backends = _list(_service(data, edit), "backends")
    return _named(backends, "backend", edit.backend, f"lbctl backend list {edit.service}")


def _named(items: list[Mapped], kind: str, name: str | None, command: str) -> Mapped:
    for item in items:
        if item["name"] == name:
            return item
    if name is None:
        raise ConfigError(f"no {kind} is named", where="the change", remedy=f"name the {kind}")
    hint = suggestion(name, [str(item["name"]) for item in items])
    raise NotFoundError(
        f"there is no {kind} {name}",
        where=f"{kind} {name}",
        remedy=f"{hint}`{command}` shows the existing ones",
    )


def _where(edit: Edit) -> str:
    service = f"service {edit.service}"
    return f"{service}, backend {edit.backend}" if edit.backend else service
