"""Every way of forwarding, with real clients and servers: one lab a mode, IPv4 and IPv6.

Receivers verify checksums, so whatever arrives was right on the wire.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import shlex
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from agent.model import Forward, Hook
from lbctl.lab import build, failover, netns, processes
from lbctl.lab.topology import PORT, Node, Role
from tests.netns import peers, tags
from tests.netns.peers import (
    CLOSED_PORT,
    ECHO_PORT,
    MIXED_PORT,
    REFUSED_PORT,
    SILENT_PORT,
    STICKY_PORT,
    Datagrams,
    Talk,
)
from tests.netns.site import Site, site, wait_until
from tests.netns.waiting import waiting

FAMILIES = (4, 6)
# The balancers of nat have an arm to each side, those of fullnat one for both.
MODES: dict[Forward, dict[str, Any]] = {
    Forward.DSR: {},
    Forward.IPIP: {},
    Forward.GUE: {},
    Forward.NAT: {"arms": 2},
    Forward.FULLNAT: {},
}
# What services are added for that need another program: labs of modes that are alike get the same
# one, so that it is compiled once.
TUNNELS, NATS = (Forward.IPIP, Forward.GUE), (Forward.NAT, Forward.FULLNAT)
LIKE = {mode: NATS if mode.is_nat else TUNNELS for mode in MODES}
# Each number of tags, and answers that pass the balancer and answers that do not. Each takes a lab.
QUICK = ((Forward.DSR, False), (Forward.IPIP, True), (Forward.NAT, True))
# Of the way to the backends.
NARROW_MTU = {Forward.IPIP: 1500, Forward.GUE: 1500, Forward.NAT: 1400, Forward.FULLNAT: 1400}
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: mode.value)
def here(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A lab of the mode, with more services and servers than a lab has of itself."""
    mode: Forward = request.param
    name = f"st-{mode.value}-{os.getpid()}"
    options = {"backends": 2, "clients": 3, "hook": Hook.NATIVE, **MODES[mode]}
    with (
        site(
            lambda lab: peers.services(lab) + peers.unasked(), name=name, forward=mode, **options
        ) as built,
        peers.serving(built.lab),
    ):
        yield built


def some(*modes: Forward) -> pytest.MarkDecorator:
    """In these modes; the soak has the others, too."""
    return pytest.mark.parametrize(
        "here",
        [mode if mode in modes else pytest.param(mode, marks=pytest.mark.soak) for mode in MODES],
        ids=lambda mode: mode.value,
        indirect=True,
    )


def client(here: Site) -> Node:
    return here.lab.node("client")


def vips(here: Site) -> Iterator[tuple[int, Any]]:
    return zip(FAMILIES, here.lab.vips, strict=True)


def get(here: Site, vip: Any) -> str:
    """The backend that answers an HTTP request."""
    connection = http.client.HTTPConnection(str(vip), PORT, timeout=60)
    with netns.inside(client(here).namespace), contextlib.closing(connection):
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode().strip()


def test_requests_are_answered_by_every_backend(here: Site) -> None:
    for _, vip in vips(here):
        # A server that stood still for some seconds is passed over until it is checked again.
        wait_until("both answer", lambda v=vip: both_answer(here, v))  # type: ignore[misc]


def test_a_megabyte_arrives_whole_in_both_directions(here: Site) -> None:
    for _, vip in vips(here):
        data = os.urandom(1 << 20)
        with Talk(client(here), vip) as talk:
            assert talk.say(data) == data
    assert peers.checksum_errors(here.lab) == {}


def test_backends_at_a_tunnels_end_may_be_of_the_other_family(here: Site) -> None:
    for _, vip in vips(here):
        data = os.urandom(100_000)
        with Talk(client(here), vip, MIXED_PORT) as talk:
            assert talk.say(data) == data


def test_backends_see_whom_they_should(here: Site) -> None:
    for family, vip in vips(here):
        balancer, asking = here.balancer, client(here)
        with Talk(asking, vip) as talk:
            if here.lab.forward is Forward.FULLNAT:
                own = [a.ip for link in balancer.links for a in link.addresses]
                assert talk.seen_as in own
            else:
                assert talk.seen_as == (asking.ipv4 if family == 4 else asking.ipv6)


