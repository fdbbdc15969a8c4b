"""SYN cookies with real stacks: the balancer answers, and the servers' kernels make connections of
what comes back. curl asks, also from behind a Linux router that masquerades it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.companion.keys import Keys
from agent.model import Forward
from lbctl.lab import netns, processes
from lbctl.lab.topology import Role
from tests.netns import routers
from tests.netns.site import Site, freeze, site, wait_until
from tests.netns.test_syn_protection import FLOOD_PER_S, MASQUERADE, asks, drops, flooded

PORT = 80
KEY = "000102030405060708090a0b0c0d0e0f"
OTHER_KEY = "f0e0d0c0b0a090807060504030201000"
MODES = (Forward.DSR, Forward.IPIP, Forward.GUE)
COUNT_SYNS = """
table inet seen {{
    counter syns {{ }}
    chain in {{
        type filter hook input priority filter
        ip daddr {0} ip saddr != {2} tcp flags & (syn|ack) == syn counter name syns
        ip6 daddr {1} ip6 saddr != {3} tcp flags & (syn|ack) == syn counter name syns
    }}
}}
"""  # of clients: health checks come from the balancer


# The soak has all of them: a lab takes seconds, and the servers of the others do the same.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(mode, marks=pytest.mark.soak if mode is not Forward.DSR else ())
        for mode in MODES
    ],
    ids=lambda mode: mode.value,
)
def here(request: pytest.FixtureRequest) -> Iterator[Site]:
    mode: Forward = request.param
    with site(name=f"st-cook-{os.getpid()}", forward=mode, backends=2, clients=3) as built:
        routers.before_client(built.lab)
        router = netns.entering(built.lab.node("client2").namespace)
        subprocess.run([*router, "nft", "-f", "-"], input=MASQUERADE, text=True, check=True)
        for server in servers(built):
            entering = netns.entering(built.lab.node(server).namespace)
            balancer = built.balancer.ipv4, built.balancer.ipv6
            rules = COUNT_SYNS.format(*built.lab.vips, *balancer)
            subprocess.run([*entering, "nft", "-f", "-"], input=rules, text=True, check=True)
        write_key(built, KEY)
        for server in servers(built):
            accompany(built, server)
        yield built


def servers(here: Site) -> list[str]:
    return [node.name for node in here.lab.nodes(Role.BACKEND)]


def key_file(here: Site) -> Path:
    return here.lab.run_dir / "cookies.key"


def write_key(here: Site, text: str) -> None:
    """Replace the file: a companion must not read it when only half is written."""
    new = key_file(here).with_suffix(".new")
    new.touch(0o600)
    new.write_text(text)
    new.replace(key_file(here))


def accompany(here: Site, server: str, *options: str) -> None:
    """Start a companion."""
    vips = [word for vip in here.lab.vips for word in ("--vip", str(vip))]
    command = [*processes.program("lb-agent", "agent.main"), "companion", "-i", "eth0", *vips]
    command += ["--key-file", str(key_file(here)), *options]
    namespace = here.lab.node(server).namespace
    processes.start(here.lab.run_dir, f"{server}-companion", namespace, command)


def protect(here: Site, how: str = "always", **companion: object) -> None:
    document = here.config()
    document["companion"] = {"key_file": str(key_file(here))} | companion
    for service in document["services"]:
        service |= {"syn_protection": how, "syn_cookies": True}
    here.reload(document)


def service(here: Site, name: str = "web") -> Any:
    return here.get(f"/v1/services/{name}")


def gives_cookies(here: Site) -> bool:
    return all(service(here, name)["gives_cookies"] for name in ("web", "web6"))


def syns_seen(here: Site) -> int:
    """By all servers, of the service."""
    total = 0
    for server in servers(here):
        told = here.run(server, "nft", "-j", "list", "counter", "inet", "seen", "syns")
        total += json.loads(told.stdout)["nftables"][1]["counter"]["packets"]
    return total


def syns_settled(here: Site) -> int:
    """How many they have seen, once those have come that were on their way."""
    seen = [-1]

    def is_settled() -> bool:
        seen.append(syns_seen(here))
        return seen[-1] == seen[-2]

    wait_until("the servers get no more SYNs", is_settled)
    return seen[-1]


def made(here: Site) -> int:
    """Connections that the companions have made of cookies."""
    total = 0
    for server in servers(here):
        told = here.run(server, "curl", "-sS", "http://127.0.0.1:9120/metrics")
        total += int(float(re.findall(r"(?m)^\S+_connections_total (\S+)", told.stdout)[0]))
    return total


def test_a_client_is_answered_for_the_server_which_sees_no_syn(here: Site) -> None:
    protect(here)
    wait_until("the companions are found", lambda: gives_cookies(here))
    for name, vip in zip(("web", "web6"), here.lab.vips, strict=True):
        before, syns, known = made(here), syns_seen(here), 0
        for client in ("client3", "client", "client2"):  # client2 masquerades client3
            is_new = known == 0 or (client == "client" and vip.version == 4)  # of IPv6: one /64
            known += is_new
            asks(here, client, vip)
            assert drops(here, name) == {"challenged": known, "verified": 0}, client
            assert service(here, name)["cookie_connections_total"] == known
        # An ACK and the request behind it, on two CPUs, may both come before there is a connection.
        assert before + known <= made(here) <= before + 2 * known
        # Who is known is let through; the first connection of each was made without a SYN.
        assert syns_seen(here) == syns + 3 - known


ONE = pytest.mark.parametrize("here", [Forward.DSR], indirect=True)


def newcomer(here: Site, number: int) -> str:
    """An address of a client from which nobody has come so far."""
    address = str(here.lab.node("client").links[0].addresses[0].ip + 100 + number)
    here.run("client", "ip", "address", "add", f"{address}/32", "dev", "eth0")
    return address


def asks_from(here: Site, source: str) -> None:
    url = f"http://{here.lab.vips[0]}:{PORT}/health"
    done = here.run("client", "curl", "-sS", "-m", "60", "--interface", source, "-f", url)
    assert done.returncode == 0, done.stderr


@ONE
def test_what_the_client_said_in_its_syn_holds(here: Site) -> None:
    protect(here)
    wait_until("the companions are found", lambda: gives_cookies(here))
    source = newcomer(here, 0)
    hold = f"""
