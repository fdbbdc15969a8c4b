"""The ports of fullnat over any edits: what may have flows is found where it was, and no two
servers share ports without need.
"""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.state.nat_blocks import assign
from agent.state.tables import Blocks, ServiceSlot
from tests.unit.state.test_nat_blocks import A, B, fullnat, slot

PORTS = (80, 81, 90)  # 90 is only in the range
CONFIGURED = st.frozensets(st.sampled_from(list(product((A, B), (80, 81, 0)))), max_size=6)
BLOCKS = 16


def found(held: dict[ServiceSlot, Blocks], address: object, port: int, source: int) -> int:
    """As the packet path looks."""
    for one in (slot(address, port), slot(address, 0)):
        if one in held and held[one][source]:
            return held[one][source]
    return 0


@settings(deadline=None)
@given(st.lists(st.tuples(CONFIGURED, st.integers(1, 3)), min_size=2, max_size=8))
def test_where_the_ports_of_a_server_are_never_changes_while_it_is_served(edits):
    held: dict[ServiceSlot, Blocks] = {}
    before: dict[tuple[object, int, int], int] = {}
    for configured, sources in edits:
        services = tuple(
            fullnat(port, address) if port else fullnat(80, address, last=95)
            for address, port in sorted(configured, key=str)
        )
        held = assign(services, range(sources), held, BLOCKS)
        now = {
            (address, port, source): found(held, address, port, source)
            for address, port, source in product((A, B), PORTS, range(sources))
            if (address, port) in configured or (address, 0) in configured
        }
        assert all(now.values())
        assert all(block == before[ends] for ends, block in now.items() if ends in before)
        used = [block for blocks in held.values() for block in blocks if block]
        # A port shares only with those of its own address that were served by a range with it.
        owners = [{ends[0] for ends, block in now.items() if block == one} for one in set(used)]
        assert all(len(addresses) <= 1 for addresses in owners)
        before = now
