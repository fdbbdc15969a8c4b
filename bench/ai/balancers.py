"""Makes the decisions of the compared balancers, for the simulator.

For Steelyard this is its own code: its rings, its draws, its load score over the rows that the
packet path has (``agent.dataplane``), and what its agent learns from reports and answers
(``agent.weights``). HAProxy's and nginx's follow their sources: HAProxy's leastconn takes the
lowest ``(connections + 1) / weight``; ``random(2)`` takes the one of two draws with fewer
connections by weight; nginx's ``least_conn`` takes the fewest connections by weight, and of equal
ones the next in turn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from math import ceil

import numpy as np

from agent.dataplane import abi, flowhash, score
from agent.model import BackendRef
from agent.rings import maglev, smooth
from agent.rings.maglev import Member, Ring
from agent.state import loads
from agent.telemetry.report import EngineReport
from agent.weighing.learning import MOVE_EVERY_S, SIZES_REMEMBERED, USUAL_REQUEST_BYTES
from agent.weighing.scores import STAND_IN_EVERY_S
from agent.weights import affinity
from agent.weights import score as words
from agent.weights.learn import Learner, Samples, learn
from agent.weights.speeds import advance, speeds
from bench.ai.simulator import Report

RING_SLOTS = 65_537
TICK_S = 1.0
BOUND_FROM = 16  # bpf/score.h
_HAPROXY_WEIGHT_ONE = 256


def _members(weights: Sequence[int]) -> tuple[Member, ...]:
    """Return the ring's members, with ids from 1; 0 is none."""
    return tuple(
        Member(bytes([10, 99, index >> 8, index & 255]), weight, index + 1)
        for index, weight in enumerate(weights)
    )


class Counting:
    """Counts open connections, and ignores all else."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self.open = [0] * len(weights)

    def opened(self, server: int) -> None:
        self.open[server] += 1

    def closed(self, server: int) -> None:
        self.open[server] -= 1

    def asked(self, server: int, request_bytes: int, source: int, now_s: float) -> object:
        del server, request_bytes, source, now_s
        return None

    def answered(self, server: int, asked: object, waited_s: float, now_s: float) -> None:
        """Ignore the answer."""

    def reported(self, server: int, report: Report, now_s: float) -> None:
        """Ignore the report."""


class WeightedMaglev(Counting):
    """Picks by the hash of the connection."""

    def __init__(self, weights: Sequence[int]) -> None:
        super().__init__(weights)
        self._ring = maglev.build(_members(weights), RING_SLOTS)

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del source, now_s
        return int(self._ring[flowhash.ring_slot(pick, RING_SLOTS)]) - 1


class SourceHash(WeightedMaglev):
    """Picks by the client's address, whatever the load: HAProxy's ``balance source``."""

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del pick
        return super().choose(source, source, now_s)


class BoundedSource(SourceHash):
    """Steelyard's source: passes over a server that has more than its share of the connections."""

    def choose(self, pick: int, source: int, now_s: float) -> int:
        first = super().choose(pick, source, now_s)
        fair = self.bound * (sum(self.open) + 1) * self.weights[first] / sum(self.weights)
        if self.open[first] + 1 <= max(BOUND_FROM, ceil(fair)):
            return first
        return super().choose(pick, flowhash.pick_again(source), now_s)

    bound = 1.25


class RoundRobin(Counting):
    """Picks one server after the other, by weight."""

    def __init__(self, weights: Sequence[int]) -> None:
        super().__init__(weights)
        self._ring = smooth.build(_members(weights), RING_SLOTS)
        self._turn = -1

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del pick, source, now_s
        self._turn += 1
        return int(self._ring[self._turn % len(self._ring)]) - 1


class LeastConnections(Counting):
    """Steelyard's least-conn: compares all servers, and breaks ties by the hash."""

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del source, now_s
        everyone = range(len(self.open))
        return min(everyone, key=lambda one: (self._score(one), flowhash.tie(one, pick)))

    def _score(self, server: int) -> int:
        return (self.open[server] + 1) * loads.inverse_weight(self.weights[server])


class HAProxyLeastConn(Counting):
    """HAProxy's tree by load; of equal servers, the one whose load changed longest ago."""

    def __init__(self, weights: Sequence[int]) -> None:
        super().__init__(weights)
        self._changes = 0
        self._changed = [0] * len(weights)

    def _moved(self, server: int) -> None:
        self._changes += 1
        self._changed[server] = self._changes

    def opened(self, server: int) -> None:
        super().opened(server)
        self._moved(server)

    def closed(self, server: int) -> None:
        super().closed(server)
        self._moved(server)

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del pick, source, now_s
        return min(range(len(self.open)), key=lambda one: (self._key(one), self._changed[one]))

    def _key(self, server: int) -> int:
        inflight = self.open[server]
        return (inflight + 1) * _HAPROXY_WEIGHT_ONE // self.weights[server] if inflight else 0


