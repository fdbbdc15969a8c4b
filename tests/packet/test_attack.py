"""Under each attack, at what is a million packets a second with a table of the usual size, honest
clients are served, and established connections stay. `make attack` tries all modes and denser ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from agent.model import Forward
from tests.packet import attack
from tests.packet.harness import Rig

# The tunnels' packets take the same way as dsr's, but for their headers.
IN_ALL = ("SYN", "ACK", "data, three packets each")


def cases() -> Iterator[object]:
    """Some attacks in every mode that differs; the others in one, and the soak in the rest."""
    for name, mode in itertools.product(IN_ALL, Forward):
        yield pytest.param(name, mode, marks=pytest.mark.soak if mode.is_tunnel else ())
    for number, name in enumerate(name for name in attack.ATTACKS if name not in IN_ALL):
        mode, other = (Forward.DSR, Forward.FULLNAT)[:: -1 if number % 2 else 1]
        yield name, mode
        yield pytest.param(name, other, marks=pytest.mark.soak)


@pytest.mark.parametrize(("name", "forward"), [*cases()])
def test_honest_clients_are_served_and_established_ones_stay(rig: Rig, name: str, forward: Forward):
    attack.serve(rig, forward, challenges=name in attack.CHALLENGED)
    here = attack.happen(
        rig, attack.ATTACKS[name], density=attack.DENSITY, round_trips=40, clients=8
    )
    assert here.goodput >= attack.LEAST[forward], rig.reasons()
    assert here.moved == 0
    assert attack.is_even(here, name, forward), here.shares
    assert attack.lost(rig, here) <= attack.LOST_BY_CHANCE
