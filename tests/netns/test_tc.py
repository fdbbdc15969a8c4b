"""The balancer at tc: jumbo frames and super-frames go through whole, and bulk arrives intact."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from agent.dataplane import attach
from agent.dataplane.hooks.tc import TcPlace
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.objects import load_program
from agent.model import Forward, Hook, Nat
from tests.netns.segment import (
    BACKEND,
    BALANCER,
    ETHERNET,
    VIP,
    balancing,
    inside,
    segment,
    serving,
    upload,
)
from tests.packet.harness import backend, service

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

MTU = 9000
BYTES = 40_000_000
# What a tunnel device does at the backend: this kernel may have none.
DECAP = """
int decap(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + 34 > end || data[12] != 8 || data[13] || data[23] != 4)
		return -1;
	return bpf_skb_adjust_room(skb, -20, BPF_ADJ_ROOM_MAC, 0) ? 2 : -1;
}
"""


QUICK = ((Forward.DSR, False), (Forward.IPIP, True))


@pytest.mark.parametrize(
    ("forward", "whole"),
    [
        pytest.param(
            forward, whole, id=f"{forward.value}-{'whole' if whole else 'in-segments'}",
            marks=[] if (forward, whole) in QUICK else [pytest.mark.soak],
        )
        for forward in (Forward.DSR, Forward.IPIP, Forward.FULLNAT)
        for whole in (True, False)
    ],
)  # fmt: skip
def test_super_frames_of_jumbo_packets_arrive(forward: Forward, whole: bool):
    """As super-frames all the way, or cut by the balancer's interface into what fits."""
    with segment("st-tc", MTU) as on, serving(on), balancing(on, Hook.TC) as rig:
        if forward is Forward.IPIP:
            with inside(on.name("backend")):
                program = load_program(DECAP, "decap", {}, kind=ProgramType.SCHED_CLS)
                TcPlace(attach.interface_index("eth0")).put(program.fd, 0)
        if not whole:
            off = ("tso", "off", "gso", "off", "tx-ipxip4-segmentation", "off")
            on.run("balancer", "ethtool", "-K", "eth0", *off)
        nat = Nat(sources_v4=(ip_address(BALANCER),))
        rig.serve(service(backend("a", BACKEND), vip=VIP, forward=forward), mtu=MTU, nat=nat)
        packets, size = on.received("backend")
        upload(on, BYTES)
        counts = rig.counts("a")
        assert counts.bytes >= BYTES
        assert counts.bytes / counts.packets > 1.5 * MTU, "the balancer saw super-frames"
        more_packets, more_bytes = on.received("backend")
        mean = (more_bytes - size) / (more_packets - packets)
        assert mean > 1.5 * MTU if whole else mean <= MTU + ETHERNET
        assert rig.service_counts().drops.get("internal", 0) == 0
