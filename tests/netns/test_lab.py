"""The lab itself: it carries traffic, refuses what it cannot do, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.fleet import gateway
from agent.fleet.etcd import Client
from agent.model import Etcd, Forward
from lbctl.lab import build, failover, netns, processes, statefile, topology
from lbctl.lab.build import Owner
from lbctl.lab.interrupt import Interrupted
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Role
from tests.netns.etcdcluster import needs_etcd
from tests.netns.site import wait_until

NAME = "st-lab"
LBCTL = [sys.executable, "-m", "lbctl.main", "lab", "--name", NAME]


def quiet(_text: str) -> None:
    """Report to nobody."""


def lbctl(*words: str) -> subprocess.CompletedProcess[str]:
    return run(*LBCTL, *words)


def run(*command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=processes.environment(),
    )


def traces() -> list[str]:
    """Everything on this machine that a lab of our name could have left."""
    return [
        *build.leftovers(NAME),
        *(str(pid) for pid in processes.find(topology.RUN_ROOT / NAME)),
        *(str(path) for path in Path("/sys/fs/bpf").glob(f"*/{NAME}-*")),
        *(str(path) for path in topology.RUN_ROOT.glob(f"*{NAME}-*")),
    ]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    build.down(NAME, quiet)
    yield
    build.down(NAME, quiet)
    assert traces() == []


@contextlib.contextmanager
def bare_network(lab: Lab) -> Iterator[None]:
    """The hosts of a lab and the servers, without any balancer."""
    lab.run_dir.mkdir(parents=True)
    build.build_network(lab)
    for backend in lab.nodes(Role.BACKEND):
        build.start_server(lab, backend)
    try:
        yield
    finally:
        build.down(lab.name, quiet)


def make_load(lab: Lab, *words: str, awaited: set[str]) -> list[dict[str, Any]]:
    """The records of a load that goes on until each of these was seen: backends that have answered
    a request, and events of held connections.
    """
    command = [*netns.entering(lab.node("client").namespace), sys.executable]
    command += ["-m", "lbctl.lab.load", "--duration", "90", *words]
    environment = processes.environment(lab.run_dir)
    records: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as load:
        assert load.stdout is not None
        for line in load.stdout:
            records.append(record := json.loads(line))
            if record["record"] == "request":
                awaited.discard(record["backend"])
            awaited.discard(f"{record.get('kind')} {record.get('event')}")
            if not awaited:
                break
        load.terminate()
        records += [json.loads(line) for line in load.stdout]
    return records


def wait_for_servers(lab: Lab) -> None:
    with netns.inside(lab.node("client").namespace):
        deadline = time.monotonic() + 90
        while any(build._ask(str(node.ipv4)) for node in lab.nodes(Role.BACKEND)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_hosts_reach_each_other_and_load_is_reported_line_by_line() -> None:
    lab = Lab(name=NAME, backends=2)
    be1, be2 = lab.nodes(Role.BACKEND)
    with bare_network(lab):
        wait_for_servers(lab)
        records = make_load(
            lab,
            *("--target", f"{be1.ipv4}:80", "--target", f"[{be2.ipv6}]:80"),
            *("--rate", "100", "--keep-alive", "2", "--streams", "2"),
            *("--stream-seconds", "0.5", "--timeout", "60"),
            awaited={"be1", "be2", "keep-alive opened", "stream opened", "stream finished"},
        )
    summary = records[-1]
    assert summary["failed"] == 0
    assert summary["backends"].keys() == {"be1", "be2"}
    opened = {r["kind"] for r in records if r.get("event") == "opened"}
    assert opened == {"keep-alive", "stream"}
    assert any(record.get("event") == "finished" for record in records)


@needs_etcd
def test_balancers_reach_etcd_and_the_lab_shows_and_removes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CONNECT_S", "ANSWER_S", "CALL_S"):  # there is but one member, which may be slow
        monkeypatch.setattr(gateway, name, 60.0)
    lab = Lab(name=NAME, backends=1, balancers=2, forward=Forward.NAT, arms=2, etcd=True)

    async def use(found: int) -> None:
        client = Client(Etcd(endpoints=lab.etcd_urls), "/steelyard/lab/")
        assert len((await client.list("")).rows) == found
        await client.put(f"agents/{found}", b"{}")
        await client.close()

    (host,) = lab.nodes(Role.ETCD)
    with bare_network(lab):
        build.start_etcd(lab, host, timeout_s=90)
        for found, balancer in enumerate(lab.nodes(Role.BALANCER)):
            with netns.inside(balancer.namespace):
                asyncio.run(use(found))
        ((what, name, pid),) = build.node_processes(lab, host)
        assert (what, name, pid in processes.find(lab.run_dir)) == ("etcd", "etcd", True)


def test_a_lab_with_etcd_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    has = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "etcd" else has(name))
    with pytest.raises(LabError) as caught:
        build.up(Lab(name=NAME, etcd=True), Owner(), quiet)
    assert "etcd-server" in caught.value.remedy


def test_a_killed_server_breaks_held_connections_and_refuses_new_ones() -> None:
    lab = Lab(name=NAME, backends=1)
    be1 = lab.node("be1")
    with bare_network(lab):
        wait_for_servers(lab)
        command = [*netns.entering(lab.node("client").namespace), sys.executable]
        command += ["-m", "lbctl.lab.load", "--target", f"{be1.ipv4}:80", "--keep-alive", "1"]
        load = subprocess.Popen(
            [*command, "--stream-seconds", "0", "--timeout", "60"],
            stdout=subprocess.PIPE,
            text=True,
            env=processes.environment(lab.run_dir),
        )
        assert load.stdout is not None
        events = []

        def read_until(wanted: Callable[[dict[str, Any]], bool]) -> None:
            for line in load.stdout:
                events.append(json.loads(line))
                if wanted(events[-1]):
                    return

        read_until(lambda record: record.get("event") == "opened")
        processes.kill(lab.run_dir, "be1")
        awaited = {"broke", "refused"}  # who asks anew may be refused before the other is told

        def all_is_told(record: dict[str, Any]) -> bool:
            awaited.difference_update({record.get("event"), record.get("error")})
            return not awaited

        read_until(all_is_told)
        load.terminate()
        rest = load.stdout.read()  # communicate() would lose what has been read ahead
        load.wait(120)
    events += [json.loads(line) for line in rest.splitlines()]
    assert [e["backend"] for e in events if e.get("event") == "broke"] == ["be1"]
    assert events[-1]["errors"].keys() <= {"refused", "reset", "closed"}
    assert events[-1]["errors"]["refused"] > 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--forward dsr", marks=pytest.mark.soak),
        pytest.param("--forward ipip --scheduler maglev", marks=pytest.mark.soak),
        pytest.param("--forward gue --hook native", marks=pytest.mark.soak),
        "--forward nat --arms 2 --scheduler round-robin --engines h100,a100",
        pytest.param("--forward fullnat --hook tc", marks=pytest.mark.soak),
        pytest.param("--hook generic --scheduler source", marks=pytest.mark.soak),
    ],
)
def test_up_carries_traffic_of_both_families_and_down_leaves_nothing(options: str) -> None:
    result = lbctl("up", "--backends", "2", *options.split())
    assert result.returncode == 0, result.stderr
    assert "lbctl lab --name st-lab exec client" in result.stderr
    for host in ("10.99.0.100", "[fd99::100]"):
        # Full-sized segments too: this is what an MTU without room for a header breaks.
        body = "x" * 200_000
        code = f"import http.client; c = http.client.HTTPConnection('{host}', timeout=60)"
        code += f"; c.request('POST', '/', body='x' * {len(body)}); print(c.getresponse().read())"
        answer = lbctl("exec", "client", "--", sys.executable, "-c", code)
        assert answer.stdout.strip() in {r"b'be1\n'", r"b'be2\n'"}, answer.stderr
    if "--engines" in options:
        assert_a_token_ends_the_wait()
    status = json.loads(lbctl("status", "-o", "json").stdout)
    assert all(node["pid"] for node in status["nodes"] if node["process"])
    again = lbctl("up")
    assert again.returncode == 1
    assert "--replace" in again.stderr
    assert lbctl("down").returncode == 0
    assert traces() == []


_STREAM = """
import socket, time
from lbctl.lab.prompts import request_body
body = request_body(100, 2000)
head = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n"
with socket.create_connection(("10.99.0.100", 8000), 60) as held:
    held.sendall(head % len(body) + body)
    seen = b""
    while b'"content":"' not in seen.replace(b'"content":""', b""):
        seen += held.recv(65536)
    print("token", flush=True)
    while held.recv(65536):
        pass
