"""Owns the locks that keep a second agent off an instance or an interface, and a second failover
process off a network namespace."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import SteelyardError

RUN_FOLDER = Path("/run/steelyard")


class InstanceLocks:
    """Held until ``release``, or until the process ends, however it ends."""

    def __init__(self, name: str, *interfaces: str) -> None:
        RUN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        namespace = _namespace()
        instance = RUN_FOLDER / f"instance-{name}.lock"
        self._held: dict[Path, int] = {}
        try:
            self._held[instance] = _lock(instance, f"instance {name}", _another("name"))
            for interface in interfaces:
                own = RUN_FOLDER / f"interface-{namespace}-{interface}.lock"
                self._held[own] = _lock(own, f"interface {interface}", _another("interface"))
        except SteelyardError:
            self.release()
            raise

    def release(self) -> None:
        """Let another agent take them."""
        for path, fd in self._held.items():
            path.unlink(missing_ok=True)  # before the lock goes: whoever waits looks again
            os.close(fd)
        self._held.clear()


class FailoverLock:
    """Held until ``release``, or until the process ends, however it ends.

    The VIPs of all failover processes look alike: one removes what another has put there.
    """

    def __init__(self) -> None:
        RUN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path = RUN_FOLDER / f"failover-{_namespace()}.lock"
        remedy = "stop that one; one process takes care of all instances of a configuration"
        self._fd = _lock(self._path, "failover", remedy, "failover process")

    def release(self) -> None:
        """Let another process take it."""
        self._path.unlink(missing_ok=True)  # before the lock goes: whoever waits looks again
        os.close(self._fd)


def _namespace() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _another(key: str) -> str:
    return f"stop that agent, or give this one another `{key}:`"


def _lock(path: Path, what: str, remedy: str, who: str = "agent") -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise SteelyardError(
                f"another {who} runs it, process {holder}",
                where=what,
                remedy=remedy,
            ) from error
        if _is_at(fd, path):
            break
        os.close(fd)  # its last holder removed the file between our two calls
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
