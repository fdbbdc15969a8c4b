"""Decides what the load generators' records mean: shares, failures, and how long things took.

Times are seconds of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

# TCP retransmits after 200 ms at the earliest, a SYN after a second.
AT_ONCE_MS = 190.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request on its own connection; ``error`` None: it was answered with ``status``."""

    at_s: float  # when it ended
    started_s: float  # when the connection was opened
    target: str
    backend: str | None
    status: int | None
    error: str | None
    latency_ms: float

    @property
    def failed(self) -> bool:
        """Whether it got no good answer."""
        return self.error is not None or self.status != 200


@dataclass(frozen=True, slots=True)
class Held:
    """An event of a connection that is held open.

    ``event`` is opened, finished (ended as it should), broke, refused (could not be opened) or
    moved (a different backend answers than before).
    """

    at_s: float
    connection: int
    kind: str  # keep-alive or stream
    event: str
    target: str
    backend: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to an engine, streamed; ``error`` None: all its tokens came.

    Times are measured from the opening of the connection, to the first token and to the last.
    """

    at_s: float
    started_s: float
    target: str
    backend: str | None
    error: str | None
    prompt_tokens: int
    answer_tokens: int
    first_token_ms: float | None
    done_ms: float | None


type Record = Request | Held | Prompt
_KINDS: dict[str, type[Record]] = {"request": Request, "held": Held, "prompt": Prompt}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_line(record: Record) -> str:
    """Return a record as one line of JSON."""
    return json.dumps({"record": _NAMES[type(record)], **asdict(record)})


def from_line(line: str) -> Record | None:
    """Return the record that ``to_line`` wrote; None for any other line."""
    try:
        document = json.loads(line)
        return _KINDS[document.pop("record")](**document)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def started_in[T: (Request, Prompt)](
    requests: Iterable[T], start_s: float, end_s: float
) -> list[T]:
    """Return the requests whose connection was opened in that time."""
    return [request for request in requests if start_s <= request.started_s < end_s]


def failures(requests: Iterable[Request]) -> list[Request]:
    """Return the requests that got no good answer."""
    return [request for request in requests if request.failed]


def answered_by(requests: Iterable[Request | Prompt]) -> Counter[str]:
    """Return how many requests each backend answered."""
    return Counter(request.backend for request in requests if request.backend is not None)


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return each one's part of the whole, 0 to 1."""
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}


def widest_gap(expected: Mapping[str, float], actual: Mapping[str, float]) -> float:
    """Return the largest difference between an expected share and the actual one."""
    names = expected.keys() | actual.keys()
    return max((abs(expected.get(n, 0.0) - actual.get(n, 0.0)) for n in names), default=0.0)


def last_start_ms(requests: Iterable[Request], since_s: float) -> float:
    """Return the milliseconds from ``since_s`` until the last request was started; 0: none."""
    delays = [request.started_s - since_s for request in requests if request.started_s >= since_s]
    return 1000 * max(delays, default=0.0)


def first_answer_ms(requests: Iterable[Request], backend: str, since_s: float) -> float | None:
    """Return the milliseconds from ``since_s`` until a backend's first request; None: there is
    none.
    """
    started = [
        r.started_s
        for r in requests
        if r.backend == backend and not r.failed and r.started_s >= since_s
    ]
    return 1000 * (min(started) - since_s) if started else None


def outage_ms(requests: Iterable[Request], since_s: float) -> float | None:
    """Return the milliseconds from ``since_s`` until every target answered at once; None: not yet.

    A request that waited for the end of an outage is answered too, but only after its client
    retransmitted, which no client does at once.
    """
    again_s: dict[str, float] = {}
    for request in requests:
        at_s = again_s.setdefault(request.target, math.inf)
        if not request.failed and request.latency_ms < AT_ONCE_MS and request.started_s >= since_s:
            again_s[request.target] = min(at_s, request.started_s)
    last_s = max(again_s.values(), default=math.inf)
    return 1000 * (last_s - since_s) if last_s < math.inf else None


def waited(requests: Iterable[Request]) -> list[Request]:
    """Return the requests that were answered, but not at once."""
    return [r for r in requests if not r.failed and r.latency_ms >= AT_ONCE_MS]


def latency_ms(requests: Iterable[Request], share: float) -> float:
    """Return the latency that this share (0 to 1) of the answered requests stayed within."""
    return _quantile((request.latency_ms for request in requests if not request.failed), share)


def first_token_ms(prompts: Iterable[Prompt], share: float) -> float:
    """Return the time to first token that this share (0 to 1) of the prompts stayed within."""
    found = (prompt.first_token_ms for prompt in prompts)
    return _quantile((value for value in found if value is not None), share)


def _quantile(found: Iterable[float], share: float) -> float:
    values = sorted(found)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def slowest_ms(requests: Iterable[Request]) -> float:
    """Return the longest time of an answered request."""
    return latency_ms(requests, 1.0)


def open_at(events: Iterable[Held], at_s: float) -> dict[int, str]:
    """Return the held connections that are open at a moment, and the backend of each."""
    found: dict[int, str] = {}
    for event in sorted(events, key=lambda e: e.at_s):
        if event.at_s > at_s:
            break
        if event.event == "opened" and event.backend is not None:
            found[event.connection] = event.backend
        elif event.event in {"finished", "broke"}:
            found.pop(event.connection, None)
    return found


def held_in(events: Iterable[Held], kind: str, start_s: float, end_s: float) -> list[Held]:
    """Return the events of one kind (opened, finished, broke, refused, moved) in that time."""
    return [event for event in events if event.event == kind and start_s <= event.at_s < end_s]
