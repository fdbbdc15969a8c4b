"""Real stacks through the balancer: curl, iperf3, QUIC, thousands of short connections, large
uploads, and path-MTU discovery through routers with a smaller link.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent.model import Forward, Hook
from lbctl.lab import processes
from lbctl.lab.topology import Lab, Node, Role
from tests.netns import bulk, peers, routers
from tests.netns.peers import STICKY_PORT, TALK_PORT, Talk, too_big_heard
from tests.netns.prompt.nginx import make_certificate
from tests.netns.site import Site, site, wait_until

MODES: dict[Forward, dict[str, Any]] = {
    Forward.DSR: {},
    Forward.NAT: {"arms": 2},
    Forward.FULLNAT: {},
}
ROUTED = [mode for mode in MODES if mode.is_nat]  # the others' backends share a segment
IPERF_PORT, QUIC_PORT, PLAIN_QUIC_PORT = 5201, 4433, 4434
FAR_PORT = STICKY_PORT  # of the server that is behind a router
BULK, QUIC = ((sys.executable, "-m", f"tests.netns.{name}") for name in ("bulk", "quic"))
SHORT_CONNECTIONS = (6000, pytest.param(20_000, marks=pytest.mark.soak))
UPLOADS = (200_000_000, pytest.param(10**9, marks=pytest.mark.soak))
QUIC_CLIENTS = 16  # with 8, chance sent all to one backend once in 128 times


# The soak has all of them: a lab takes seconds, and test_modes.py has the other modes.
@pytest.fixture(
    scope="module",
    params=[pytest.param(mode, marks=pytest.mark.soak if mode.is_nat else ()) for mode in MODES],
    ids=lambda mode: mode.value,
)
def here(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A lab of the mode with routers, and servers of every kind on its backends."""
    mode: Forward = request.param
    options = {"backends": 2, "spares": 1, "clients": 3, "hook": Hook.NATIVE, **MODES[mode]}
    name = f"st-{mode.value}-{os.getpid()}"
    with site(all_services, name=name, forward=mode, **options) as built:
        lab = built.lab
        routers.before_client(lab)
        if mode.is_nat:
            routers.before_backend(lab)
        with peers.serving(lab):
            start_servers(built)
            yield built


def all_services(lab: Lab) -> list[dict[str, Any]]:
    """Beside the lab's own."""
    ours = [service for family in (4, 6) for service in services(lab, family)]
    return ours + peers.unasked()


def services(lab: Lab, family: int) -> Iterator[dict[str, Any]]:
    """One for each kind of server."""
    backends = [peers.backend_of(lab, node, family) for node in lab.nodes(Role.BACKEND)]
    named = [
        backend | {"quic_server_id": server_id(number)}
        for number, backend in enumerate(backends[:2])
    ]
    far = {"name": "be3", "address": routers.behind(family, routers.SERVERS_BEHIND, 2)}
    for name, port, protocol, more in (
        ("talk", TALK_PORT, "tcp", {"scheduler": "least-conn", "backends": backends[:2]}),
        ("short", bulk.SHORT_PORT, "tcp", {"backends": backends}),
        ("upload", bulk.UPLOAD_PORT, "tcp", {"backends": backends}),
        ("iperf", IPERF_PORT, "tcp", {"backends": backends[:1]}),
        ("iperf-udp", IPERF_PORT, "udp", {"backends": backends[:1]}),
        ("quic", QUIC_PORT, "udp", {"backends": named, "quic_server_id_bytes": 2}),
        ("plain-quic", PLAIN_QUIC_PORT, "udp", {"backends": backends[:2]}),
        ("far", FAR_PORT, "tcp", {"backends": [far]}),
    ):
        if name == "far" and not lab.forward.is_nat:
            continue
        yield {
            "name": f"{name}{family}",
            "vip": str(lab.vips[family == 6]),
            "port": port,
            "protocol": protocol,
            "health": {"type": "none"},
            **more,
        }


def server_id(number: int) -> str:
    return f"{0xC0DE + number:04x}"


def start_servers(here: Site) -> None:
    """Those that are processes; datagrams are answered from the address that they came to."""
    lab = here.lab
    certificate, key = make_certificate(lab.run_dir)
    quic_ports = f"{QUIC_PORT},{PLAIN_QUIC_PORT}"
    for number, node in enumerate(lab.nodes(Role.BACKEND)):

        def start(name: str, *words: object, node: Node = node) -> None:
            command = [str(word) for word in words]
            processes.start(lab.run_dir, f"{node.name}-{name}", node.namespace, command)

        own = (node.ipv4, node.ipv6) if lab.forward.is_nat else lab.vips
        who = (node.name, server_id(number), certificate, key, quic_ports, *own)
        start("bulk", *BULK, "serve", node.name)
        start("quic", *QUIC, "serve", *who)
        for address in own:
            start(
                f"iperf{address.version}",
                "iperf3",
                "-s",
                "--forceflush",
                "-B",
                address,
                "-p",
                IPERF_PORT,
            )
    wanted = {bulk.SHORT_PORT, bulk.UPLOAD_PORT, IPERF_PORT, QUIC_PORT, PLAIN_QUIC_PORT}
    for node in lab.nodes(Role.BACKEND):
        wait_until(f"{node.name} serves", lambda n=node: wanted <= listening(here, n))  # type: ignore[misc]


def listening(here: Site, node: Node) -> set[int]:
    shown = here.run(node.name, "ss", "-Hnltu").stdout
    return {int(line.split()[4].rpartition(":")[2]) for line in shown.splitlines()}


