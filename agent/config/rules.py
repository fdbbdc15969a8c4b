"""Decides the rules that span several values: duplicates, families, checks, table sizes."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config import (
    api_schema,
    failover_rules,
    fleet_schema,
    load_rules,
    nat_rules,
    page_rules,
    suricata_schema,
    vip_rules,
)
from agent.config.candidate import Candidate, Where
from agent.config.defaults import (
    CHECK_KEYS,
    PROTOCOL_KEYS,
    SCHEDULER_KEYS,
    default_check_kind,
)
from agent.config.document import Path, Problem
from agent.config.schema import GlobalSection
from agent.config.service_schema import BackendSection, ServiceSection
from agent.model import (
    ANY_PORT,
    Address,
    CheckKind,
    Config,
    Forward,
    Protocol,
    Service,
    SynProtection,
)


def check(
    services: list[Candidate], globals_: GlobalSection | None, where: Where
) -> Iterator[Problem]:
    """Yield every problem between values that are valid by themselves."""
    yield from _names(services, where)
    yield from vip_rules.check(services, where)
    vips = vip_rules.VipIndex(services)
    yield from vip_rules.not_vips(services, globals_, vips, where)
    for service in services:
        yield from _backends(service, where)
        if service.section is not None:
            yield from _settings(service, service.section)
            yield from _overrides(service, service.section)
            yield from _families(service, service.section)
            yield from _prefix_bits(service, service.section)
            yield from _quic(service, service.section, where)
            yield from _cookies(service, service.section, globals_)
            yield from _health(service, service.section)
    yield from nat_rules.check(services, where)
    yield from load_rules.check(services, globals_)
    if globals_ is not None:
        yield from _interfaces(globals_)
        yield from _socket(globals_)
        yield from page_rules.check(globals_.status_page, globals_.metrics)
        others = {"metrics": globals_.metrics, "status_page": globals_.status_page.listen}
        yield from api_schema.check(globals_.api, others)
        yield from fleet_schema.check(globals_.fleet)
        yield from suricata_schema.check(globals_.suricata)
        yield from failover_rules.check(services, globals_, where)
        yield from _capacity(services, globals_)


def only_within(before: Service, after: Service, config: Config) -> bool:
    """Return whether a changed service, valid by itself, certainly fits the other services, too.

    False means that only ``check``, which takes longer, can find out.
    """
    if (before.key, before.forward) != (after.key, after.forward):
        return False
    known = {(backend.address, backend.port) for backend in before.backends}
    came = {b.address for b in after.backends if (b.address, b.port) not in known}
    zones = {b.zone for b in after.backends} - {b.zone for b in before.backends}
    if zones or (came and after.forward is Forward.NAT):
        return False
    vips = {vip for instance in config.failover.instances for vip in instance.vips}
    if came & vips or any(s.key.holds(address) for address in came for s in config.services):
        return False
    size = config.tables
    backends = sum(len(service.backends) for service in config.services)
    return backends < size.backends and len(after.backends) <= size.ring_slots


def _names(services: list[Candidate], where: Where) -> Iterator[Problem]:
    names: dict[str, Path] = {}
    for service in services:
        if service.name is not None:
            first = names.setdefault(service.name, service.path)
            if first != service.path:
                yield Problem(
                    (*service.path, "name"),
                    f"another service is called {service.name!r} ({where((*first, 'name'))})",
                    "give it another name",
                )


def _backends(service: Candidate, where: Where) -> Iterator[Problem]:
    names: dict[str, Path] = {}
    servers: dict[tuple[Address, int | None], Path] = {}
    for index, backend in service.backends:
        path = service.backend_path(index)
        first = names.setdefault(backend.name, path)
        if first != path:
            yield Problem(
                (*path, "name"),
                f"another backend of this service is called {backend.name!r} "
                f"({where((*first, 'name'))})",
                "give it another name",
            )
        first = servers.setdefault((backend.address, _own_port(service, backend)), path)
        if first != path:
            port = "" if backend.port is None else f" port {backend.port}"
            yield Problem(
                (*path, "address"),
                f"another backend of this service has {backend.address}{port} "
                f"({where((*first, 'address'))})",
                "remove one of the two; to give it a larger share of the flows, raise its weight",
            )


# If the service has a single port, a backend without a port has that one.
def _own_port(service: Candidate, backend: BackendSection) -> int | None:
    if backend.port is not None or service.key is None or service.key.port_last is not None:
        return backend.port
    return service.key.port


def _settings(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    given = section.model_fields_set
    for key, scheduler in SCHEDULER_KEYS.items():
        if key in given and section.scheduler is not scheduler:
            yield Problem(
                (*service.path, key),
                f"means nothing for scheduler {section.scheduler.value}",
                f"set scheduler to {scheduler.value}, or remove it",
            )
    for key, protocol in PROTOCOL_KEYS.items():
        if key in given and section.protocol is not protocol:
            yield Problem(
                (*service.path, key),
                f"means nothing for a {section.protocol.value} service",
                f"remove it: it is for {protocol.value} only",
            )


def _overrides(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    seen: set[tuple[Address, int | None]] = set()
    for index, override in enumerate(section.overrides):
        server = override.address, override.port
        if server in seen:
            port = "" if override.port is None else f" port {override.port}"
            yield Problem(
                (*service.path, "overrides", index),
                f"another override is for {override.address}{port}",
                "write both settings into one",
            )
        seen.add(server)


def _families(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.forward.is_tunnel:
        return
    for index, backend in service.backends:
        if backend.address.version != section.vip.version:
            yield Problem(
                (*service.backend_path(index), "address"),
                f"{backend.address} is not of the VIP's family, IPv{section.vip.version}",
                f"give it an IPv{section.vip.version} address, or set forward to ipip or gue",
            )


def _prefix_bits(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    for place, bits in (
        (("source_prefix",), section.source_prefix),
        (("affinity", "prefix"), section.affinity.prefix),
    ):
        if bits is not None and section.vip.version == 4 and bits > 32:
            yield Problem(
                (*service.path, *place),
                f"clients of an IPv4 VIP have addresses of 32 bits, not {bits}",
                "give a number from 1 to 32",
            )


def _cookies(
    service: Candidate, section: ServiceSection, globals_: GlobalSection | None
) -> Iterator[Problem]:
    if not section.syn_cookies or section.protocol is not Protocol.TCP:
        return
    path = (*service.path, "syn_cookies")
    if section.forward.is_nat:
        yield Problem(
            path,
            f"a server of {section.forward.value} cannot accept them: its connections have other "
            "addresses than the client's",
            "remove it, and clients are challenged instead; or set forward to dsr, ipip or gue",
        )
    elif section.syn_protection is SynProtection.OFF:
        yield Problem(
            path, "means nothing without syn_protection", "set syn_protection to auto or always"
        )
    elif service.key is not None and service.key.vip_bits is not None:
        yield Problem(
            path,
            "means nothing for a VIP that is a prefix: companions only know single addresses",
            "set it to false, and clients are challenged instead",
        )
    elif globals_ is not None and globals_.companion.key_file is None:
        yield Problem(
            path,
            "needs a key that balancers and servers share",
            "set companion.key_file; docs/backends.md says how the key is made",
        )


def _quic(service: Candidate, section: ServiceSection, where: Where) -> Iterator[Problem]:
    wanted = section.quic_server_id_bytes
    known: dict[bytes, Path] = {}
    for index, backend in service.backends:
        path = (*service.backend_path(index), "quic_server_id")
        given = backend.quic_server_id
        if given is None:
            if wanted is not None:
                yield Problem(
                    path,
                    "is missing: quic_server_id_bytes of the service is set",
                    f"give the {wanted} bytes that this server puts into its connection ids, in "
                    f'hexadecimal, such as "{"c0ffee0123456789"[: 2 * wanted]}"',
                )
            continue
        if section.protocol is not Protocol.UDP:
            yield Problem(path, "means nothing for a tcp service", "remove it: it is for udp only")
        if wanted is not None and len(given) != wanted:
            yield Problem(
                path,
                f"{given.hex()} has {len(given)} bytes, and quic_server_id_bytes is {wanted}",
                f"give {2 * wanted} hexadecimal digits",
            )
        first = known.setdefault(given, path)
        if first != path:
            yield Problem(
                path,
                f"{given.hex()} already belongs to another backend ({where(first)})",
                "give each server an id of its own",
            )


def _health(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    health = section.health
    path = (*service.path, "health")
    kind = health.type or default_check_kind(section.protocol)
    for key in sorted(health.model_fields_set - CHECK_KEYS[kind]):
        right = [k.value for k in CheckKind if k is not CheckKind.NONE and key in CHECK_KEYS[k]]
        yield Problem(
            (*path, key),
            f"means nothing for a check of type {kind.value}",
            f"set health.type to {' or '.join(right)}, or remove it",
        )
    may_lack_tls = kind in (CheckKind.COMPLETION, CheckKind.GRPC)
    if may_lack_tls and not health.tls and "verify_tls" in health.model_fields_set:
        yield Problem(
            (*path, "verify_tls"), "means nothing without tls", "set tls to true, or remove it"
        )
    if kind is CheckKind.EXEC and not health.command:
        yield Problem(
            path,
            "a check of type exec needs a command",
            "add health.command: the program and its arguments",
        )
    if kind in (CheckKind.NONE, CheckKind.PING, CheckKind.EXEC) or health.port is not None:
        return
    udp = section.protocol is Protocol.UDP and kind not in (CheckKind.UDP, CheckKind.DNS)
    own_ports = section.forward.is_nat and all(b.port is not None for _, b in service.backends)
    if udp or (section.key.port == ANY_PORT and not own_ports):
        what = "udp service" if udp else "service for any port"
        give = " or each backend's port," if section.forward.is_nat and not udp else ""
        yield Problem(
            (*path, "type") if health.type else path,
            f"{kind.value} checks of a {what} need a port",
            f"add health.port,{give} or set health.type to none",
        )


def _socket(globals_: GlobalSection) -> Iterator[Problem]:
    roles, group = globals_.socket_roles, globals_.socket_group
    if group is not None and (roles.viewer or roles.operator or roles.admin):
        yield Problem(
            ("socket_group",),
            "there are socket_roles, too, and they say who may do what",
            f"remove this, and name {group} in socket_roles: {{admin: [{group}]}}, or in another "
            "role",
        )


def _interfaces(globals_: GlobalSection) -> Iterator[Problem]:
    if globals_.interface in globals_.backend_interfaces:
        yield Problem(
            ("backend_interfaces",),
            f"{globals_.interface} is already the `interface`",
            "name only additional interfaces",
        )


def _capacity(services: list[Candidate], globals_: GlobalSection) -> Iterator[Problem]:
    tables = globals_.tables
    backends = sum(len(service.backends) for service in services)
    # Id 0 means "none" in both tables.
    if len(services) >= tables.services:
        yield Problem(
            ("services",),
            f"{len(services)} services do not fit into a table of {tables.services}",
            f"set tables.services to at least {len(services) + 1}",
        )
    if backends >= tables.backends:
        yield Problem(
            ("services",),
            f"{backends} backends do not fit into a table of {tables.backends}",
            f"set tables.backends to at least {backends + 1}",
        )
    for service in services:
        if len(service.backends) > tables.ring_slots:
            yield Problem(
                (*service.path, "backends"),
                f"{len(service.backends)} backends do not fit into a ring of {tables.ring_slots}",
                f"set tables.ring_slots to a prime above {100 * len(service.backends)}",
            )