"""


def assert_a_token_ends_the_wait() -> None:
    """The kernel sees the first token of a streamed answer with a head as long as real ones, at
    the hook that an agent takes by itself on a veth (tc).
    """
    lab = Lab(name=NAME)
    command = [*LBCTL, "exec", "client", "--", sys.executable, "-c", _STREAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=processes.environment()) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"token\n"
            ask = [sys.executable, "-m", "lbctl.main", "flows", "--service", "chat", "-o", "json"]
            socket = {"STEELYARD_SOCKET": str(lab.socket(lab.node("lb1")))}
            told = subprocess.run(
                ask, capture_output=True, check=True, env=processes.environment() | socket
            )
            flows = json.loads(told.stdout)["flows"]
            open_ = [flow["waiting_bytes"] for flow in flows if flow["state"] == "established"]
            assert open_ == [0], flows
        finally:
            client.kill()


@pytest.mark.soak
def test_replace_builds_anew_and_a_second_balancer_takes_the_firsts_place() -> None:
    assert lbctl("up", "--backends", "1").returncode == 0
    alone = json.loads(lbctl("status", "-o", "json").stdout)
    assert {node["failover"] for node in alone["nodes"]} == {None}
    result = lbctl("up", "--backends", "1", "--balancers", "2", "--clients", "2", "--replace")
    assert result.returncode == 0, result.stderr
    wait_until("they are settled", are_settled)
    assert "failover, pid" in lbctl("status").stdout
    for host, has in (("lb1", True), ("lb2", False)):
        wait_until(f"{host} has the VIPs: {has}", lambda h=host, x=has: vips_at(h) == (x, x))  # type: ignore[misc]
    found = build.read(NAME)
    assert found is not None
    lab = found[0]
    failover.cut(lab, lab.node("lb1"), silent=True)
    failover.await_role(lab, lab.node("lb2"), failover.MASTER)
    failover.mend(lab, lab.node("lb1"))
    failover.await_role(lab, lab.node("lb2"), failover.BACKUP)
    wait_until("they are settled", are_settled)


def are_settled() -> bool:
    """A backup that was held up may take over for a moment, and gives back."""
    return roles() == {"lb1": "master", "lb2": "backup"}


def vips_at(host: str) -> tuple[bool, bool]:
    held = lbctl("exec", host, "--", "ip", "-o", "address").stdout
    return "10.99.0.100/" in held, "fd99::100/" in held


def roles() -> dict[str, str]:
    status = json.loads(lbctl("status", "-o", "json").stdout)
    return {n["name"]: n["failover"]["role"] for n in status["nodes"] if n["failover"]}


def has_vlan_devices() -> bool:
    """Whether this kernel can make them: asked in a network namespace that goes at once."""
    command = ["unshare", "--net", "ip", "link", "add", "link", "lo", "name", "v", "type", "vlan"]
    return subprocess.run([*command, "id", "5"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("forward", ["dsr", "nat", "gue"])
def test_a_vlan_carries_traffic_or_the_kernel_is_said_to_have_none(forward: str) -> None:
    result = lbctl("up", "--backends", "1", "--vlan", "100", "--forward", forward)
    if has_vlan_devices():
        assert result.returncode == 0, result.stderr
        held = lbctl("exec", "lb1", "--", "ip", "-o", "address", "show", "dev", "eth0.100").stdout
        assert "10.99.0.100/32" in held
    else:
        assert result.returncode == 1
        assert "no VLAN devices" in result.stderr
        assert "modprobe 8021q" in result.stderr
        assert traces() == []


def test_down_without_a_lab_is_fine_and_other_commands_say_what_to_do() -> None:
    result = lbctl("down")
    assert (result.returncode, "there is none" in result.stderr) == (0, True)
    for words in (["status"], ["exec", "client", "--", "true"]):
        result = lbctl(*words)
        assert result.returncode == 1
        assert f"sudo lbctl lab --name {NAME} up" in result.stderr


def test_exec_gives_the_commands_exit_code_and_names_unknown_hosts() -> None:
    lab = Lab(name=NAME, backends=1)
    lab.run_dir.mkdir(parents=True)
    document = {"lab": statefile.to_document(lab), "owner": {"demo": False, "pid": 0}}
    (lab.run_dir / build.STATE_FILE).write_text(json.dumps(document))
    build.build_network(lab)
    assert lbctl("exec", "be1", "--", "sh", "-c", "exit 7").returncode == 7
    assert lbctl("exec", "switch", "ip", "link", "show", "br0").returncode == 0
    unknown = lbctl("exec", "be9", "--", "true")
    assert (unknown.returncode, "be1" in unknown.stderr) == (1, True)
    missing = lbctl("exec", "be1", "--", "no-such-command")
    assert (missing.returncode, "not installed" in missing.stderr) == (1, True)


def test_a_failed_build_removes_what_it_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_lab: Lab) -> None:
        raise LabError("no")

    monkeypatch.setattr(build, "prepare_paths", refuse)
    with pytest.raises(LabError, match="no"):
        build.up(Lab(name=NAME, backends=1), Owner(), quiet)
    assert traces() == []


def test_an_interrupted_build_removes_what_it_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_lab: Lab) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(build, "prepare_paths", interrupt)
    with pytest.raises(Interrupted):
        build.up(Lab(name=NAME, backends=1), Owner(), quiet)
    assert traces() == []


def test_down_removes_the_locks_of_agents_whose_namespaces_were_removed_by_hand() -> None:
    lock, longer = (topology.RUN_ROOT / f"instance-{n}-lb2.lock" for n in (NAME, f"{NAME}-2"))
    topology.RUN_ROOT.mkdir(exist_ok=True)
    for path in (lock, longer):
        path.touch()
    build.refuse_second(NAME)  # a lock that nobody holds keeps nobody from a new lab
    assert lbctl("down").returncode == 0
    assert not lock.exists()
    assert longer.exists(), "it belongs to a lab of another name"
    longer.unlink()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lbctl("down").returncode == 0
        assert lock.exists(), "an agent of that name runs, whosever it is"
        lock.unlink()


def test_stop_ends_the_labs_processes_and_no_others() -> None:
    lab = Lab(name=NAME, backends=1)
    with bare_network(lab):
        wait_for_servers(lab)
        bystander = subprocess.Popen(["sleep", "600"])
        try:
            # A pid file that was left by an earlier life of the machine names somebody else.
            (lab.run_dir / "lb1.pid").write_text(f"{bystander.pid}\n")
            assert processes.pid_of(lab.run_dir, "lb1") is None
            with pytest.raises(LabError):
                processes.kill(lab.run_dir, "lb1")
            processes.stop(lab.run_dir, {*processes.find(lab.run_dir), bystander.pid})
            assert processes.find(lab.run_dir) == set()
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


def test_a_frozen_process_is_there_but_does_nothing_until_it_is_thawed() -> None:
    lab = Lab(name=NAME, backends=1)
    with bare_network(lab):
        wait_for_servers(lab)
        processes.freeze(lab.run_dir, "be1")
        pid = processes.pid_of(lab.run_dir, "be1")
        assert pid is not None
        deadline = time.monotonic() + 90
        while "State:\tT" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        processes.thaw(lab.run_dir, "be1")
        wait_for_servers(lab)
        with pytest.raises(LabError, match="lb1 does not run"):
            processes.freeze(lab.run_dir, "be1", "lb1")


def test_demo_leaves_a_lab_of_the_operator_alone() -> None:
    assert lbctl("up", "--backends", "1").returncode == 0
    result = lbctl("demo")
    assert result.returncode == 1
    assert f"lbctl lab --name {NAME} down" in result.stderr
    assert build.read(NAME) is not None


@pytest.mark.soak
def test_demo_tells_its_story_and_leaves_nothing() -> None:
    # It judges shares and waiting times of real traffic: a host that is busy elsewhere spoils one.
    for _ in range(3):
        result = lbctl("demo")
        assert traces() == []
        if result.returncode == 0:
            break
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("demo: ok ")
    assert traces() == []


_PAIR = """
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
trap '"$@" down' EXIT
"$@" up --balancers 2 --backends 1
"$@" exec client -- "$PYTHON" -c "
import socket, time
held = socket.create_connection(('$VIP', 80))
time.sleep(600)" &
client=$!
while ! "$PYTHON" -m lbctl.main --socket "$SOCKET" flows -o json | grep -q '"matched": [1-9]'; do
    kill -0 $client
    sleep 0.5
