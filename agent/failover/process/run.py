"""Wires the failover process together and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

from agent.api.listen import listen_unix
from agent.api.peer import access, group_id
from agent.errors import SteelyardError
from agent.failover.host.addresses import remove_stale
from agent.failover.process import control, realtime
from agent.failover.process.reading import Orders, read_orders
from agent.failover.process.team import Team
from agent.failover.times import LOOK_S, TASK_AGAIN_S
from agent.lock import FailoverLock
from agent.logs import get_logger
from agent.notify import Notifier, Signals, catch_signals, feed_watchdog

log = get_logger()


async def run(path: Path, standing: realtime.Standing) -> None:
    """Take part in failover as the file says, until SIGTERM or SIGINT; SIGHUP reloads.

    Raises SteelyardError when it cannot start; then no VIP is left on, whatever the reason.
    """
    signals = _signals()
    lock = FailoverLock()
    try:
        orders = await read_orders(path, at_once=True)
        gid = None if orders.socket_group is None else group_id(orders.socket_group)
        listener = listen_unix(orders.socket, gid)
        control_socket = control.ControlSocket(listener, access(gid), gid)
        try:
            await _run_locked(path, standing, orders, control_socket, signals, lock)
        finally:
            control_socket.listener.close()
    except Exception:
        with contextlib.suppress(OSError, SteelyardError):
            remove_stale()  # nothing would remove them later
        raise
    finally:
        lock.release()


async def _run_locked(
    path: Path,
    standing: realtime.Standing,
    orders: Orders,
    control_socket: control.ControlSocket,
    signals: Signals,
    lock: FailoverLock,
) -> None:
    for refused in standing.refused:
        log.warning("not all that was wanted", problem=refused)
    # The process must not wait for a service manager that hangs.
    notifier = replace(Notifier.from_environment(os.environ, os.getpid()), patience_s=0.0)
    team = Team(path, orders, standing, notifier)
    work: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        "control": lambda: control.serve(control_socket, team),
        "saved": team.keep_saved,
        "counters": team.keep_counters,
        "interfaces": team.tracking.run,
        "scripts": team.tracking.scripts.run,
        "look": lambda: _look(team, lock),
        "reload": lambda: _reload_on(signals.hangup, team),
        "watchdog": lambda: feed_watchdog(notifier),
    }
    try:
        team.start()
    except BaseException:
        team.stop()
        raise
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        try:
            tasks += [
                group.create_task(_guarded(name, each), name=name) for name, each in work.items()
            ]
            realtime.settle(standing)
            notifier.ready(team.status_line())
            log.info("ready", realtime=standing.realtime, memory_locked=standing.memory_locked)
            await signals.stop.wait()
            notifier.stopping()
            await team.leave()
        finally:
            team.stop()
            for task in tasks:
                task.cancel()
    await team.save()


async def _guarded(name: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Do the work, and again if it fails, because no task may end the others."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a task failed", task=name)
            await asyncio.sleep(TASK_AGAIN_S)
        else:
            return


async def _look(team: Team, lock: FailoverLock) -> None:
    """Check regularly for what no event reports.

    That is a program that was detached, an agent that sends nothing, garbage, and a lock that was
    removed.
    """
    logged = ""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            if lock.put_back():
                log.warning("the lock was removed by somebody else, and is put back")
            logged = ""
        except SteelyardError as error:
            if str(error) != logged:
                log.error("the lock was removed and cannot be put back", problem=str(error))
            logged = str(error)
        team.tracking.look_soon()
        team.judge()
        realtime.collect()


async def _reload_on(hangup: asyncio.Event, team: Team) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await team.reload()
        except SteelyardError:
            continue  # it is logged, and the status shows it


def _signals() -> Signals:
    signals = catch_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked since the start
    return signals
