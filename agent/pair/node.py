"""Gives the exchange of flows its access to this node's tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agent.dataplane.program import Dataplane
from agent.errors import NetworkError
from agent.failover.host.announcer import interface_mac
from agent.flowsync.exchange import Node
from agent.flowsync.install import Arrival, account
from agent.flowsync.view import View, view_of
from agent.state.tables import TableContents


def node_of(
    dataplane: Dataplane, contents: Callable[[], TableContents], elsewhere: Callable[[], bool]
) -> Node:
    """Return the access to the tables.

    ``contents`` returns what the tables hold, the same object while nothing changes. ``elsewhere``
    returns whether another node gets the clients' packets now.
    """
    seen: list[tuple[TableContents, View]] = []

    def view() -> View:
        held = contents()
        if not seen or seen[0][0] is not held:
            seen[:] = [(held, view_of(dataplane.tables, held, dataplane.keys, dataplane.clock))]
        return seen[0][1]

    def arrival() -> Arrival:
        # Clients' packets come in by the first interface, whatever other interfaces there are.
        try:
            mac = interface_mac(dataplane.interface)
        except OSError as error:
            raise NetworkError(
                f"its MAC address cannot be read: {error.strerror or error}",
                where=dataplane.interface,
                remedy="flows of the other balancer are taken once the interface is back",
            ) from error
        return Arrival(dataplane.ifindex, np.frombuffer(mac, dtype=np.uint8), elsewhere())

    return Node(
        view,
        dataplane.now_jiffies,
        arrival,
        lambda outcome: account(dataplane.tables, outcome),
    )
