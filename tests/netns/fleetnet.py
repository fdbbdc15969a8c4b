"""A fleet for tests: three balancers on one switch, and an etcd cluster that they share.

The namespace of the switch also has the servers' addresses, so that they answer ARP, and the
members of etcd. Nothing is checked and no client connects: the tests look at what is configured.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agent.api.client import ApiNotFoundError, Client
from agent.dataplane import abi, libbpf, pins
from agent.errors import SteelyardError
from agent.model import Etcd
from lbctl.environment import Environment
from lbctl.lab import netns, processes
from lbctl.main import cli
from tests.netns.etcdcluster import Cluster
from tests.netns.prompt.ledger import table
from tests.netns.site import wait_until

NETWORK = "10.9.0"
MEMBERS = tuple(f"{NETWORK}.{n}" for n in (251, 252, 253))
# Only lb3 translates to this address, so that only lb3 refuses it as a VIP.
OWN_OF_LB3 = f"{NETWORK}.203"
CHAT, EMBED = ip_address(f"{NETWORK}.100"), ip_address(f"{NETWORK}.101")
HOSTS = {"a": 11, "b": 12}  # the servers' places in the network
PREFIX = "/steelyard/prod/"  # of all keys
LIMIT_S = 90.0  # ends a test that would wait for ever
_TCP = 6


def services() -> list[dict[str, Any]]:
    """Return the services that the fleet begins with, and has before each test."""
    common = {"port": 80, "forward": "dsr", "health": {"type": "none"}}
    servers = [{"name": name, "address": f"{NETWORK}.{n}"} for name, n in HOSTS.items()]
    return [
        {"name": "chat", "vip": str(CHAT), "backends": servers, **common},
        {"name": "embed", "vip": str(EMBED), "backends": servers[:1], **common},
    ]


@dataclass(frozen=True, slots=True)
class Said:
    """The exit status of lbctl, and what it printed."""

    status: int
    text: str


class Balancer:
    """An agent in a namespace, with its file."""

    def __init__(self, node: str, namespace: str, run_dir: Path) -> None:
        self.node, self.namespace = node, namespace
        self._run_dir = run_dir
        self.socket = run_dir / f"{node}.sock"
        self._path = run_dir / f"{node}.yaml"

    @property
    def api(self) -> Client:
        return Client(self.socket, timeout_s=60.0)

    # -- its file and process

    def file(self) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(self._path.read_text())
        return document

    def write_file(self, document: Mapping[str, Any]) -> None:
        self._path.write_text(yaml.safe_dump(dict(document), sort_keys=False))

    def start(self) -> None:
        """Start the agent; ``wait`` waits until it answers."""
        program = processes.program("lb-agent", "agent.main")
        command = [*program, "run", "--config", str(self._path)]
        processes.start(self._run_dir, self.node, self.namespace, command)

    def wait(self) -> None:
        wait_until(f"the agent of {self.node} answers: {self._log()}", self._answers)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if (pid := self.pid()) is not None:
            os.kill(pid, number)
            wait_until(f"the agent of {self.node} ends", lambda: self.pid() is None)

    def pid(self) -> int | None:
        return processes.pid_of(self._run_dir, self.node)

    def _answers(self) -> bool:
        with contextlib.suppress(SteelyardError):
            return bool(self.api.get("/v1/status"))
        return False

    def _log(self) -> Path:
        return self._run_dir / f"{self.node}.log"

    # -- orders

    def lbctl(self, *words: str) -> Said:
        """Run lbctl in this process; it must not run in two threads at the same time."""
        out, status = io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            environment = Environment(
                socket=self.socket, width=None, colour=False, interactive=False, stdin=io.StringIO()
            )
            try:
                cli.main(list(words), "lbctl", obj=environment)
            except SystemExit as exit_:
                status = exit_.code if isinstance(exit_.code, int) else 1
        return Said(status, out.getvalue())

    def edit(self, service: str, backend: str, canary: Any = None, **values: object) -> Any:
        """Set a backend; ``canary``: where it is tried first."""
        body = {"op": "backend.set", "service": service, "backend": backend, "values": values}
        return self.api.post("/v1/edit", body | ({"canary": canary} if canary else {}))

    def order(self, verb: str, message: str = "") -> Any:
        return self.api.post(f"/v1/fleet/{verb}", {"message": message})

    # -- what it says

    def fleet(self) -> Any:
        return self.api.get("/v1/fleet")

    def own(self) -> Any:
        """Return how it stands to its fleet."""
        return self.api.get("/v1/status")["fleet"]

    def weights(self, service: str) -> dict[str, int]:
        """Return the configured weights of a service's backends; none if there is no service."""
        try:
            found = self.api.get(f"/v1/services/{service}")["backends"]
        except ApiNotFoundError:
            return {}
        return {each["name"]: each["weight_configured"] for each in found}

    def services(self) -> list[str]:
        return [each["name"] for each in self.api.get("/v1/services")["services"]]

    def shares(self, vip: Any) -> dict[str, float]:
        """Return which part of a VIP's ring in the kernel each backend has, by address."""
        return shares(self.namespace, vip)


