"""Owns the network of one measurement: the lab's namespaces, cables and servers, and the cores.

The balancer has one core, for its processes and the kernel thread that polls its interface. The
other cores are for all else: the client, the servers, the bridge and what polls its port.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from agent.errors import SteelyardError
from bench.peers import accounting
from lbctl.lab import build, documents, netns, processes, topology
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Node, Role

_PATIENCE_S = 10.0


class PeersError(SteelyardError):
    """The comparison is not possible."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The CPUs of the balancer, and those of all else."""

    balancer: int
    others: frozenset[int]


def cores() -> Cores:
    """Give the balancer the last CPU; raises PeersError if there is only one."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise PeersError(
            "the comparison needs two CPUs",
            where="this machine",
            remedy="one is the balancer's alone: run it on a machine with two or more",
        )
    return Cores(available[-1], frozenset(available[:-1]))


@dataclass(frozen=True, slots=True)
class Wired:
    """A network with servers, but no balancer yet."""

    lab: Lab
    cores: Cores
    tool: Path = Path()  # the compiled load.c, if the load uses it

    @property
    def client(self) -> Node:
        return self.lab.nodes(Role.CLIENT)[0]

    @property
    def balancer(self) -> Node:
        return self.lab.nodes(Role.BALANCER)[0]

    @property
    def backends(self) -> tuple[Node, ...]:
        return self.lab.nodes(Role.BACKEND)

    @property
    def vip(self) -> str:
        return str(self.lab.vips[0])

    def file(self, name: str) -> Path:
        """Return the path of a file of this measurement; it is removed with the network."""
        return self.lab.run_dir / name

    def run(self, namespace: str, *command: str, text: str = "", timeout_s: float = 30.0) -> str:
        """Run a command in a namespace, not on the balancer's core; raises PeersError."""
        try:
            done = subprocess.run(
                [*netns.entering(namespace), *self._on(self.cores.others), *command],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                env=processes.environment(self.lab.run_dir),
            )
        except subprocess.TimeoutExpired as error:
            raise PeersError(
                f"`{' '.join(command)}` took longer than {timeout_s:.0f} s", where=namespace
            ) from error
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise PeersError(f"`{' '.join(command)}` failed: {said}", where=namespace)
        return done.stdout

    def start(self, node: Node, name: str, command: Sequence[str]) -> int:
        """Start a process on its node's cores, until the network is removed; return its pid."""
        where = {self.cores.balancer} if node.role is Role.BALANCER else self.cores.others
        started = processes.start(
            self.lab.run_dir, name, node.namespace, [*self._on(where), *command]
        )
        return started.pid

    def start_agent(self, services: Sequence[Mapping[str, object]] | None = None) -> int:
        """Start the agent with the lab's configuration, or with these services; return its pid."""
        lab, balancer = self.lab, self.balancer
        build.prepare_paths(lab)
        document = documents.agent_document(lab, balancer)
        del document["tables"]  # the lab's are small; use the default ones
        if services is not None:
            document["services"] = services
        path = lab.config_path(balancer)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        program = processes.program("lb-agent", "agent.main")
        pid = self.start(balancer, balancer.name, [*program, "run", "--config", str(path)])
        build.await_backends(lab, balancer, lab.backends)
        return pid

    def _on(self, cpus: set[int] | frozenset[int]) -> list[str]:
        return ["taskset", "--cpu-list", ",".join(map(str, sorted(cpus)))]

    def await_listening(
        self, name: str, node: Node | None = None, end: tuple[str, int] | None = None
    ) -> None:
        """Wait until this process listens, on the VIP unless another ``end`` is given; raises
        PeersError with the end of its log.
        """
        where = (node or self.balancer).namespace
        address, port = end or (self.vip, topology.PORT)
        deadline = time.monotonic() + _PATIENCE_S
        while f"{address}:{port} " not in self.run(where, "ss", "-Hltn"):
            if time.monotonic() > deadline:
                log = self.file(f"{name}.log").read_text(errors="replace")
                raise PeersError(
                    f"{name} does not listen: {' '.join(log.split()) or 'it says nothing'}",
                    where=where,
                )
            time.sleep(0.05)

    def take_vip(self) -> None:
        """Put the VIP on the balancer, which is needed where no agent announces it."""
        netns.ip([f"address add {self.vip}/32 dev {topology.NODE_INTERFACE}"], self._at_balancer)

    def forward(self) -> None:
        """Make the balancer's kernel route, without redirects for hosts of the same segment."""
        quiet = {
            f"ipv4/conf/{where}/send_redirects": "0" for where in ("all", topology.NODE_INTERFACE)
        }
        netns.write_sysctls(self._at_balancer, {"ipv4/ip_forward": "1", **quiet})

    @property
    def _at_balancer(self) -> str:
        return self.balancer.namespace

    def divide(self, by_xdp: bool) -> int:
        """Keep what the balancer's interface receives on its core, and the bridge off it.

        By default, a veth's receiver runs on the core of the sender. Returns the pid of the
        kernel thread that polls the balancer's interface.
        """
        port, interface = self.balancer.name, topology.NODE_INTERFACE
        if by_xdp:
            self._poll_in_thread(self.lab.switch, port, self.cores.others)
        else:
            # Without a thread: a veth is polled only if its sender has no TSO, which proxies have
            # on a network card. Receive packet steering moves the bridge's part of the work.
            mask = f"{sum(1 << cpu for cpu in self.cores.others):x}"
            self._set(self.lab.switch, f"/sys/class/net/{port}/queues/rx-0/rps_cpus", mask)
            # So that the balancer's end is polled; it receives frames of 1,500 bytes in any case.
            self.run(self.lab.switch, "ethtool", "-K", port, "tso", "off")
            # As on any network card. The merging is paid for by the balancer's core.
            offloads = ("tx", "on", "tso", "on", "gro", "on")
            self.run(self._at_balancer, "ethtool", "-K", interface, *offloads)
        return self._poll_in_thread(self._at_balancer, interface, frozenset({self.cores.balancer}))

    def _poll_in_thread(self, namespace: str, interface: str, cpus: frozenset[int]) -> int:
        before = accounting.polling_threads()
        self._set(namespace, f"/sys/class/net/{interface}/threaded", "1")
        prefix = f"napi/{interface}-"
        found = [
            pid
            for pid, name in accounting.polling_threads().items()
            if pid not in before and name.startswith(prefix)
        ]
        if len(found) != 1:
            raise PeersError(
                f"{len(found)} kernel threads began to poll {interface} instead of one",
                where=namespace,
                remedy="do not run two comparisons at one time",
            )
        os.sched_setaffinity(found[0], cpus)
        return found[0]

    def _set(self, namespace: str, path: str, value: str) -> None:
        # A namespace's /sys is visible only after a new mount, which `ip netns exec` makes.
        self.run(namespace, "ip", "netns", "exec", namespace, "sh", "-c", f"echo {value} >{path}")


def refuse_second(name: str) -> None:
    """Raise PeersError if a network of that name exists: another run's, or left by a killed one."""
    try:
        build.refuse_second(name)
    except LabError as error:
        raise PeersError(
            error.message,
            where=error.where,
            remedy="wait until the other run has ended; what a killed one left,"
            f" `{topology.lab_command(name)} down` removes",
        ) from error


@contextmanager
def wired(made: Wired, serve: Callable[[Wired], None]) -> Iterator[Wired]:
    """Build the network and let ``serve`` start its servers; remove it at the end of the block.

    Raises PeersError if there is one already.
    """
    lab = made.lab
    build.check_machine()
    refuse_second(lab.name)
    try:
        lab.run_dir.mkdir(parents=True)
        build.build_network(lab)
        serve(made)
        yield made
    finally:
        build.down(lab.name, _silent)


def _silent(_text: str) -> None:
    """Ignore what the lab reports of its steps."""
