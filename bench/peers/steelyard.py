"""Steelyard in each of its ways to forward, with the lab's configuration and the real agent."""

from __future__ import annotations

import psutil
import yaml

from agent.model import Forward, Hook, Scheduler
from bench.peers.contender import BACKENDS, LAB_NAME, SHORT_TARGET_US, Contender, Running
from bench.peers.wiring import Wired
from lbctl.lab import build, processes, topology
from lbctl.lab.topology import Lab


class Steelyard(Contender):
    """Native XDP, the default scheduler and tables."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        lab, balancer = wired.lab, wired.balancer
        build.prepare_paths(lab)
        document = topology.agent_document(lab, balancer)
        del document["tables"]  # the lab's are small; these are the default's
        path = lab.config_path(balancer)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        command = ["lb-agent", "run", "--config", str(path)]
        program = processes.program("lb-agent", "agent.main")
        pid = wired.start(balancer, balancer.name, [*program, *command[1:]])
        build.await_backends(lab, balancer, lab.backends)
        family = (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
        return Running(control=family, command=" ".join(command), configuration=path.read_text())


def contenders() -> list[Contender]:
    """One contender per way to forward."""
    return [
        Steelyard(
            f"steelyard {forward.value}",
            Lab(
                LAB_NAME,
                backends=BACKENDS,
                forward=forward,
                scheduler=Scheduler.LEAST_LOAD,
                hook=Hook.NATIVE,
            ),
            both_ways=forward.is_nat,
            by_xdp=True,
            target_us=SHORT_TARGET_US,
        )
        for forward in Forward
    ]
