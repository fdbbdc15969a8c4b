"""Owns the locks that keep a second agent off an instance or an interface."""

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
        namespace = Path("/proc/self/ns/net").stat().st_ino
        instance = RUN_FOLDER / f"instance-{name}.lock"
        self._held: dict[Path, int] = {}
        try:
            self._held[instance] = _lock(instance, f"instance {name}", "`name:`")
            for interface in interfaces:
                own = RUN_FOLDER / f"interface-{namespace}-{interface}.lock"
                self._held[own] = _lock(own, f"interface {interface}", "`interface:`")
        except SteelyardError:
            self.release()
            raise

    def release(self) -> None:
        """Let another agent take them."""
        for path, fd in self._held.items():
            path.unlink(missing_ok=True)  # before the lock goes: whoever waits looks again
            os.close(fd)
        self._held.clear()


def _lock(path: Path, what: str, key: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise SteelyardError(
                f"another agent runs it, process {holder}",
                where=what,
                remedy=f"stop that agent, or give this one another {key}",
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
