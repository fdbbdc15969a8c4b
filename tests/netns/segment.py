"""A switch with a client, a balancer and a backend, and bulk that goes through it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from agent.dataplane import pins
from agent.model import Config, Hook
from tests.netns.cable import ip
from tests.packet import harness
from tests.packet.harness import Rig, mac_of

ETHERNET = 14
VIP, CLIENT, BALANCER, BACKEND = "10.20.0.100", "10.20.0.10", "10.20.0.2", "10.20.0.21"
NODES = {"client": CLIENT, "balancer": BALANCER, "backend": BACKEND}
# Takes what comes, and answers with its length and the same bytes' digest.
SERVER = """
import hashlib, socket, sys
with socket.create_server(("0.0.0.0", 80), reuse_port=True) as listening:
    print("ready", flush=True)
    while True:
        talk, _ = listening.accept()
        seen, count = hashlib.sha256(), 0
        while data := talk.recv(1 << 20):
            seen.update(data)
            count += len(data)
        talk.sendall(f"{count} {seen.hexdigest()}".encode())
        talk.close()
"""
UPLOAD = """
import hashlib, random, socket, sys
text = random.Random(1).randbytes(BYTES)
with socket.create_connection(("VIP", 80), timeout=120) as talk:
    talk.sendall(text)
    talk.shutdown(socket.SHUT_WR)
    answer = talk.makefile("rb").read().decode()
sys.exit(answer != f"{len(text)} {hashlib.sha256(text).hexdigest()}")
"""


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace."""
    with (
        Path("/proc/thread-self/ns/net").open() as home,
        Path(f"/run/netns/{namespace}").open() as there,
    ):
        os.setns(there.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


@dataclass
class Segment:
    """Namespaces; every node has ``eth0``, and the switch a port named after each node."""

    prefix: str
    mtu: int

    def name(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def make(self) -> None:
        switch = self.name("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "mtu", str(self.mtu), "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for node, address in NODES.items():
            where = self.name(node)
            ip("netns", "add", where)
            ip("-n", where, "link", "add", "eth0", "mtu", str(self.mtu), "type", "veth",
               "peer", "name", node, "mtu", str(self.mtu), "netns", switch)  # fmt: skip
            ip("-n", switch, "link", "set", node, "master", "br0", "up")
            ip("-n", where, "link", "set", "lo", "up")
            ip("-n", where, "link", "set", "eth0", "up")
            ip("-n", where, "addr", "add", f"{address}/24", "dev", "eth0")
        quiet = "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"
        self.run("backend", "sysctl", "-qw", *quiet)
        ip(
            "-n",
            self.name("backend"),
            "link",
            "set",
            "eth0",
            "address",
            mac_of(ip_address(BACKEND)),
        )
        ip("-n", self.name("backend"), "addr", "add", f"{VIP}/32", "dev", "lo")
        ip("-n", self.name("balancer"), "addr", "add", f"{VIP}/32", "dev", "eth0")

    def run(self, node: str, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.name(node), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{command[0]} in {node}: {done.stdout} {done.stderr}"
        return done.stdout

    def received(self, node: str) -> tuple[int, int]:
        """Packets and bytes."""
        shown = json.loads(self.run(node, "ip", "-j", "-s", "link", "show", "eth0"))
        counted = shown[0]["stats64"]["rx"]
        return counted["packets"], counted["bytes"]

    def remove(self) -> None:
        for node in ("switch", *NODES):
            subprocess.run(
                ["ip", "netns", "del", self.name(node)], capture_output=True, check=False
            )


@contextlib.contextmanager
def segment(prefix: str, mtu: int) -> Iterator[Segment]:
    """Made, and removed with the block."""
    made = Segment(f"{prefix}-{os.getpid()}", mtu)
    try:
        made.make()
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def serving(on: Segment) -> Iterator[None]:
    """The backend takes uploads."""
    command = ["ip", "netns", "exec", on.name("backend"), sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def balancing(on: Segment, hook: Hook) -> Iterator[Rig]:
    """The program, with all features, on the balancer's interface."""
    name = harness.instance_name(f"segment-{hook.value}")
    with inside(on.name("balancer")):
        config = Config(name, "eth0", hook=hook, tables=harness.SMALL)
        dataplane = harness.load(config, harness.all_features())
        dataplane.attach()
        rig = Rig(dataplane)
    try:
        yield rig
    finally:
        dataplane.tables.close()
        pins.remove(dataplane.pins)


def upload(on: Segment, size: int) -> None:
    """The client sends so many bytes to the VIP; they must arrive as they were."""
    text = UPLOAD.replace("VIP", VIP).replace("BYTES", str(size))
    on.run("client", sys.executable, "-c", text)
