"""What the failover process hears of the backends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent.model import BackendRef, NoBackend
from agent.pair.agentstatus import up_of
from agent.pair.readiness import is_reaching

A, B = BackendRef("web", "a"), BackendRef("web", "b")


def now(no_backend: NoBackend = NoBackend.DROP, **usable: bool) -> Any:
    web = SimpleNamespace(name="web", backends=(0, 0), no_backend=no_backend)
    return SimpleNamespace(
        config=SimpleNamespace(services=(web,)),
        verdicts={ref: SimpleNamespace(usable=usable[ref.backend]) for ref in (A, B)},
    )


def test_backends_that_are_up_are_counted() -> None:
    assert up_of(now(a=True, b=False)) == {"web": (1, 2)}


def test_what_an_interface_of_this_node_keeps_from_it_does_not_count() -> None:
    """Their checks say nothing then, and another node may well reach them."""
    assert up_of(now(a=True, b=True), {A}) == {"web": (1, 2)}
    assert up_of(now(a=True, b=True), {A, B}) == {"web": (0, 2)}


def test_a_service_that_is_scaled_to_zero_takes_no_node_out() -> None:
    holds = NoBackend.HOLD
    assert up_of(now(holds, a=False, b=False)) == {"web": (0, 0)}
    assert up_of(now(holds, a=True, b=False)) == {"web": (1, 2)}
    assert is_reaching(up_of(now(holds, a=False, b=False)))
