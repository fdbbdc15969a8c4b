"""Defines what each balancer of a fleet reports about itself, and how two of them differ. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from agent.errors import UnreadableError

NODES, PARTS = "nodes/", "parts/"  # under a lease
SEEN = "seen/"  # stays when the lease has ended, so that a balancer that died is missed
MOST_BYTES = 1 << 20  # of a report
MOST_DOWN = 20  # services without a usable backend that a report names


@dataclass(frozen=True, slots=True)
class Work:
    """What a balancer's program and its servers did in some time.

    ``opened`` and ``established`` are connections, ``drops`` packets, ``answers`` the requests that
    were answered, ``failed`` those that failed. ``first_byte``: how many answers began within each
    bucket of ``agent.dataplane.latency``; empty: none are timed.
    """

    opened: int = 0
    established: int = 0
    drops: int = 0
    answers: int = 0
    failed: int = 0
    first_byte: tuple[int, ...] = ()

    def since(self, before: Work) -> Work:
        """Return what was added since ``before``; a total that went back counts from 0."""

        def grown(now: int, then: int) -> int:
            return now - then if now >= then else now

        times = zip_longest(self.first_byte, before.first_byte, fillvalue=0)
        return Work(
            grown(self.opened, before.opened),
            grown(self.established, before.established),
            grown(self.drops, before.drops),
            grown(self.answers, before.answers),
            grown(self.failed, before.failed),
            tuple(grown(now, then) for now, then in times),
        )

    def __add__(self, other: Work) -> Work:
        times = zip_longest(self.first_byte, other.first_byte, fillvalue=0)
        return Work(
            self.opened + other.opened,
            self.established + other.established,
            self.drops + other.drops,
            self.answers + other.answers,
            self.failed + other.failed,
            tuple(mine + yours for mine, yours in times),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """A balancer of the fleet, as it saw itself at ``at`` (seconds since the epoch).

    ``version`` runs since ``since``. ``refused``: a version that it cannot run, and why.
    ``problem``: what is wrong with it otherwise. ``frozen``: why it takes no versions; None: it
    does. ``services`` and ``rings`` are digests of what it is to do, and of what its tables hold.
    ``work``: since it took its version, and in about the last minute at most; ``before``: likewise,
    with the version before.
    """

    node: str
    ident: str  # of the agent's process: two balancers with one name have different ones
    release: str
    at: float
    role: str
    version: int
    since: float
    refused: tuple[int, str] | None = None
    problem: str = ""
    frozen: str | None = None
    services: str = ""
    rings: str = ""
    down: tuple[str, ...] = ()  # services without a usable backend
    work: Work = field(default_factory=Work)
    before: Work = field(default_factory=Work)


@dataclass(frozen=True, slots=True)
class Part:
    """Digests of one service: its settings, the backends its sources named, and its rings."""

    settings: str
    discovered: str
    rings: str


def write_report(report: Report) -> bytes:
    """Return a report as it is stored."""
    refused = report.refused
    document = {
        "ident": report.ident,
        "release": report.release,
        "at": report.at,
        "role": report.role,
        "version": report.version,
        "since": report.since,
        "refused": None if refused is None else {"version": refused[0], "why": refused[1]},
        "problem": report.problem,
        "frozen": report.frozen,
        "services": report.services,
        "rings": report.rings,
        "down": list(report.down),
        "work": _work_document(report.work),
        "before": _work_document(report.before),
    }
    return json.dumps(document).encode()


def read_report(node: str, value: bytes) -> Report:
    """Return the report of a balancer. Raises UnreadableError if it cannot be read."""
    match _json(node, value):
        case {
            "ident": str(ident),
            "release": str(release),
            "at": float(at) | int(at),
            "role": str(role),
            "version": int(version),
            "since": float(since) | int(since),
            "problem": str(problem),
            "services": str(services),
            "rings": str(rings),
            "down": list(down),
            **more,
        }:
            refused, frozen = more.get("refused"), more.get("frozen")
            return Report(
                node,
                ident,
                release,
                at,
                role,
                version,
                since,
                _refused(refused),
                problem,
                None if frozen is None else str(frozen),
                services,
                rings,
                tuple(map(str, down[:MOST_DOWN])),
                _work(more.get("work")),
                _work(more.get("before")),
            )
    raise _unreadable(node, "it has not the shape of a report")


def write_seen(at: float) -> bytes:
    """Return when a balancer reported, in seconds since the epoch, as it is stored."""
    return json.dumps({"at": round(at)}).encode()


def read_seen(node: str, value: bytes) -> float:
    """Return when a balancer reported. Raises UnreadableError if it cannot be read."""
    match _json(node, value):
        case {"at": float(at) | int(at)}:
            return at
    raise _unreadable(node, "it does not say when")


def write_parts(parts: Mapping[str, Part]) -> bytes:
    """Return the digests of a balancer's services as they are stored."""
    return json.dumps(
        {name: [part.settings, part.discovered, part.rings] for name, part in parts.items()}
    ).encode()


