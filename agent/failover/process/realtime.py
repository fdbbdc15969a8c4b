"""Owns how the process runs: before everything else, never paged out, its garbage kept for later.

The collector would stop the process for as long as the heap is large, at moments that it chooses.
Its heap hardly changes after the start, so what is there is frozen, and the rest, a few thousand
objects, is looked at when the caller says that there is time: that is well below a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from agent.logs import get_logger

log = get_logger()

PRIORITY = 50  # of SCHED_FIFO, 1 to 99: above ordinary processes, below the kernel's own watchdogs
_BEHIND = 1
NICENESS = -20  # where the kernel has no real time to give
# Net allocations after which a collection is worth its while.
_COLLECT_AFTER = 2_000
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Standing:
    """What was allowed; each refusal as a sentence."""

    realtime: bool
    memory_locked: bool
    refused: tuple[str, ...] = ()


def claim() -> Standing:
    """Take all that is allowed. Threads that are started later inherit it, as children do."""
    refused: list[str] = []
    realtime = _schedule_first(refused)
    locked = _lock_memory(refused)
    return Standing(realtime, locked, tuple(refused))


def start_child(
    command: Sequence[str], *, stdin: int | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that is before everything ordinary, but behind this process.

    Not ordinary at once: who starts a child waits until it has had a CPU. And not with asyncio,
    which would come back to this process's own priority only later, when the child has one.
    """
    priority = os.sched_getparam(0).sched_priority
    if priority <= _BEHIND:
        return subprocess.Popen(command, stdin=stdin, stdout=stdout)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_BEHIND))
    try:
        return subprocess.Popen(command, stdin=stdin, stdout=stdout)
    finally:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


def be_ordinary(niceness: int = 0) -> None:
    """In a child: do not compete with the parent. Nothing happens where that is not allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def settle(standing: Standing) -> None:
    """After the start: what was mapped since is read in, and the heap as it is now is kept."""
    if standing.memory_locked:
        _lock_memory([])
    gc.disable()
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Collect what has come since, if it is much."""
    if gc.get_count()[0] > _COLLECT_AFTER:
        gc.collect()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (read each status)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _schedule_first(refused: list[str]) -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        refused.append(f"no real-time scheduling ({error.strerror}): needs CAP_SYS_NICE")
    else:
        return True
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    except OSError as error:
        refused.append(f"no niceness of {NICENESS} ({error.strerror})")
    return False


def _lock_memory(refused: list[str]) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    # What is mapped now is read in. Of later mappings, stacks above all, only what is used.
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        if libc.mlockall(flags) != 0:
            why = os.strerror(ctypes.get_errno())
            refused.append(f"memory is not locked ({why}): needs CAP_IPC_LOCK")
            return False
    return True
