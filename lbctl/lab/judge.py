"""Decides what each step of the demo has shown, from the load generators' records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lbctl.lab import figures
from lbctl.lab.figures import Held, Prompt, Request

# How many standard deviations of chance a share may be off.
DEVIATIONS = 4
# A throttled engine gets at most this part of its former share. By its speed it would be a quarter;
# the rest is room for chance, and for requests that least-load sends to idle engines.
LESS = 0.8


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table at the end; ``unit`` is empty for a count."""

    name: str
    value: float
    unit: str = ""


@dataclass(slots=True)
class Outcome:
    """The result of a step: sentences for the reader, figures, and problems."""

    lines: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Add a sentence."""
        self.lines.append(line)

    def count(self, name: str, value: float, unit: str = "") -> None:
        """Add a figure."""
        self.figures.append(Figure(name, value, unit))

    def require(self, holds: bool, problem: str) -> None:
        """Note a problem unless the condition holds."""
        if not holds:
            self.problems.append(problem)

    def require_no_failure(self, failed: Sequence[Request]) -> None:
        """Note a problem if a request failed."""
        kinds = {request.error or f"status {request.status}" for request in failed}
        self.require(not failed, f"{len(failed)} requests failed ({', '.join(sorted(kinds))})")


@dataclass(frozen=True, slots=True)
class Window:
    """The traffic of a step: requests started, and events, from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    requests: Sequence[Request]
    held: Sequence[Held]  # of all time, because connections that are open now were opened before

    @property
    def failed(self) -> list[Request]:
        """The requests that failed."""
        return figures.failures(self.requests)

    def events(self, event: str) -> list[Held]:
        """Return the events of one kind."""
        return figures.held_in(self.held, event, self.start_s, self.end_s)


def spread(window: Window, weights: Mapping[str, int]) -> Outcome:
    """Judge whether each backend had the share that its weight promises."""
    counts = figures.answered_by(window.requests)
    actual, promised = figures.shares(counts), figures.shares(weights)
    gap = figures.widest_gap(promised, actual)
    answered = [request for request in window.requests if not request.failed]
    families = {request.target.startswith("[") for request in answered}
    outcome = Outcome()
    for name, share in promised.items():
        outcome.say(
            f"{name}: {counts[name]:5,} requests, {100 * actual.get(name, 0):4.1f} %"
            f" (weight {weights[name]} promises {100 * share:.0f} %)"
        )
    seconds = window.end_s - window.start_s
    outcome.count("requests answered per second", len(answered) / seconds, "1/s")
    outcome.count("latency, median", figures.latency_ms(answered, 0.5), "ms")
    outcome.count("latency, 99 %", figures.latency_ms(answered, 0.99), "ms")
    outcome.count("largest deviation from a promised share", 100 * gap, "points")
    outcome.require_no_failure(window.failed)
    outcome.require(len(families) == 2, "IPv4 and IPv6 did not both carry traffic")
    tolerance = DEVIATIONS * math.sqrt(0.25 / max(1, len(answered)))
    outcome.require(gap <= tolerance, f"a share is {100 * gap:.1f} points off")
    return outcome


@dataclass(frozen=True, slots=True)
class Throttled:
    """The prompts before and after an engine became slow.

    ``adapted``: prompts from the time when the balancer should have noticed. ``by_weight``: with
    the engine equally slow, through a service that uses weights alone.
    """

    before: Sequence[Prompt]
    right_after: Sequence[Prompt]
    adapted: Sequence[Prompt]
    by_weight: Sequence[Prompt]


def throttle(phases: Throttled, backend: str) -> Outcome:
    """Judge whether the slow engine gets less than before, and prompts wait less than by weight."""
    outcome = Outcome()
    named = {
        "before": phases.before,
        "right after": phases.right_after,
        "once adapted": phases.adapted,
        "by weight alone": phases.by_weight,
    }
    shares, slowest = {}, {}
    for name, prompts in named.items():
        median_ms = figures.first_token_ms(prompts, 0.5)
        slow_ms = figures.first_token_ms(prompts, 0.99)
        slowest[name] = figures.first_token_ms(prompts, 0.9)  # one late prompt decides nothing
        shares[name] = figures.shares(figures.answered_by(prompts)).get(backend, 0.0)
        outcome.say(
            f"{name:15}: {100 * shares[name]:2.0f} % of the prompts to {backend},"
            f" first token after {median_ms:,.0f} ms (p50), {slow_ms:,.0f} ms (p99)"
        )
        outcome.count(f"GPU throttled: first token, median, {name}", median_ms, "ms")
        outcome.count(f"GPU throttled: first token, 99 %, {name}", slow_ms, "ms")
        outcome.count(f"GPU throttled: share of prompts to it, {name}", 100 * shares[name], "%")
        # The last answers by weight alone may still be computed: leaving them out favours it.
        failed = [prompt for prompt in prompts if prompt.error]
        kinds = ", ".join(sorted({str(prompt.error) for prompt in failed}))
        outcome.require(not failed, f"{name}: {len(failed)} prompts failed ({kinds})")
        outcome.require(bool(prompts), f"{name}: no prompt was answered")
    outcome.require(
        shares["once adapted"] <= LESS * shares["before"], f"{backend} still gets as many prompts"
    )
    outcome.require(
        slowest["once adapted"] < slowest["by weight alone"],
        "prompts wait as long as by weight alone",
    )
    return outcome


