"""Turns measurements into the page and the JSON that are kept, and reads the latter again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vagrant.peers.accounting import Spent
from vagrant.peers.plan import MODES, Plan
from vagrant.peers.rounds import Asked, Measurement
from vagrant.smoke.report import Guests

DISTURBED = 0.15  # of the host's processors that nobody of the virtual machines had

type Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Balancer:
    """What runs in the balancer's guest, and how it is configured."""

    keepalived: str  # its version
    jit: str
    mitigations: str
    cpus: int
    configurations: dict[str, str]  # side -> file


@dataclass(frozen=True, slots=True)
class Kept:
    """Everything that is kept of one or several runs."""

    guests: Guests
    balancer: Balancer
    plan: Plan
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One way of forwarding of one side, over all rounds."""

    contender: str
    mode: str
    way: str
    rounds: int
    connections: int
    failed: int
    left_out: int
    guest_s: tuple[float, ...]  # CPU seconds of 10,000 connections, by round
    vcpu_s: tuple[float, ...]
    device_s: tuple[float, ...]
    idle_guest: float  # share of one processor, the median
    idle_vcpu: float
    rate_per_s: float


def rows(measurements: Sequence[Measurement]) -> list[Row]:
    """By way of forwarding, the sides under each other."""
    found: list[Row] = []
    for mode in MODES:
        of_mode = [m for m in measurements if m.mode == mode.steelyard]
        found += [
            _row([m for m in of_mode if m.contender == contender])
            for contender in dict.fromkeys(m.contender for m in of_mode)
        ]
    return found


def _row(taken: Sequence[Measurement]) -> Row:
    def median(value: Callable[[Measurement], float]) -> float:
        return statistics.median(map(value, taken))

    return Row(
        contender=taken[0].contender,
        mode=taken[0].mode,
        way=taken[0].way,
        rounds=len(taken),
        connections=sum(m.asked.begun for m in taken),
        failed=sum(m.asked.failed for m in taken),
        left_out=sum(m.asked.left_out for m in taken),
        guest_s=tuple(m.cost.guest_s for m in taken),
        vcpu_s=tuple(m.cost.vcpu_s for m in taken),
        device_s=tuple(m.cost.device_s for m in taken),
        idle_guest=median(lambda m: m.idle.guest_busy_s / m.idle.guest_wall_s),
        idle_vcpu=median(lambda m: m.idle.vcpu_s / m.idle.wall_s),
        rate_per_s=median(lambda m: m.asked.begun / m.asked.seconds),
    )


def ratios(found: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """How much more IPVS costs than Steelyard, by mode: as the guest says, as the host says."""
    result = {}
    for mode in dict.fromkeys(row.mode for row in found):
        both = [row for row in found if row.mode == mode]
        if len(both) == 2:
            ours, theirs = both if both[0].contender == "Steelyard" else reversed(both)
            result[mode] = (
                statistics.median(theirs.guest_s) / statistics.median(ours.guest_s),
                statistics.median(theirs.vcpu_s) / statistics.median(ours.vcpu_s),
            )
    return result


def as_json(kept: Kept) -> str:
    """What is kept for programs, and for a run that adds to it."""
    found = rows(kept.measurements)
    document = {
        "guests": {**asdict(kept.guests), "emulated": kept.guests.emulated},
        "balancer": asdict(kept.balancer),
        "plan": asdict(kept.plan),
        "rows": [_rounded(asdict(row)) for row in found],
        "ipvs_by_steelyard": {
            mode: {"guest": round(guest, 2), "host": round(host, 2)}
            for mode, (guest, host) in ratios(found).items()
        },
        "measurements": [_rounded(asdict(m)) for m in kept.measurements],
    }
    return json.dumps(document, indent=1) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def measurements(text: str, plan: Plan) -> tuple[Measurement, ...]:
    """Those of a document that was kept; raises ValueError if they are of another plan."""
    document = json.loads(text)
    if document["plan"] != asdict(plan):
        raise ValueError(f"it was measured by another plan: {document['plan']}")
    return tuple(
        Measurement(
            **{
                **fields,
                "asked": Asked(**fields["asked"]),
                "idle": Spent(**fields["idle"]),
                "loaded": Spent(**fields["loaded"]),
            }
        )
        for fields in document["measurements"]
    )


def markdown(kept: Kept) -> str:
    """The page."""
    found = rows(kept.measurements)
    parts = [
        "# keepalived + IPVS and Steelyard, in the same virtual machines",
        _setup(kept),
        "## CPU time of 10,000 connections",
        _method(kept),
        _table(_COST_HEAD, [_cells(row) for row in found]),
        *_said(found, kept),
        *([_prose("emulation.md")] if kept.guests.emulated else []),
        "## Features",
        _prose("features.md"),
        "## What was run",
        *(
            f"**{side}**\n\n```\n{text.rstrip()}\n```"
            for side, text in kept.balancer.configurations.items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _setup(kept: Kept) -> str:
    guests, balancer = kept.guests, kept.balancer
    how = (
        "**Emulated in software: ratios may mean something, speeds do not**"
        if guests.emulated
        else f"Virtualization: {guests.virtualization}"
    )
    return (
        f"By `make vagrant-peers`: {', '.join(guests.machines)}, {guests.memory_mib} MiB in all,"
        f" {guests.kernel}. {how}. The balancer has {balancer.cpus} processors, BPF JIT"
        f" {balancer.jit}, Spectre v2: {balancer.mitigations}; {balancer.keepalived}. Host:"
        f" {guests.host.cpu}, {guests.host.cpus} CPUs, {guests.host.kernel}. Commit"
        f" {guests.host.commit}, {guests.host.date}."
    )


def _method(kept: Kept) -> str:
    plan, count = kept.plan, max((m.round for m in kept.measurements), default=0) + 1
    return (
        "The same VIP, backends, adverts and HTTP checks; one balancer, with its own failover"
        f" process and nobody beside it; nginx behind it. {plan.rate_per_s:g} connections a second"
        f" for {plan.seconds:g} s, one request each, both sides in turn, {count}"
        f" round{'s' if count > 1 else ''}: median (least to most). What the same machine needed"
        " just before without connections, its daemons and checks running, is taken off, by time."
        " *Guest*: all time of the balancer's processors but idle and iowait in its"
        " `/proc/stat`. *Host*: CPU time of the threads that are the balancer's processors."
        " *Devices*: of the rest of its process, most of it the network card. The last columns are"
        " the idling that was taken off, in shares of one processor."
    )


_COST_HEAD = (
    "forwarding", "side", "guest, CPU s", "host, CPU s", "devices, CPU s",
    "connections", "failed", "per s", "idle, guest", "idle, host",
)  # fmt: skip


def _cells(row: Row) -> Sequence[str]:
    return (
        row.mode if row.mode == row.way else f"{row.mode} ({row.way})",
        row.contender,
        _figure(row.guest_s),
        _figure(row.vcpu_s),
        _figure(row.device_s),
        f"{row.connections:,}",
        f"{row.failed:,}",
        f"{row.rate_per_s:.0f}",
        f"{row.idle_guest:.0%}",
        f"{row.idle_vcpu:.0%}",
    )


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _said(found: Sequence[Row], kept: Kept) -> Iterator[str]:
    said = [
        f"{mode} {guest:.2f} in the guest and {host:.2f} on the host"
        for mode, (guest, host) in ratios(found).items()
    ]
    if said:
        yield f"IPVS by Steelyard, of the medians: {'; '.join(said)}."
    cpus = kept.guests.host.cpus
    shares = [m.others_share(cpus) for m in kept.measurements]
    disturbed = sum(
        share > DISTURBED or m.held_up for share, m in zip(shares, kept.measurements, strict=True)
    )
    yield _uncertainty(found, kept.measurements)
    waited = statistics.median(m.loaded.vcpu_waited_s / m.loaded.wall_s for m in kept.measurements)
    yield (
        f"Disturbed, because others than the virtual machines had over {DISTURBED:.0%} of the"
        f" host's processors, or the guest's clock was held up: {disturbed} of {len(shares)}"
        f" measurements (most that others had: {max(0.0, *shares):.0%}). Under load, the balancer's"
        f" processors waited for the host's {waited:.0%} of the time, which their guest takes for"
        " work (median)."
    )


def _uncertainty(found: Sequence[Row], taken: Sequence[Measurement]) -> str:
    """How much one figure of the host's column may be wrong, by how the idling varied."""
    said = []
    for contender in dict.fromkeys(row.contender for row in found):
        mine = [m for m in taken if m.contender == contender]
        idle = [m.idle.vcpu_s / m.idle.wall_s for m in mine]
        # What each second more or less of it makes of a cost.
        each = statistics.median(10_000 * m.loaded.wall_s / m.asked.begun for m in mine)
        said.append(f"{(max(idle) - min(idle)) / 2 * each:.1f} s for {contender}")
    return (
        "How much the idling differed between measurements is what one of them may be wrong by, in"
        f" the host's column: {', '.join(said)}. More rounds (`--rounds`, `--add`) narrow it."
    )


def _prose(name: str) -> str:
    return Path(__file__).with_name(name).read_text().strip()


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    dashes = "|" + "|".join(["-"] * 2 + ["-:"] * (len(head) - 2)) + "|"
    drawn = ["| " + " | ".join(line) + " |" for line in (head, *lines)]
    return "\n".join([drawn[0], dashes, *drawn[1:]])
