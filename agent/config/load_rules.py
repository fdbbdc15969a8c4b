"""Decides whether the settings of load and locality fit together: ports, expressions, zones."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.candidate import Candidate
from agent.config.document import Path, Problem
from agent.config.schema import GlobalSection
from agent.config.service_schema import ServiceSection
from agent.config.telemetry_schema import EXPRESSIONS
from agent.model import (
    ANY_PORT,
    MAX_ZONE_PREFIXES,
    AffinityBy,
    Detect,
    Protocol,
    Scheduler,
    Signal,
    TelemetryKind,
)
from agent.telemetry.expression import parse


def check(services: list[Candidate], globals_: GlobalSection | None) -> Iterator[Problem]:
    """Yield every problem between values that are valid by themselves."""
    for service in services:
        if service.section is not None:
            yield from _expressions(service, service.section)
            yield from _ports(service, service.section)
            yield from _rebalance(service, service.section)
            yield from _affinity(service, service.section)
            yield from _slo(service, service.section)
            yield from _waiting_limit(service, service.section)
            yield from _detect(service, service.section)
            yield from _scale(service, service.section)
        if globals_ is not None:
            yield from _zones(service, globals_)
            yield from _lists(service, globals_)
    if globals_ is not None:
        yield from _rings(services, globals_)
        yield from _prefixes(globals_)


def _expressions(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    for name in EXPRESSIONS:
        written = getattr(section.telemetry, name)
        if written is None:
            continue
        try:
            parse(written)
        except ValueError as error:
            yield Problem(
                (*service.path, "telemetry", name),
                str(error),
                'write a metric with its labels, such as my_running{queue="main"}; + - * / ( ) '
                "and max(…), min(…), avg(…) are known",
            )


def _ports(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    """Yield a problem for each source that has no port to ask.

    Telemetry and models are asked on the port of the health checks, unless they have their own.
    """
    own = section.forward.is_nat and all(b.port is not None for _, b in service.backends)
    if section.health.port is not None or own or section.key.port != ANY_PORT:
        return
    askers: list[tuple[Path, bool]] = [
        (
            ("telemetry",),
            section.telemetry.type is not TelemetryKind.NONE and section.telemetry.port is None,
        ),
        (("model",), section.model is not None and section.model.port is None),
    ]
    for place, needs in askers:
        if needs:
            yield Problem(
                (*service.path, *place),
                "the service is for any port, so it must say on which port its servers are asked",
                f"add {place[0]}.port",
            )


def _waiting_limit(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.limits.waiting_per_source is None:
        return
    path = (*service.path, "limits", "waiting_per_source")
    if section.protocol is not Protocol.TCP:
        yield Problem(path, "means nothing for a udp service", "set it to none, or remove it")
    elif not section.count_waiting:
        yield Problem(
            path,
            "needs count_waiting: without it, the waiting bytes are unknown",
            "set count_waiting to true, or this to none",
        )


def _detect(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.detect is not Detect.BLOCK:
        return
    if section.protocol is not Protocol.TCP or not section.forward.is_nat:
        way = "udp" if section.protocol is not Protocol.TCP else section.forward.value
        yield Problem(
            (*service.path, "detect"),
            f"with {way}, anybody can forge the address of a client, and have that client blocked",
            "set it to log, or use tcp with forward: nat or fullnat",
        )


def _rebalance(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.rebalance.rate and section.protocol is not Protocol.TCP:
        yield Problem(
            (*service.path, "rebalance", "rate"),
            "means nothing for a udp service",
            "remove it: only tcp connections can be reset",
        )
    elif section.rebalance.rate and not section.count_waiting:
        yield Problem(
            (*service.path, "rebalance", "rate"),
            "needs count_waiting: without it, nothing shows which connections are idle",
            "set count_waiting to true, or remove it",
        )
    elif section.rebalance.rate and section.scheduler is Scheduler.SOURCE:
        yield Problem(
            (*service.path, "rebalance", "rate"),
            "means nothing for scheduler source: a client comes back to the same backend",
            "set another scheduler, or remove it",
        )
    elif section.rebalance.rate and section.affinity.by is not AffinityBy.NONE:
        yield Problem(
            (*service.path, "rebalance", "rate"),
            "means nothing with affinity: a client comes back to its home",
            "set affinity.by to none, or remove it",
        )


def _affinity(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    has_homes = section.affinity.by is not AffinityBy.NONE
    if has_homes and section.protocol is Protocol.TCP and not section.count_waiting:
        yield Problem(
            (*service.path, "affinity", "by"),
            "needs count_waiting: without it, the waiting bytes of a home are unknown",
            "set count_waiting to true, or by to none",
        )


def _slo(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    if section.slo.model() and section.protocol is Protocol.TCP and not section.count_waiting:
        yield Problem(
            (*service.path, "slo"),
            "needs count_waiting: without it, nothing shows when answers begin",
            "set count_waiting to true, or remove it",
        )


def _scale(service: Candidate, section: ServiceSection) -> Iterator[Problem]:
    asked, kind = section.scale.model(), section.telemetry.type
    path = (*service.path, "scale")
    if asked.waiting_bytes is not None and section.protocol is not Protocol.TCP:
        where = (*path, Signal.WAITING_BYTES.value)
        yield Problem(where, "means nothing for a udp service", "set it to none, or remove it")
    elif asked.waiting_bytes is not None and not section.count_waiting:
        yield Problem(
            (*path, Signal.WAITING_BYTES.value),
            "needs count_waiting: without it, the waiting bytes are unknown",
            "set count_waiting to true, or this to none",
        )
    if kind in (TelemetryKind.NONE, TelemetryKind.AGENT_CHECK):
        for signal in (Signal.REQUESTS, Signal.QUEUED):
            if signal not in asked.targets:
                continue
            yield Problem(
                (*path, signal.value),
                "needs telemetry: only engines know how many requests they have",
                "set telemetry.type to the engine, or this to none",
            )


def _zones(service: Candidate, globals_: GlobalSection) -> Iterator[Problem]:
    known = [zone.name for zone in globals_.zones]
    for index, backend in service.backends:
        if backend.zone is not None and backend.zone not in known:
            listed = f"known: {', '.join(known)}; or add" if known else "add"
            yield Problem(
                (*service.backend_path(index), "zone"),
                f"there is no zone {backend.zone!r}",
                f"{listed} it with the prefixes of its clients: "
                f"zones: {{{backend.zone}: [10.1.0.0/16]}}",
            )


def _lists(service: Candidate, globals_: GlobalSection) -> Iterator[Problem]:
    known = [each.name for each in globals_.lists]
    for key in ("allow", "deny", "trusted"):
        for name in getattr(service.section, key, ()):
            if name not in known:
                listed = f"known: {', '.join(known)}; or add" if known else "add"
                yield Problem(
                    (*service.path, key),
                    f"there is no list {name!r}",
                    f"{listed} it with its prefixes: lists: {{{name}: [198.51.100.0/24]}}",
                )


def _prefixes(globals_: GlobalSection) -> Iterator[Problem]:
    for version in (4, 6):
        clients = (client for zone in globals_.zones for client in zone.clients)
        count = sum(client.version == version for client in clients)
        if count > MAX_ZONE_PREFIXES:
            yield Problem(
                ("zones",),
                f"{count} IPv{version} prefixes are too many",
                f"give at most {MAX_ZONE_PREFIXES} of each family, all zones together",
            )


def _rings(services: list[Candidate], globals_: GlobalSection) -> Iterator[Problem]:
    rings = sum(
        len({backend.zone for _, backend in service.backends if backend.zone is not None})
        for service in services
    )
    if rings > globals_.tables.zone_rings:
        yield Problem(
            ("tables", "zone_rings"),
            f"{rings} rings for zones do not fit into {globals_.tables.zone_rings}",
            f"set tables.zone_rings to at least {rings}",
        )
