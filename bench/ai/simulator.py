"""Simulates the lab's engine model and the balancers' decisions, event by event.

Times are the engines' own. A balancer is told what a real packet path would see: when a connection
is opened and closed, how many request bytes pass, when an answer begins; and what telemetry
reports. It never sees requests that bypass it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.dataplane import flowhash
from bench.ai.trace import Request
from lbctl.lab.engine.model import Engine, Hardware, Job, Step

PREFILL_SHARE = 0.1  # of the requests, the first ones: they fill the servers and are not counted


@dataclass(frozen=True, slots=True)
class Report:
    """A telemetry report of one server."""

    running: int
    waiting: int
    kv_usage: float


class Balancer(Protocol):
    """A balancer's decisions, and the events that it is told of."""

    def choose(self, pick: int, source: int, now_s: float) -> int:
        """Return the server of a new connection.

        ``pick``: the hash of its addresses and ports; ``source``: of only the client's address.
        """

    def opened(self, server: int) -> None:
        """A connection to the server was opened."""

    def closed(self, server: int) -> None:
        """A connection to the server was closed."""

    def asked(self, server: int, request_bytes: int, source: int, now_s: float) -> object:
        """A request went to the server; the result is passed to ``answered``."""

    def answered(self, server: int, asked: object, waited_s: float, now_s: float) -> None:
        """The first byte of the answer has come."""

    def reported(self, server: int, report: Report, now_s: float) -> None:
        """There is a new report of the server."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A server that is throttled for a while: by which factor, from when until when."""

    server: int
    factor: float
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated, apart from the balancers."""

    fleet: tuple[Hardware, ...]
    requests: tuple[Request, ...]
    seed: int = 1
    balancers: int = 1
    clients: int = 0  # with persistent connections; 0: each request has a connection of its own
    keep_alive_s: float = 60.0  # idle time after which a connection is closed
    bypass: float = 0.0  # share of the requests that go straight to a server, evenly
    slowdown: Slowdown | None = None
    poll_s: float = 0.2
    lost: frozenset[int] = frozenset()  # servers without telemetry


@dataclass(slots=True)
class _Connection:
    """A client's connection to one server; ``balancer`` None: it bypasses them."""

    server: int
    balancer: Balancer | None
    used: int = 0  # by how many requests
    busy: bool = True
    closed: bool = False


