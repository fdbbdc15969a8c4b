"""Owns the two programs that run beside the balancer: decap on backends, pass on veth peers."""

from __future__ import annotations

import os
import struct

from agent.dataplane import attach, libbpf, sources
from agent.dataplane.compile import Compiled
from agent.dataplane.objects import load_program
from agent.model import GUE_PORT, Address, Hook, Network

_DECAP = "decap"  # the program's name in bpf/decap.c


def attach_decap(
    interface: str,
    vips: tuple[Address, ...],
    gue_port: int = GUE_PORT,
    senders: tuple[Network, ...] = (),
) -> Hook:
    """Attach the program that takes the outer header off what balancers send for ``vips``.

    It stays until it is detached. ``senders``: the balancers, the only hosts from which tunnel
    packets are accepted; empty: any host.
    """
    return attach.attach_helper(interface, load_decap(vips, gue_port, senders).fd)


def load_decap(
    vips: tuple[Address, ...], gue_port: int, senders: tuple[Network, ...] = ()
) -> Compiled:
    """Load the program that ``attach_decap`` attaches; ``gue_port`` is a UDP destination port."""
    definitions = {"LB_GUE_PORT": str(gue_port), "LB_DECAP_FROM": str(int(bool(senders)))}
    compiled = load_program(sources.joined("decap.c"), _DECAP, definitions)
    fd = compiled.tables["decap_vips"]
    for vip in vips:
        libbpf.map_update(fd, vip.packed.ljust(16, b"\0"), b"\1")
    for sender in senders:
        libbpf.map_update(compiled.tables["decap_senders"], _sender_key(sender), b"\1")
    return compiled


def _sender_key(sender: Network) -> bytes:
    """Return a ``struct sender_key``."""
    return struct.pack("=II16s", 32 + sender.prefixlen, sender.version,
                       sender.network_address.packed)  # fmt: skip


def attach_pass(interface: str) -> Hook:
    """Let the interface, the far end of a veth pair, receive what XDP sends at the other end."""
    fd = libbpf.load_pass_program()
    try:
        return attach.attach_helper(interface, fd)
    finally:
        os.close(fd)


def detach_helpers(interface: str) -> tuple[str, ...]:
    """Detach decap and pass from an interface, and return the names of those that were there."""
    return attach.detach_named(interface, (_DECAP, libbpf.PASSING))
