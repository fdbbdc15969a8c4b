"""Decides what each row has shown, from the load's records and what the machines say.

Durations are figures, never a reason to fail: what must not happen is a request that fails when
nothing excuses it, or an open connection that breaks or changes its backend.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbctl.lab import figures
from lbctl.lab.figures import Held, Request
from lbctl.lab.judge import Outcome, Window

# A client that got no answer to its first packet asks again after a second. What is faster than
# that was answered at the first try, however slow the machines are.
AT_ONCE_MS = 900.0


@dataclass(frozen=True, slots=True)
class Gap:
    """The time in which one address did not answer at the first try; ``end_s`` inf: it still is."""

    start_s: float
    end_s: float

    @property
    def ms(self) -> float:
        """How long it was."""
        return 1000 * (self.end_s - self.start_s)


def at_once(request: Request) -> bool:
    """Whether a request was answered well, at the first try."""
    return not request.failed and request.latency_ms < AT_ONCE_MS


def longest_gap(requests: Iterable[Request]) -> Gap | None:
    """From a request that was not answered at once to the next one that was; None: all were."""
    gaps: list[Gap] = []
    since_s: float | None = None
    for request in sorted(requests, key=lambda r: r.started_s):
        if not at_once(request):
            since_s = request.started_s if since_s is None else since_s
        elif since_s is not None:
            gaps.append(Gap(since_s, request.started_s))
            since_s = None
    if since_s is not None:
        gaps.append(Gap(since_s, math.inf))
    return max(gaps, key=lambda gap: gap.ms, default=None)


def gaps_by_address(requests: Iterable[Request]) -> dict[str, Gap | None]:
    """The longest gap of each VIP: its ports go and come together."""
    found: dict[str, list[Request]] = {}
    for request in requests:
        found.setdefault(request.target.rpartition(":")[0].strip("[]"), []).append(request)
    return {address: longest_gap(of) for address, of in sorted(found.items())}


def traffic(window: Window, backends: Iterable[str]) -> Outcome:
    """Every request is answered, and every backend has its part of them."""
    counts = figures.answered_by(window.requests)
    answered = [request for request in window.requests if not request.failed]
    outcome = Outcome()
    shown = ", ".join(f"{name} {counts[name]}" for name in backends)
    outcome.say(f"{len(answered)} of {len(window.requests)} requests answered: {shown}")
    for name in backends:
        outcome.count(f"answered by {name}", counts[name])
        outcome.require(counts[name] > 0, f"{name} got no request")
    outcome.count("latency, median", figures.latency_ms(answered, 0.5), "ms")
    outcome.count("latency, 99 %", figures.latency_ms(answered, 0.99), "ms")
    outcome.require(bool(answered), "nothing was answered")
    outcome.require_no_failure(window.failed)
    return outcome


def backend_lost(window: Window, backend: str, out_s: float, back_s: float | None) -> Outcome:
    """Requests may fail until a backend that died is out of use, and only its own connections.

    ``window`` begins before the death; ``out_s``: every balancer knew of it; ``back_s``: it
    answered a request again.
    """
    outcome = Outcome()
    failed = window.failed
    late = [request for request in failed if request.started_s >= out_s]
    outcome.say(
        f"out of use after {_s(out_s - window.start_s)} s; until then {len(failed) - len(late)} of"
        f" {len(window.requests)} requests failed{_kinds(failed)}"
    )
    outcome.count("out of use after", out_s - window.start_s, "s")
    outcome.count("requests failed until then", len(failed) - len(late))
    outcome.count(
        "last request that failed, after", figures.last_start_ms(failed, window.start_s) / 1000, "s"
    )
    broken, moved = window.events("broke"), window.events("moved")
    others = [event for event in broken if event.backend != backend]
    outcome.say(
        f"open connections broken: {len(broken) - len(others)} of {backend},"
        f" {len(others)} of others"
    )
    outcome.count("its open connections broken", len(broken) - len(others))
    outcome.count("open connections of other backends broken or moved", len(others) + len(moved))
    outcome.require(not late, f"{len(late)} requests failed when it was out of use{_kinds(late)}")
    outcome.require(not others, f"{len(others)} connections of other backends broke")
    outcome.require(not moved, f"{len(moved)} connections moved to another backend")
    outcome.require(back_s is not None, f"{backend} is back, but gets no requests")
    if back_s is not None:
        outcome.say(f"it answered requests again {_s(back_s - window.start_s)} s after its death")
        outcome.count("answers again after", back_s - window.start_s, "s")
    return outcome


def drain(window: Window, backend: str, drained_s: float) -> Outcome:
    """Nothing new comes to a drained backend, and nothing that it had open breaks.

    ``window`` begins before the command; ``drained_s``: it was done, on every balancer.
    """
    outcome = Outcome()
    theirs = {
        number
        for number, name in figures.open_at(window.held, window.start_s).items()
        if name == backend
    }
    lost = {event.connection for event in (*window.events("broke"), *window.events("moved"))}
    new = [r for r in window.requests if r.backend == backend and r.started_s >= drained_s]
    outcome.say(
        f"{len(window.requests)} requests meanwhile, {len(window.failed)} failed;"
        f" {len(new)} came to {backend} once it was drained"
    )
    outcome.say(f"it had {len(theirs)} open connections, {len(theirs & lost)} broke")
    outcome.count("requests failed", len(window.failed))
    outcome.count("new requests to it", len(new))
    outcome.count("its open connections", len(theirs))
    outcome.count("open connections broken or moved", len(lost))
    outcome.require_no_failure(window.failed)
    outcome.require(not new, f"{len(new)} requests came to {backend} after it was drained")
    outcome.require(bool(theirs), f"{backend} had no open connection that could have broken")
    outcome.require(not lost, f"{len(lost)} open connections broke or moved")
    return outcome


def undisturbed(window: Window, what: str) -> Outcome:
    """No request and no open connection notices."""
    outcome = Outcome()
    slowest_ms = figures.slowest_ms(window.requests)
    outcome.say(
        f"{what}: {len(window.failed)} of {len(window.requests)} requests failed"
        f"{_kinds(window.failed)}; the slowest took {slowest_ms:,.0f} ms"
    )
    outcome.count(f"{what}: requests", len(window.requests))
    outcome.count(f"{what}: requests failed", len(window.failed))
    outcome.count(f"{what}: slowest request", slowest_ms, "ms")
    outcome.require(bool(window.requests), f"{what}: there were no requests")
    outcome.require_no_failure(window.failed)
    held_on(outcome, window, what)
    return outcome


def master_killed(window: Window, successor: str) -> Outcome:
    """Requests may fail only while nobody has the VIPs, and what is open goes on.

    ``window`` begins before the master's power was cut.
    """
    outcome = Outcome()
    until_s = window.start_s
    for address, gap in gaps_by_address(window.requests).items():
        if gap is not None and gap.end_s == math.inf:
            outcome.require(False, f"{address} does not answer any more")
            continue
        until_s = max(until_s, gap.end_s if gap else until_s)
        outcome.say(f"{address} was away for {gap.ms if gap else 0.0:,.0f} ms")
        outcome.count(f"outage of {address}", gap.ms if gap else 0.0, "ms")
    late = [request for request in window.failed if request.started_s >= until_s]
    waited = [r for r in window.requests if not (r.failed or at_once(r))]
    outcome.say(
        f"{len(window.failed)} of {len(window.requests)} requests failed{_kinds(window.failed)};"
        f" {len(waited)} waited; {successor} is master"
    )
    outcome.count("requests failed in the outage", len(window.failed) - len(late))
    outcome.count("requests failed after it", len(late))
    outcome.require(not late, f"{len(late)} requests failed after the outage{_kinds(late)}")
    held_on(outcome, window, "master killed")
    return outcome


def held_on(outcome: Outcome, window: Window, what: str) -> None:
    """What was open as the window began may neither break nor move."""
    held = figures.open_at(window.held, window.start_s)
    broken, moved = window.events("broke"), window.events("moved")
    outcome.say(
        f"{what}: of {len(held)} open connections {len(broken)} broke, {len(moved)} moved"
        f"{_said(broken)}"
    )
    outcome.count(f"{what}: open connections", len(held))
    outcome.count(f"{what}: open connections broken", len(broken))
    outcome.count(f"{what}: open connections moved", len(moved))
    outcome.require(bool(held), f"{what}: no connection was open")
    outcome.require(not broken, f"{what}: {len(broken)} open connections broke{_said(broken)}")
    outcome.require(not moved, f"{what}: {len(moved)} open connections moved")


def doctor(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> Outcome:
    """No balancer has a problem; ``findings`` are those of `lbctl doctor`, for each."""
    outcome = Outcome()
    for name, found in findings.items():
        verdicts = Counter(finding["verdict"] for finding in found)
        outcome.say(f"{name}: {', '.join(f'{n} {word}' for word, n in sorted(verdicts.items()))}")
        for finding in found:
            if finding["verdict"] != "ok":
                outcome.say(f"{name}: {finding['verdict']}: {finding['message']}")
        problems = [finding["message"] for finding in found if finding["verdict"] == "problem"]
        outcome.count(f"{name}: problems", len(problems))
        outcome.count(f"{name}: warnings", verdicts["warning"])
        outcome.require(bool(found), f"{name}: the doctor said nothing")
        outcome.require(not problems, f"{name}: {'; '.join(problems)}")
    return outcome


def joined(*outcomes: Outcome) -> Outcome:
    """What several have found."""
    whole = Outcome()
    for outcome in outcomes:
        whole.lines += outcome.lines
        whole.figures += outcome.figures
        whole.problems += outcome.problems
    return whole


def _s(seconds: float) -> str:
    return f"{seconds:.1f}"


def _kinds(failed: Iterable[Request]) -> str:
    counts = Counter(request.error or f"status {request.status}" for request in failed)
    shown = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    return f" ({shown})" if shown else ""


def _said(broken: Iterable[Held]) -> str:
    shown = sorted({f"{event.target} on {event.backend}: {event.error}" for event in broken})
    return f" ({'; '.join(shown)})" if shown else ""
