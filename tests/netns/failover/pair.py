"""A lab of two balancers for a test, with servers and load that stand a failover."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from agent.failover.times import HEARTBEAT_S
from agent.pair.handover import HELD_UP
from bench.peers import load
from lbctl.lab import build, documents, failover, netns, processes
from lbctl.lab.failover import BACKUP, MASTER
from lbctl.lab.topology import Lab, Node, Role
from tests import described
from tests.netns import peers
from tests.netns.failover import crowd
from tests.netns.failover.crowd import Crowd
from tests.netns.failover.rush import BEGUN, TIMEOUT_S
from tests.netns.site import Site, site, wait_until

RUSH_PORT = 9200
PREEMPT_DELAY = "300ms"  # so that tests are short


@dataclass
class Rushed:
    """What became of short connections; times are of the monotonic clock."""

    started: int = 0
    seconds: float = 0.0
    failed: tuple[tuple[float, float, str], ...] = ()  # when begun, when ended, and why
    late: tuple[tuple[float, float], ...] = ()  # when begun, when answered

    def failed_outside(self, start_s: float, end_s: float) -> list[tuple[float, float, str]]:
        """Those that ended before that time, or were begun after it."""
        return [one for one in self.failed if one[1] < start_s or one[0] >= end_s]


@dataclass
class Pair:
    """The lab and what befalls its balancers."""

    lab: Lab

    @property
    def first(self) -> Node:
        return self.lab.node("lb1")

    @property
    def second(self) -> Node:
        return self.lab.node("lb2")

    def at(self, balancer: Node) -> Site:
        return Site(self.lab, balancer.name)

    def roles(self) -> dict[str, str | None]:
        return {
            node.name: failover.summary(failover.roles(self.lab, node))
            for node in self.lab.nodes(Role.BALANCER)
        }

    def is_settled(self) -> bool:
        return self.roles() == {"lb1": MASTER, "lb2": BACKUP}

    def settle(self) -> None:
        """Have all as it was in the beginning, whatever a test that failed has left."""
        if None in self.roles().values():
            for balancer in (self.first, self.second):
                if processes.pid_of(self.lab.run_dir, failover.process_of(balancer)) is None:
                    build.revive(self.lab, balancer)
        wait_until(f"lb1 is master and lb2 backup: {self.roles()}", self.is_settled)
        for balancer in (self.first, self.second):
            build.await_backends(self.lab, balancer, self.lab.backends)

    def lbctl(self, balancer: Node, *words: str) -> str:
        """What ``lbctl`` says on a balancer; it has to succeed."""
        program = processes.program("lbctl", "lbctl.main")
        socket = str(self.lab.socket(balancer))
        done = self.at(balancer).run(balancer.name, *program, "--socket", socket, *words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return str(done.stdout + done.stderr)

    def hand_over(self, balancer: Node) -> None:
        """Have a balancer hand over.

        Where a host is too busy for it, the command refuses, and nothing has happened.
        """

        def is_done() -> bool:
            with contextlib.suppress(AssertionError):
                self.lbctl(balancer, "failover", "handover")
                return True
            return False

        wait_until(f"{balancer.name} hands over", is_done)

    def set_instances(self, **values: object) -> None:
        """Change all instances of both balancers."""
        for balancer in (self.first, self.second):
            document = self.at(balancer).config()
            for instance in document["failover"]["instances"]:
                instance |= values
            self.at(balancer).reload(document)

    def set_witness(self, on: bool) -> None:
        """Whether flow sync keeps a backup from taking over, on both balancers."""
        for balancer in (self.first, self.second):
            document = self.at(balancer).config()
            document["failover"]["sync"]["witness"] = on
            self.at(balancer).reload(document)

    def problems(self, balancer: Node) -> set[str]:
        """By kind, of all virtual routers of a balancer."""
        answer = self.at(balancer).get("/v1/failover")
        described.check_shape(("Failover",), answer)
        instances = answer["instances"]
        return {problem["kind"] for each in instances for problem in each["problems"]}

    def await_problems(self, *kinds: str) -> None:
        """Until both balancers name these, and nothing else."""
        for balancer in (self.first, self.second):
            seen: list[set[str]] = []

            def names_them(at: Node = balancer, seen: list[set[str]] = seen) -> bool:
                seen[:] = [self.problems(at)]
                return seen == [set(kinds)]

            try:
                wait_until(f"{balancer.name} names {kinds}", names_them)
            except AssertionError as error:
                error.add_note(f"at last it named {seen}, and the roles were {self.roles()}")
                raise

    def times_master(self, balancer: Node) -> int:
        """How often a balancer's virtual routers have become master since its process started."""
        instances = self.at(balancer).get("/v1/failover")["instances"]
        return sum(each["transitions_total"].get(MASTER, 0) for each in instances)

    def priorities(self, balancer: Node) -> set[int]:
        """The effective ones of a balancer."""
        found = self.at(balancer).get("/v1/failover")["instances"]
        return {instance["priority_effective"] for instance in found}

    def backends_up(self, balancer: Node) -> int:
        """How many a balancer finds well, of the services that it checks."""
        services = self.at(balancer).get("/v1/services")["services"]
        return sum(s["backends_up"] for s in services if s["name"] in ("web", "web6"))

    def known_flows(self, balancer: Node, service: str) -> int:
        """How many established flows of a service a balancer has."""
        return int(self.at(balancer).get("/v1/flows", service=service, limit="1")["matched"])

    def await_flows(self, balancer: Node, people: Crowd) -> None:
        """Until a balancer has those of a crowd."""
        for service, count in people.flows().items():
            wait_until(
                f"{balancer.name} knows {count} flows of {service}",
                lambda s=service, n=count: self.known_flows(balancer, s) >= n,  # type: ignore[misc]
            )

    @contextlib.contextmanager
    def rush(self, rate_per_s: int) -> Iterator[Rushed]:
        """Short connections while the block runs; afterwards it is known what became of them."""
        command = [*netns.entering(self.lab.node("client").namespace), sys.executable]
        command += ["-m", "tests.netns.failover.rush", "--rate", str(rate_per_s)]
        command += [f"{vip}:{RUSH_PORT}" for vip in self.lab.vips]
        environment = processes.environment(self.lab.run_dir)
        rushed = Rushed()
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, stdout=out, env=environment)
            try:
                # On a busy host it would be stopped before it knows what that means.
                wait_until("the rush has begun", lambda: os.fstat(out.fileno()).st_size)
                yield rushed
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=TIMEOUT_S + 30)
            out.seek(0)
            begun, found = out.read().splitlines()
            assert begun == BEGUN
            for key, value in json.loads(found).items():
                setattr(rushed, key, value)

    @contextlib.contextmanager
    def far(self, delay_s: float) -> Iterator[None]:
        """The client is so far away meanwhile: its packets to the VIPs come that much later."""
        client = self.lab.node("client")
        command = [*netns.entering(client.namespace), sys.executable]
        command += ["-m", "tests.netns.failover.far", "--delay", str(delay_s)]
        command += [client.links[0].device, *map(str, self.lab.vips)]
        environment = processes.environment(self.lab.run_dir)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline()
                yield
            finally:
                process.terminate()

    @contextlib.contextmanager
    def unnoticed(self, rate_per_s: int) -> Iterator[None]:
        """Short connections, none of which fails while the balancers hand over; unless an agent
        says itself that the host held it up, for longer than new flows are held back.
        """
        before = self._said(HELD_UP)
        with self.rush(rate_per_s) as rushed:
            yield
        assert rushed.started > 0
        if self._said(HELD_UP) == before:
            assert not rushed.failed, (rushed.failed[:3], self._last_words())

    def _logs(self) -> Iterator[str]:
        for balancer in (self.first, self.second):
            for name in (balancer.name, failover.process_of(balancer)):
                yield (self.lab.run_dir / f"{name}.log").read_text()

    def _said(self, words: str) -> int:
        return sum(log.count(words) for log in self._logs())

    def _last_words(self) -> str:
        return "\n\n".join("\n".join(log.splitlines()[-15:]) for log in self._logs())


