"""Owns the readings of the host itself: processors, memory, network."""

from __future__ import annotations

import psutil

from agent.node.reading import HostReading, Interface

MOST_INTERFACES = 64  # a host of containers has thousands


class Host:
    """The host that this process runs on."""

    def __init__(self) -> None:
        self._started = False

    def read(self) -> HostReading:
        """Take a reading. CPU utilization is that since the last reading; the first has none."""
        share = psutil.cpu_percent(interval=None) / 100
        memory = psutil.virtual_memory()
        reading = HostReading(
            cpu_utilization=min(max(share, 0.0), 1.0) if self._started else None,
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            interfaces=_interfaces(),
        )
        self._started = True
        return reading


def _interfaces() -> tuple[Interface, ...]:
    """Return the interfaces with the most traffic, without the loopback."""
    found = [
        Interface(name, moved.bytes_recv, moved.bytes_sent)
        for name, moved in psutil.net_io_counters(pernic=True).items()
        if name != "lo"
    ]
    found.sort(key=lambda one: (-one.received_bytes - one.transmitted_bytes, one.name))
    return tuple(sorted(found[:MOST_INTERFACES], key=lambda one: one.name))
