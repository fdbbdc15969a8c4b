"""Decides which targets the EndpointSlices of a Service in Kubernetes name.

Slices are objects of discovery.k8s.io/v1 as the API server sends them in JSON. Their order, and
that of their endpoints, does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Never, cast

from agent.discovery.answer import (
    MOST_TARGETS,
    NAME,
    Answer,
    Findings,
    UnusableError,
    shown,
    usable_address,
    usable_port,
)
from agent.errors import DiscoveryError
from agent.model import Address, AdminState, Target

_FAMILIES = {"IPv4": 4, "IPv6": 6}
_PROTOCOLS = ("TCP", "UDP")
_NOUNS: dict[type, str] = {
    bool: "true or false",
    dict: "a mapping",
    int: "a whole number",
    list: "a list",
    str: "a string",
}
_MOST_NAMES = 20  # of ports, in one message


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint that serves: ``admin`` is ACTIVE, or DRAIN while its pod terminates."""

    address: str  # as the slice writes it
    admin: AdminState
    name: str | None = None  # of the pod, if it can be the name of a backend
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """The relevant part of an EndpointSlice; ``family`` 0: its addresses are not IP addresses.

    ``ports`` has the numbers of TCP and UDP ports by name; None: the endpoints have every port.
    """

    name: str
    family: int
    ports: Mapping[str, int | None]
    endpoints: tuple[Endpoint, ...]


class _MalformedError(Exception):
    """Says how an object differs from what the API promises."""


def from_slices(
    objects: Iterable[object], family: int, port_name: str | None, where: str
) -> Answer:
    """Return what the EndpointSlices of one Service name; see ``read_slice`` and ``merged``."""
    return merged([read_slice(each, where) for each in objects], family, port_name, where)


# -- one slice


def read_slice(data: object, where: str) -> Slice:
    """Return the relevant part of an EndpointSlice. Raises DiscoveryError if it is not one.

    Endpoints that do not serve are left out.
    """
    name = ""
    try:
        if not isinstance(data, dict):
            raise _MalformedError("it is not a mapping")
        name = _needed(_needed(data, "metadata", dict), "name", str)
        family = _FAMILIES.get(_needed(data, "addressType", str), 0)
        if not family:
            return Slice(name, 0, {}, ())
        ports, endpoints = _ports(data), tuple(_endpoints(data))
    except _MalformedError as error:
        raise DiscoveryError(
            f"the EndpointSlice {shown(name)} is not as the API promises: {error}",
            where=where,
            remedy="correct whatever writes it: kubectl get endpointslices -o yaml",
        ) from error
    return Slice(name, family, ports, endpoints)


def _ports(data: Mapping[str, object]) -> dict[str, int | None]:
    ports: dict[str, int | None] = {}
    for port in _mappings(data, "ports"):
        if (_optional(port, "protocol", str) or "TCP") not in _PROTOCOLS:
            continue
        name = _optional(port, "name", str) or ""
        if name in ports:
            raise _MalformedError(f"two ports have the name {shown(name)}")
        ports[name] = _optional(port, "port", int)
    return ports


def _endpoints(data: Mapping[str, object]) -> Iterator[Endpoint]:
    for endpoint in _mappings(data, "endpoints"):
        addresses = _needed(endpoint, "addresses", list)
        if not addresses or not isinstance(addresses[0], str):
            raise _MalformedError("an endpoint has no address")
        admin = _admin(_optional(endpoint, "conditions", dict) or {})
        name, zone = _pod(endpoint), _optional(endpoint, "zone", str)
        if admin is not None:
            # Further addresses have no meaning in discovery.k8s.io/v1.
            yield Endpoint(addresses[0], admin, name, _name((zone or "").lower()))


def _admin(conditions: Mapping[str, object]) -> AdminState | None:
    """Return the state of an endpoint, or None if it does not serve.

    Conditions may be missing. Then the API says that ``ready`` counts as true, ``serving`` as what
    ``ready`` is, and ``terminating`` as false.
    """
    ready = _optional(conditions, "ready", bool)
    serving = _optional(conditions, "serving", bool)
    terminating = _optional(conditions, "terminating", bool)
    if ready is None or ready:
        return AdminState.ACTIVE
    return AdminState.DRAIN if serving and terminating else None


