"""Decides what the answers of a service's source of backends change.

An answer that looks like a mistake changes nothing: one with fewer targets than ``min``, with more
than ``max``, or without more than ``most_removed`` of those that are there. A target that is
missing in an answer drains, and is forgotten when it has no flows left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from agent.model import Address, AdminState, Discover, Target

SETTLE_S = 5.0  # a target that has just begun to drain may still get flows that were on their way

type TargetKey = tuple[Address, int | None]


@dataclass(frozen=True, slots=True)
class Placed:
    """A target that a source has named. ``left``: when (seconds since the epoch) it was first
    missing in an answer; None: the newest answer has it.
    """

    target: Target
    left: float | None = None

    @property
    def key(self) -> TargetKey:
        """What tells targets apart."""
        return self.target.address, self.target.port


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known from a service's source. Times are in seconds since the epoch.

    ``problem``: why the newest answer is not used, or why there is none. ``held``: the targets of
    an answer that an operator may accept all the same.
    """

    source: str = ""
    placed: tuple[Placed, ...] = ()
    answered: float | None = None  # when the answer came that is in use
    problem: str = ""
    since: float | None = None  # the problem
    held: tuple[Target, ...] | None = None

    @property
    def named(self) -> tuple[Placed, ...]:
        """The targets of the answer that is in use."""
        return tuple(each for each in self.placed if each.left is None)


def follow(
    state: SourceState, rules: Discover, targets: tuple[Target, ...], now: float
) -> SourceState:
    """Return the state after an answer of the source."""
    problem, may_accept = _objection(state, rules, targets)
    if problem:
        held = targets if may_accept else None
        return replace(failed(state, problem, now), held=held)
    return accept(state, rules, targets, now)


def accept(
    state: SourceState, rules: Discover, targets: tuple[Target, ...], now: float
) -> SourceState:
    """Return the state when these targets are used, whatever they change."""
    placed = {(target.address, target.port): Placed(target) for target in targets}
    gone = [
        each if each.left is not None else replace(each, left=now)
        for each in state.placed
        if each.key not in placed
    ]
    every = sorted([*placed.values(), *gone], key=_order)
    return SourceState(rules.source, tuple(every), now)


def failed(state: SourceState, problem: str, now: float) -> SourceState:
    """Return the state after an answer that cannot be used: the targets stay."""
    since = state.since if state.problem else now
    return replace(state, problem=problem, since=since, held=None)


def departed(
    state: SourceState, rules: Discover, now: float, flows: Callable[[Target], int]
) -> SourceState:
    """Return the state without the targets that have drained, or had ``drain`` for it."""

    def stays(each: Placed) -> bool:
        if each.left is None:
            return True
        # The clock may have been set back.
        age = max(0.0, now - each.left)
        return age < rules.drain_s and (age < SETTLE_S or flows(each.target) > 0)

    placed = tuple(filter(stays, state.placed))
    return state if len(placed) == len(state.placed) else replace(state, placed=placed)


def _objection(
    state: SourceState, rules: Discover, targets: tuple[Target, ...]
) -> tuple[str, bool]:
    """Return why an answer is not used (empty: it is), and whether an operator may accept it."""
    count = len(targets)
    names = f"the answer names {count:,} target{'' if count == 1 else 's'}"
    if count < rules.min:
        return f"{names}, and min is {rules.min:,}", count > 0
    if count > rules.max:
        return f"{names}, and max is {rules.max:,}", False
    now = {(target.address, target.port) for target in targets}
    were = {each.key for each in state.named}
    missing = len(were - now)
    # Another source has other servers.
    is_same = state.source == rules.source
    if is_same and missing > max(1, int(rules.most_removed * len(were))):
        lacks = f"the answer lacks {missing:,} of the {len(were):,} targets"
        return f"{lacks}, and most_removed is {rules.most_removed:.0%}", True
    return "", False


def _order(placed: Placed) -> tuple[int, Address, int]:
    target = placed.target
    return target.address.version, target.address, target.port or 0


def to_json(states: Mapping[str, SourceState]) -> dict[str, object]:
    """Return what has to outlive the agent, by service."""
    return {
        name: {
            "source": state.source,
            "answered": state.answered,
            "targets": [
                {
                    "address": str(each.target.address),
                    "port": each.target.port,
                    "name": each.target.name,
                    "weight": each.target.weight,
                    "state": each.target.admin.value,
                    "backup": each.target.backup,
                    "priority": each.target.priority,
                    "zone": each.target.zone,
                    "left": each.left,
                }
                for each in state.placed
            ],
        }
        for name, state in states.items()
    }


def from_json(data: Mapping[str, Any]) -> dict[str, SourceState]:
    """Return the states in what ``to_json`` made. Raises KeyError, TypeError or ValueError."""
    return {
        name: SourceState(
            str(found["source"]),
            tuple(
                Placed(
                    Target(
                        ip_address(each["address"]),
                        each["port"],
                        each["name"],
                        each["weight"],
                        AdminState(each["state"]),
                        each["backup"],
                        each["priority"],
                        each["zone"],
                    ),
                    each["left"],
                )
                for each in found["targets"]
            ),
            found["answered"],
        )
        for name, found in data.items()
    }
