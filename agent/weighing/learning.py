"""Owns the learned speeds: reads the packet path's samples, and moves shares of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
from agent.weights.speeds import LEAST, MOST, Learned, advance, speeds

log = get_logger()

MOVE_EVERY_S = 3.0
ADOPTED_S = 30.0  # what a restart found in the tables holds so long without samples
USUAL_REQUEST_BYTES = 5000.0  # 1,000 tokens
SIZES_REMEMBERED = 256  # requests
AS_CONFIGURED = Learned(1.0, None, 0.0)


@dataclass(slots=True)
class _Pupil:
    """One backend: what is known, and where its samples are read on."""

    ident: int
    read: int  # samples taken so far
    learner: Learner = field(default_factory=Learner)
    learned: Learned = AS_CONFIGURED

    @property
    def at_rest(self) -> bool:
        """Without new samples, time changes nothing of it."""
        return not len(self.learner.rows) and self.learned == AS_CONFIGURED


class Learning:
    """Call ``sample`` about once a second; what it has learned is in ``learned``."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self.homes = Homes(tables, self.request_bytes)
        self._pupils: dict[BackendRef, _Pupil] = {}
        # The same in another form, to find at once whose samples have become more.
        self._order: tuple[BackendRef, ...] = ()
        self._idents = self._reads = np.empty(0, np.int64)
        self._awake: set[BackendRef] = set()  # those that are not at rest
        self._services: dict[str, Service] = {}  # that learn
        self._moved_at = 0.0
        self._request_bytes: dict[str, float] = {}
        self._adopted: dict[BackendRef, Learned] = {}
        self._adopted_until = 0.0

    def place(self, config: Config, ids: Identities) -> None:
        """After a pass: whose samples are where. A backend with another id starts anew."""
        self.homes.place(config, ids)
        before, self._pupils = self._pupils, {}
        self._services = {one.name: one for one in filter(learns_speed, config.services)}
        names = {service.name for service in config.services}
        self._request_bytes = {n: size for n, size in self._request_bytes.items() if n in names}
        for service in filter(_reads_samples, config.services):
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                ident = ids.backend_id(service, backend)
                pupil = before.get(ref)
                if pupil is None or pupil.ident != ident:
                    learned = self._adopted.pop(ref, AS_CONFIGURED)
                    pupil = _Pupil(ident, self._count(ident), learned=learned)
                elif not learns_speed(service):
                    # Maybe it did until now.
                    pupil.learner, pupil.learned = Learner(), AS_CONFIGURED
                self._pupils[ref] = pupil
        pupils = self._pupils.values()
        self._order = tuple(self._pupils)
        self._idents = np.fromiter((pupil.ident for pupil in pupils), np.int64, len(pupils))
        self._reads = np.fromiter((pupil.read for pupil in pupils), np.int64, len(pupils))
        self._awake = {ref for ref, pupil in self._pupils.items() if not pupil.at_rest}

    def see(self, changed: Iterable[Service]) -> None:
        """These have other weights than before, and are placed where they were."""
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

    def request_bytes(self, service: str) -> float:
        """Of a usual request of a service."""
        return self._request_bytes.get(service, USUAL_REQUEST_BYTES)

    def learned(self, ref: BackendRef) -> Learned:
        """What holds for a backend now."""
        pupil = self._pupils.get(ref)
        return pupil.learned if pupil else self._adopted.get(ref, AS_CONFIGURED)

    def estimate(self, ref: BackendRef) -> Estimate:
        """What is known of a backend's speed."""
        pupil = self._pupils.get(ref)
        return pupil.learner.estimate if pupil else UNKNOWN

    def learns(self, ref: BackendRef) -> bool:
        """Whether its service learns."""
        return ref.service in self._services

    @property
    def moved(self) -> Iterable[BackendRef]:
        """Those of which something else than what is configured may hold."""
        return {*self._awake, *self._adopted}

    def sample(
        self, usable: Iterable[BackendRef], now: float, hasty: frozenset[BackendRef] = frozenset()
    ) -> None:
        """Take in the samples of the last second, and now and then move the shares by them. Those
        of ``hasty`` backends are not learned from: they may be errors.

        Where clients have homes, answers to those whom a backend knows tell what its cache
        holds, not how fast it is.
        """
        counts = self._tables.backend_latency["samples"][self._idents].astype(np.int64)
        told = {self._order[at] for at in np.flatnonzero(counts != self._reads).tolist()}
        self._reads = counts
        for ref in told | self._awake:
            pupil = self._pupils[ref]
            samples, sources = self._new_samples(pupil)
            self._see_sizes(ref.service, samples)
            samples = self.homes.take(ref.service, pupil.ident, samples, sources)
            if ref.service in self._services and ref not in hasty:
                pupil.learner = learn(pupil.learner, samples, now)
        self._awake |= told
        if now - self._moved_at >= MOVE_EVERY_S:
            self._moved_at = now
            self.homes.follow(self._bytes_per_connection)
            self._move(frozenset(usable), now)

    def _bytes_per_connection(self, service: Service) -> float:
        """As the load scores have it: the middle of what the backends have."""
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
            estimates = {ref: self._pupils[ref].learner.estimate for ref in weights}
            wanted = speeds(estimates, weights, service.bytes_per_connection)
            for ref, target in wanted.items():
                self._move_one(ref, target, service.bytes_per_connection, now)
        self._awake = {ref for ref in self._awake if not self._pupils[ref].at_rest}

    def _move_one(self, ref: BackendRef, target: Learned, configured: int, now: float) -> None:
        pupil = self._pupils[ref]
        before = pupil.learned
        if not target.confidence and now < self._adopted_until:
            return
        share = advance(before.weight_share, target.weight_share, target.confidence)
        worth = advance(
            before.bytes_per_connection or configured,
            target.bytes_per_connection or configured,
            target.confidence,
        )
        pupil.learned = Learned(
            share, round(worth) if worth != configured else None, target.confidence
        )
        if share != before.weight_share:
            log.info(
                "learned speed",
                backend=str(ref),
                old=round(before.weight_share, 2),
                new=round(share, 2),
                confidence=round(target.confidence, 2),
            )

    def _count(self, ident: int) -> int:
        return int(self._tables.backend_latency["samples"][ident])

    def _new_samples(self, pupil: _Pupil) -> tuple[Samples, np.ndarray]:
        """Those since the last time, as far as they are still there, oldest first, and hashes of
        whose they are.
        """
        count = self._count(pupil.ident)
        fresh = min(max(count - pupil.read, 0), abi.SAMPLES)
        pupil.read = count
        places = np.arange(count - fresh, count) % abi.SAMPLES
        rows = self._tables.backend_samples[pupil.ident][places]
        sources = self._tables.sample_sources["hash"][pupil.ident][places]
        is_whole = rows["us"] > 0  # the others are being written
        rows = rows[is_whole]
        samples = Samples(
            ahead=rows["ahead"].astype(float),
            bytes=rows["bytes"].astype(float),
            open=rows["open"].astype(float),
            seconds=rows["us"] / 1e6,
        )
        return samples, sources[is_whole]


def _reads_samples(service: Service) -> bool:
    return counts_waiting(service) and is_scored(service)


def _only_learns(service: Service) -> bool:
    """Whether nothing but the learned speed makes its weights other than configured."""
    by_agent = service.telemetry.kind is TelemetryKind.AGENT_CHECK
    by_clocks, in_time = service.node.kind is not NodeKind.NONE, service.slow_start_s > 0
    return learns_speed(service) and not (by_agent or by_clocks or in_time)