def test_only_the_balancers_program_carries_what_is_routed(here: Site) -> None:
    """Its kernel forwards nothing, and backends of nat and fullnat reach no client past it."""
    for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        assert here.run(here.balancer.name, "sysctl", "-n", f"net.{setting}").stdout == "0\n"
    if here.lab.forward.is_nat:
        for address in (client(here).ipv4, client(here).ipv6):
            done = here.run("be1", "ping", "-c1", "-W0.3", str(address))
            assert done.returncode in (1, 2), done  # no answer, no way


def test_many_connections_are_open_at_once_and_shared_out(here: Site) -> None:
    for _, vip in vips(here):
        with contextlib.ExitStack() as stack:
            talks = [stack.enter_context(Talk(client(here), vip)) for _ in range(150)]
            for number, talk in enumerate(talks):
                message = f"message {number}".encode() * 50
                assert talk.say(message) == message
            shares = Counter(talk.backend for talk in talks)
        # least-conn counts them all: what is left of earlier connections is a handful.
        assert abs(shares["be1"] - shares["be2"]) <= 10, shares


def test_a_client_keeps_its_backend_with_the_source_scheduler(here: Site) -> None:
    for _, vip in vips(here):
        for node in here.lab.nodes(Role.CLIENT):
            found = set()
            for _ in range(8):
                with Talk(node, vip, STICKY_PORT) as talk:
                    found.add(talk.backend)
            assert len(found) == 1, (node.name, found)


def test_datagrams_are_answered_and_fragments_follow_the_first(here: Site) -> None:
    for _, vip in vips(here):
        answered = set()
        for _ in range(6):
            with Datagrams(client(here), vip, ECHO_PORT) as datagrams:
                name, _, data = datagrams.ask(b"hello").partition(b" ")
                assert data == b"hello"
                large = os.urandom(4000)
                assert datagrams.ask(large) == name + b" " + large, "one flow, one backend"
                answered.add(name)
        assert answered == {b"be1", b"be2"}
    assert peers.checksum_errors(here.lab) == {}


def test_a_closed_port_of_a_backend_is_told_to_the_client_by_the_vip(here: Site) -> None:
    for family, vip in vips(here):
        with Datagrams(client(here), vip, CLOSED_PORT) as datagrams:
            told = datagrams.provoke(b"anybody?")
        assert told is not None
        assert (told.error, told.offender) == (errno.ECONNREFUSED, vip)
        assert (told.kind, told.code) == PORT_UNREACHABLE[family]


def test_the_path_is_traced_through_the_balancer(here: Site) -> None:
    for family, vip in vips(here):
        with Datagrams(client(here), vip, ECHO_PORT, ttl=1) as datagrams:
            if here.lab.forward is Forward.DSR:
                # No hop of its own: what it sends on is a frame, and no packet has changed.
                assert datagrams.ask(b"hop").endswith(b" hop")
                continue
            told = datagrams.provoke(b"hop")
        assert told is not None
        assert (told.kind, told.code) == TIME_EXCEEDED[family]
        assert told.offender in (vip, here.balancer.ipv4, here.balancer.ipv6)


def test_without_a_usable_backend_clients_are_refused_at_once_or_left_alone(here: Site) -> None:
    for family, vip in vips(here):
        with pytest.raises(ConnectionRefusedError):
            Talk(client(here), vip, REFUSED_PORT)
        with Datagrams(client(here), vip, REFUSED_PORT) as datagrams:
            told = datagrams.provoke(b"anybody?")
        assert told is not None
        assert (told.kind, told.code) == PORT_UNREACHABLE[family]
    refused = here.run("client", "curl", "-m0.4", "-s", f"http://{here.lab.vips[0]}:{SILENT_PORT}/")
    assert refused.returncode == 28, "timed out"


def test_pings_of_a_vip_are_the_hosts_to_answer_fragments_too(here: Site) -> None:
    for _, vip in vips(here):
        for size in ("56", "4000"):
            done = here.run("client", "ping", "-c1", "-W60", "-s", size, str(vip))
            assert done.returncode == 0, done


