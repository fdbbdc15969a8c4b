"""How targets are asked."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.model import ModelLoaded, ModelSource, NodeKind, NodeTelemetry, Telemetry, TelemetryKind
from agent.telemetry.asks import Question, Target, ask_of, is_asked, usual_port
from agent.telemetry.report import AgentCheck, EngineReport

ADDRESS = ip_address("10.0.0.1")


def first_lines(question: Question) -> list[str]:
    ask = ask_of(Target(ADDRESS, 8000, question))
    return ask.request.decode().split("\r\n")[:2]


def test_a_page_is_asked_for_by_its_usual_path() -> None:
    assert first_lines(Telemetry(TelemetryKind.VLLM)) == [
        "GET /metrics HTTP/1.1",
        "Host: 10.0.0.1:8000",
    ]
    assert first_lines(Telemetry(TelemetryKind.TRTLLM))[0] == "GET /prometheus/metrics HTTP/1.1"
    assert first_lines(NodeTelemetry(NodeKind.DCGM))[0] == "GET /metrics HTTP/1.1"
    assert first_lines(Telemetry(TelemetryKind.VLLM, path="/m?x=1"))[0] == "GET /m?x=1 HTTP/1.1"


def test_an_ipv6_address_is_bracketed() -> None:
    target = Target(ip_address("2001:db8::1"), 8000, Telemetry(TelemetryKind.VLLM))
    assert b"\r\nHost: [2001:db8::1]:8000\r\n" in ask_of(target).request


def test_tritons_index_is_posted() -> None:
    request = ask_of(Target(ADDRESS, 8000, ModelLoaded("m", ModelSource.TRITON))).request
    assert request.startswith(b"POST /v2/repository/index HTTP/1.1\r\n")
    assert request.endswith(b'Content-Length: 14\r\n\r\n{"ready":true}')


def test_an_agent_check_is_not_asked_but_listened_to() -> None:
    ask = ask_of(Target(ADDRESS, 9119, Telemetry(TelemetryKind.AGENT_CHECK)))
    assert ask.request == b""
    assert ask.read(b"50%\n") == AgentCheck(0.5)


@pytest.mark.parametrize("kind", [k for k in TelemetryKind if k is not TelemetryKind.NONE])
def test_every_kind_has_a_reader_that_survives_nonsense(kind: TelemetryKind) -> None:
    read = ask_of(Target(ADDRESS, 1, Telemetry(kind, running="x"))).read
    for nonsense in (b"", b"\x00\xff" * 100, b"<html>", b"{}", b"[]", b"null"):
        read(nonsense)


def test_expressions_are_read() -> None:
    telemetry = Telemetry(TelemetryKind.PROMETHEUS, waiting="jobs * 2")
    assert ask_of(Target(ADDRESS, 1, telemetry)).read(b"jobs 3\n") == EngineReport(waiting=6)


def test_what_is_off_is_not_asked() -> None:
    assert not is_asked(Telemetry())
    assert not is_asked(NodeTelemetry())
    assert is_asked(Telemetry(TelemetryKind.TGI))
    assert is_asked(ModelLoaded("m"))


def test_pages_with_a_port_of_their_own() -> None:
    assert usual_port(Telemetry(TelemetryKind.TRITON)) == 8002
    assert usual_port(Telemetry(TelemetryKind.VLLM)) is None
    assert usual_port(NodeTelemetry(NodeKind.DCGM)) == 9400
    assert usual_port(ModelLoaded("m")) is None
