"""Owns the two programs that run beside the balancer: decap on backends, pass on veth peers."""

from __future__ import annotations

import os

from agent.dataplane import attach, libbpf, sources
from agent.dataplane.compile import Compiled
from agent.dataplane.objects import load_program
from agent.model import GUE_PORT, Address, Hook


def attach_decap(interface: str, vips: tuple[Address, ...], gue_port: int = GUE_PORT) -> Hook:
    """Take the outer header off what balancers send for ``vips``; stays until detached."""
    return attach.attach_helper(interface, load_decap(vips, gue_port).fd)


def load_decap(vips: tuple[Address, ...], gue_port: int) -> Compiled:
    """The program that ``attach_decap`` attaches; ``gue_port`` is a UDP destination port."""
    definitions = {"LB_GUE_PORT": str(gue_port)}
    compiled = load_program(sources.joined("decap.c"), "decap", definitions)
    fd = compiled.tables["decap_vips"]
    for vip in vips:
        libbpf.map_update(fd, vip.packed.ljust(16, b"\0"), b"\1")
    return compiled


def attach_pass(interface: str) -> Hook:
    """Let the interface, the far end of a veth pair, receive what XDP sends at the other."""
    fd = libbpf.load_pass_program()
    try:
        return attach.attach_helper(interface, fd)
    finally:
        os.close(fd)
