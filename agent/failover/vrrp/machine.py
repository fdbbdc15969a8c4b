"""Decides what one virtual router does next (RFC 9568, section 6.4; RFC 3768, section 6.4). Pure.

It goes beyond the RFCs in these points. After a split brain the winner announces its VIPs at once,
and the loser sends one more advert to show that it was master. An operator can promote a node or
hand it over (``Mode``). In a planned handover the old master keeps the VIPs until it hears the new
one. Routers can move in groups (``groups.py``). Flow sync is a second witness of a master's death.
"""

from __future__ import annotations

from dataclasses import replace

from agent.failover.model import HANDED_OVER, LEAVING, OWNER, Mode, Role
from agent.failover.times import (
    ALIVE_INTERVALS,
    HANDED_OVER_DOWNS,
    LEFT_INTERVALS,
    LOST_INTERVALS,
    OVERTAKEN_INTERVALS,
    VOUCH_S,
)
from agent.failover.vrrp import announcing, timers
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.states import (
    Announce,
    Claim,
    Drop,
    Due,
    Effect,
    Event,
    Fitness,
    Follow,
    Heard,
    Operator,
    Send,
    Settings,
    Start,
    State,
    Stop,
    Take,
    Vouched,
)

__all__ = [
    "Announce",
    "Claim",
    "Drop",
    "Due",
    "Effect",
    "Event",
    "Fitness",
    "Follow",
    "Heard",
    "Operator",
    "Send",
    "Settings",
    "Start",
    "State",
    "Stop",
    "Take",
    "Vouched",
    "initial",
    "step",
]

type Outcome = tuple[State, tuple[Effect, ...]]


def initial(settings: Settings, mode: Mode, now_s: float) -> State:
    """Return the state before ``Start``; ``mode`` is the operator's, kept over a restart."""
    return State(Role.INIT, now_s, "not started yet", settings.priority, mode=mode)


def step(settings: Settings, state: State, event: Event, now_s: float) -> Outcome:
    """Return the state after an event, and the effects to carry out, in this order."""
    match event:
        case Start():
            return _start(settings, state, event, now_s)
        case Stop():
            return _stop(state, now_s)
        case Heard():
            return _heard(settings, state, event.advert, now_s)
        case Due():
            return _due(settings, state, now_s)
        case Fitness():
            new = replace(state, fitness=event.priority, fault=event.fault)
            return _settle(settings, state, new, now_s)
        case Operator():
            return _settle(settings, state, replace(state, mode=event.mode), now_s)
        case Claim():
            return _claim(settings, state, now_s, "handed over to this node")
        case Follow():
            return _follow(settings, state, event, now_s)
        case Vouched():
            is_past = event.at_s <= now_s  # if not, the two times are of different clocks
            return (replace(state, vouched_s=event.at_s) if is_past else state), ()


def _start(settings: Settings, state: State, event: Start, now_s: float) -> Outcome:
    if state.role is not Role.INIT:
        return state, ()
    new, effects = _ready(settings, state, now_s, "started")
    if event.inherited and new.role is Role.BACKUP:
        # If there is a master, it is heard within an interval. If not, this node continues as
        # master before the others miss it.
        new = _sooner(new, now_s + settings.interval_s + _skew_s(settings, new))
    return new, effects


def _ready(settings: Settings, state: State, now_s: float, why: str) -> Outcome:
    """Leave INIT or FAULT (RFC 9568, section 6.4.1)."""
    if fault := state.fault or state.group_fault:
        return _enter(state, Role.FAULT, now_s, fault), ()
    if state.master is not None and now_s - state.heard_s > _down_s(settings, state):
        state = replace(state, master=None)
    state = _enter(state, Role.BACKUP, now_s, why)
    if state.priority == OWNER:
        return _wish(settings, state, now_s, "this node owns the addresses")
    return _waiting(settings, state, now_s), ()


