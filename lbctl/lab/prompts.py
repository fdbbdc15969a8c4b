"""Makes the load of AI clients: prompts of varied length, whose answers are streamed.

Each has a connection of its own and comes when it comes, however long the others take (a Poisson
process). Writes one JSON line per prompt (``figures.Prompt``), with its time to first token. Run
it in a client of a lab with engines:

    lbctl lab exec client -- python3 -m lbctl.lab.prompts --target 10.99.0.100:8000 --duration 5
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from lbctl.lab.client import (
    FAILURES,
    Connection,
    ProtocolError,
    Target,
    describe,
    leaving_on_signals,
    number,
    parser,
    run,
    within,
    write,
)
from lbctl.lab.figures import Prompt

PATH = "/v1/chat/completions"
MAX_OPEN = 1000
_BYTES_PER_TOKEN = 5
# Lengths are log-normal, like prompts of conversations, with both ends cut off.
_SPREAD = 0.8
_SHORTEST, _LONGEST = 0.05, 4.0  # times the median


@dataclass(frozen=True, slots=True)
class Plan:
    """The load to make; lengths are medians."""

    targets: tuple[Target, ...]
    rate_per_s: float
    prompt_tokens: int
    answer_tokens: int
    timeout_s: float


def length(median: int, draw: random.Random) -> int:
    """Return the number of tokens of the next prompt or answer."""
    drawn = draw.lognormvariate(math.log(median), _SPREAD)
    return max(1, round(min(max(drawn, _SHORTEST * median), _LONGEST * median)))


def request_body(prompt_tokens: int, answer_tokens: int) -> bytes:
    """Return a chat request with a prompt of that many tokens."""
    text = "word " * (prompt_tokens * _BYTES_PER_TOKEN // 5)
    document = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": answer_tokens,
        "stream": True,
    }
    return json.dumps(document).encode()


async def ask(target: Target, prompt_tokens: int, answer_tokens: int, timeout_s: float) -> Prompt:
    """Send one prompt and read its answer to the end."""
    started_s = time.monotonic()
    backend: str | None = None
    first_s: float | None = None
    error: str | None = None
    try:
        async with Connection(target, timeout_s) as connection:
            head = await connection.ask(PATH, request_body(prompt_tokens, answer_tokens))
            backend = head.backend
            if head.status != 200:
                raise ProtocolError(f"status {head.status}")
            while await connection.read_chunk():
                first_s = first_s or time.monotonic()
    except FAILURES as failure:
        error = describe(failure)
    ended_s = time.monotonic()
    return Prompt(
        at_s=ended_s,
        started_s=started_s,
        target=str(target),
        backend=backend,
        error=error,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        first_token_ms=None if first_s is None else _ms(first_s - started_s),
        done_ms=None if error else _ms(ended_s - started_s),
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


async def generate(plan: Plan, emit: Callable[[Prompt], None], duration_s: float | None) -> None:
    """Make the load until the time is over, or until SIGTERM or SIGINT; open requests then end."""
    leaving = leaving_on_signals()
    draw = random.Random()  # noqa: S311
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    end_s = math.inf if duration_s is None else due_s + duration_s
    open_now: set[asyncio.Task[Prompt]] = set()
    number = 0

    def done(task: asyncio.Task[Prompt]) -> None:
        open_now.discard(task)
        if not task.cancelled():
            emit(task.result())

    while not leaving.is_set() and due_s < end_s:
        if len(open_now) < MAX_OPEN:
            lengths = length(plan.prompt_tokens, draw), length(plan.answer_tokens, draw)
            target = plan.targets[number % len(plan.targets)]
            task = asyncio.create_task(ask(target, *lengths, plan.timeout_s), name="prompt")
            open_now.add(task)
            task.add_done_callback(done)
            number += 1
        due_s += draw.expovariate(plan.rate_per_s)
        await within(min(due_s, end_s) - loop.time(), leaving.wait())
    if open_now:
        await asyncio.wait(open_now)
        await asyncio.sleep(0)  # lets their callbacks run


def main() -> None:
    """Run the command line."""
    command_line = parser("lbctl.lab.prompts", __doc__, timeout_s=30.0)
    add = command_line.add_argument
    add("--rate", type=number(float), default=10.0, help="prompts per second")
    add("--prompt-tokens", type=number(int), default=800, help="median length of a prompt")
    add("--answer-tokens", type=number(int), default=100, help="median length of an answer")
    options = command_line.parse_args()
    plan = Plan(
        targets=tuple(options.target),
        rate_per_s=options.rate,
        prompt_tokens=options.prompt_tokens,
        answer_tokens=options.answer_tokens,
        timeout_s=options.timeout,
    )
    run(generate(plan, write, options.duration))


if __name__ == "__main__":
    main()