done
kill $client
"""


@pytest.mark.soak
def test_a_pair_exchanges_flows_on_a_host_that_has_no_interface_of_that_name() -> None:
    """What is asked of the balancer's interface is not asked of the host's, in /sys."""
    lab = Lab(name=NAME, balancers=2)
    told = {
        "PYTHON": sys.executable,
        "VIP": str(lab.vips[0]),
        "SOCKET": str(lab.socket(lab.node("lb2"))),
    }
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-ec", _PAIR, "-", *LBCTL],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=processes.environment() | told,
    )
    assert done.returncode == 0, done.stderr
    assert traces() == []


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_interrupted_leaves_nothing(number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [*LBCTL, "demo"], stdout=subprocess.PIPE, text=True, env=processes.environment()
    )
    assert demo.stdout is not None
    told = ""
    for line in demo.stdout:
        if line.startswith("2/"):  # the first step has been judged
            break
        told += line
    demo.send_signal(number)
    rest = demo.stdout.read()  # communicate() would lose what has been read ahead
    demo.wait(300)
    assert " answer\n" in told
    assert "not as it should be" not in told
    assert demo.returncode == 128 + number
    assert "interrupted" in rest
    assert traces() == []


def test_demo_that_was_killed_is_cleaned_up_by_the_next_one() -> None:
    from lbctl.lab import demo

    lab = Lab(name=NAME, backends=1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    lab.run_dir.mkdir(parents=True)
    document = {"lab": statefile.to_document(lab), "owner": {"demo": True, "pid": gone.pid}}
    (lab.run_dir / build.STATE_FILE).write_text(json.dumps(document))
    build.build_network(lab)
    demo.make_room(NAME)
    assert traces() == []
