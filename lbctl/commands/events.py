"""``lbctl events``: what has happened, and why."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from agent.errors import AgentUnreachableError
from agent.model import BackendRef
from lbctl.environment import Environment, Output, pass_environment
from lbctl.options import BACKEND, DURATION, SERVICE, agent_options
from lbctl.output import emit

if TYPE_CHECKING:
    from rich.text import Text

type Event = Mapping[str, Any]

LEVELS = ("info", "warning", "error")
_STYLES = {"warning": "yellow", "error": "bold red"}
_FOLLOWED = 10  # events before the first new one
POLL_S = 0.5
RETRY_S = 1.0


@click.command()
@click.option(
    "--since",
    "since_s",
    type=DURATION,
    metavar="DURATION",
    help="Events of the last 30s, 15m, 2h or 7d.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="The newest N.  [default: 50; with --since: all; with --follow: 10]",
)
@click.option("--service", type=SERVICE, help="Only events of this service and its backends.")
@click.option(
    "--backend", type=BACKEND, metavar="SERVICE/BACKEND", help="Only events of this backend."
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="This level or worse.",
)
@click.option("-f", "--follow", is_flag=True, help="Keep showing new events, until Ctrl-C.")
@agent_options
@pass_environment
def events(
    env: Environment,
    since_s: float | None,
    count: int | None,
    service: str | None,
    backend: BackendRef | None,
    level: str,
    follow: bool,
) -> None:
    """Show what has happened, and why.

    Shows states of backends and services, weights, changes and who made them, failover, attacks:
    the lines of the agent's log at level info and above. The agent keeps some 10,000 of them, also
    over restarts. The newest come last.

    \b
    Examples:
      lbctl events --since 1h --level warning
      lbctl events --backend chat/gpu-1 -n 10
      lbctl events --follow -o json
    """
    usual = _FOLLOWED if follow else None if since_s is not None else 50
    query: dict[str, str | int | None] = {
        "since_s": None if since_s is None else math.ceil(since_s),
        "limit": count or usual,
        "service": service,
        "backend": None if backend is None else str(backend),
        "level": level,
    }
    if not follow:
        answer = env.agent().get("/v1/events", query)
        emit(env, answer, lambda data: lines(data["events"]) or ["no events"])
        return
    try:
        for event in _following(env, query):
            _show(env, event)
    except KeyboardInterrupt:
        pass  # the usual end


def _following(env: Environment, query: dict[str, str | int | None]) -> Iterator[Event]:
    """Yield events as they arrive; wait for an agent that restarts."""
    newest: Event | None = None
    was_gone = False
    while True:
        try:
            found = env.agent().get("/v1/events", query)["events"]
        except AgentUnreachableError:
            if newest is None:
                raise
            was_gone = True
            # The numbers of a killed agent may be reused by its successor.
            ago_s = time.time() - datetime.fromisoformat(newest["at"]).timestamp()
            query = {**query, "after": None, "since_s": math.ceil(ago_s + RETRY_S)}
            env.sleep(RETRY_S)
            continue
        for event in found:
            if newest is None or not was_gone or event["at"] > newest["at"]:
                yield event
        newest = found[-1] if found else newest
        was_gone = False
        after = None if newest is None else int(newest["number"])
        query = {**query, "after": after, "since_s": None, "limit": None}
        env.sleep(POLL_S)


def _show(env: Environment, event: Event) -> None:
    if env.output is Output.JSON:
        env.write(json.dumps(event, ensure_ascii=False))
    elif env.output is Output.YAML:
        from lbctl.output import to_yaml

        env.write(f"---\n{to_yaml(event)}")
    else:
        from lbctl.output import page

        env.write(page(env, lines([event])))


def lines(found: Iterable[Event], *, about: bool = True) -> list[Text]:
    """Return events for people: time, level, subject (if ``about``), and what happened."""
    from rich.text import Text

    from agent.api.sentences import event_text

    shown = []
    for event in found:
        style = _STYLES.get(event["level"], "")
        of = about and (event["backend"] or event["service"])
        shown.append(
            Text.assemble(
                (f"{local_time(event['at'])}  ", "dim"),
                (f"{event['level']:<7}  ", style),
                (f"{of}  " if of else "", "bold"),
                event_text(event),
            )
        )
    return shown


def local_time(at: str) -> str:
    """Return the time in this host's time zone, in the format of system logs."""
    moment = datetime.fromisoformat(at).astimezone()
    year = "" if moment.year == datetime.fromtimestamp(time.time()).astimezone().year else "%Y "
    return f"{moment:{year}%b %d %H:%M:%S}"
