"""Decides what the demo does to the lab, step by step, and what must come out of each step."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.api.client import Client
from lbctl.lab import build, figures, processes
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Node, Role
from lbctl.lab.traffic import Traffic

SERVICES = ("web", "web6")
WEIGHTS = (100, 100, 50)  # of be1, be2, be3; be4 is added later with 100
KILLED, DRAINED, ADDED = "be1", "be2", "be4"
STREAM_S = 3.0
TOLERANCE = 0.06  # of the shares: four standard deviations of what a thousand requests give
RELOADS = 10


@dataclass(slots=True)
class Outcome:
    """What a step found: sentences for the reader, named figures, and what was not as it should."""

    lines: list[str] = field(default_factory=list)
    figures: list[tuple[str, str, float]] = field(default_factory=list)  # text, unit, value
    problems: list[str] = field(default_factory=list)

    def require(self, holds: bool, problem: str) -> None:
        """Note a problem unless the condition holds."""
        if not holds:
            self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class Stage:
    """What the steps act on; ``lbctl`` runs a command of the operator's."""

    lab: Lab
    traffic: Traffic
    forgiven: list[tuple[float, float]] = field(default_factory=list)  # when requests may fail

    @property
    def balancer(self) -> Node:
        """The one balancer."""
        return self.lab.nodes(Role.BALANCER)[0]

    def lbctl(self, *words: str) -> None:
        """Run ``lbctl`` on the lab's agent; raises LabError with what it said."""
        command = processes.program("lbctl", "lbctl.main")
        result = subprocess.run(
            [*command, "--socket", str(self.lab.socket(self.balancer)), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            env=processes.environment(),
        )
        if result.returncode != 0:
            raise LabError(f"`lbctl {' '.join(words)}` failed: {result.stderr.strip()}")

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Look again and again until the condition holds; False: it did not in that time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or not self.traffic.running:
                return False
            time.sleep(0.05)
        return True


@dataclass(frozen=True, slots=True)
class Step:
    """One chapter: what the reader sees first, and what is done."""

    title: str
    act: Callable[[Stage], Outcome]


def spread(stage: Stage) -> Outcome:
    """Traffic flows, and each backend gets the share that its weight promises."""
    start = time.monotonic() + 0.5
    time.sleep(4.5)
    end = time.monotonic()
    stage.traffic.settled(end)
    requests = stage.traffic.requests(start, end)
    counts = figures.answered_by(requests)
    actual = figures.shares(counts)
    names = [node.name for node in stage.lab.nodes(Role.BACKEND)]
    expected = figures.shares(dict(zip(names, WEIGHTS, strict=False)))
    families = {request.target.startswith("[") for request in requests if not request.failed}
    outcome = Outcome()
    outcome.lines = [
        f"{name}: {counts[name]:5,} requests, {100 * actual.get(name, 0):4.1f} %"
        f" (its weight promises {100 * share:.0f} %)"
        for name, share in expected.items()
    ]
    gap = figures.widest_gap(expected, actual)
    failed = figures.failures(requests)
    outcome.figures = [
        ("requests answered per second", "1/s", (len(requests) - len(failed)) / (end - start)),
        ("latency, median", "ms", figures.latency_ms(requests, 0.5)),
        ("latency, 99 %", "ms", figures.latency_ms(requests, 0.99)),
        ("largest deviation from the promised share", "points", 100 * gap),
    ]
    outcome.require(not failed, f"{len(failed)} requests failed: {_errors(failed)}")
    outcome.require(len(families) == 2, "IPv4 and IPv6 did not both carry traffic")
    outcome.require(gap <= TOLERANCE, f"a share is {100 * gap:.1f} points off")
    return outcome


def kill(stage: Stage) -> Outcome:
    """A backend dies: how long new connections still reach it, and that nothing else breaks."""
    killed_s = processes.kill(stage.lab.run_dir, KILLED)

    def quiet() -> bool:
        now = time.monotonic()
        recent = stage.traffic.requests(now - 1.2, now)
        return now > killed_s + 1.5 and not figures.failures(recent)

    calm = stage.wait(quiet, 10)
    end = time.monotonic()
    stage.forgiven.append((killed_s - 0.1, end))
    requests = stage.traffic.requests(killed_s - 0.1, end)
    failed = figures.failures(requests)
    until_ms = figures.last_start_ms(failed, killed_s)
    broken = figures.held_in(stage.traffic.held(), "broke", killed_s, end)
    others = [event for event in broken if event.backend != KILLED]
    build.start_server(stage.lab, stage.lab.node(KILLED))
    back_s = time.monotonic()
    back_ms = _await_answer(stage, KILLED, back_s)
    outcome = Outcome(
        lines=[
            f"no new connection reached it after {until_ms:,.0f} ms;"
            f" until then {len(failed)} of {len(requests)} requests failed",
            f"open connections broken: {len(broken) - len(others)} on {KILLED},"
            f" {len(others)} on other backends",
        ],
        figures=[
            ("backend killed: last new connection to it after", "ms", until_ms),
            ("backend killed: requests failed until then", "", len(failed)),
            ("backend killed: connections of other backends broken", "", len(others)),
        ],
    )
    outcome.require(calm, f"requests still fail {end - killed_s:.0f} s after {KILLED} died")
    outcome.require(not others, f"{len(others)} connections of other backends broke")
    outcome.require(back_ms is not None, f"{KILLED} was started again, but gets no requests")
    if back_ms is not None:
        outcome.lines.append(f"started again, it got its first request after {back_ms:,.0f} ms")
        outcome.figures.append(("backend back: first request after", "ms", back_ms))
    return outcome


def drain(stage: Stage) -> Outcome:
    """A backend is drained: what it serves ends well, nothing new comes."""
    asked_s = time.monotonic()
    for service in SERVICES:
        stage.lbctl("backend", "drain", f"{service}/{DRAINED}")
    done_s = time.monotonic()
    events = stage.traffic.held()
    theirs = {n for n, backend in figures.open_at(events, done_s).items() if backend == DRAINED}
    streams = {e.connection for e in events if e.kind == "stream"} & theirs

    def over() -> bool:
        return not streams & figures.open_at(stage.traffic.held(), time.monotonic()).keys()

    stage.wait(over, STREAM_S + 2)
    end = time.monotonic()
    stage.traffic.settled(end)
    events = stage.traffic.held()
    finished = {e.connection for e in events if e.event == "finished"} & theirs
    broken = {e.connection for e in events if e.event in {"broke", "moved"}} & theirs
    late = [r for r in stage.traffic.requests(done_s, end) if r.backend == DRAINED]
    late_held = [e for e in figures.held_in(events, "opened", done_s, end) if e.backend == DRAINED]
    failed = figures.failures(stage.traffic.requests(asked_s, end))
    for service in SERVICES:
        stage.lbctl("backend", "enable", f"{service}/{DRAINED}")
    new = len(late) + len(late_held)
    serving = len(theirs - finished - broken)
    outcome = Outcome(
        lines=[
            f"it had {len(theirs)} open connections: {len(finished)} ended as they should,"
            f" {serving} are kept and still answered, {len(broken)} broke",
            f"new connections to it after the command: {new}; requests failed: {len(failed)}",
        ],
        figures=[
            ("backend drained: its open connections broken", "", len(broken)),
            ("backend drained: new connections to it", "", new),
            ("backend drained: requests failed", "", len(failed)),
        ],
    )
    outcome.require(bool(theirs), f"{DRAINED} had no open connections to begin with")
    outcome.require(streams <= finished | broken, "streams of the drained backend do not end")
    outcome.require(not broken, f"{len(broken)} connections of the drained backend broke")
    outcome.require(not new, f"{new} new connections reached the drained backend")
    outcome.require(not failed, f"{len(failed)} requests failed: {_errors(failed)}")
    return outcome


def add(stage: Stage) -> Outcome:
    """A backend is added: how soon it works."""
    node = stage.lab.node(ADDED)
    asked_s = time.monotonic()
    for service, address in zip(SERVICES, (node.ipv4, node.ipv6), strict=True):
        stage.lbctl("backend", "add", f"{service}/{ADDED}", "--address", str(address))
    first_ms = _await_answer(stage, ADDED, asked_s)
    end = time.monotonic() + 0.5
    stage.traffic.settled(end)
    failed = figures.failures(stage.traffic.requests(asked_s, end))
    outcome = Outcome()
    outcome.require(first_ms is not None, f"{ADDED} was added, but gets no requests")
    outcome.require(not failed, f"{len(failed)} requests failed: {_errors(failed)}")
    if first_ms is not None:
        outcome.lines = [
            f"its first request came {first_ms:,.0f} ms after `lbctl backend add` was typed;"
            f" requests failed: {len(failed)}"
        ]
        outcome.figures = [
            ("backend added: first request after", "ms", first_ms),
            ("backend added: requests failed", "", len(failed)),
        ]
    return outcome


def restart(stage: Stage) -> Outcome:
    """The agent is killed and started again: nobody notices."""
    lab, balancer = stage.lab, stage.balancer
    before = stage.traffic.held()
    killed_s = processes.kill(lab.run_dir, balancer.name)
    held = len(figures.open_at(before, killed_s))
    time.sleep(2.0)
    build.start_agent(lab, balancer)
    ready_s = build.await_backends(lab, balancer, lab.backends + lab.spares)
    end = ready_s + 1.0
    stage.traffic.settled(end)
    requests = stage.traffic.requests(killed_s, end)
    failed = figures.failures(requests)
    events = stage.traffic.held()
    broken = figures.held_in(events, "broke", killed_s, end)
    moved = figures.held_in(events, "moved", killed_s, end)
    outcome = Outcome(
        lines=[
            f"{1000 * (ready_s - killed_s):,.0f} ms without an agent that answers, 2,000 of them"
            f" on purpose; meanwhile {len(requests):,} requests, {len(failed)} failed",
            f"open connections: {held}, broken {len(broken)}, moved to another backend"
            f" {len(moved)}",
        ],
        figures=[
            ("agent killed and restarted: requests failed", "", len(failed)),
            ("agent killed and restarted: open connections broken", "", len(broken)),
            ("agent killed and restarted: flows moved", "", len(moved)),
            ("agent killed and restarted: start to ready", "ms", 1000 * (ready_s - killed_s - 2)),
        ],
    )
    outcome.require(bool(requests) and bool(held), "there was no traffic meanwhile")
    outcome.require(not failed, f"{len(failed)} requests failed: {_errors(failed)}")
    outcome.require(not broken, f"{len(broken)} open connections broke")
    outcome.require(not moved, f"{len(moved)} flows moved to another backend")
    return outcome


def reload(stage: Stage) -> Outcome:
    """The configuration file is rewritten and reloaded again and again."""
    import yaml

    client = Client(stage.lab.socket(stage.balancer))
    document = client.get("/v1/config")["config"]
    start = time.monotonic()
    for turn in range(RELOADS):
        for service in document["services"]:
            service["backends"][0]["weight"] = 60 + 10 * turn
        path = stage.lab.config_path(stage.balancer)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        client.post("/v1/reload")
        time.sleep(0.15)
    end = time.monotonic()
    stage.traffic.settled(end)
    requests = stage.traffic.requests(start, end)
    failed = figures.failures(requests)
    events = stage.traffic.held()
    broken = figures.held_in(events, "broke", start, end)
    moved = figures.held_in(events, "moved", start, end)
    outcome = Outcome(
        lines=[
            f"{RELOADS} new configurations in {end - start:.1f} s; meanwhile {len(requests):,}"
            f" requests, {len(failed)} failed, open connections broken {len(broken)}"
        ],
        figures=[
            (f"{RELOADS} reloads: requests failed", "", len(failed)),
            (f"{RELOADS} reloads: open connections broken", "", len(broken)),
        ],
    )
    outcome.require(not failed, f"{len(failed)} requests failed: {_errors(failed)}")
    outcome.require(not broken and not moved, f"{len(broken) + len(moved)} connections broke")
    return outcome


def _await_answer(stage: Stage, backend: str, since_s: float) -> float | None:
    def first() -> float | None:
        return figures.first_answer_ms(stage.traffic.requests(since_s), backend, since_s)

    stage.wait(lambda: first() is not None, 10)
    return first()


def _errors(failed: list[figures.Request]) -> str:
    kinds = {request.error or f"status {request.status}" for request in failed}
    return ", ".join(sorted(kinds))


STEPS = (
    Step("traffic flows, on IPv4 and IPv6, by weight", spread),
    Step(f"{KILLED} is killed (SIGKILL)", kill),
    Step(f"{DRAINED} is drained (lbctl backend drain)", drain),
    Step(f"{ADDED} is added (lbctl backend add)", add),
    Step("the agent is killed (SIGKILL) and started again 2 s later", restart),
    Step(f"the configuration is changed and reloaded {RELOADS} times", reload),
)
