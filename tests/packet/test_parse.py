"""Step 1 of the walk: what is no IP, or no TCP or UDP, is the host's, byte for byte."""

from __future__ import annotations

import pytest
from scapy.layers.dot11 import LLC
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from tests.packet.frames import CLIENT4, CLIENT6, L3, VIP4, VIP6, ether, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

NOT_IP = {
    "arp": bytes(ether() / ARP(pdst=VIP4)),
    "llc": bytes(Ether(type=0x0026) / LLC()),
    "vlan-cut": bytes(Ether() / Dot1Q(vlan=5))[: L3 + 3],
    "three-tags": bytes(Ether() / Dot1Q() / Dot1Q() / Dot1Q() / IP(dst=VIP4) / TCP(dport=80)),
    "header-only": bytes(Ether(type=0x0800)),
    "cut-ipv4": tcp()[: L3 + 19],
    "cut-ipv6": tcp(vip=VIP6)[: L3 + 39],
    "ipv4-version-6": tcp()[:L3] + b"\x65" + tcp()[L3 + 1 :],
    "ipv6-version-4": tcp(vip=VIP6)[:L3] + b"\x40" + tcp(vip=VIP6)[L3 + 1 :],
    "ihl-4": tcp()[:L3] + b"\x44" + tcp()[L3 + 1 :],
}
NOT_OURS_TO_BALANCE = {
    "ping": bytes(ether() / IP(src=CLIENT4, dst=VIP4) / ICMP() / Raw(b"hello")),
    "ping6": bytes(ether() / IPv6(src=CLIENT6, dst=VIP6) / ICMPv6EchoRequest()),
    "neighbour-solicitation": bytes(ether() / IPv6(src=CLIENT6, dst=VIP6) / ICMPv6ND_NS(tgt=VIP6)),
    "gre": bytes(ether() / IP(src=CLIENT4, dst=VIP4, proto=47) / Raw(bytes(20))),
    "cut-before-ports": tcp()[: L3 + 20 + 7],
    "cut-before-ports6": tcp(vip=VIP6)[: L3 + 40 + 7],
    "options-cut": tcp()[:L3] + b"\x4f" + tcp()[L3 + 1 :],
}


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    rig.serve(
        service(backend("a")),
        service(backend("b"), name="web6", vip=VIP6),
        service(backend("c"), name="any", port=0, vip="203.0.113.11"),
    )


@pytest.mark.parametrize("frame", NOT_IP.values(), ids=NOT_IP)
def test_what_is_no_ip_passes_untouched(rig: Rig, frame: bytes):
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert rig.reasons() == {"not-ip": 1}


@pytest.mark.parametrize("frame", NOT_OURS_TO_BALANCE.values(), ids=NOT_OURS_TO_BALANCE)
def test_other_protocols_to_a_vip_pass_untouched(rig: Rig, frame: bytes):
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert rig.reasons() == {"not-vip": 1}


@pytest.mark.parametrize("words", range(1, 11))
def test_ip_options_do_not_hide_the_ports(rig: Rig, words: int):
    plain = tcp(options=[])
    frame = (
        plain[:L3]
        + bytes((0x45 + words,))
        + plain[L3 + 1 : L3 + 2]
        + (40 + 4 * words).to_bytes(2, "big")
        + plain[L3 + 4 : L3 + 20]
        + bytes((7, 4 * words - 1, 4)).ljust(4 * words, b"\0")  # record route
        + plain[L3 + 20 :]
    )
    done = rig.send(frame)
    assert done.verdict == Verdict.TX
    assert done.data[12:] == frame[12:]


def test_short_frames_with_ethernet_padding_are_balanced(rig: Rig):
    frame = tcp("A").ljust(60, b"\0")
    done = rig.send(frame)
    assert (done.verdict, done.data[12:]) == (Verdict.TX, frame[12:])
    assert rig.counts("a").bytes == 40, "padding is not counted"


def test_traffic_class_and_flow_label_are_no_obstacle(rig: Rig):
    assert rig.verdict(tcp(vip=VIP6, tc=0xB9, fl=0xABCDE)) == Verdict.TX


def test_datagrams_of_a_tcp_service_are_the_hosts(rig: Rig):
    assert rig.verdict(udp(port=80)) == Verdict.PASS
