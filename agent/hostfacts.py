"""Examines this host for a configuration: its interfaces, addresses and memory.

It imports little, because commands that have to start fast use it.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import re
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from pathlib import Path

from agent.config.advice import Advice, HostFacts, advice
from agent.config.document import Document, read_yaml
from agent.config.memory import MemoryLimit, parts, refuse_too_much
from agent.errors import ConfigError
from agent.failover.host.addresses import PROTO as FAILOVER_PROTO
from agent.failover.host.kernel import Kernel
from agent.model import Address, Config, Role

AGENT_PROTO = 0x53  # IFA_PROTO of the VIPs that the agent adds (agent/network/vips.py)
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def look(wanted: Iterable[Address] = ()) -> HostFacts:
    """Return what this host has, and to which of the ``wanted`` addresses it has no route.

    The host's addresses are missing if netlink is not available.
    """
    entries = []
    with contextlib.suppress(OSError):
        kernel = Kernel()
        try:
            entries = kernel.addresses()
        finally:
            kernel.close()
    foreign = [entry for entry in entries if entry.proto not in (AGENT_PROTO, FAILOVER_PROTO)]
    return HostFacts(
        frozenset(name for _, name in socket.if_nameindex()),
        frozenset(entry.address for entry in foreign),
        frozenset(
            ip_network(f"{entry.address}/{entry.prefix_length}", strict=False) for entry in foreign
        ),
        frozenset(address for address in wanted if not _has_route(address)),
    )


def _has_route(address: Address) -> bool:
    """Return whether the kernel has a route to an address; nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), 9))
    except OSError as error:
        return error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
    return True


def cpus() -> int:
    """Return how many CPUs the kernel may ever bring up, or if unknown, how many are up."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/sys/devices/system/cpu/possible").read_text()
        return int(re.split("[-,]", text.strip())[-1]) + 1
    return os.cpu_count() or 1


def memory() -> MemoryLimit | None:
    """Return the most memory that this process can ever have; None: unknown."""
    rooms = [*_of_host(), *_of_cgroup()]
    return min(rooms, key=lambda room: room.size, default=None)


def check_memory(config: Config) -> None:
    """Raise ConfigError for tables that this host, or our cgroup, could never hold."""
    room = memory()
    if room is not None:
        refuse_too_much(parts(config.tables, config.nat, cpus()), room)


def warnings(config: Config) -> tuple[Advice, ...]:
    """Return warnings about a configuration; raise ConfigError for what cannot run on this host.

    If its interfaces show that it is for another host, it may need more memory than this one has.
    """
    here = look({backend.address for s in config.services for backend in s.backends})
    found = advice(config, here)
    if here.interfaces.issuperset(config.interfaces):
        check_memory(config)
    groups = [(f"socket_roles.{role.value}", name) for role, name in _groups(config)]
    if config.socket_group is not None:
        groups.append(("socket_group", config.socket_group))
    for key, name in groups:
        if not _exists(name):
            found += (
                Advice(
                    f"{key} {name}",
                    "this host has no such group",
                    f"where the agent is to run: groupadd {name}",
                ),
            )
    return found


def check_groups(config: Config, text: str, where: str) -> None:
    """Raise ConfigError if this host lacks a group of ``socket_roles``.

    ``text`` is the file that the configuration was made of, and ``where`` its name. If the file
    cannot be read, errors name no line.
    """
    lacking = [(role, name) for role, name in _groups(config) if not _exists(name)]
    if not lacking:
        return
    document = Document(where)
    with contextlib.suppress(ConfigError):
        document = read_yaml(text, where)
    problems = []
    for role, name in lacking:
        names = config.socket_roles.by_role[role]
        place, _ = document.place(("socket_roles", role.value, names.index(name)))
        problems.append(
            ConfigError(
                f"socket_roles.{role.value}: this host has no group {name!r}",
                where=place,
                remedy=f"create it (groupadd --system {name}), or name another group",
            )
        )
    first = problems[0]
    raise ConfigError(
        first.message, where=first.where, remedy=first.remedy, problems=tuple(problems)
    )


def _groups(config: Config) -> Iterator[tuple[Role, str]]:
    for role, names in config.socket_roles.by_role.items():
        yield from ((role, name) for name in names)


def _exists(group: str) -> bool:
    try:
        grp.getgrnam(group)
    except KeyError:
        return False
    return True


def _of_host() -> Iterator[MemoryLimit]:
    with contextlib.suppress(OSError):
        match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if match:
            yield MemoryLimit(1024 * int(match[1]), "all memory of this host")


def _of_cgroup() -> Iterator[MemoryLimit]:
    # A limit applies to everything below it, and the kernel charges maps to their creator.
    with contextlib.suppress(OSError):
        text = _OWN_CGROUP.read_text()
        match = re.search(r"^0::/(.*)$", text, re.MULTILINE)
        folder = _CGROUPS / match[1] if match else _CGROUPS
        for each in (folder, *folder.parents):
            if each == _CGROUPS or _CGROUPS not in each.parents:
                return
            with contextlib.suppress(OSError, ValueError):
                limit = int((each / "memory.max").read_text())
                yield MemoryLimit(limit, f"the limit of the cgroup {each}")
