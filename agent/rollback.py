"""Decides what a return to a former release would cost, before it is done."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from agent.dataplane import abi, contents, survey
from agent.dataplane.constants import sizes
from agent.dataplane.pins import pins_of
from agent.dataplane.program import JiffiesClock, possible_cpus
from agent.dataplane.tables import SharedTables, boot_settings, fits_pinned
from agent.errors import DataplaneError
from agent.model import Config, Forward, Scheduler

# These pick the backend by the packet alone, so a flow without its record stays on its backend.
_BY_PACKET = (Scheduler.MAGLEV, Scheduler.SOURCE)

type Kind = tuple[Forward, Scheduler]


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as found in its files: the ABI of its tables, and whether it carries over those
    of another ABI.
    """

    abi: int
    carries: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """How many open connections are affected and how, with a line for each kind."""

    reset: int
    moved: int  # they get a new pick, and are reset if that is another backend
    lines: tuple[str, ...]

    @property
    def is_free(self) -> bool:
        """Whether no connection can be affected."""
        return not self.reset and not self.moved


def release_at(folder: Path) -> Release:
    """Return the release in a checkout, or in the folder of an installation's Python packages."""
    path = folder / "agent" / "dataplane" / "abi.py"
    try:
        match = re.search(r"^ABI_VERSION = (\d+)$", path.read_text(), re.MULTILINE)
    except OSError as error:
        raise _no_release(folder, str(error)) from error
    if match is None:
        raise _no_release(folder, f"{path} names no ABI_VERSION")
    return Release(int(match[1]), (path.parent / "old.py").exists())


def _no_release(folder: Path, why: str) -> DataplaneError:
    return DataplaneError(
        f"no release of Steelyard found: {why}",
        where=str(folder),
        remedy="name a checkout of the former release, made with `git worktree add FOLDER VERSION`",
    )


def open_flows(config: Config) -> Counter[Kind]:
    """Count the open flows of an instance, by how they are forwarded and scheduled."""
    pins, size = pins_of(config.name), sizes(config.tables, possible_cpus(), config.nat)
    if pins.last_program is None or not fits_pinned(pins, size):
        raise DataplaneError(
            "this release is not balancing with these tables",
            where=str(pins.folder),
            remedy="run this before you go back, with the configuration that is in use",
        )
    tables = SharedTables(pins, size)
    clock = JiffiesClock()
    try:
        ticks = boot_settings(pins, size, _none).clock.shift
        return count(tables, survey.survey(tables, clock.jiffies() >> ticks).live)
    finally:
        clock.close()
        tables.close()


def _none() -> Never:
    raise AssertionError("a pinned program has settings")


def count(tables: SharedTables, live: survey.Counts) -> Counter[Kind]:
    """Count the open flows by how they are forwarded and scheduled; ``live``: by backend id."""
    held = contents.read(tables)
    schedulers = {entry.id: entry.scheduler for entry in held.services.values()}
    found: Counter[Kind] = Counter()
    for ident, backend in held.backends.items():
        scheduler = schedulers.get(backend.service_id)
        if scheduler is not None and live[ident]:
            found[backend.forward, scheduler] += int(live[ident])
    return found


def cost(to: Release, flows: Mapping[Kind, int], running: int = abi.ABI_VERSION) -> Cost:
    """Return what happens to these flows when a release replaces the running one."""
    if to.abi == running or to.carries:
        how = "its tables are the same" if to.abi == running else "it carries them over"
        return Cost(0, 0, (f"{sum(flows.values())} open connections go on: {how}",))
    reset = sum(number for (forward, _), number in flows.items() if forward.is_nat)
    moved = sum(
        number
        for (forward, scheduler), number in flows.items()
        if not forward.is_nat and scheduler not in _BY_PACKET
    )
    return Cost(reset, moved, tuple(_lines(flows)))


def _lines(flows: Mapping[Kind, int]) -> Iterator[str]:
    for (forward, scheduler), number in _sorted(flows):
        if forward.is_nat:
            fate = "are reset: only the tables know their backend and their addresses"
        elif scheduler in _BY_PACKET:
            fate = "stay, except on backends that are down, draining or have a new weight"
        else:
            fate = "get a new pick, and are reset if that is another backend"
        yield f"{number} of {forward.value} with {scheduler.value} {fate}"


def _sorted(flows: Mapping[Kind, int]) -> Iterable[tuple[Kind, int]]:
    return sorted(flows.items(), key=lambda item: (item[0][0].value, item[0][1].value))