import socket, sys
one = socket.create_connection(("{here.lab.vips[0]}", {PORT}), 60, ("{source}", 0))
print("there", flush=True)
sys.stdin.read()
"""
    entering = netns.entering(here.lab.node("client").namespace)
    with subprocess.Popen([*entering, sys.executable, "-c", hold], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as held:  # fmt: skip
        assert held.stdout
        assert held.stdin
        assert held.stdout.readline() == "there\n"
        wait_until("the server has it", lambda: source in connections(here))
        line = next(line for line in connections(here).splitlines() if source in line)
        held.stdin.close()
    assert " ts sack " in line
    assert re.search(r" wscale:\d+,7 ", line)
    assert " mss:1448 " in line


def connections(here: Site) -> str:
    told = (here.run(server, "ss", "-tinoOH", f"sport = :{PORT}") for server in servers(here))
    return "".join(each.stdout for each in told)


@ONE
def test_where_one_server_has_no_companion_clients_are_challenged(here: Site) -> None:
    protect(here)
    wait_until("the companions are found", lambda: gives_cookies(here))
    processes.kill(here.lab.run_dir, "be2-companion")
    # What it has set up goes on.
    for number in (1, 2, 3, 4):
        asks_from(here, newcomer(here, number))
    missed = "be2: no companion answers at port 9120"
    wait_until("it is missed", lambda: service(here)["cookies_problem"].startswith(missed))
    wait_until("no cookies are given", lambda: not service(here)["gives_cookies"])
    before = drops(here, "web")
    asks_from(here, newcomer(here, 5))
    after = drops(here, "web")
    assert after["verified"] == before["verified"] + 1
    shown = lbctl(here, "service", "show", "web")
    assert "no SYN cookies: be2: no companion answers at port 9120" in shown
    accompany(here, "be2")
    wait_until("it is back", lambda: gives_cookies(here))
    taken = service(here)["cookie_connections_total"]
    asks_from(here, newcomer(here, 6))
    assert service(here)["cookie_connections_total"] == taken + 1


def lbctl(here: Site, *words: str) -> str:
    socket = str(here.lab.socket(here.balancer))
    command = [*processes.program("lbctl", "lbctl.main"), "--socket", socket, *words]
    done = here.run(here.balancer.name, *command)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@ONE
def test_the_key_changes_in_three_steps_and_each_client_is_served(here: Site) -> None:
    protect(here)
    wait_until("the companions are found", lambda: gives_cookies(here))
    number = 10
    to_the_other = ((KEY, OTHER_KEY), (OTHER_KEY, KEY), (OTHER_KEY,))
    and_back = ((OTHER_KEY, KEY), (KEY, OTHER_KEY), (KEY,))
    for lines in (*to_the_other, *and_back):
        names = list(Keys(tuple(map(bytes.fromhex, lines))).names)
        write_key(here, "".join(f"{line}\n" for line in lines))
        wait_until("the servers take them", lambda names=names: all(
            told(here, server)["keys"] == names for server in servers(here)
        ))  # fmt: skip
        wait_until("the balancer, too", lambda names=names: service(here)["cookies_keys"] == names)
        wait_until("cookies are given", lambda: gives_cookies(here))
        for _ in range(2):
            asks_from(here, newcomer(here, number))
            number += 1
    write_key(here, "")
    asks_from(here, newcomer(here, number))
    wait_until("it is said", lambda: all(told(here, each)["problem"] for each in servers(here)))
    said = "32 hexadecimal digits"
    wait_until("and here", lambda: said in service(here)["cookies_problem"])
    wait_until("clients are challenged", lambda: not gives_cookies(here))
    write_key(here, KEY)
    wait_until("the companions are found", lambda: gives_cookies(here))


def told(here: Site, server: str) -> Any:
    """What the companion says."""
    return json.loads(here.run(server, "curl", "-sS", "http://127.0.0.1:9120/companion").stdout)


@ONE
def test_in_a_flood_clients_get_cookies_and_servers_no_syns(here: Site) -> None:
    protect(here, "auto")
    vip = here.lab.vips[0]
    wait_until("nobody is challenged", lambda: not service(here)["challenges_clients"])
    with flooded(here, vip):
        wait_until("cookies are given", lambda: service(here)["gives_cookies"])
        syns, taken = syns_settled(here), service(here)["cookie_connections_total"]
        challenged = drops(here, "web")["challenged"]
        for number in range(30, 40):
            asks_from(here, newcomer(here, number))
        wait_until(
            "thousands of SYNs are answered",
            lambda: drops(here, "web")["challenged"] > challenged + 2 * FLOOD_PER_S,
        )
        assert service(here)["cookie_connections_total"] == taken + 10
        assert syns_seen(here) == syns


@ONE
def test_what_somebody_takes_away_is_put_back_and_at_the_end_all_is_undone(here: Site) -> None:
    extra = "10.99.77.7"  # that the lab has not put on lo

    def on_lo() -> bool:
        return extra in here.run("be1", "ip", "-4", "address", "show", "dev", "lo").stdout

    def attached() -> bool:
        shown = here.run("be1", "tc", "filter", "show", "dev", "eth0", "ingress").stdout
        return "companion" in shown

    processes.kill(here.lab.run_dir, "be1-companion")
    # The filter of the former one stays, so only its log tells when all is set up.
    log = here.lab.run_dir / "be1-companion.log"
    before = log.read_text().count("ready")
    accompany(here, "be1", "--vip", extra)
    wait_until("it is ready", lambda: log.read_text().count("ready") > before)
    assert on_lo()
    assert attached()
    pid = processes.pid_of(here.lab.run_dir, "be1-companion")
    assert pid is not None
    freeze(pid)  # or it is faster than we are
    here.run("be1", "ip", "address", "delete", f"{extra}/32", "dev", "lo")
    here.run("be1", "tc", "qdisc", "delete", "dev", "eth0", "clsact")
    assert not on_lo()
    assert not attached()
    os.kill(pid, signal.SIGCONT)
    wait_until("its VIP is back", on_lo)
    wait_until("its program is back", attached)
    processes.kill(here.lab.run_dir, "be1-companion")
    assert on_lo()
    assert attached()
    program = [*processes.program("lb-agent", "agent.main"), "companion", "-i", "eth0"]
    done = here.run("be1", *program, "--vip", extra, "--remove")
    assert done.returncode == 0, done.stderr
    assert not on_lo()
    assert not attached()


@pytest.mark.soak
@pytest.mark.parametrize("here", [Forward.GUE], indirect=True)
def test_it_takes_the_outer_header_off_too(here: Site) -> None:
    """In the place of `lb-agent decap`, which the lab has put there, and from balancers only."""

    def decapsulates(server: str) -> bool:
        return "xdp" in json.loads(here.run(server, "ip", "-j", "link", "show", "eth0").stdout)[0]

    for server in servers(here):
        processes.kill(here.lab.run_dir, f"{server}-companion")
        here.run(server, "ip", "link", "set", "dev", "eth0", "xdp", "off")
        assert not decapsulates(server)
        accompany(here, server, "--decap", "--from", "10.0.0.0/8", "--from", "fd99::/16")
    protect(here)
    for server in servers(here):
        wait_until("it decapsulates", lambda server=server: decapsulates(server))
    wait_until("the companions are found", lambda: gives_cookies(here))
    before = service(here)["cookie_connections_total"]
    asks_from(here, newcomer(here, 60))
    assert service(here)["cookie_connections_total"] == before + 1


@ONE
def test_mistakes_are_named(here: Site) -> None:
    node, vip = here.lab.node("be1").name, str(here.lab.vips[0])
    program = [*processes.program("lb-agent", "agent.main"), "companion", "--vip", vip]
    missing = here.run(node, *program, "-i", "eth0", "--key-file", "/nowhere")
    assert missing.returncode == 1
    assert "openssl rand -hex 16" in missing.stderr
    no_interface = here.run(
        node, *program, "-i", "eth9", "--key-file", str(key_file(here)), "--listen", "127.0.0.1:1"
    )
    assert no_interface.returncode == 1
    assert "eth9" in no_interface.stderr
    no_decap = here.run(node, *program, "-i", "eth0", "--from", "10.0.0.1")
    assert no_decap.returncode == 2
    assert "add --decap" in no_decap.stderr
    here.run(node, "sysctl", "-qw", "net.ipv4.tcp_syncookies=0")
    off = here.run(node, *program, "-i", "eth0", "--key-file", str(key_file(here)))
    here.run(node, "sysctl", "-qw", "net.ipv4.tcp_syncookies=1")
    assert off.returncode == 1
    assert "tcp_syncookies" in off.stderr