def kill(window: Window, backend: str, calm: bool, back_ms: float | None) -> Outcome:
    """Judge a kill: requests may fail until it is noticed; other backends must not be affected.

    ``window`` begins at the kill; ``calm``: failures had ended by its end; ``back_ms``: when
    the backend, started again, got its first request.
    """
    failed, broken = window.failed, window.events("broke")
    until_ms = figures.last_start_ms(failed, window.start_s)
    others = [event for event in broken if event.backend != backend]
    outcome = Outcome()
    outcome.say(
        f"no new connection reached it after {until_ms:,.0f} ms; until then"
        f" {len(failed)} requests failed"
    )
    outcome.say(
        f"open connections broken: {len(broken) - len(others)} on {backend},"
        f" {len(others)} on other backends"
    )
    outcome.count("backend killed: last new connection to it after", until_ms, "ms")
    outcome.count("backend killed: requests failed until then", len(failed))
    outcome.count("backend killed: connections of other backends broken", len(others))
    # The dead server's kernel refuses at once; a timeout would have a different cause.
    hung = sum(request.error not in {"refused", "reset", "closed"} for request in failed)
    outcome.require(not hung, f"{hung} requests were not refused, but got no answer")
    outcome.require(calm, f"requests still fail {window.end_s - window.start_s:.0f} s later")
    outcome.require(not others, f"{len(others)} connections of other backends broke")
    outcome.require(back_ms is not None, f"{backend} was started again, but gets no requests")
    if back_ms is not None:
        outcome.say(f"started again, it got its first request after {back_ms:,.0f} ms")
        outcome.count("backend back: first request after", back_ms, "ms")
    return outcome


def drain(window: Window, backend: str, drained_s: float) -> Outcome:
    """Judge a drain: open connections end well or are still served, and no new ones come.

    ``window`` begins with the command; ``drained_s``: when it was done.
    """
    theirs = {
        number
        for number, name in figures.open_at(window.held, window.start_s).items()
        if name == backend
    }
    finished = theirs & {event.connection for event in window.events("finished")}
    broken = theirs & {e.connection for e in (*window.events("broke"), *window.events("moved"))}
    new = sum(r.backend == backend and r.started_s >= drained_s for r in window.requests)
    new += sum(e.backend == backend and e.at_s >= drained_s for e in window.events("opened"))
    kept = len(theirs - finished - broken)
    outcome = Outcome()
    outcome.say(
        f"it had {len(theirs)} open connections: {len(finished)} ended as they should,"
        f" {kept} are kept and still answered, {len(broken)} broke"
    )
    outcome.say(f"new connections to it: {new}; requests failed: {len(window.failed)}")
    outcome.count("backend drained: its open connections broken", len(broken))
    outcome.count("backend drained: new connections to it", new)
    outcome.count("backend drained: requests failed", len(window.failed))
    outcome.require(bool(finished), "the drained backend had no open stream that could end")
    outcome.require(not broken, f"{len(broken)} connections of the drained backend broke")
    outcome.require(not new, f"{new} new connections reached the drained backend")
    outcome.require_no_failure(window.failed)
    return outcome


def add(window: Window, backend: str) -> Outcome:
    """Judge whether the backend gets requests, and none fails; ``window`` begins at the command."""
    first_ms = figures.first_answer_ms(window.requests, backend, window.start_s)
    outcome = Outcome()
    outcome.require_no_failure(window.failed)
    outcome.require(first_ms is not None, f"{backend} was added, but gets no requests")
    if first_ms is not None:
        outcome.say(
            f"its first request came {first_ms:,.0f} ms after the command was given;"
            f" requests failed: {len(window.failed)}"
        )
        outcome.count("backend added: first request after", first_ms, "ms")
    outcome.count("backend added: requests failed", len(window.failed))
    return outcome


