"""Mirrors ``bpf/select.h``: which backend a new flow would get now, and why, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from agent.dataplane import flowhash, score
from agent.dataplane.tables import SharedTables, Table
from agent.model import BackendRef, Scheduler
from agent.state.loads import NO_WEIGHT
from agent.state.queries import Draw, FiveTuple
from agent.state.tables import ServiceEntry, TableContents

HASH_DRAWS = 32
NEAR_DRAWS = 8
LEAST_CONN_ALL = 256
COMPARED_DRAWS = 16
_LEVEL_PART = 63 << 58
SHOWN = 8  # CPUs or backends in one step
LOAD, TURN = "load", "turn"


@dataclass(frozen=True, slots=True)
class Ring:
    """One service's ring, its backends, and what is known of them.

    ``loads``: the backends' loads as they are now (``score.as_of``). ``near``: the ring for the
    client's zone, used instead of the service's own; empty: there is none. ``zone``: the zone's
    name.
    """

    entry: ServiceEntry
    contents: TableContents
    tables: SharedTables
    names: Callable[[int], BackendRef | None]
    loads: Table
    near: bytes = b""
    zone: str = ""

    @property
    def slots(self) -> int:
        return len(self.near or self.entry.ring) // 2

    def backend(self, slot: int) -> int:
        return int.from_bytes((self.near or self.entry.ring)[2 * slot : 2 * slot + 2], "little")

    def is_usable(self, ident: int) -> bool:
        held = self.contents.backends.get(ident)
        return held is not None and held.usable

    def draw(self, slot: int) -> tuple[int, Draw]:
        ident = self.backend(slot)
        ref = self.names(ident)
        return ident, Draw(slot, ref.backend if ref else f"id {ident}", self.is_usable(ident))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a scheduler chooses.

    ``chosen`` 0: no backend. ``depends_on``: what another moment may change; None: the ring alone
    decides. ``any_of``: the turn decides between these, and each CPU has its own turn.
    """

    chosen: int
    draws: tuple[Draw, ...]
    steps: tuple[str, ...]
    depends_on: str | None = None
    any_of: frozenset[int] = field(default_factory=frozenset)


def select(ring: Ring, flow: FiveTuple) -> Selection:
    """Return what the scheduler would choose."""
    if not ring.entry.ring:
        return Selection(0, (), ())
    match ring.entry.scheduler:
        case Scheduler.MAGLEV:
            return _by_hash(ring, _first_pick(ring, flow))
        case Scheduler.SOURCE:
            return _by_source(ring, flow)
        case Scheduler.ROUND_ROBIN:
            return _in_turn(ring, flow)
        case Scheduler.LEAST_CONN:
            return _least_conn(ring, flow)
        case Scheduler.LEAST_LOAD:
            return _least_load(ring, flow)


def _first_pick(ring: Ring, flow: FiveTuple) -> int:
    return flowhash.pick_hash(ring.entry.pick_seed, flow.client, flow.client_port, flow.port)


def _picks(ring: Ring, pick: int, number: int) -> Iterator[tuple[int, Draw]]:
    """Yield ``number`` draws from this one on, whatever backends they name.

    After NEAR_DRAWS draws from the ring of a zone, the rest are from the service's own ring.
    """
    for turn in range(number):
        if turn == NEAR_DRAWS:
            ring = replace(ring, near=b"")
        yield ring.draw(flowhash.ring_slot(pick, ring.slots))
        pick = flowhash.pick_again(pick)


def _picks_of_one_level(ring: Ring, pick: int, number: int) -> Iterator[int]:
    """Yield ``number`` draws from the part of the ring that the first is in."""
    part = pick & (_LEVEL_PART if ring.entry.zones else 0)
    for _ in range(number):
        yield pick
        pick = flowhash.pick_again(pick)
        if ring.entry.zones:
            pick = pick & ~_LEVEL_PART | part


def _by_hash(ring: Ring, pick: int) -> Selection:
    draws, steps, chosen = [], [], 0
    for number, (ident, draw) in enumerate(_picks(ring, pick, HASH_DRAWS), 1):
        steps += _leaving_zone_ring(ring, number)
        draws.append(draw)
        use = "usable" if draw.usable else "not usable, next draw"
        steps.append(f"draw {number}: slot {draw.slot} names {draw.backend}, {use}")
        if draw.usable:
            chosen = ident
            break
    return Selection(chosen, tuple(draws), tuple(steps))


def _leaving_zone_ring(ring: Ring, number: int) -> list[str]:
    """Return the step that precedes the first draw after those from the ring of a zone."""
    if not ring.near or number != NEAR_DRAWS + 1:
        return []
    return [
        f"no draw from the ring of {ring.zone} found a usable backend: on to the service's own ring"
    ]


