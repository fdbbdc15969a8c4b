"""Decides which role a caller of the API has, and whether it suffices for a request.

A caller is a process of this host, by its groups, or a client certificate for which `lb-agent api`
sends the request. That process names the certificate and the client's address in two headers.
"""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.api import peer
from agent.api.peer import Access, Peer
from agent.api.routes import Route
from agent.errors import ForbiddenError, ListenError
from agent.model import RemoteApi, Role, RoleNames

# A plan for 4 MiB of services stalls the agent for seconds, after which other balancers could take
# it for dead. This is some 5,000 backends, and half a second.
MAX_VIEWER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. ``groups``: those of its groups that have a role.

    ``name``: the user, and the login user if that is another one; empty where it is not needed.
    ``address``: of the client for whose certificate `lb-agent api` sends it, at the other end of
    the socket; empty: the process there is the sender itself.
    """

    peer: Peer
    role: Role
    groups: tuple[str, ...] = ()
    name: str = ""
    address: str = ""

    @property
    def source(self) -> str:
        """Where the request came in."""
        return f"TLS, from {self.address}" if self.address else "socket"


@dataclass(frozen=True, slots=True)
class Roles:
    """Which groups have which role, by their ids. Users in ``access`` are admins.

    ``configured``: the groups that the configuration names. ``api``: likewise for certificates.
    ``spokesman``: the user and group of `lb-agent api`; None: it is not used.
    """

    access: Access
    gids: Mapping[Role, Mapping[int, str]] = field(default_factory=dict)
    configured: RoleNames = field(default_factory=RoleNames)
    api: RemoteApi = field(default_factory=RemoteApi)
    spokesman: tuple[int, int] | None = None

    def of(self, who: Peer) -> Role | None:
        """Return the highest role of a process; None: it may not use the API."""
        if self.access.allows(who):
            return Role.ADMIN
        had = [role for role, groups in self.gids.items() if not who.groups.isdisjoint(groups)]
        if self.spokesman is not None and who.uid == self.spokesman[0]:
            had.append(Role.VIEWER)  # it asks where it is to listen
        return _highest(had)

    def speaks(self, who: Peer) -> bool:
        """Return whether a process may say for which certificate it sends a request.

        Whoever runs as root may, too: it gives up rights by that.
        """
        is_spokesman = self.spokesman is not None and who.uid == self.spokesman[0]
        return is_spokesman or who.uid in self.access.uids

    def of_certificate(self, name: str) -> Role | None:
        """Return the role of a client certificate; None: it may not use the API."""
        had = [role for role, names in self.api.roles.by_role.items() if name in names]
        return _highest(had)

    def groups_of(self, who: Peer) -> tuple[str, ...]:
        """Return the names of a process's groups that have a role."""
        names = {gid: name for groups in self.gids.values() for gid, name in groups.items()}
        return tuple(sorted(name for gid, name in names.items() if gid in who.groups))

    @property
    def all_gids(self) -> frozenset[int]:
        """The groups that the socket's file has to let in."""
        found = {gid for groups in self.gids.values() for gid in groups}
        return frozenset(found if self.spokesman is None else {*found, self.spokesman[1]})


def roles(group: str | None, configured: RoleNames, api: RemoteApi | None = None) -> Roles:
    """Return the roles that a configuration gives.

    A group or user that does not exist is ignored: the check of the file has already refused it,
    unless it was removed since. Raises ListenError if ``group``, that of the socket, does not
    exist.
    """
    api = api or RemoteApi()
    gids = {role: dict(_ids(names)) for role, names in configured.by_role.items()}
    gid = None if group is None else peer.group_id(group)
    spokesman = None
    if api.listen is not None:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(api.user)
            spokesman = entry.pw_uid, entry.pw_gid
    return Roles(peer.access(gid), gids, configured, api, spokesman)


def _highest(had: Iterable[Role]) -> Role | None:
    return max(had, key=list(Role).index, default=None)


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
    who, remedy = f"{caller.name} (uid {caller.peer.uid})", _remedy(roles_.configured, role)
    if caller.address:
        who, remedy = caller.name, f"have it named in api.roles.{role.value} of the configuration"
    raise ForbiddenError(
        f"{who} is {_a(caller.role)}, and this needs {_a(role)}",
        where=f"{route.method} {route.path}",
        remedy=remedy,
    )


def _remedy(configured: RoleNames, role: Role) -> str:
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
