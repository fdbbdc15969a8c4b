"""Decides which faults a pair is subjected to, and how each is undone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from bench.failover.daemons import Daemon
from bench.failover.network import MASTER, Act, Pair


@dataclass(frozen=True, slots=True)
class Victim:
    """The pair on which a fault is made."""

    pair: Pair
    daemon: Daemon  # the master's

    def restart(self) -> Act:
        """Start the daemon again, as a service manager would."""
        return self.daemon.restart

    def carrier(self, there: bool) -> Act:
        """Pull or plug the master's cable."""
        return self.pair.carrier(self.pair.nodes[MASTER], there)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault of the master, or of the network between the two: how to prepare and to undo it.

    ``dead``: the node counts as dead from the fault on, though its kernel may still answer for
    the VIP; the outage ends with the other node's first answer. ``heals``: neither daemon is
    harmed, and both may have been master; what counts is whether the VIP is black-holed afterwards.
    """

    name: str
    about: str
    harm: Callable[[Victim], Act]
    undo: Callable[[Victim], Act]
    takes_over: bool = True
    from_first_loss: bool = False
    dead: bool = False
    heals: bool = False
    rest: bool = False  # the master has long been master, and stays it
    lasts_s: tuple[float, float] = (0.1, 0.2)  # after the takeover; drawn for each repetition


CASES = (
    Case(
        "kill",
        "kill -9 of the daemon; the node counts as dead",
        lambda v: v.daemon.killing(),
        Victim.restart,
        dead=True,
    ),
    Case(
        "stop",
        "clean stop (SIGTERM)",
        lambda v: v.daemon.ask_to_stop,
        Victim.restart,
    ),
    Case(
        "cut",
        "the master's link is cut, both ends lose carrier",
        lambda v: v.carrier(False),
        lambda v: v.carrier(True),
        from_first_loss=True,
        heals=True,
    ),
    Case(
        "freeze",
        "the daemon is frozen (SIGSTOP), and goes on (SIGCONT); the node counts as dead",
        lambda v: v.daemon.signalling(signal.SIGSTOP),
        lambda v: v.daemon.signalling(signal.SIGCONT),
        dead=True,
        heals=True,
        lasts_s=(0.3, 0.8),
    ),
    Case(
        "partition",
        "the master's port loses everything, carrier is kept",
        lambda v: v.pair.lose('iifname "lb1"', 'oifname "lb1"'),
        lambda v: v.pair.lose_nothing(),
        from_first_loss=True,
        heals=True,
        rest=True,
        lasts_s=(0.3, 0.8),
    ),
    Case(
        "mute",
        "what the master sends is lost",
        lambda v: v.pair.lose('iifname "lb1"'),
        lambda v: v.pair.lose_nothing(),
        from_first_loss=True,
        heals=True,
        rest=True,
        lasts_s=(0.3, 0.8),
    ),
    Case(
        "one-way",
        "what the master sends to the backup is lost, and nothing else",
        lambda v: v.pair.lose('iifname "lb1" oifname "lb2"'),
        lambda v: v.pair.lose_nothing(),
        takes_over=False,
        heals=True,
        rest=True,
        lasts_s=(0.5, 1.0),
    ),
    Case(
        "deaf",
        "what is sent to the master is lost: its adverts still come, so nobody takes over",
        lambda v: v.pair.lose('oifname "lb1"'),
        lambda v: v.pair.lose_nothing(),
        takes_over=False,
        from_first_loss=True,
        heals=True,
        lasts_s=(0.3, 0.5),
    ),
)


def case(name: str) -> Case:
    """Return the case of that name."""
    return next(case for case in CASES if case.name == name)
