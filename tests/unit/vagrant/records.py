"""Records of a load as the smoke test's generator reports them."""

from __future__ import annotations

from lbctl.lab.figures import Held, Request
from lbctl.lab.judge import Window

V4, V6 = "10.77.1.100:80", "[fd77:0:0:1::100]:82"


def answered(
    started_s: float, backend: str = "be1", target: str = V4, latency_ms: float = 40.0
) -> Request:
    return Request(started_s + latency_ms / 1000, started_s, target, backend, 200, None, latency_ms)


def failed(started_s: float, error: str = "refused", target: str = V4) -> Request:
    return Request(started_s + 0.1, started_s, target, None, None, error, 100.0)


def held(connection: int, event: str, at_s: float, backend: str = "be1") -> Held:
    return Held(at_s, connection, "keep-alive", event, V4, backend, None)


def window(requests: list[Request], events: list[Held] | None = None) -> Window:
    """From second 10 to 100."""
    events = [held(1, "opened", 1.0), held(2, "opened", 1.0, "be2")] if events is None else events
    return Window(10.0, 100.0, requests, events)
