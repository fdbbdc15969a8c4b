"""Owns how the process runs: in real time, never paged out, with garbage collected on request.

Left alone, the garbage collector would stop the process at moments of its own choice, and for
longer the larger the heap is. The heap hardly changes after the start, so the objects that exist
then are frozen. The rest, a few thousand objects, is collected when the caller has time, which
takes well below a millisecond.
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
NICENESS = -20  # where the kernel allows no real-time scheduling
# A collection is worthwhile after this many net allocations.
_COLLECT_AFTER = 2_000
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Standing:
    """What the kernel allowed; each refusal is a sentence."""

    realtime: bool
    memory_locked: bool
    refused: tuple[str, ...] = ()


def claim() -> Standing:
    """Take everything that is allowed. Threads and children that are started later inherit it."""
    refused: list[str] = []
    realtime = _schedule_first(refused)
    locked = _lock_memory(refused)
    return Standing(realtime, locked, tuple(refused))


def start_child(
    command: Sequence[str], *, stdin: int | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that runs before ordinary processes, but behind this one.

    The child is not ordinary from the start, because the process that starts a child waits until
    the child has had a CPU. asyncio is not used, because it would restore this process's own
    priority only later, when the child has got a CPU.
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
    """Give up real time in a child, so that it does not compete with its parent.

    Nothing happens where that is not allowed.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def settle(standing: Standing) -> None:
    """End the start: lock what has been mapped since, and freeze the heap as it is now."""
    if standing.memory_locked:
        _lock_memory([])
    gc.disable()
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Collect the garbage of the objects that were made since, if they are many."""
    if gc.get_count()[0] > _COLLECT_AFTER:
        gc.collect()


def resident_bytes() -> int:
    """Return how much memory of this process is in RAM."""
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
    # What is mapped now is read in. Later mappings, stacks above all, are locked as they are used.
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        if libc.mlockall(flags) != 0:
            why = os.strerror(ctypes.get_errno())
            refused.append(f"memory is not locked ({why}): needs CAP_IPC_LOCK")
            return False
    return True