def _stop(state: State, now_s: float) -> Outcome:
    if state.role is Role.INIT:
        return state, ()
    why = "stopped"
    effects = (Send(LEAVING), Drop(why)) if state.role is Role.MASTER else ()
    return replace(_enter(state, Role.INIT, now_s, why), master=None, group_fault=""), effects


def _heard(settings: Settings, state: State, advert: Advert, now_s: float) -> Outcome:
    if int(advert.source) == int(settings.own):
        return state, ()  # our own advert, back through a loop in the network
    match state.role:
        case Role.MASTER:
            return _master_heard(settings, state, advert, now_s)
        case Role.BACKUP:
            return _backup_heard(settings, state, advert, now_s)
        case Role.FAULT:
            master = None if advert.priority == LEAVING else advert
            return replace(state, master=master, heard_s=now_s), ()
        case Role.INIT:
            return state, ()


def _master_heard(settings: Settings, state: State, advert: Advert, now_s: float) -> Outcome:
    if advert.priority != LEAVING and not _beats(settings, state, advert):
        if advert.source == state.taken_from and now_s < state.settled_s:
            # It was sent before the lower-priority advert that made this node take over. If this
            # node obeyed it, both would stop being master.
            return state, ()
        why = f"{advert.source} is master with priority {advert.priority}, {state.priority} here"
        new = replace(state, master=advert, heard_s=now_s)
        # A winner that was master all along learns from this advert that there were two masters.
        effects: tuple[Effect, ...] = (Drop(why), Send(state.priority))
        return _waiting(settings, _enter(new, Role.BACKUP, now_s, why), now_s), effects
    left = "left" if advert.priority == LEAVING else f"was master too, with {advert.priority}"
    pending, at_once = announcing.wanted(state.announcing, now_s, settings.interval_s)
    new = replace(state, announcing=pending, advert_s=now_s + settings.interval_s)
    again = (Announce(f"{advert.source} {left}"),) if at_once else ()
    return new, (Send(state.priority), *again)


def _backup_heard(settings: Settings, state: State, advert: Advert, now_s: float) -> Outcome:
    if advert.priority == LEAVING:
        if state.master is not None and state.master.source != advert.source:
            return state, ()  # it is not the master that leaves
        down_s = now_s + _skew_s(settings, state)
        new = replace(state, master=None, leaver=advert.source)
        return _sooner(new, down_s), ()
    if advert.priority < state.priority and _another_lives(settings, state, advert, now_s):
        return state, ()  # its sender has just lost against the master
    preempt_s = None if advert.priority >= state.priority else state.preempt_s
    state = replace(state, master=advert, heard_s=now_s, leaver=None, preempt_s=preempt_s)
    if now_s < state.claim_s and _beats(settings, state, advert):
        return _wish(settings, state, now_s, f"handed over by {advert.source}")
    if advert.priority >= state.priority:
        return _waiting(settings, state, now_s), ()
    if not _preempts(settings, state):
        return _waiting(settings, state, now_s), ()
    if advert.priority == HANDED_OVER:
        return _sooner(state, now_s + _skew_s(settings, state)), ()
    if settings.preempt_delay_s and state.mode is not Mode.PROMOTED:
        if state.preempt_s is None:
            state = replace(state, preempt_s=now_s + settings.preempt_delay_s)
        if state.preempt_s is not None and now_s < state.preempt_s:
            return _waiting(settings, state, now_s), ()
    return state, ()  # the advert does not restart the timer, so this node takes over when it ends


