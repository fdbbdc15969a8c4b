"""Decides how a target is asked, and which reader reads its answer."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from agent.model import Address, ModelLoaded, NodeKind, NodeTelemetry, Telemetry, TelemetryKind
from agent.telemetry import engines, node
from agent.telemetry.agentcheck import read_agent_check
from agent.telemetry.engines import read_engine
from agent.telemetry.exposition import Hints
from agent.telemetry.expression import read_expressions
from agent.telemetry.models import REQUESTS, read_models
from agent.telemetry.node import read_node
from agent.telemetry.report import Failure, Report

MODELS_TIMEOUT_S = 1.0


class Topic(enum.Enum):
    """What a target is asked about."""

    ENGINE = "engine"
    NODE = "node"
    MODELS = "models"


type Question = Telemetry | NodeTelemetry | ModelLoaded


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what it is asked."""

    address: Address
    port: int
    question: Question
    verify_tls: bool = True

    @property
    def tls(self) -> bool:
        return isinstance(self.question, Telemetry) and self.question.tls

    @property
    def timeout_s(self) -> float:
        if isinstance(self.question, ModelLoaded):
            return MODELS_TIMEOUT_S
        return self.question.timeout_s


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and the reader of the answer. With an empty ``request`` nothing is sent: the
    server sends one line by itself, and closes.
    """

    request: bytes
    read: Callable[[bytes], Report | Failure]


def usual_port(question: Question) -> int | None:
    """Return the port of a page that has a port of its own; None: the service's port."""
    match question:
        case Telemetry():
            return engines.USUAL_PORTS.get(question.kind)
        case NodeTelemetry():
            return node.USUAL_PORTS.get(question.kind)
        case ModelLoaded():
            return None


def is_asked(question: Question) -> bool:
    """Return whether telemetry is on."""
    return getattr(question, "kind", None) not in (TelemetryKind.NONE, NodeKind.NONE)


def ask_of(target: Target) -> Ask:
    """Return how this target is asked. The reader remembers where it found things on the page."""
    hints: Hints = {}
    match target.question:
        case Telemetry(kind=TelemetryKind.AGENT_CHECK):
            return Ask(b"", read_agent_check)
        case Telemetry() as telemetry:
            path = telemetry.path or engines.USUAL_PATHS[telemetry.kind]
            request = _request(target, "GET", path)
            if telemetry.kind is TelemetryKind.PROMETHEUS:
                return Ask(request, lambda page: read_expressions(telemetry, page, hints))
            return Ask(request, lambda page: read_engine(telemetry.kind, page, hints))
        case NodeTelemetry() as nodes:
            request = _request(target, "GET", nodes.path)
            return Ask(request, lambda page: read_node(nodes.kind, page, hints))
        case ModelLoaded() as model:
            request = _request(target, *REQUESTS[model.source])
            return Ask(request, lambda answer: read_models(model.source, answer))


def _request(target: Target, method: str, path: str, body: bytes = b"") -> bytes:
    literal = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {literal}:{target.port}",
        "User-Agent: steelyard-telemetry",
        "Accept: */*",
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body