def restart(window: Window, ready_s: float, away_s: float) -> Outcome:
    """Judge whether the missing agent went unnoticed; it was away on purpose for ``away_s``."""
    held = len(figures.open_at(window.held, window.start_s))
    broken, moved = window.events("broke"), window.events("moved")
    ready_ms = 1000 * (ready_s - window.start_s - away_s)
    outcome = Outcome()
    outcome.say(
        f"{len(window.requests):,} requests meanwhile, {len(window.failed)} failed;"
        f" of {held} open connections {len(broken)} broke, {len(moved)} moved"
    )
    outcome.say(f"the new agent had taken over {ready_ms:,.0f} ms after its start")
    outcome.count("agent killed: requests failed", len(window.failed))
    outcome.count("agent killed: open connections broken", len(broken))
    outcome.count("agent killed: flows moved to another backend", len(moved))
    outcome.count("agent killed: slowest request", figures.slowest_ms(window.requests), "ms")
    outcome.count("agent killed: from its start until it has taken over", ready_ms, "ms")
    outcome.require(bool(window.requests) and bool(held), "there was no traffic meanwhile")
    outcome.require_no_failure(window.failed)
    outcome.require(not broken, f"{len(broken)} open connections broke")
    outcome.require(not moved, f"{len(moved)} flows moved to another backend")
    return outcome


def reload(window: Window, times: int) -> Outcome:
    """Judge whether no request and no open connection notices a new configuration."""
    lost = len(window.events("broke")) + len(window.events("moved"))
    outcome = Outcome()
    outcome.say(
        f"{len(window.requests):,} requests meanwhile, {len(window.failed)} failed;"
        f" open connections broken or moved: {lost}"
    )
    outcome.count(f"{times} reloads: requests failed", len(window.failed))
    outcome.count(f"{times} reloads: open connections broken or moved", lost)
    outcome.require_no_failure(window.failed)
    outcome.require(not lost, f"{lost} open connections broke or moved")
    return outcome


def die(
    window: Window, outage_ms: float | None, roles: Mapping[str, str | None], successor: str
) -> Outcome:
    """Judge a takeover: requests fail only without a master, and connections keep their backend.

    ``window`` begins when the master's cable was cut; ``outage_ms``: until the VIPs answered.
    """
    outcome = Outcome()
    outcome.require(outage_ms is not None, "no balancer took the VIPs over")
    end_s = window.start_s + (outage_ms or 0.0) / 1000
    late = [request for request in window.failed if request.started_s >= end_s]
    waiting = figures.waited(window.requests)
    if outage_ms is not None:
        outcome.say(
            f"the VIPs answered again after {outage_ms:,.0f} ms; {len(window.failed)} requests"
            f" failed, {len(waiting)} waited (at most {figures.slowest_ms(waiting):,.0f} ms)"
        )
        outcome.count("master killed: outage", outage_ms, "ms")
    _held_on(outcome, window, "master killed")
    outcome.count("master killed: requests failed in the outage", len(window.failed) - len(late))
    outcome.count("master killed: requests failed after it", len(late))
    outcome.require(not late, f"{len(late)} requests failed after the outage")
    _only_master(outcome, roles, successor)
    return outcome


def come_back(
    window: Window, back_s: float, roles: Mapping[str, str | None], master: str
) -> Outcome:
    """Judge whether the return of a balancer goes unnoticed; ``window`` begins with its start."""
    back_ms = 1000 * (back_s - window.start_s)
    outcome = Outcome()
    outcome.say(f"it was master {back_ms:,.0f} ms after its start, with the flows of the other")
    outcome.say(f"{len(window.requests):,} requests meanwhile, {len(window.failed)} failed")
    _held_on(outcome, window, "master back")
    outcome.count("master back: requests failed", len(window.failed))
    slowest_ms = figures.slowest_ms(window.requests)
    outcome.count("master back: slowest request", slowest_ms, "ms")
    outcome.require_no_failure(window.failed)
    _only_master(outcome, roles, master)
    return outcome


def _held_on(outcome: Outcome, window: Window, what: str) -> None:
    """Require that connections that were open when the window began neither break nor move."""
    held = len(figures.open_at(window.held, window.start_s))
    broken, moved = window.events("broke"), window.events("moved")
    outcome.say(f"of {held} open connections {len(broken)} broke, {len(moved)} moved")
    outcome.count(f"{what}: open connections broken", len(broken))
    outcome.count(f"{what}: flows moved to another backend", len(moved))
    outcome.require(bool(window.requests) and bool(held), "there was no traffic meanwhile")
    outcome.require(not broken, f"{len(broken)} open connections broke")
    outcome.require(not moved, f"{len(moved)} flows moved to another backend")


def _only_master(outcome: Outcome, roles: Mapping[str, str | None], wanted: str) -> None:
    said = ", ".join(f"{name} {role or 'does not answer'}" for name, role in roles.items())
    outcome.say(f"now: {said}")
    masters = {name for name, role in roles.items() if role and "master" in role}
    outcome.require(masters == {wanted}, f"{wanted} should be the master: {said}")
