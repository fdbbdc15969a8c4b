"""A network for one machine: a namespace behind a veth that is both the clients and the server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deb.machine import Machine

_VIP, _CLIENT, _SERVER, _PORT = "10.9.0.10", "10.9.0.2", "10.9.0.3", 8000
CONFIGURATION = f"""\
interface: eth0
services:
  - name: echo
    vip: {_VIP}
    port: {_PORT}
    forward: fullnat
    health: {{type: tcp}}
    backends:
      - {{name: be1, address: {_SERVER}}}
"""
_UP = """\
ip netns add peer
ip link add eth0 type veth peer name eth0 netns peer
ip addr add 10.9.0.1/24 dev eth0
ip link set eth0 up
ip -n peer addr add 10.9.0.2/24 dev eth0
ip -n peer addr add 10.9.0.3/24 dev eth0
ip -n peer link set eth0 up
ip -n peer link set lo up
"""
_ECHO = f"""\
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("{_SERVER}", {_PORT}), Echo).serve_forever()
"""
_CONNECTION = f"""\
import socket, sys
with socket.create_connection(("{_VIP}", {_PORT}), 10, ("{_CLIENT}", 0)) as connection:
    lines = connection.makefile("rwb", 0)
    for line in sys.stdin.buffer:
        lines.write(line)
        sys.stdout.buffer.write(lines.readline())
        sys.stdout.buffer.flush()
"""
# An agent of another instance, as one that a lab runs.
_OTHER = """\
import time
from pathlib import Path
from agent.lock import InstanceLocks
Path("/sys/fs/bpf/steelyard/other/abi1").mkdir(parents=True)
held = InstanceLocks("other")
print("held", flush=True)
time.sleep(600)
"""
_SERVED_S = 60.0


class Wire:
    """The network, up as long as the machine."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        configuration = folder / "agent.yaml"
        configuration.write_text(CONFIGURATION)
        machine.run("sh", "-euc", _UP)
        machine.put(configuration, "/etc/steelyard/agent.yaml")
        self._server = subprocess.Popen(self._python(_ECHO))

    def connect(self) -> Connection:
        """Return a new connection through the balancer."""
        return Connection(self._python(_CONNECTION))

    def wait_until_served(self) -> None:
        """Wait until a client gets an answer through the balancer."""
        end = time.monotonic() + _SERVED_S
        while not self.connect().echoes("hello"):
            assert time.monotonic() < end, self._machine.run("lbctl", "status")
            time.sleep(0.5)

    @contextmanager
    def other_agent(self, python: str) -> Iterator[None]:
        """Run, with the Python of the installation, another instance's agent that systemd does not
        know.
        """
        command = self._machine.command(python, "-c", _OTHER)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            yield
            self._machine.run("sh", "-c", "kill $(cat /run/steelyard/instance-other.lock)")

    def leftovers(self) -> str:
        """Return what the balancer has left in the kernel; empty: nothing."""
        looks = (
            "tc filter show dev eth0 ingress; ip -o link | grep -o xdp; nft list tables;"
            f" ip -o addr | grep -wF {_VIP}; find /sys/fs/bpf/steelyard 2>/dev/null; true"
        )
        return self._machine.run("sh", "-c", looks)

    def _python(self, program: str) -> list[str]:
        return self._machine.command(
            "ip", "netns", "exec", "peer", "/usr/bin/python3", "-c", program
        )


class Connection:
    """A client's connection."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self._client = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )

    def echoes(self, word: str) -> bool:
        """Send a word; return whether it comes back."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        try:
            self._client.stdin.write(f"{word}\n")
        except BrokenPipeError:
            return False
        return self._client.stdout.readline() == f"{word}\n"
