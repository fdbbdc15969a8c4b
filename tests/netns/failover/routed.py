"""A network with an ECMP router: BIRD on it and on two balancers, clients on its other side.

The addresses are those of the examples in deploy/bird, which is what the daemons run with; changed
is only what tells the second balancer from the first, and how soon BFD takes a peer for dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml

from agent.api.client import Client
from agent.failover import client as failover_client
from agent.failover.model import Mode
from agent.network.netlink import SO_RCVBUFFORCE
from lbctl.lab import build, netns, processes, wiring
from lbctl.lab.topology import Role
from tests.netns.site import wait_until

EXAMPLES = Path(__file__).resolve().parents[3] / "deploy" / "bird"
VIPS = (ip_address("203.0.113.10"), ip_address("2001:db8:100::10"))
BALANCERS = {"lb1": 11, "lb2": 12}
BACKENDS = {"be1": 101, "be2": 102, "be3": 103}
AGENT = processes.program("lb-agent", "agent.main")
ETH_P_ALL = 3
# Not as the host of the tests may call its own.
INTERFACE = "wan0"
ROUTER, CLIENT = "router", "client"


@dataclass
class Routed:
    """The network, and what befalls its balancers."""

    run_dir: Path
    prefix: str
    _port: int = 10_000  # of the client's newest connection; all else uses lower ones

    def namespace(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def run(self, node: str, *command: str) -> str:
        done = subprocess.run(
            [*netns.entering(self.namespace(node)), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=processes.environment(self.run_dir),
        )
        assert done.returncode == 0, f"{node}: {' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def start(self, node: str, name: str, *command: str) -> None:
        processes.start(self.run_dir, f"{node}-{name}", self.namespace(node), command)

    def kill(self, node: str, name: str) -> None:
        processes.kill(self.run_dir, f"{node}-{name}")

    def config_path(self, balancer: str) -> Path:
        return self.run_dir / f"{balancer}.yaml"

    @property
    def key_file(self) -> Path:
        """The secret that the balancers share."""
        return self.run_dir / "key"

    def role(self, balancer: str) -> str:
        """Whether a balancer has the VIPs, or why not."""
        (found,) = self.api(balancer).get("/v1/failover")["instances"]
        return str(found["role"])

    def hand_over(self, balancer: str) -> None:
        """As an operator does before some work: the others get the flows first."""
        self.api(balancer).post("/v1/failover/handover", {})

    def release(self, balancer: str) -> None:
        """Undo ``hand_over``."""
        self.api(balancer).post("/v1/failover/release", {})

    def await_flows(self, connections: list[HTTPConnection]) -> None:
        """Until both balancers know all of these."""
        ends = {connection.sock.getsockname()[1] for connection in connections if connection.sock}

        def known(balancer: str) -> bool:
            query = {"state": "established", "limit": "10000"}
            flows = self.api(balancer).get("/v1/flows", query)["flows"]
            return ends <= {flow["client_port"] for flow in flows}

        for balancer in BALANCERS:
            wait_until(f"{balancer} knows {len(ends)} flows", lambda at=balancer: known(at))

    def set_scheduler(self, scheduler: str) -> None:
        """Of all services, on both balancers."""
        for balancer in BALANCERS:
            document = yaml.safe_load(self.config_path(balancer).read_text())
            document["defaults"]["scheduler"] = scheduler
            self.config_path(balancer).write_text(yaml.safe_dump(document))
            self.api(balancer).post("/v1/reload", {})

    def start_agent(self, balancer: str) -> None:
        config = str(self.config_path(balancer))
        self.start(balancer, "agent", *AGENT, "run", "--config", config)

    def detach(self, balancer: str) -> None:
        self.run(balancer, *AGENT, "detach", "--config", str(self.config_path(balancer)))

    def api(self, balancer: str) -> Client:
        return Client(self.run_dir / f"{balancer}.sock", timeout_s=60.0)

    def set_mode(self, balancer: str, mode: Mode) -> None:
        """What the operator wants of a balancer."""
        socket_path = self.run_dir / f"{balancer}-failover.sock"
        failover_client.ask(socket_path, {"do": "mode", "mode": mode.value, "instance": None})

    def cut(self, balancer: str) -> None:
        """Nothing gets through any more, but the cable stays: nobody is told."""
        netns.ip([f"link set {balancer} nomaster"], self.namespace(ROUTER))

    def mend(self, balancer: str) -> None:
        netns.ip([f"link set {balancer} master br0"], self.namespace(ROUTER))

    def ways(self, version: int) -> set[str]:
        """The balancers that the router's route for the VIP of that family leads to."""
        vip = VIPS[version == 6]
        shown = json.loads(self.run(ROUTER, "ip", "-j", f"-{version}", "route", "show", str(vip)))
        hops = [hop for route in shown for hop in route.get("nexthops", [route])]
        gateways = {str(hop.get("gateway")) for hop in hops}
        return {
            name
            for name, number in BALANCERS.items()
            if gateways & {f"192.0.2.{number}", f"2001:db8::{number}"}
        }

    def await_ways(self, *balancers: str) -> None:
        wanted = [set(balancers)] * 2
        # A session that a busy machine has cost, or an agent that compiles there, takes long.
        wait_until(f"routes to {balancers}", lambda: [self.ways(4), self.ways(6)] == wanted)

    @contextlib.contextmanager
    def tap(self, balancer: str) -> Iterator[socket.socket]:
        """All frames on the router's cable to a balancer, in both directions."""
        with netns.inside(self.namespace(ROUTER)):
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            # A pause of the test must not cost a frame.
            heard.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            heard.bind((balancer, 0))
        with heard:
            heard.setblocking(False)
            yield heard

    @contextlib.contextmanager
    def load(self) -> Iterator[dict[str, Any]]:
        """Requests and streams of the client while the block runs; the summary is then there."""
        command = [*netns.entering(self.namespace(CLIENT)), sys.executable, "-m", "lbctl.lab.load"]
        command += ["--rate", "100", "--keep-alive", "10", "--streams", "4", "--timeout", "60"]
        for vip in VIPS:
            command += ["--target", f"[{vip}]:80" if vip.version == 6 else f"{vip}:80"]
        summary: dict[str, Any] = {}
        with tempfile.TemporaryFile("w+") as out:
            environment = processes.environment(self.run_dir)
            process = subprocess.Popen(command, stdout=out, env=environment)
            try:
                wait_until("the load has begun", lambda: bool(out.seek(0, os.SEEK_END)))
                yield summary
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=120)
            out.seek(0)
            records = [json.loads(line) for line in out]
        summary.update(records[-1])
        summary["broken"] = [r for r in records if r.get("event") in ("broke", "refused")]

    def connect(self, count: int) -> list[HTTPConnection]:
        """Connections of the client to both VIPs, in turn; they stay open.

        Each from a port that none had before: what balancers remember of former ones is another
        matter.
        """
        made: list[HTTPConnection] = []
        with netns.inside(self.namespace(CLIENT)):
            for number in range(count):
                vip = VIPS[number % 2]
                self._port += 1
                own = ("::" if vip.version == 6 else "0.0.0.0", self._port)
                made.append(HTTPConnection(str(vip), 80, timeout=120, source_address=own))
                made[-1].connect()
        return made


