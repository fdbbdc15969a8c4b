"""Flow sync between two agents under load: what breaks between them, and what is held after it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.dataplane import abi, libbpf
from agent.dataplane.pins import pins_of
from agent.dataplane.tables import mapped
from agent.model import Scheduler
from lbctl.lab import netns
from lbctl.lab.topology import PORT
from tests.netns.site import Site, assert_unharmed, site, wait_until

pytestmark = [pytest.mark.kernel]

SYNC_PORT = 9118
ATTEMPTS = 10  # at what a busy host can spoil
REQUEST = b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n"


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    name = f"st-sync-{os.getpid()}"
    with site(name=name, balancers=2, backends=3, scheduler=Scheduler.LEAST_LOAD) as built:
        yield built


@contextlib.contextmanager
def connections(here: Site, count: int) -> Iterator[list[socket.socket]]:
    """Connections of the client that have had an answer, to the VIPs in turn."""
    held: list[socket.socket] = []
    try:
        with netns.inside(here.lab.node("client").namespace):
            for number in range(count):
                vip = here.lab.vips[number % len(here.lab.vips)]
                held.append(socket.create_connection((str(vip), PORT), timeout=60))
        for sock in held:
            sock.sendall(REQUEST)
        for sock in held:
            assert sock.recv(65536)
        yield held
    finally:
        for sock in held:
            sock.close()


def ends(sock: socket.socket) -> tuple[str, int]:
    address, port = sock.getsockname()[:2]
    return str(address), int(port)


def flows(here: Site, balancer: str) -> dict[tuple[str, int], tuple[str, str]]:
    """The backend of every open flow that a balancer knows, by the client's end."""
    listed = here.on(balancer).get("/v1/flows", state="established", limit="10000")["flows"]
    return {
        (flow["client"], flow["client_port"]): (flow["service"], flow["backend"]) for flow in listed
    }


def peer(here: Site, balancer: str) -> Any:
    (found,) = here.on(balancer).get("/v1/failover")["flow_sync"]["peers"]
    return found


def are_connected(here: Site) -> bool:
    return all(peer(here, at)["state"] == "connected" for at in ("lb1", "lb2"))


def holds(here: Site, balancer: str, held: list[socket.socket]) -> bool:
    """Whether a balancer knows these connections, as the first one does."""
    theirs, ours = flows(here, "lb1"), flows(here, balancer)
    return all(ends(sock) in theirs and ours.get(ends(sock)) == theirs[ends(sock)] for sock in held)


def await_copies(here: Site, held: list[socket.socket]) -> None:
    wait_until("lb2 has the flows of lb1", lambda: holds(here, "lb2", held))


@contextlib.contextmanager
def apart(here: Site) -> Iterator[None]:
    """Nothing of the flow sync gets from lb1 to lb2 meanwhile; all else does."""

    def do(what: str) -> None:
        for end in ("dport", "sport"):  # whoever of the two has connected
            rule = ["rule", what, "ipproto", "tcp", end, str(SYNC_PORT), "blackhole"]
            done = here.run("lb1", "ip", *rule)
            assert done.returncode == 0, done.stderr

    do("add")
    try:
        yield
    finally:
        do("del")


def test_the_backup_holds_the_masters_flows_at_the_same_backends(here: Site) -> None:
    with here.load(rate=100, keep_alive=50, streams=3) as load, connections(here, 60) as held:
        await_copies(here, held)
        assert peer(here, "lb2")["name"].endswith("lb1")
        assert peer(here, "lb1")["peer_dropped_total"] == {}
        assert len({backend for _, backend in flows(here, "lb2").values()}) == 3
    assert_unharmed(load)


@contextlib.contextmanager
def seldom_looks(here: Site) -> Iterator[None]:
    """lb1 looks at its flow table every ten seconds only."""
    document = here.on("lb1").config()
    sync = document["failover"]["sync"]
    usual = dict(sync)
    here.on("lb1").reload(
        document | {"failover": document["failover"] | {"sync": sync | {"interval": "10s"}}}
    )
    try:
        yield
    finally:
        document["failover"]["sync"] = usual
        here.on("lb1").reload(document)


def arrive_between_two_looks(here: Site) -> bool:
    """Whether new flows of lb1 got to lb2 while lb1 has not looked at its table. The lag is the age
    of the last look, so it grows with the time unless there is one.
    """
    before, since_s = peer(here, "lb1")["lag_s"], time.monotonic()
    with connections(here, 10) as held:
        await_copies(here, held)
        waited_s = time.monotonic() - since_s
        # What is shown is rounded.
        return bool(peer(here, "lb1")["lag_s"] > before + waited_s - 0.01)


def test_new_flows_are_told_at_once(here: Site) -> None:
    """Looks are ten seconds apart; one may fall into an attempt, not into each of ten."""
    with seldom_looks(here):
        assert any(arrive_between_two_looks(here) for _ in range(ATTEMPTS))


