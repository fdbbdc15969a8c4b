"""Owns the load generator that runs in the lab's client, and what it has reported so far."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from lbctl.lab import figures, netns, processes, topology
from lbctl.lab.figures import Held, Request
from lbctl.lab.topology import Lab

# A record is written when its request ends, and read a little later.
SETTLE_S = 0.3


class Traffic:
    """Load on both VIPs, from ``start`` to ``stop``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._requests: list[Request] = []
        self._held: list[Held] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name="traffic", daemon=True)

    def start(self, rate_per_s: int, keep_alive: int, streams: int, stream_s: float) -> None:
        """Begin to send requests and to hold connections open."""
        lab = self._lab
        vip4, vip6 = lab.vips
        command = [
            *netns.entering(lab.node("client").namespace),
            *(sys.executable, "-m", "lbctl.lab.load"),
            *("--target", f"{vip4}:{topology.PORT}", "--target", f"[{vip6}]:{topology.PORT}"),
            *("--rate", str(rate_per_s), "--keep-alive", str(keep_alive)),
            *("--streams", str(streams), "--stream-seconds", str(stream_s)),
        ]
        with (lab.run_dir / "load.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=processes.environment(lab.run_dir),
                start_new_session=True,
            )
        self._reader.start()

    def stop(self) -> None:
        """End the load and read what it still had to say."""
        if self._process is not None:
            self._process.terminate()
            self._reader.join(timeout=5)
            self._process.wait(timeout=5)

    @property
    def running(self) -> bool:
        """Whether the load generator still runs."""
        return self._process is not None and self._process.poll() is None

    def requests(self, start_s: float = 0.0, end_s: float = float("inf")) -> list[Request]:
        """The requests started in that time, as far as they have ended."""
        return figures.started_in(self._requests[:], start_s, end_s)

    def held(self) -> list[Held]:
        """Everything that happened to held connections."""
        return self._held[:]

    def settled(self, end_s: float) -> None:
        """Wait until what was started before ``end_s`` has been reported."""
        time.sleep(max(0.0, end_s + SETTLE_S - time.monotonic()))

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        for line in self._process.stdout:
            match figures.from_line(line):
                case Request() as request:
                    self._requests.append(request)
                case Held() as event:
                    self._held.append(event)
                case None:
                    pass
