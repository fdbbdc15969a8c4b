"""Owns the nftables table of an instance: the guard below the program.

It stays when the agent ends, as the program does, and goes when the instance is detached.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from agent.errors import NetworkError
from agent.logs import get_logger
from agent.model import Config, Forward
from agent.state.guard import FAMILY, Json, removal, ruleset, table_name

log = get_logger()

_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_TIMEOUT_S = 10.0
_SETTLE_S = 0.2  # between somebody's change of our table and ours
_MESSAGES = 1 << 16


class Guard:
    """The table of one instance, kept as its configuration wants it."""

    def __init__(self, instance: str, changed: Callable[[], None]) -> None:
        """``changed`` is called when somebody else has touched the table."""
        self._table = table_name(instance)
        self._changed = changed
        self._config: Config | None = None  # for which ``_wanted`` was made
        self._wanted: list[Json] = []
        self._made: Any = None  # as nft lists what we made; None: to be made
        self._is_stale = False  # somebody has touched it since
        self._problem = ""
        self._events: socket.socket | None = None

    async def sync(self, config: Config) -> None:
        """Have the table as this configuration wants it. What hinders is logged, once: a
        balancer works without its guard.
        """
        self._listen()
        is_same = self._config is not None and _serve_the_same(self._config, config)
        wanted = self._wanted if is_same else ruleset(self._table, config)
        if wanted == self._wanted and self._made is not None and not self._is_stale:
            return
        try:
            await asyncio.to_thread(self._sync, wanted)
        except NetworkError as error:
            self._made = None
            if str(error) != self._problem:
                log.warning(
                    "a moment without the program will reset connections", problem=str(error)
                )
            self._problem = str(error)
        else:
            self._problem, self._config = "", config

    def _sync(self, wanted: list[Json]) -> None:
        self._is_stale = False
        if wanted == self._wanted and self._made is not None and _listed(self._table) == self._made:
            return
        _run(wanted)
        if self._made is not None and wanted == self._wanted:
            log.warning("the guard is put back: somebody changed it", table=self._table)
        self._wanted, self._made = wanted, _listed(self._table)

    def _listen(self) -> None:
        """Hear of changes to the table, ours included."""
        if self._events is not None:
            return
        try:
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError:  # a kernel without it, which nft says as well
            return
        events.setblocking(False)
        events.bind((0, _GROUP_NFTABLES))
        self._events = events
        asyncio.get_running_loop().add_reader(events, self._hear, events)

    def _hear(self, events: socket.socket) -> None:
        name = self._table.encode() + b"\0"
        try:
            touched = name in events.recv(_MESSAGES)
        except BlockingIOError:
            return
        except OSError:  # more than the socket holds: it may have been ours
            touched = True
        if touched and not self._is_stale:
            self._is_stale = True
            asyncio.get_running_loop().call_later(_SETTLE_S, self._changed)


def _serve_the_same(old: Config, new: Config) -> bool:
    """Whether the table is the same for both: it has the VIPs with their ports, and the servers of
    fullnat.
    """
    if old.nat != new.nat or len(old.services) != len(new.services):
        return False
    pairs = zip(old.services, new.services, strict=True)
    return all(
        before is after
        or (
            (before.key, before.forward) == (after.key, after.forward)
            and (after.forward is not Forward.FULLNAT or before.backends == after.backends)
        )
        for before, after in pairs
    )


def put_guard(config: Config) -> None:
    """The table of this configuration, if nftables is installed."""
    with contextlib.suppress(NetworkError):
        _run(ruleset(table_name(config.name), config))


def remove_guard(instance: str) -> None:
    """Remove the table of an instance, if there is any and nftables is installed."""
    with contextlib.suppress(NetworkError):
        _run(removal(table_name(instance)))


def _run(commands: list[Json]) -> None:
    """All of the commands, or none."""
    _nft("-f", "-", given=json.dumps({"nftables": commands}))


def _listed(table: str) -> Any:
    """The table without what counts by itself; None: it is not there."""
    try:
        answer = json.loads(_nft("list", "table", FAMILY, table))
    except (NetworkError, ValueError):
        return None
    return _without_counts(answer)


def _without_counts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_counts(inner) for key, inner in value.items() if key != "counter"}
    if isinstance(value, list):
        return [_without_counts(inner) for inner in value]
    return value


def _nft(*arguments: str, given: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", "-j", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(
            f"nft cannot be run: {error}", where="nftables", remedy="apt-get install nftables"
        ) from error
    if done.returncode != 0:
        raise NetworkError(
            f"nft refuses: {' '.join(done.stderr.split())[:400]}",
            where="nftables",
            remedy="see `nft list ruleset`; the kernel needs CONFIG_NF_TABLES_INET and "
            "CONFIG_NFT_SOCKET",
        )
    return done.stdout
