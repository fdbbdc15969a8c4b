"""Decides how the routers of a sync group move together, as keepalived's do. Pure.

If one router is in FAULT, all of them are. If one stops being master, all of them do. They become
master only when all of them would: as long as one of them still hears its master, the others do not
take their VIPs from it. Otherwise the group would change sides endlessly in a network that loses
the adverts of only one router. Routers of the method `announce` have no elections and are in no
group.
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
    """Make a step of one member and the steps that follow from it.

    Returns the new states of all members, and the effects with the names of the members that they
    are for. The effects are ordered in rounds: the first effect of each member, then the second of
    each, and so on. So all members have their VIPs before the old master hears of the first new
    one, and drops all of them.
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
    """Return the ``Follow`` events for the members after a step of the member ``changed``.

    Call it after every step of a member. ``states``: all members as they are now; ``was``: the role
    of ``changed`` before the step.
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
