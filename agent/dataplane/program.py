"""Owns the data plane of one instance: tables, program and attachment, from nothing to running."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from agent.config.memory import parts, too_much
from agent.dataplane import abi, attach, instance, libbpf, pins, running, sources
from agent.dataplane.compile import Compiled
from agent.dataplane.constants import (
    HZ_CHOICES,
    Clock,
    Features,
    HashKeys,
    Reading,
    Sizes,
    clock_for,
    definitions,
    needed_features,
    possible_hz,
    sizes,
)
from agent.dataplane.hooks.place import PROGRAM_TYPES
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.objects import load_program
from agent.dataplane.old import OldTables, find
from agent.dataplane.pins import Pins
from agent.dataplane.tables import (
    BootSettings,
    SharedTables,
    boot_settings,
    fits_pinned,
    fresh_keys,
    room_for,
    shapes,
)
from agent.errors import DataplaneError
from agent.logs import get_logger
from agent.model import Config, Hook, Service

log = get_logger()

_HZ_WINDOW_S = 0.12
_HZ_LOOKS = 25  # at most; unless the host is overloaded, one or two are enough
_FRAME = bytes(14)


def possible_cpus() -> int:
    """Return how many CPUs the kernel may ever bring up; each has a row of counters."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class JiffiesClock:
    """Reads the kernel's jiffies, by which flows are stamped."""

    def __init__(self) -> None:
        self._fd = libbpf.load_clock_program()

    def jiffies(self) -> int:
        """Return the low 32 bits of jiffies."""
        return libbpf.test_run(self._fd, _FRAME).verdict

    def measure_hz(self) -> int:
        """Return jiffies a second: the only one of the kernel's choices that the readings allow.

        If several stay possible, it is the one nearest to the measured rate.
        """
        first = self._read()
        for _ in range(_HZ_LOOKS):
            time.sleep(_HZ_WINDOW_S)
            last = self._read()
            possible = possible_hz(first, last)
            if len(possible) == 1:
                return possible[0]
        rate = (last.jiffies - first.jiffies) % 2**32 / (last.before_s - first.before_s)
        return min(HZ_CHOICES, key=lambda hz: abs(hz - rate))

    def _read(self) -> Reading:
        before_s = time.monotonic()
        jiffies = self.jiffies()
        return Reading(before_s, jiffies, time.monotonic())

    def close(self) -> None:
        os.close(self._fd)


