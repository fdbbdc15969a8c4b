"""Wires the agent together and runs it: the only module that connects its parts."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path

from agent import __version__
from agent.api.peer import group_id
from agent.api.server import ApiServer
from agent.auditlog import AuditLog
from agent.config import layers
from agent.config.boot import Boot, boot
from agent.config.load import read_text
from agent.control import AgentControl, settle, status_line
from agent.core import Core
from agent.dataplane.attach import interface_index
from agent.dataplane.driver import driver_name
from agent.dataplane.program import require_root
from agent.discovery import run as discovery
from agent.errors import ConfigError, SteelyardError
from agent.fleetcontrol import saved_of, with_saved
from agent.garbage import exempt_and_enable, keep_collecting
from agent.hostfacts import check_accounts, check_memory
from agent.journal import Journal
from agent.lock import InstanceLocks
from agent.logs import get_logger, log_listener
from agent.metrics import collector
from agent.metrics.observer import AgentFacts
from agent.model import Config, KernelHeaders
from agent.notify import Notifier, Signals, catch_signals, feed_watchdog
from agent.page.server import PageServer
from agent.state.sources import SourceState

log = get_logger()

_READY, _STOPPING = "ready", "stopping"  # events that show the next agent how this one ended
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES, _SPARE_BYTES = 1 << 20, 16 << 20
_LOOK_S = 1.0  # interval of the checks of our files in /run


async def run(path: Path, host_headers: bool = False) -> None:
    """Balance as the file says until SIGTERM or SIGINT; SIGHUP reloads.

    ``host_headers`` overrides the configuration's ``kernel_headers``.

    The data plane goes on unchanged afterwards. Raises SteelyardError if the agent cannot start;
    nothing was changed then.
    """
    give_memory_back()
    signals = catch_signals()  # first, so that a signal during the start takes effect after it
    require_root()
    config = boot(path).loaded.config
    check_host(config)
    check_accounts(config, _readable(path), str(path))
    locks = InstanceLocks(config.name, *config.interfaces)
    try:
        await _run_locked(path, host_headers, signals, locks)
    finally:
        locks.release()


def give_memory_back() -> None:
    """Have the C library return every block of 1 MB and more to the kernel when it is freed.

    glibc begins with a lower limit, but raises it to the size of whatever is freed, up to 32 MB
    (mallopt(3), M_MMAP_THRESHOLD). From then on, large blocks lie between small ones that keep
    their memory. A lower limit than 1 MB returns no more, and costs an edit twice the page faults;
    so would a heap without spare memory at its end. Other C libraries have no ``mallopt``.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)


async def _run_locked(
    path: Path, host_headers: bool, signals: Signals, locks: InstanceLocks
) -> None:
    begun = boot(path)
    journal = Journal(begun.loaded.config.state_dir, begun.loaded.config.name)
    journal.load()
    before = journal.last(_READY, _STOPPING)
    with log_listener(journal.take):
        try:
            if before is not None and before.event == _READY:
                log.warning("the agent before this one was killed, or broke off")
            await _run_logged(path, begun, host_headers, signals, locks, journal)
        finally:
            journal.write()


async def _run_logged(
    path: Path,
    begun: Boot,
    host_headers: bool,
    signals: Signals,
    locks: InstanceLocks,
    journal: Journal,
) -> None:
    store, loaded = begun.store, begun.loaded
    saved = saved_of(loaded.config)
    if saved is not None:
        config = with_saved(loaded.config, saved)
        loaded = replace(loaded, config=config, file_config=config, changes=())
    facts = AgentFacts(
        version=__version__,
        name=loaded.config.name,
        pid=os.getpid(),
        started=time.time(),
        config_path=str(path),
        driver=driver_name(loaded.config.interface),
        config_problem=loaded.file_problem or loaded.problem,
        changes_since_file=len(loaded.changes),
    )
    config = loaded.config
    if host_headers:
        config = replace(config, kernel_headers=KernelHeaders.HOST)
    kept = discovery.read(discovery.path_of(config.state_dir, config.name))
    config, sources = _with_targets(config, kept)
    core = Core(config)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    audit = AuditLog(config.state_dir, config.name, lambda: core.config.audit_required)
    core.guarding.recording = audit.inside
    control = AgentControl(
        core, path, loaded, store, facts, notifier, journal, sources, audit, saved
    )
    server = ApiServer(
        control,
        core.config.socket,
        core.config.socket_group,
        core.config.metrics_listen,
        metrics=collector.render,
        audit=audit,
    )
    page = PageServer(control, core.config.status_page)
    server.listen()  # before anything is changed, because it may fail
    try:
        await core.load()
        core.pair.audit_head = lambda: str(audit.head)
        audit.peers = core.pair.audit_heads
        await audit.started(version=__version__, configuration=loaded.file_digest, pid=os.getpid())
        await settle(store, loaded)
        await _serve(core, control, server, page, notifier, signals, locks, journal, audit)
    finally:
        await page.stop()
        await server.stop()
        core.dataplane.undo_load()