def _due(settings: Settings, state: State, now_s: float) -> Outcome:
    if state.down_s is not None and state.down_s <= now_s:
        until_s = _vouched_until_s(settings, state, now_s)
        if until_s is not None and now_s < until_s:
            return replace(state, vouched=True, down_s=until_s), ()
        new = replace(state, vouched=False)
        return _wish(settings, new, now_s, _gone(settings, state, now_s))
    if state.role is not Role.MASTER:
        return state, ()
    effects: list[Effect] = []
    if state.patience_s is not None and state.patience_s <= now_s:
        # A peer that does not preempt waits until the master leaves. The VIPs stay here until that
        # peer is heard.
        why = "handed over, but no other node has taken over yet"
        silent_s = now_s + LEFT_INTERVALS * settings.interval_s
        state = replace(state, patience_s=None, advert_s=silent_s, why=why)
        effects.append(Send(LEAVING))
    elif state.advert_s is not None and state.advert_s <= now_s:
        next_s = state.advert_s + settings.interval_s
        if next_s <= now_s:  # the process was frozen
            next_s = now_s + settings.interval_s
        state = replace(state, advert_s=next_s)
        effects.append(Send(state.priority))
    pending, at_once = announcing.due(state.announcing, now_s)
    if at_once:
        effects.append(Announce("again, after another node was master"))
    return replace(state, announcing=pending), tuple(effects)


def _settle(settings: Settings, old: State, new: State, now_s: float) -> Outcome:
    """Handle a change of fitness, mode or the group's fault."""
    if new == old or new.role is Role.INIT:
        return new, ()
    fault = new.fault or new.group_fault
    if new.role is Role.FAULT:
        if fault:
            return replace(new, why=fault), ()
        return _ready(settings, new, now_s, "the fault is over")
    if fault:
        left = (Send(LEAVING), Drop(fault)) if new.role is Role.MASTER else ()
        return _enter(new, Role.FAULT, now_s, fault), left
    if new.role is Role.MASTER:
        if (new.priority, new.mode) == (old.priority, old.mode):
            return new, ()
        # Sent at once, so that a node that now has the higher priority need not wait for the next
        # advert.
        new = replace(new, advert_s=now_s + settings.interval_s)
        handed = new.mode is Mode.HANDED_OVER
        patience_s = now_s + HANDED_OVER_DOWNS * _down_s(settings, new) if handed else None
        effects: tuple[Effect, ...] = (Send(new.priority),)
        if new.fitness > old.fitness:
            # If this node saw no backend, for example, it may have been cut off while another node
            # was master. That node sends nothing when it becomes backup again.
            effects += (Announce("what lowered the priority is over"),)
        return replace(new, patience_s=patience_s), effects
    if new.mode is Mode.PROMOTED and old.mode is not Mode.PROMOTED:
        return _claim(settings, new, now_s, "promoted")
    return new, ()


def _claim(settings: Settings, state: State, now_s: float, why: str) -> Outcome:
    if state.role is not Role.BACKUP:
        return state, ()
    if state.master is None or _beats(settings, state, state.master):
        return _wish(settings, state, now_s, why)
    return replace(state, claim_s=now_s + HANDED_OVER_DOWNS * _down_s(settings, state)), ()


def _follow(settings: Settings, state: State, event: Follow, now_s: float) -> Outcome:
    if event.role is Role.FAULT:
        return _settle(settings, state, replace(state, group_fault=event.why), now_s)
    if event.role is Role.BACKUP and state.group_fault:
        return _settle(settings, state, replace(state, group_fault=""), now_s)
    match event.role, state.role:
        case Role.BACKUP, Role.MASTER:
            new = _enter(state, Role.BACKUP, now_s, event.why)
            # A node that is master already hears a lower master and announces again. One that is
            # still backup hears that this master leaves.
            effects = (Drop(event.why), Send(state.priority), Send(LEAVING))
            return _waiting(settings, new, now_s), effects
        case Role.MASTER, Role.BACKUP:
            return _take(settings, state, now_s, state.wish or event.why)
        case _:
            return state, ()


def _wish(settings: Settings, state: State, now_s: float, why: str) -> Outcome:
    """Become master; in a group only once all of its members would."""
    if settings.grouped:
        return replace(state, wish=why, down_s=None), ()
    return _take(settings, state, now_s, why)


