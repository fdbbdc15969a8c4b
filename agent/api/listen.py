"""Owns how the API's Unix socket and the metrics port are opened and closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ListenError

SOCKET_MODE = 0o660
_FOLDER_MODE = 0o755
_MAX_PATH_BYTES = 107  # sun_path, less the closing zero
_ANSWER_TIMEOUT_S = 1.0
_LOCK_PATIENCE_S = 5.0
_BACKLOG = 64
# POSIX ACLs in the kernel's form, include/uapi/linux/posix_acl{,_xattr}.h
_ACL, _ACL_VERSION, _ACL_NO_ID = "system.posix_acl_access", 2, 2**32 - 1
_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x08, 0x10, 0x20


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A listening socket, with the path and inode of its file."""

    sock: socket.socket
    path: Path
    inode: tuple[int, int]

    def is_gone(self) -> bool:
        """Return whether the file was removed and not replaced, so that nobody can connect."""
        return not os.path.lexists(self.path)

    def close(self) -> None:
        """Close the socket, and remove its file unless another process has replaced it."""
        with contextlib.suppress(OSError):
            # While the socket is open, its inode number cannot be reused for another file.
            if _inode(self.path) == self.inode:
                self.path.unlink()
        self.sock.close()


def listen_unix(path: Path, gid: int | None, more: Collection[int] = ()) -> UnixListener:
    """Listen on ``path``, which is made with its folder.

    Its owner and the group ``gid`` may connect, and the groups ``more``. Replaces the socket of a
    dead agent, and never that of a live one. Raises ListenError.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ListenError(
            f"the path is longer than the {_MAX_PATH_BYTES} bytes that a Unix socket can have",
            where=str(path),
            remedy="set a shorter path as 'socket'",
        )
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(_FOLDER_MODE)  # whatever the umask is, groups have to get to the file
        with _locked(path.parent):
            _clear(path)
            return _bind_unix(path, gid, more)
    except OSError as error:
        raise ListenError(
            f"cannot make the API's socket: {error.strerror or error}",
            where=str(path),
            remedy="set 'socket' to a path on a file system with ACLs, such as /run"
            if error.errno == errno.ENOTSUP
            else "run the agent as root, or set 'socket' to a path that it may write to"
            + (", and 'socket_group' to a group that it is in" if gid is not None else ""),
        ) from error


def let_in(path: Path, more: Collection[int]) -> None:
    """Let the owner and the group of a socket connect, and the groups ``more``, and nobody else.

    Other groups are in a POSIX ACL. A socket that everybody can open would do, too, because the
    server decides, but then any user of the host could use up the agent's file descriptors.
    """
    if more:
        os.setxattr(path, _ACL, _acl(more))
        return
    with contextlib.suppress(OSError):  # there is none, or the file system has none
        os.removexattr(path, _ACL)
    path.chmod(SOCKET_MODE)


def _acl(groups: Collection[int]) -> bytes:
    """Return an ACL as the kernel takes it: SOCKET_MODE, and read and write for these groups."""
    entries = [(_ACL_USER_OBJ, 6, _ACL_NO_ID), (_ACL_GROUP_OBJ, 6, _ACL_NO_ID)]
    entries += [(_ACL_GROUP, 6, gid) for gid in sorted(groups)]
    entries += [(_ACL_MASK, 6, _ACL_NO_ID), (_ACL_OTHER, 0, _ACL_NO_ID)]
    return struct.pack("<I", _ACL_VERSION) + b"".join(
        struct.pack("<HHI", *entry) for entry in entries
    )


def listen_tcp(
    address: tuple[str, int], what: str = "metrics", setting: str = "metrics"
) -> socket.socket:
    """Listen on the address of a setting, for ``what``; port 0 means any free port.

    Raises ListenError.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        shown = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        raise ListenError(
            f"cannot listen for {what}: {error.strerror or error}",
            where=shown,
            remedy=f"set '{setting}' to a free local address, or to 'off'",
        ) from error
    return sock


def _bind_unix(path: Path, gid: int | None, more: Collection[int]) -> UnixListener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        inode = _inode(path)
        try:
            if gid is not None:
                os.chown(path, -1, gid)
            # Nobody can connect before listen(), so the permissions apply from the start.
            let_in(path, more)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError:
            path.unlink()
            raise
    except OSError:
        sock.close()
        raise
    return UnixListener(sock, path, inode)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder, so that only one process at a time checks, removes and binds.

    The kernel releases the lock of a process that dies.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flock(fd, folder)
        yield
    finally:
        os.close(fd)


def _flock(fd: int, folder: Path) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:  # other agents hold it briefly while they start
            if time.monotonic() > deadline:
                raise ListenError(
                    "another agent has been starting here for seconds",
                    where=str(folder),
                    remedy="find which one hangs: `fuser -v` shows the processes that hold the "
                    "folder",
                ) from error
            time.sleep(0.01)
        else:
            return


def _clear(path: Path) -> None:
    """Remove the socket that a dead agent left behind, and refuse anything else at ``path``."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            "exists and is not a socket",
            where=str(path),
            remedy="remove it, or set another path as 'socket'",
        )
    if _answers(path):
        raise ListenError(
            f"another agent answers on {path}",
            where=str(path),
            remedy="stop that agent, or give this one its own 'name', 'socket' and 'metrics'",
        )
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_TIMEOUT_S)
        try:
            sock.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            # A full backlog means that a process listens. EPROTOTYPE means another kind of socket.
            if isinstance(error, TimeoutError) or error.errno in {errno.EAGAIN, errno.EPROTOTYPE}:
                return True
            raise
    return True


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
