"""Answers of HAProxy's agent-check protocol."""

from __future__ import annotations

import pytest

from agent.telemetry.agentcheck import read_agent_check
from agent.telemetry.report import AgentCheck, AgentState, Failure


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        (b"75%\n", AgentCheck(0.75)),
        (b"75%", AgentCheck(0.75)),
        (b"up 50%\r\n", AgentCheck(0.5, AgentState.UP)),
        (b"50%,UP\n", AgentCheck(0.5, AgentState.UP)),
        (b"ready\tup\t100%\n", AgentCheck(1.0, AgentState.UP)),
        (b"0%\n", AgentCheck(0.0, AgentState.DRAIN)),
        (b"up 0% # GPU 0: XID 48\n", AgentCheck(0.0, AgentState.DRAIN, "GPU 0: XID 48")),
        (b"down 0%\n", AgentCheck(0.0, AgentState.DOWN)),
        (b"drain # too hot\n", AgentCheck(None, AgentState.DRAIN, "too hot")),
        (b"maint\n", AgentCheck(None, AgentState.MAINT)),
        (b"ready\n", AgentCheck(None, AgentState.READY)),
        (b"stopped\n", AgentCheck(None, AgentState.DOWN)),
        (b"down #GPU 0 is lost\n", AgentCheck(None, AgentState.DOWN, "GPU 0 is lost")),
        (b"fail#reason\n", AgentCheck(None, AgentState.DOWN, "reason")),
        (b"up drain 40%\n", AgentCheck(0.4, AgentState.DRAIN)),
        (b"maxconn:30\n", AgentCheck()),
        (b"maxconn:30 up nonsense 20%\n", AgentCheck(0.2, AgentState.UP)),
        (b"up\ndown\n", AgentCheck(None, AgentState.UP)),
        (b"250%\n", AgentCheck(1.0)),
        (b"up # \x1b[31mred\x00\n", AgentCheck(None, AgentState.UP, "[31mred")),
    ],
)
def test_an_answer_is_understood(answer: bytes, check: AgentCheck) -> None:
    assert read_agent_check(answer) == check


@pytest.mark.parametrize(
    "answer",
    [b"", b"\n", b"HTTP/1.1 400 Bad Request\r\n", b"-5%\n", b"%\n", b"1e9%\n", b"\xff\xfe%\n",
     b"9" * 5000 + b"%\n", b"# up\n", b"# no reading of the GPUs yet\n"],
)  # fmt: skip
def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    assert isinstance(read_agent_check(answer), Failure)