def _by_source(ring: Ring, flow: FiveTuple) -> Selection:
    entry, loads = ring.entry, ring.loads
    whole = ring.tables.service_load[entry.id]
    pick = flowhash.source_hash(entry.pick_seed, flow.client, entry.source_bits)
    steps = [f"drawn by the first {entry.source_bits} bits of {flow.client} alone"]
    draws, chosen, passed_over = [], 0, False
    for number, (ident, draw) in enumerate(_picks(ring, pick, HASH_DRAWS), 1):
        steps += _leaving_zone_ring(ring, number)
        step = f"draw {number}: slot {draw.slot} names {draw.backend}, "
        if not draw.usable:
            draws.append(draw)
            steps.append(f"{step}not usable, next draw")
            continue
        most = score.most_open(whole, loads[ident], entry.bound)
        is_open = int(score.counted(loads[ident]))
        if most is None:
            draws.append(draw)
            steps.append(f"{step}usable")
        else:
            draws.append(replace(draw, open=is_open, most_open=most))
            steps.append(f"{step}{is_open} open connections of at most {most}")
        if most is None or is_open < most or passed_over:
            chosen = ident
            break
        steps[-1] += ", passed over once"
        passed_over = True
    return Selection(chosen, tuple(draws), tuple(steps), LOAD if entry.bound else None)


