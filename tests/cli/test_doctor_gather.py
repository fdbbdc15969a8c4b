"""What the doctor makes of real output."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

from lbctl.doctor import gather, netdev
from lbctl.doctor.facts import (
    Feature,
    Filter,
    Program,
    Queues,
)
from tests.cli.doctor_facts import CARD

ETHTOOL_K = """\
Features for eth0:
rx-checksumming: on [fixed]
tx-checksumming: on
	tx-checksum-ipv4: off [fixed]
large-receive-offload: off [fixed]
rx-vlan-offload: on
"""
ETHTOOL_L = """\
Channel parameters for eth0:
Pre-set maximums:
RX:		n/a
TX:		n/a
Other:		1
Combined:	8
Current hardware settings:
RX:		n/a
TX:		n/a
Other:		1
Combined:	4
"""


def test_ethtool_output_is_understood():
    features = gather.ethtool_features(ETHTOOL_K)
    assert features["large-receive-offload"] == Feature(on=False, fixed=True)
    assert features["rx-vlan-offload"] == Feature(on=True)
    assert features["tx-checksum-ipv4"] == Feature(on=False, fixed=True)
    assert gather.ethtool_channels(ETHTOOL_L) == Queues(4, 8)
    separate = ETHTOOL_L.replace("Combined:\t8", "Combined:\t0").replace("RX:\t\tn/a", "RX:\t\t2")
    assert gather.ethtool_channels(separate.replace("Combined:\t4", "Combined:\t0")) == Queues(2, 2)
    assert gather.ethtool_channels("") is None


def test_ip_output_is_understood():
    entry = {
        "ifname": "eth0",
        "flags": ["UP"],
        "mtu": 1500,
        "linkinfo": {"info_kind": "veth"},
        "xdp": {"mode": 1, "prog": {"id": 9, "name": "balancer"}},
    }
    link = gather.link_of(entry, {"10.0.0.1", "fe80::1"})
    assert link.kind == "veth"
    assert link.program == Program(9, "balancer", "native")
    assert ip_address("fe80::1") in link.addresses


def test_tc_output_is_understood():
    shown = [
        {"protocol": "all", "pref": 49152, "kind": "u32", "chain": 0},
        {"protocol": "all", "pref": 49152, "kind": "u32", "options": {"fh": "800::800"}},
        {"protocol": "all", "pref": 10, "kind": "bpf", "chain": 0},
        {
            "protocol": "all",
            "pref": 10,
            "kind": "bpf",
            "options": {
                "handle": "0x5354",
                "bpf_name": "steelyard",
                "prog": {"id": 42, "name": "balancer"},
            },
        },
    ]
    assert gather.tc_filters(shown) == (
        Filter(10, "bpf", "balancer", 42),
        Filter(49152, "u32", ""),
    )


def test_fou_output_is_understood():
    assert gather.gue_ports("port 6080 gue\nport 5555 ipproto 4\nport 6081 gue -6 \n") == {
        6080,
        6081,
    }


def test_versions_and_mounts_are_understood():
    assert gather.kernel_version("6.12.9-amd64") == (6, 12)
    assert gather.kernel_version("odd") == (0, 0)
    assert gather.bpffs_mounted("bpf /sys/fs/bpf bpf rw 0 0\n")
    assert not gather.bpffs_mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\n")


def test_netlink_answer_is_understood():
    data = b"\x08\x00\x01\x00\x04\x00\x00\x00" + b"\x0c\x00\x03\x00\x23" + b"\x00" * 7
    assert netdev.attributes(data)[3][0] == 0x23
    assert netdev.feature_names(0x23) == {"basic", "redirect", "rx-sg"}
    assert netdev.attributes(b"\x00\x00\x00\x00") == {}


def test_interface_needs_no_name_where_there_is_but_one():
    lo, other = (dataclasses.replace(CARD, name=name) for name in ("lo", "eth1"))
    assert gather.only_interface((lo, CARD)) == CARD.name
    assert gather.only_interface((lo, CARD, other)) is None
    assert gather.only_interface((lo,)) is None
