"""``lbctl flows``: what the flow table remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from agent.model import BackendRef
from lbctl.environment import Environment, Output, pass_environment
from lbctl.options import BACKEND_FILTER, PREFIX, SERVICE, agent_options
from lbctl.output import emit

STATES = ("embryonic", "acked", "established", "closing")


@click.command()
@click.option("--service", type=SERVICE, metavar="SERVICE", help="Only of this service.")
@click.option(
    "--backend",
    type=BACKEND_FILTER,
    metavar="BACKEND",
    help="Only of this backend: SERVICE/BACKEND, or its name in any service.",
)
@click.option("--client", type=PREFIX, metavar="ADDRESS|PREFIX", help="Only from there.")
@click.option("--state", type=click.Choice(STATES), help="Only in this state.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=100,
    show_default=True,
    help="At most so many.",
)
@agent_options
@pass_environment
def flows(
    env: Environment,
    service: str | None,
    backend: BackendRef | None,
    client: str | None,
    state: str | None,
    limit: int,
) -> None:
    """Recorded flows, by service, backend, client or state.

    A flow is listed once its second packet was seen; embryonic ones have no addresses yet.

    \b
    Examples:
      lbctl flows --service chat --limit 20
      lbctl flows --backend chat/gpu-1 --client 198.51.100.0/24
    """
    named = backend.service if backend else ""
    if service and named and service != named:
        raise click.UsageError(f"--backend {backend} is not a backend of --service {service}")
    answer = env.agent().get(
        "/v1/flows",
        {
            "service": service or named or None,
            "backend": backend.backend if backend else None,
            "client": client,
            "state": state,
            "limit": limit,
        },
    )
    emit(env, answer, _view)
    if env.output is Output.TABLE and answer["matched"] > answer["shown"]:
        env.note(f"{answer['shown']} of {answer['matched']:,} flows shown; --limit shows more")


def _view(data: Mapping[str, Any]) -> list[object]:
    from lbctl.humanise import age, endpoint
    from lbctl.layout import Cell, Column, Table

    if not data["flows"]:
        return ["no flows"]
    columns = (
        Column("SERVICE"),
        Column("BACKEND"),
        Column("PROTO", drop=2),
        Column("CLIENT"),
        Column("VIP", drop=3),
        Column("STATE"),
        Column("AGE", right=True, drop=1),
        Column("IDLE", right=True),
    )
    rows = tuple(
        (
            Cell(flow["service"]),
            Cell(flow["backend"]),
            Cell(flow["protocol"]),
            Cell(endpoint(flow["client"], flow["client_port"])),
            Cell(endpoint(flow["vip"], flow["port"])),
            Cell(flow["state"], "green" if flow["state"] == "established" else "dim"),
            Cell(age(flow["age_s"])),
            Cell(age(flow["idle_s"])),
        )
        for flow in data["flows"]
    )
    return [Table(columns, rows)]