class Dataplane:
    """The tables and the program of one instance.

    ``load`` adopts what is pinned. Nothing here is undone when the agent ends: the program goes on
    with the tables as they are.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.pins = pins.pins_of(config.name)
        self.clock_source = JiffiesClock()
        self.tables: SharedTables
        self.attachments: tuple[attach.Attachment, ...] = ()
        self.program: Compiled
        self._has_program = False
        self._pin_problem = ""
        self.replaced: list[Compiled] = []  # programs that others have replaced, still open
        self.features = Features()
        self.keys: HashKeys
        self.clock: Clock
        self.size: Sizes = sizes(config.tables, possible_cpus(), config.nat)
        self.interface = config.interface
        self.ifindex = 0
        self.takes_over = False  # another program of this instance is balancing
        self.old: OldTables | None = None  # tables of another ABI or other sizes, with flows
        self.around_attach: Callable[[], AbstractContextManager[None]] = nullcontext
        self.abi_version = abi.ABI_VERSION
        self._is_new = False  # nothing was pinned, and nothing is attached yet
        self._aside: Pins | None = None  # what was pinned under the name of the new tables
        # The ids of the programs on the interfaces: two while one takes the other's place.
        self._put: frozenset[int] = frozenset()
        self._changing = threading.Lock()  # one change of program and attachments at a time

    def load(
        self, services: tuple[Service, ...], *, sync: bool = False, blocks: bool = False
    ) -> None:
        """Create or adopt the tables and compile for these services; nothing is attached.

        ``sync``: compile the exchange of flows with other balancers too; ``blocks``: and blocked
        sources.
        """
        config = self._config
        self.ifindex = attach.interface_index(config.interface)
        pins.ensure_bpffs()
        pins.check_owner(self.pins)
        self._rescue()
        held = attach.check_free(config.interfaces, config.hook, self.pins)
        self.takes_over = held is not None
        self._make_way()
        self.old = find(self.pins, self.size, config.nat)
        self._is_new = not self.pins.folder.exists()
        pins.make(self.pins)
        boot = boot_settings(self.pins, self.size, self._first_settings)
        self.keys, self.clock = boot.keys, boot.clock
        first = attach.order(config.hook, held, attach.veth_among(config.interfaces))[0]
        needed = needed_features(services, sync=sync, blocks=blocks)
        self._compile(needed, PROGRAM_TYPES[first], adopt=True)
        self.tables = SharedTables(self.pins, self.size)
        # An agent that was killed may have changed a service without announcing it.
        self.tables.services_changed()

    def _rescue(self) -> None:
        """Pin again what an attached program of ours uses, if somebody has unpinned it."""
        wanted = frozenset(shapes(self.size))
        called = self._config.hook is Hook.EXTERNAL
        paths = [self.pins.table(name) for name in wanted] + [self.pins.entry] * called
        if all(path.exists() for path in paths):
            return
        attached = attach.attached_to(self._config.interfaces)
        found = instance.rescue(self._config.name, wanted, attached)
        if found:
            log.warning("pins were gone; pinned again", pins=", ".join(sorted(found)))

    @property
    def lacks_pins(self) -> bool:
        """Whether somebody has unpinned something that the running program needs."""
        wanted = [self.pins.table(name) for name in (*shapes(self.size), instance.TABLE)]
        if self.attachments and self.attachment.mode is Hook.EXTERNAL:
            wanted.append(self.pins.entry)
        return self.pins.last_program is None or not all(path.exists() for path in wanted)

    def keep_pins(self) -> str:
        """Pin what runs again, if somebody has unpinned it.

        A restart finds it by its pins, and the next program opens its tables by them. Returns the
        problem that prevents it; empty: none.
        """
        try:
            with self._changing:
                self._restore_pins()
        except (DataplaneError, OSError) as error:
            if str(error) != self._pin_problem:
                log.error("pins are gone and cannot be put back", problem=str(error))
            self._pin_problem = str(error)
        else:
            self._pin_problem = ""
        return self._pin_problem

    def _restore_pins(self) -> None:
        if not self.attachments or not self.lacks_pins:
            return
        pins.ensure_bpffs()
        pins.make(self.pins)
        attached = attach.attached_to(self._config.interfaces)
        gone = instance.rescue(self._config.name, frozenset(shapes(self.size)), attached)
        gone += self.tables.pin_again(self.pins)  # tables that the program does not use
        if self.pins.last_program is None:
            attach.pin(self.program.fd, self.pins)
        if not self.pins.table(instance.TABLE).exists():
            instance.write_name(self.pins, self._config.name)
        running.note(self.pins, self.program.info.id, self.program.key)
        log.warning("pins were gone; pinned again", pins=", ".join(sorted(gone)))

    def _make_way(self) -> None:
        """Set tables of other sizes aside until new ones are filled, or remove them if no program
        uses them.
        """
        if fits_pinned(self.pins, self.size):
            return
        if self.pins.last_program is not None:
            self._aside = pins.set_aside(self.pins)
        else:
            pins.remove(self.pins)

    def _first_settings(self) -> BootSettings:
        """Return the settings of new tables.

        They are those of the tables from which flows are carried over, if there are any, because
        the hash of a flow is all that some slots have.
        """
        if self.old is not None:
            return self.old.boot
        return BootSettings(fresh_keys(), clock_for(self.clock_source.measure_hz()))

    def _compile(self, features: Features, kind: ProgramType, *, adopt: bool = False) -> None:
        """Compile and load the program, or with ``adopt`` take over the running one if it is the
        same.
        """
        config = self._config

        def running_one(key: str) -> Compiled | None:
            return running.adopt(self.pins, key, kind, shapes(self.size)) if adopt else None

        self._restore_pins()  # otherwise BCC would create new tables
        constants = definitions(
            self.pins.folder,
            self.size,
            features,
            self.keys,
            self.clock,
            config.gue_port,
            tc=kind is ProgramType.SCHED_CLS,
        )
        text = sources.joined("balancer.c")
        try:
            compiled = load_program(
                text, "balancer", constants, config.kernel_headers, kind, running_one
            )
        except DataplaneError as error:
            # BCC creates the tables too, and does not say why it could not.
            if self._is_new and not room_for(self.size):
                needed = parts(config.tables, config.nat, possible_cpus())
                short = too_much(needed, "the kernel says that there is not so much left")
                raise DataplaneError(
                    short.message, where=short.where, remedy=short.remedy
                ) from error
            raise
        try:
            abi.check(compiled.layout)
            instance.mark(compiled.fd, self.pins, config.name)
        except BaseException:
            compiled.close()
            raise
        if self._has_program:
            self.replaced.append(self.program)
        self.program, self.features = compiled, features
        self._has_program = True

    def release_replaced(self) -> None:
        """Close the programs that later ones have replaced, once nothing reads their rings."""
        with self._changing:
            while self.replaced:
                self.replaced.pop().close()

    @property
    def attachment(self) -> attach.Attachment:
        """The attachment to the first interface; hook and reason are the same on all."""
        return self.attachments[0]

    def attach(self) -> None:
        """Put the program on the interfaces, recompiled if the hook needs another program type."""
        with self._changing:
            self._attach()

    def _attach(self) -> None:
        config = self._config
        before = {one.interface: one for one in self.attachments}
        last = self._put

        def program_of(kind: ProgramType) -> int:
            fd = self._program_of(kind)
            self._put = last | {self.program.info.id}
            return fd

        try:
            with self.around_attach():
                placed = attach.attach(config.interfaces, config.hook, self.pins, program_of)
        except BaseException:
            self._put = last
            raise
        self._put = frozenset({self.program.info.id})
        running.note(self.pins, self.program.info.id, self.program.key)
        self._give_up_old()
        self.attachments = tuple(
            attach.with_reason(new, before.get(new.interface)) for new in placed
        )
        self.ifindex = self.attachment.ifindex  # a new one if the interface was recreated

    def _give_up_old(self) -> None:
        """Give up the tables of the last program, which nothing reads any more."""
        self._is_new, self._aside = False, None
        self.around_attach = nullcontext
        if self.old is not None:
            self.old.close()
            self.old = None
        for old in self.pins.of_other_versions():
            pins.remove(old)

    def _program_of(self, kind: ProgramType) -> int:
        if self.program.kind is not kind:
            self._compile(self.features, kind)
        return self.program.fd

    def undo_load(self) -> None:
        """Remove the tables that ``load`` created, if nothing uses them yet."""
        if self._is_new:
            pins.remove(self.pins)
            self._is_new = False
            if self._aside is not None:
                self._aside.folder.rename(self.pins.folder)

    def ensure_features(
        self, services: tuple[Service, ...], *, sync: bool = False, blocks: bool = False
    ) -> bool:
        """Recompile and swap the program if it lacks what these services, the exchange of flows
        (``sync``) or blocked sources need; return whether it was swapped.

        A swap that failed is tried again.
        """
        needed = needed_features(services, sync=sync, blocks=blocks)
        with self._changing:
            if not self.features.covers(needed):
                self._compile(self.features | needed, self.program.kind)
            elif self._put == {self.program.info.id}:
                return False
            self._attach()
            return True

    def is_attached(self) -> bool:
        """Return whether every interface has our program where it was put.

        While another program is compiled and put there, that is the last one.
        """
        return bool(self.attachments) and all(
            attach.sits(attachment, self._put, self.pins) for attachment in self.attachments
        )

    def now_jiffies(self) -> int:
        return self.clock_source.jiffies()


def remove_instance(name: str) -> bool:
    """Detach the instance's program from all interfaces of this network namespace, and remove its
    tables; return whether there was anything.
    """
    pins.ensure_bpffs()
    pins.check_owner(pins.pins_of(name))
    everywhere = attach.attached_to(interface for _, interface in socket.if_nameindex())
    instance.rescue(name, frozenset({instance.FLOWS}), everywhere)  # identifies our programs
    mine = pins.pins_of(name)
    folders = [one for one in (mine, *mine.of_other_versions()) if one.folder.exists()]
    if not folders:
        return False
    try:
        attach.detach(mine)
    finally:
        for one in folders:
            pins.remove(one)
    return True


def require_root() -> None:
    """Raise DataplaneError unless we are root: everything here needs CAP_BPF and CAP_NET_ADMIN."""
    if os.geteuid() != 0:
        raise DataplaneError(
            "loading XDP programs takes root",
            where=f"user {os.geteuid()}",
            remedy="run with sudo, or as the systemd unit lb-agent.service",
        )