def _in_turn(ring: Ring, flow: FiveTuple) -> Selection:
    """Select the next in each CPU's turn; it is not known which CPU will get the packet."""
    if ring.near:
        return _in_turn_of_zone(ring, flow)
    cpus = ring.tables.size.rows - 1
    turns = ring.tables.service_count["turn"][:cpus, ring.entry.id]
    next_ones = [
        ring.draw((cpu * ring.slots // cpus + int(turns[cpu])) % ring.slots) for cpu in range(cpus)
    ]
    draws = tuple(replace(draw, cpu=cpu) for cpu, (_, draw) in enumerate(next_ones))
    shown = ", ".join(f"{draw.backend} (CPU {draw.cpu})" for draw in draws[:SHOWN])
    more = f" and {cpus - SHOWN} more" if cpus > SHOWN else ""
    steps = [f"each CPU takes its own turn; next are {shown}{more}"]
    chosen = {ident for ident, draw in next_ones if draw.usable}
    if not all(draw.usable for draw in draws):
        otherwise = _by_hash(ring, _first_pick(ring, flow))
        steps += ["where the next is not usable, one is drawn from the ring", *otherwise.steps]
        chosen |= {otherwise.chosen} - {0}
    only = next(iter(chosen)) if len(chosen) == 1 else 0
    return Selection(only, draws[:SHOWN], tuple(steps), TURN, frozenset(chosen))


def _in_turn_of_zone(ring: Ring, flow: FiveTuple) -> Selection:
    """Select from the ring of a zone, the turns of which only the packet path knows."""
    every = {ring.backend(slot) for slot in range(ring.slots)}
    usable = {ident for ident in every if ring.is_usable(ident)}
    steps = [f"each CPU takes its own turn among {len(every)} backends in the ring of {ring.zone}"]
    if usable != every:
        otherwise = _by_hash(ring, _first_pick(ring, flow))
        steps += ["where the next is not usable, one is drawn from the ring", *otherwise.steps]
        usable |= {otherwise.chosen} - {0}
    only = next(iter(usable)) if len(usable) == 1 else 0
    return Selection(only, (), tuple(steps), TURN, frozenset(usable))


def _least_conn(ring: Ring, flow: FiveTuple) -> Selection:
    pick = _first_pick(ring, flow)
    if ring.slots > LEAST_CONN_ALL:
        return _lowest(ring, pick, COMPARED_DRAWS, f"{COMPARED_DRAWS} draws compared")
    every = [ring.draw(slot) for slot in range(ring.slots)]
    # The hash names the backend whose share counts for all of them, and breaks ties.
    any_one, _ = ring.draw(flowhash.ring_slot(pick, ring.slots))
    share = score.share(ring.loads[any_one])
    ranks = [
        score.of_connections(ring.loads[ident], share) << 8 | flowhash.tie(slot, pick)
        for slot, (ident, _) in enumerate(every)
    ]
    return _compared(ring, every, ranks, pick, "all backends compared")


def _least_load(ring: Ring, flow: FiveTuple) -> Selection:
    number, pick = min(ring.entry.draws, COMPARED_DRAWS), _first_pick(ring, flow)
    how = f"{number} draws compared by load and chance"
    if not ring.entry.source_bits:
        return _lowest(ring, pick, number, how)
    number -= 1  # the home is one of those that are compared
    how = f"{number} draws compared by load and chance"
    home_pick = flowhash.source_hash(ring.entry.pick_seed, flow.client, ring.entry.source_bits)
    picks = list(_picks_of_one_level(ring, pick, number))
    rows = [ring.loads[ident] for ident, _ in _drawn(ring, picks)]
    ident, home = ring.draw(flowhash.ring_slot(home_pick, ring.slots))
    row, escape = ring.loads[ident], int(ring.tables.service_load["escape"][ring.entry.id])
    named = f"the first {ring.entry.source_bits} bits of {flow.client} name {home.backend} as home"
    own, more = score.of_load(row, score.share(rows[0])), score.worth_of(row, escape)
    shown = (
        f"{score.in_connections(Scheduler.LEAST_LOAD, own):.2f}, allowed up to "
        f"{score.in_connections(Scheduler.LEAST_LOAD, more):.2f} above the lowest"
    )
    if row["inverse_weight"] == NO_WEIGHT:
        away = f"{named}, which gets no new flows"
    elif own > min(score.of_draws(rows, picks)) + more:
        away = f"{named}, which has too much to do: {shown}"
    elif home.usable:
        return Selection(ident, (home,), (f"{named}: {shown}",), LOAD)
    else:
        found = _by_hash(ring, home_pick)
        return replace(found, steps=(f"{named}", *found.steps), depends_on=LOAD)
    other = _lowest(ring, pick, number, how, otherwise=home_pick)
    return replace(other, steps=(away, *other.steps))


def _drawn(ring: Ring, picks: Sequence[int]) -> list[tuple[int, Draw]]:
    """Return what each of the hashes draws."""
    return [ring.draw(flowhash.ring_slot(each, ring.slots)) for each in picks]


def _lowest(
    ring: Ring, pick: int, number: int, how: str, *, otherwise: int | None = None
) -> Selection:
    """Select the lowest score of ``number`` draws; of equals, the one drawn first.

    If its backend is not usable, draws continue from ``otherwise``, by default the hash of the
    flow.
    """
    picks = list(_picks_of_one_level(ring, pick, number))
    drawn = _drawn(ring, picks)
    rows = [ring.loads[ident] for ident, _ in drawn]
    if ring.entry.scheduler is Scheduler.LEAST_CONN:
        ranks = [score.of_connections(row, score.share(rows[0])) for row in rows]
    else:
        ranks = score.of_draws(rows, picks)
    return _compared(ring, drawn, ranks, pick if otherwise is None else otherwise, how)


def _shown(scheduler: Scheduler, row: Table, rank: int) -> float | None:
    """Return what was compared; for ``least-load``, with the chance of the draw."""
    if scheduler is Scheduler.LEAST_LOAD:
        return score.in_connections(scheduler, rank)
    return score.shown(scheduler, row)


def _first_of_each(draws: Sequence[Draw]) -> list[Draw]:
    """Return the first draw of each backend."""
    found: dict[str, Draw] = {}
    for draw in draws:
        found.setdefault(draw.backend, draw)
    return list(found.values())


def _compared(
    ring: Ring, drawn: list[tuple[int, Draw]], ranks: list[int], pick: int, how: str
) -> Selection:
    """Select the lowest rank.

    A backend that is not usable has no weight and therefore the worst rank. If one still wins, a
    backend is drawn from the ring by the hash ``pick``.
    """
    best = min(range(len(drawn)), key=ranks.__getitem__)
    scheduler, loads = ring.entry.scheduler, ring.loads
    is_load = scheduler is Scheduler.LEAST_LOAD
    draws = tuple(
        replace(draw, score=_shown(scheduler, loads[ident], rank)) if draw.usable else draw
        for (ident, draw), rank in zip(drawn, ranks, strict=True)
    )
    by_score = sorted(draws, key=lambda draw: inf if draw.score is None else draw.score)
    shown = [(draw.backend, draw.score) for draw in _first_of_each(by_score)]
    hot = {draw.backend for ident, draw in drawn if is_load and loads[ident]["is_hot"]}
    listed = ", ".join(
        f"{name} {'not usable' if value is None else f'{value:.2f}'}{' (hot)' * (name in hot)}"
        for name, value in shown[:SHOWN]
    )
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    rule = "of those that are not hot the lowest wins" if hot else "lowest wins"
    step = f"{how}, {rule}: {listed}{more}"
    ident, draw = drawn[best]
    if draw.usable:
        return Selection(ident, draws, (step,), LOAD)
    found = _by_hash(ring, pick)
    fallback = f"{draw.backend} has the lowest, but is not usable: one is drawn from the ring"
    return Selection(found.chosen, (*draws, *found.draws), (step, fallback, *found.steps), LOAD)
