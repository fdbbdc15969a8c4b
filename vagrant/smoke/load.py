"""Owns the load that the client makes during a row, and what was reported of it so far."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from lbctl.lab import figures
from lbctl.lab.figures import Held, Request
from lbctl.lab.judge import Window
from vagrant.smoke import bounds, children
from vagrant.smoke.bounds import Pace
from vagrant.smoke.children import VagrantError
from vagrant.smoke.machines import Machines, wait

TREE = "/vagrant"  # the working tree, in every machine
_SUMMARY = '"record": "summary"'


def generator_words(targets: Sequence[str], pace: Pace) -> tuple[str, ...]:
    """The command line of the generator in the client."""
    return (
        *("env", "-C", TREE, "PYTHONDONTWRITEBYTECODE=1"),
        *("python3", "-m", "vagrant.smoke.generator"),
        *(word for target in targets for word in ("--target", target)),
        *("--rate", f"{pace.rate_per_s:g}"),
        *("--workers", str(max(1, round(bounds.WORKERS_PER_RATE * pace.rate_per_s)))),
        *("--keep-alive", str(pace.keep_alive), "--every", f"{pace.every_s:g}"),
        *("--timeout", f"{bounds.REQUEST_TIMEOUT_S:g}"),
    )  # fmt: skip


class Load:
    """Requests and held connections from the client, from ``start`` to ``stop``.

    All times are of the client's monotonic clock.
    """

    def __init__(self, machines: Machines, name: str) -> None:
        self._machines = machines
        self._errors = machines.scratch / f"load-{name}.log"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._records: list[Request | Held] = []
        self._clock: dict[str, float] = {}
        self._told = threading.Condition()
        self._over = False  # it says no more
        self._whole = False  # it has said all

    def start(self, targets: Sequence[str], pace: Pace) -> None:
        """Begin, and wait until connections are held open and requests are answered."""
        words = generator_words(targets, pace)
        command = self._machines.ssh.command(self._machines.client, *words, root=False)
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="load", daemon=True
        )
        self._reader.start()
        self.wait("the load runs", lambda: self._cold(targets, pace.keep_alive), bounds.WARM_S)

    def now_s(self) -> float:
        """The client's clock: later than what happened before the call, by a round trip at most."""
        process = self._process
        token = str(len(self._clock))
        if process is None or process.stdin is None:
            raise VagrantError("there is no load")
        try:
            process.stdin.write(f"{token}\n")
            process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        with self._told:
            self._told.wait_for(
                lambda: token in self._clock or not self.running, timeout=bounds.COMMAND_S
            )
        if token not in self._clock:
            raise self._ended()
        return self._clock[token]

    def requests(self, since_s: float = 0.0) -> list[Request]:
        """The requests started since then, as far as they have ended."""
        found = [record for record in self._records[:] if isinstance(record, Request)]
        return figures.started_in(found, since_s, float("inf"))

    def held(self) -> list[Held]:
        """Everything that happened to held connections."""
        return [record for record in self._records[:] if isinstance(record, Held)]

    @property
    def running(self) -> bool:
        """Whether the generator still tells something."""
        return self._process is not None and not self._over

    def wait(
        self, what: str, lacking: Callable[[], str | None], bound_s: float = bounds.SETTLE_S
    ) -> None:
        """Wait until nothing is lacking, while the load goes on."""

        def also_load() -> str | None:
            if not self.running:
                raise self._ended()
            return lacking()

        wait(what, also_load, bound_s)

    def await_requests(self, count: int) -> None:
        """Wait until so many requests that begin from now on have ended."""
        since_s = self.now_s()

        def lacking() -> str | None:
            ended = len(self.requests(since_s))
            return f"{ended} have" if ended < count else None

        self.wait(f"{count} requests end", lacking, bounds.ENOUGH_S)

    def stop(self) -> None:
        """Begin nothing new, wait for what is open, and read all that was reported."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        reader.join(timeout=bounds.REQUEST_TIMEOUT_S + bounds.COMMAND_S)
        if not self._over:
            children.end(process)
            reader.join()
        process.wait()

    def window(self, start_s: float, end_s: float) -> Window:
        """The traffic of that time; raises VagrantError unless the load was stopped in order."""
        if not self._whole:
            raise self._ended()
        requests = [r for r in self.requests(start_s) if r.started_s < end_s]
        return Window(start_s, end_s, requests, self.held())

    def _cold(self, targets: Sequence[str], keep_alive: int) -> str | None:
        opened = len({held.connection for held in self.held() if held.event == "opened"})
        asked = {request.target for request in self.requests() if not request.failed}
        if opened < keep_alive:
            return f"{opened} of {keep_alive} connections are open"
        silent = [target for target in targets if target not in asked]
        return f"no answer from {', '.join(silent)}" if silent else None

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            record = figures.from_line(line)
            if isinstance(record, Request | Held):
                self._records.append(record)
            elif _SUMMARY in line:
                self._whole = True
            elif told := _clock(line):
                with self._told:
                    self._clock[told[0]] = told[1]
                    self._told.notify_all()
        with self._told:
            self._over = True
            self._told.notify_all()

    def _ended(self) -> VagrantError:
        said = self._errors.read_text(errors="replace") if self._errors.exists() else ""
        return VagrantError(
            f"the load generator ended: {children.tail(said)}",
            where=self._machines.client,
            remedy=f"see {self._errors}",
        )


def _clock(line: str) -> tuple[str, float] | None:
    try:
        document = json.loads(line)
        return (document["token"], float(document["at_s"]))
    except (ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def running(machines: Machines, name: str, targets: Sequence[str], pace: Pace) -> Iterator[Load]:
    """Load while the block runs; afterwards everything of it is reported."""
    load = Load(machines, name)
    try:
        load.start(targets, pace)
        yield load
    finally:
        load.stop()
