"""Owns the load generators that run in the lab's client, and what they have reported so far."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from lbctl.lab import figures, netns, processes, topology
from lbctl.lab.figures import Held, Prompt, Record, Request
from lbctl.lab.topology import Lab, Service

# A record is written when its request ends, and read a little later.
SETTLE_S = 0.3
LEAVE_S = 6.0  # longer than the timeout of a request


class _Generator:
    """A load generator, from ``start`` to ``stop``, and its records."""

    def __init__(self, lab: Lab, module: str) -> None:
        self.records: list[Record] = []
        self._lab = lab
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name=module, daemon=True)

    def start(self, *words: str) -> None:
        lab = self._lab
        namespace = lab.node("client").namespace
        command = [*netns.entering(namespace), sys.executable, "-m", self._module, *words]
        with (lab.run_dir / f"{self._module.rpartition('.')[2]}.log").open("ab") as log:
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

    def leave(self) -> None:
        """Begin nothing new."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """End the load and read the remaining records."""
        if self._process is not None:
            self._process.terminate()
            self._reader.join(timeout=LEAVE_S)
            if self._process.poll() is None:
                self._process.kill()  # it waits for answers that do not come
            self._process.wait(timeout=5)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        for line in self._process.stdout:
            if record := figures.from_line(line):
                self.records.append(record)


class Traffic:
    """Load on both VIPs, from ``start`` to ``stop``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._generator = _Generator(lab, "lbctl.lab.load")

    def start(self, rate_per_s: int, keep_alive: int, streams: int, stream_s: float) -> None:
        """Begin to send requests and to hold connections open."""
        vip4, vip6 = self._lab.vips
        self._generator.start(
            *("--target", f"{vip4}:{topology.PORT}", "--target", f"[{vip6}]:{topology.PORT}"),
            # As many at once as begin in a second: an outage is felt by those that begin in it.
            *("--rate", str(rate_per_s), "--workers", str(rate_per_s)),
            *("--keep-alive", str(keep_alive)),
            *("--streams", str(streams), "--stream-seconds", str(stream_s)),
        )

    def stop(self) -> None:
        """End the load and read the remaining records."""
        self._generator.stop()

    @property
    def running(self) -> bool:
        """Whether the load generator still runs."""
        return self._generator.running

    def requests(self, start_s: float = 0.0, end_s: float = float("inf")) -> list[Request]:
        """Return the requests started in that time, as far as they have ended."""
        found = [record for record in self._generator.records[:] if isinstance(record, Request)]
        return figures.started_in(found, start_s, end_s)

    def held(self) -> list[Held]:
        """Return all events of held connections."""
        return [record for record in self._generator.records[:] if isinstance(record, Held)]

    def settled(self, end_s: float) -> None:
        """Wait until everything that was started before ``end_s`` has been reported."""
        time.sleep(max(0.0, end_s + SETTLE_S - time.monotonic()))


class PromptTraffic:
    """Prompts to one service, from ``start`` to ``leave``; ``stop`` waits for their answers."""

    def __init__(self, lab: Lab, service: Service) -> None:
        self._target = f"{service.vip}:{service.port}"
        self._generator = _Generator(lab, "lbctl.lab.prompts")

    def start(self, rate_per_s: float, prompt_tokens: int, answer_tokens: int) -> None:
        """Begin to send prompts; lengths are medians."""
        self._generator.start(
            *("--target", self._target, "--rate", str(rate_per_s)),
            *("--prompt-tokens", str(prompt_tokens), "--answer-tokens", str(answer_tokens)),
        )

    def leave(self) -> None:
        """Begin no new prompt."""
        self._generator.leave()

    def stop(self) -> None:
        """End the load; requests that are still open then are not reported."""
        self._generator.stop()

    def prompts(self, start_s: float = 0.0, end_s: float = float("inf")) -> list[Prompt]:
        """Return the prompts started in that time, as far as their answers have ended."""
        found = [record for record in self._generator.records[:] if isinstance(record, Prompt)]
        return figures.started_in(found, start_s, end_s)
