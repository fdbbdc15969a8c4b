"""A health check by the VIP leaves in the very bytes in which a client's SYN does."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from agent.model import Forward, NextHop
from agent.state import way
from agent.state.segment import SYN, Segment
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    VIP4,
    VIP6,
    ether,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service

GUE_PORT = 6080
GUE_SPORT = {4: slice(34, 36), 6: slice(54, 56)}  # its place, by the outer header


@pytest.mark.parametrize(
    ("vip", "client", "server"),
    [(VIP4, CLIENT4, "10.1.2.3"), (VIP6, CLIENT6, "fd00:1::2:3")],
    ids=["ipv4", "ipv6"],
)
@pytest.mark.parametrize("forward", [f for f in Forward if not f.is_nat], ids=lambda f: f.value)
def test_the_frame_is_what_the_program_makes_of_a_clients_syn(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, forward: Forward, vip: str, client: str, server: str
):
    member = backend("a", server)
    web = service(member, vip=vip, forward=forward)
    rig.serve(web)
    packet = Segment(ip_address(client), 40_000, ip_address(vip), 80, 7, 0, SYN).packet()
    done = rig.send(_arriving(packet, one_hop_more=forward.is_tunnel))
    assert done.verdict == Verdict.TX
    address = member.address
    source = ip_address(BALANCER4 if address.version == 4 else BALANCER6)
    hop = NextHop(address, 2, mac_of(address), BALANCER_MAC, 1500, on_link=True, source=source)
    if forward is Forward.GUE:  # it depends on the client
        sport = int.from_bytes(done.data[GUE_SPORT[address.version]])
        monkeypatch.setattr(way, "_GUE_SPORT", sport)
    found = way.way_of(web, member)
    assert found is not None
    assert way.frame(found, hop, packet, source, GUE_PORT) == done.data


def _arriving(packet: bytes, *, one_hop_more: bool) -> bytes:
    """In a frame; the program takes one from the TTL of what it puts into another packet."""
    ip = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    if one_hop_more and isinstance(ip, IP):
        ip.ttl += 1
        del ip.chksum
    elif one_hop_more:
        ip.hlim += 1
    return bytes(ether() / ip)
