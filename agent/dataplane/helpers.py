"""Owns the two programs that run beside the balancer: decap on backends, pass on veth peers."""

from __future__ import annotations

import os

from agent.dataplane import attach, libbpf, sources
from agent.dataplane.compile import compile_program
from agent.model import Address, XdpMode


def attach_decap(interface: str, vips: tuple[Address, ...]) -> XdpMode:
    """Take the outer header off what balancers send for ``vips``; stays until detached."""
    compiled = compile_program(sources.joined("decap.c"), "decap", {})
    fd = compiled.handle[b"decap_vips"].map_fd
    for vip in vips:
        libbpf.map_update(fd, vip.packed.ljust(16, b"\0"), b"\1")
    return attach.attach_helper(interface, compiled.fd)


def attach_pass(interface: str) -> XdpMode:
    """Let the interface, the far end of a veth pair, receive what XDP sends at the other."""
    fd = libbpf.load_pass_program()
    try:
        return attach.attach_helper(interface, fd)
    finally:
        os.close(fd)
