"""What the agent knows at one moment: the configuration and all that it sees of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import (
    Address,
    BackendRef,
    BackendState,
    Config,
    Forward,
    HealthStatus,
    NextHop,
    ServiceState,
)
from agent.state.assemble import Tracked, track
from agent.state.desired import outer_source
from agent.state.eligibility import Eligibility, eligibility, service_state
from agent.state.identities import Identities


@dataclass(frozen=True, slots=True)
class Past:
    """States, and since when, as they were before."""

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

    @property
    def past(self) -> Past:
        """This situation as the next one's past."""
        return Past(self.backends, self.services)


def verdicts(
    config: Config, health: Mapping[BackendRef, HealthStatus], hops: Mapping[Address, NextHop]
) -> dict[BackendRef, Eligibility]:
    """What every backend is for the data plane."""
    found = {}
    for service in config.services:
        for backend in service.backends:
            ref = BackendRef(service.name, backend.name)
            hop = hops.get(backend.address)
            verdict = eligibility(service, backend, health[ref], hop)
            if (
                verdict.alive
                and service.forward is Forward.IPIP
                and outer_source(config, backend.address, hop) is None
            ):
                setting = f"ipip_source: {{ipv{backend.address.version}: …}}"
                reason = f"no source address for the outer header: set `{setting}`"
                verdict = Eligibility(BackendState.UNREACHABLE, reason, False, False)
            found[ref] = verdict
    return found


def service_states(
    config: Config, found: Mapping[BackendRef, Eligibility]
) -> dict[str, tuple[ServiceState, str]]:
    """The state of every service, and why."""
    return {
        service.name: service_state(
            tuple(found[BackendRef(service.name, b.name)].state for b in service.backends)
        )
        for service in config.services
    }


def situation(
    past: Past,
    config: Config,
    ids: Identities,
    health: Mapping[BackendRef, HealthStatus],
    hops: Mapping[Address, NextHop],
    found: Mapping[BackendRef, Eligibility],
    now: float,
) -> Situation:
    """The situation after a pass; states that did not change keep their ``since``."""
    backends = {
        ref: track(past.backends.get(ref), verdict.state, now) for ref, verdict in found.items()
    }
    services = {
        name: track(past.services.get(name), state, now)
        for name, (state, _) in service_states(config, found).items()
    }
    return Situation(config, ids, health, hops, found, backends, services)
