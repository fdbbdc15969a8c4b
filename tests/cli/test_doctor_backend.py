"""The doctor on a backend."""

from __future__ import annotations

import dataclasses

import pytest

from agent.model import Forward
from lbctl.doctor.facts import (
    Facts,
    Link,
    Program,
    Question,
    Role,
    Verdict,
)
from tests.cli.doctor_facts import CARD, HOST, LOOPBACK, RUNNING, VIP, VIP6, verdicts

GOOD_BACKEND = {
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
    "net.ipv4.conf.all.rp_filter": 2,
    "net.ipv4.conf.eth0.rp_filter": 1,
}
LO_WITH_VIP = dataclasses.replace(LOOPBACK, addresses=frozenset({VIP}))
TUNNEL = Link("sy-ipip", kind="ipip", addresses=frozenset({VIP}))


def backend(*links, sysctl=None):
    return Facts(HOST, (CARD, *links), RUNNING, GOOD_BACKEND | (sysctl or {}))


def ask_backend(forward=Forward.DSR, *vips):
    return Question(Role.BACKEND, "eth0", vips or (VIP,), forward)


def test_good_backend_has_no_complaint():
    assert verdicts(backend(LO_WITH_VIP), ask_backend()) == {}
    assert verdicts(backend(LO_WITH_VIP, TUNNEL), ask_backend(Forward.IPIP)) == {}


def test_backend_without_the_vip_is_told():
    finding = verdicts(backend(LOOPBACK), ask_backend())["vip"]
    assert finding.verdict is Verdict.PROBLEM
    assert finding.fix == "ip address add 10.0.0.10/32 dev lo"
    assert "nodad" in verdicts(backend(LOOPBACK), ask_backend(Forward.DSR, VIP6))["vip"].fix


def test_vip_on_an_interface_that_announces_it_is_a_problem():
    loud = dataclasses.replace(CARD, name="eth1", addresses=frozenset({VIP}))
    finding = verdicts(backend(LO_WITH_VIP, loud), ask_backend())["vip"]
    assert "ip address del 10.0.0.10/32 dev eth1" in finding.fix


def test_vip_on_a_dummy_device_is_well():
    dummy = Link("vips", kind="dummy", addresses=frozenset({VIP}))
    assert verdicts(backend(LOOPBACK, dummy), ask_backend()) == {}


@pytest.mark.parametrize(
    ("key", "value"), [("arp_ignore", 0), ("arp_ignore", 3), ("arp_announce", 1)]
)
def test_backend_that_answers_arp_for_the_vip_is_a_problem(key, value):
    found = backend(LO_WITH_VIP, sysctl={f"net.ipv4.conf.all.{key}": value})
    finding = verdicts(found, ask_backend())[key]
    assert finding.verdict is Verdict.PROBLEM
    assert f"sysctl -w net.ipv4.conf.all.{key}=" in finding.fix


def test_arp_setting_of_the_interface_itself_is_enough():
    sysctl = {"net.ipv4.conf.all.arp_ignore": 0, "net.ipv4.conf.eth0.arp_ignore": 1}
    assert verdicts(backend(LO_WITH_VIP, sysctl=sysctl), ask_backend()) == {}


def test_ipv6_needs_no_arp_settings():
    lo = dataclasses.replace(LOOPBACK, addresses=frozenset({VIP6}))
    silent = {"net.ipv4.conf.all.arp_ignore": 0, "net.ipv4.conf.all.arp_announce": 0}
    assert verdicts(backend(lo, sysctl=silent), ask_backend(Forward.DSR, VIP6)) == {}


def test_strict_rp_filter_breaks_ipip_and_may_break_dsr():
    strict = {"net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.sy-ipip.rp_filter": 1}
    found = backend(LO_WITH_VIP, TUNNEL, sysctl=strict)
    assert verdicts(found, ask_backend(Forward.IPIP))["rp_filter"].verdict is Verdict.PROBLEM
    assert verdicts(found, ask_backend())["rp_filter"].verdict is Verdict.WARNING


