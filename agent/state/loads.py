"""Decides how waiting bytes, connections and weights count when schedulers compare backends.

The packet path cannot divide, so the tables hold inverses in fixed point; the conversions in both
directions are here.
"""

from __future__ import annotations

from agent.model import Protocol, Scheduler, Service

KAPPA = 256  # a connection since the last report weighs as much as one reported, in 256ths
NO_WEIGHT = 0xFFFFFFFF  # inverse weight of a backend that gets nothing
_BYTE_ONE = 1 << 24
_WEIGHT_ONE = 1 << 20
_BOUND_ONE = 256


def counts_waiting(service: Service) -> bool:
    """Return whether the packet path follows requests; only TCP shows when one is answered."""
    return service.count_waiting and service.key.protocol is Protocol.TCP


def compares_connections(service: Service) -> bool:
    """Return whether the scheduler reads how many connections a backend has."""
    match service.scheduler:
        case Scheduler.LEAST_CONN | Scheduler.LEAST_LOAD:
            return True
        case Scheduler.SOURCE:
            return bound(service.source_bound) > 0
        case _:
            return False


def bound(of_mean: float) -> int:
    """Return the load that a backend may have, in 256ths of the mean; 0: unlimited."""
    return min(round(of_mean * _BOUND_ONE), 0xFFFF)


def per_byte(bytes_per_connection: int) -> int:
    """Return what a waiting byte adds to a score, in fixed point; 0: nothing."""
    return round(_BYTE_ONE / bytes_per_connection) if bytes_per_connection else 0


def bytes_per_connection(of_byte: int) -> int:
    """Return how many waiting bytes weigh as one connection; the inverse of ``per_byte``."""
    return round(_BYTE_ONE / of_byte) if of_byte else 0


def bytes_held(service: Service, learned: int | None = None) -> int:
    """Return how many waiting bytes weigh as one connection, rounded as in the tables.

    0: waiting bytes do not count.
    """
    if not counts_waiting(service):
        return 0
    return bytes_per_connection(per_byte(learned or service.bytes_per_connection))


def has_homes(service: Service) -> bool:
    """Return whether clients' new flows go to the backends of their earlier ones (affinity)."""
    is_least_load = service.scheduler is Scheduler.LEAST_LOAD
    return service.affinity.is_any and is_least_load and counts_waiting(service)


def learns_speed(service: Service) -> bool:
    """Return whether weights follow how fast backends answer."""
    is_least_load = service.scheduler is Scheduler.LEAST_LOAD
    return service.learn_speed and is_least_load and counts_waiting(service)


def inverse_weight(weight: int) -> int:
    """Return the fixed-point factor by which a backend's score is multiplied."""
    return round(_WEIGHT_ONE / weight) if weight else NO_WEIGHT
