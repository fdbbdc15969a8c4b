"""Decides what a continuous-batching engine does in each iteration, and how long it takes.

The stand-in server and the simulator share it: no clock, no input or output. An iteration
consists of the prompts that begin (as many as the token budget allows) and one token for every
running request. Its time is linear in all of them, with constants fitted to measurements on real
GPUs: Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA
2024 (the performance model of its simulator, llama2-70b with tensor parallelism over eight GPUs).

It is fast in plain Python: the cost of an iteration depends on what begins and ends in it, and it
never looks at each running request. So ``Step.tokens`` is a count; ``Engine.jobs`` are those that
got a token, and ``Engine.generated`` says how many a running job has (``Job.generated`` is set
when it stops).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass

# Kept free when a request is admitted, so that the next few tokens preempt nothing.
_KV_RESERVE = 0.01


@dataclass(frozen=True, slots=True)
class Hardware:
    """The speed and the limits of one server."""

    name: str
    prefill_s_per_token: float
    step_s: float
    step_s_per_request: float
    step_s_per_context_token: float
    max_batch: int = 64
    #: Prompt tokens that may begin in one iteration; one longer prompt begins alone.
    token_budget: int = 2048
    #: Prompts are computed in pieces: an iteration has at most ``token_budget`` tokens, those of
    #: running requests among them, and what does not fit goes on in the next one.
    chunked: bool = False
    #: Room for a full batch of usual requests (64 of 1,300 tokens are 0.63 of it).
    kv_tokens: int = 131_072
    #: Tokens of prefixes that are kept behind those that ran; 0: there is no prefix cache.
    prefix_tokens: int = 0


H100 = Hardware("h100", 0.0910e-3, 29.9e-3, 0.223e-3, 0.000162e-3)
A100 = Hardware("a100", 0.2308e-3, 44.2e-3, 0.237e-3, 0.000303e-3)
HARDWARE = {hardware.name: hardware for hardware in (H100, A100)}


@dataclass(slots=True, eq=False)
class Job:
    """One request. The engine writes the fields below ``arrived_s``; ``tag`` is the caller's."""

    prompt_tokens: int
    output_tokens: int
    arrived_s: float
    #: What its prompt begins with, and how many tokens that is: of a system prompt, of a
    #: conversation so far. The longest that the prefix cache holds is not computed again.
    prefixes: tuple[tuple[Hashable, int], ...] = ()
    #: What the cache holds of it when it is done, answer included; None: nothing.
    kept_as: Hashable | None = None
    first_token_s: float | None = None
    done_s: float | None = None
    generated: int = 0  # as of the last time it stopped running
    preemptions: int = 0
    tag: object = None
    finishes_at: int = 0  # the engine's iteration at the end of which its last token comes
    cached_tokens: int = 0  # of its prompt, when it was admitted


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration, known when it begins. It still has jobs that are cancelled during it."""

    duration_s: float
    first: tuple[Job, ...]  # their first token comes at its end
    tokens: int  # how many come at its end, one for each running job
    finished: tuple[Job, ...]


class _Prefixes:
    """The beginnings of prompts whose keys and values are kept; the least recently used one is
    evicted first.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._tokens: OrderedDict[Hashable, int] = OrderedDict()

    def held(self, prefixes: tuple[tuple[Hashable, int], ...]) -> int:
        """Return how many tokens of the longest of these prefixes are cached."""
        longest = 0
        for key, tokens in prefixes:
            there = self._tokens.get(key, 0)
            longest = max(longest, min(tokens, there))
        return longest

    def keep_all(self, prefixes: tuple[tuple[Hashable, int], ...]) -> None:
        for key, tokens in prefixes:
            self.keep(key, tokens)

    def keep(self, key: Hashable, tokens: int) -> None:
        """Cache this prefix, as far as there is room."""
        if not self._room:
            return
        self._used += tokens - self._tokens.pop(key, 0)
        self._tokens[key] = tokens
        while self._used > self._room:
            _, gone = self._tokens.popitem(last=False)
            self._used -= gone