@pytest.mark.parametrize("here", NARROW_MTU, ids=lambda mode: mode.value, indirect=True)
def test_what_does_not_fit_the_way_to_the_backend_is_told_to_the_sender(here: Site) -> None:
    data = os.urandom(300_000)
    with narrowed(here, NARROW_MTU[here.lab.forward]):
        for family, vip in vips(here):
            heard = peers.too_big_heard(client(here), family)
            with Talk(client(here), vip) as talk:
                assert talk.say(data) == data
            assert peers.too_big_heard(client(here), family) > heard


@contextlib.contextmanager
def narrowed(here: Site, mtu: int) -> Iterator[None]:
    """The balancer's way to the backends, while the block runs."""
    link = here.balancer.links[-1]
    # Of two networks on one interface, that of the backends is the later one.
    ours = {address.version: address for address in link.addresses}

    def narrow(to: int) -> None:
        for family, own in ours.items():
            way = f"{own.network} dev {link.interface} proto kernel src {own.ip} mtu {to}"
            metric = " metric 256" if family == 6 else ""
            command = f"ip route change {way}{metric}".split()
            assert here.run(here.balancer.name, *command).returncode == 0
        # The agent hears of it and tells the tables.
        wait_until(f"mtu {to}", lambda: way_mtus(here) == {to})

    narrow(mtu)
    try:
        yield
    finally:
        narrow(link.mtu)
        for family in FAMILIES:
            here.run("client", "ip", f"-{family}", "route", "flush", "cache")


def way_mtus(here: Site) -> set[int]:
    return {
        here.backend(f"talk{family}", node.name)["next_hop"]["mtu"]
        for family in FAMILIES
        for node in here.lab.nodes(Role.BACKEND)
    }


# One tag for dsr, one tunnel and one rewriting mode, two tags for the others; the soak has all.
@pytest.mark.parametrize(
    ("here", "double"),
    [
        pytest.param(
            mode, double, id=f"{mode.value}-{'two-tags' if double else 'one-tag'}",
            marks=() if (mode, double) in QUICK else pytest.mark.soak,
        )
        for mode in MODES
        for double in (False, True)
    ],
    indirect=["here"],
)  # fmt: skip
def test_clients_on_a_vlan_are_answered_in_their_tags(here: Site, double: bool) -> None:
    count = 2 if double else 1
    with tags.tagged(here.lab, client(here), here.balancer, double=double) as seen:
        for number, (_, vip) in enumerate(vips(here), 1):
            with pytest.raises(ConnectionRefusedError):
                Talk(client(here), vip, REFUSED_PORT)
            answers, rest = divmod(seen.popped(), count)
            # A SYN that waits for its answer for a second is repeated, and answered again.
            assert (answers >= number, rest) == (True, 0), "the balancer's own answer"
        refused = seen.popped()
        for _, vip in vips(here):
            # A veth has room for one tag beyond its MTU, not for two.
            data = os.urandom(1000 if double else 100_000)
            with Talk(client(here), vip) as talk:
                assert talk.say(data) == data
        assert (seen.popped() > refused) is here.lab.forward.is_nat, "others go past the balancer"


@some(Forward.DSR, Forward.FULLNAT)
def test_connections_survive_the_agents_death_and_a_new_program(here: Site) -> None:
    with contextlib.ExitStack() as stack:
        talks = [
            stack.enter_context(Talk(client(here), vip)) for _, vip in vips(here) for _ in range(4)
        ]

        def all_go_on() -> None:
            for talk in talks:
                assert talk.say(b"still there?" * 300) == b"still there?" * 300

        program = here.xdp_program_id()
        here.stop_agent(signal.SIGKILL)
        assert here.xdp_program_id() == program
        all_go_on()
        for _, vip in vips(here):
            assert get(here, vip) in ("be1", "be2")
        document = here.config()
        document["services"] += [
            {
                "name": f"other-{forward.value}",
                "vip": "10.99.0.99",
                "port": 9100 + number,
                "forward": forward.value,
                "health": {"type": "none"},
                "backends": [{"name": "be1", "address": str(here.lab.node("be1").ipv4)}],
            }
            for number, forward in enumerate(LIKE[here.lab.forward])
        ]
        here.write_config(document)
        here.start_agent()
        assert here.xdp_program_id() != program, "another feature is another program"
        all_go_on()