def _with_targets(
    config: Config, sources: Mapping[str, SourceState]
) -> tuple[Config, Mapping[str, SourceState]]:
    """Return what runs with the targets that sources named before the agent started, and these.

    If they do not fit the configuration any more, it starts without them: sources are asked again.
    """
    composed = layers.compose(config, discovery.found_in(sources)).config
    try:
        layers.check(config, composed)
    except SteelyardError as error:
        log.error("the agent starts without discovered backends", problem=str(error))
        return config, {}
    return composed, sources


async def _serve(
    core: Core,
    control: AgentControl,
    server: ApiServer,
    page: PageServer,
    notifier: Notifier,
    signals: Signals,
    locks: InstanceLocks,
    journal: Journal,
    audit: AuditLog,
) -> None:
    stop = signals.stop
    async with asyncio.TaskGroup() as group:
        work = core.tasks() | {
            "watchdog": feed_watchdog(notifier),
            "unsaved": control.keep_saved(),
            "files": _keep_files(server, locks),
            "journal": journal.keep(),
            "audit log": audit.keep(),
            "garbage": keep_collecting(),
        }
        running = [group.create_task(coroutine, name=name) for name, coroutine in work.items()]
        try:
            await _unless(stop, core.start())
            exempt_and_enable()
            if not stop.is_set():
                await server.start()
                later = control.tasks() | {
                    "status page": page.keep(),
                    "reload": _reload_on(signals.hangup, control),
                }
                running += [group.create_task(each, name=name) for name, each in later.items()]
                notifier.ready(status_line(core.now.situation))
                _log_ready(core)
            await stop.wait()
            notifier.stopping("the data plane goes on")
            log.info(_STOPPING, why="it was told to; the data plane goes on")
            await core.say_goodbye()
        finally:
            await server.stop()
            for task in running:
                task.cancel()
            if control.fleet is not None:
                await control.fleet.member.close()


async def _keep_files(server: ApiServer, locks: InstanceLocks) -> None:
    """Create the socket and the locks again whenever they are removed, for ever."""
    logged = ""
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            for path in locks.put_back():
                log.warning("a lock was removed by somebody else, and is put back", path=path)
            await server.put_back()
            logged = ""
        except (SteelyardError, OSError) as error:
            if str(error) != logged:
                log.error("what was removed cannot be put back yet", problem=str(error))
            logged = str(error)


def check_host(config: Config) -> None:
    """Raise SteelyardError if this host lacks an interface, the memory or the group configured."""
    for interface in config.interfaces:
        interface_index(interface)
    check_memory(config)
    if config.socket_group is not None:
        group_id(config.socket_group)


def _readable(path: Path) -> str:
    """Return the text of the file; empty if it cannot be read, and an older one is used."""
    try:
        return read_text(path)
    except ConfigError:
        return ""


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Run ``work`` until it ends; once ``stop`` is set, cancel it."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


async def _reload_on(hangup: asyncio.Event, control: AgentControl) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await control.reload()
        except (SteelyardError, OSError):
            continue  # logged by the control, and shown by status
        except Exception as error:  # noqa: BLE001 (this task's root, logged there)
            control.met_defect(error)


def _log_ready(core: Core) -> None:
    program = core.dataplane.program
    log.info(
        _READY,
        name=core.config.name,
        interface=core.config.interface,
        services=len(core.config.services),
        features=",".join(core.dataplane.features.names),
        compile_ms=round(program.compile_s * 1000),
        program=program.origin,
    )
