"""Owns the nftables table of an instance, which guards connections while the program is missing.

Like the program, it stays when the agent ends, and is removed when the instance is detached.
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
_SETTLE_S = 0.2  # wait between another program's change of our table and our repair
_MESSAGES = 1 << 16


class Guard:
    """The table of one instance, kept as the configuration requires."""

    def __init__(self, instance: str, changed: Callable[[], None]) -> None:
        """``changed`` is called when another program has changed the table."""
        self._table = table_name(instance)
        self._changed = changed
        self._config: Config | None = None  # the configuration of ``_wanted``
        self._wanted: list[Json] = []
        self._made: Any = None  # our table as nft lists it; None: it is yet to be made
        self._is_stale = False  # the table may have been changed since
        self._problem = ""
        self._events: socket.socket | None = None

    async def sync(self, config: Config) -> None:
        """Make the table what this configuration requires. A problem is only logged, once, because
        a balancer works without its guard.
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
        """Subscribe to changes of nftables, our own included."""
        if self._events is not None:
            return
        try:
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError:  # a kernel without nftables; running nft will report that
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
        except OSError:  # events were lost (ENOBUFS), and one may have been about our table
            touched = True
        if touched and not self._is_stale:
            self._is_stale = True
            asyncio.get_running_loop().call_later(_SETTLE_S, self._changed)


def _serve_the_same(old: Config, new: Config) -> bool:
    """Return whether both configurations give the same table, which depends on the VIPs with their
    ports and on the servers of fullnat.
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
    """Make the table of this configuration, if nftables is installed."""
    with contextlib.suppress(NetworkError):
        _run(ruleset(table_name(config.name), config))


def remove_guard(instance: str) -> None:
    """Remove the table of an instance, if there is any and nftables is installed."""
    with contextlib.suppress(NetworkError):
        _run(removal(table_name(instance)))


def guarded_instances() -> set[str]:
    """Return the names of the instances that have a table here; empty without nftables."""
    try:
        listed = json.loads(_nft("list", "tables", FAMILY))["nftables"]
    except (NetworkError, ValueError, KeyError):
        return set()
    prefix = table_name("")
    tables = (entry["table"]["name"] for entry in listed if "table" in entry)
    return {name.removeprefix(prefix) for name in tables if name.startswith(prefix)}


def _run(commands: list[Json]) -> None:
    """Run all of the commands, or none of them."""
    _nft("-f", "-", given=json.dumps({"nftables": commands}))


def _listed(table: str) -> Any:
    """Return the table without its counters, which change by themselves; None if it is missing."""
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