def run_json(here: Site, *words: object) -> Any:
    """What a client's command prints."""
    done = here.run("client", *map(str, words), timeout_s=300)
    assert done.returncode == 0, f"{done.stdout} {done.stderr}"
    return json.loads(done.stdout)


def test_curl_gets_and_posts_on_kept_and_new_connections(here: Site) -> None:
    body = here.lab.run_dir / "body"
    body.write_bytes(os.urandom(1_000_000))
    shown = ("-w", "%{http_code} %{num_connects}\n", "-o", "/dev/null")
    for vip in here.lab.vips:
        url = f"http://{f'[{vip}]' if vip.version == 6 else vip}/"
        command = ["curl", "-sS", "-m", "60", "--data-binary", f"@{body}", *shown, url]
        command += ["--next", "-sS", "-m", "60", *shown, url, *shown[2:], url]
        done = here.run("client", *command)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "200 1\n200 0\n200 0\n", "one connection for all"


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["up", "down"])
def test_iperf3_measures_tcp_and_udp(here: Site, direction: tuple[str, ...]) -> None:
    def measure(vip: Any) -> None:
        received = iperf3(here, vip, *direction, "-n", "20M")
        assert received["bytes"] >= 20 << 20
        received = iperf3(here, vip, *direction, "-n", "100K", "-u", "-b", "1M")
        assert received["packets"] * 1448 >= 100_000
        # All of them fit into a socket's buffer, so a busy host delays them and loses none; what
        # iperf3 does not wait for at its end counts as lost, though.
        assert received["lost_packets"] * 2 <= received["packets"]

    with ThreadPoolExecutor() as pool:
        list(pool.map(measure, here.lab.vips))
    assert peers.checksum_errors(here.lab) == {}


def iperf3(here: Site, vip: Any, *words: str) -> Any:
    """What a measurement says of the receiving end."""
    log = here.lab.run_dir / f"be1-iperf{vip.version}.log"

    def is_free() -> bool:
        said = log.read_text()  # between two measurements it does not listen
        return said.count("Server listening") > said.count("Accepted connection")

    wait_until("the server is done with the measurement before", is_free)
    said = run_json(here, "iperf3", "-c", vip, "-p", IPERF_PORT, "-J", *words)
    return said["end"]["sum_received"]


def test_quic_clients_that_move_keep_their_backend_by_its_connection_ids(here: Site) -> None:
    for vip in here.lab.vips:
        kept = run_json(here, *QUIC, "ask", vip, QUIC_PORT, QUIC_CLIENTS, 60)
        assert {first for first, *_ in kept} == {"be1", "be2"}
        for first, *later in kept:
            assert later == [first, first]
    # Where connection ids mean nothing, a client that moves is another one.
    plain = run_json(here, *QUIC, "ask", here.lab.vips[0], PLAIN_QUIC_PORT, QUIC_CLIENTS, 5)
    assert {first for first, *_ in plain} == {"be1", "be2"}
    assert any(later[0] is None for _, *later in plain), "nobody has got lost"


@pytest.mark.parametrize("count", SHORT_CONNECTIONS)
def test_thousands_of_short_connections_are_answered_by_all_without_an_error(
    here: Site, count: int
) -> None:
    answered: dict[str, int] = {}
    for vip in here.lab.vips:
        said = run_json(here, *BULK, "connect", vip, count // 2)
        assert said["errors"] == {}
        for name, number in said["backends"].items():
            answered[name] = answered.get(name, 0) + number
    assert sum(answered.values()) == count
    assert answered.keys() == {"be1", "be2", "be3"}
    # Weighted alike: a third each, and what chance makes of it.
    assert min(answered.values()) > 0.9 * count / 3, answered


@pytest.mark.parametrize("size", UPLOADS)
def test_a_large_upload_arrives_whole(here: Site, size: int) -> None:
    vip = here.lab.vips[here.lab.forward is Forward.FULLNAT]
    said = run_json(here, *BULK, "upload", vip, size)
    assert (said["bytes"], said["whole"]) == (size, True)
    assert peers.checksum_errors(here.lab) == {}


def test_a_backend_is_told_of_a_smaller_link_on_the_clients_side(here: Site) -> None:
    """The router's ICMP error is for the VIP: it must reach the backend that has the connection."""
    data = os.urandom(300_000)
    host = here.lab.node("client3")
    for vip in here.lab.vips:
        before = {
            node.name: too_big_heard(node, vip.version) for node in here.lab.nodes(Role.BACKEND)
        }
        talks = [Talk(host, vip) for _ in range(4)]
        for talk in talks:
            with talk:
                assert talk.say(data) == data
        having = {talk.backend for talk in talks}
        assert having == {"be1", "be2"}
        for node in here.lab.nodes(Role.BACKEND):
            was_told = too_big_heard(node, vip.version) > before[node.name]
            assert was_told is (node.name in having), node.name


@pytest.mark.parametrize(
    "here",
    [pytest.param(m, marks=pytest.mark.soak if m is Forward.NAT else ()) for m in ROUTED],
    ids=lambda mode: mode.value,
    indirect=True,
)
def test_a_client_is_told_of_a_smaller_link_on_the_backends_side(here: Site) -> None:
    data = os.urandom(300_000)
    client = here.lab.node("client")
    for vip in here.lab.vips:
        before = too_big_heard(client, vip.version)
        with Talk(client, vip, FAR_PORT) as talk:
            assert talk.say(data) == data
            assert talk.backend == "be3"
        assert too_big_heard(client, vip.version) > before
