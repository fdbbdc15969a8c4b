"""Examines this host for a configuration: its interfaces, addresses and memory.

It imports little, because commands that have to start fast use it.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from agent.config.advice import Advice, HostFacts, advice
from agent.config.document import Document, read_yaml
from agent.config.memory import MemoryLimit, parts, refuse_too_much
from agent.errors import ConfigError
from agent.failover.host.addresses import PROTO as FAILOVER_PROTO
from agent.failover.host.kernel import Kernel
from agent.files import check_trusted
from agent.model import Address, Config

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


def warnings(config: Config, path: Path) -> tuple[Advice, ...]:
    """Return warnings about a configuration; raise ConfigError for what cannot run on this host.

    ``path``: its file. If its interfaces show that it is for another host, it may need more memory
    than this one has.
    """
    here = look({backend.address for s in config.services for backend in s.backends})
    found = advice(config, here)
    if here.interfaces.issuperset(config.interfaces):
        check_memory(config)
    try:
        check_trusted(path, config.admin_groups)
    except ConfigError as error:
        found += (Advice(error.where, f"{error.message}: the agent refuses it", error.remedy),)
    for each in _lacking(config):
        found += (
            Advice(
                f"{each.key} {each.name}",
                f"this host has no such {each.kind}",
                f"where the agent is to run: {each.made_by}",
            ),
        )
    return found


def check_accounts(config: Config, text: str, where: str) -> None:
    """Raise ConfigError if this host lacks a group of ``socket_roles``, or a user that is named.

    ``text`` is the file that the configuration was made of, and ``where`` its name. If the file
    cannot be read, errors name no line.
    """
    # The agent itself refuses a socket_group that does not exist when it opens the socket.
    lacking = [each for each in _lacking(config) if each.key != "socket_group"]
    if not lacking:
        return
    document = Document(where)
    with contextlib.suppress(ConfigError):
        document = read_yaml(text, where)
    problems = []
    for each in lacking:
        place, _ = document.place(each.path)
        problems.append(
            ConfigError(
                f"{each.key}: this host has no {each.kind} {each.name!r}",
                where=place,
                remedy=f"create it ({each.made_by}), or name another {each.kind}",
            )
        )
    first = problems[0]
    raise ConfigError(
        first.message, where=first.where, remedy=first.remedy, problems=tuple(problems)
    )


@dataclass(frozen=True, slots=True)
class _Lacking:
    """A user or group that the configuration names, and this host does not have."""

    key: str
    path: tuple[str | int, ...]
    kind: str
    name: str

    @property
    def made_by(self) -> str:
        """The command that makes it."""
        if self.kind == "user":
            return f"useradd --system --no-create-home --shell /usr/sbin/nologin {self.name}"
        return f"groupadd --system {self.name}"


def _lacking(config: Config) -> Iterator[_Lacking]:
    for role, names in config.socket_roles.by_role.items():
        for number, name in enumerate(names):
            if not _is_known(grp.getgrnam, name):
                path = ("socket_roles", role.value, number)
                yield _Lacking(f"socket_roles.{role.value}", path, "group", name)
    group, user = config.socket_group, config.api.user
    if group is not None and not _is_known(grp.getgrnam, group):
        yield _Lacking("socket_group", ("socket_group",), "group", group)
    if config.api.listen is not None and not _is_known(pwd.getpwnam, user):
        yield _Lacking("api.user", ("api", "user"), "user", user)
    if config.script_user is not None and not _is_known(pwd.getpwnam, config.script_user):
        yield _Lacking("script_user", ("script_user",), "user", config.script_user)


def _is_known(look_up: Callable[[str], object], name: str) -> bool:
    """Return whether this host has the user or group; ``look_up`` raises KeyError if not."""
    try:
        look_up(name)
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
