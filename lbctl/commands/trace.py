"""``lbctl trace``: what the data plane decides, as it happens."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from agent.errors import AgentUnreachableError
from agent.state.events import DEFAULT_SAMPLE, MAX_SAMPLE
from lbctl.environment import Environment, Output, pass_environment
from lbctl.options import agent_options

# What the API calls the events of each option.
KINDS = {
    "drops": ("drop",),
    "picks": ("pick",),
    "answers": ("answer",),
    "closes": ("close",),
    "packets": ("packet", "reply"),
}
RETRY_S = 1.0

type Event = Mapping[str, Any]


@dataclass(slots=True)
class _Tally:
    """Numbers of events shown and lost; ``…_before``: by agents that have ended."""

    shown: int = 0
    found: bool = False  # an agent answered
    ring: int = 0
    client: int = 0
    ring_before: int = 0
    client_before: int = 0

    def lost(self, line: Event) -> None:
        self.ring = self.ring_before + line["lost_in_ring"]
        self.client = self.client_before + line["lost_by_client"]

    def agent_is_gone(self) -> None:
        self.ring_before, self.client_before = self.ring, self.client


def _sample(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    if value is not None and value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two, such as 64 or 1024")
    return value


@click.command()
@click.argument("expression", nargs=-1, metavar="[EXPRESSION]")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("-n", "--numeric", is_flag=True, help="Show backends by their addresses.")
@click.option(
    "-t",
    "stamps",
    count=True,
    help="Show no times; -tt seconds since 1970, -ttt since the previous line, -tttt with the "
    "date, -ttttt since the first line.",
)
@click.option("--drops", is_flag=True, help="Packets that were not forwarded, and why.")
@click.option("--picks", is_flag=True, help="New flows, and the backends chosen for them.")
@click.option("--answers", is_flag=True, help="First bytes of answers, and how long they took.")
@click.option("--closes", is_flag=True, help="FIN and RST.")
@click.option("--packets", is_flag=True, help="Packets of recorded flows, one in --sample.")
@click.option(
    "--sample",
    type=click.IntRange(1, MAX_SAMPLE),
    callback=_sample,
    metavar="N",
    help=f"Show one packet in N, a power of two.  [default: {DEFAULT_SAMPLE}]",
)
@agent_options
@pass_environment
def trace(
    env: Environment,
    /,
    expression: tuple[str, ...],
    count: int | None,
    numeric: bool,
    stamps: int,
    sample: int | None,
    **kinds: bool,
) -> None:
    """Show what the data plane decides, as it happens.

    Runs until Ctrl-C, or for -c events. Without --drops, --picks, --answers, --closes or --packets
    it shows the first four kinds; with some of them, only those.

    EXPRESSION is like tcpdump's: [src|dst] host ADDRESS, [src|dst] net PREFIX, [src|dst] port N,
    [src|dst] portrange N-M, tcp, udp, icmp, icmp6, ip, ip6, and also service NAME, backend NAME
    or SERVICE/NAME, reason LABEL; joined by and, or, not and parentheses. As in tcpdump, "and" and
    "or" bind equally, from the left. A packet from a backend has the VIP as its source.

    \b
    Examples:
      lbctl trace
      lbctl trace --drops
      lbctl trace -c 10 service chat and 'not (net 10.0.0.0/8 or reason no-flow)'
      lbctl trace --packets --sample 64 -o json tcp dst port 443
    """
    text = " ".join(expression)
    if text:
        _check(text)
    if sample is not None and not kinds["packets"]:
        raise click.UsageError("--sample needs --packets")
    asked = [kind for option, chosen in kinds.items() if chosen for kind in KINDS[option]]
    query = {"kind": ",".join(asked) or None, "sample": sample, "filter": text or None}
    tally, show = _Tally(), _writer(env, stamps, numeric)
    try:
        with _ended_by_signals():
            for event in _events(env, query, tally):
                tally.shown += 1  # first: Ctrl-C may come as soon as somebody reads the line
                show(event)
                if tally.shown == count:
                    break
    except KeyboardInterrupt:
        pass  # the usual end
    finally:
        if tally.found:
            from agent.api.eventlines import summary

            env.note(summary(tally.shown, tally.ring, tally.client, filtered=bool(text)))


def _check(text: str) -> None:
    """Refuse an invalid expression, and point at the mistake."""
    from agent.api.tracefilter import FilterError, parse

    try:
        parse(text)
    except FilterError as error:
        indented = error.pointed.replace("\n", "\n  ")
        raise click.UsageError(f"{error.message}; {error.remedy}\n  {indented}") from error


def _events(
    env: Environment, query: Mapping[str, str | int | None], tally: _Tally
) -> Iterator[Event]:
    """Yield events without end; wait for an agent that restarts."""
    following = False
    while True:
        try:
            with contextlib.closing(env.agent().stream("/v1/trace", query)) as lines:
                for line in lines:
                    if "event" in line:
                        yield line
                        continue
                    tally.lost(line)
                    if not following:
                        env.note("following again" if tally.found else "following; Ctrl-C ends")
                        following = tally.found = True
        except AgentUnreachableError:
            if not tally.found:
                raise
        if following:
            env.note(f"the agent ended it; trying again every {RETRY_S:g} s")
            tally.agent_is_gone()
            following = False
        env.sleep(RETRY_S)


def _writer(env: Environment, stamps: int, numeric: bool) -> Callable[[Event], None]:
    if env.output is Output.JSON:
        return lambda event: env.write(json.dumps(event, ensure_ascii=False))
    if env.output is Output.YAML:
        from lbctl.output import to_yaml

        return lambda event: env.write(f"---\n{to_yaml(event)}")
    from agent.api.eventlines import Stamps, line

    times = Stamps(stamps)

    def write(event: Event) -> None:
        text = line(event, times, numeric)
        dropped = env.colour and event["event"] == "drop"
        env.write(click.style(text, fg="red") if dropped else text)

    return write


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the command like Ctrl-C, unless they are ignored, as by nohup."""

    def stop(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
