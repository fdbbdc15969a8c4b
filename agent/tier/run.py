"""Keeps a tier's HAProxy as its file, certificates and keys say, and shows how it is.

Nothing that is wrong reaches HAProxy: the last good state goes on, and the problem is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from agent import guarded
from agent.api.listen import UnixListener, listen_unix
from agent.errors import ConfigError, SteelyardError
from agent.files import is_young, stamp, write_atomically
from agent.humanise import endpoint
from agent.logs import get_logger
from agent.notify import Notifier, catch_signals, work_until
from agent.tier import certificates, keys, render, traffic
from agent.tier.certificates import Certificate
from agent.tier.haproxy import (
    Files,
    Proxy,
    ProxyError,
    check,
    check_descriptors,
    sources_problem,
)
from agent.tier.settings import Tier, engines_of, load, proxies_of

log = get_logger()

LOOK_S = 2.0  # between looks at the files and at HAProxy
WRITTEN_S = 1.0  # a file that was not written for so long is whole
MOST_WAITS = 5  # looks to wait for a file that is always being written
STOP_S = 5.0  # for open requests, when it was told to stop together with HAProxy


@dataclass(frozen=True, slots=True)
class Wanted:
    """What HAProxy is to serve. ``written``: what tells when other files were written anew."""

    config: str
    keeps_sessions: bool
    certificates: Mapping[str, Certificate]
    maps: Mapping[str, Mapping[str, str]]
    written: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """All that `Wanted` is made of, by its stamps, and what is wrong with `affinity.sources`.

    ``files``: the keys, the lists of proxies, and the CA and revocation list for
    client certificates. ``hour``: certificates are looked at each hour, as they expire.
    """

    tier: Tier
    certificates: tuple[object, ...]
    files: tuple[tuple[Path, object], ...]
    hour: int
    sources: str


class Supervisor:
    """One tier. ``look`` brings HAProxy to what is wanted, and reads its counters."""

    def __init__(self, path: Path, starts: bool) -> None:
        self.path = path
        self.starts = starts
        self.tier = load(path)
        self.files = Files(self.tier.folder)
        self.proxy = Proxy(self.files)
        self.seen = traffic.Seen()
        self.problems: tuple[str, ...] = ()
        self.current: Wanted | None = None
        # What was written when all was taken over, and what was wrong with it.
        self._taken: tuple[Written, tuple[str, ...]] | None = None
        self._waits = 0  # looks since then at which a file was just being written
        # What files said when they were last right, and the setting that named them.
        self._right: dict[str, tuple[object, Any]] = {}
        self._lock = asyncio.Lock()
        self._said: tuple[str, ...] = ()

    async def reload(self) -> None:
        """Read the tier's file again. Raises ConfigError, and then nothing has changed."""
        tier = await asyncio.to_thread(load, self.path)
        if tier.folder != self.tier.folder or tier.metrics != self.tier.metrics:
            raise SteelyardError(
                "`folder` and `metrics` can only change with a restart", where=str(self.path),
                remedy="restart lb-agent tier",
            )  # fmt: skip
        async with self._lock:
            before, self.tier = self.tier, tier
            self._taken = None  # who asks does not wait until a file has been written
            try:
                await self._bring()
            except SteelyardError:
                self.tier = before
                raise
        log.info("reloaded", file=str(self.path))

    async def look(self) -> None:
        """Bring HAProxy to what is wanted. What is wrong is logged once, and shown."""
        async with self._lock:
            try:
                self.problems = await self._bring()
            except SteelyardError as error:
                self.problems = (_on_one_line(error),)
            await self._count()
        for each in self.problems:
            if each not in self._said:
                log.warning("the tier is not as it should be", problem=each)
        self._said = self.problems
        self.seen.problems = len(self.problems)

    async def _bring(self) -> tuple[str, ...]:
        """Bring HAProxy to what is wanted, and return what is wrong with the rest.

        Raises SteelyardError; the state of before goes on, then.
        """
        try:
            return await self._brought()
        except OSError as error:  # such as a full disk
            raise SteelyardError(
                f"a file cannot be written: {error.strerror or error}",
                where=str(error.filename or self.files.folder),
                remedy="make room there; it is tried again every few seconds",
            ) from error

    async def _brought(self) -> tuple[str, ...]:
        runs = await self.proxy.runs()
        # Thousands of certificates and keys take seconds to read: they are read when they change.
        written = await asyncio.to_thread(self._written)
        if runs and self._taken is not None:
            before, problems = self._taken
            if written == before:
                return problems
            news = {path for path, _ in set(written.files) - set(before.files)}
            if self._waits < MOST_WAITS and any(is_young(path, WRITTEN_S) for path in news):
                self._waits += 1
                return problems
        self._taken, self._waits = None, 0
        found = await asyncio.to_thread(certificates.read, self.tier.certificates, time.time())
        maps, wrong = await asyncio.to_thread(self._maps)
        wanted = await asyncio.to_thread(self._wanted, found, maps, not written.sources)
        current = self.current
        if current is None or not runs or _needs_worker(current, wanted):
            await self._renew(wanted, runs)
        elif current != wanted:
            await self._adjust(current, wanted)
        self.current = wanted
        self.seen.ends_s = {name: each.end_s for name, each in wanted.certificates.items()}
        problems = (*found.problems, *filter(None, (written.sources, *wrong)))
        self._taken = (written, problems)
        return problems

    def _written(self) -> Written:
        """Return what tells whether there is anything to do."""
        proxies = self.tier.behind.files if self.tier.behind else ()
        others = (self.tier.keys, *proxies, *self._authorities())
        stamps = tuple((each, stamp(each)) for each in others if each is not None)
        folder = certificates.written(self.tier.certificates)
        affinity = self.tier.affinity
        absent = sources_problem(affinity.sources) if affinity else ""
        return Written(self.tier, folder, stamps, int(time.time() // 3600), absent)

    def _authorities(self) -> tuple[Path | None, ...]:
        asked = self.tier.client_certificates
        return () if asked is None else (asked.ca_file, asked.crl_file)

    def _maps(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """Return the maps of the keys and the proxies, and what is wrong with their files."""
        tier, behind = self.tier, self.tier.behind
        known, no_keys = self._last_right("keys", tier.keys, keys.read)
        proxies, no_proxies = self._last_right("proxies", behind, proxies_of)
        return render.maps(known, proxies), [no_keys, no_proxies]

    def _last_right[S, T](
        self, name: str, setting: S | None, read: Callable[[S], T]
    ) -> tuple[T | None, str]:
        """Return what the files of a setting say, and what is wrong with them.

        If something is, it is what they said before; so everything else can still change.
        """
        if setting is None:
            return None, ""
        try:
            value = read(setting)
        except ConfigError as error:
            of, before = self._right.get(name, (None, None))
            if of != setting:
                raise
            return before, _on_one_line(error)
        self._right[name] = (setting, value)
        return value, ""

    def _wanted(
        self,
        found: certificates.Found,
        maps: Mapping[str, Mapping[str, str]],
        keeps_sessions: bool,
    ) -> Wanted:
        tier = self.tier
        served = {each.name: each for each in certificates.kept(found, self.files.certificates)}
        if not served or (tier.default_certificate or next(iter(served))) not in served:
            raise SteelyardError(
                f"there is no certificate {tier.default_certificate or 'that can be served'}",
                where=str(tier.certificates),
                remedy="; ".join(found.problems) or "put the certificate and its key there",
            )
        return Wanted(
            render.rendered(tier, tier.folder, keeps_sessions=keeps_sessions),
            keeps_sessions,
            served,
            maps,
            tuple(stamp(each) for each in self._authorities() if each is not None),
        )

    async def _renew(self, wanted: Wanted, runs: bool) -> None:
        """Let a new worker, or HAProxy from nothing, serve what is wanted."""
        await asyncio.to_thread(self._write, wanted)
        await check(self.files, wanted.config)
        good = self.files.config.read_text() if self.files.config.exists() else wanted.config
        await asyncio.to_thread(write_atomically, self.files.config, wanted.config)
        if runs:
            await self._count()
            try:
                await self.proxy.reload()
            except ProxyError:  # such as for a port that another program has
                await asyncio.to_thread(write_atomically, self.files.config, good)
                raise
        elif self.starts:
            check_descriptors(self.tier.max_connections)
            await self.proxy.start()
        else:
            raise ProxyError(
                "HAProxy is not running", where=str(self.files.master),
                remedy="systemctl start lb-agent-tier-proxy",
            )  # fmt: skip
        self.seen.reloads += 1
        log.info("a new worker serves", certificates=len(wanted.certificates))

    def _write(self, wanted: Wanted) -> None:
        """Write what the configuration names."""
        self.files.make()
        for one in wanted.certificates.values():
            _write_private(self.files.of_certificate(one.name), one.pem)
        for old in self.files.certificates.iterdir():
            if old.name.removesuffix(".pem") not in wanted.certificates:
                old.unlink()
        for name, entries in wanted.maps.items():
            write_atomically(self.files.of_map(name), render.map_text(entries))

    async def _adjust(self, before: Wanted, wanted: Wanted) -> None:
        """Exchange certificates and maps in the worker that runs."""
        try:
            for name, one in wanted.certificates.items():
                if one.pem != before.certificates[name].pem:
                    path = self.files.of_certificate(name)
                    await self.proxy.exchange(path, one.pem)
                    self.seen.exchanges += 1
                    log.info("a certificate was exchanged", certificate=name)
            for name, entries in wanted.maps.items():
                if entries != before.maps[name]:
                    await self.proxy.fill(self.files.of_map(name), entries)
                    log.info("a map was exchanged", what=name, entries=len(entries))
        except ProxyError as error:
            log.warning("an exchange failed; a new worker does it", problem=str(error))
            await self._renew(wanted, True)
            return
        await asyncio.to_thread(self._write, wanted)

    async def _count(self) -> None:
        try:
            rows = await self.proxy.counters()
        except ProxyError:
            self.seen.reading = None
            return
        self.seen.reading = traffic.read(rows, engines_of(self.tier))
        self.seen.leaving = await self.proxy.leaving()
        self.seen.totals.add(self.seen.reading.counts)

    def summary(self) -> dict[str, Any]:
        """Return what the status of the balancer on this host shows, as of the last look."""
        reading, totals = self.seen.reading, self.seen.totals.values()
        load = reading and {
            "connections": reading.connections + sum(self.seen.leaving),
            "current": sum(each.current for each in reading.engines),
            "queued": sum(each.queued for each in reading.engines),
            "requests_total": sum(_of(totals, "answers").values()),
            "refused_total": sum(_of(totals, "refused").values()),
            "failed_total": sum(_of(totals, "failed").values()),
        }
        return {"problems": list(self.problems), "load": load}

    async def status(self) -> dict[str, Any]:
        """Return what `lbctl tier` shows."""
        async with self._lock:
            await self._count()
        tier, reading = self.tier, self.seen.reading
        totals = self.seen.totals.values()
        try:
            usage = await self.proxy.usage()
        except ProxyError:
            usage = {}
        ends = self.current.certificates if self.current else {}
        return {
            "file": str(self.path),
            "listen": [endpoint(*end) for end in tier.listen],
            "haproxy": reading is not None,
            "problems": list(self.problems),
            "connections": reading.connections if reading else None,
            "leaving": {"workers": len(self.seen.leaving), "connections": sum(self.seen.leaving)},
            "engines": [
                {
                    "engines": each.name,
                    "current": each.current,
                    "queued": each.queued,
                    "requests_total": totals.get(("requests", each.name), 0),
                    "failed_total": totals.get(("failed", each.name), 0),
                }
                for each in (reading.engines if reading else ())
            ],
            "affinity": tier.affinity
            and {
                "by": tier.affinity.by.value,
                "sources": [str(each) for each in tier.affinity.sources],
                "kept": self.current is not None and self.current.keeps_sessions,
            },
            "answers_total": _of(totals, "answers"),
            "refused_total": _of(totals, "refused"),
            "handshakes_total": _of(totals, "handshakes"),
            "reloads_total": self.seen.reloads,
            "exchanges_total": self.seen.exchanges,
            "certificates": [
                {"name": name, "end": each.end_s} for name, each in sorted(ends.items())
            ],
            "keys_file": None if tier.keys is None else str(tier.keys),
            "limits": {limit: getattr(tier.limits, limit) for limit in keys.LIMITS},
            "usage": usage,
        }


def _on_one_line(error: SteelyardError) -> str:
    return str(error).replace("\n  remedy", "; remedy")


def _needs_worker(before: Wanted, wanted: Wanted) -> bool:
    """Return whether a change needs a new worker; certificates and keys are exchanged without."""
    return (
        before.config != wanted.config
        or before.written != wanted.written
        or before.certificates.keys() != wanted.certificates.keys()
        or before.maps.keys() != wanted.maps.keys()
    )


def _write_private(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    write_atomically(path, data.decode("ascii"))


def _of(totals: Mapping[traffic.Series, int], name: str) -> dict[str, int]:
    return {what: count for (of, what), count in sorted(totals.items()) if of == name}


class Pages:
    """The page for Prometheus, and the socket for `lbctl tier` and the agent."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(traffic.TierCollector(supervisor.seen))
        self._listening: guarded.Listening | None = None
        self._unix: UnixListener | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises ListenError."""
        end = self._supervisor.tier.metrics
        if end is not None:
            app = web.Application(client_max_size=1024)
            app.add_routes([web.get("/metrics", self._metrics)])
            self._listening = await guarded.listen(app, *end)
        self._unix = listen_unix(self._supervisor.files.control, None)
        app = web.Application(client_max_size=1024)
        app.add_routes(
            [
                web.get("/v1/summary", self._summary),
                web.get("/v1/tier", self._status),
                web.post("/v1/reload", self._reload),
            ]
        )
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.SockSite(self._runner, self._unix.sock).start()

    async def stop(self) -> None:
        """Stop, and let requests in progress end."""
        if self._listening is not None:
            await self._listening.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._unix is not None:
            self._unix.close()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _summary(self, _: web.Request) -> web.Response:
        return _json(self._supervisor.summary())

    async def _status(self, _: web.Request) -> web.Response:
        return _json(await self._supervisor.status())

    async def _reload(self, _: web.Request) -> web.Response:
        try:
            await self._supervisor.reload()
        except SteelyardError as error:
            problems = [_problem(each) for each in getattr(error, "problems", (error,))]
            return _json({"error": {**problems[0], "problems": problems}}, 400)
        await self._supervisor.look()
        return _json(await self._supervisor.status())


def _problem(error: SteelyardError) -> dict[str, str]:
    return {"message": error.message, "where": error.where, "remedy": error.remedy}


def _json(data: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=json.dumps(data).encode(), content_type="application/json"
    )


async def run(path: Path, starts: bool) -> None:
    """Serve until SIGTERM or SIGINT. ``starts``: start HAProxy, too, and end it."""
    signals = catch_signals()
    notifier = Notifier.from_environment(os.environ, os.getpid())
    supervisor = Supervisor(path, starts)
    supervisor.files.make()
    pages = Pages(supervisor)
    try:
        await pages.start()
        await supervisor.look()
        work = {"look": _keep(supervisor), "reload": _reloads(supervisor, signals.hangup, notifier)}
        await work_until(signals.stop, notifier, work)
    finally:
        await pages.stop()
        if starts:
            await supervisor.proxy.stop(STOP_S)


async def _keep(supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await supervisor.look()
        except Exception:  # the task's root: a defect here must not end the process
            log.exception("a look at the tier broke; it is tried again")


async def _reloads(supervisor: Supervisor, hangup: asyncio.Event, notifier: Notifier) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        notifier.reloading()
        try:
            await supervisor.reload()
        except SteelyardError as error:
            log.warning("the file was not taken over; all goes on as before", problem=str(error))
        finally:
            notifier.ready()
