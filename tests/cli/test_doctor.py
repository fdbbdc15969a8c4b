"""The doctor: each check against facts that are made up."""

from __future__ import annotations

import dataclasses

import pytest

from agent.config.advice import HostFacts
from agent.model import Forward
from lbctl.doctor import gather, gather_agent
from lbctl.doctor.checks import examine
from lbctl.doctor.facts import (
    AgentFacts,
    Attempt,
    Bcc,
    Feature,
    Program,
    Question,
    Queues,
    Role,
    Verdict,
)
from tests.cli.doctor_facts import (
    BALANCER,
    CARD,
    FIXED_TAGS,
    HOST,
    RUNNING,
    STAGS_TOO,
    STATUS,
    TAGGED,
    VIP,
    card,
    facts,
    host,
    verdicts,
    with_hook,
)


def changed(**given):
    return dataclasses.replace(facts(), **given)


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
        (host(bpffs=False), "bpffs", "warning", "mount -t bpf -o mode=0700 bpf /sys/fs/bpf"),
        (host(bcc=Bcc(found=False, usable=False)), "bcc", "problem", "python3-bpfcc"),
        (host(bcc=Bcc(found=True, usable=False)), "bcc", "problem", "pip uninstall bcc"),
        (host(bcc=Bcc(found=True, usable=False, problem="x")), "bcc", "problem", "--reinstall"),
        (host(bcc=Bcc(found=True, usable=True, version="0.26.0")), "bcc", "warning", "Debian 13"),
        (host(clock=None), "clock", "unknown", ""),
        (changed(nft_installed=False), "guard", "warning", "apt-get install nftables"),
        (changed(nft_tables=frozenset({"filter"})), "guard", "warning", "journalctl"),
        (changed(nft_tables=None), "guard", "unknown", "sudo lbctl doctor"),
        (card(up=False), "interface", "problem", "ip link set dev eth0 up"),
        (card(carrier=False), "interface", "problem", "ethtool eth0"),
        (card(xdp_features=frozenset()), "native XDP", "warning", "hook: auto"),
        (card(xdp_features=None, driver="e1000"), "native XDP", "warning", "hook: auto"),
        (card(xdp_features=None, driver=None), "native XDP", "unknown", "ethtool"),
        (card(kind="vlan", parent="eth9"), "native XDP", "warning", "use eth9"),
        (card(mtu=9000), "mtu", "warning", "hook: tc"),
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
            facts(CARD, TAGGED),
            "vlan",
            "warning",
            "ethtool -K eth0 rxvlan off",
        ),
        (
            facts(STAGS_TOO, TAGGED),
            "vlan",
            "warning",
            "rxvlan off; ethtool -K eth0 rx-vlan-stag-hw-parse off",
        ),
        (facts(FIXED_TAGS, TAGGED), "vlan", "warning", "hook: tc"),
        (
            with_hook("native", dataclasses.replace(CARD, kind="veth", driver="veth")),
            "veth",
            "problem",
            "hook: auto",
        ),
        (
            with_hook("native", dataclasses.replace(CARD, kind="veth"), TAGGED),
            "veth vlan",
            "unknown",
            "ethtool -K PEER txvlan off",
        ),
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


def test_virtio_with_the_native_program_has_what_it_wants():
    """Seen with 2 CPUs and 4 queues: all are in use once it is attached, and a feature says GRO."""
    merging = {"rx-gro-hw": Feature(on=True, fixed=True)}
    wanted = {"driver": "virtio_net", "queues": Queues(8, 8), "features": merging}
    native = card(**wanted, program=Program(9, "balance", "native"))
    assert not verdicts(native, BALANCER).keys() & {"queues", "offloads"}
    generic = card(**wanted, program=Program(9, "balance", "generic"))
    assert verdicts(generic, BALANCER).keys() >= {"queues", "offloads"}
    shared = card(**wanted | {"queues": Queues(4, 4)}, program=Program(9, "balance", "native"))
    assert "queues" in verdicts(shared, BALANCER)


def test_tunnels_need_room_for_their_headers():
    services = {"services": [{"vip": "10.0.0.10", "forward": "ipip"}]}
    agent = dataclasses.replace(RUNNING, config=services)
    assert "1480 bytes to IPv4" in verdicts(facts(agent=agent))["tunnel mtu"].message
    asked = dataclasses.replace(BALANCER, forward=Forward.IPIP)
    assert "tunnel mtu" in verdicts(facts(), asked)
    assert "tunnel mtu" not in verdicts(card(mtu=1540), asked)
    assert "tunnel mtu" not in verdicts(facts())
    gue = dataclasses.replace(BALANCER, forward=Forward.GUE)
    assert "1472 bytes to IPv4" in verdicts(facts(), gue)["tunnel mtu"].message
    assert "mtu 1548" in verdicts(card(mtu=1540), gue)["tunnel mtu"].fix


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


