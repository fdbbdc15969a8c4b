"""Owns the sources that the operator does not want: blocks with an end, and lists of addresses.

It keeps them in the shared tables as the configuration, the files of lists and ``lbctl guard``
say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from agent.config import lists
from agent.dataplane.abi import GUARD_COUNT_BLOCKED, GUARD_COUNT_NOT_ALLOWED, GuardTree
from agent.dataplane.program import Dataplane
from agent.dataplane.sourcetrees import BLOCKS, LISTS, Policy, SourceTrees
from agent.errors import SteelyardError
from agent.files import is_young, write_atomically
from agent.logs import get_logger
from agent.model import Address, AddressList, Config, GuardMode, Network, Service
from agent.state import addresstree, blocks
from agent.state.addresstree import Prefixes
from agent.state.blocks import Block, Blocks
from agent.state.guardview import Guarded, ListView, Verdicts
from agent.state.identities import Identities

log = get_logger()

TICK_S = 1.0
LOOK_AT_FILES = 5  # ticks
YOUNG_S = 2.0


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A list with the prefixes that were read."""

    definition: AddressList
    stamps: tuple[object, ...]  # of its files, to notice changes
    prefixes: Prefixes
    read_at: float
    problem: str = ""  # why its files cannot be read; the prefixes read before stay


@dataclass(frozen=True, slots=True)
class _Built:
    """Lists in the order of their bits, and the trees that hold them."""

    lists: Mapping[str, _Loaded]
    trees: Mapping[GuardTree, array[int]]

    @property
    def definitions(self) -> tuple[AddressList, ...]:
        return tuple(each.definition for each in self.lists.values())


def _unrecorded(_by: str, _what: str, _effect: str) -> AbstractAsyncContextManager[object]:
    return contextlib.nullcontext()


