"""Facts that are made up for the doctor: a good host, and how to spoil it."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

from lbctl.doctor.checks import examine
from lbctl.doctor.facts import (
    AgentFacts,
    Attempt,
    Bcc,
    Facts,
    Feature,
    Host,
    Link,
    Process,
    Question,
    Queues,
    Role,
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
    clock=True,
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
TAGGED = Link("eth0.5", kind="vlan", parent="eth0")
STAGS_TOO = dataclasses.replace(
    CARD,
    features={"rx-vlan-offload": Feature(on=True), "rx-vlan-stag-hw-parse": Feature(on=True)},
)
FIXED_TAGS = dataclasses.replace(CARD, features={"rx-vlan-offload": Feature(on=True, fixed=True)})
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
PROCESS = Process(
    open_files=65_536,
    locked_memory=float("inf"),
    capabilities=HOST.capabilities | {"CAP_NET_RAW"},
    same_python=True,
)
RUNNING = AgentFacts("/run/steelyard/agent.sock", STATUS, {"services": []}, process=PROCESS)
BALANCER = Question(Role.BALANCER, "eth0")


def facts(link=CARD, *others, host=HOST, agent=RUNNING, sysctl=None, pinned=frozenset()):
    found = Facts(host, (LOOPBACK, link, *others), agent, sysctl or {}, pinned)
    return dataclasses.replace(found, nft_tables=frozenset({"steelyard-edge-1"}))


def verdicts(found, ask=BALANCER):
    return {
        finding.check: finding for finding in examine(found, ask) if finding.verdict.value != "ok"
    }


def host(**changed):
    return facts(host=dataclasses.replace(HOST, **changed))


def card(**changed):
    return facts(dataclasses.replace(CARD, **changed))


def with_hook(hook, *links, **changed):
    """An agent that uses this hook."""
    status = STATUS | {"dataplane": STATUS["dataplane"] | {"hook": hook}}
    agent = dataclasses.replace(RUNNING, status=status)
    return dataclasses.replace(facts(*(links or (CARD,)), agent=agent), **changed)
