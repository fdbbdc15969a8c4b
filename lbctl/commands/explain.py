"""``lbctl explain``: what would happen to a connection, and why."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import click

from agent.model import Protocol
from lbctl.environment import Environment, pass_environment
from lbctl.options import ENDPOINT, Endpoint, agent_options
from lbctl.output import emit, facts

VERDICT_STYLES = {"forward": "green", "pass": "yellow", "drop": "bold red", "reset": "bold red"}
DEPENDS_ON = {
    "load": "the load of the moment: another may be chosen for the connection itself",
    "turn": "the turn of the CPU that receives the connection's first packet",
}


@click.command()
@click.argument("protocol", type=click.Choice([p.value for p in Protocol]), metavar="PROTOCOL")
@click.argument("client", type=ENDPOINT, metavar="CLIENT:PORT")
@click.argument("vip", type=ENDPOINT, metavar="VIP:PORT")
@agent_options
@pass_environment
def explain(env: Environment, protocol: str, client: Endpoint, vip: Endpoint) -> None:
    """Show which backend a connection would get, and why.

    PROTOCOL is tcp or udp. The explanation follows the packet path: service, recorded flow, ring.
    For schedulers that compare, it says which backend they would choose now, and among which.

    \b
    Examples:
      lbctl explain tcp 198.51.100.7:40000 10.0.0.10:80
      lbctl explain udp [2001:db8::7]:40000 [fd00::10]:443
    """
    if ip_address(client.address).version != ip_address(vip.address).version:
        raise click.UsageError(
            "the client's and the VIP's addresses must be both IPv4 or both IPv6"
        )
    answer = env.agent().get(
        "/v1/explain",
        {
            "protocol": protocol,
            "client": client.address,
            "client_port": client.port,
            "vip": vip.address,
            "port": vip.port,
        },
    )
    emit(env, answer, lambda data: _view(env, data))


def _view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from rich.text import Text

    verdict = data["verdict"]
    target = f" to {data['service']}/{data['backend']}" if data["backend"] else ""
    if verdict == "forward" and not target:
        target = f" to a backend of {data['service']}"
    pairs: list[tuple[str, object]] = [
        ("verdict", Text(f"{verdict}{target}", VERDICT_STYLES.get(verdict, ""))),
        ("why", data["reason"]),
    ]
    if data["depends_on"]:
        pairs.append(("depends on", DEPENDS_ON.get(data["depends_on"], data["depends_on"])))
    if data["service"] and not data["backend"]:
        pairs.append(("service", data["service"]))
    pairs += [
        ("steps" if number == 1 else "", f"{number}. {step}")
        for number, step in enumerate(data["steps"], 1)
    ]
    if data["recorded_flow"]:
        pairs.append(("recorded", _recorded(data["recorded_flow"])))
    draws = data["ring"]["draws"] if data["ring"] else []
    for number, draw in enumerate(draws, 1):
        text = f"slot {draw['slot']} of {data['ring']['slots']}: {draw['backend']}{_draw(draw)}"
        which = f"draw {number}" if draw["cpu"] is None else f"CPU {draw['cpu']}"
        pairs.append(("ring" if number == 1 else "", f"{which}: {text}"))
    return facts(env, pairs)


def _draw(draw: Mapping[str, Any]) -> str:
    """Return what the scheduler saw in a draw."""
    if not draw["usable"]:
        return ", which is not usable"
    if draw["load_score"] is not None:
        return f", load score {draw['load_score']:.2f}"
    if draw["open_connections"] is not None:
        return f", {draw['open_connections']} open of at most {draw['most_open_connections']}"
    return ""


def _recorded(flow: Mapping[str, Any]) -> str:
    from agent.humanise import age, endpoint, quantity

    text = (
        f"{flow['state']} on {flow['backend']}, for {age(flow['age_s'])},"
        f" idle for {age(flow['idle_s'])}"
    )
    if flow["nat_source"]:
        text += f", from {endpoint(flow['nat_source'], flow['nat_source_port'])}"
    if flow["awaiting_answer"]:
        text += f", {quantity(flow['waiting_bytes'], 'B')} of a request wait for an answer"
    return text