def _take(settings: Settings, state: State, now_s: float, why: str) -> Outcome:
    old = state.master if _lives(settings, state, now_s) else None
    new = replace(_enter(state, Role.MASTER, now_s, why), master=None)
    new = replace(new, advert_s=now_s + settings.interval_s)
    if new.mode is Mode.HANDED_OVER:
        new = replace(new, patience_s=now_s + HANDED_OVER_DOWNS * _down_s(settings, new))
    if old is not None:
        # The old master is alive, and may answer for the VIPs once more after we announced them.
        pending = announcing.taken(now_s, settings.interval_s)
        settled_s = now_s + OVERTAKEN_INTERVALS * settings.interval_s
        new = replace(new, announcing=pending, taken_from=old.source, settled_s=settled_s)
    # The RFC has the advert first. With this order a living master keeps the VIPs until they are
    # here too; and if it is dead, clients wait for the VIPs, and nothing waits for the advert.
    return new, (Take(why), Send(new.priority))


def _enter(state: State, role: Role, now_s: float, why: str) -> State:
    """Return the state in a new role, without the timers of the old one."""
    return State(
        role,
        now_s,
        why,
        state.fitness,
        state.fault,
        state.group_fault,
        state.mode,
        state.master,
        state.heard_s,
    )


def _waiting(settings: Settings, state: State, now_s: float) -> State:
    return replace(state, down_s=now_s + _down_s(settings, state), wish="", vouched=False)


def _sooner(state: State, down_s: float) -> State:
    if state.wish or (state.down_s is not None and state.down_s <= down_s):
        return state
    return replace(state, down_s=down_s)


def _gone(settings: Settings, state: State, now_s: float) -> str:
    """Return why a backup no longer waits for its master."""
    if state.leaver is not None:
        return f"{state.leaver} has left"
    if state.master is None:
        return "no other node was heard"
    master = state.master
    if _lives(settings, state, now_s):
        if master.priority == HANDED_OVER:
            return f"{master.source} is handed over"
        return f"{master.source} has the lower priority {master.priority}"
    return f"{master.source} was not heard for {now_s - state.heard_s:.3g} s"


def _lives(settings: Settings, state: State, now_s: float) -> bool:
    """Return whether the master was heard a moment ago."""
    alive_s = ALIVE_INTERVALS * _interval_s(settings, state.master)
    return state.master is not None and now_s - state.heard_s < alive_s


def _vouched_until_s(settings: Settings, state: State, now_s: float) -> float | None:
    """Return until when flow sync keeps this node from taking over; None: it does not.

    It does while it reports that the master is well, if nothing but missing adverts speaks against
    that.
    """
    if state.vouched_s is None or state.leaver is not None or now_s < state.claim_s:
        return None
    if state.mode is Mode.PROMOTED or state.priority == OWNER or _lives(settings, state, now_s):
        return None
    if state.master is not None:
        lost_s = state.heard_s + LOST_INTERVALS * _interval_s(settings, state.master)
        if state.vouched_s < lost_s:
            return None
    return state.vouched_s + VOUCH_S


def _another_lives(settings: Settings, state: State, advert: Advert, now_s: float) -> bool:
    other = state.master is not None and state.master.source != advert.source
    return other and _lives(settings, state, now_s)


def _beats(settings: Settings, state: State, advert: Advert) -> bool:
    ours = (state.priority, int(settings.own))
    return ours > (advert.priority, int(advert.source))


def _preempts(settings: Settings, state: State) -> bool:
    return settings.preempt or state.mode is Mode.PROMOTED or state.priority == OWNER


def _interval_s(settings: Settings, master: Advert | None) -> float:
    """Return the interval that timers use: the master's in version 3, our own in version 2."""
    if settings.version == 3 and master is not None and master.interval_s > 0:
        return master.interval_s
    return settings.interval_s


def _skew_s(settings: Settings, state: State) -> float:
    interval_s = _interval_s(settings, state.master)
    return timers.skew_s(settings.version, state.priority, interval_s)


def _down_s(settings: Settings, state: State) -> float:
    interval_s = _interval_s(settings, state.master)
    return timers.master_down_s(settings.version, state.priority, interval_s)
