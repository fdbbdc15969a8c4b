"""Composes the configuration that runs from its layers: what operators wrote (the *base*), the
targets that sources have named, and what operators decided about those (``overrides``).

An operator's backend wins over a target with the same address and port. A target that the service
cannot have is left out, and does not keep the others out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from agent.config import rules
from agent.config.document import Path
from agent.config.edit import Edit, EditOp
from agent.config.load import build
from agent.config.load_fields import override_document
from agent.config.render import document
from agent.errors import ConflictError
from agent.model import (
    ANY_PORT,
    Address,
    AdminState,
    Backend,
    Config,
    Override,
    Service,
    Target,
)
from agent.state.sources import Placed, TargetKey

OVERRIDABLE = ("weight", "state")

type Document = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A target that is no backend of its service, and why."""

    target: Target
    why: str


@dataclass(frozen=True, slots=True)
class Composed:
    """What runs, and the targets that are left out, by service."""

    config: Config
    left_out: Mapping[str, tuple[LeftOut, ...]]


def compose(
    base: Config, found: Mapping[str, tuple[Placed, ...]], own: Collection[Address] = ()
) -> Composed:
    """Return what runs. ``own`` are addresses of this host, which no target can have.

    Services without targets are the same objects as in ``base``.
    """
    here = _Here(base, own)
    services, left_out = [], {}
    for service in base.services:
        placed = found.get(service.name, ()) if service.discover.is_on else ()
        if placed:
            made = _Made(service, here)
            for each in placed:
                made.take(each)
            left_out[service.name] = tuple(made.left_out)
            service = replace(service, backends=(*service.backends, *made.backends))
        services.append(service)
    return Composed(replace(base, services=tuple(services)), left_out)


def renamed(
    running: Config, base: Config, found: Mapping[str, tuple[Placed, ...]]
) -> Mapping[str, tuple[Placed, ...]]:
    """Return ``found`` by the names of ``base``: a service with another name keeps its targets."""
    names = {service.name for service in base.services}
    gone = {s.key: found[s.name] for s in running.services if s.name in found.keys() - names}
    new = {s.name: gone[s.key] for s in base.services if s.key in gone and s.name not in found}
    return {**found, **new}


def check(running: Config, composed: Config) -> None:
    """Raise ConfigError if targets break a rule between services, or do not fit the tables."""
    before = {service.name: service for service in running.services}
    news = [s for s in composed.services if before.get(s.name) is not s]
    if all(
        s.name in before and rules.only_within(before[s.name], s, composed)
        for s in news
        if any(backend.discovered for backend in s.backends)
    ):
        return
    whole = replace(composed, services=tuple(map(_as_written, composed.services)))
    build(document(whole), _Names(whole))