def _pod(endpoint: Mapping[str, object]) -> str | None:
    reference = _optional(endpoint, "targetRef", dict) or {}
    kind, name = _optional(reference, "kind", str), _optional(reference, "name", str)
    return _name(name or "") if kind == "Pod" else None


def _name(text: str) -> str | None:
    return text if NAME.fullmatch(text) else None


def _mappings(data: Mapping[str, object], key: str) -> list[dict[str, object]]:
    found = _optional(data, key, list) or []
    if not all(isinstance(each, dict) for each in found):
        raise _MalformedError(f"its {key} are not mappings")
    return cast("list[dict[str, object]]", found)


def _needed[T](data: Mapping[str, object], key: str, kind: type[T]) -> T:
    value = _optional(data, key, kind)
    if value is None:
        raise _MalformedError(f"{key} is missing")
    return value


def _optional[T](data: Mapping[str, object], key: str, kind: type[T]) -> T | None:
    """Return a field; in Kubernetes null is the same as a missing field."""
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _MalformedError(f"{key} is not {_NOUNS[kind]}")
    return value


# -- all slices of a Service


def merged(slices: Iterable[Slice], family: int, port_name: str | None, where: str) -> Answer:
    """Return the targets of IP version ``family`` with the port ``port_name``, or the only port.

    An endpoint may be in several slices while the controller moves it; the better state is used.
    Raises DiscoveryError if the port is not clear, and if there are too many endpoints.
    """
    # A Service without endpoints has an empty slice without ports, which says nothing about ports.
    serving = [each for each in slices if each.family == family and each.endpoints]
    if sum(len(each.endpoints) for each in serving) > MOST_TARGETS:
        raise DiscoveryError(
            f"the Service has more than {MOST_TARGETS} endpoints",
            where=where,
            remedy="divide them among several Services",
        )
    port = _chosen(serving, port_name, where)
    findings = Findings(where)
    best: dict[tuple[Address, int | None], Target] = {}
    for each in serving:
        for endpoint in each.endpoints:
            try:
                target = _target(endpoint, each, port)
            except UnusableError as error:
                findings.refuse(endpoint.address, str(error))
                continue
            key = target.address, target.port
            best[key] = min(best.get(key, target), target, key=_preference)
    uses = Counter(target.name for target in best.values())
    for target in best.values():
        findings.keep(replace(target, name=None) if uses[target.name] > 1 else target)
    return findings.answer()


def _chosen(slices: Iterable[Slice], port_name: str | None, where: str) -> str | None:
    """Return the name of the port to use, or None if the endpoints have no ports at all."""
    slices = list(slices)
    names = sorted({name for each in slices for name in each.ports})
    if port_name is None:
        if len(names) > 1:
            _unclear(f"the endpoints have several ports: {_listed(names)}", where)
        return names[0] if names else None
    if slices and port_name not in names:
        known = f"the ports are {_listed(names)}" if names else "the endpoints have no ports"
        _unclear(f"no endpoint has a port with the name {port_name}; {known}", where)
    return port_name


def _listed(names: list[str]) -> str:
    words = [shown(name) if name else "one without a name" for name in names[:_MOST_NAMES]]
    return ", ".join(words) + (", …" if len(names) > _MOST_NAMES else "")


def _unclear(message: str, where: str) -> Never:
    raise DiscoveryError(message, where=where, remedy="set 'port_name' to the name of one of them")


def _target(endpoint: Endpoint, source: Slice, port: str | None) -> Target:
    if port is not None and port not in source.ports:
        raise UnusableError(f"its slice has no port {shown(port) if port else 'without a name'}")
    number = None if port is None else source.ports[port]
    try:
        address = (IPv4Address if source.family == 4 else IPv6Address)(endpoint.address)
    except ValueError as error:
        raise UnusableError(f"it is not an IPv{source.family} address") from error
    return Target(
        usable_address(address),
        None if number is None else usable_port(number),
        name=endpoint.name,
        admin=endpoint.admin,
        zone=endpoint.zone,
    )


def _preference(target: Target) -> tuple[bool, bool, str, str]:
    """Return a sort key: of two entries for one address, the better one has the lower key."""
    draining = target.admin is AdminState.DRAIN
    return (draining, target.name is None, target.name or "", target.zone or "")
