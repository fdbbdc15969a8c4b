"""Owns the alerts of Suricata: it follows the file that they are written to, and has the sources
blocked that the configuration wants blocked.
"""

from __future__ import annotations

import asyncio
import functools
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.dataplane.explain import DataplaneView, is_connected
from agent.dataplane.flows import names_of
from agent.dataplane.program import Dataplane
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.model import Address, Network, Service
from agent.state import alerts
from agent.state.alerts import Alert, Connections, Outcome, Scene, Seen, SeenKey
from agent.state.blocks import Block, Blocks, active, holding
from agent.state.guardview import AlertsView
from agent.state.situation import Situation
from agent.state.tables import TableContents

log = get_logger()

PERIOD_S = 0.05
SHARE = 20  # looking takes at most one in so many seconds of a core
OFF_S = 1.0
READ_BYTES = 1 << 18  # at most, in one look
BEHIND_BYTES = 16 << 20  # with more to read, the newest is read and the rest is left out
LONGEST_LINE = 1 << 16
_NAMED = 10  # what one look logs one by one

type Blocker = Callable[[tuple[Block, ...]], Awaitable[object]]
type Judged = tuple[Alert, Outcome, Network]


class Follower:
    """Reads the lines that are added to a file, which may be rotated or truncated.

    It begins at the end of the file that it finds first, and at the start of every later one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""  # why the file is not read
        self.skipped_bytes = 0  # that were left out, because there was too much to read
        self._file: int | None = None
        self._at = 0
        self._rest = b""  # the beginning of a line
        self._is_first = True
        self._is_inside = False  # of a line that is too long

    def lines(self) -> list[bytes]:
        """Return the next lines, at most ``READ_BYTES`` of them."""
        try:
            if self._file is None:
                self._open()
            found = self._read()
        except OSError as error:
            self.close()
            self.problem = f"{self.path}: {error.strerror or error}"
            found = []
        self._is_first = False
        return found

    def close(self) -> None:
        """Close the file; the next look opens the path again."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._at, self._rest, self._is_inside = None, 0, b"", False

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "this is not a regular file: set `filetype: regular` in eve-log")
        folder = self.path.resolve().parent
        for each, status in ((self.path, found), (folder, folder.stat())):
            if status.st_mode & stat.S_IWOTH:
                # Whoever writes alerts decides who is blocked.
                raise OSError(0, f"any user of this host can write to it: chmod o-w {each}")
        self.problem = ""
        self._at = found.st_size if self._is_first else 0

    def _read(self) -> list[bytes]:
        if self._file is None:
            return []
        size = os.fstat(self._file).st_size
        if size < self._at:  # truncated, as by `copytruncate` of logrotate
            self._at, self._rest, self._is_inside = 0, b"", False
        if size - self._at > BEHIND_BYTES:
            start = size - READ_BYTES
            self.skipped_bytes += start - self._at
            self._at, self._rest, self._is_inside = start, b"", True
        data = os.pread(self._file, READ_BYTES, self._at)
        self._at += len(data)
        if not data and not self._is_current(self._file):
            self.close()
        return self._cut(data)

    def _is_current(self, file: int) -> bool:
        """Return whether the path still leads to this file; no if it was rotated."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return True  # the new file will be there soon
        return os.path.samestat(now, os.fstat(file))

    def _cut(self, data: bytes) -> list[bytes]:
        *found, self._rest = (self._rest + data).split(b"\n")
        if self._is_inside and found:
            found, self._is_inside = found[1:], False
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._is_inside = b"", True
        return [line for line in found if line and len(line) <= LONGEST_LINE]


class Alerts:
    """The alerts of one instance.

    ``blocks``: the present blocks. ``lists_of``: the names of the lists that hold an address.
    ``active``: how many sources have flows. ``block`` blocks sources.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        blocks: Callable[[], Blocks],
        lists_of: Callable[[Address], tuple[str, ...]],
        active: Callable[[], int],
        block: Blocker,
    ) -> None:
        self._dataplane = dataplane
        self._blocks = blocks
        self._lists_of = lists_of
        self._active = active
        self._block = block
        self._follower: Follower | None = None
        self._connections: tuple[object, Connections] | None = None  # of which configuration
        self._recent: dict[SeenKey, Seen] = {}
        self._counts: Counter[tuple[int, Outcome]] = Counter()  # by severity and outcome
        self._blocked_total = 0  # sources
        self._unreadable_total = 0  # lines
        self._problem = ""  # why sources cannot be blocked
        self._said = ""  # the problem that was logged last

    async def run(self, seen: Callable[[], tuple[Situation, TableContents]]) -> None:
        """Follow the alerts, for ever."""
        while True:
            wait_s = OFF_S
            try:
                now, contents = seen()
                if self._is_on(now):
                    wait_s = max(PERIOD_S, SHARE * await self._look(now, contents))
            except Exception:  # this task's root
                log.exception("reading alerts broke")
            await asyncio.sleep(wait_s)

    def view(self) -> AlertsView:
        """Return what was seen, the newest first."""
        follower = self._follower
        return AlertsView(
            path=follower.path if follower else None,
            problem=(follower.problem if follower else "") or self._problem,
            recent=tuple(sorted(self._recent.values(), key=lambda each: -each.last)),
            counts=dict(self._counts),
            blocked=self._blocked_total,
            unreadable=self._unreadable_total,
            skipped_bytes=follower.skipped_bytes if follower else 0,
        )

    def _is_on(self, now: Situation) -> bool:
        """Return whether alerts are read, from the file that the configuration names."""
        path = now.config.suricata.eve
        if self._follower is not None and self._follower.path != path:
            self._follower.close()
            self._follower = None
        if self._follower is None and path is not None:
            self._follower = Follower(path)
        return self._follower is not None

    async def _look(self, now: Situation, contents: TableContents) -> float:
        """Take one look; return the CPU seconds that it took."""
        judged, scene, spent_s = await asyncio.to_thread(self._judge, now, contents)
        self._tell()
        if scene:
            await self._act(scene, judged)
        return spent_s

    def _judge(
        self, now: Situation, contents: TableContents
    ) -> tuple[list[Judged], Scene | None, float]:
        """Return the new alerts and what becomes of each, the scene that decided this (None if
        there are no new alerts), and the CPU seconds that this took.
        """
        started = time.thread_time()
        found = list[Alert]()
        for line in self._follower.lines() if self._follower else ():
            try:
                alert = alerts.read(line)
            except ValueError:
                self._unreadable_total += 1
            else:
                found += [alert] if alert else []
        scene = self._scene(now, contents) if found else None
        judged = [(each, *alerts.judge(each, scene)) for each in found] if scene else []
        return judged, scene, time.thread_time() - started

    def _scene(self, now: Situation, contents: TableContents) -> Scene:
        config, plane = now.config, self._dataplane
        if self._connections is None or self._connections[0] is not config:
            self._connections = config, Connections(config)
        jiffies = plane.now_jiffies()
        view = DataplaneView(
            plane.tables, contents, names_of(now), plane.keys, plane.clock, jiffies
        )
        blocks = self._blocks()

        def is_trusted(service: Service, source: Network) -> bool:
            held = self._lists_of(source.network_address) if service.trusted else ()
            return any(name in service.trusted for name in held)

        return Scene(
            config.suricata,
            self._connections[1],
            lambda flow: is_connected(view, flow),
            is_trusted,
            # With very many blocks, looking through them takes milliseconds.
            functools.cache(lambda source: holding(blocks, source) is not None),
        )

    async def _act(self, scene: Scene, judged: list[Judged]) -> None:
        """Block the sources that are to be blocked, and remember what became of the alerts."""
        suricata, at = scene.suricata, time.time()
        present = active(self._blocks())
        ours = sum(alerts.is_ours(each.why) for each in present.values())
        room = alerts.room(suricata, self._active(), ours)
        new: dict[Network, Block] = {}
        decided = list[Judged]()
        for alert, outcome, source in judged:
            if outcome is Outcome.BLOCKED and not (source in new or scene.is_blocked(source)):
                if len(new) < room:
                    new[source] = alerts.block(alert, source, suricata, at)
                else:
                    outcome = Outcome.BOUNDED
            decided.append((alert, outcome, source))
        failed = set() if await self._try(tuple(new.values())) else set(new)
        for alert, outcome, source in decided:
            is_failed = outcome is Outcome.BLOCKED and source in failed
            self._note(alert, Outcome.FAILED if is_failed else outcome, source, at)
        self._tell()
        if not failed:
            _log_blocks(tuple(new.values()))

    async def _try(self, new: tuple[Block, ...]) -> bool:
        """Block these sources; return whether that has worked."""
        if not new:
            return True
        try:
            await self._block(new)
        except (SteelyardError, OSError) as error:
            self._problem = f"sources are not blocked: {error}"
            return False
        self._problem = ""
        self._blocked_total += len(new)
        return True

    def _note(self, alert: Alert, outcome: Outcome, source: Network, at: float) -> None:
        if (alert.signature, outcome) not in self._recent:
            log.info(
                "alert",
                signature=alert.signature,
                text=alert.text,
                severity=alert.severity,
                source=str(source),
                outcome=outcome.value,
            )
        self._counts[alert.severity, outcome] += 1
        self._recent = alerts.noted(self._recent, alert, outcome, source, at)

    def _tell(self) -> None:
        """Log a problem when it begins, and when it is over."""
        problem = (self._follower.problem if self._follower else "") or self._problem
        if problem and problem != self._said:
            log.error("alerts are not acted on", problem=problem)
        elif self._said and not problem:
            log.info("alerts are read again")
        self._said = problem


def _log_blocks(new: tuple[Block, ...]) -> None:
    for each in new[:_NAMED]:
        log.warning("blocked a source", source=str(each.prefix), why=each.why)
    if len(new) > _NAMED:
        log.warning("blocked more sources", sources=len(new) - _NAMED)
