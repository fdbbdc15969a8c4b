"""Owns the companion's process on a server.

It puts the VIPs on ``lo``, attaches the program, and serves a page for balancers and metrics for
Prometheus. What it has set up stays when it ends.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent import guarded
from agent.companion import page, program
from agent.companion.keys import Keys, read_keys
from agent.dataplane.helpers import attach_decap
from agent.dataplane.program import require_root
from agent.errors import ConfigError, NetworkError, SteelyardError
from agent.logs import get_logger
from agent.model import Address, Network
from agent.network.vips import Vips
from agent.notify import Notifier, catch_stop, work_until

log = get_logger()

TICK_S = 2.0
PROTO = 0x54  # IFA_PROTO of its addresses on `lo`; an agent that announces uses another (vips.py)
_SYSCTL = Path("/proc/sys/net/ipv4")
# The VIP is on `lo`, so no other interface may answer ARP for it (deploy/backend-setup.sh).
_QUIET = {"conf/all/arp_ignore": "1", "conf/all/arp_announce": "2", "conf/all/rp_filter": "2"}
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says. ``decap``: remove the outer header of packets of ``senders``."""

    interfaces: tuple[str, ...]
    vips: tuple[Address, ...]
    key_file: Path
    listen: tuple[str, int]
    decap: bool
    gue_port: int
    senders: tuple[Network, ...]


class Companion:
    """The companion of one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = read_keys(settings.key_file)
        self._vips = Vips("lo", PROTO)
        self.problem = ""
        self.program = program.Program(settings.vips)

    @property
    def status(self) -> page.Status:
        """The present status for balancers."""
        vips = tuple(str(vip) for vip in self._settings.vips)
        return page.Status(self._keys.names, vips, time.time(), self.problem)

    @property
    def keys(self) -> Keys:
        return self._keys

    async def set_up(self) -> None:
        """Set everything up; raises a SteelyardError if that is not possible."""
        for name, value in _QUIET.items():
            _write(_SYSCTL / name, value)
        if (_SYSCTL / "tcp_syncookies").read_text().strip() == "0":
            raise ConfigError(
                "the kernel takes no SYN cookies",
                where="net.ipv4.tcp_syncookies",
                remedy="`sysctl -w net.ipv4.tcp_syncookies=1`, which is Linux' default",
            )
        await self._vips.sync(frozenset(self._settings.vips))
        if self._settings.decap:
            where = self._settings
            for interface in where.interfaces:
                mode = attach_decap(interface, where.vips, where.gue_port, where.senders)
                log.info("decapsulating", interface=interface, mode=mode.value)
        self.program.take(self._keys)
        self.program.attach(self._settings.interfaces)

    async def keep(self) -> None:
        """Keep the keys and the time, the VIPs and the program as they should be."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.program.take(self._keys)  # first, to update the time even if reading fails
                self._renew_keys()
                await self._vips.sync(frozenset(self._settings.vips))
                if not self.program.is_attached(self._settings.interfaces):
                    self.program.attach(self._settings.interfaces)
                    log.warning("attached again")
                self._set_problem("")
            except (SteelyardError, OSError) as error:
                self._set_problem(str(error))

    def _renew_keys(self) -> None:
        fresh = read_keys(self._settings.key_file)
        if fresh != self._keys:
            self._keys = fresh
            self.program.take(fresh)
            log.info("the keys have changed", keys=", ".join(fresh.names))

    def _set_problem(self, problem: str) -> None:
        if problem != self.problem:
            if problem:
                log.error("not as it should be", problem=problem)
            else:
                log.info("as it should be again")
        self.problem = problem


def _write(path: Path, value: str) -> None:
    if path.read_text().strip() == value:
        return
    try:
        path.write_text(value)
    except OSError as error:
        raise NetworkError(
            f"cannot be set to {value}: {os.strerror(error.errno or 0)}",
            where=str(path),
            remedy="set it with sysctl, as in deploy/sysctl/backend.conf",
        ) from error


class _Metrics(Collector):
    """The companion's metrics."""

    def __init__(self, companion: Companion) -> None:
        self._companion = companion

    def collect(self) -> Iterator[Metric]:
        counts = self._companion.program.counts
        prefix = "steelyard_companion"
        for name, help_, value in (
            ("connections", "Connections made from SYN cookies.", counts.made),
            ("refused", "SYN cookies of ours for which the kernel refused a connection.",
             counts.refused),
            ("alone", "SYN cookies of ours for which no socket listened.",
             counts.alone),
        ):  # fmt: skip
            yield CounterMetricFamily(f"{prefix}_{name}", help_, value)
        well = GaugeMetricFamily(f"{prefix}_up", "1 while all is as it should be.")
        well.add_metric((), float(not self._companion.problem))
        yield well
        keys = GaugeMetricFamily(
            f"{prefix}_key_info", "1 for each key whose cookies are accepted.", labels=("key",)
        )
        for name in self._companion.keys.names:
            keys.add_metric((name,), 1.0)
        yield keys


async def run(settings: Settings) -> None:
    """Set up, and serve until SIGTERM or SIGINT."""
    require_root()
    companion = Companion(settings)
    stop = catch_stop()
    await companion.set_up()
    registry = CollectorRegistry()
    registry.register(_Metrics(companion))

    async def status(_: web.Request) -> web.Response:
        return web.Response(body=page.rendered(companion.status), content_type="application/json")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": _CONTENT_TYPE})

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get(page.PATH, status), web.get("/metrics", metrics)])
    listening = await guarded.listen(app, *settings.listen)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    names = ", ".join(companion.keys.names)
    log.info("ready", interfaces=settings.interfaces, port=listening.port, keys=names)
    try:
        await work_until(stop, notifier, {"keep": companion.keep()})
    finally:
        await listening.stop()


async def remove(settings: Settings) -> None:
    """Undo the setup, except for the kernel settings and the program that decapsulates."""
    require_root()
    found = program.remove(settings.interfaces)
    await Vips("lo", PROTO).sync(frozenset())
    log.info("removed" if found else "there was no program", interfaces=settings.interfaces)