def test_a_moment_without_the_program_breaks_no_connection(here: Site) -> None:
    """Neither the client's packets nor the answers are reset by this host's own stack."""
    data, flood = b"still there?", os.urandom(3 << 20)
    with contextlib.ExitStack() as stack:
        quiet = [stack.enter_context(Talk(client(here), vip)) for _, vip in vips(here)]
        quiet += [stack.enter_context(Talk(client(here), vip)) for _, vip in vips(here)]
        full = [stack.enter_context(Talk(client(here), vip)) for _, vip in vips(here)]
        for talk in quiet + full:
            talk.wait_up_to(180)  # the longer all is dropped, the later it is sent again
        for talk in full:  # the server has more to say than its client takes
            talk.send(flood)
        here.signal_agent(signal.SIGSTOP)
        try:
            take_off(here)
            for talk in quiet:
                talk.send(data)
            wait_until("it drops", lambda: guarded(here)["dropped"] > len(quiet), 60)
            if here.lab.forward is Forward.FULLNAT:
                wait_until("it drops answers", lambda: guarded(here)["answers"] > len(full), 60)
        finally:
            here.signal_agent(signal.SIGCONT)
        wait_until("it is put back", lambda: here.xdp_program_id() != 0, 60)
        assert [talk.hear(len(data)) for talk in quiet] == [data] * len(quiet)
        assert [talk.hear(len(flood)) for talk in full] == [flood] * len(full)


def take_off(here: Site) -> None:
    for link in here.balancer.links:
        here.run(here.balancer.name, "ip", "link", "set", "dev", link.device, "xdp", "off")
    assert here.xdp_program_id() == 0


def guarded(here: Site) -> Counter[str]:
    """Packets that the guard below the program has dropped, and the answers that it has seen."""
    listed = here.run(here.balancer.name, "nft", "-j", "list", "table", "inet", table(here))
    found: Counter[str] = Counter()
    for entry in json.loads(listed.stdout)["nftables"]:
        for part in entry.get("rule", {}).get("expr", ()):
            name = "dropped" if entry["rule"]["chain"] == "unheard" else "served"
            name = "answers" if "@answers" in str(entry) else name
            found[name] += part.get("counter", {}).get("packets", 0)
    return found


def table(here: Site) -> str:
    return f"steelyard-{here.balancer.namespace}"


def test_a_guard_that_somebody_removed_is_put_back(here: Site) -> None:
    here.run(here.balancer.name, "nft", "flush", "ruleset")
    listing = ("nft", "list", "table", "inet", table(here))
    wait_until("it is there", lambda: here.run(here.balancer.name, *listing).returncode == 0, 60)


def test_a_drained_backend_keeps_its_connections_and_gets_no_new_ones(here: Site) -> None:
    for family, vip in vips(here):
        service = f"talk{family}"
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(Talk(client(here), vip)) for _ in range(6)]
            here.edit("backend.set", service=service, backend="be1", values={"state": "drain"})
            later = [stack.enter_context(Talk(client(here), vip)) for _ in range(6)]
            assert {talk.backend for talk in later} == {"be2"}
            assert "be1" in {talk.backend for talk in held}
            for talk in held:
                assert talk.say(b"to the end") == b"to the end"
        here.edit("backend.set", service=service, backend="be1", values={"state": "active"})


def test_a_killed_backend_is_passed_over_and_comes_back(here: Site) -> None:
    processes.kill(here.lab.run_dir, "be1")
    for service in ("web", "web6"):
        wait_until(f"{service}: be1 is down", lambda s=service: state(here, s) == "down")  # type: ignore[misc]
    for _, vip in vips(here):
        # What is known of its health is in the tables a moment later.
        wait_until("be1 is passed over", lambda v=vip: answerers(here, v) == {"be2"})  # type: ignore[misc]
        assert answerers(here, vip) == {"be2"}
    build.start_server(here.lab, here.lab.node("be1"))
    for service in ("web", "web6"):
        wait_until(f"{service}: be1 is up", lambda s=service: state(here, s) == "up")  # type: ignore[misc]
    for _, vip in vips(here):
        wait_until("both answer", lambda v=vip: both_answer(here, v))  # type: ignore[misc]


def both_answer(here: Site, vip: Any) -> bool:
    return {get(here, vip) for _ in range(40)} == {"be1", "be2"}


