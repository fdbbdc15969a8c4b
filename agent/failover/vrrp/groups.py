"""Decides how the routers of a sync group move together, as keepalived's do. Pure.

One in FAULT: all in FAULT. One that stops being master: none is. They become master only when all
of them would be: if one of them still hears its master, the others do not take their VIPs from it,
else a network that loses the adverts of one router alone would have the group change sides without
end. Routers of the method `announce` have no elections and are in no group.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from agent.failover.model import Role
from agent.failover.vrrp import machine
from agent.failover.vrrp.states import Effect, Event, Follow, Settings, State

type Moved = tuple[dict[str, State], tuple[tuple[str, Effect], ...]]


def step(
    settings: Mapping[str, Settings],
    states: Mapping[str, State],
    name: str,
    event: Event,
    now_s: float,
) -> Moved:
    """A step of one member and what follows from it: all states, and what is to be done by whom.

    First what each member wants done first, and so on: all have their VIPs before the old master
    hears of the first one, and drops them all.
    """
    alone = states[name]
    if len(states) == 1 and not (settings[name].grouped or alone.group_fault or alone.wish):
        new, own = machine.step(settings[name], alone, event, now_s)
        return {name: new}, tuple((name, effect) for effect in own)
    found = dict(states)
    effects: dict[str, list[Effect]] = {}
    events: list[tuple[str, Event]] = [(name, event)]
    while events:
        member, next_event = events.pop(0)
        was = found[member].role
        found[member], wanted = machine.step(settings[member], found[member], next_event, now_s)
        effects.setdefault(member, []).extend(wanted)
        if not events:
            events += follows(found, member, was)
    rounds = zip_longest(*effects.values())
    ordered = [
        (member, effect)
        for row in rounds
        for member, effect in zip(effects, row, strict=True)
        if effect is not None
    ]
    return found, tuple(ordered)


def follows(states: Mapping[str, State], changed: str, was: Role) -> tuple[tuple[str, Follow], ...]:
    """What the members, by name, have to follow after a step of ``changed``, which was ``was``.

    To be asked after every step of a member. ``states``: all members, as they are now.
    """
    faulty = {name: state.fault for name, state in states.items() if state.fault}
    if faulty:
        return _fault(states, faulty)
    if over := [name for name, state in states.items() if state.group_fault]:
        return tuple((name, Follow(Role.BACKUP, "the group's fault is over")) for name in over)
    if was is Role.MASTER and states[changed].role is Role.BACKUP:
        why = f"{changed} is no longer master: {states[changed].why}"
        masters = [name for name, state in states.items() if state.role is Role.MASTER]
        return tuple((name, Follow(Role.BACKUP, why)) for name in masters)
    if all(state.role is Role.MASTER or state.wish for state in states.values()):
        backups = [name for name, state in states.items() if state.role is not Role.MASTER]
        return tuple((name, Follow(Role.MASTER, states[name].wish)) for name in backups)
    return ()


def _fault(
    states: Mapping[str, State], faulty: Mapping[str, str]
) -> tuple[tuple[str, Follow], ...]:
    found = []
    for name, state in states.items():
        others = [f"{other}: {fault}" for other, fault in faulty.items() if other != name]
        why = others[0] if others else ""
        if why and why != state.group_fault:
            found.append((name, Follow(Role.FAULT, why)))
        elif not why and state.group_fault:
            found.append((name, Follow(Role.BACKUP, "the group's fault is over")))
    return tuple(found)
