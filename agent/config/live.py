"""Decides which changes must wait until open flows end, and which must be confirmed because they
end open flows.

Between ``dsr``, ``ipip`` and ``gue`` only the way to the backend changes. With ``nat`` and
``fullnat`` a flow has addresses of its own on the backend's side, so another mode, or another set
of source addresses, leaves it without its other end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.config.plan import added_and_removed
from agent.errors import ConflictError, UnconfirmedError
from agent.model import Address, BackendRef, Config, Forward, Service, ServiceKey


@dataclass(frozen=True, slots=True)
class FlowBreak:
    """A change that the open flows of a service would not survive."""

    service: str  # its name before the change
    setting: str
    change: str


@dataclass(frozen=True, slots=True)
class Removal:
    """A service, or most backends of one, that a change removes, perhaps by mistake."""

    service: str  # its name before the change
    what: str
    backends: tuple[BackendRef, ...]  # the backends whose flows end


def removals(old: Config, new: Config) -> tuple[Removal, ...]:
    """Return the removals that are so large that the new configuration may be a mistake.

    Names do not count: a service or backend that is only renamed keeps its flows.
    """
    return tuple(_losses(old, new))


def refuse_unconfirmed(
    found: tuple[Removal, ...], flows: Mapping[BackendRef, int], confirm: str
) -> None:
    """Raise UnconfirmedError if a loss would cut open flows. ``confirm`` says how to confirm it."""
    problems = []
    for loss in found:
        number = sum(flows.get(backend, 0) for backend in loss.backends)
        if number:
            problems.append(
                UnconfirmedError(
                    f"the change removes {loss.what} and cuts {_flows(number)}",
                    where=f"service {loss.service}",
                    remedy=f"if that is intended: {confirm}; to cut none, drain first "
                    f"(lbctl backend drain --wait {loss.service}/…)",
                )
            )
    if problems:
        first = problems[0]
        raise UnconfirmedError(
            first.message, where=first.where, remedy=first.remedy, problems=tuple(problems)
        )


def _losses(old: Config, new: Config) -> Iterator[Removal]:
    for service, later in _changed(old, new):
        refs = {each: BackendRef(service.name, each.name) for each in service.backends}
        if later is None:
            yield Removal(service.name, f"the service at {service.key}", tuple(refs.values()))
            continue
        stay = {(backend.address, backend.port) for backend in later.backends}
        gone = tuple(ref for each, ref in refs.items() if (each.address, each.port) not in stay)
        if 2 * len(gone) > len(refs):
            yield Removal(service.name, f"{len(gone)} of its {len(refs)} backends", gone)


def flow_breaks(old: Config, new: Config) -> tuple[FlowBreak, ...]:
    """Return the changes that open flows, if there are any, could not survive."""
    return (*_modes(old, new), *_sources(old, new))


def refuse_to_cut(found: tuple[FlowBreak, ...], flows: Mapping[str, int]) -> None:
    """Raise ConflictError if a threatened service has open flows. ``flows`` counts them by
    service.
    """
    problems = [
        ConflictError(
            f"{threat.setting}: {_flows(flows[threat.service])} could not continue after the "
            f"change {threat.change}",
            where=f"service {threat.service}",
            remedy=f"drain its backends first (lbctl backend drain --wait {threat.service}/…), or "
            "cut the flows: remove the service, then add it again",
        )
        for threat in found
        if flows.get(threat.service, 0) > 0
    ]
    if problems:
        first = problems[0]
        raise ConflictError(
            first.message, where=first.where, remedy=first.remedy, problems=tuple(problems)
        )


def _modes(old: Config, new: Config) -> Iterator[FlowBreak]:
    for service, later in _changed(old, new):
        # Removing a service or its VIP cuts its flows on purpose, and the effect says so.
        if later is None or later.forward is service.forward:
            continue
        if service.forward.is_nat or later.forward.is_nat:
            change = f"from {service.forward.value} to {later.forward.value}"
            yield FlowBreak(service.name, "forward", change)


def _changed(old: Config, new: Config) -> Iterator[tuple[Service, Service | None]]:
    """Return the services that are not the same object in both: each before and after the change.

    The latter is None if the service is removed. Services are identified by what the packet path
    finds them by, not by name.
    """
    _, left = added_and_removed(old, new)
    after = {_known_by(service.key): service for service in (new.services if left else ())}
    return ((service, after.get(_known_by(service.key))) for service in left)


def _sources(old: Config, new: Config) -> Iterator[FlowBreak]:
    for version, before, after in (
        (4, old.nat.sources_v4, new.nat.sources_v4),
        (6, old.nat.sources_v6, new.nat.sources_v6),
    ):
        # An address that stays keeps its number. Which address the kernel chose is not known here.
        if bool(before) == bool(after) and set(before) <= set(after):
            continue
        setting = f"nat.sources_ipv{version}"
        for service in old.services:
            if _needs_source(service, version):
                yield FlowBreak(service.name, setting, f"of {_listed(before)} to {_listed(after)}")


def _needs_source(service: Service, version: int) -> bool:
    return service.forward is Forward.FULLNAT and service.key.vip.version == version


def _known_by(key: ServiceKey) -> tuple[object, ...]:
    return key.vip, key.port, key.protocol


def _listed(sources: tuple[Address, ...]) -> str:
    return ", ".join(str(source) for source in sources) or "the kernel's choice"


def _flows(number: int) -> str:
    return "1 open flow" if number == 1 else f"{number:,} open flows"
