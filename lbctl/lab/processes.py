"""Owns the lab's processes: starts them detached, finds them again, and stops only them.

Every process of a lab carries the lab's folder in its environment. A pid file is only trusted
if the process it names has that mark, and a process without a pid file is still found by it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lbctl.lab import netns

_EXEC_POLLS, _EXEC_POLL_S = 100, 0.005
MARK = "STEELYARD_LAB_RUN"
_SOURCES = Path(__file__).resolve().parents[2]  # the folder of the package lbctl


def program(name: str, module: str) -> list[str]:
    """Return the command for one of the project's programs, as installed with this interpreter."""
    installed = Path(sys.executable).parent / name
    return [str(installed)] if installed.exists() else [sys.executable, "-m", module]


def environment(run_dir: Path | None = None) -> dict[str, str]:
    """Return the environment of a child; with ``run_dir``, marked as a process of that lab."""
    search = [str(_SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    mark = {MARK: str(run_dir)} if run_dir else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search), **mark}


def start(
    run_dir: Path, name: str, namespace: str, command: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start a process of the lab that outlives this one; its output goes to ``NAME.log``."""
    with (run_dir / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*netns.entering(namespace), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(run_dir),
            start_new_session=True,
        )
    # nsenter turns into the command, so this is the command's pid.
    (run_dir / f"{name}.pid").write_text(f"{process.pid}\n")
    return process


def belongs(pid: int, run_dir: Path) -> bool:
    """Return whether a process runs (is not a zombie) and carries the lab's mark."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return _mark(run_dir) in variables


def pid_of(run_dir: Path, name: str) -> int | None:
    """Return the pid of the lab's process of that name; None if it does not run."""
    try:
        pid = int((run_dir / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None
    for _ in range(_EXEC_POLLS):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return None
        if variables or state in "ZX":
            return pid if _mark(run_dir) in variables.split(b"\0") else None
        time.sleep(_EXEC_POLL_S)  # for a moment during execve(2) a process shows no environment
    return None


def _mark(run_dir: Path) -> bytes:
    return f"{MARK}={run_dir}".encode()


def find(run_dir: Path) -> set[int]:
    """Return the pids of all processes of the lab."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return {pid for pid in pids if belongs(pid, run_dir)}


def stop(run_dir: Path, pids: Iterable[int], grace_s: float = 3.0) -> None:
    """End processes of the lab, by SIGTERM, then by SIGKILL; return when they are gone."""
    handles = _open_handles(run_dir, pids)
    try:
        for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            for handle in handles.values():
                _send(handle, number)
            _await_end(handles, patience_s)
    finally:
        for handle in handles.values():
            os.close(handle)


def kill(run_dir: Path, *names: str) -> float:
    """SIGKILL the lab's processes of these names; return the moment (monotonic seconds)."""
    with _handles(run_dir, names) as handles:
        at_s = _send_all(handles, signal.SIGKILL)
        _await_end(handles, 5.0)
    return at_s


def freeze(run_dir: Path, *names: str) -> float:
    """Freeze the lab's processes of these names until ``thaw``; return the moment."""
    with _handles(run_dir, names) as handles:
        return _send_all(handles, signal.SIGSTOP)


def thaw(run_dir: Path, *names: str) -> float:
    """Let frozen processes go on; return the moment (monotonic seconds)."""
    with _handles(run_dir, names) as handles:
        return _send_all(handles, signal.SIGCONT)


@contextmanager
def _handles(run_dir: Path, names: Sequence[str]) -> Iterator[dict[int, int]]:
    """Yield pidfds of the processes of these names; raises LabError if one does not run."""
    pids = {name: pid_of(run_dir, name) for name in names}
    handles = _open_handles(run_dir, filter(None, pids.values()))
    try:
        for name, pid in pids.items():
            if pid not in handles:
                raise netns.LabError(
                    f"{name} does not run", where=str(run_dir), remedy=f"see {run_dir / name}.log"
                )
        yield handles
    finally:
        for handle in handles.values():
            os.close(handle)


def _send_all(handles: Mapping[int, int], number: signal.Signals) -> float:
    at_s = time.monotonic()
    for handle in handles.values():
        _send(handle, number)
    return at_s


def _open_handles(run_dir: Path, pids: Iterable[int]) -> dict[int, int]:
    # A pidfd always refers to the same process, so the mark is checked after it is opened.
    handles: dict[int, int] = {}
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if belongs(pid, run_dir):
            handles[pid] = handle
        else:
            os.close(handle)
    return handles


def _send(handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return


def _await_end(handles: dict[int, int], patience_s: float) -> None:
    """Wait for processes to end; close and remove ended ones from ``handles``."""
    deadline = time.monotonic() + patience_s
    while handles and (left_s := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for handle in handles.values():
            poll.register(handle, select.POLLIN)
        ended = {handle for handle, _ in poll.poll(1000 * left_s)}
        for pid, handle in list(handles.items()):
            if handle in ended:
                os.close(handles.pop(pid))
