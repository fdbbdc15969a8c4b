"""Owns the locks that keep a second agent off an instance or an interface."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import SteelyardError

RUN_FOLDER = Path("/run/steelyard")


class InstanceLocks:
    """Held until the process ends, however it ends."""

    def __init__(self, name: str, interface: str) -> None:
        RUN_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        namespace = Path("/proc/self/ns/net").stat().st_ino
        self._files = [
            _lock(RUN_FOLDER / f"instance-{name}.lock", f"instance {name}", "`name:`"),
            _lock(
                RUN_FOLDER / f"interface-{namespace}-{interface}.lock",
                f"interface {interface}",
                "`interface:`",
            ),
        ]

    def release(self) -> None:
        """Let another agent take them."""
        for fd in self._files:
            os.close(fd)
        self._files.clear()


def _lock(path: Path, what: str, key: str) -> int:
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
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
