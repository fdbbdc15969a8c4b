"""A program takes the place of the last one under load: no packet finds none, and none is lost."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from agent.dataplane import attach, libbpf, pins
from agent.dataplane.compile import compile_program
from agent.dataplane.libbpf import ProgramType
from agent.model import Hook
from tests.packet.programs import DROP, PASS, Maker, maker

pytestmark = pytest.mark.usefixtures("network")

HOOKS = (Hook.NATIVE, Hook.TC, Hook.GENERIC, Hook.EXTERNAL)
SO_RCVBUFFORCE = 33  # the socket module does not name it
SWAPS = 200
OURS, THEIRS, PORT = "10.9.1.1", "10.9.1.2", 4242
MAC = "02:00:00:00:00:09"
# What an operator's own program does, in so far as it concerns us.
CALLER = """
BPF_TABLE_PINNED7("prog", u32, u32, entry, 1, "PATH", 0);

int caller(struct xdp_md *ctx)
{
	entry.call(ctx, 0);
	return XDP_PASS;
}
"""


def frame() -> bytes:
    """A small UDP datagram from the far end."""
    udp = struct.pack("!HHHH", 4000, PORT, 18, 0) + bytes(10)
    addresses = ip_address(THEIRS).packed + ip_address(OURS).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return (
        bytes.fromhex(MAC.replace(":", ""))
        + bytes(6)
        + b"\x08\x00"
        + header[:10]
        + struct.pack("!H", checksum)
        + (header[12:] + udp)
    )


@dataclass
class Stream:
    """Datagrams from ``there``, and how many of them reach a socket behind ``here``."""

    sent: int = 0
    received: int = 0
    _end: threading.Event = field(default_factory=threading.Event)
    _all_sent: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        datagram = frame()
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as source,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        ):
            source.bind(("there", 0))
            sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            sink.bind((OURS, PORT))
            sink.settimeout(0.5)
            sender = threading.Thread(target=self._send, args=(source, datagram))
            receiver = threading.Thread(target=self._receive, args=(sink,))
            sender.start()
            receiver.start()
            try:
                yield
            finally:
                self._end.set()
                sender.join()
                self._all_sent.set()
                receiver.join()

    def _send(self, source: socket.socket, datagram: bytes) -> None:
        while not self._end.wait(0.0005):
            for _ in range(8):  # the ring of a veth is small
                source.send(datagram)
                self.sent += 1

    def _receive(self, sink: socket.socket) -> None:
        while True:
            nothing_follows = self._all_sent.is_set()  # as of before the wait
            try:
                sink.recv(100)
            except TimeoutError:
                if nothing_follows:
                    return
            else:
                self.received += 1


def prepare(of: pins.Pins, program: Maker, hook: Hook) -> None:
    """Two ends that are up, the program attached, and for `external` somebody who calls it."""
    for command in (
        f"link set here address {MAC} up",
        "link set there up",
        f"addr add {OURS}/24 dev here",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    attach.attach(("here",), hook, of, program)
    if hook is Hook.EXTERNAL:
        caller = compile_program(CALLER.replace("PATH", str(of.entry)), "caller", {})
        libbpf.xdp_attach(attach.interface_index("here"), caller.fd, libbpf.XDP_DRV_MODE)


@pytest.mark.parametrize(
    ("hook", "verdicts"),
    [
        pytest.param(
            hook, verdicts, id=f"{what}-{hook.value}",
            marks=pytest.mark.soak if (number + (verdicts is DROP)) % 2 else (),
        )
        for number, hook in enumerate(HOOKS)
        for what, verdicts in (("passing", PASS), ("dropping", DROP))
    ],
)  # fmt: skip
def test_a_swap_under_load(instance: str, hook: Hook, verdicts: dict[ProgramType, int]):
    """What passes all gets through whole; past what drops all, nothing slips."""
    mine = pins.pins_of(instance)
    with maker(mine, verdicts) as program:
        prepare(mine, program, hook)
        stream, swaps = Stream(), 0
        with stream.running():
            while swaps < SWAPS or stream.sent <= 500:  # on a busy host the load takes its time
                attach.attach(("here",), hook, mine, program)
                swaps += 1
        assert len(set(program.made)) == swaps + 1
        assert stream.received == (stream.sent if verdicts is PASS else 0)
