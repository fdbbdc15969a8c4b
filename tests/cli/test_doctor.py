"""The doctor: each check against facts that are made up, and what it makes of real output."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest

from agent.model import Forward
from lbctl.doctor import gather, netdev
from lbctl.doctor.checks import examine
from lbctl.doctor.facts import (
    AgentFacts,
    Attempt,
    Bcc,
    Facts,
    Feature,
    Host,
    Link,
    Program,
    Question,
    Queues,
    Role,
    Verdict,
)

VIP = ip_address("10.0.0.10")
VIP6 = ip_address("fd00::10")
HOST = Host(
    root=True,
    capabilities=frozenset({"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"}),
    kernel=(6, 12),
    kernel_release="6.12.9-amd64",
    cpus=4,
    bpf_map=Attempt(),
    bpf_program=Attempt(),
    btf=True,
    jit=1,
    bpffs=True,
    bcc=Bcc(found=True, usable=True, version="0.31.0"),
    open_files=65_536,
)
CARD = Link(
    name="eth0",
    driver="mlx5_core",
    features={
        "large-receive-offload": Feature(on=False),
        "rx-gro-hw": Feature(on=False),
        "rx-vlan-offload": Feature(on=True),
    },
    queues=Queues(4, 8),
    xdp_features=frozenset({"basic", "redirect"}),
)
LOOPBACK = Link(name="lo", addresses=frozenset({ip_address("127.0.0.1")}))
STATUS = {
    "agent": {
        "name": "edge-1",
        "version": "0.1.0",
        "pid": 1,
        "config_problem": "",
        "reconcile_problem": "",
    },
    "dataplane": {"interface": "eth0", "attached": True, "program_id": 42},
}
RUNNING = AgentFacts("/run/steelyard/agent.sock", STATUS, {"services": []}, open_files=65_536)
BALANCER = Question(Role.BALANCER, "eth0")


def facts(link=CARD, *others, host=HOST, agent=RUNNING, sysctl=None, pinned=frozenset()):
    return Facts(host, (LOOPBACK, link, *others), agent, sysctl or {}, pinned)


def verdicts(found, ask=BALANCER):
    return {
        finding.check: finding for finding in examine(found, ask) if finding.verdict.value != "ok"
    }


def host(**changed):
    return facts(host=dataclasses.replace(HOST, **changed))


def card(**changed):
    return facts(dataclasses.replace(CARD, **changed))


def test_good_host_has_no_complaint():
    assert verdicts(facts()) == {}


@pytest.mark.parametrize(
    ("found", "check", "verdict", "fix"),
    [
        (host(kernel=(5, 4)), "kernel", "problem", "newer kernel"),
        (host(capabilities=frozenset()), "privileges", "problem", "--privileged"),
        (host(root=False, capabilities=frozenset()), "privileges", "warning", "sudo lbctl doctor"),
        (host(bpf_map=Attempt("Operation not permitted")), "bpf", "problem", "lockdown"),
        (host(bpf_map=None), "bpf", "unknown", ""),
        (host(root=False, bpf_map=Attempt("no")), "bpf", "unknown", "sudo"),
        (host(btf=False), "btf", "warning", ""),
        (host(jit=0), "jit", "problem", "sysctl -w net.core.bpf_jit_enable=1"),
        (host(jit=2), "jit", "warning", "sysctl -w net.core.bpf_jit_enable=1"),
        (host(jit=None), "jit", "unknown", ""),
        (host(bpffs=False), "bpffs", "warning", "mount -t bpf bpf /sys/fs/bpf"),
        (host(bcc=Bcc(found=False, usable=False)), "bcc", "problem", "python3-bpfcc"),
        (host(bcc=Bcc(found=True, usable=False)), "bcc", "problem", "pip uninstall bcc"),
        (host(bcc=Bcc(found=True, usable=False, problem="x")), "bcc", "problem", "--reinstall"),
        (card(up=False), "interface", "problem", "ip link set dev eth0 up"),
        (card(xdp_features=frozenset()), "native XDP", "warning", "generic"),
        (card(xdp_features=None, driver="e1000"), "native XDP", "warning", "xdp_mode: auto"),
        (card(xdp_features=None, driver=None), "native XDP", "unknown", "ethtool"),
        (card(kind="vlan", parent="eth9"), "native XDP", "warning", "use eth9"),
        (card(mtu=9000), "mtu", "warning", "mtu 1500"),
        (card(queues=Queues(2, 8)), "queues", "warning", "ethtool -L eth0 combined 4"),
        (card(queues=Queues(8, 8), driver="ena"), "queues", "warning", "combined 4"),
        (card(queues=Queues(4, 4), driver="virtio_net"), "queues", "warning", "hypervisor"),
        (card(queues=None), "queues", "unknown", ""),
        (
            card(features={"large-receive-offload": Feature(on=True)}),
            "offloads",
            "warning",
            "ethtool -K eth0 lro off",
        ),
        (
            card(features={"rx-gro-hw": Feature(on=True, fixed=True)}),
            "offloads",
            "warning",
            "hypervisor",
        ),
        (card(features=None), "offloads", "unknown", "apt-get install ethtool"),
        (
            facts(CARD, Link("eth0.5", kind="vlan", parent="eth0")),
            "vlan",
            "warning",
            "ethtool -K eth0 rxvlan off",
        ),
        (card(kind="veth", driver="veth"), "veth", "unknown", "lbctl lab up"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(found, check, verdict, fix):
    finding = verdicts(found)[check]
    assert finding.verdict.value == verdict
    assert fix in finding.fix


def test_interface_that_is_not_there_is_guessed():
    finding = verdicts(facts(), Question(Role.BALANCER, "eht0"))["interface"]
    assert finding.verdict is Verdict.PROBLEM
    assert "did you mean eth0?" in finding.fix


def test_known_driver_of_an_old_kernel_is_trusted():
    assert "native XDP" not in verdicts(card(xdp_features=None))


def test_large_mtu_is_well_where_the_driver_takes_fragments():
    assert "mtu" not in verdicts(card(mtu=9000, xdp_features=frozenset({"basic", "rx-sg"})))


def test_ipip_needs_room_for_its_header():
    services = {"services": [{"vip": "10.0.0.10", "forward": "ipip"}]}
    agent = dataclasses.replace(RUNNING, config=services)
    assert "1480 bytes to IPv4" in verdicts(facts(agent=agent))["ipip mtu"].message
    asked = dataclasses.replace(BALANCER, forward=Forward.IPIP)
    assert "ipip mtu" in verdicts(facts(), asked)
    assert "ipip mtu" not in verdicts(card(mtu=1540), asked)
    assert "ipip mtu" not in verdicts(facts())


@pytest.mark.parametrize(
    ("ident", "pinned", "root", "verdict"),
    [
        (42, frozenset(), True, None),  # the running agent's
        (7, frozenset({7}), True, None),  # left by an agent that is stopped
        (7, frozenset(), True, "problem"),
        (7, frozenset(), False, "unknown"),
    ],
)
def test_only_a_strangers_program_is_a_problem(ident, pinned, root, verdict):
    link = dataclasses.replace(CARD, program=Program(ident, "other", "native"))
    found = facts(link, host=dataclasses.replace(HOST, root=root), pinned=pinned)
    finding = verdicts(found).get("other XDP")
    assert (finding and finding.verdict.value) == verdict


def test_agent_that_does_not_answer_is_a_warning():
    silent = AgentFacts("/x.sock", problem="no agent", remedy="start it")
    finding = verdicts(facts(agent=silent))["agent"]
    assert (finding.verdict, finding.fix) == (Verdict.WARNING, "start it")
    denied = verdicts(facts(agent=dataclasses.replace(silent, denied=True)))["agent"]
    assert "sudo" in denied.fix


def test_agent_with_a_problem_is_a_problem():
    bad = STATUS | {"agent": STATUS["agent"] | {"config_problem": "line 3: unknown key"}}
    finding = verdicts(facts(agent=dataclasses.replace(RUNNING, status=bad)))["agent"]
    assert finding.verdict is Verdict.PROBLEM
    assert "line 3: unknown key" in finding.message


def test_agent_with_few_files_is_told():
    assert (
        "LimitNOFILE"
        in verdicts(facts(agent=dataclasses.replace(RUNNING, open_files=1024)))["open files"].fix
    )


def test_missing_vip_is_told():
    config = {"services": [{"vip": "10.0.0.10"}, {"vip": "10.0.0.10"}]}
    agent = dataclasses.replace(RUNNING, config=config)
    finding = verdicts(facts(agent=agent))["vip"]
    assert "ip address add 10.0.0.10/32 dev eth0" in finding.fix
    there = dataclasses.replace(CARD, addresses=frozenset({VIP}))
    assert "vip" not in verdicts(facts(there, agent=agent))


GOOD_BACKEND = {
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
    "net.ipv4.conf.all.rp_filter": 2,
    "net.ipv4.conf.eth0.rp_filter": 1,
}
LO_WITH_VIP = dataclasses.replace(LOOPBACK, addresses=frozenset({VIP}))
TUNNEL = Link("sy-ipip", kind="ipip")


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


def test_command_reports_and_exits_by_the_problems(run, monkeypatch):
    found = card(up=False)
    monkeypatch.setattr(gather, "gather", lambda env, interface: (found, interface or "eth0"))
    result = run("doctor")
    assert result.code == 1
    assert "ip link set dev eth0 up" in result.out
    assert "balancer on eth0: 1 problem, 0 warnings, 0 unknown" in result.out
    monkeypatch.setattr(gather, "gather", lambda env, interface: (facts(), "eth0"))
    assert run("doctor").code == 0
    answer = run("doctor", "--problems", "-o", "json").json
    assert (answer["problems"], answer["findings"]) == (0, [])


def test_command_looks_at_this_host_without_an_agent(run):
    result = run("doctor", "--interface", "lo", "-o", "json")
    assert result.code in (0, 1)
    checks = {finding["check"]: finding for finding in result.json["findings"]}
    assert checks["agent"]["verdict"] == "warning"
    assert checks["kernel"]["verdict"] == "ok"


def test_interface_needs_no_name_where_there_is_but_one():
    lo, other = (dataclasses.replace(CARD, name=name) for name in ("lo", "eth1"))
    assert gather.only_interface((lo, CARD)) == CARD.name
    assert gather.only_interface((lo, CARD, other)) is None
    assert gather.only_interface((lo,)) is None


def test_command_takes_the_interface_of_the_agent(agent, run):
    agent.status["dataplane"]["interface"] = "lo"
    assert run("doctor", "-o", "json").json["interface"] == "lo"
    assert run("doctor", "-i", "nope0").code == 1