class Engine:
    """One server: a queue, first come first served, and a batch that runs.

    When the batch outgrows the KV cache, its youngest request goes back to the head of the queue,
    and its prompt and the tokens it had generated are computed again.
    """

    def __init__(self, hardware: Hardware, slow: float = 1.0) -> None:
        self.hardware = hardware
        self.slow = slow  # all times are multiplied by it: a throttled GPU; may be set at any time
        self.preemptions = 0
        self.prompt_tokens = 0  # totals, as engines export them
        self.generation_tokens = 0
        self.iterations = 0
        self._queue: deque[Job] = deque()
        self._left: dict[Job, int] = {}  # prompt tokens left to compute, for jobs of the batch
        self._batch: dict[Job, None] = {}  # in the order of admission
        self._finishing: list[tuple[int, int, Job]] = []
        self._order = 0
        self._context = 0  # tokens in the KV cache
        self._prefixes = _Prefixes(hardware.prefix_tokens)
        self.cached_tokens = 0  # total, of all prompts

    @property
    def running(self) -> int:
        """The number of requests in the batch."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """The number of queued requests."""
        return len(self._queue)

    @property
    def jobs(self) -> Collection[Job]:
        """The jobs of the batch; it changes with every call of the engine."""
        return self._batch.keys()

    @property
    def kv_usage(self) -> float:
        """The used share of the KV cache, from 0 to 1."""
        return min(1.0, self._context / self.hardware.kv_tokens)

    def generated(self, job: Job) -> int:
        """Return how many tokens a job has generated by now."""
        if job in self._batch and job not in self._left:
            # Its last token comes at finishes_at: until then one is missing per iteration.
            return job.output_tokens - max(0, job.finishes_at - self.iterations)
        return job.generated

    def add(self, job: Job) -> None:
        """Queue a request."""
        self._queue.append(job)

    def cancel(self, job: Job) -> None:
        """Forget a request whose client has gone; an unknown request is no error."""
        if job in self._batch:
            self._stop(job)
        elif job in self._queue:
            self._queue.remove(job)

    def begin(self) -> Step | None:
        """Begin the next iteration; None: there is nothing to do."""
        admits = not self._preempt()
        first: list[Job] = []
        prefill = self._go_on(first)
        if admits and self._queue:
            prefill = self._admit(prefill, first)
        running = len(self._batch) - len(self._left)
        if not self._batch:
            return None
        hardware = self.hardware
        duration_s = (
            hardware.prefill_s_per_token * prefill
            + hardware.step_s
            + hardware.step_s_per_request * running
            + hardware.step_s_per_context_token * self._context
        )
        due = self._due(self.iterations + 1)
        return Step(duration_s * self.slow, tuple(first), running, due)

    def end(self, step: Step, now_s: float) -> None:
        """End the iteration: every running job has one more token."""
        self.iterations += 1
        running = len(self._batch) - len(self._left)
        self._context += running
        self.generation_tokens += running
        for job in step.first:
            if job in self._batch:
                job.first_token_s = now_s
        for job in step.finished:
            if job in self._batch:
                self._stop(job)
                job.done_s = now_s
                if job.kept_as is not None:
                    self._prefixes.keep(job.kept_as, job.prompt_tokens + job.generated)

    def _stop(self, job: Job) -> None:
        job.generated = self.generated(job)
        self._context -= job.prompt_tokens + job.generated
        self._left.pop(job, None)
        del self._batch[job]

    def _preempt(self) -> bool:
        """Make room for this iteration's tokens; return whether a request was preempted."""
        preempted = False
        while self._context + len(self._batch) > self.hardware.kv_tokens and len(self._batch) > 1:
            job = next(reversed(self._batch))
            self._stop(job)
            self._queue.appendleft(job)
            job.preemptions += 1
            self.preemptions += 1
            preempted = True
        return preempted

    def _budget(self) -> int:
        """Return how many prompt tokens fit an iteration, if prompts are computed in pieces."""
        return max(0, self.hardware.token_budget - len(self._batch) + len(self._left))

    def _go_on(self, first: list[Job]) -> int:
        """Compute more of unfinished prompts; return the number of tokens. ``first`` gets the jobs
        whose first token this iteration gives.
        """
        budget, prefill = self._budget() if self._left else 0, 0
        for job, left in list(self._left.items()):
            taken = min(left, budget - prefill)
            prefill += taken
            self._compute(job, left - taken, first)
        return prefill

    def _admit(self, prefill: int, first: list[Job]) -> int:
        """Admit requests from the queue after ``prefill`` prompt tokens; return the new number of
        prompt tokens. ``first`` gets the admitted jobs that have their first token now.
        """
        hardware, batch, queue = self.hardware, self._batch, self._queue
        room = hardware.kv_tokens * (1 - _KV_RESERVE)
        budget = self._budget() if hardware.chunked else hardware.token_budget
        while queue and len(batch) < hardware.max_batch:
            job = queue[0]
            tokens = job.prompt_tokens + job.generated
            # The last token is always computed, because it gives the first token of the answer.
            cached = min(self._prefixes.held(job.prefixes), tokens - 1)
            new = tokens - cached
            if prefill >= budget if hardware.chunked else prefill and prefill + new > budget:
                break
            if batch and self._context + tokens + len(batch) + 1 > room:
                break
            queue.popleft()
            taken = min(new, budget - prefill) if hardware.chunked else new
            prefill += taken
            self._context += tokens
            if job.first_token_s is None and job.preemptions == 0:
                self.prompt_tokens += job.prompt_tokens
                self.cached_tokens += cached
                job.cached_tokens = cached
                self._prefixes.keep_all(job.prefixes)
            batch[job] = None
            self._compute(job, new - taken, first)
        return prefill

    def _compute(self, job: Job, left: int, first: list[Job]) -> None:
        """Note that this many tokens of its prompt are left after this iteration."""
        if left:
            self._left[job] = left
            return
        self._left.pop(job, None)
        if job.first_token_s is None:
            first.append(job)
        job.finishes_at = self.iterations + job.output_tokens - job.generated
        self._order += 1
        heapq.heappush(self._finishing, (job.finishes_at, self._order, job))

    def _due(self, iteration: int) -> tuple[Job, ...]:
        """Return the jobs whose last token comes at the end of that iteration."""
        finishing = self._finishing
        due: list[Job] = []
        while finishing and finishing[0][0] <= iteration:
            at, _, job = heapq.heappop(finishing)
            # Entries of jobs that have been cancelled or preempted since are skipped.
            if job in self._batch and job.finishes_at == at:
                due.append(job)
        return tuple(due)