def forget_all(here: Site, balancer: str) -> None:
    """As if the balancer had never had any flow."""
    fd = libbpf.object_get(pins_of(here.on(balancer).config()["name"]).table("flows"))
    try:
        _, table = mapped(fd, abi.FLOW_BUCKET, libbpf.map_info(fd).max_entries)
    finally:
        os.close(fd)
    table["slot"][:] = 0


def is_answered(sock: socket.socket) -> bool:
    try:
        sock.sendall(REQUEST)
        return bool(sock.recv(65536))
    except OSError:  # no answer, too
        return False


def go_on_through_the_other(here: Site) -> bool:
    """Whether connections of which lb1 knows nothing any more go on at their servers."""
    with connections(here, 10) as held:
        await_copies(here, held)
        forget_all(here, "lb1")
        return all(is_answered(sock) for sock in held)


def counted(here: Site, balancer: str, what: str) -> int:
    return int(here.on(balancer).get("/v1/failover")["flow_sync"]["packets_total"][what])


def test_connections_that_only_the_other_balancer_knows_go_on(here: Site) -> None:
    """A look that falls into an attempt tells lb2 that they are over."""
    with seldom_looks(here):
        assert any(go_on_through_the_other(here) for _ in range(ATTEMPTS))
    assert counted(here, "lb1", "passed_on") >= 10
    assert counted(here, "lb2", "taken") >= 10


def test_what_has_ended_is_no_open_flow_there_either(here: Site) -> None:
    with connections(here, 20) as held:
        await_copies(here, held)
        gone = [ends(sock) for sock in held]
    wait_until("they have ended there too", lambda: not set(gone) & flows(here, "lb2").keys())


def test_a_cut_and_healed_link_leaves_no_difference(here: Site) -> None:
    with connections(here, 20) as before:
        await_copies(here, before)
        full = peer(here, "lb2")["full_resyncs_received_total"]
        with apart(here):
            wait_until("it is noticed", lambda: not are_connected(here))
            with connections(here, 20) as during:
                gone = {ends(sock) for sock in [*before[:10], *during]}
                for sock in before[:10]:
                    sock.close()
                lag_s = peer(here, "lb1")["lag_s"]
                wait_until("the lag grows", lambda: peer(here, "lb1")["lag_s"] > lag_s)
        with connections(here, 20) as after:
            wait_until("it is healed", lambda: are_connected(here))
            await_copies(here, before[10:] + after)
            wait_until(
                "all was sent",
                lambda: peer(here, "lb2")["full_resyncs_received_total"] > full,
            )
            wait_until("what has ended is gone", lambda: not gone & flows(here, "lb2").keys())


def dropped(here: Site) -> int:
    """How many flows lb2 has dropped for want of a backend."""
    return int(peer(here, "lb2")["flows_dropped_total"].get("no-backend", 0))


def test_flows_of_a_backend_that_the_other_one_gets_to_know_later(here: Site) -> None:
    document, less = here.on("lb2").config(), here.on("lb2").config()
    known = [backend["name"] for backend in document["services"][0]["backends"]]
    for service in less["services"]:
        service["backends"] = service["backends"][:1]
    here.on("lb2").reload(less)
    before = dropped(here)
    with connections(here, 30) as held:
        wait_until("some are dropped", lambda: dropped(here) > before)
        assert not holds(here, "lb2", held)
        here.on("lb2").reload(document)
        await_copies(here, held)
        assert {backend for _, backend in flows(here, "lb2").values()} == set(known)


def test_flows_of_a_backend_that_the_other_one_has_in_maintenance_come_after_it(here: Site) -> None:
    """So do those of one whose next hop is found after a reload has added it."""
    document, less = here.on("lb2").config(), here.on("lb2").config()
    for service in less["services"]:
        service["backends"][0]["state"] = "maintenance"
    here.on("lb2").reload(less)
    before = dropped(here)
    with connections(here, 30) as held:
        wait_until("some are dropped", lambda: dropped(here) > before)
        assert not holds(here, "lb2", held)
        here.on("lb2").reload(document)
        await_copies(here, held)


def test_a_wrong_secret_is_told_apart_from_a_dead_peer(here: Site) -> None:
    document = here.on("lb2").config()
    right, wrong = document["failover"]["key_file"], here.lab.run_dir / "wrong.key"
    wrong.touch(mode=0o600)
    wrong.write_text("a secret that only one of the two has\n")
    document["failover"]["key_file"] = str(wrong)

    def is_refused(at: str) -> bool:
        """In one answer: on a busy host the next attempt may fail for want of time."""
        found = peer(here, at)
        return found["state"] == "refused" and "key_file" in found["why"]

    here.on("lb2").reload(document)
    for at in ("lb1", "lb2"):
        wait_until("it is refused", lambda at=at: is_refused(at))
        assert peer(here, at)["refused_total"]["key"]
    wrong.chmod(0o644)
    here.on("lb2").reload(document)
    assert peer(here, "lb2")["state"] == "refused"
    assert "everybody on this host can read" in peer(here, "lb2")["why"]
    document["failover"]["key_file"] = right
    here.on("lb2").reload(document)
    wait_until("they have met", lambda: are_connected(here))