def frames_to_vips(heard: socket.socket) -> int:
    """How many frames for the VIPs the router has sent over a tapped cable so far.

    A balancer sends some, too: to its backends, also when it only checks whether they answer.
    """
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = heard.recvfrom(2048)
            is_for_vip = VIPS[0].packed == frame[30:34] or VIPS[1].packed == frame[38:54]
            count += kind == socket.PACKET_OUTGOING and is_for_vip
    return count


def ask(connection: HTTPConnection) -> str:
    """A request on an open connection; the backend that answered."""
    assert connection.sock is not None, "it was closed"
    connection.request("GET", "/")
    return connection.getresponse().read().decode().strip()


@contextlib.contextmanager
def routed(name: str) -> Iterator[Routed]:
    """Build the network with its servers, agents and daemons; remove it."""
    made = Routed(Path(tempfile.mkdtemp(prefix=f"st-{name}-")), f"st-{name}-{os.getpid()}")
    try:
        _network(made)
        _servers(made)
        _agents(made)
        _daemons(made)
        yield made
    finally:
        processes.stop(made.run_dir, processes.find(made.run_dir))
        with ThreadPoolExecutor() as pool:
            pool.map(made.detach, BALANCERS)
        for node in (ROUTER, CLIENT, *BALANCERS, *BACKENDS):
            with contextlib.suppress(OSError):
                build.remove_locks(made.namespace(node))
            subprocess.run(
                ["ip", "netns", "del", made.namespace(node)], capture_output=True, check=False
            )
        shutil.rmtree(made.run_dir, ignore_errors=True)


