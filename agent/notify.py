"""Owns what a process and its service manager tell each other: signals, and notifications by
systemd's protocol, without libsystemd.

See sd_notify(3). Without NOTIFY_SOCKET every notification does nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Self

from agent.logs import get_logger

log = get_logger()

_SEND_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Notifier:
    """Where to send notifications; ``watchdog_s``: the watchdog's timeout, None: no watchdog.

    ``patience_s``: how long to wait for a manager that does not read.
    """

    address: str | None = None
    watchdog_s: float | None = None
    patience_s: float = _SEND_TIMEOUT_S

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> Self:
        """Return the notifier that the service manager of process ``pid`` has configured."""
        return cls(environ.get("NOTIFY_SOCKET") or None, _watchdog_s(environ, pid))

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call ``watchdog``: half of the manager's timeout."""
        return None if self.watchdog_s is None else self.watchdog_s / 2

    def ready(self, status: str = "") -> None:
        """Notify that the start or a reload is complete."""
        self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> None:
        """Notify that a reload has begun; ``ready`` ends it."""
        # Type=notify-reload accepts only a READY that is newer than this.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", *_status(status))

    def stopping(self, status: str = "") -> None:
        """Notify that the agent is shutting down in good order."""
        self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> None:
        """Notify that the agent is still alive."""
        self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(*_status(status))

    def _send(self, *assignments: str) -> None:
        if self.address is None or not assignments:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(self.patience_s)
                sock.sendto("\n".join(assignments).encode(), _socket_address(self.address))
        except OSError as error:
            # Balancing matters more than notifications, so this is not raised.
            log.warning("notify_failed", socket=self.address, error=str(error))


@dataclass(frozen=True, slots=True)
class Signals:
    """What the process was told: to stop (SIGTERM, SIGINT), to reload (SIGHUP)."""

    stop: asyncio.Event
    hangup: asyncio.Event


def catch_stop() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set from now on, instead of ending the process."""
    return _set_by(signal.SIGTERM, signal.SIGINT)


def catch_signals() -> Signals:
    """Return the events of a process that reloads; from now on none of these signals ends it."""
    return Signals(catch_stop(), _set_by(signal.SIGHUP))


def _set_by(*numbers: signal.Signals) -> asyncio.Event:
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, event.set)
    return event


async def work_until(
    stop: asyncio.Event, notifier: Notifier, work: Mapping[str, Coroutine[None, None, None]]
) -> None:
    """Notify that the process is ready; do its work and feed the watchdog until ``stop`` is set.

    ``work``: what runs until then, by the names of the tasks, which are cancelled. A task that
    fails ends the others, and its error is raised in an ExceptionGroup.
    """
    notifier.ready()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(each, name=name)
            for name, each in {**work, "watchdog": feed_watchdog(notifier)}.items()
        ]
        await stop.wait()
        notifier.stopping()
        log.info("stopping")
        for task in tasks:
            task.cancel()


async def feed_watchdog(notifier: Notifier) -> None:
    """Feed the service manager's watchdog for as long as the event loop runs."""
    interval = notifier.watchdog_interval_s
    while interval is not None:
        notifier.watchdog()
        await asyncio.sleep(interval)


def _socket_address(name: str) -> bytes:
    # "@name" is the printable form of the abstract socket "\0name".
    raw = os.fsencode(name)
    return b"\0" + raw[1:] if raw.startswith(b"@") else raw


def _status(text: str) -> tuple[str, ...]:
    # A newline would start another assignment.
    return (f"STATUS={' '.join(text.split())}",) if text else ()


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    usec = environ.get("WATCHDOG_USEC", "")
    meant_for = environ.get("WATCHDOG_PID", "")
    if not usec.isascii() or not usec.isdecimal() or int(usec) == 0:
        return None
    if meant_for and meant_for != str(pid):
        return None
    return int(usec) / 1_000_000