def test_a_remedy_that_the_agent_names_is_the_fix():
    told = "tables.guard_nodes: 9 do not fit\n  remedy: set tables.guard_nodes to 18"
    bad = STATUS | {"agent": STATUS["agent"] | {"reconcile_problem": told}}
    finding = verdicts(facts(agent=dataclasses.replace(RUNNING, status=bad)))["agent"]
    assert finding.message == "tables: tables.guard_nodes: 9 do not fit"
    assert finding.fix == "set tables.guard_nodes to 18"


def test_servers_that_run_out_of_ports_are_a_problem():
    bad = STATUS | {"dataplane": STATUS["dataplane"] | {"nat_problems": ["22,000 of 22,528 …"]}}
    finding = verdicts(facts(agent=dataclasses.replace(RUNNING, status=bad)))["agent"]
    assert finding.verdict is Verdict.PROBLEM
    assert finding.message == "fullnat: 22,000 of 22,528 …"
    assert "nat.sources_ipv4" in finding.fix


def test_another_host_that_answers_for_a_vip_is_a_problem():
    told = "8e:c8:18:5b:31:e4 answers for 10.0.0.10, too: it is no backend's"
    bad = STATUS | {"dataplane": STATUS["dataplane"] | {"vip_problems": [told]}}
    finding = verdicts(facts(agent=dataclasses.replace(RUNNING, status=bad)))["agent"]
    assert (finding.verdict, finding.message) == (Verdict.PROBLEM, told)
    assert "backend-setup.sh" in finding.fix
    other = told.replace("no backend's", "balancer 10.0.0.2; lbctl failover status on both …")
    bad = STATUS | {"dataplane": STATUS["dataplane"] | {"vip_problems": [other]}}
    finding = verdicts(facts(agent=dataclasses.replace(RUNNING, status=bad)))["agent"]
    assert "lb-agent-failover" in finding.fix


def test_prefix_of_vips_is_routed_and_on_no_interface():
    config = {"services": [{"vip": "10.0.0.0/24"}]}
    assert "vip" not in verdicts(facts(agent=dataclasses.replace(RUNNING, config=config)))


def test_missing_vip_is_told():
    config = {"services": [{"vip": "10.0.0.10"}, {"vip": "10.0.0.10"}]}
    agent = dataclasses.replace(RUNNING, config=config)
    finding = verdicts(facts(agent=agent))["vip"]
    assert "ip address add 10.0.0.10/32 dev eth0" in finding.fix
    there = dataclasses.replace(CARD, addresses=frozenset({VIP}))
    assert "vip" not in verdicts(facts(there, agent=agent))


def test_command_reports_and_exits_by_the_problems(run, monkeypatch):
    found = card(up=False)
    monkeypatch.setattr(
        gather, "gather", lambda env, interface, file: (found, (interface or "eth0",))
    )
    result = run("doctor")
    assert result.code == 1
    assert "ip link set dev eth0 up" in result.out
    assert "balancer on eth0: 1 problem, 0 warnings, 0 unknown" in result.out
    monkeypatch.setattr(gather, "gather", lambda env, interface, file: (facts(), ("eth0",)))
    assert run("doctor").code == 0
    answer = run("doctor", "--problems", "-o", "json").json
    assert (answer["problems"], answer["findings"]) == (0, [])


def test_command_looks_at_this_host_without_an_agent(run):
    result = run("doctor", "--interface", "lo", "-o", "json")
    assert result.code in (0, 1)
    checks = {finding["check"]: finding for finding in result.json["findings"]}
    assert checks["agent"]["verdict"] == "warning"
    assert checks["kernel"]["verdict"] == "ok"


def test_command_takes_the_interface_of_the_agent(agent, run):
    agent.status["dataplane"]["interface"] = "lo"
    assert run("doctor", "-o", "json").json["interface"] == "lo"
    assert run("doctor", "-i", "nope0").code == 1


FILE = """\
interface: not-here0
services:
  - {name: chat, vip: 10.0.0.10, port: 80}
"""