@pytest.mark.parametrize(
    "here",
    # A missing end of a tunnel is the same for both kinds of tunnel.
    [Forward.DSR, Forward.IPIP, pytest.param(Forward.GUE, marks=pytest.mark.soak)],
    ids=lambda mode: mode.value,
    indirect=True,
)
def test_a_backend_that_clients_cannot_reach_is_down_though_its_server_is_well(here: Site) -> None:
    """It answers at its own address all the time."""
    vip, mode = here.lab.vips[0], here.lab.forward.value
    silent, refused = f"no answer from {vip}:80 by {mode}", f"connection refused at {vip}:80"
    reject = (
        "add table inet t; add chain inet t in {type filter hook input priority 0;};"
        f"add rule inet t in ip daddr {vip} tcp dport 80 reject with tcp reset"
    )
    faults = [
        (f"ip addr del {vip}/32 dev lo", f"ip addr add {vip}/32 dev lo", silent),
        (f"nft '{reject}'", "nft delete table inet t", refused),
    ]
    if here.lab.forward.is_tunnel:
        again = shlex.join(build.decap(here.lab))
        faults.append(("ip link set eth0 xdp off", again, f"does it take {mode}, and is"))

    def is_so(what: str, reason: str = "") -> bool:
        shown = here.backend("web", "be2")
        return bool(shown["state"] == what and reason in shown["reason"])

    def up() -> dict[str, int]:
        return {s["name"]: s["backends_up"] for s in here.get("/v1/services")["services"]}

    # One that is found late now must not be missed later.
    before = up() | {"web": 2, "web6": 2}
    for breaks, mends, reason in faults:
        try:
            done = here.run("be2", "sh", "-ec", breaks)
            assert done.returncode == 0, done.stderr
            wait_until(reason, lambda reason=reason: is_so("down", reason))  # type: ignore[misc]
            # A client that be2 still gets, before the tables know, waits for a minute.
            wait_until("be2 is passed over", lambda: answerers(here, vip) == {"be1"}, 240)
        finally:
            done = here.run("be2", "sh", "-ec", mends)
        assert done.returncode == 0, done.stderr
        wait_until("all are up again", lambda: up() == before)
    wait_until("both answer", lambda: both_answer(here, vip))


def answerers(here: Site, vip: Any) -> set[str]:
    """Who answers a dozen requests; "nobody" may be among them."""
    found = set()
    for _ in range(12):
        try:
            found.add(get(here, vip))
        except OSError:  # refused, reset, or no answer at all
            found.add("nobody")
    return found


def state(here: Site, service: str) -> str:
    return str(here.backend(service, "be1")["state"])


@some(Forward.GUE)
def test_every_hook_carries_the_same_and_keeps_connections(here: Site) -> None:
    # Generic XDP runs the same program as native; once with a header more and once in nat will do.
    generic = here.lab.forward in (Forward.GUE, Forward.NAT)
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Talk(client(here), vip)) for _, vip in vips(here)]
        for hook in (Hook.GENERIC, Hook.TC) if generic else (Hook.TC,):
            here.stop_agent(signal.SIGTERM)
            here.write_config(here.config() | {"hook": hook.value})
            here.start_agent()
            assert here.get("/v1/status")["dataplane"]["hook"] == hook.value
            for talk in talks:
                assert talk.say(b"the same?") == b"the same?"
            short_check(here)
    # Checksums left to the card, and super-frames: with those only tc has to do.
    here.run("client", "ethtool", "-K", "eth0", "tx", "on", "tso", "on")
    short_check(here)

    def are_super_frames() -> bool:
        """How large they are hangs on how busy the host is; on the wire none is above 1500.

        Without what is told by ICMP, of which kernels send few to one host in a short time.
        """
        before = received(here)
        bulk_check(here)
        packets, size = (now - then for now, then in zip(received(here), before, strict=True))
        return size > 1500 * packets

    wait_until("it sees what the client's card would cut", are_super_frames)
    assert peers.checksum_errors(here.lab) == {}


def received(here: Site) -> tuple[int, int]:
    """Packets and bytes that came in for the talkative servers."""
    backends = [
        here.backend(f"talk{family}", node.name)
        for family in FAMILIES
        for node in here.lab.nodes(Role.BACKEND)
    ]
    return (
        sum(backend["packets_total"] for backend in backends),
        sum(backend["bytes_total"] for backend in backends),
    )