class HAProxyRandom(Counting):
    """The less loaded of two draws by weight."""

    def __init__(self, weights: Sequence[int], seed: int) -> None:
        super().__init__(weights)
        self._draw = random.Random(seed)
        self._ring = list(accumulate(weights))

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del pick, source, now_s
        one, other = self._draw.choices(range(len(self.open)), cum_weights=self._ring, k=2)
        open_, weights = self.open, self.weights
        return one if open_[one] * weights[other] <= open_[other] * weights[one] else other


class NginxLeastConn(Counting):
    """Fewest connections by weight; equal servers take smooth weighted turns."""

    def __init__(self, weights: Sequence[int]) -> None:
        super().__init__(weights)
        self._current = [0] * len(weights)

    def choose(self, pick: int, source: int, now_s: float) -> int:
        del pick, source, now_s
        everyone = range(len(self.open))
        least = min(self.open[one] / self.weights[one] for one in everyone)
        best = [one for one in everyone if self.open[one] / self.weights[one] == least]
        for one in best:
            self._current[one] += self.weights[one]
        chosen = max(best, key=lambda one: self._current[one])
        self._current[chosen] -= sum(self.weights[one] for one in best)
        return chosen


class LeastLoad:
    """Steelyard's least-load, with any selection of its inputs."""

    def __init__(
        self,
        weights: Sequence[int],
        *,
        draws: int,
        bytes_per_connection: int,
        telemetry: bool = False,
        learns: bool = False,
        time_scale: float = 1.0,
        has_homes: bool = False,
    ) -> None:
        """``bytes_per_connection`` 0: waiting bytes do not count. ``time_scale``: how many seconds
        of the engines are one second of the agent, which learns by its own time.
        """
        count = len(weights)
        self.weights = list(weights)
        self._configured = tuple(weights)
        self._draws = self._configured_draws = draws
        self._beta = bytes_per_connection
        self._listens, self._learns, self._time_scale = telemetry, learns, time_scale
        self._rows = np.zeros(count, dtype=abi.BACKEND_LOAD)
        self._rows["kappa"] = loads.KAPPA
        # Views of single rows of the table.
        self._row = [self._rows[number : number + 1].reshape(()) for number in range(count)]
        self._reports: list[EngineReport | None] = [None] * count
        self._ratio: float | None = None
        self._request_bytes = float(USUAL_REQUEST_BYTES)
        self._pupils = [Learner() for _ in range(count)]
        self._samples: list[list[tuple[float, ...]]] = [[] for _ in range(count)]
        self._shares, self._worths = [1.0] * count, [float(bytes_per_connection)] * count
        self._refs = [BackendRef("simulated", str(number)) for number in range(count)]
        self._tick_at_s, self._move_at_s = TICK_S, MOVE_EVERY_S
        self._stand_in_at_s = STAND_IN_EVERY_S
        self._has_homes = has_homes
        self._memory, self._answers = affinity.Memory(), affinity.Answers()
        self._worth = affinity.Worth(usual_bytes=self._request_bytes)
        self._sources: list[list[int]] = [[] for _ in range(count)]
        self._weigh()

    def _weigh(self) -> None:
        """Write weights and the worth of bytes into the rows, and rebuild the ring."""
        for row, weight, worth in zip(self._row, self.weights, self._worths, strict=True):
            row["weight"], row["inverse_weight"] = weight, loads.inverse_weight(weight)
            row["per_byte"] = loads.per_byte(round(worth))
        self._ring: Ring = maglev.build(_members(self.weights), RING_SLOTS)

    def choose(self, pick: int, source: int, now_s: float) -> int:
        while now_s / self._time_scale >= self._stand_in_at_s:
            self._stand_in()
            self._stand_in_at_s += STAND_IN_EVERY_S
        while now_s / self._time_scale >= self._tick_at_s:
            self._tick(self._tick_at_s)
            self._tick_at_s += TICK_S
        picks = [pick]
        while len(picks) < self._draws - self._has_homes:
            picks.append(flowhash.pick_again(picks[-1]))
        drawn = [int(self._ring[flowhash.ring_slot(each, RING_SLOTS)]) - 1 for each in picks]
        scores = score.of_draws([self._row[server] for server in drawn], picks)
        best = min(scores)
        if self._has_homes:
            home = int(self._ring[flowhash.ring_slot(source, RING_SLOTS)]) - 1
            row = self._row[home]
            if score.of_load(row) <= best + score.worth_of(row, self._worth.bytes):
                return home
        return drawn[scores.index(best)]

    def opened(self, server: int) -> None:
        self._row[server]["open"] += 1

    def closed(self, server: int) -> None:
        self._row[server]["open"] -= 1

    def asked(self, server: int, request_bytes: int, source: int, now_s: float) -> object:
        del now_s
        row = self._row[server]
        met = (float(row["waiting"]), float(request_bytes), float(row["open"]), source)
        row["waiting"] += request_bytes
        self._request_bytes += (request_bytes - self._request_bytes) / SIZES_REMEMBERED
        return met

    def answered(self, server: int, asked: object, waited_s: float, now_s: float) -> None:
        del now_s
        assert isinstance(asked, tuple)
        *met, source = asked
        self._row[server]["waiting"] -= int(met[1])
        if self._learns or self._has_homes:
            self._samples[server].append((*met, waited_s / self._time_scale))
            self._sources[server].append(source)

    def reported(self, server: int, report: Report, now_s: float) -> None:
        del now_s
        if not self._listens:
            return
        reported = EngineReport(report.running, report.waiting, report.kv_usage)
        self._reports[server] = reported
        row = self._row[server]
        hidden = words.hidden_connections(
            reported, self._request_bytes, int(row["waiting"]), self._beta
        )
        row["queue"] = words.fixed(report.running + report.waiting + hidden)
        row["report_open"], row["is_hot"] = row["open"], words.is_hot(reported)
        row["kappa"] = words.kappa(self._request_bytes, self._beta)

    def _tick(self, now_s: float) -> None:
        if self._listens:
            self._weigh_connections()
        if self._learns or self._has_homes:
            self._learn(now_s)

    def _weigh_connections(self) -> None:
        """Learn from reports what a connection weighs elsewhere, and how many draws to compare."""
        reported = [(number, report) for number, report in enumerate(self._reports) if report]
        if not reported:
            return
        queues = sum(report.queue or 0.0 for _, report in reported)
        open_ = sum(int(self._row[number]["open"]) for number, _ in reported)
        self._ratio = words.smoothed(self._ratio, queues, open_)
        self._draws = words.draws(self._configured_draws, self._ratio, self._draws)

    def _stand_in(self) -> None:
        """Estimate the queues of servers without a report, as ``agent.weighing.scores`` does."""
        silent = [number for number, report in enumerate(self._reports) if report is None]
        if not silent or not self._beta:
            return
        open_ = self._rows["open"][silent]
        self._rows["report_open"][silent] = open_
        self._rows["queue"][silent] = open_ * words.requests_each(self._ratio) * words.ONE
        self._rows["kappa"][silent] = words.kappa(self._request_bytes, self._beta)

    def _learn(self, now_s: float) -> None:
        for server, (came, sources) in enumerate(zip(self._samples, self._sources, strict=True)):
            columns = np.array(came[-abi.SAMPLES :], dtype=float).reshape(-1, 4).T
            samples, hashes = Samples(*columns), np.array(sources[-abi.SAMPLES :], dtype=np.uint64)
            came.clear()
            sources.clear()
            if self._has_homes:
                clients = self._memory.clients(server, hashes)
                self._answers = self._answers.then(samples, clients)
                samples = samples.where(clients == affinity.Client.NEW)
            self._pupils[server] = learn(self._pupils[server], samples, now_s)
        if now_s >= self._move_at_s:
            self._move_at_s += MOVE_EVERY_S
            if self._learns:
                self._move(now_s)
            self._worth = affinity.worth(self._answers, self._request_bytes, self._worths[0])

    def _move(self, now_s: float) -> None:
        del now_s
        estimates = {
            ref: pupil.estimate for ref, pupil in zip(self._refs, self._pupils, strict=True)
        }
        configured = dict(zip(self._refs, self._configured, strict=True))
        wanted = speeds(estimates, configured, self._beta)
        before = (list(self._shares), list(self._worths))
        for server, ref in enumerate(self._refs):
            one = wanted[ref]
            self._shares[server] = advance(self._shares[server], one.weight_share, one.confidence)
            worth = one.bytes_per_connection or self._beta
            self._worths[server] = advance(self._worths[server], worth, one.confidence)
        if before != (self._shares, self._worths):
            each = zip(self._configured, self._shares, strict=True)
            self.weights = [max(1, round(weight * share)) for weight, share in each]
            self._weigh()
