"""Faults that are made by hand in a lab: how each is made and mended, and what the screen must say
of it. They are the classic ones of layer 4, of hosts, and of people.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.failover.model import DEFAULT_SYNC_PORT as SYNC_PORT
from lbctl.lab import build, failover, netns, processes
from lbctl.lab.topology import Lab
from tests.netns.site import Site

STATUS = ("status",)
EVENTS = ("events", "--since", "1m", "--level", "warning")


@dataclass(frozen=True, slots=True)
class Fault:
    """``breaks`` is a context: it makes the fault, and mends it at its end.

    ``lab``: in which lab. ``says``: a pattern that the screen of ``command`` has to show, on one
    line; it names the cause. ``clears``: it goes from the screen when the fault is mended.
    """

    name: str
    lab: str
    breaks: Callable[[Site], contextlib.AbstractContextManager[None]]
    says: str
    command: tuple[str, ...] = STATUS
    clears: bool = True


LABS: dict[str, dict[str, Any]] = {
    "dsr": {},
    "ipip": {"forward": "ipip"},
    "nat": {"forward": "nat"},
    "fullnat": {"forward": "fullnat"},
    "pair": {"balancers": 2},
}


def shell(here: Site, node: str, script: str) -> None:
    """Run a script on a host of the lab; it has to succeed."""
    done = here.run(node, "sh", "-ec", script)
    assert done.returncode == 0, (script, done.stdout, done.stderr)


def scripts(
    node: str, breaks: str | Callable[[Lab], str], mends: str | Callable[[Lab], str]
) -> Callable[[Site], contextlib.AbstractContextManager[None]]:
    """A fault that a script makes, and another one mends."""

    @contextlib.contextmanager
    def broken(here: Site) -> Iterator[None]:
        made = breaks if isinstance(breaks, str) else breaks(here.lab)
        mended = mends if isinstance(mends, str) else mends(here.lab)
        shell(here, node, made)
        try:
            yield
        finally:
            shell(here, node, mended)

    return broken


def drops(rule: str) -> tuple[str, str]:
    """Scripts of a packet filter that does something with what comes in."""
    chain = "add table inet t; add chain inet t in {type filter hook input priority 0;};"
    return f"nft '{chain} add rule inet t in {rule}'", "nft delete table inet t"


@contextlib.contextmanager
def server_dies(here: Site, *names: str) -> Iterator[None]:
    names = names or ("be2",)
    processes.kill(here.lab.run_dir, *names)
    try:
        yield
    finally:
        for name in names:
            build.start_server(here.lab, here.lab.node(name))


def two_servers_die(here: Site) -> contextlib.AbstractContextManager[None]:
    return server_dies(here, "be1", "be2")


@contextlib.contextmanager
def server_hangs(here: Site) -> Iterator[None]:
    processes.freeze(here.lab.run_dir, "be2")
    try:
        yield
    finally:
        processes.thaw(here.lab.run_dir, "be2")


@contextlib.contextmanager
def cable_is_cut(here: Site, name: str = "be2") -> Iterator[None]:
    failover.cut(here.lab, here.lab.node(name))
    try:
        yield
    finally:
        failover.mend(here.lab, here.lab.node(name))


def balancers_cable_is_cut(here: Site) -> contextlib.AbstractContextManager[None]:
    return cable_is_cut(here, here.balancer.name)


@contextlib.contextmanager
def check_expects_another_status(here: Site) -> Iterator[None]:
    """In the configuration: somebody has mistyped it."""
    before = here.config()
    document = here.config()
    for service in document["services"]:
        service["health"] = {"expect_status": "204"}
    here.reload(document)
    try:
        yield
    finally:
        here.reload(before)


@contextlib.contextmanager
def all_are_drained(here: Site) -> Iterator[None]:
    names = [each["name"] for each in here.get("/v1/services/web")["backends"]]
    for name in names:
        here.edit("backend.set", service="web", backend=name, values={"state": "drain"})
    try:
        yield
    finally:
        for name in names:
            here.edit("backend.set", service="web", backend=name, values={"state": "active"})


@contextlib.contextmanager
def agent_is_killed(here: Site) -> Iterator[None]:
    here.stop_agent(signal.SIGKILL)
    try:
        yield
    finally:
        here.start_agent()


@contextlib.contextmanager
def agent_stands_still(here: Site) -> Iterator[None]:
    here.signal_agent(signal.SIGSTOP)
    try:
        yield
    finally:
        here.signal_agent(signal.SIGCONT)


@contextlib.contextmanager
def file_is_broken(here: Site) -> Iterator[None]:
    before = here.config()
    here.write_config("name: edge\nservices: [\n")
    here.signal_agent(signal.SIGHUP)
    try:
        yield
    finally:
        here.write_config(before)
        here.signal_agent(signal.SIGHUP)


@contextlib.contextmanager
def state_folder_is_gone(here: Site) -> Iterator[None]:
    state = Path(here.config()["state_dir"])
    aside = state.with_name(f"{state.name}.aside")
    state.rename(aside)
    state.write_text("in the way")
    here.edit("backend.set", service="web", backend="be1", values={"weight": 99})
    try:
        yield
    finally:
        state.unlink()
        aside.rename(state)
        here.edit("backend.set", service="web", backend="be1", values={"weight": 100})


@contextlib.contextmanager
def pins_are_removed(here: Site) -> Iterator[None]:
    shutil.rmtree(f"/sys/fs/bpf/steelyard/{here.balancer.namespace}")
    yield


@contextlib.contextmanager
def other_server(here: Site, text: str) -> Iterator[None]:
    """Another program listens instead of be2's server: health checks pass, clients get errors."""
    node = here.lab.node("be2")
    processes.kill(here.lab.run_dir, node.name)
    folder = Path(here.lab.run_dir) / "nginx"
    folder.mkdir(exist_ok=True)
    port = here.lab.server_port
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; server {{ listen {port}; listen [::]:{port};\n"
        f"  location = /health {{ return 200; }} location / {{ {text} }} }} }}\n"
    )
    command = ["nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]
    process = processes.start(here.lab.run_dir, "nginx", node.namespace, command)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
        build.start_server(here.lab, node)


def server_answers_503(here: Site) -> contextlib.AbstractContextManager[None]:
    return other_server(here, "return 503;")


def server_hangs_up(here: Site) -> contextlib.AbstractContextManager[None]:
    return other_server(here, "return 444;")  # nginx: close without an answer


@contextlib.contextmanager
def few_ports(here: Site) -> Iterator[None]:
    """A client holds more connections than there are ports towards the servers (2,048 each)."""
    vip = here.lab.vips[0]
    script = (
        "import resource, socket, time\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, 20_000))\n"
        "held, failed = [], 0\n"
        "while failed < 20:\n"
        "    try:\n"
        f"        held.append(socket.create_connection(({str(vip)!r}, 80), 0.2))\n"
        "    except OSError:\n"
        "        failed += 1\n"
        "print('all are held', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [*netns.entering(here.lab.node("client").namespace), "python3", "-c", script]
    environment = processes.environment(here.lab.run_dir)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def failover_process_dies(here: Site) -> Iterator[None]:
    processes.kill(here.lab.run_dir, failover.process_of(here.balancer))
    try:
        yield
    finally:
        failover.start(here.lab, here.balancer)


@contextlib.contextmanager
def other_balancer_dies(here: Site) -> Iterator[None]:
    other = here.lab.node("lb2")
    failover.strike(here.lab, other)
    try:
        yield
    finally:
        build.revive(here.lab, other)


@contextlib.contextmanager
def keys_differ(here: Site) -> Iterator[None]:
    """The other balancer has been given another secret."""
    other = here.on("lb2")
    before = other.config()
    document = other.config()
    key = Path(here.lab.run_dir) / "other.key"
    key.write_text("0" * 64 + "\n")
    key.chmod(0o600)
    document["failover"]["key_file"] = str(key)
    other.reload(document)
    try:
        yield
    finally:
        other.reload(before)


def _silent(value: int) -> str:
    return f"sysctl -qw net.ipv4.conf.all.arp_ignore={value}"


def _vip(lab: Lab) -> str:
    return str(lab.vips[0])


def _default(lab: Lab) -> str:
    return f"ip route add default via {lab.node('be2').gateways[0]}"


def _decap(lab: Lab) -> str:
    return shlex.join(build.decap(lab))


_FILTER, _UNFILTER = drops("ip daddr 10.99.0.100 tcp dport 80 drop")
_REJECT, _ = drops("ip daddr 10.99.0.100 tcp dport 80 reject with tcp reset")
_NO_ADVERTS, _ = drops("ip protocol vrrp drop; add rule inet t in ip6 nexthdr vrrp drop")
_NO_SYNC, _ = drops(f"tcp dport {SYNC_PORT} drop; add rule inet t in tcp sport {SYNC_PORT} drop")
_NARROW = (
    "nft 'add table netdev t; add chain netdev t in {type filter hook ingress device eth0 priority "
    "0;}; add rule netdev t in meta length > 1400 drop'"
)
_WIDE = "nft delete table netdev t"
_BE2 = r"\bbe2\b"

FAULTS = [
    Fault("a server's program dies", "dsr", server_dies, rf"{_BE2}.* down .*connection refused"),
    Fault("a server's program hangs", "dsr", server_hangs, rf"{_BE2}.* down .*no answer"),
    Fault(
        "a server's cable is cut", "dsr", cable_is_cut,
        rf"{_BE2}.* (down|unreachable) .*(ARP|no answer)",
    ),
    Fault(
        "two servers die", "dsr", two_servers_die,
        rf"{_BE2}.* down .*connection refused",
    ),
    Fault(
        "the VIP is missing on a backend's lo", "dsr",
        scripts("be2", lambda lab: f"ip addr del {_vip(lab)}/32 dev lo",
                lambda lab: f"ip addr add {_vip(lab)}/32 dev lo"),
        rf"{_BE2}.* down .*no answer from the VIP by dsr",
    ),
    Fault(
        "a backend's packet filter drops what is for the VIP", "dsr",
        scripts("be2", _FILTER, _UNFILTER),
        rf"{_BE2}.* down .*no answer from the VIP by dsr",
    ),
    Fault(
        "a backend's packet filter rejects what is for the VIP", "dsr",
        scripts("be2", _REJECT, _UNFILTER),
        rf"{_BE2}.* down .*connection refused at the VIP",
    ),
    Fault(
        "a backend answers ARP for the VIP", "dsr", scripts("be2", _silent(0), _silent(1)),
        rf"answers for 10\.99\.0\.100, too: it is backend {_BE2}.*arp_ignore=1",
    ),
    Fault(
        "the health check expects another status", "dsr", check_expects_another_status,
        r"(down|serves nobody).*HTTP 200.*expected 204",
    ),
    Fault("all backends are drained", "dsr", all_are_drained, r"web serves nobody .*drained"),
    Fault(
        "somebody takes a VIP off the balancer", "dsr",
        scripts("lb1", lambda lab: f"ip addr del {_vip(lab)}/32 dev eth0", "true"),
        r"vip put back.*gone.*10\.99\.0\.100", EVENTS, clears=False,
    ),
    Fault(
        "somebody takes the program off", "dsr",
        scripts("lb1", "ip link set eth0 xdp off", "true"),
        r"attached again: the program was gone", EVENTS, clears=False,
    ),
    Fault(
        "somebody removes the pins", "dsr", pins_are_removed,
        r"pins were gone; pinned again", EVENTS, clears=False,
    ),
    Fault(
        "the balancer's own cable is cut", "dsr", balancers_cable_is_cut,
        r"eth0.*no carrier",
    ),
    Fault(
        "the agent is killed", "dsr", agent_is_killed,
        r"no agent: the one that made this socket is gone",
    ),
    Fault("the agent stands still", "dsr", agent_stands_still, r"the agent did not answer within"),
    Fault(
        "the configuration file is broken", "dsr", file_is_broken,
        r"lb1\.yaml:\d+: not valid YAML",
    ),
    Fault(
        "the state folder cannot be written", "dsr", state_folder_is_gone, r"in memory only",
    ),
    Fault(
        "large packets vanish on the way to a backend", "dsr", scripts("be2", _NARROW, _WIDE),
        rf"{_BE2}.* down .*of 1400 bytes arrive",
    ),
    Fault(
        "large packets vanish on the way through a tunnel", "ipip", scripts("be2", _NARROW, _WIDE),
        rf"{_BE2}.* down .*of 1[34]\d\d bytes arrive",
    ),
    Fault(
        "the end of a tunnel is missing", "ipip",
        scripts("be2", "ip link set eth0 xdp off", _decap),
        rf"{_BE2}.* down .*does it take ipip",
    ),
    Fault(
        "a server answers clients with 503, and its check with 200", "nat", server_answers_503,
        rf"{_BE2}.* ejected .*429 or 5xx",
    ),
    Fault(
        "a server hangs up on clients, and its check gets 200", "nat", server_hangs_up,
        rf"{_BE2}.* ejected ",
    ),
    Fault(
        "a backend's way back does not lead through the balancer", "nat",
        scripts("be2", "ip route del default", _default),
        rf"{_BE2}.*(ejected|down) ",
    ),
    Fault("fullnat has no port left", "fullnat", few_ports, r"fullnat: .*ports"),
    Fault(
        "adverts of VRRP are filtered", "pair", scripts("lb2", _NO_ADVERTS, _UNFILTER),
        r"does not hear this node, and leaves it the VIPs only because flow sync",
    ),
    Fault(
        "flow sync is filtered", "pair", scripts("lb2", _NO_SYNC, _UNFILTER),
        r"no flows are exchanged with .*10\.99\.0\.12",
    ),
    Fault(
        "the other balancer dies", "pair", other_balancer_dies,
        r"no flows are exchanged with .*10\.99\.0\.12",
    ),
    Fault(
        "the failover process dies", "pair", failover_process_dies,
        r"no failover process: .*start it",
    ),
    Fault(
        "the balancers' secrets differ", "pair", keys_differ,
        r"no flows are exchanged with .*(key|secret)",
    ),
]  # fmt: skip
