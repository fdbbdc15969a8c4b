"""Owns the demo: builds a lab, plays the story on it, prints it, and always removes the lab."""

from __future__ import annotations

import contextlib
import os
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.errors import SteelyardError
from agent.model import Forward, Hook
from lbctl.environment import Environment, Output
from lbctl.lab import build, figures, story
from lbctl.lab.interrupt import Guard, Interrupted
from lbctl.lab.judge import Figure, Outcome
from lbctl.lab.netns import LabError
from lbctl.lab.story import Stage
from lbctl.lab.topology import Lab, lab_command
from lbctl.lab.traffic import PromptTraffic, Traffic

RATE_PER_S = 250
KEEP_ALIVE = 12
STREAMS = 12

type Outcomes = list[tuple[str, Outcome]]


class _Ticker:
    """The line that a terminal shows during a step, redrawn with every turn of the spinner."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def __rich__(self) -> Text:
        requests = self._traffic.requests()
        failed = len(figures.failures(requests))
        return Text(f"{len(requests):,} requests so far, {failed} failed", "dim")


def run(env: Environment, name: str, forward: Forward, hook: Hook) -> int:
    """Play the demo; return the exit code."""
    lab = Lab(
        name=name,
        backends=len(story.WEIGHTS),
        spares=1,
        balancers=story.BALANCERS,
        forward=forward,
        hook=hook,
        weights=tuple(story.WEIGHTS.values()),
        engines=story.ENGINES,
        time_scale=story.TIME_SCALE,
    )
    console = _console(env)
    build.check_machine()
    make_room(lab.name)
    started_s = time.monotonic()
    outcomes: Outcomes = []
    traffic = Traffic(lab)
    prompts = PromptTraffic(lab, lab.services[-1])
    problems: list[str] = []
    with Guard() as guard:
        try:
            with guard.interruptible():
                problems = _play(Stage(lab, traffic, prompts), console, outcomes)
        except Interrupted as interruption:
            console.print(f"demo: interrupted by {interruption}; the lab is removed")
            return interruption.exit_code
        except SteelyardError as error:
            problems = [str(error)]
        finally:
            _clean_up(lab, traffic, prompts)
    _conclude(env, console, outcomes, problems, traffic, time.monotonic() - started_s)
    return 1 if problems else 0


def make_room(name: str) -> None:
    """Remove the lab of a demo that was killed; raises LabError if the lab is in use."""
    found = build.read(name)
    if found is not None and found[1].abandoned:
        build.down(name, lambda _text: None)
    elif found is not None and found[1].demo:
        raise LabError(
            f"a demo runs already (pid {found[1].pid})",
            where=f"lab {name}",
            remedy="wait for it, or play beside it: lbctl lab --name other demo",
        )
    elif build.leftovers(name):
        raise LabError(
            f"a lab called {name} is up, and the demo leaves it alone",
            where=f"lab {name}",
            remedy=f"remove it: {lab_command(name)} down;"
            " or play beside it: lbctl lab --name other demo",
        )


def _play(stage: Stage, console: Console, outcomes: Outcomes) -> list[str]:
    lab, traffic = stage.lab, stage.traffic
    console.print(
        "A client, two balancers and four servers that behave like GPU engines, in namespaces",
        style="bold",
    )
    with console.status("building the lab"):
        started_s = time.monotonic()
        build.up(lab, build.Owner(demo=True, pid=os.getpid()), lambda _text: None)
    vip4, vip6 = lab.vips
    took_s = time.monotonic() - started_s
    console.print(f"  built in {took_s:.1f} s; http://{vip4}/ and http://[{vip6}]/ answer")
    held = f"{KEEP_ALIVE} keep-alive connections and {STREAMS} streams"
    console.print(f"  load: {RATE_PER_S} new connections per second, {held} held open")
    console.print(f"        {story.PROMPTS_PER_S:.0f} prompts per second to the engines")
    traffic.start(RATE_PER_S, KEEP_ALIVE, STREAMS, story.STREAM_S)
    stage.prompts.start(story.PROMPTS_PER_S, story.PROMPT_TOKENS, story.ANSWER_TOKENS)
    problems: list[str] = []
    for number, step in enumerate(story.STEPS, 1):
        console.print(f"{number}/{len(story.STEPS)} {step.title}", style="bold")
        with console.status(_Ticker(traffic)):
            outcome = step.act(stage)
        for line in outcome.lines:
            console.print(f"  {line}")
        for problem in outcome.problems:
            console.print(f"  not as it should be: {problem}", style="red")
        outcomes.append((step.title, outcome))
        problems += outcome.problems
        if not traffic.running:
            raise LabError("the load generator ended", where=str(lab.run_dir / "load.log"))
    traffic.stop()
    return problems + _late_failures(stage)


def _late_failures(stage: Stage) -> list[str]:
    """Return requests that failed after their step had been judged, for instance by a timeout."""
    failed = [
        request
        for request in figures.failures(stage.traffic.requests())
        if not any(start <= request.started_s < end for start, end in stage.forgiven)
    ]
    return [f"{len(failed)} requests failed outside the kills"] if failed else []


def _clean_up(lab: Lab, traffic: Traffic, prompts: PromptTraffic) -> None:
    # From the last to the first, each of them even if one before it fails.
    with contextlib.ExitStack() as left:
        left.callback(build.down, lab.name, lambda _text: None)
        left.callback(traffic.stop)
        left.callback(prompts.stop)


def _conclude(
    env: Environment,
    console: Console,
    outcomes: Outcomes,
    problems: list[str],
    traffic: Traffic,
    took_s: float,
) -> None:
    requests = traffic.requests()
    failed = len(figures.failures(requests))
    found = [figure for _, outcome in outcomes for figure in outcome.figures]
    if env.output is Output.TABLE:
        if found:
            console.print(_table(found))
    else:
        env.write(_document(env, outcomes, problems, len(requests), failed, took_s))
    if problems:
        console.print(Text(f"demo: failed: {'; '.join(problems)}", "red"))
    else:
        console.print(
            f"demo: ok ({len(outcomes)} steps in {took_s:.0f} s, {len(requests):,} requests,"
            f" {failed} failed: before the deaths of a backend and of the master were noticed)",
            style="green",
        )


def _table(found: list[Figure]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("FIGURE")
    table.add_column("", justify="right")
    table.add_column("")
    for figure in found:
        exact = figure.unit and figure.value < 100
        table.add_row(figure.name, f"{figure.value:,.{1 if exact else 0}f}", figure.unit)
    return table


def _document(
    env: Environment,
    outcomes: Outcomes,
    problems: list[str],
    requests: int,
    failed: int,
    took_s: float,
) -> str:
    from lbctl.output import render

    data = {
        "ok": not problems,
        "problems": problems,
        "took_s": round(took_s, 1),
        "requests": requests,
        "requests_failed": failed,
        "figures": [
            {
                "step": title,
                "name": figure.name,
                "unit": figure.unit or "count",
                "value": round(figure.value, 2),
            }
            for title, outcome in outcomes
            for figure in outcome.figures
        ],
    }
    return render(env, data, lambda _: [])


def _console(env: Environment) -> Console:
    # The story is the output of a demo; with -o json the figures are, and the story is a message.
    story_stream = env.stdout if env.output is Output.TABLE else env.stderr
    return Console(file=story_stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