def test_before_the_first_start_the_file_is_looked_at(run, tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(FILE)
    result = run("doctor", "--config", str(path), "-o", "json")
    found = [(each["check"], each["verdict"], each["message"]) for each in result.json["findings"]]
    assert result.json["interface"] == "not-here0", "the file tells which"
    assert ("interface", "problem", "there is no interface 'not-here0' here") in found
    assert ("configuration", "warning", "service chat: has no backend: nothing is served") in found


def test_a_broken_file_is_a_problem_before_the_first_start(run, tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(FILE + "  - {}\n")
    result = run("doctor", "--config", str(path), "-o", "json")
    broken = [each for each in result.json["findings"] if each["check"] == "configuration"]
    assert result.code == 1
    assert all(each["verdict"] == "problem" and f"{path}:4" in each["message"] for each in broken)
    assert broken


def test_vips_and_backends_of_the_file_are_compared_with_this_host(tmp_path, monkeypatch):
    here = HostFacts(frozenset({"lo"}), frozenset({VIP}), frozenset())
    monkeypatch.setattr("agent.hostfacts.look", lambda _: here)
    path = tmp_path / "agent.yaml"
    path.write_text(
        "interface: lo\nservices:\n"
        "  - name: chat\n    vip: 10.0.0.10\n    port: 22\n"
        "    backends: [{name: gpu-1, address: 192.0.2.250}]\n"
    )
    silent = AgentFacts("/x.sock", problem="no agent", remedy="start it")
    agent = gather_agent.with_file(silent, path)
    said = [str(finding) for finding in examine(facts(agent=agent), BALANCER)]
    assert any("10.0.0.10 is an address of this host itself" in text for text in said)
    assert any("backend gpu-1" in text and "192.0.2.250" in text for text in said)
    assert any("the agent will add them to eth0 at its start: 10.0.0.10" in text for text in said)


def test_a_running_agent_is_asked_and_not_its_file(agent, run, tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("broken")
    result = run("doctor", "--config", str(path), "-o", "json")
    assert "configuration" not in {each["check"] for each in result.json["findings"]}


def with_clock(clock, config, ask=BALANCER):
    made = dataclasses.replace(RUNNING, config={"services": []} | config)
    machine = dataclasses.replace(HOST, clock=clock)
    return verdicts(facts(host=machine, agent=made), ask).get("clock")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"failover": {"sync": {"peers": ["10.0.0.2"]}}}, "blocks that balancers tell"),
        ({"failover": {"instances": [{"authentication": "hmac"}]}}, "authenticated adverts"),
        ({"services": [{"vip": "10.0.0.10", "syn_cookies": True}]}, "SYN cookies"),
        ({"status_page": {"certificate": "/x.pem"}}, "certificates"),
        ({"fleet": {"etcd": {"endpoints": ["https://etcd1:2379"]}}}, "certificates"),
        ({"services": [{"vip": "10.0.0.10", "health": {"verify_tls": True}}]}, "certificates"),
    ],
)
def test_a_clock_that_nobody_keeps_right_matters_where_hosts_compare_theirs(config, says):
    finding = with_clock(False, config)
    assert (finding.verdict, says in finding.message) == (Verdict.WARNING, True)
    assert "timedatectl set-ntp true" in finding.fix
    assert with_clock(True, config) is None
    assert with_clock(False, {"failover": {"instances": [{"name": "web"}]}}) is None


def test_a_backend_is_told_of_its_clock_for_syn_cookies():
    assert "SYN cookies" in with_clock(False, {}, Question(Role.BACKEND, "eth0")).message


@pytest.mark.parametrize("role", [Role.BALANCER, Role.BACKEND])
def test_a_full_connection_table_of_the_kernel_is_told(role):
    def found(count):
        sysctl = {
            "net.netfilter.nf_conntrack_count": count,
            "net.netfilter.nf_conntrack_max": 1000,
        }
        return verdicts(facts(sysctl=sysctl), Question(role, "eth0")).get("conntrack")

    assert found(799) is None
    assert found(800).verdict is Verdict.WARNING
    assert found(1000).verdict is Verdict.PROBLEM
    assert "sysctl -w net.netfilter.nf_conntrack_max=4000" in found(1000).fix


def test_more_neighbours_than_the_kernel_remembers_are_told():
    def found(forward, count, name="net.ipv4.neigh.default.gc_thresh2"):
        backends = [{"address": f"10.1.0.{n}"} for n in range(count)]
        twice = [{"vip": "10.0.0.0/24", "forward": forward, "backends": backends}] * 2
        agent = dataclasses.replace(RUNNING, config={"services": twice})
        return verdicts(facts(agent=agent, sysctl={name: 100})).get("neighbours")

    assert found("dsr", 100) is None
    assert "balancer.conf" in found("dsr", 101).fix
    assert found("ipip", 101) is None, "routers are its neighbours"
    assert found("dsr", 101, "net.ipv6.neigh.default.gc_thresh2") is None