@dataclass(slots=True)
class _Sent:
    """A request in flight: the value of ``Job.tag``."""

    number: int
    connection: _Connection
    asked: object


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a run, for all requests in their order and for all servers."""

    first_token_s: npt.NDArray[np.float64]  # waiting time; NaN: it never came
    server: npt.NDArray[np.int16]
    bypassed: npt.NDArray[np.bool_]
    tokens_per_s: float
    preemptions: int
    cached_share: float = 0.0  # of all prompt tokens, those found in prefix caches

    @property
    def counted(self) -> npt.NDArray[np.float64]:
        """The waits of balanced requests, without those at the start."""
        first = int(PREFILL_SHARE * len(self.first_token_s))
        return self.first_token_s[first:][~self.bypassed[first:]]


@dataclass(frozen=True, slots=True)
class Chances:
    """The random draws of each request."""

    pick: list[int]  # the hash of its addresses and ports
    balancer: list[int]  # the balancer that it comes to
    bypasses: list[bool]
    target: list[int]  # the server, if it bypasses the balancers
    client: list[int]


def chances(scenario: Scenario) -> Chances:
    """Draw them before the run, so that they are the same for every contender."""
    rng = np.random.default_rng(scenario.seed + 1000)
    count = len(scenario.requests)
    return Chances(
        pick=rng.integers(0, 2**63, count).tolist(),
        balancer=rng.integers(0, scenario.balancers, count).tolist(),
        bypasses=(rng.random(count) < scenario.bypass).tolist(),
        target=rng.integers(0, len(scenario.fleet), count).tolist(),
        client=rng.integers(0, max(1, scenario.clients), count).tolist(),
    )


@dataclass(slots=True)
class _Server:
    engine: Engine
    step: Step | None = None


class _Simulation:
    """One run; the heap holds (time, tie-breaker, action)."""

    def __init__(self, scenario: Scenario, make: Callable[[int], Balancer]) -> None:
        count = len(scenario.requests)
        self.now_s = 0.0
        self._scenario = scenario
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._servers = [_Server(Engine(hardware)) for hardware in scenario.fleet]
        self._balancers = [make(number) for number in range(scenario.balancers)]
        self._drawn = chances(scenario)
        self._idle: dict[tuple[int, bool], deque[_Connection]] = {}
        self._waited = np.full(count, np.nan)
        self._server_of = np.zeros(count, dtype=np.int16)
        self._unanswered = count

    def run(self) -> Outcome:
        """Run all requests, until the last one has its answer."""
        scenario = self._scenario
        self._at(scenario.requests[0].at_s, lambda: self._arrive(0))
        for number in range(scenario.balancers):
            first_s = scenario.poll_s * number / scenario.balancers
            self._at(first_s, partial(self._poll, number))
        if slow := scenario.slowdown:
            engine = self._servers[slow.server].engine
            self._at(slow.from_s, lambda: setattr(engine, "slow", slow.factor))
            self._at(slow.until_s, lambda: setattr(engine, "slow", 1.0))
        while self._unanswered:
            self.now_s, _, do = heapq.heappop(self._events)
            do()
        engines = [server.engine for server in self._servers]
        return Outcome(
            self._waited,
            self._server_of,
            np.array(self._drawn.bypasses),
            sum(engine.generation_tokens for engine in engines) / self.now_s,
            sum(engine.preemptions for engine in engines),
            sum(engine.cached_tokens for engine in engines)
            / max(1, sum(engine.prompt_tokens for engine in engines)),
        )

    def _at(self, when_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._ties), do))

    def _arrive(self, number: int) -> None:
        requests = self._scenario.requests
        if number + 1 < len(requests):
            self._at(requests[number + 1].at_s, lambda: self._arrive(number + 1))
        self._ask(number, self._connect(number))

    def _ask(self, number: int, connection: _Connection) -> None:
        """Pass the bytes of a request to its server."""
        request = self._scenario.requests[number]
        server, balancer = connection.server, connection.balancer
        source, size = self._source(number), request.prompt_bytes
        asked = balancer.asked(server, size, source, self.now_s) if balancer else None
        job = Job(
            request.prompt_tokens,
            request.answer_tokens,
            request.at_s,
            request.prefixes,
            request.kept_as,
        )
        job.tag = _Sent(number, connection, asked)
        self._server_of[number] = server
        self._servers[server].engine.add(job)
        if self._servers[server].step is None:
            self._begin(server)

    def _connect(self, number: int) -> _Connection:
        """Return a connection of the client that is idle and not expired, or a new one."""
        key = (self._drawn.client[number], self._drawn.bypasses[number])
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                connection.busy = True
                connection.used += 1
                return connection
        if self._drawn.bypasses[number]:
            return _Connection(self._drawn.target[number], None)
        balancer = self._balancers[self._drawn.balancer[number]]
        server = balancer.choose(self._drawn.pick[number], self._source(number), self.now_s)
        balancer.opened(server)
        return _Connection(server, balancer)

    def _source(self, number: int) -> int:
        """Return the hash of the client's address."""
        source = self._scenario.requests[number].source
        if source is None:
            return self._drawn.pick[number]
        return flowhash.pick_again(source)

    def _expire(self, connection: _Connection, used: int) -> None:
        if not connection.busy and connection.used == used:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if not connection.closed:
            connection.closed = True
            if connection.balancer:
                connection.balancer.closed(connection.server)

    def _release(self, sent: _Sent) -> None:
        """Handle the end of an answer: free or close the connection."""
        connection, scenario = sent.connection, self._scenario
        connection.busy = False
        if not scenario.clients:
            self._close(connection)
            return
        key = (self._drawn.client[sent.number], self._drawn.bypasses[sent.number])
        self._idle.setdefault(key, deque()).append(connection)
        used = connection.used
        self._at(self.now_s + scenario.keep_alive_s, lambda: self._expire(connection, used))

    def _begin(self, server: int) -> None:
        held = self._servers[server]
        held.step = held.engine.begin()
        if held.step is not None:
            self._at(self.now_s + held.step.duration_s, lambda: self._end(server))

    def _end(self, server: int) -> None:
        held = self._servers[server]
        step = held.step
        assert step is not None
        held.engine.end(step, self.now_s)
        for job in step.first:
            self._first_token(job)
        for job in step.finished:
            self._unanswered -= 1
            assert isinstance(job.tag, _Sent)
            self._release(job.tag)
        self._begin(server)

    def _first_token(self, job: Job) -> None:
        sent = job.tag
        assert isinstance(sent, _Sent)
        waited_s = self.now_s - job.arrived_s
        self._waited[sent.number] = waited_s
        connection = sent.connection
        if connection.balancer:
            connection.balancer.answered(connection.server, sent.asked, waited_s, self.now_s)

    def _poll(self, number: int) -> None:
        """Poll every server for one of the balancers, which poll at different times."""
        balancer, lost = self._balancers[number], self._scenario.lost
        for server, held in enumerate(self._servers):
            if server not in lost:
                engine = held.engine
                report = Report(engine.running, engine.waiting, engine.kv_usage)
                balancer.reported(server, report, self.now_s)
        self._at(self.now_s + self._scenario.poll_s, lambda: self._poll(number))


def simulate(scenario: Scenario, make: Callable[[int], Balancer]) -> Outcome:
    """Simulate one run; ``make`` returns each balancer, by its number from 0."""
    return _Simulation(scenario, make).run()


def percentiles(waits_s: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return p50, p95, p99 and p99.9."""
    return tuple(float(value) for value in np.percentile(waits_s, (50, 95, 99, 99.9)))