def bulk_check(here: Site) -> None:
    for _, vip in vips(here):
        data = os.urandom(300_000)
        with Talk(client(here), vip) as talk:
            assert talk.say(data) == data


def short_check(here: Site) -> None:
    bulk_check(here)
    for family, vip in vips(here):
        data = os.urandom(4000)
        with Datagrams(client(here), vip, ECHO_PORT) as datagrams:
            assert datagrams.ask(data).endswith(data)
        with Datagrams(client(here), vip, CLOSED_PORT) as datagrams:
            told = datagrams.provoke(b"anybody?")
            assert told is not None
            assert (told.kind, told.offender) == (PORT_UNREACHABLE[family][0], vip)
        with pytest.raises(ConnectionRefusedError):
            Talk(client(here), vip, REFUSED_PORT)
        with Datagrams(client(here), vip, REFUSED_PORT) as datagrams:
            told = datagrams.provoke(b"anybody?")
            assert told is not None
            assert (told.kind, told.offender) == (PORT_UNREACHABLE[family][0], vip)


TOLD = some(Forward.DSR, Forward.FULLNAT)


def set_both(here: Site, **values: Any) -> None:
    for service in ("web", "web6"):
        here.edit("service.set", service=service, values=values)


@TOLD
def test_clients_that_wait_for_a_server_whose_cable_is_cut_are_reset(here: Site) -> None:
    set_both(here, reset_after="500ms")
    with waiting(client(here), here.lab.vips, 10) as held:
        theirs = {name: [one for one in held if one.backend == name] for name in ("be1", "be2")}
        assert min(len(those) for those in theirs.values()) >= 2, theirs
        failover.cut(here.lab, here.lab.node("be1"))
        try:
            assert all(one.is_reset() for one in theirs["be1"])
            assert all(one.is_silent() for one in theirs["be2"])
        finally:
            failover.mend(here.lab, here.lab.node("be1"))
    for service in ("web", "web6"):
        wait_until(f"{service}: be1 is up", lambda s=service: state(here, s) == "up", 60)  # type: ignore[misc]
    set_both(here, reset_after=None)


@pytest.mark.parametrize(
    "here",
    [Forward.FULLNAT, pytest.param(Forward.NAT, marks=pytest.mark.soak)],
    ids=lambda mode: mode.value,
    indirect=True,
)
def test_clients_of_a_backend_that_is_removed_are_reset_where_answers_could_not_come(
    here: Site,
) -> None:
    with waiting(client(here), here.lab.vips[:1], 10) as held:
        theirs = [one for one in held if one.backend == "be1"]
        assert theirs
        was = next(s for s in here.config()["services"] if s["name"] == "web")
        values = next(b for b in was["backends"] if b["name"] == "be1")
        (change,) = here.edit("backend.remove", service="web", backend="be1")["changes"]
        assert f"{len(theirs)} open connection" in change["effect"]
        assert all(one.is_reset() for one in theirs)
        assert all(one.is_silent() for one in held if one not in theirs)
        values = {key: value for key, value in values.items() if key != "name"}
        here.edit("backend.add", service="web", backend="be1", values=values)


@pytest.mark.soak
@pytest.mark.parametrize(
    "here", [Forward.FULLNAT, Forward.NAT], ids=lambda mode: mode.value, indirect=True
)
def test_both_ends_of_a_flow_that_expires_are_reset(here: Site) -> None:
    before = {name: open_at(here, name) for name in ("be1", "be2")}
    set_both(here, timeouts={"established": "4s"})
    try:
        with waiting(client(here), here.lab.vips, 5) as held:
            assert all(one.is_reset() for one in held)
        for name in ("be1", "be2"):
            wait_until(f"{name} is told", lambda n=name: open_at(here, n) <= before[n], 60)  # type: ignore[misc]
    finally:
        set_both(here, timeouts=None)


def open_at(here: Site, name: str) -> int:
    """Connections of the HTTP server there."""
    port = here.lab.server_port
    listed = here.run(name, "ss", "-Htn", "state", "established", f"( sport = :{port} )").stdout
    return len(listed.splitlines())
