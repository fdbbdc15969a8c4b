"""Decides what an answer in HAProxy's agent-check protocol asks for."""

from __future__ import annotations

import re

from agent.telemetry.report import AgentCheck, AgentState, Failure

# In order from the strongest request to the weakest. If an answer has several words, the strongest
# one counts.
_WORDS = {
    "maint": AgentState.MAINT,
    "down": AgentState.DOWN,
    "stopped": AgentState.DOWN,
    "fail": AgentState.DOWN,
    "drain": AgentState.DRAIN,
    "up": AgentState.UP,
    "ready": AgentState.READY,
}
_STRENGTH = {state: place for place, state in enumerate(dict.fromkeys(_WORDS.values()))}
_SEPARATORS = re.compile(r"[ \t,]+")
_LONGEST_REASON = 200


def read_agent_check(answer: bytes) -> AgentCheck | Failure:
    """Read the first line: a weight in percent and states, in any order, and a reason after ``#``.

    A weight of 0 % is a drain, as for HAProxy. One above 100 % counts as 100 %, because no answer
    may raise a backend above its configured weight. ``maxconn`` is accepted and ignored, because a
    layer-4 balancer has no queue in which it could hold connections back.
    """
    line = re.split(rb"[\r\n]", answer, maxsplit=1)[0].decode("ascii", "replace")
    words, _, reason = line.partition("#")
    states: list[AgentState] = []
    weight: float | None = None
    known = False
    for word in _SEPARATORS.split(words.strip().lower()):
        if word in _WORDS:
            states.append(_WORDS[word])
        elif word.endswith("%") and word[:-1].isdecimal() and len(word) <= 10:
            weight = min(int(word[:-1]), 100) / 100
        elif not word.startswith("maxconn:"):
            continue
        known = True
    if not known:
        return Failure("the answer is not that of an agent check")
    if weight == 0:
        states.append(AgentState.DRAIN)
    state = min(states, key=_STRENGTH.__getitem__, default=None)
    printable = "".join(c for c in reason.strip() if c.isprintable())
    return AgentCheck(weight, state, printable[:_LONGEST_REASON])