@contextlib.contextmanager
def pair(**options: Any) -> Iterator[Pair]:
    """Build a lab with two balancers, and servers for crowds and rushes; remove it."""
    more = _with_more(documents.agent_document)
    with contextlib.ExitStack() as stack:
        with mock.patch.object(documents, "agent_document", more):
            here = stack.enter_context(site(balancers=2, **options))
        tool = load.compile_tool(here.lab.run_dir)
        for backend in here.lab.nodes(Role.BACKEND):
            command = [str(tool), "serve", str(RUSH_PORT)]
            processes.start(here.lab.run_dir, f"{backend.name}-rush", backend.namespace, command)
            wait_until(f"{backend.name} serves", functools.partial(_serves, here, backend))
        yield Pair(here.lab)


def _serves(here: Site, backend: Node) -> bool:
    return bool(here.run(backend.name, "ss", "-Hltn", f"sport = :{RUSH_PORT}").stdout)


def _with_more(make: Callable[[Lab, Node], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The lab's configuration from the start on: a change of it later takes its time."""

    def document(lab: Lab, balancer: Node) -> dict[str, Any]:
        made = make(lab, balancer)
        made["services"] += crowd.services(lab) + _rush_services(lab)
        for instance in made["failover"]["instances"]:
            instance["preempt_delay"] = PREEMPT_DELAY
        if lab.inside:
            v4, v6 = map(str, lab.inside)
            made["nat"] = {"sources_ipv4": [v4], "sources_ipv6": [v6]}
        return made

    return document


def _rush_services(lab: Lab) -> list[dict[str, Any]]:
    return [
        {
            "name": f"rush{vip.version}",
            "vip": str(vip),
            "port": RUSH_PORT,
            "scheduler": "round-robin",
            "health": {"type": "none"},
            "backends": [
                peers.backend_of(lab, node, vip.version) for node in lab.nodes(Role.BACKEND)
            ],
        }
        for vip in lab.vips
    ]


@contextlib.contextmanager
def deaf(here: Pair) -> Iterator[None]:
    """No advert gets from one balancer to the other meanwhile; all else does.

    It begins some heartbeats of flow sync later: until one has told the backup who is master now,
    nobody vouches for the master, and the backup rightly takes over.
    """
    time.sleep(4 * HEARTBEAT_S)
    ports = [link.port for node in (here.first, here.second) for link in node.links]
    hook = f"type filter hook ingress devices = {{ {', '.join(ports)} }} priority 0"
    rules = (hook, "ip protocol 112 drop", "ip6 nexthdr 112 drop")
    _nft(here, "\n".join(["table netdev deaf {", "chain adverts {", *rules, "}", "}"]))
    try:
        yield
    finally:
        _nft(here, "delete table netdev deaf")


def _nft(here: Pair, rules: str) -> None:
    command = [*netns.entering(here.lab.switch), "nft", "-f", "-"]
    done = subprocess.run(command, input=f"{rules}\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, (rules, done.stderr)
