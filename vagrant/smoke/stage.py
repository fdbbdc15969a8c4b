"""Owns what the rows act on: the machines, what their balancers say, and what a client finds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from vagrant.smoke import balancers, bounds, load
from vagrant.smoke.balancers import Service, View
from vagrant.smoke.bounds import Pace
from vagrant.smoke.children import VagrantError
from vagrant.smoke.load import Load
from vagrant.smoke.machines import Machines, wait

EMULATED = "qemu"  # in the words of systemd-detect-virt
UNITS = ("lb-agent", "lb-agent-failover")
_JOURNAL = ("journalctl", "--no-pager", "--output=short-precise", "--lines=5000")
_NETWORK = ("sh", "-c", "ip -d addr; ip route; ip -6 route; ip rule; ip neigh")


class Stage:
    """The machines in use."""

    def __init__(self, machines: Machines, progress: Callable[[str], None]) -> None:
        self.machines = machines
        self.progress = progress
        self._virtualization = ""
        self._services: tuple[Service, ...] = ()
        self._master = ""

    @property
    def virtualization(self) -> str:
        """What the machines say that they are: qemu, if their processors are software."""
        if not self._virtualization:
            self._virtualization = self.run(self.machines.client, "systemd-detect-virt").strip()
        return self._virtualization

    @property
    def pace(self) -> Pace:
        """How much load they bear."""
        return bounds.EMULATED if self.virtualization == EMULATED else bounds.REAL

    @property
    def services(self) -> tuple[Service, ...]:
        """What is balanced; known once it is settled."""
        return self._services

    @property
    def targets(self) -> tuple[str, ...]:
        """Every service, as a client finds it."""
        return tuple(service.target for service in self._services)

    @property
    def master(self) -> str:
        """The balancer that is master when nothing is wrong."""
        return self._master

    @property
    def others(self) -> tuple[str, ...]:
        """The balancers that are backup when nothing is wrong."""
        return tuple(name for name in self.machines.balancers if name != self._master)

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[Load]:
        """Load on every service while the block runs."""
        with load.running(self.machines, name, self.targets, self.pace) as running:
            yield running

    def run(self, machine: str, *words: str, timeout_s: float = bounds.COMMAND_S) -> str:
        """What a command wrote in a machine, as root."""
        return self.machines.ssh.run(machine, *words, timeout_s=timeout_s)

    def view(self, balancer: str) -> View | None:
        """What a balancer says of itself; None: it does not."""
        found = self.machines.ssh.try_run(balancer, *balancers.QUESTION)
        if found is None:
            return None
        with contextlib.suppress(ValueError):
            return balancers.parse(found)
        return None

    def lacking(self) -> str | None:
        """What is not yet as it should be when nothing is wrong."""
        views = {name: self.view(name) for name in self.machines.balancers}
        why = balancers.lacking(views)
        known = {name: view for name, view in views.items() if view is not None}
        if why is None:
            self._master = balancers.preferred(known)
            self._services = known[self._master].services
        return why

    def settle(self) -> None:
        """Wait until every backend is up, roles are by priority and every VIP answers."""
        for what, lacking in (
            ("the balancers are settled", self.lacking),
            ("every service answers the client", self._silent),
        ):
            wait(what, lacking, bounds.SETTLE_S, self.progress)

    def await_settled(self, running: Load) -> None:
        """The same under load, which tells by itself whether the client is answered."""
        running.wait("the balancers are settled", self.lacking)

    def await_role(self, balancer: str, role: str, running: Load) -> None:
        """Wait until a balancer has a role for all VIPs, while the load goes on."""

        def lacking() -> str | None:
            view = self.view(balancer)
            found = view.role if view else "not answering"
            return None if found == role else f"it is {found}"

        running.wait(f"{balancer} is {role}", lacking)

    def await_backend(self, backend: str, *, up: bool, running: Load) -> None:
        """Wait until every balancer says that a backend is up, or that it is not."""

        def lacking() -> str | None:
            views = {name: self.view(name) for name in self.machines.balancers}
            known = [view for view in views.values() if view is not None]
            states = balancers.states_of(known, backend)
            if len(known) < len(views):
                return "an agent does not answer"
            wrong = states - {"up"} if up else states & {"up"}
            return f"it is {', '.join(sorted(states))}" if wrong else None

        running.wait(f"{backend} is {'up' if up else 'out of use'}", lacking)

    def first_answer_s(self, backend: str, since_s: float, running: Load) -> float | None:
        """Wait until a backend answers a request begun since then; when; None: it does not."""

        def found() -> float | None:
            ends = [
                request.at_s
                for request in running.requests(since_s)
                if request.backend == backend and not request.failed
            ]
            return min(ends, default=None)

        with contextlib.suppress(VagrantError):
            running.wait("", lambda: "none" if found() is None else None, bounds.ENOUGH_S)
        return found()

    def lbctl(self, balancer: str, *words: str) -> str:
        """Run lbctl there."""
        return self.run(balancer, "lbctl", *words)

    def findings(self, balancer: str) -> list[dict[str, Any]]:
        """What `lbctl doctor` finds there."""
        # Its exit code only repeats that there is a problem.
        found = self.run(balancer, "sh", "-c", "lbctl -o json doctor || [ $? = 1 ]")
        findings: list[dict[str, Any]] = json.loads(found)["findings"]
        return findings

    def hook_mode(self, balancer: str, interface: str) -> str:
        """How the kernel says that a program is attached to an interface."""
        (link,) = json.loads(self.run(balancer, "ip", "-json", "link", "show", "dev", interface))
        modes = {1: "native", 2: "generic", 3: "offloaded"}
        return modes.get(link.get("xdp", {}).get("mode"), "none")

    def memory_mib(self, machine: str) -> int:
        """The memory that a machine has."""
        found = self.run(machine, "sed", "-n", "s/^MemTotal: *//p", "/proc/meminfo")
        return int(found.split()[0]) // 1024

    def save_journals(self, row: str) -> str:
        """Keep what all machines have to say, for a row that failed; where it is."""
        folder = self.machines.scratch / row
        folder.mkdir(parents=True, exist_ok=True)
        for name, what, words in (
            *((name, "journal", _JOURNAL) for name in self.machines.names),
            *((name, "network", _NETWORK) for name in self.machines.names),
            *((name, "agent.json", balancers.QUESTION) for name in self.machines.balancers),
        ):
            found = self.machines.ssh.try_run(name, *words, timeout_s=bounds.POWER_S)
            (folder / f"{name}.{what}").write_text(found or "it could not be reached\n")
        return str(folder)

    def _silent(self) -> str | None:
        limits = ("--silent", "--globoff", "--max-time", f"{bounds.CONNECT_S}")
        said = self.machines.ssh.try_run(
            self.machines.client,
            *("curl", *limits, "--write-out", "%{http_code} %{url}\\n"),
            *(w for t in self.targets for w in ("--output", "/dev/null", f"http://{t}/")),
        )
        if said is None:
            return "not each of them"
        wrong = [line for line in said.splitlines() if not line.startswith("200 ")]
        return ", ".join(wrong) or None