def _as_written(service: Service) -> Service:
    backends = tuple(replace(backend, discovered=False) for backend in service.backends)
    return replace(service, backends=backends)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names the service that an error is about."""

    config: Config

    def place(self, path: Path) -> tuple[str, str]:
        if len(path) < 2 or path[0] != "services" or not isinstance(path[1], int):
            return "the discovered backends", ".".join(map(str, path))
        service = self.config.services[path[1]]
        if len(path) < 4 or not isinstance(path[3], int):
            return f"service {service.name}", ".".join(map(str, path[2:]))
        name = service.backends[path[3]].name
        return f"service {service.name}, backend {name}", ".".join(map(str, path[4:]))


class _Here:
    """What no target can be, and the zones that it can be in."""

    def __init__(self, base: Config, own: Collection[Address]) -> None:
        keys = [service.key for service in base.services]
        self._vips = {key.vip for key in keys if key.vip_bits is None}
        self._prefixes = [key for key in keys if key.vip_bits is not None]
        vips = (vip for instance in base.failover.instances for vip in instance.vips)
        self.ours = {*own, *vips, base.tunnel_source_v4, base.tunnel_source_v6}
        self.ours.update(base.nat.sources_v4, base.nat.sources_v6)
        self.zones = {zone.name for zone in base.zones}

    def is_vip(self, address: Address) -> bool:
        """Return whether a service has the address."""
        return address in self._vips or any(key.holds(address) for key in self._prefixes)


class _Made:
    """The backends of one service that are made from targets."""

    def __init__(self, service: Service, here: _Here) -> None:
        self.backends: list[Backend] = []
        self.left_out: list[LeftOut] = []
        self._service, self._here = service, here
        self._overrides = {self._place(o.address, o.port): o for o in service.overrides}
        self._names = {backend.name for backend in service.backends}
        self._places = {self._place(b.address, b.port): "file" for b in service.backends}

    def _place(self, address: Address, port: int | None) -> TargetKey:
        """Return where packets for an address and port arrive, as far as the service decides it."""
        return _place(self._service, address, port)

    def take(self, placed: Placed) -> None:
        target = placed.target
        why = self._objection(target)
        if why:
            self.left_out.append(LeftOut(target, why))
            return
        place = self._place(target.address, target.port)
        override = self._overrides.get(place, Override(target.address))
        admin = override.admin or target.admin
        if placed.left is not None and admin is AdminState.ACTIVE:
            admin = AdminState.DRAIN
        backend = Backend(
            name_of(target),
            target.address,
            target.weight if override.weight is None else override.weight,
            admin,
            target.port if self._service.forward.is_nat else None,
            target.backup,
            None,
            target.priority,
            target.zone if target.zone in self._here.zones else None,
            discovered=True,
        )
        self._names.add(backend.name)
        self._places[place] = "source"
        self.backends.append(backend)

    def _objection(self, target: Target) -> str:
        """Return why a target is no backend of the service; empty: it is one."""
        service, address = self._service, target.address
        key = service.key
        if not service.forward.is_tunnel and address.version != key.vip.version:
            return f"it is not of the VIP's family, IPv{key.vip.version}"
        if self._here.is_vip(address):
            return "its address is a VIP"
        if address in self._here.ours:
            return "its address is one of this balancer"
        single = _single_port(service)
        if not service.forward.is_nat and single and target.port not in (None, single):
            return f"its port is {target.port}, and {service.forward.value} changes no port"
        holder = self._places.get(self._place(address, target.port))
        if holder == "file":
            return "a backend of the configuration has its address and port"
        if holder is not None:
            return "another target has its address and port"
        if name_of(target) in self._names:
            return f"another backend is called {name_of(target)}"
        return ""


def _place(service: Service, address: Address, port: int | None) -> TargetKey:
    single = _single_port(service)
    return address, single if port is None or not service.forward.is_nat else port


def _single_port(service: Service) -> int | None:
    """Return the port of a service that has only one."""
    key = service.key
    return key.port if key.port != ANY_PORT and key.port_last is None else None


def name_of(target: Target) -> str:
    """Return the name of the backend that a target becomes."""
    if target.name is not None:
        return target.name
    address = str(target.address).replace(":", "-")
    port = "" if target.port is None else f"-{target.port}"
    # A name begins with a letter or a digit.
    return f"ip{address}{port}" if address.startswith("-") else f"{address}{port}"


def override_of(service: Service, address: Address, port: int | None) -> Override | None:
    """Return what an operator decided about a discovered backend or a target, if anything."""
    place = _place(service, address, port)
    return next((o for o in service.overrides if _place(service, o.address, o.port) == place), None)


def written(
    running: Config, edits: Iterable[Edit], found: Mapping[str, tuple[Placed, ...]]
) -> Iterator[Edit]:
    """Yield edits of the base that do what ``edits`` do to what runs.

    What is decided about a discovered backend becomes an override of its service, or ends one if it
    is what its source says. Raises ConflictError for what only its source can change.
    """
    decided: dict[str, list[Document]] = {}
    for edit in edits:
        named = _discovered(running, edit)
        if named is None:
            yield edit
            continue
        service, backend = named
        _refuse_what_the_source_decides(edit)
        before = decided.get(service.name, [override_document(o) for o in service.overrides])
        values = _other_than(edit.values, found.get(service.name, ()), backend)
        after = decided[service.name] = _with(before, service, backend, values)
        yield Edit(EditOp.SERVICE_SET, service.name, values={"overrides": after})


def _discovered(running: Config, edit: Edit) -> tuple[Service, Backend] | None:
    """Return the discovered backend that an edit names, if it is one, and its service."""
    if edit.op not in (EditOp.BACKEND_SET, EditOp.BACKEND_REMOVE):
        return None
    service = next((s for s in running.services if s.name == edit.service), None)
    if service is None:
        return None
    named = (b for b in service.backends if b.discovered and b.name == edit.backend)
    return next(((service, backend) for backend in named), None)


def _refuse_what_the_source_decides(edit: Edit) -> None:
    where = f"service {edit.service}, backend {edit.backend}"
    remedy = "change it at its source; to take it out of service, drain it"
    if edit.op is not EditOp.BACKEND_SET:
        raise ConflictError("its source names it", where=where, remedy=remedy)
    for key in edit.values:
        if key not in OVERRIDABLE:
            raise ConflictError(f"{key}: its source decides that", where=where, remedy=remedy)


def with_override(service: Service, backend: Backend, values: Document) -> list[Document]:
    """Return a service's overrides with these values for a backend; None: as its source says."""
    return _with([override_document(o) for o in service.overrides], service, backend, values)


def _other_than(values: Document, placed: tuple[Placed, ...], backend: Backend) -> Document:
    """Return the values with None for those that the backend's source says, too."""
    target = next((each.target for each in placed if name_of(each.target) == backend.name), None)
    said = {} if target is None else {"weight": target.weight, "state": target.admin.value}
    return {key: None if said.get(key) == value else value for key, value in values.items()}


def _with(
    overrides: list[Document], service: Service, backend: Backend, values: Document
) -> list[Document]:
    """Return ``overrides`` with these values for a backend; None: as its source says.

    The values may be wrong: the edit with the result is checked like any other.
    """
    mine: dict[str, object] = {"address": str(backend.address)}
    if backend.port is not None:
        mine["port"] = backend.port
    others = []
    for each in overrides:
        port = each.get("port")
        at = ip_address(str(each["address"])), port if isinstance(port, int) else None
        if _place(service, *at) == _place(service, backend.address, backend.port):
            mine = dict(each)
        else:
            others.append(each)
    given = {key: value for key, value in (mine | dict(values)).items() if value is not None}
    return others if given.keys().isdisjoint(OVERRIDABLE) else [*others, given]