def test_what_comes_out_of_a_tunnel_without_an_address_is_dropped_by_a_loose_filter_too():
    """Seen on Debian 13, whose rp_filter is 2 everywhere: TcpExtIPReversePathFilter rose."""
    bare = dataclasses.replace(TUNNEL, addresses=frozenset())
    finding = verdicts(backend(LO_WITH_VIP, bare), ask_backend(Forward.IPIP))["rp_filter"]
    assert finding.verdict is Verdict.PROBLEM
    assert finding.fix == "ip address add 10.0.0.10/32 dev sy-ipip"
    off = {f"net.ipv4.conf.{name}.rp_filter": 0 for name in ("all", "eth0")}
    assert verdicts(backend(LO_WITH_VIP, bare, sysctl=off), ask_backend(Forward.IPIP)) == {}
    assert verdicts(backend(LO_WITH_VIP, bare), ask_backend(Forward.IPIP, VIP6)).keys() <= {"vip"}


def test_ipip_backend_needs_somebody_to_decapsulate():
    assert (
        "backend-setup.sh"
        in verdicts(backend(LO_WITH_VIP), ask_backend(Forward.IPIP))["decapsulation"].fix
    )
    down = dataclasses.replace(TUNNEL, up=False)
    assert (
        "ip link set dev sy-ipip up"
        in verdicts(backend(LO_WITH_VIP, down), ask_backend(Forward.IPIP))["decapsulation"].fix
    )
    program = dataclasses.replace(CARD, program=Program(9, "decap", "native"))
    found = Facts(HOST, (program, LO_WITH_VIP), RUNNING, GOOD_BACKEND)
    assert verdicts(found, ask_backend(Forward.IPIP)) == {}


def test_gue_backend_needs_a_port_and_a_tunnel_device():
    ask = ask_backend(Forward.GUE)
    finding = verdicts(backend(LO_WITH_VIP, TUNNEL), ask)["decapsulation"]
    assert "up gue 10.0.0.10" in finding.fix
    ready = dataclasses.replace(backend(LO_WITH_VIP, TUNNEL), gue_ports=frozenset({6080}))
    assert verdicts(ready, ask) == {}
    bare = dataclasses.replace(backend(LO_WITH_VIP), gue_ports=frozenset({6080}))
    assert "no tunnel device" in verdicts(bare, ask)["decapsulation"].message


@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_a_tunnel_device_should_take_packets_of_balancers_only(forward: Forward):
    ask = ask_backend(forward)
    ready = dataclasses.replace(backend(LO_WITH_VIP, TUNNEL), gue_ports=frozenset({6080}))
    open_to_all = dataclasses.replace(ready, nft_tables=frozenset({"filter"}))
    finding = verdicts(open_to_all, ask)["tunnel senders"]
    assert finding.verdict is Verdict.WARNING
    assert f"up {forward.value} --from BALANCER 10.0.0.10" in finding.fix
    guarded = dataclasses.replace(ready, nft_tables=frozenset({"steelyard_tunnels"}))
    assert verdicts(guarded, ask) == {}
    assert verdicts(ready, ask) == {}, "nobody can see the rules"
    without = dataclasses.replace(backend(LO_WITH_VIP), nft_tables=frozenset())
    assert "tunnel senders" not in verdicts(without, ask)
    assert verdicts(open_to_all, ask_backend(Forward.DSR)) == {}


def test_nat_backend_needs_its_route_and_no_vip():
    loud = {"net.ipv4.conf.all.arp_ignore": 0}
    found = verdicts(backend(LOOPBACK, sysctl=loud), ask_backend(Forward.NAT))
    assert list(found) == ["gateway"]
    assert "via BALANCER" in found["gateway"].fix
    assert verdicts(backend(LOOPBACK, sysctl=loud), ask_backend(Forward.FULLNAT)) == {}
