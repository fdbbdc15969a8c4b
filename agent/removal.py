"""Removes everything that Steelyard has set up in this network namespace, without a configuration.

A package that is removed needs this: the configuration may be missing or wrong by then, and no
program may go on balancing when nobody looks after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from agent.companion import program as companion
from agent.companion.run import PROTO as COMPANION_PROTO
from agent.dataplane import attach, instance
from agent.dataplane.helpers import detach_helpers
from agent.dataplane.pins import BPFFS
from agent.dataplane.program import remove_instance
from agent.errors import NetworkError
from agent.failover.host.addresses import PROTO as FAILOVER_PROTO
from agent.lock import FailoverLock, InstanceLocks
from agent.network.guard import guarded_instances, remove_guard
from agent.network.vips import OUR_PROTO, Vips


def remove_everything() -> Iterator[str]:
    """Remove all instances, what the companion and the helpers have set up, and all VIPs that are
    marked as Steelyard's; yield what was removed.

    Raises SteelyardError, before it removes anything, if an agent or a failover process runs.
    """
    names = instances()
    with contextlib.ExitStack() as held:
        held.callback(FailoverLock().release)
        for name in names:
            held.callback(InstanceLocks(name).release)
        interfaces = [interface for _, interface in socket.if_nameindex()]
        for interface in interfaces:
            for proto in (OUR_PROTO, FAILOVER_PROTO, COMPANION_PROTO):
                with contextlib.suppress(NetworkError):  # the interface is gone
                    asyncio.run(Vips(interface, proto).sync(frozenset()))
        for name in names:
            remove_instance(name)
            remove_guard(name)
            yield f"instance {name}"
        for interface in interfaces:
            with contextlib.suppress(NetworkError):
                if companion.remove((interface,)):
                    yield f"the companion's program on {interface}"
                for helper in detach_helpers(interface):
                    yield f"{helper} on {interface}"


def instances(root: Path = BPFFS) -> list[str]:
    """Return the names of all instances that have left something here: pinned tables, a program on
    an interface, or a guard.
    """
    pinned = {folder.name for folder in (root / "steelyard").glob("*/")}
    attached = attach.attached_to(interface for _, interface in socket.if_nameindex())
    owners = {name for ident in attached if (name := instance.owner_of(ident, root))}
    return sorted(pinned | owners | guarded_instances())
