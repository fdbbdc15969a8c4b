"""Decides which changes must wait for open flows to end, or be confirmed because they end them.

Between ``dsr``, ``ipip`` and ``gue`` only the way to the backend changes. With ``nat`` and
``fullnat`` a flow has addresses of its own on the backend's side: another mode, or another set of
source addresses, leaves it without its other end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.config.plan import come_and_gone
from agent.errors import ConflictError, UnconfirmedError
from agent.model import Address, BackendRef, Config, Forward, Service, ServiceKey


@dataclass(frozen=True, slots=True)
class Threat:
    """A change that open flows of a service would not survive."""

    service: str  # as it is called before the change
    setting: str
    change: str


@dataclass(frozen=True, slots=True)
class Loss:
    """A service, or most backends of one, that a change takes away: perhaps by mistake."""

    service: str  # as it is called before the change
    what: str
    backends: tuple[BackendRef, ...]  # whose flows end


def losses(old: Config, new: Config) -> tuple[Loss, ...]:
    """What goes in such numbers that the new configuration may not be what was meant.

    Names do not count: a service that is called otherwise, or a backend, keeps its flows.
    """
    return tuple(_losses(old, new))


def refuse_unconfirmed(
    found: tuple[Loss, ...], flows: Mapping[BackendRef, int], confirm: str
) -> None:
    """Raises UnconfirmedError if there are open flows in it; ``confirm``: how to say yes."""
    problems = []
    for loss in found:
        number = sum(flows.get(backend, 0) for backend in loss.backends)
        if number:
            problems.append(
                UnconfirmedError(
                    f"the change takes away {loss.what} and cuts {_flows(number)}",
                    where=f"service {loss.service}",
                    remedy=f"if that is meant: {confirm}; to cut none, drain first "
                    f"(lbctl backend drain --wait {loss.service}/…)",
                )
            )
    if problems:
        first = problems[0]
        raise UnconfirmedError(
            first.message, where=first.where, remedy=first.remedy, problems=tuple(problems)
        )


def _losses(old: Config, new: Config) -> Iterator[Loss]:
    for service, later in _changed(old, new):
        refs = {each: BackendRef(service.name, each.name) for each in service.backends}
        if later is None:
            yield Loss(service.name, f"the service at {service.key}", tuple(refs.values()))
            continue
        stay = {(backend.address, backend.port) for backend in later.backends}
        gone = tuple(ref for each, ref in refs.items() if (each.address, each.port) not in stay)
        if 2 * len(gone) > len(refs):
            yield Loss(service.name, f"{len(gone)} of its {len(refs)} backends", gone)


def threats(old: Config, new: Config) -> tuple[Threat, ...]:
    """The services whose open flows, if there are any, could not go on."""
    return (*_modes(old, new), *_sources(old, new))


def refuse_to_cut(found: tuple[Threat, ...], flows: Mapping[str, int]) -> None:
    """Raises ConflictError if one of them has open flows; ``flows`` counts those by service."""
    problems = [
        ConflictError(
            f"{threat.setting}: {_flows(flows[threat.service])} could not go on after the change "
            f"{threat.change}",
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


def _modes(old: Config, new: Config) -> Iterator[Threat]:
    for service, later in _changed(old, new):
        # A service that goes, or whose VIP does, is cut on purpose, and its effect says so.
        if later is None or later.forward is service.forward:
            continue
        if service.forward.is_nat or later.forward.is_nat:
            change = f"from {service.forward.value} to {later.forward.value}"
            yield Threat(service.name, "forward", change)


def _changed(old: Config, new: Config) -> Iterator[tuple[Service, Service | None]]:
    """The services that are not the same object in both: as they are before and, if they are there
    then, after. They are known by what the packet path finds them by, whatever they are called.
    """
    _, left = come_and_gone(old, new)
    after = {_known_by(service.key): service for service in (new.services if left else ())}
    return ((service, after.get(_known_by(service.key))) for service in left)


def _sources(old: Config, new: Config) -> Iterator[Threat]:
    for version, before, after in (
        (4, old.nat.sources_v4, new.nat.sources_v4),
        (6, old.nat.sources_v6, new.nat.sources_v6),
    ):
        # An address that stays keeps its number; which one the kernel chose is not known here.
        if bool(before) == bool(after) and set(before) <= set(after):
            continue
        setting = f"nat.sources_ipv{version}"
        for service in old.services:
            if _needs_source(service, version):
                yield Threat(service.name, setting, f"of {_listed(before)} to {_listed(after)}")


def _needs_source(service: Service, version: int) -> bool:
    return service.forward is Forward.FULLNAT and service.key.vip.version == version


def _known_by(key: ServiceKey) -> tuple[object, ...]:
    return key.vip, key.port, key.protocol


def _listed(sources: tuple[Address, ...]) -> str:
    return ", ".join(str(source) for source in sources) or "the kernel's choice"


def _flows(number: int) -> str:
    return "1 open flow" if number == 1 else f"{number:,} open flows"
