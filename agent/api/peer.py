"""Decides who may use the API: root, the agent's own user, and the members of one group."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.errors import ListenError

SO_PEERGROUPS = 59  # Linux 4.13; the socket module has no name for it
PROC = Path("/proc")
# What `lb-agent api` says of the client for whom it sends a request: the common name of its
# certificate, percent-encoded (RFC 3986), and its address.
CERTIFICATE, ADDRESS = "Steelyard-Certificate", "Steelyard-Address"
_NO_LOGIN = 2**32 - 1
_MAX_GROUPS_BYTES = 1024  # the most that getsockopt of the socket module can return


class _Socket(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket, at the moment it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Access:
    """The users and the group that may use the API."""

    uids: frozenset[int]
    gid: int | None = None

    def allows(self, peer: Peer) -> bool:
        return peer.uid in self.uids or (self.gid is not None and self.gid in peer.groups)


def access(gid: int | None) -> Access:
    """Return an access for root, the agent's user, and the group if there is one."""
    return Access(frozenset({0, os.geteuid()}), gid)


def group_id(name: str) -> int:
    """Return the id of a group that the configuration names. Raises ListenError."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ListenError(
            f"the group {name!r} does not exist",
            where="socket_group",
            remedy=f"create it (groupadd --system {name}) or name another group",
        ) from error


def peer_of(sock: _Socket) -> Peer:
    """Return the process that connected. The kernel reports it, so no client can forge it."""
    pid, uid, gid = struct.unpack(
        "iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    )
    return Peer(pid, uid, frozenset({gid}) | _supplementary_groups(sock))


def name_of(peer: Peer | None) -> str:
    """Return the name of a peer's user.

    A user who logged in and became another one, with sudo for example, is named too: the kernel
    keeps the login user of each process (audit's loginuid).
    """
    if peer is None:
        return "unknown"
    login = peer.uid
    with contextlib.suppress(OSError, ValueError):
        login = int((PROC / str(peer.pid) / "loginuid").read_text())
    if login in (peer.uid, _NO_LOGIN):
        return _user(peer.uid)
    return f"{_user(login)} as {_user(peer.uid)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _supplementary_groups(sock: _Socket) -> frozenset[int]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        # There are more groups than fit, so only the uid and the primary group count.
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
