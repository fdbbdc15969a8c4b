"""Asks the other balancers for what a planned handover needs from them."""

from __future__ import annotations

from agent.errors import ConflictError
from agent.failover.model import Address
from agent.failover.syncstatus import FlushResult, TakeResult
from agent.flowsync.sync import FlowSync


class SyncPeers:
    """The peers of flow sync (``handover.Peers``). ``taker``: the only one that may be master."""

    def __init__(self, sync: FlowSync, taker: Address | None = None) -> None:
        self._sync = sync
        self._taker = taker

    async def flush(self, timeout_s: float) -> FlushResult:
        """Send everything that has changed, new flows too, and wait until the peers have it."""
        return await self._sync.flush(timeout_s)

    async def ask_take(self, instance: str | None) -> str:
        """Ask the peers to become master; return the answer. ConflictError if none does."""
        return _text(await self._sync.ask_take(instance, self._taker))

    async def ask_give(self, instance: str | None) -> str:
        """Ask the master to hand over to this node; return the answer. ConflictError if it does
        not.
        """
        return _text(await self._sync.ask_give(instance))


def _text(result: TakeResult) -> str:
    if not result.done:
        where = f"peer {result.peer}" if result.peer else "failover.sync"
        raise ConflictError(
            result.text, where=where, remedy="see `lbctl failover status` on both nodes"
        )
    return result.text