def test_an_instance_of_another_name_on_the_other_balancer_is_named(here: Site) -> None:
    def kinds(at: str) -> set[str]:
        rows = here.on(at).get("/v1/failover")["instances"]
        return {problem["kind"] for row in rows for problem in row["problems"]}

    document = here.on("lb2").config()
    (instance,) = document["failover"]["instances"]
    right = instance["name"]
    instance["name"] = "another"
    here.on("lb2").reload(document)
    for at in ("lb1", "lb2"):
        wait_until(f"{at} says so", lambda at=at: "name" in kinds(at))
    instance["name"] = right
    here.on("lb2").reload(document)
    for at in ("lb1", "lb2"):
        wait_until(f"{at} is content", lambda at=at: "name" not in kinds(at))


def test_nothing_is_kept_of_who_is_no_peer_any_more(here: Site) -> None:
    document = here.on("lb2").config()
    peers, folder = document["failover"]["sync"].pop("peers"), pins_of(document["name"]).folder
    assert len(list(folder.glob("peer_*"))) == 2 * len(peers)
    here.on("lb2").reload(document)
    assert not list(folder.glob("peer_*"))
    document["failover"]["sync"]["peers"] = peers
    here.on("lb2").reload(document)
    with connections(here, 10) as held:
        await_copies(here, held)
    assert len(list(folder.glob("peer_*"))) == 2 * len(peers)


def garbage_at_lb2(here: Site) -> int:
    return int(peer(here, "lb2")["refused_total"].get("garbage", 0))


def strangers_change_nothing(here: Site) -> bool:
    """Whether the balancers kept their stream."""
    wait_until("they are connected", lambda: are_connected(here))
    before = {at: peer(here, at)["connections_total"] for at in ("lb1", "lb2")}
    garbage = garbage_at_lb2(here)
    addresses = [str(here.lab.node(at).ipv4) for at in ("lb1", "lb2")]
    with connections(here, 10) as held:
        for source, address in (
            ("client", addresses[0]),
            ("client", addresses[1]),
            ("lb1", addresses[1]),
        ):
            with netns.inside(here.lab.node(source).namespace):
                sock = socket.create_connection((address, SYNC_PORT), timeout=60)
            with sock, contextlib.suppress(ConnectionError):
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0" * 10_000)
                while sock.recv(65536):
                    pass
        wait_until("it is counted", lambda: garbage_at_lb2(here) > garbage)
        await_copies(here, held)
    wait_until("they are connected", lambda: are_connected(here))
    return before == {at: peer(here, at)["connections_total"] for at in ("lb1", "lb2")}


def test_strangers_and_garbage_change_nothing(here: Site) -> None:
    """A balancer that is held up for seconds loses its stream, too, but not each time."""
    assert any(strangers_change_nothing(here) for _ in range(4))


def blocked_at(here: Site, balancer: str) -> list[str]:
    return [each["prefix"] for each in here.on(balancer).get("/v1/guard")["blocks"]]


def guard(here: Site, balancer: str, verb: str, **body: Any) -> Any:
    return here.on(balancer).api.post(f"/v1/guard/{verb}", body)


def test_who_is_blocked_at_one_balancer_is_blocked_at_the_other(here: Site) -> None:
    wait_until("they are connected", lambda: are_connected(here))
    two = ["198.51.100.7", "2001:db8:7::/64"]
    wait_until("it is told", lambda: guard(here, "lb1", "block", prefixes=two)["told_balancers"])
    wait_until("lb2 has taken it over", lambda: blocked_at(here, "lb2") == two)
    # For the first block on a host a program is compiled.
    wait_until("it is in force", lambda: here.on("lb2").get("/v1/guard")["in_force"])
    tested = here.on("lb2").get("/v1/guard/test", address="2001:db8:7::9")
    assert {each["verdict"] for each in tested["services"]} == {"blocked"}
    wait_until("they are connected", lambda: are_connected(here))
    assert guard(here, "lb2", "unblock", prefixes=two[:1])["told_balancers"] == 1
    wait_until("lb1 has taken it over", lambda: blocked_at(here, "lb1") == two[1:])
    with apart(here):
        wait_until(
            "both have noticed",
            lambda: all(peer(here, at)["state"] != "connected" for at in ("lb1", "lb2")),
        )
        assert guard(here, "lb1", "unblock", prefixes=two[1:])["told_balancers"] == 0
        assert guard(here, "lb2", "block", prefixes=two[:1])["told_balancers"] == 0
    wait_until("they are connected", lambda: are_connected(here))
    wait_until("lb1 knows", lambda: blocked_at(here, "lb1") == two[:1])
    wait_until("lb2 knows", lambda: blocked_at(here, "lb2") == two[:1])
    guard(here, "lb1", "unblock", prefixes=two[:1])
    wait_until("all is as before", lambda: not blocked_at(here, "lb2"))
