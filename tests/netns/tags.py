"""A client whose frames to the balancer carry VLAN tags, on kernels without VLAN devices too.

A tc program pushes the tags on the way out and pops them on the way in, as a switch's access
port does. Frames to anybody else, and broadcasts, stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent.dataplane import libbpf
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.objects import load_program
from lbctl.lab import netns
from lbctl.lab.topology import Lab, Node

PINS = Path("/sys/fs/bpf")
OUTER, INNER = 7, 100  # VLANs: of a service tag, and of a customer tag below it

_TEXT = """
BPF_ARRAY(popped, u64, 1);

int tagging(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data;
	static const u8 balancer[] = LB_BALANCER;

	if (data + 14 > (u8 *)(long)skb->data_end)
		return -1;
	for (int i = 0; i < 6; i++)
		if (data[i] != balancer[i])
			return -1;
	if (bpf_skb_vlan_push(skb, 0x0081, LB_INNER))
		return 2;
	if (LB_DOUBLE && bpf_skb_vlan_push(skb, 0xa888, LB_OUTER))
		return 2;
	return -1;
}

int untagging(struct __sk_buff *skb)
{
	u32 zero = 0;
	u64 *count = popped.lookup(&zero);

	for (int i = 0; i < 2; i++) {
		if (!skb->vlan_present)
			break;
		if (bpf_skb_vlan_pop(skb))
			return 2;
		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return -1;
}
"""


class Tagged:
    """What the client has seen while its frames were tagged."""

    def __init__(self, counter_fd: int) -> None:
        self._fd = counter_fd

    def popped(self) -> int:
        """Tags on frames that it received."""
        value = dict(libbpf.map_items(self._fd, 4, 8))[bytes(4)]
        return int.from_bytes(value, "little")


@contextlib.contextmanager
def tagged(lab: Lab, client: Node, balancer: Node, *, double: bool) -> Iterator[Tagged]:
    """Tag the client's frames to the balancer while the block runs."""
    link = balancer.links[0]
    mac = mac_of(balancer, link.interface)
    definitions = {
        "LB_BALANCER": "{" + ",".join(f"0x{byte}" for byte in mac.split(":")) + "}",
        "LB_INNER": str(INNER),
        "LB_OUTER": str(OUTER),
        "LB_DOUBLE": str(int(double)),
    }
    offloads = [word for what in ("txvlan", "tx-vlan-stag-hw-insert") for word in (what, "off")]
    command = [*netns.entering(lab.switch), "ethtool", "-K", link.port, *offloads]
    subprocess.run(command, check=True, capture_output=True)
    device = client.links[0].interface
    compiled = [
        load_program(_TEXT, function, definitions, kind=ProgramType.SCHED_CLS)
        for function in ("tagging", "untagging")
    ]
    run(client, "qdisc", "add", "dev", device, "clsact")
    try:
        for program, hook in zip(compiled, ("egress", "ingress"), strict=True):
            pin = PINS / f"st-tags-{os.getpid()}-{hook}"
            libbpf.object_pin(program.fd, pin)
            try:
                run(client, "filter", "add", "dev", device, hook, "bpf", "da", "object-pinned", pin)
            finally:
                pin.unlink()
        yield Tagged(compiled[1].tables["popped"])
    finally:
        run(client, "qdisc", "del", "dev", device, "clsact")


def run(node: Node, *words: object) -> None:
    command = [*netns.entering(node.namespace), "tc", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def mac_of(node: Node, interface: str) -> str:
    command = ["ip", "-n", node.namespace, "-j", "link", "show", interface]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return str(json.loads(found)[0]["address"])
