"""``lbctl flows``: the recorded flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.model import BackendRef
from lbctl.environment import Environment, Output, pass_environment
from lbctl.options import BACKEND_FILTER, PREFIX, SERVICE, agent_options
from lbctl.output import emit

STATES = ("embryonic", "acked", "established", "closing", "awaiting")

if TYPE_CHECKING:
    from lbctl.layout import Table


@click.command()
@click.option("--service", type=SERVICE, metavar="SERVICE", help="Only flows of this service.")
@click.option(
    "--backend",
    type=BACKEND_FILTER,
    metavar="BACKEND",
    help="Only flows of this backend: SERVICE/BACKEND, or its name in any service.",
)
@click.option("--client", type=PREFIX, metavar="ADDRESS|PREFIX", help="Only flows from there.")
@click.option(
    "--state",
    type=click.Choice(STATES),
    help="Only flows in this state; awaiting: a request waits for its answer.",
)
@click.option(
    "--hottest",
    is_flag=True,
    help="First the flows with most waiting request bytes, then those with the newest packet.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=100,
    show_default=True,
    help="Show at most N flows.",
)
@agent_options
@pass_environment
def flows(
    env: Environment,
    service: str | None,
    backend: BackendRef | None,
    client: str | None,
    state: str | None,
    hottest: bool,
    limit: int,
) -> None:
    """List recorded flows, by service, backend, client or state.

    A flow is listed once its second packet was seen; embryonic flows have no addresses yet.
    WAITING B is the number of request bytes that wait for an answer, HANDSHAKE the time from SYN
    to ACK, NAT SOURCE the address that a fullnat backend sees as the client.

    \b
    Examples:
      lbctl flows --service chat --limit 20
      lbctl flows --service chat --state awaiting
      lbctl flows --backend chat/gpu-1 --client 198.51.100.0/24
      lbctl flows --backend chat/gpu-1 --hottest --limit 5
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
            "hottest": "true" if hottest else None,
            "limit": limit,
        },
    )
    emit(env, answer, _view)
    if env.output is Output.TABLE and answer["matched"] > answer["shown"]:
        env.note(f"{answer['shown']} of {answer['matched']:,} flows shown; --limit shows more")


def _view(data: Mapping[str, Any]) -> list[object]:
    return [flow_table(data["flows"])] if data["flows"] else ["no flows"]


def flow_table(flows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of flows."""
    from agent.humanise import age, endpoint
    from lbctl.layout import Cell, Column, Table

    counted = any(flow["waiting_bytes"] is not None for flow in flows)
    columns = (
        Column("SERVICE"),
        Column("BACKEND"),
        Column("PROTO", drop=2),
        Column("CLIENT"),
        Column("VIP", drop=3),
        *((Column("NAT SOURCE", drop=4),) if any(flow["nat_source"] for flow in flows) else ()),
        Column("STATE"),
        *(
            (
                Column("WAITING B", right=True, drop=5),
                Column("TALK", drop=7),
                Column("HANDSHAKE", right=True, drop=6),
            )
            if counted
            else ()
        ),
        Column("AGE", right=True, drop=1),
        Column("IDLE", right=True),
    )
    has_source = any(column.header == "NAT SOURCE" for column in columns)
    rows = tuple(
        (
            Cell(flow["service"]),
            Cell(flow["backend"]),
            Cell(flow["protocol"]),
            Cell(endpoint(flow["client"], flow["client_port"])),
            Cell(endpoint(flow["vip"], flow["port"])),
            *((Cell(_nat_source(flow)),) if has_source else ()),
            Cell(flow["state"], "green" if flow["state"] == "established" else "dim"),
            *((Cell(text) for text in _requests(flow)) if counted else ()),
            Cell(age(flow["age_s"])),
            Cell(age(flow["idle_s"])),
        )
        for flow in flows
    )
    return Table(columns, rows)


def _nat_source(flow: Mapping[str, Any]) -> str:
    from agent.humanise import endpoint

    return endpoint(flow["nat_source"], flow["nat_source_port"]) if flow["nat_source"] else "-"


def _requests(flow: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the waiting bytes, the protocol of the payload, and the time of the handshake."""
    from agent.humanise import count, milliseconds

    if flow["waiting_bytes"] is None:
        return "-", "-", "-"
    return (
        count(flow["waiting_bytes"]) if flow["awaiting_answer"] else "-",
        flow["talk"] or "-",
        "-" if flow["handshake_ms"] is None else milliseconds(flow["handshake_ms"]),
    )
