"""Owns the locks that keep a second agent off an instance or an interface, and a second failover
process off a network namespace.

A lock is a file. For things that belong to a network namespace it is also the name of an abstract
Unix socket in that namespace, because files in /run can be removed while they are held.
``put_back`` creates removed files again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

from agent.errors import SteelyardError

RUN_FOLDER = Path("/run/steelyard")
_BACKLOG = 128
_PEER = struct.Struct("@iII")  # of SO_PEERCRED: process, user, group


class InstanceLocks:
    """The locks of an agent, held until ``release`` or until the process ends, however it ends."""

    def __init__(self, name: str, *interfaces: str) -> None:
        self._held: list[_Lock] = []
        namespace = _namespace()
        try:
            what, path = f"instance {name}", RUN_FOLDER / f"instance-{name}.lock"
            self._held.append(_Lock(path, what, _another("name")))
            for interface in interfaces:
                what = f"interface {interface}"
                path = RUN_FOLDER / f"interface-{namespace}-{interface}.lock"
                self._held.append(
                    _Lock(path, what, _another("interface"), name=f"interface-{interface}")
                )
        except SteelyardError:
            self.release()
            raise

    def put_back(self) -> tuple[str, ...]:
        """Create again the lock files that were removed, and return their paths.

        Raises SteelyardError if another process has taken one meanwhile.
        """
        return tuple(str(lock.path) for lock in self._held if lock.put_back())

    def release(self) -> None:
        """Let another agent take them."""
        for lock in self._held:
            lock.release()
        self._held.clear()


class FailoverLock:
    """The lock of a failover process, held until ``release`` or until the process ends.

    There must be only one: the VIPs of all failover processes look alike, so one would remove
    those that another has added.
    """

    def __init__(self) -> None:
        remedy = "stop that one; one process takes care of all instances of a configuration"
        path = RUN_FOLDER / f"failover-{_namespace()}.lock"
        self._lock = _Lock(path, "failover", remedy, "failover process", name="failover")

    def put_back(self) -> bool:
        """Create the lock file again if it was removed, and return whether it was.

        Raises SteelyardError if another process has taken it meanwhile.
        """
        return self._lock.put_back()

    def release(self) -> None:
        """Let another process take it."""
        self._lock.release()


class _Lock:
    """One lock. ``name``: the name to take in the network namespace, too."""

    def __init__(
        self, path: Path, what: str, remedy: str, who: str = "agent", *, name: str = ""
    ) -> None:
        self.path = path
        self._what, self._remedy, self._who = what, remedy, who
        self._fd = self._take_file()
        try:
            self._name = self._take_name(name) if name else None
        except SteelyardError:
            self._release_file()
            raise

    def put_back(self) -> bool:
        self._hang_up()
        if _is_at(self._fd, self.path):
            return False
        fresh = self._take_file()
        os.close(self._fd)
        self._fd = fresh
        return True

    def release(self) -> None:
        self._release_file()
        if self._name is not None:
            self._name.close()

    def _release_file(self) -> None:
        if _is_at(self._fd, self.path):  # otherwise it belongs to another process by now
            # Remove it before the lock goes, so that a process that takes it next looks again.
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def _refused(self, holder: str) -> SteelyardError:
        return SteelyardError(
            f"another {self._who} runs it, process {holder}",
            where=self._what,
            remedy=self._remedy,
        )

    def _take_file(self) -> int:
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            while True:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
                    os.close(fd)
                    raise self._refused(holder) from error
                if _is_at(fd, self.path):
                    break
                os.close(fd)  # its last holder removed the file between our two calls
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise SteelyardError(
                f"cannot create the lock file: {error.strerror}",
                where=str(self.path),
                remedy=f"make {self.path.parent} writable",
            ) from error
        return fd

    def _take_name(self, name: str) -> socket.socket | None:
        """Bind the name and listen on it, so that another process can find out who holds it."""
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        taken.setblocking(False)
        try:
            taken.bind(f"\0steelyard-{name}")
            taken.listen(_BACKLOG)
        except OSError:
            taken.close()
            holder = _holder_of(name)
            if holder is not None:
                raise self._refused(str(holder)) from None
            return None  # another user has taken it, perhaps to block us: the file is enough
        return taken

    def _hang_up(self) -> None:
        """Close the connections of processes that have asked who holds the name."""
        if self._name is not None:
            with contextlib.suppress(OSError):
                while True:
                    self._name.accept()[0].close()


def _holder_of(name: str) -> int | None:
    """Return the process that holds a name, if it runs as root or as our user."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(f"\0steelyard-{name}")
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:
            return None
    pid, uid, _ = _PEER.unpack(credentials)
    return int(pid) if uid in (0, os.geteuid()) else None


def _namespace() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _another(key: str) -> str:
    return f"stop that agent, or give this one another `{key}:`"


def _is_at(fd: int, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
