"""Decides which role a caller of the API has, and whether it suffices for a request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.api import peer
from agent.api.peer import Access, Peer
from agent.api.routes import Route
from agent.errors import ForbiddenError, ListenError
from agent.model import Role, SocketRoles

# A plan for 4 MiB of services stalls the agent for seconds, after which other balancers could take
# it for dead. This is some 5,000 backends, and half a second.
MAX_VIEWER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. ``groups``: those of its groups that have a role.

    ``name``: the user, and the login user if that is another one; empty where it is not needed.
    """

    peer: Peer
    role: Role
    groups: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which groups have which role, by their ids. Users in ``access`` are admins.

    ``configured``: the groups that the configuration names.
    """

    access: Access
    gids: Mapping[Role, Mapping[int, str]] = field(default_factory=dict)
    configured: SocketRoles = field(default_factory=SocketRoles)

    def of(self, who: Peer) -> Role | None:
        """Return the highest role of a process; None: it may not use the API."""
        if self.access.allows(who):
            return Role.ADMIN
        had = [role for role, groups in self.gids.items() if not who.groups.isdisjoint(groups)]
        return max(had, key=list(Role).index, default=None)

    def groups_of(self, who: Peer) -> tuple[str, ...]:
        """Return the names of a process's groups that have a role."""
        names = {gid: name for groups in self.gids.values() for gid, name in groups.items()}
        return tuple(sorted(name for gid, name in names.items() if gid in who.groups))

    @property
    def all_gids(self) -> frozenset[int]:
        """The groups that have any role."""
        return frozenset(gid for groups in self.gids.values() for gid in groups)


def roles(group: str | None, configured: SocketRoles) -> Roles:
    """Return the roles that a configuration gives.

    A group of ``configured`` that does not exist is ignored: the check of the file has already
    refused it, unless it was removed since. Raises ListenError if ``group``, that of the socket,
    does not exist.
    """
    gids = {role: dict(_ids(names)) for role, names in configured.by_role.items()}
    gid = None if group is None else peer.group_id(group)
    return Roles(peer.access(gid), gids, configured)


def _ids(names: Iterable[str]) -> Iterable[tuple[int, str]]:
    for name in names:
        with contextlib.suppress(ListenError):
            yield peer.group_id(name), name


def needed(route: Route, body: Mapping[str, object]) -> Role:
    """Return the least role that a request needs. Raises RequestError if its body is invalid."""
    less = [each.role for each in route.lesser if each.applies(body)]
    return min((route.role, *less), key=list(Role).index)


def check_size(caller: Caller, route: Route, size: int) -> None:
    """Raise ForbiddenError if the body of a request is larger than the caller may send."""
    if caller.role is Role.VIEWER and size > MAX_VIEWER_BYTES:
        raise ForbiddenError(
            f"the body has {size} bytes, and a viewer may send {MAX_VIEWER_BYTES}",
            where=f"{route.method} {route.path}",
            remedy="ask about fewer services at a time, or have an operator or an admin ask",
        )


def check(roles_: Roles, caller: Caller, route: Route, body: Mapping[str, object]) -> None:
    """Raise ForbiddenError if a caller may not send a request."""
    role = needed(route, body)
    if caller.role.includes(role):
        return
    raise ForbiddenError(
        f"{caller.name} (uid {caller.peer.uid}) is {_a(caller.role)}, and this needs {_a(role)}",
        where=f"{route.method} {route.path}",
        remedy=_remedy(roles_.configured, role),
    )


def _remedy(configured: SocketRoles, role: Role) -> str:
    """Return who may send a request that needs a role."""
    having = [
        f"{' or '.join(names)} ({each.value})"
        for each, names in configured.by_role.items()
        if names and each.includes(role)
    ]
    if not having:
        return "only root may do this: use sudo"
    return f"ask a member of the group {', or of '.join(having)}, or use sudo"


def _a(role: Role) -> str:
    return f"{'a' if role is Role.VIEWER else 'an'} {role.value}"
