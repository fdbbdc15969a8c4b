"""Decides what is asked and when: lengths from the Azure traces, arrivals of a given burstiness.

Lengths are (prompt, answer) pairs drawn from the trace as they are: the two are correlated, and no
simple distribution fits them. Where the traces are absent, they are drawn from the published
quantiles, independently. Arrivals are a renewal process with Gamma gaps: those of the trace have a
coefficient of variation of 1.09; 3.6 stands for bursts.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TRACE_CV = 1.09
BURSTY_CV = 3.6
BYTES_PER_TOKEN = 5  # of English text with the usual tokenizers, including the JSON around it
PLACE = "STEELYARD_TRACES"
_DEFAULT_PLACE = Path(__file__).parents[3] / "shared" / "traces"
_FILE = "AzureLLMInferenceTrace_{name}.csv"

type Floats = npt.NDArray[np.float64]
type Pairs = npt.NDArray[np.int64]

# Quantiles of prompt and answer tokens of the conversation trace, with means of 1155 and 211.
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_PROMPT = (20.0, 181.0, 396.0, 1020.0, 1189.0, 2735.0, 4142.0, 5000.0)
_ANSWER = (7.0, 41.0, 85.0, 129.0, 395.0, 424.0, 601.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pairs of prompt and answer tokens to draw from, and their origin."""

    pairs: Pairs
    source: str

    @property
    def mean_prompt(self) -> float:
        return float(self.pairs[:, 0].mean())

    @property
    def mean_answer(self) -> float:
        return float(self.pairs[:, 1].mean())


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    source: int | None = None  # the user; None: one who sends a single request
    prefixes: tuple[tuple[Hashable, int], ...] = ()  # as in ``Job``
    kept_as: Hashable | None = None

    @property
    def prompt_bytes(self) -> int:
        return self.prompt_tokens * BYTES_PER_TOKEN


def folder() -> Path:
    """Return the folder of the traces: the environment's, or one beside the repository."""
    return Path(os.environ.get(PLACE) or _DEFAULT_PLACE)


def path(name: str = "conv", place: Path | None = None) -> Path:
    """Return the file of a trace (``conv`` or ``code``), in ``place`` or in ``folder()``."""
    return (place or folder()) / _FILE.format(name=name)


def lengths(name: str = "conv", place: Path | None = None) -> Lengths:
    """Return the pairs of a trace, or generated ones if it is absent."""
    file = path(name, place)
    if not file.exists():
        return generated()
    pairs = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2), dtype=np.int64)
    return Lengths(np.maximum(pairs, 1), f"Azure LLM inference trace 2023, {name}")


def generated(count: int = 20_000, seed: int = 1) -> Lengths:
    """Return pairs with the published quantiles of the conversation trace."""
    rng = np.random.default_rng(seed)
    columns = [
        np.interp(rng.random(count), _QUANTILES, values).round() for values in (_PROMPT, _ANSWER)
    ]
    pairs = np.column_stack(columns).astype(np.int64)
    return Lengths(pairs, "generated from the trace's published quantiles")


def gaps(rng: np.random.Generator, count: int, rate_per_s: float, cv: float) -> Floats:
    """Return seconds between arrivals: Gamma with this mean rate and coefficient of variation."""
    shape = 1.0 / cv**2
    return rng.gamma(shape, 1.0 / (rate_per_s * shape), count)


def requests(
    of: Lengths, count: int, rate_per_s: float, cv: float, seed: int
) -> tuple[Request, ...]:
    """Return requests, always the same for the same seed."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(gaps(rng, count, rate_per_s, cv))
    # The rate of so small a sample varies: scale it, so all comes within the intended time.
    at_s *= count / rate_per_s / at_s[-1]
    pairs = of.pairs[rng.integers(0, len(of.pairs), count)]
    return tuple(
        Request(float(at), int(prompt), int(answer))
        for at, (prompt, answer) in zip(at_s, pairs, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Conversations:
    """Conversations of several turns: each prompt is all that was said before, and more.

    ``turns``: the mean of a geometric distribution; ``think_s``: the mean time between an answer
    and the next prompt; ``system_tokens``: the beginning of each, the same for all of a tenant's;
    ``users_each``: the number of users behind one address.
    """

    count: int
    per_s: float  # conversations that begin
    turns: float
    think_s: float
    system_tokens: int
    tenants: int = 20
    users_each: int = 1
    most_tokens: int = 8000  # of a prompt and its answer: more end the conversation


_TURN_SHARE = 0.25  # the new part of the trace's prompts, which contain their history
_TOKEN_S = 0.04  # time per token of an answer, before its reader begins to think


def conversations(
    of: Lengths, what: Conversations, seed: int, first: int = 0
) -> tuple[Request, ...]:
    """Return the requests of conversations, always the same for the same seed.

    ``first``: the number of the first conversation.
    """
    rng = np.random.default_rng(seed)
    begins = np.cumsum(rng.exponential(1 / what.per_s, what.count))
    found: list[Request] = []
    for number, begin in enumerate(begins.tolist(), first):
        tenant, turns = int(rng.integers(what.tenants)), int(rng.geometric(1 / what.turns))
        pairs = of.pairs[rng.integers(0, len(of.pairs), turns)]
        pauses = rng.exponential(what.think_s, turns)
        said, at_s = what.system_tokens, begin
        system = (("tenant", tenant), what.system_tokens)
        for (prompt, answer), pause_s in zip(pairs.tolist(), pauses.tolist(), strict=True):
            new = max(20, round(prompt * _TURN_SHARE))
            if said + new + answer > what.most_tokens:
                break
            key = ("conversation", number)
            prefixes = (system, (key, said)) if said > what.system_tokens else (system,)
            source = number // what.users_each
            found.append(Request(at_s, said + new, answer, source, prefixes, key))
            said += new + answer
            at_s += answer * _TOKEN_S + pause_s
    return tuple(sorted(found, key=lambda request: request.at_s))
