"""Holds what the agent knows at one moment: the configuration, and what it sees around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import (
    Address,
    BackendRef,
    BackendState,
    Config,
    Forward,
    Health,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
)
from agent.state.assemble import Tracked, track
from agent.state.desired import outer_source
from agent.state.eligibility import (
    Eligibility,
    eligibility,
    influenced,
    service_state,
    together,
    unreachable,
)
from agent.state.identities import Identities
from agent.state.lookups import nat_source
from agent.state.roster import Roster, roster, same_backends
from agent.weights.influence import NOTHING, Influence


@dataclass(frozen=True, slots=True)
class Past:
    """The states of backends and services before a pass, and since when they had them."""

    backends: Mapping[BackendRef, Tracked[BackendState]]
    services: Mapping[str, Tracked[ServiceState]]


@dataclass(frozen=True, slots=True)
class Situation:
    """Health, next hops and what follows from them, for every configured backend."""

    config: Config
    ids: Identities
    health: Mapping[BackendRef, HealthStatus]
    hops: Mapping[Address, NextHop]
    verdicts: Mapping[BackendRef, Eligibility]
    backends: Mapping[BackendRef, Tracked[BackendState]]
    services: Mapping[str, Tracked[ServiceState]]
    roster: Roster

    @property
    def past(self) -> Past:
        """This situation as the next one's past."""
        return Past(self.backends, self.services)


def verdicts(
    config: Config,
    health: Mapping[BackendRef, HealthStatus],
    hops: Mapping[Address, NextHop],
    influences: Mapping[BackendRef, Influence] | None = None,
) -> dict[BackendRef, Eligibility]:
    """Return the verdict on every backend, before ``slowstart`` is applied."""
    influences = influences or {}
    found = {}
    for service in config.services:
        alone = []
        for backend in service.backends:
            hop = hops.get(backend.address)
            ref = BackendRef(service.name, backend.name)
            verdict = eligibility(service, backend, health[ref], hop)
            missing = _missing_source(config, service.forward, backend.address, hop)
            if verdict.alive and missing:
                verdict = unreachable(missing)
            alone.append(influenced(service, verdict, influences.get(ref, NOTHING)))
        for backend, verdict in zip(service.backends, together(service, alone), strict=True):
            found[BackendRef(service.name, backend.name)] = verdict
    return found


def emptied(
    seen: Situation,
    part: Config,
    health: Mapping[BackendRef, HealthStatus],
    influences: Mapping[BackendRef, Influence],
) -> frozenset[str]:
    """Return the services of ``part`` that would have no usable backend now, but have one in
    ``seen``. New backends count as not usable, because they are not checked yet.
    """
    unknown = HealthStatus(Health.CHECKING, "", 0.0)
    refs = [BackendRef(s.name, b.name) for s in part.services for b in s.backends]
    statuses = {ref: health.get(ref, unknown) for ref in refs}
    found = verdicts(part, statuses, seen.hops, influences)
    serving = {ref.service for ref, verdict in found.items() if verdict.usable}
    names = {service.name for service in part.services} - serving
    return frozenset(
        service.name
        for service in seen.config.services
        if service.name in names
        and any(_is_usable(seen, BackendRef(service.name, b.name)) for b in service.backends)
    )


def _is_usable(seen: Situation, ref: BackendRef) -> bool:
    verdict = seen.verdicts.get(ref)
    return verdict is not None and verdict.usable


def _missing_source(config: Config, forward: Forward, address: Address, hop: NextHop | None) -> str:
    """Return why packets to a backend would have no source address; empty: they have one."""
    family = f"ipv{address.version}"
    if forward.is_tunnel and outer_source(config, address, hop) is None:
        return f"no source address for the outer header: set `tunnel_source: {{{family}: …}}`"
    if forward is Forward.FULLNAT and nat_source(config, hop, address.version) is None:
        return f"no source address to send from: set `nat: {{sources_{family}: […]}}`"
    return ""


def service_states(
    config: Config, found: Mapping[BackendRef, Eligibility]
) -> dict[str, tuple[ServiceState, str]]:
    """Return the state of every service, and the reason."""
    return {service.name: state_of(service, found) for service in config.services}


def state_of(service: Service, found: Mapping[BackendRef, Eligibility]) -> tuple[ServiceState, str]:
    """Return the state of a service, and the reason."""
    own = [found[BackendRef(service.name, backend.name)] for backend in service.backends]
    return service_state(
        tuple(one.state for one in own),
        in_spite=frozenset(one.weight_reason for one in own),
    )


def situation(
    past: Past,
    config: Config,
    ids: Identities,
    health: Mapping[BackendRef, HealthStatus],
    hops: Mapping[Address, NextHop],
    found: Mapping[BackendRef, Eligibility],
    now: float,
    before: Situation | None = None,
    part: Config | None = None,
) -> Situation:
    """Return the situation after a pass; states that did not change keep their ``since``.

    ``before``: the last situation, if there is one. ``part``: the services for which something may
    differ from ``past``; None: all.
    """
    part = config if part is None else part
    chosen = {BackendRef(s.name, b.name): found[BackendRef(s.name, b.name)]
              for s in part.services for b in s.backends}  # fmt: skip
    backends = {ref: track(past.backends.get(ref), v.state, now) for ref, v in chosen.items()}
    services = {
        name: track(past.services.get(name), state, now)
        for name, (state, _) in service_states(part, found).items()
    }
    if part is not config:
        backends = _still(found, {**past.backends, **backends})
        configured = {service.name: service for service in config.services}
        services = _still(configured, {**past.services, **services})
    is_same = before is not None and before.ids is ids and same_backends(before.config, config)
    known = before.roster if before is not None and is_same else roster(config.services, ids)
    return Situation(config, ids, health, hops, found, backends, services, known)


def _still[Key, Value](
    present: Mapping[Key, object], tracked: dict[Key, Value]
) -> dict[Key, Value]:
    """Drop what is tracked but no longer present; everything present is tracked."""
    if len(tracked) == len(present):
        return tracked
    return {key: tracked[key] for key in present}
