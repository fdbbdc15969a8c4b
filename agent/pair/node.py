"""Shows this node's tables to the exchange of flows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.dataplane.program import Dataplane
from agent.flowsync.exchange import Node
from agent.flowsync.install import Arrival, account
from agent.flowsync.view import View, view_of
from agent.state.tables import TableContents


def node_of(
    dataplane: Dataplane, contents: Callable[[], TableContents], elsewhere: Callable[[], bool]
) -> Node:
    """``contents``: what the tables hold, the same object while nothing changes. ``elsewhere``:
    whether another node gets the clients' packets now.
    """
    seen: list[tuple[TableContents, View]] = []

    def view() -> View:
        held = contents()
        if not seen or seen[0][0] is not held:
            seen[:] = [(held, view_of(dataplane.tables, held, dataplane.keys, dataplane.clock))]
        return seen[0][1]

    def arrival() -> Arrival:
        # Clients come in by the first interface, whatever the arms.
        text = Path(f"/sys/class/net/{dataplane.interface}/address").read_text().strip()
        mac = np.frombuffer(bytes.fromhex(text.replace(":", "")), dtype=np.uint8)
        return Arrival(dataplane.ifindex, mac, elsewhere())

    return Node(
        view,
        dataplane.now_jiffies,
        arrival,
        lambda outcome: account(dataplane.tables, outcome),
    )
