"""Owns the trees of source addresses in the shared tables, which are blocks and lists, and which
lists count for which service.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.abi import GuardModeId, GuardTree
from agent.dataplane.tables import SharedTables
from agent.errors import DataplaneError
from agent.model import Address, GuardMode
from agent.state.addresstree import lists_of, nodes_of

BLOCKS = (GuardTree.BLOCKS4, GuardTree.BLOCKS6)
LISTS = (GuardTree.LISTS4, GuardTree.LISTS6)
MODE_IDS = {mode: GuardModeId[mode.name] for mode in GuardMode}
# How long freed nodes rest, so that no packet is still in the middle of their tree.
_REST_S = 0.01


@dataclass(frozen=True, slots=True)
class Policy:
    """The lists that count for a service, a bit each."""

    allow: int = 0
    deny: int = 0
    mode: GuardMode = GuardMode.ENFORCE


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of nodes."""

    first: int
    nodes: int


class SourceTrees:
    """The trees of one set of tables. One caller at a time."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._resting: tuple[Extent, ...] = ()  # given up recently
        self._resting_since = 0.0

    def nodes(self) -> int:
        """Return how many nodes are in use."""
        return sum(extent.nodes for extent in self._in_use())

    def place(
        self, fresh: Mapping[GuardTree, array[int]], ready: Callable[[], object] = lambda: None
    ) -> None:
        """Have the packet path use these trees, each as a whole from one packet to the next.

        An empty tree contains no address. ``ready`` is called before the first one is used.
        DataplaneError: there is no room for them, and the last ones stay.
        """
        roots = self._tables.guard_roots
        old = {tree: Extent(int(roots["root"][tree]), int(roots["nodes"][tree])) for tree in fresh}
        written: dict[GuardTree, Extent] = {}
        for tree, entries in fresh.items():
            # After a restart most are as they were, and a large one does not fit twice.
            same = self._holds(old[tree], entries)
            written[tree] = old[tree] if same else self._write(entries, written.values())
        ready()
        for tree, new in written.items():
            # After a crash in between, the next agent sees too many nodes in use, not too few.
            roots["nodes"][tree] = max(new.nodes, old[tree].nodes)
            roots["root"][tree] = new.first
            roots["nodes"][tree] = new.nodes
        now = time.monotonic()
        left = (old[tree] for tree, new in written.items() if new != old[tree])
        before = self._resting if now - self._resting_since < _REST_S else ()
        self._resting = (*before, *(extent for extent in left if extent.first))
        self._resting_since = now

    def lists(self, trees: tuple[GuardTree, GuardTree], address: Address) -> int:
        """Return the lists that contain an address, as the packet path finds them.

        ``trees``: the tree of IPv4, and that of IPv6.
        """
        root = int(self._tables.guard_roots["root"][trees[address.version == 6]])
        entries = memoryview(self._tables.guard_nodes.reshape(-1))
        return lists_of(entries, root, address) if root else 0

    def lists_of_all(self, tree: GuardTree, words: npt.NDArray[np.void]) -> npt.NDArray[np.uint32]:
        """Return the same for many addresses of one family, four words each as the tables have
        them.
        """
        root = int(self._tables.guard_roots["root"][tree])
        if not root:
            return np.zeros(len(words), dtype=np.uint32)
        entries = self._tables.guard_nodes.reshape(-1)
        held = words.astype(np.uint32)
        found = entries[root * abi.GUARD_NODE_ENTRIES + (held[:, 0] >> 16).astype(np.int64)]
        for depth in range(16, 128, 4):
            inner = np.flatnonzero(found & abi.GUARD_BRANCH)
            if not len(inner):
                break
            nibble = held[inner, depth // 32] >> np.uint32(28 - depth % 32) & np.uint32(15)
            at = (found[inner] & ~np.uint32(abi.GUARD_BRANCH)).astype(np.int64)
            at = at * abi.GUARD_NODE_ENTRIES + nibble
            # Another thread may have replaced the tree.
            found[inner] = entries[np.minimum(at, len(entries) - 1)]
        return found

    def set_policies(self, wanted: Mapping[int, Policy]) -> None:
        """Set the policies, by service id; services that are not named have none."""
        rows = np.zeros(len(self._tables.guard_policies), dtype=abi.GUARD_POLICY)
        for ident, policy in wanted.items():
            rows[ident] = (policy.allow, policy.deny, MODE_IDS[policy.mode], 0)
        changed = np.flatnonzero(rows != self._tables.guard_policies)
        # Lists refuse no source meanwhile: no policy for a moment is better than a wrong one.
        self._tables.guard_policies["mode"][changed] = GuardModeId.OFF
        for name in ("allow", "deny", "mode"):
            self._tables.guard_policies[name][changed] = rows[name][changed]

    def suspend_policies(self) -> None:
        """Let lists refuse no source until ``set_policies``: their bits are about to mean other
        lists.
        """
        self._tables.guard_policies["mode"] = GuardModeId.OFF

    def counts(self) -> tuple[list[int], list[int]]:
        """Return the packets that each list has dropped, and would have, since the tables were
        made.

        After the lists come the packets of blocked sources, and those of sources on no list.
        """
        rows = self._tables.guard_count
        return rows["dropped"].sum(axis=0).tolist(), rows["would_drop"].sum(axis=0).tolist()

    def _in_use(self) -> list[Extent]:
        roots = self._tables.guard_roots
        pairs = zip(roots["root"].tolist(), roots["nodes"].tolist(), strict=True)
        return [Extent(first, nodes) for first, nodes in pairs if first]

    def _holds(self, extent: Extent, entries: array[int]) -> bool:
        """Return whether a tree in use is the same."""
        if not extent.first or nodes_of(entries) != extent.nodes:
            return False
        rows = np.frombuffer(entries, dtype=np.uint32).copy()
        rows[rows >= abi.GUARD_BRANCH] += np.uint32(extent.first)
        held = self._tables.guard_nodes[extent.first : extent.first + extent.nodes]
        return bool(np.array_equal(held.reshape(-1), rows))

    def _write(self, entries: array[int], others: Iterable[Extent]) -> Extent:
        """Write a tree where neither a tree in use nor one of ``others`` is; return where it is."""
        nodes = nodes_of(entries)
        if not nodes:
            return Extent(0, 0)
        first = self._room(nodes, [*self._in_use(), *others])
        rows = np.frombuffer(entries, dtype=np.uint32).copy()
        rows[rows >= abi.GUARD_BRANCH] += np.uint32(first)
        self._tables.guard_nodes[first : first + nodes] = rows.reshape(nodes, -1)
        return Extent(first, nodes)

    def _room(self, nodes: int, taken: list[Extent]) -> int:
        size = len(self._tables.guard_nodes)
        first = gap([*taken, *self._resting], nodes, size)
        if first:
            return first
        time.sleep(max(0.0, self._resting_since + _REST_S - time.monotonic()))
        self._resting = ()
        first = gap(taken, nodes, size)
        if not first:
            used = sum(extent.nodes for extent in taken)
            raise DataplaneError(
                f"{nodes} nodes do not fit beside the {used} that are in use",
                where="tables.guard_nodes",
                remedy=f"set tables.guard_nodes to {2 * (used + nodes)} or more, and restart the "
                "agent; until then the last blocks and lists stay",
            )
        return first


def gap(taken: Iterable[Extent], nodes: int, size: int) -> int:
    """Return the first of ``nodes`` unused nodes in a row; 0: there is no such run.

    Node 0 is never used.
    """
    first = 1
    for extent in sorted(taken, key=lambda extent: extent.first):
        if extent.first - first >= nodes:
            return first
        first = max(first, extent.first + extent.nodes)
    return first if size - first >= nodes else 0
