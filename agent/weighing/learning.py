"""Owns the learned speeds: reads the packet path's samples, and moves the shares of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from agent.dataplane import abi
from agent.dataplane.tables import SharedTables
from agent.logs import get_logger
from agent.model import BackendRef, Config, NodeKind, Service, TelemetryKind
from agent.state.identities import Identities
from agent.state.loads import counts_waiting, learns_speed
from agent.weighing.homes import Homes
from agent.weights.learn import UNKNOWN, Estimate, Learner, Samples, learn
from agent.weights.score import is_scored
from agent.weights.speeds import LEAST, MOST, Learned, Speeds, advance, speeds

log = get_logger()

MOVE_EVERY_S = 3.0
# How long the values found in the tables at a restart, or told by another balancer, hold without
# samples.
ADOPTED_S = 30.0
USUAL_REQUEST_BYTES = 5000.0  # 1,000 tokens
SIZES_REMEMBERED = 256  # requests over which the usual size is averaged
AS_CONFIGURED = Learned(1.0, None, 0.0)


@dataclass(slots=True)
class _Tracked:
    """One backend: what is known about it, and up to where its samples have been read."""

    ident: int
    read: int  # samples taken so far
    learner: Learner = field(default_factory=Learner)
    learned: Learned = AS_CONFIGURED

    @property
    def at_rest(self) -> bool:
        """Whether nothing about it changes with time until there are new samples."""
        return not len(self.learner.rows) and self.learned == AS_CONFIGURED


class Learning:
    """Learns from all backends; call ``sample`` about once a second, and read ``learned``."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self.homes = Homes(tables, self.request_bytes)
        self._tracked: dict[BackendRef, _Tracked] = {}
        # The same as arrays, to find quickly which backends have new samples.
        self._order: tuple[BackendRef, ...] = ()
        self._idents = self._reads = np.empty(0, np.int64)
        self._awake: set[BackendRef] = set()  # backends that are not at rest
        self._services: dict[str, Service] = {}  # the services that learn
        self._moved_at = 0.0
        self._request_bytes: dict[str, float] = {}
        self._adopted: dict[BackendRef, Learned] = {}
        self._adopted_until = 0.0
        self._heard: dict[BackendRef, tuple[Learned, float]] = {}  # from another balancer, and when

    def place(self, config: Config, ids: Identities) -> None:
        """Note after a pass where the samples of each backend are. A backend with another id starts
        anew.
        """
        self.homes.place(config, ids)
        before, self._tracked = self._tracked, {}
        self._services = {one.name: one for one in filter(learns_speed, config.services)}
        names = {service.name for service in config.services}
        self._request_bytes = {n: size for n, size in self._request_bytes.items() if n in names}
        for service in filter(_reads_samples, config.services):
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                ident = ids.backend_id(service, backend)
                tracked = before.get(ref)
                if tracked is None or tracked.ident != ident:
                    learned = self._adopted.pop(ref, AS_CONFIGURED)
                    tracked = _Tracked(ident, self._count(ident), learned=learned)
                elif not learns_speed(service):
                    # It may have learned until now.
                    tracked.learner, tracked.learned = Learner(), AS_CONFIGURED
                self._tracked[ref] = tracked
        all_tracked = self._tracked.values()
        self._order = tuple(self._tracked)
        self._idents = np.fromiter(
            (tracked.ident for tracked in all_tracked), np.int64, len(all_tracked)
        )
        self._reads = np.fromiter(
            (tracked.read for tracked in all_tracked), np.int64, len(all_tracked)
        )
        self._awake = {ref for ref, tracked in self._tracked.items() if not tracked.at_rest}
        self._heard = {ref: heard for ref, heard in self._heard.items() if ref in self._tracked}

    def see(self, changed: Iterable[Service]) -> None:
        """Take over services whose weights have changed, but not their places in the tables."""
        self._services |= {one.name: one for one in changed if one.name in self._services}

    def adopt(self, config: Config, weights: Mapping[BackendRef, int], now: float) -> None:
        """Start from the effective weights that the tables hold."""
        self._adopted_until = now + ADOPTED_S
        for service in filter(_only_learns, config.services):
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                if backend.weight and weights.get(ref):
                    share = min(max(weights[ref] / backend.weight, LEAST), MOST)
                    self._adopted[ref] = Learned(share, None, 0.0)

    def hear(self, speeds: Speeds, now: float) -> None:
        """Take what another balancer has learned. It holds where there are no samples here, as on
        a balancer that waits to take over; then both have the same rings.
        """
        known = {
            ref: (replace(one, confidence=0.0), now)  # it is hearsay
            for ref, one in speeds.items()
            if ref in self._tracked
        }
        self._heard |= known
        self._awake |= known.keys()

    def speeds(self) -> Iterator[Speeds]:
        """Return what was learned from samples here, service by service."""
        found: dict[str, dict[BackendRef, Learned]] = {}
        for ref in self._awake:
            tracked = self._tracked[ref]
            if tracked.learned.confidence > 0 and ref.service in self._services:
                found.setdefault(ref.service, {})[ref] = tracked.learned
        yield from found.values()

    def request_bytes(self, service: str) -> float:
        """Return the size of a service's usual request."""
        return self._request_bytes.get(service, USUAL_REQUEST_BYTES)

    def learned(self, ref: BackendRef) -> Learned:
        """Return what holds for a backend now."""
        tracked = self._tracked.get(ref)
        return tracked.learned if tracked else self._adopted.get(ref, AS_CONFIGURED)

    def estimate(self, ref: BackendRef) -> Estimate:
        """Return what is known about a backend's speed."""
        tracked = self._tracked.get(ref)
        return tracked.learner.estimate if tracked else UNKNOWN

    def learns(self, ref: BackendRef) -> bool:
        """Return whether the backend's service learns."""
        return ref.service in self._services

    @property
    def moved(self) -> Iterable[BackendRef]:
        """The backends for which something other than the configuration may hold."""
        return {*self._awake, *self._adopted}

    def sample(
        self, usable: Iterable[BackendRef], now: float, hasty: frozenset[BackendRef] = frozenset()
    ) -> None:
        """Read the samples of the last second, and every ``MOVE_EVERY_S`` move the shares.

        Nothing is learned from the samples of ``hasty`` backends, which may be errors. If clients
        have homes, answers to clients that a backend knows are left out as well: they show what its
        cache holds, not how fast it is.
        """
        counts = self._tables.backend_latency["samples"][self._idents].astype(np.int64)
        grown = {self._order[at] for at in np.flatnonzero(counts != self._reads).tolist()}
        self._reads = counts
        for ref in grown | self._awake:
            tracked = self._tracked[ref]
            samples, sources = self._new_samples(tracked)
            self._see_sizes(ref.service, samples)
            samples = self.homes.take(ref.service, tracked.ident, samples, sources)
            if ref.service in self._services and ref not in hasty:
                tracked.learner = learn(tracked.learner, samples, now)
        self._awake |= grown
        if now - self._moved_at >= MOVE_EVERY_S:
            self._moved_at = now
            self.homes.follow(self._bytes_per_connection)
            self._move(frozenset(usable), now)

    def _bytes_per_connection(self, service: Service) -> float:
        """Return the bytes that count as one connection, as in the load scores: the median of the
        backends' values.
        """
        learned = [
            self.learned(BackendRef(service.name, backend.name)).bytes_per_connection
            for backend in service.backends
        ]
        each = sorted(worth or service.bytes_per_connection for worth in learned)
        return float(each[len(each) // 2]) if each else float(service.bytes_per_connection)

    def _see_sizes(self, service: str, samples: Samples) -> None:
        if not len(samples.bytes):
            return
        before = self._request_bytes.get(service, float(samples.bytes.mean()))
        part = min(1.0, len(samples.bytes) / SIZES_REMEMBERED)
        self._request_bytes[service] = before + part * (float(samples.bytes.mean()) - before)

    def _move(self, usable: frozenset[BackendRef], now: float) -> None:
        for name in {ref.service for ref in self._awake} & self._services.keys():
            service = self._services[name]
            weights = {
                ref: backend.weight
                for backend in service.backends
                if (ref := BackendRef(service.name, backend.name)) in usable
            }
            estimates = {ref: self._tracked[ref].learner.estimate for ref in weights}
            wanted = speeds(estimates, weights, service.bytes_per_connection)
            for ref, target in wanted.items():
                self._move_one(ref, target, service.bytes_per_connection, now)
        self._awake = {ref for ref in self._awake if not self._tracked[ref].at_rest}

    def _move_one(self, ref: BackendRef, target: Learned, configured: int, now: float) -> None:
        tracked = self._tracked[ref]
        before = tracked.learned
        heard, heard_at = self._heard.get(ref, (AS_CONFIGURED, -ADOPTED_S))
        of = "samples"
        if target.confidence:
            tracked.learned = _towards(target, before, configured)
        elif now - heard_at < ADOPTED_S:
            tracked.learned, of = heard, "another balancer"
        elif now >= self._adopted_until:
            tracked.learned = _towards(target, before, configured)
        share = tracked.learned.weight_share
        if share != before.weight_share:
            log.info(
                "learned speed",
                backend=str(ref),
                old=round(before.weight_share, 2),
                new=round(share, 2),
                confidence=round(target.confidence, 2),
                of=of,
            )

    def _count(self, ident: int) -> int:
        return int(self._tables.backend_latency["samples"][ident])

    def _new_samples(self, tracked: _Tracked) -> tuple[Samples, np.ndarray]:
        """Return the samples since the last call, as far as they still exist, oldest first, and the
        hashes of their clients.
        """
        count = self._count(tracked.ident)
        fresh = min(max(count - tracked.read, 0), abi.SAMPLES)
        tracked.read = count
        places = np.arange(count - fresh, count) % abi.SAMPLES
        rows = self._tables.backend_samples[tracked.ident][places]
        sources = self._tables.sample_sources["hash"][tracked.ident][places]
        is_whole = rows["us"] > 0  # the others are still being written
        rows = rows[is_whole]
        samples = Samples(
            ahead=rows["ahead"].astype(float),
            bytes=rows["bytes"].astype(float),
            open=rows["open"].astype(float),
            seconds=rows["us"] / 1e6,
        )
        return samples, sources[is_whole]


def _towards(target: Learned, before: Learned, configured: int) -> Learned:
    """Return the next step from what held before to what was found."""
    share = advance(before.weight_share, target.weight_share, target.confidence)
    worth = advance(
        before.bytes_per_connection or configured,
        target.bytes_per_connection or configured,
        target.confidence,
    )
    return Learned(share, round(worth) if worth != configured else None, target.confidence)


def _reads_samples(service: Service) -> bool:
    return counts_waiting(service) and is_scored(service)


def _only_learns(service: Service) -> bool:
    """Return whether only the learned speed can make the service's weights differ from the
    configured ones.
    """
    by_agent = service.telemetry.kind is TelemetryKind.AGENT_CHECK
    by_clocks, in_time = service.node.kind is not NodeKind.NONE, service.slow_start_s > 0
    return learns_speed(service) and not (by_agent or by_clocks or in_time)