def _network(made: Routed) -> None:
    nodes = {CLIENT: Role.CLIENT, ROUTER: Role.SWITCH}
    nodes |= dict.fromkeys(BALANCERS, Role.BALANCER) | dict.fromkeys(BACKENDS, Role.BACKEND)
    netns.ip([f"netns add {made.namespace(node)}" for node in nodes])
    for node, role in nodes.items():
        netns.write_sysctls(made.namespace(node), wiring.sysctls(role))
    netns.write_sysctls(made.namespace(CLIENT), {"ipv4/ip_local_port_range": "1024 9999"})
    netns.write_sysctls(
        made.namespace(ROUTER),
        {
            "ipv6/conf/default/disable_ipv6": "0",
            "ipv4/ip_forward": "1",
            "ipv6/conf/all/forwarding": "1",
            "ipv4/fib_multipath_hash_policy": "1",
            "ipv6/fib_multipath_hash_policy": "1",
        },
    )
    # With an address of its own: else it has a port's, and another one once that port is cut.
    bridge = "link add br0 address 02:00:5e:00:53:01 type bridge stp_state 0 mcast_snooping 0"
    cables = ["link set lo up", bridge]
    for node in (*BALANCERS, *BACKENDS):
        namespace = made.namespace(node)
        cables.append(f"link add {node} type veth peer name {INTERFACE} netns {namespace}")
        cables.append(f"link set {node} master br0 up")
    cables += [
        # A card drops frames for another MAC, XDP on a veth sees them.
        *(f"link set {node} type bridge_slave flood off" for node in BALANCERS),
        f"link add {CLIENT} type veth peer name {INTERFACE} netns {made.namespace(CLIENT)}",
        f"link set {CLIENT} up",
        "link set br0 up",
        "address add 192.0.2.1/24 dev br0",
        "address add 2001:db8::1/64 dev br0 nodad",
        f"address add 198.51.100.1/24 dev {CLIENT}",
        f"address add 2001:db8:c::1/64 dev {CLIENT} nodad",
    ]
    netns.ip(cables, made.namespace(ROUTER))
    for node, number in (BALANCERS | BACKENDS | {CLIENT: 21}).items():
        near4, near6 = ("198.51.100", "2001:db8:c:") if node == CLIENT else ("192.0.2", "2001:db8:")
        commands = ["link set lo up", f"link set {INTERFACE} up"]
        commands += [
            f"address add {near4}.{number}/24 dev {INTERFACE}",
            f"address add {near6}:{number}/64 dev {INTERFACE} nodad",
            f"route add default via {near4}.1",
            f"route add ::/0 via {near6}:1",
        ]
        if node in BACKENDS:
            commands += [f"address add {vip}/{vip.max_prefixlen} dev lo" for vip in VIPS]
        netns.ip(commands, made.namespace(node))
        netns.checksum_in_software(made.namespace(node), INTERFACE)