class Guarding:
    """The blocks and lists of one instance."""

    def __init__(self, config: Config, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._path = config.state_dir / f"{config.name}.blocks.json"
        self._changing = asyncio.Lock()
        self._blocks: Blocks = {}
        self._is_used = False
        self._placed: Blocks | None = None  # the blocks in the tables; None: unknown
        self._due = math.inf  # when the first block ends
        self._lists: Mapping[str, _Loaded] = {}  # those in the tables, in the order of their bits
        self._names: tuple[str, ...] | None = None  # their names; None: unknown
        self._synced: Config | None = None  # the configuration that the tables were last made for
        self._next: _Built | None = None  # built before it is needed, because it may take seconds
        self._policies: Mapping[int, Policy] = {}
        self._counted: Counter[tuple[str, bool]] = Counter()  # by list, and whether dropped
        self._counted_from: tuple[list[int], list[int]] = ([], [])  # the tables' counts then
        self._made: SourceTrees | None = None
        self._problem = ""  # why the tables are not as they should be
        self.unsaved = ""  # why blocks are in memory only
        # Records a change by another balancer, given its author, what it is, and its effect.
        self.recording: Callable[[str, str, str], AbstractAsyncContextManager[object]] = _unrecorded

    @property
    def blocks(self) -> Blocks:
        """All known blocks, including those that were undone."""
        return self._blocks

    @property
    def is_used(self) -> bool:
        """Whether the program has to support blocks, because a source was once blocked here.

        So the next block on this host does not have to wait for the compiler.
        """
        return self._is_used or bool(self._blocks)

    @property
    def _trees(self) -> SourceTrees:
        if self._made is None:  # the tables exist once the program is loaded
            self._made = SourceTrees(self._dataplane.tables)
        return self._made

    @property
    def problem(self) -> str:
        """Why blocks and lists are not as they should be; empty: they are."""
        broken = (each.problem for each in self._lists.values() if each.problem)
        return self._problem or next(broken, "")

    def load(self) -> None:
        """Load the last agent's blocks that have not ended; call this before the program loads."""
        self._is_used = self._path.exists()
        try:
            rows = json.loads(self._path.read_text())
            self._blocks = blocks.left(blocks.from_json(rows), time.time())
        except FileNotFoundError:
            self._blocks = {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error(
                "blocks are forgotten: they cannot be read", path=str(self._path), why=str(error)
            )

    async def run(self) -> None:
        """End blocks when their time is over, and follow the files of lists, for ever."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            try:
                if time.time() >= self._due:
                    await self._take(blocks.left(self._blocks, time.time()))
                elif self.unsaved:
                    await asyncio.to_thread(self._save)
                if ticks % LOOK_AT_FILES == 0:
                    await self._look_at_files()
            except (SteelyardError, OSError) as error:
                self._failed(str(error))
            except Exception:  # this task's root
                log.exception("the guard broke")

    # -- blocks

    async def block(self, new: Iterable[Block], *, confirmed: bool = False) -> None:
        """Drop what these sources send, from the next packet on.

        Raises SteelyardError, and then nothing was changed.
        """
        await self._take(blocks.blocked(self._blocks, new, confirmed=confirmed))

    async def unblock(self, prefixes: Iterable[Network]) -> None:
        """Serve these sources again; raises SteelyardError, and then nothing was changed."""
        await self._take(blocks.unblocked(self._blocks, prefixes, time.time()))

    async def take_over(self, received: Blocks) -> bool:
        """Take over the blocks of another balancer; return whether more is blocked now."""
        before = self._blocks
        wanted = blocks.left(blocks.merged(before, received), time.time())
        if wanted == before:
            return False
        news = blocks.active(wanted).keys() - blocks.active(before).keys()
        gone = blocks.active(before).keys() - blocks.active(wanted).keys()
        what = f"{len(news)} blocked, {len(gone)} served again"
        async with self.recording("another balancer", "blocks", what):
            await self._take(wanted)
        log.info("blocks of another balancer", new=len(news), all=len(blocks.active(wanted)))
        return bool(news)

    async def _take(self, wanted: Blocks) -> None:
        before, self._blocks = self._blocks, wanted
        async with self._changing:
            try:
                await asyncio.to_thread(self._place_blocks)
            except SteelyardError:
                if self._blocks is wanted:
                    self._blocks = before
                raise
            await asyncio.to_thread(self._save)

    def _place_blocks(self) -> None:
        """Put the blocks into the tables.

        If several changes wait for this, the first one applies them all.
        """
        self._due = min((each.until for each in self._blocks.values()), default=math.inf)
        wanted = blocks.active(self._blocks)
        if self._placed is not None and self._placed.keys() == wanted.keys():
            self._placed = wanted
            return
        fresh = {}
        for tree, version in zip(BLOCKS, (4, 6), strict=True):
            prefixes = [addresstree.prefix_of(p) for p in wanted if p.version == version]
            fresh[tree] = addresstree.build([(1, prefixes)], version)
        self._trees.place(fresh)
        self._placed = wanted

    def _save(self) -> None:
        try:
            write_atomically(self._path, json.dumps(blocks.to_json(self._blocks)) + "\n")
        except OSError as error:
            if not self.unsaved:
                log.error("blocks are in memory only: a restart forgets them", why=str(error))
            self.unsaved = f"{self._path}: {error.strerror}"
        else:
            self.unsaved = ""

    # -- lists

    def is_behind(self, config: Config) -> bool:
        """Return whether the tables were not made for this configuration yet."""
        return config is not self._synced

    async def sync(self, config: Config, ids: Identities) -> None:
        """Make the tables match this configuration and the files of its lists."""
        async with self._changing:
            try:
                await asyncio.to_thread(self._sync, config, ids)
                self._problem, self._synced = "", config
            except (SteelyardError, OSError) as error:
                self._failed(str(error))

    async def prepare(self, config: Config) -> None:
        """Read the lists of a configuration before it is taken over, and build their trees.

        With a million prefixes this takes seconds, during which nothing else waits. Raises
        ConfigError if a list that is new or has a new definition cannot be read.
        """
        wanted, ready = _used(config), self._next
        if ready is not None and [*ready.definitions] == wanted:
            return
        if wanted != [each.definition for each in self._lists.values()]:
            self._next = await asyncio.to_thread(self._build, wanted, strict=True)

    async def _look_at_files(self) -> None:
        """Read the lists again whose files have changed."""
        if not await asyncio.to_thread(self._has_news):
            return
        before = self._lists
        built = await asyncio.to_thread(self._build, [e.definition for e in before.values()])
        async with self._changing:
            if self._lists is not before:
                return
            try:
                await asyncio.to_thread(self._place_lists, built)
            except SteelyardError as error:
                log.error("lists stay as they were", why=str(error))
                self._lists = {
                    name: replace(each, stamps=built.lists[name].stamps, problem=str(error))
                    for name, each in before.items()
                }

    def _sync(self, config: Config, ids: Identities) -> None:
        self._place_blocks()
        wanted = _used(config)
        if self._names is None or wanted != [each.definition for each in self._lists.values()]:
            if self._next is None or [*self._next.definitions] != wanted:
                self._next = self._build(wanted)
            self._place_lists(self._next)
            self._next = None
        policies = {
            ids.service_id(service): policy_of(service, self._names or ())
            for service in config.services
        }
        if policies != self._policies:
            self._trees.set_policies(policies)
            self._policies = policies

    def _build(self, wanted: Iterable[AddressList], *, strict: bool = False) -> _Built:
        found = {each.name: self._read(each, strict=strict) for each in wanted}
        trees = {
            tree: addresstree.build(
                [(1 << bit, each.prefixes.of(version)) for bit, each in enumerate(found.values())],
                version,
            )
            for tree, version in zip(LISTS, (4, 6), strict=True)
        }
        return _Built(found, trees)

    def _place_lists(self, built: _Built) -> None:
        names = tuple(built.lists)
        self._trees.place(built.trees, lambda: self._suspend(names))
        self._lists, self._names = built.lists, names

    def _suspend(self, names: tuple[str, ...]) -> None:
        """Suspend refusals if list bits are about to change their meaning, until they have."""
        if names != self._names:
            self._trees.suspend_policies()
            self._policies = {}
            self._counted = self._counts()
            self._counted_from = self._trees.counts()

    def _read(self, each: AddressList, *, strict: bool) -> _Loaded:
        """Read a list; return what was read before if nothing has changed.

        ``strict``: raise ConfigError if a list that is new or has a new definition cannot be read.
        """
        before = self._lists.get(each.name)
        stamps = tuple(_stamp(path) for path in each.files)
        if before is not None and (before.definition, before.stamps) == (each, stamps):
            return before
        try:
            found = lists.read(each)
        except SteelyardError as error:
            if strict and (before is None or before.definition != each):
                raise
            log.error("a list cannot be read; what it held stays", list=each.name, why=str(error))
            kept = before.prefixes if before is not None else Prefixes()
            return _Loaded(each, stamps, kept, time.time(), str(error))
        if before is not None and before.definition == each and before.prefixes and not found:
            why = "its files hold no prefix any more; what they held stays"
            log.error("a list is empty", list=each.name, why=why)
            return _Loaded(each, stamps, before.prefixes, time.time(), why)
        log.info("list", name=each.name, prefixes=len(found))
        return _Loaded(each, stamps, found, time.time())

    def _has_news(self) -> bool:
        """Return whether a file has changed and is no longer being written."""
        for each in tuple(self._lists.values()):
            changed = tuple(map(_stamp, each.definition.files)) != each.stamps
            if changed and not any(is_young(path, YOUNG_S) for path in each.definition.files):
                return True
        return False

    def _counts(self) -> Counter[tuple[str, bool]]:
        """Count the packets that each list has dropped, or would have, since the agent started."""
        counts = Counter(self._counted)
        for now, before, dropped in zip(
            self._trees.counts(), self._counted_from, (True, False), strict=True
        ):
            for name, packets, then in zip(self._names or (), now, before, strict=False):
                counts[name, dropped] += packets - then
        return counts

    def _failed(self, problem: str) -> None:
        if problem != self._problem:
            log.error("blocks and lists are not as they should be", problem=problem)
        self._problem = problem

    # -- queries

    def view(self, config: Config) -> Guarded:
        """Return the current state of all blocks and lists, and what they have dropped."""
        dropped, would_drop = self._trees.counts()
        counts = self._counts()
        return Guarded(
            blocks=tuple((self._placed or {}).values()),
            lists=tuple(
                ListView(
                    name=each.name,
                    prefixes=len(held.prefixes) if held else 0,
                    files=each.files,
                    read_at=held.read_at if held else None,
                    problem=held.problem if held else "",
                    dropped=counts[each.name, True],
                    would_drop=counts[each.name, False],
                    used_by=tuple(
                        s.name
                        for s in config.services
                        if each.name in (*s.allow, *s.deny, *s.trusted)
                    ),
                )
                for each in config.lists
                for held in (self._lists.get(each.name),)
            ),
            blocked_packets=dropped[GUARD_COUNT_BLOCKED],
            would_block_packets=would_drop[GUARD_COUNT_BLOCKED],
            not_allowed_packets=dropped[GUARD_COUNT_NOT_ALLOWED],
            would_not_allow_packets=would_drop[GUARD_COUNT_NOT_ALLOWED],
            in_force=self._is_in_force,
            nodes=self._trees.nodes(),
            nodes_total=config.tables.guard_nodes,
            problem=self._problem,
            unsaved=self.unsaved,
        )

    @property
    def _is_in_force(self) -> bool:
        return self._dataplane.features.guard or not self._placed

    def lists_of(self, address: Address) -> tuple[str, ...]:
        """Return the lists that contain an address, according to the tables."""
        held = self._trees.lists(LISTS, address)
        return tuple(name for bit, name in enumerate(self._names or ()) if held >> bit & 1)

    def test(self, config: Config, address: Address) -> Verdicts:
        """Return what the tables say about an address."""
        names = self.lists_of(address)
        is_blocked = self._is_in_force and bool(self._trees.lists(BLOCKS, address))
        prefix = ip_network((address, address.max_prefixlen))
        return Verdicts(
            address=address,
            block=blocks.holding(self._blocks, prefix) if is_blocked else None,
            lists=names,
            services={s.name: verdict(s, names, is_blocked) for s in config.services},
        )


def verdict(service: Service, held: Iterable[str], is_blocked: bool) -> str:
    """Return what a service does with the first packet of a flow from a source.

    ``held``: the lists that contain the source; ``is_blocked``: whether a block does.
    """
    held, why = frozenset(held), ""
    if is_blocked:
        why = "blocked"
    elif denied := [name for name in service.deny if name in held]:
        why = f"denied by {denied[0]}"
    elif service.allow and not held.intersection(service.allow):
        why = f"not allowed: it is not on {' or '.join(service.allow)}"
    if not why or service.guard is GuardMode.OFF:
        return "served"
    return why if service.guard is GuardMode.ENFORCE else f"served; it would be {why}"


def _used(config: Config) -> list[AddressList]:
    """Return the lists that some service uses, in the order of their bits."""
    used = {
        name
        for service in config.services
        for name in (*service.allow, *service.deny, *service.trusted)
    }
    return [each for each in config.lists if each.name in used]


def policy_of(service: Service, names: tuple[str, ...]) -> Policy:
    """Return which lists a service uses; ``names`` are the lists in the order of their bits."""

    def bits(chosen: tuple[str, ...]) -> int:
        return sum(1 << names.index(name) for name in chosen)

    return Policy(bits(service.allow), bits(service.deny), service.guard)


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns
