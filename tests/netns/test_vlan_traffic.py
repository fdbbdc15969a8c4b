"""Tagged traffic, at every hook: a flow may come in one VLAN and go on in another.

Client and backend put tags on and take them off by a program, so that this needs no VLAN devices.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np
import pytest
from pyroute2 import IPRoute

from agent.dataplane import abi, attach, helpers
from agent.dataplane.flowhash import flow_hash
from agent.dataplane.held import HeldSyn, HeldSyns
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.objects import load_program
from agent.model import Forward, Hook, Nat, NoBackend
from agent.network.reset import RawSender
from agent.state.tables import ServiceEntry
from tests.netns.cable import ip
from tests.netns.segment import (
    BACKEND,
    BALANCER,
    CLIENT,
    VIP,
    Segment,
    balancing,
    inside,
    segment,
    serving,
    upload,
)
from tests.netns.site import wait_until
from tests.packet.harness import Rig, backend, service

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

BYTES = 2_000_000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
PUSH = """
int push(struct __sk_buff *skb)
{
	if (INNER_ID)
		bpf_skb_vlan_push(skb, __builtin_bswap16(INNER_PROTO), INNER_ID);
	bpf_skb_vlan_push(skb, __builtin_bswap16(OUTER_PROTO), OUTER_ID);
	return -1;
}
"""
# What has not exactly these tags is not for this node.
POP = """
int pop(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + 18 > end || !skb->vlan_present)
		return 2;
	if (skb->vlan_proto != __builtin_bswap16(OUTER_PROTO) || skb->vlan_tci != OUTER_ID)
		return 2;
	bpf_skb_vlan_pop(skb);
	if (!INNER_ID)
		return -1;
	if (skb->vlan_proto != __builtin_bswap16(INNER_PROTO) || skb->vlan_tci != INNER_ID)
		return 2;
	bpf_skb_vlan_pop(skb);
	return -1;
}
"""


@dataclass(frozen=True)
class Tags:
    """Of one node; ``inner`` 0: one tag."""

    outer: int
    inner: int = 0

    @property
    def vlans(self) -> tuple[tuple[int, int], ...]:
        if not self.inner:
            return ((0x8100, self.outer),)
        return ((0x88A8, self.outer), (0x8100, self.inner))

    @property
    def definitions(self) -> dict[str, str]:
        (proto, ident), inner = self.vlans[0], self.vlans[1:] or ((0, 0),)
        names = ("OUTER_PROTO", "OUTER_ID", "INNER_PROTO", "INNER_ID")
        return dict(zip(names, map(str, (proto, ident, *inner[0])), strict=True))


def tag(on: Segment, node: str, tags: Tags) -> None:
    """All that the node sends has these tags, and what it takes must have them."""
    with inside(on.name(node)), IPRoute() as netlink:
        index = attach.interface_index("eth0")
        netlink.tc("add", "clsact", index=index)
        for parent, text, name in ((EGRESS, PUSH, "push"), (INGRESS, POP, "pop")):
            kind = ProgramType.SCHED_CLS
            program = load_program(text, name, tags.definitions, kind=kind)
            netlink.tc(
                "add-filter",
                "bpf",
                index=index,
                parent=parent,
                prio=1,
                protocol=3,
                fd=program.fd,
                name=name,
                direct_action=True,
            )


def know(on: Segment) -> None:
    """No ARP: nobody at the balancer would answer it in these VLANs."""
    macs = {}
    for node, address in (("client", CLIENT), ("balancer", BALANCER), ("backend", BACKEND)):
        shown = on.run(node, "cat", "/sys/class/net/eth0/address").strip()
        macs[node] = (address, shown)
    for node in ("client", "backend"):
        for address, mac in (*macs.values(), (VIP, macs["balancer"][1])):
            if address != macs[node][0] and (node, address) != ("backend", VIP):
                ip("-n", on.name(node), "neigh", "replace", address, "lladdr", mac,
                   "dev", "eth0", "nud", "permanent")  # fmt: skip


def show_tags(on: Segment, hook: Hook) -> None:
    """What docs/hooks.md says of the other end of a veth."""
    if hook is Hook.TC:
        return
    off = ("txvlan", "off", "tx-vlan-stag-hw-insert", "off")
    on.run("switch", "ethtool", "-K", "balancer", *off)
    for node in ("client", "backend"):
        # XDP knows nothing of checksums left to the card, nor of super-frames, and without
        # those a veth has room for one tag beyond its MTU, not for two.
        on.run(node, "ethtool", "-K", "eth0", "tx", "off")
        on.run(node, "ip", "link", "set", "eth0", "mtu", "1496")
    if hook is Hook.NATIVE:
        with inside(on.name("switch")):
            helpers.attach_pass("balancer")


NO_SYN = (
    "add table ip no-syn",
    "add chain ip no-syn out { type filter hook output priority 0 ; }",
    "add rule ip no-syn out tcp flags & (syn | ack) == syn drop",
)
WAYS = {
    "one": (Forward.DSR, Tags(10), Tags(10)),
    "two": (Forward.DSR, Tags(5, 7), Tags(5, 7)),
    "other": (Forward.FULLNAT, Tags(10), Tags(20)),
    "one-to-two": (Forward.FULLNAT, Tags(10), Tags(5, 7)),
    "two-to-one": (Forward.FULLNAT, Tags(5, 7), Tags(20)),
}


@pytest.mark.parametrize(
    ("forward", "client", "backend_tags", "hook"),
    [
        # Every way at one hook, and every hook with some way; the others take long.
        pytest.param(*way, hook, id=f"{name}-{hook.value}",
                     marks=[pytest.mark.soak] if (n + m) % 3 else [])
        for n, (name, way) in enumerate(WAYS.items())
        for m, hook in enumerate((Hook.NATIVE, Hook.TC, Hook.GENERIC))
    ],
)  # fmt: skip
def test_a_flow_goes_on_with_the_tags_of_the_way_to_its_backend(
    forward: Forward, client: Tags, backend_tags: Tags, hook: Hook
):
    with segment("st-vt", 1500) as on, serving(on), balancing(on, hook) as rig:
        know(on)
        tag(on, "client", client)
        tag(on, "backend", backend_tags)
        show_tags(on, hook)
        nat = Nat(sources_v4=(ip_address(BALANCER),))
        web = service(backend("a", BACKEND), vip=VIP, forward=forward)
        rig.serve(web, vlans={"a": backend_tags.vlans}, nat=nat)
        upload(on, BYTES)
        assert rig.counts("a").bytes >= BYTES
        assert not any(rig.service_counts().drops.values())


def recorded(rig: Rig, syn: HeldSyn, entry: ServiceEntry) -> str:
    """Where the flow of a SYN is looked for, and where flows are: each a bucket and a tag."""
    value = flow_hash(rig.dataplane.keys, entry.salt, syn.client, syn.client_port, syn.port)
    bucket = (value >> 32) & (rig.dataplane.size.flow_buckets - 1)
    found = [
        f"{slot // abi.FLOW_WAYS}:{int(rig.tables.flows[slot]) >> abi.FLOW_TAG_SHIFT:08x}"
        for slot in np.flatnonzero(rig.tables.flows)
    ]
    return f"looked for {bucket}:{value & 0xFFFFFFFF:08x}, there is {found}"


def test_a_syn_that_waited_goes_on_with_the_tags_of_both_ways():
    """Under tc the outer tag is not in the frame. The client sends no SYN again."""
    with (
        segment("st-vh", 1500) as on,
        serving(on),
        balancing(on, Hook.TC) as rig,
        ThreadPoolExecutor(1) as pool,
    ):
        know(on)
        tag(on, "client", Tags(5, 7))
        tag(on, "backend", Tags(20))
        nat = Nat(sources_v4=(ip_address(BALANCER),))
        web = service(
            backend("a", BACKEND), vip=VIP, forward=Forward.FULLNAT, no_backend=NoBackend.HOLD
        )
        rig.serve(web, nat=nat, down=("a",))
        uploaded = pool.submit(upload, on, BYTES)
        syns = HeldSyns(rig.dataplane)
        wait_until("the SYN is held", lambda: syns.read(time.monotonic_ns()).by_service())
        for rule in NO_SYN:
            on.run("client", "nft", *rule.split())
        (syn,) = syns.read(time.monotonic_ns()).syns()
        rig.serve(web, vlans={"a": Tags(20).vlans}, nat=nat)
        (entry,) = rig.view().contents.services.values()
        with inside(on.name("balancer")), RawSender() as sender:
            before = rig.reasons()
            frame = syns.send(syn, entry)
            assert frame is not None, (
                f"{recorded(rig, syn, entry)}; {before} became {rig.reasons()}; {syn}"
            )
            sender.frame(frame.ifindex, frame.data)
        uploaded.result(timeout=120)
        assert rig.counts("a").bytes >= BYTES
