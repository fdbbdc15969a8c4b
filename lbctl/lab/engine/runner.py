"""Runs an engine by the event loop's clock, and hands its tokens to the listeners.

An iteration begins when the previous one was due to end, not when the loop got round to it. So
the engine keeps its pace however late timers fire, and is only ever behind by the last of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from lbctl.lab.engine.model import Engine, Job, Step
from lbctl.lab.engine.page import Page

# The largest delay that an engine makes up for, after the machine stood still.
MAX_LAG_S = 0.5


class Listener(Protocol):
    """Receives the tokens of a job."""

    def tokens(self, start: int, count: int, last: bool) -> None:
        """Receive that many tokens, from the one with this number on."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """The tag of a job: its listener."""

    listener: Listener
    sent: int = 0
    begun_s: float = 0.0


class Runner:
    """Owns the clock of one engine.

    The first token of a job is handed over alone and at once, the others in parts of
    ``chunk_tokens``.
    """

    def __init__(self, engine: Engine, chunk_tokens: int, page: Page) -> None:
        self.engine = engine
        self._chunk_tokens = chunk_tokens
        self._page = page
        self._due: defaultdict[int, list[Job]] = defaultdict(list)  # by iteration
        self._running = False

    def submit(
        self,
        prompt_tokens: int,
        output_tokens: int,
        listener: Listener,
        prefixes: tuple[tuple[Hashable, int], ...] = (),
        kept_as: Hashable | None = None,
    ) -> Job:
        """Queue a request; ``prefixes`` and ``kept_as`` as in ``Job``."""
        now_s = asyncio.get_running_loop().time()
        job = Job(prompt_tokens, output_tokens, now_s, prefixes, kept_as, tag=_Waiter(listener))
        self.engine.add(job)
        if not self._running:
            self._begin(now_s)
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job whose client has gone; a job that is done is no error."""
        if job.done_s is None:
            self.engine.cancel(job)
            job.tag = None
            self._page.finished("abort")

    def _begin(self, at_s: float) -> None:
        loop = asyncio.get_running_loop()
        before = self.engine.prompt_tokens
        step = self.engine.begin()
        self._running = step is not None
        if step is None:
            self._due.clear()
            return
        at_s = max(at_s, loop.time() - MAX_LAG_S)
        for job in step.first:
            if isinstance(waiter := job.tag, _Waiter):
                # A job may have arrived after the moment at which the iteration should have begun.
                waiter.begun_s = max(at_s, job.arrived_s)
        self._page.iteration.observe(self.engine.prompt_tokens - before + step.tokens)
        loop.call_at(at_s + step.duration_s, self._end, step, at_s + step.duration_s)

    def _end(self, step: Step, at_s: float) -> None:
        engine, page = self.engine, self._page
        engine.end(step, at_s)
        for job in step.first:
            if isinstance(waiter := job.tag, _Waiter):
                page.first_token.observe(at_s - job.arrived_s)
                page.queue.observe(waiter.begun_s - job.arrived_s)
                page.prefill.observe(at_s - waiter.begun_s)
                self._hand_over(job, waiter)
        if later := step.tokens - len(step.first):
            page.inter_token.observe(step.duration_s, later)
        for job in step.finished:
            if isinstance(waiter := job.tag, _Waiter):
                self._hand_over(job, waiter)
                self._count(job, waiter, at_s)
                job.tag = None
        for job in self._due.pop(engine.iterations, ()):
            if isinstance(waiter := job.tag, _Waiter):  # otherwise it has ended
                self._hand_over(job, waiter)
        self._begin(at_s)

    def _hand_over(self, job: Job, waiter: _Waiter) -> None:
        """Hand over the tokens that a job has generated since the last time."""
        last = job.done_s is not None
        if count := self.engine.generated(job) - waiter.sent:
            waiter.listener.tokens(waiter.sent, count, last)
            waiter.sent += count
        if not last:
            self._due[self.engine.iterations + self._chunk_tokens].append(job)

    def _count(self, job: Job, waiter: _Waiter, done_s: float) -> None:
        """Count a job that has had its last token."""
        page = self._page
        page.finished("length")
        page.request_prompt.observe(job.prompt_tokens)
        page.request_generation.observe(job.generated)
        page.max_generation.observe(job.output_tokens)
        page.params_max_tokens.observe(job.output_tokens)
        page.params_n.observe(1)
        page.latency.observe(done_s - job.arrived_s)
        page.inference.observe(done_s - waiter.begun_s)
        decode_s = done_s - (job.first_token_s or done_s)
        page.decode.observe(decode_s)
        if job.generated > 1:
            page.per_output_token.observe(decode_s / (job.generated - 1))
