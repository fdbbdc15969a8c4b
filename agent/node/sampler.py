"""Owns the thread that reads one source again and again, and its last readings.

A driver can hang for seconds, or for ever. Then the last readings stay, and their age grows. The
thread is a daemon thread, so that the process can still end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from agent.logs import get_logger

log = get_logger()


class Sampler[Reading]:
    """Calls ``read`` every ``interval_s``, and keeps the last ``keep`` readings."""

    def __init__(
        self,
        name: str,
        read: Callable[[], Reading],
        interval_s: float,
        keep: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._interval_s = interval_s
        self._clock = clock
        self._stop = threading.Event()
        self._readings: deque[Reading] = deque(maxlen=keep)
        self._read_at = clock()
        self._problem = ""
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read-{name}", daemon=True)
        self._name = name

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; this does not wait for a reading that hangs."""
        self._stop.set()

    def wait_tried(self) -> None:
        """Wait until the source was read once, with or without success."""
        self._tried.wait()

    @property
    def last(self) -> Reading | None:
        """The last reading; None before the first."""
        readings = self.readings
        return readings[-1] if readings else None

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The last readings, the newest at the end."""
        return tuple(self._readings)

    @property
    def age_s(self) -> float:
        """The age of the last reading; before the first one, the time since the start."""
        return self._clock() - self._read_at

    def sample(self) -> None:
        """Read once; a source that fails is read again the next time."""
        try:
            reading = self._read()
        except Exception as error:
            if str(error) != self._problem:
                log.exception("reading_failed", source=self._name)
            self._problem = str(error)
        else:
            self._problem = ""
            self._readings.append(reading)
            self._read_at = self._clock()
        finally:
            self._tried.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self._interval_s)