def read_parts(node: str, value: bytes) -> dict[str, Part]:
    """Return the digests of a balancer's services. Raises UnreadableError if they are none."""
    found = {}
    for name, digests in _json(node, value).items():
        match digests:
            case [str(settings), str(discovered), str(rings)]:
                found[name] = Part(settings, discovered, rings)
            case _:
                raise _unreadable(node, "its digests have not the shape that they should have")
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """A service that two balancers do not treat alike, and in what."""

    service: str
    what: str


def differences(
    one: tuple[str, Mapping[str, Part]], other: tuple[str, Mapping[str, Part]]
) -> tuple[Difference, ...]:
    """Return how the services of two balancers differ, each given with its name."""
    (name, parts), (their_name, theirs) = one, other
    found = []
    for service in dict.fromkeys((*parts, *theirs)):
        mine, yours = parts.get(service), theirs.get(service)
        if mine is None or yours is None:
            found.append(
                Difference(service, f"only {name if yours is None else their_name} has it")
            )
        elif mine.settings != yours.settings:
            found.append(Difference(service, "other settings or backends"))
        elif mine.discovered != yours.discovered:
            found.append(Difference(service, "their sources have named other backends"))
        elif mine.rings != yours.rings:
            what = "other rings: they differ in which backends are up, or in weights"
            found.append(Difference(service, what))
    return tuple(found)


def drifted(reports: Sequence[Report], expected: Mapping[int, str]) -> frozenset[str]:
    """Return the balancers that run other services than their version has.

    ``expected`` are the digests of versions; a balancer with another version is not judged.
    """
    return frozenset(
        report.node
        for report in reports
        if report.version in expected and report.services != expected[report.version]
    )


def _work_document(work: Work) -> dict[str, object]:
    return {
        "opened": work.opened,
        "established": work.established,
        "drops": work.drops,
        "answers": work.answers,
        "failed": work.failed,
        "first_byte": list(work.first_byte),
    }


def _work(document: object) -> Work:
    match document:
        case {
            "opened": int(opened),
            "established": int(established),
            "drops": int(drops),
            "answers": int(answers),
            "failed": int(failed),
            "first_byte": list(first_byte),
        }:
            times = tuple(each for each in first_byte if isinstance(each, int))
            return Work(opened, established, drops, answers, failed, times)
    return Work()  # an older release: nothing is known


def _refused(document: object) -> tuple[int, str] | None:
    match document:
        case {"version": int(version), "why": str(why)}:
            return version, why
    return None


def _json(node: str, value: bytes) -> Mapping[str, object]:
    if len(value) > MOST_BYTES:
        raise _unreadable(node, "it is too large")
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _unreadable(node, f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _unreadable(node, "it is not an object of JSON")
    return document


def _unreadable(node: str, why: str) -> UnreadableError:
    return UnreadableError(
        f"what it reports cannot be read: {why}",
        where=f"balancer {node}",
        remedy="see which release it runs, and who else writes below the fleet's prefix",
    )
