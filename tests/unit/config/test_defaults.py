"""What holds where the operator says nothing."""

from __future__ import annotations

import pytest

from agent.config.defaults import check_port, default_service
from agent.config.load import parse
from agent.model import Protocol, Scheduler, ServiceKey
from tests.unit.config.documents import backend, load, service


@pytest.mark.parametrize(
    ("health_port", "backend_port", "port", "checked"),
    [
        (9000, 8000, 80, 9000),
        (None, 8000, 80, 8000),
        (None, None, 80, 80),
        (None, None, "8000-8100", 8000),
        (None, 8500, "8000-8100", 8500),
        (None, 8000, "any", 8000),
    ],
)
def test_the_port_that_is_checked(
    health_port: int | None, backend_port: int | None, port: object, checked: int
) -> None:
    (chat,) = load(
        service(
            port=port,
            forward="fullnat",
            health={"port": health_port},
            backends=[backend(1, port=backend_port)],
        )
    ).services
    assert check_port(chat, chat.backends[0]) == checked


@pytest.mark.parametrize("protocol", Protocol)
def test_a_service_that_sets_nothing_is_the_default_one(protocol: Protocol) -> None:
    text = f"""\
interface: eth0
services: [{{name: chat, vip: 10.0.0.10, port: 80, protocol: {protocol.value}}}]
"""
    (chat,) = parse(text, "f").services
    assert chat == default_service("chat", ServiceKey(chat.key.vip, 80, protocol))
    assert chat.scheduler is Scheduler.LEAST_LOAD
    assert chat.count_waiting is (protocol is Protocol.TCP)
