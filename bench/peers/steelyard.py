"""Steelyard in each forwarding mode, with the lab's configuration and the real agent.

Also behind tc, which is what ``hook: auto`` takes on a veth: for answers that go past the balancer
and for answers through it.
"""

from __future__ import annotations

import psutil

from agent.model import Forward, Hook, Scheduler
from bench.peers.contender import BACKENDS, LAB_NAME, SHORT_TARGET_US, Contender, Running
from bench.peers.wiring import Wired
from lbctl.lab.topology import Lab

_MOMENT_S = 1.0


class Steelyard(Contender):
    """The default scheduler and tables."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        pid = wired.start_agent()
        children = psutil.Process(pid).children(recursive=True)
        # Some end at once, such as a compiler or nft, and the clock of one that has cannot be read.
        _, lasting = psutil.wait_procs(children, timeout=_MOMENT_S)
        family = (pid, *(child.pid for child in lasting))
        path = wired.lab.config_path(wired.balancer)
        command = f"lb-agent run --config {path}"
        return Running(control=family, command=command, configuration=path.read_text())


def contenders() -> list[Contender]:
    """Return one contender per forwarding mode, and some behind tc."""
    native = [(forward, Hook.NATIVE) for forward in Forward]
    return [
        Steelyard(
            f"steelyard {forward.value}" + (", tc" if hook is Hook.TC else ""),
            Lab(
                LAB_NAME,
                backends=BACKENDS,
                forward=forward,
                scheduler=Scheduler.LEAST_LOAD,
                hook=hook,
            ),
            both_ways=forward.is_nat,
            by_xdp=hook is Hook.NATIVE,
            target_us=SHORT_TARGET_US,
        )
        for forward, hook in (*native, (Forward.DSR, Hook.TC), (Forward.NAT, Hook.TC))
    ]