def shares(instance: str, vip: IPv4Address, port: int = 80) -> dict[str, float]:
    """Return which part of a VIP's ring in the kernel each backend has, by address.

    The VIP may have no service; then there is nobody.
    """
    pinned = pins.pins_of(instance)
    fd = libbpf.object_get(pinned.table("services4"))
    try:
        items = dict(libbpf.map_items(fd, abi.SERVICE_KEY4.itemsize, abi.SERVICE.itemsize))
    finally:
        os.close(fd)
    value = items.get(vip.packed + port.to_bytes(2, "big") + bytes((_TCP, 0)))
    if value is None:
        return {}
    service = np.frombuffer(value, dtype=abi.SERVICE)[0]
    ring = table(pinned.table("rings"), abi.RING_LINE)["backend"].reshape(-1)
    first, slots = int(service["ring_line"]) * abi.RING_LINE_SLOTS, int(service["ring_slots"])
    held, counts = np.unique(ring[first : first + slots], return_counts=True)
    rows = table(pinned.table("backends"), abi.BACKEND)[held]
    names = [str(IPv4Address(int(address))) for address in rows["addr"][:, 0]]
    return {name: int(n) / slots for name, n in zip(names, counts, strict=True)}


def soon(what: str, condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    wait_until(what, condition, LIMIT_S)


class Fleet:
    """The balancers lb1, lb2 and lb3, and their etcd cluster."""

    def __init__(self, balancers: tuple[Balancer, ...], store: Cluster) -> None:
        self.balancers, self.store = balancers, store

    def everywhere(self, what: str, condition: Callable[[Balancer], bool]) -> None:
        """Wait until something is so on every balancer."""
        for each in self.balancers:
            try:
                soon(f"{what}, on {each.node}", lambda each=each: condition(each))
            except AssertionError as error:
                raise AssertionError(f"{error}: {each.own()}") from None

    def agrees(self, service: str, **weights: int) -> None:
        """Wait until all have these weights, in their configuration and in their rings."""
        vip = {"chat": CHAT, "embed": EMBED}[service]
        self.everywhere(f"{service} has {weights}", lambda each: each.weights(service) == weights)
        whole = sum(weights.values())
        wanted = {f"{NETWORK}.{HOSTS[name]}": weight / whole for name, weight in weights.items()}
        self.everywhere(f"{service} has the shares {wanted}", lambda each: near(each, vip, wanted))

    def version(self) -> int:
        """Wait until all run the stable version without a problem; return it."""
        self.everywhere("it is in step", in_step)
        newest = max(each.own()["version"] for each in self.balancers)
        self.everywhere(f"it runs version {newest}", lambda each: each.own()["version"] == newest)
        return int(newest)

    def next(self) -> int:
        """Return the number that the next version gets, once all are in step."""
        self.version()
        return int(self.balancers[0].own()["newest_version"]) + 1

    def put_right(self) -> None:
        """Bring everything into the order in which each test finds it."""
        for number in set(range(len(MEMBERS))) - set(self.store.missing()):
            self.store.resume(number)
        self.store.start()
        for each in self.balancers:
            if each.pid() is None:
                each.start()
        for each in self.balancers:
            each.wait()
        self.everywhere("it reaches the store", lambda each: each.own()["store_away_s"] is None)
        first = self.balancers[0]
        if first.fleet()["rollout"] is not None:
            first.order("abort")
        for each in self.balancers:
            if each.own()["frozen"] is not None:
                each.order("thaw")
        soon("lb1 is in step", lambda: in_step(first))
        whole = {"op": "services.apply", "values": {"services": services()}, "confirmed": True}

        def applied() -> bool:
            with contextlib.suppress(SteelyardError):  # a busy store may be away for a moment
                first.api.post("/v1/edit", whole)
                return True
            return False

        soon("lb1 has the services of the beginning", applied)
        self.version()
        self.agrees("chat", a=100, b=100)
        self.everywhere("all report", lambda each: len(each.fleet()["balancers"]) == len(MEMBERS))


def in_step(balancer: Balancer) -> bool:
    own = balancer.own()
    return not own["problem"] and own["version"] == own["stable_version"]


def near(balancer: Balancer, vip: Any, wanted: Mapping[str, float]) -> bool:
    found = balancer.shares(vip)
    return found.keys() == wanted.keys() and all(
        abs(found[name] - wanted[name]) < 0.02 for name in wanted
    )


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    """Build the fleet; only the file of lb1 has services."""
    prefix = f"st-fleet{os.getpid()}"
    switch, nodes = f"{prefix}-sw", ("lb1", "lb2", "lb3")
    spaces = {node: f"{prefix}-{node}" for node in nodes}
    with tempfile.TemporaryDirectory(prefix="st-fleet-") as name, _cabled(switch, spaces):
        folder = Path(name)
        store = Cluster(folder, switch, MEMBERS)
        balancers = tuple(Balancer(node, spaces[node], folder) for node in nodes)
        starting = threading.Thread(target=store.start)
        starting.start()
        try:
            for each in balancers:
                each.write_file(document(each, store.etcd))
                each.start()
            for each in balancers:
                each.wait()
            starting.join()
            yield Fleet(balancers, store)
        finally:
            starting.join()
            for each in balancers:
                each.stop(signal.SIGKILL)
            for number in set(range(len(MEMBERS))) - set(store.missing()):
                store.resume(number)
            store.kill()
            for space in spaces.values():
                pins.remove(pins.pins_of(space))


def document(balancer: Balancer, etcd: Etcd) -> dict[str, Any]:
    """Return the file of a balancer."""
    paths = {
        key: str(value)
        for key in ("ca_file", "cert_file", "key_file", "user", "password_file")
        if (value := getattr(etcd, key)) is not None
    }
    return {
        "name": balancer.namespace,
        "interface": "eth0",
        "hook": "tc",
        "socket": str(balancer.socket),
        "state_dir": str(balancer.socket.parent / "state"),
        "metrics": "off",
        "manage_vips": False,
        "hash_seed": 7,  # the rings of all are equal
        "nat": {"sources_ipv4": [OWN_OF_LB3]} if balancer.node == "lb3" else {},
        "fleet": {
            "name": "prod",
            "node": balancer.node,
            "etcd": {"endpoints": list(etcd.endpoints), **paths},
            "report": "500ms",
            "lease": "15s",
        },
        "services": services() if balancer.node == "lb1" else [],
    }


@contextlib.contextmanager
def _cabled(switch: str, spaces: Mapping[str, str]) -> Iterator[None]:
    """Make the namespaces of the switch and of the balancers, with addresses, for the block."""
    try:
        netns.ip([f"netns add {space}" for space in (switch, *spaces.values())])
        here = [f"{NETWORK}.{n}" for n in HOSTS.values()] + list(MEMBERS)
        netns.ip(
            ["link set lo up", "link add br0 type bridge", "link set br0 up"]
            + [f"addr add {address}/24 dev br0" for address in here],
            switch,
        )
        for place, (node, space) in enumerate(spaces.items(), 1):
            netns.ip(
                [
                    f"link add eth0 type veth peer name {node} netns {switch}",
                    "link set lo up",
                    "link set eth0 up",
                    f"addr add {NETWORK}.{place}/24 dev eth0",
                ],
                space,
            )
            netns.ip([f"link set {node} master br0 up"], switch)
        yield
    finally:
        for space in (switch, *spaces.values()):
            if space in netns.names():
                netns.ip([f"netns del {space}"])