def _servers(made: Routed) -> None:
    for node in BACKENDS:
        command = [sys.executable, "-m", "lbctl.lab.server", "--name", node, "--port", "80"]
        made.start(node, "server", *command)
    made.run(ROUTER, *AGENT, "pass", *(word for node in BALANCERS for word in ("-i", node)))


def agent_document(made: Routed, balancer: str) -> dict[str, Any]:
    """The configuration of a balancer: the same on both, but for its name and the order."""
    order = list(BACKENDS.items())[:: 1 if balancer == "lb1" else -1]
    services = []
    for name, vip, prefix in (("web", VIPS[0], "192.0.2."), ("web6", VIPS[1], "2001:db8::")):
        backends = [{"name": node, "address": f"{prefix}{number}"} for node, number in order]
        services.append({"name": name, "vip": str(vip), "port": 80, "backends": backends})
    return {
        "name": made.namespace(balancer),
        "interface": INTERFACE,
        "hook": "native",
        "socket": str(made.run_dir / f"{balancer}.sock"),
        "state_dir": str(made.run_dir / balancer),
        "metrics": None,
        "manage_vips": False,
        "defaults": {
            "forward": "dsr",
            "scheduler": "maglev",
            "health": {
                "type": "http",
                "interval": "500ms",
                "timeout": "500ms",
                "rise": 1,
                "fall": 8,
            },
        },
        "services": services,
        "failover": {
            "key_file": str(made.key_file),
            "instances": [{"name": "anycast", "method": "announce"}],
            "sync": {
                "peers": [f"192.0.2.{n}" for name, n in BALANCERS.items() if name != balancer]
            },
        },
    }


def _agents(made: Routed) -> None:
    made.key_file.touch(mode=0o600)
    made.key_file.write_text(f"{secrets.token_urlsafe(32)}\n")
    # One after the other: what the first has compiled, the others load.
    for balancer in BALANCERS:
        config = made.config_path(balancer)
        config.write_text(yaml.safe_dump(agent_document(made, balancer)))
        made.start_agent(balancer)
        made.start(balancer, "failover", *AGENT, "failover", "--config", str(config))
        wait_until(f"{balancer} has its backends", lambda at=balancer: _ready(made, at))


def _ready(made: Routed, balancer: str) -> bool:
    with contextlib.suppress(Exception):
        services = made.api(balancer).get("/v1/services")["services"]
        return all(service["backends_up"] == len(BACKENDS) for service in services)
    return False


def _daemons(made: Routed) -> None:
    start_bird(made, ROUTER, (EXAMPLES / "router.conf").read_text())
    for balancer in BALANCERS:
        start_bird(made, balancer, bird_config(balancer))


def bird_config(balancer: str) -> str:
    """The example, which is the first balancer's as it is."""
    text = (EXAMPLES / "bird.conf").read_text()
    number = BALANCERS[balancer]
    return re.sub(r"\b192\.0\.2\.11\b", f"192.0.2.{number}", text).replace(
        "2001:db8::11;", f"2001:db8::{number};"
    )


def start_bird(made: Routed, node: str, text: str) -> None:
    config = made.run_dir / f"{node}-bird.conf"
    assert "multiplier 3;" in text
    # After 1 s instead of 0.3: the machine of the tests can be very busy.
    text = text.replace("multiplier 3;", "multiplier 10;")
    config.write_text(text.replace("log syslog all;", "log stderr all;"))
    command = [*_urgently(), "bird", "-f", "-c", str(config)]
    made.start(node, "bird", *command, "-s", str(made.run_dir / f"{node}.ctl"))


def _urgently() -> list[str]:
    """What has a command run before all that is ordinary."""
    first = ["chrt", "--fifo", "10"]
    allowed = subprocess.run([*first, "true"], capture_output=True, check=False).returncode == 0
    return first if allowed else ["nice", "-n", "-15"]
