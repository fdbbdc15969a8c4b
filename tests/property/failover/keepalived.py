"""How keepalived 2.3.3 behaves, as far as another node can tell: section 6.4 of the RFCs.

After a split brain the loser says nothing, and the winner announces only if it hears a lower one.
"""

from __future__ import annotations

from dataclasses import replace

from agent.failover.model import Role
from agent.failover.vrrp import timers
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.states import (
    Announce,
    Drop,
    Due,
    Effect,
    Event,
    Fitness,
    Heard,
    Send,
    Settings,
    Start,
    State,
    Stop,
    Take,
)

type Outcome = tuple[State, tuple[Effect, ...]]


def step(settings: Settings, state: State, event: Event, now_s: float) -> Outcome:
    master = state.role is Role.MASTER
    match event:
        case Start() if state.role is Role.INIT:
            return backup(settings, state, None, now_s), ()
        case Stop():
            stopped = replace(state, role=Role.INIT, down_s=None, advert_s=None)
            return stopped, (Send(0), Drop("")) if master else ()
        case Fitness(priority=priority):
            return replace(state, fitness=priority), ()
        case Heard(advert=advert) if master:
            return master_heard(settings, state, advert, now_s)
        case Heard(advert=advert) if state.role is Role.BACKUP:
            return backup_heard(settings, state, advert, now_s)
        case Due() if master:
            return advertise(settings, state, now_s)
        case Due():
            new = replace(state, role=Role.MASTER, down_s=None)
            new, effects = advertise(settings, new, now_s)
            return new, (*effects, Take(""))
        case _:
            return state, ()


def backup(settings: Settings, state: State, master: Advert | None, now_s: float) -> State:
    new = replace(state, role=Role.BACKUP, advert_s=None, master=master)
    wait_s = timers.master_down_s(settings.version, state.fitness, learned(settings, new))
    return replace(new, down_s=now_s + wait_s)


def learned(settings: Settings, state: State) -> float:
    heard = settings.version == 3 and state.master is not None
    return state.master.interval_s if heard else settings.interval_s


def advertise(settings: Settings, state: State, now_s: float) -> Outcome:
    new = replace(state, advert_s=now_s + settings.interval_s)
    return new, (Send(state.fitness),)


def backup_heard(settings: Settings, state: State, advert: Advert, now_s: float) -> Outcome:
    if advert.priority == 0:
        skew_s = timers.skew_s(settings.version, state.fitness, learned(settings, state))
        return replace(state, down_s=now_s + skew_s), ()
    if not settings.preempt or advert.priority >= state.fitness:
        return backup(settings, state, advert, now_s), ()
    return state, ()


def master_heard(settings: Settings, state: State, advert: Advert, now_s: float) -> Outcome:
    ours = (state.fitness, int(settings.own))
    if advert.priority == 0:
        return advertise(settings, state, now_s)
    if ours > (advert.priority, int(advert.source)):
        new, effects = advertise(settings, state, now_s)
        return new, (*effects, Announce(""))
    return backup(settings, state, advert, now_s), (Drop(""),)
