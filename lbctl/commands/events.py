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
_FOLLOWED = 10  # that came before
POLL_S = 0.5
RETRY_S = 1.0


@click.command()
@click.option(
    "--since",
    "since_s",
    type=DURATION,
    metavar="DURATION",
    help="Those of the last 30s, 15m, 2h or 7d.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="The newest N.  [default: 50; with --since: all; with --follow: 10]",
)
@click.option("--service", type=SERVICE, help="Only of this service and its backends.")
@click.option("--backend", type=BACKEND, metavar="SERVICE/BACKEND", help="Only of this backend.")
@click.option(
    "--level", type=click.Choice(LEVELS), default="info", show_default=True, help="Or worse."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come, until Ctrl-C.")
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
    """What has happened, and why.

    States of backends and services, weights, changes and who made them, failover, attacks: the
    lines of the agent's log at level info and above. It keeps some 10,000 of them, also over
    restarts. The newest come last.

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
        pass  # how it ends


def _following(env: Environment, query: dict[str, str | int | None]) -> Iterator[Event]:
    """The events as they come; an agent that restarts is waited for."""
    newest: Event | None = None
    was_gone = False
    while True:
        try:
            found = env.agent().get("/v1/events", query)["events"]
        except AgentUnreachableError:
            if newest is None:
                raise
            was_gone = True
            # One that is killed may have given numbers that its successor gives again.
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
    """Events as people read them: when, how bad, of what (``about``), and what."""
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
    """This host's time, as system logs have it."""
    moment = datetime.fromisoformat(at).astimezone()
    year = "" if moment.year == datetime.fromtimestamp(time.time()).astimezone().year else "%Y "
    return f"{moment:{year}%b %d %H:%M:%S}"
