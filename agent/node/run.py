"""Wires the node agent together and runs it until SIGTERM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.node import amd, page
from agent.node.agentcheck import AgentCheck
from agent.node.host import Host
from agent.node.http import Pages
from agent.node.nvml import Nvml
from agent.node.reading import GpuReading, HostReading, NodeReading, merged
from agent.node.sampler import Sampler
from agent.node.settings import Check, Settings
from agent.node.verdict import ServerState, Verdict, mean_clock_shares, verdict, worth_logging
from agent.notify import Notifier, catch_stop, work_until

log = get_logger()

_SMOOTH_S = 10.0  # clocks are averaged over this time, as throttling comes and goes in a second
_MOST_KEPT = 100  # readings


class Node:
    """The sources of one host, each read by a thread of its own."""

    def __init__(self, gpus: Sequence[Sampler[GpuReading]], host: Sampler[HostReading]) -> None:
        self._gpus = gpus
        self._host = host

    def start(self) -> None:
        """Start reading."""
        self._host.start()
        for sampler in self._gpus:
            sampler.start()

    def stop(self) -> None:
        """Stop reading."""
        self._host.stop()
        for sampler in self._gpus:
            sampler.stop()

    async def host_tried(self) -> None:
        """Wait until the host was read once, or that has failed.

        This does not wait for the GPUs, because their driver may hang.
        """
        await asyncio.to_thread(self._host.wait_tried)

    def now(self) -> NodeReading:
        """Return what is known at this moment."""
        shares: dict[str, float] = {}
        for sampler in self._gpus:
            shares |= mean_clock_shares(sampler.readings)
        return NodeReading(
            gpus=merged(sampler.last for sampler in self._gpus),
            gpu_age_s=max(sampler.age_s for sampler in self._gpus),
            clock_shares=shares,
            host=self._host.last,
        )


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ListenError when it cannot."""
    stop = catch_stop()
    node = _node(settings.interval_s)
    node.start()
    try:
        await serve(settings, node, stop, Notifier.from_environment(os.environ, os.getpid()))
    finally:
        node.stop()


async def serve(settings: Settings, node: Node, stop: asyncio.Event, notifier: Notifier) -> None:
    """Answer on every port until ``stop`` is set."""
    pages = Pages(
        lambda engine: page.render(node.now(), engine),
        page.CONTENT_TYPE,
        lambda engine: _health(verdict(node.now(), engine)),
    )
    checks = [AgentCheck(_line(node, check)) for check in settings.checks]
    try:
        port = await pages.start(settings.host, settings.port)
        ports = [
            await server.start(settings.host, check.port)
            for server, check in zip(checks, settings.checks, strict=True)
        ]
        await node.host_tried()  # once READY is sent, the page must have the host on it
        log.info("ready", host=settings.host, metrics=port, agent_checks=ports)
        report = _report(node, settings.interval_s, notifier)
        await work_until(stop, notifier, {"report": report})
    finally:
        for server in checks:
            await server.stop()
        await pages.stop()


def _node(interval_s: float) -> Node:
    keep = max(1, min(_MOST_KEPT, round(_SMOOTH_S / interval_s)))
    gpus = [Sampler[GpuReading]("nvidia", Nvml().read, interval_s, keep)]
    binding = amd.library()
    if binding is not None:
        gpus.append(Sampler[GpuReading]("amd", amd.Amd(binding).read, interval_s, keep))
    return Node(gpus, Sampler[HostReading]("host", Host().read, interval_s))


def _line(node: Node, check: Check) -> Callable[[], str]:
    return lambda: verdict(node.now(), check.gpus).line


def _health(decided: Verdict) -> tuple[bool, str]:
    """Return whether this host should get work, and why."""
    return decided.word is not ServerState.DOWN and decided.percent != 0, decided.line.strip()


async def _report(node: Node, interval_s: float, notifier: Notifier) -> None:
    """Log each change of the verdict on the whole host, and report it to systemd as the status."""
    before: Verdict | None = None
    while True:
        reading = node.now()
        if reading.gpus is not None and reading.gpus.replaced:
            raise SteelyardError(
                "another NVIDIA driver was loaded, which this process cannot talk to",
                remedy="start it again; systemd does",
            )
        decided = verdict(reading)
        if before is None or worth_logging(before, decided):
            old = None if before is None else before.line.strip()
            log.info("verdict", old=old, new=decided.line.strip())
            notifier.status(decided.line)
            before = decided
        await asyncio.sleep(interval_s)
