"""Our adverts and a real keepalived's, over real sockets: each side understands the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from agent.failover.model import OWNER, Authentication, Checksum, Instance
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp.advert import Advert, Refusal
from agent.failover.vrrp.channel import Channel
from agent.failover.vrrp.compare import problems
from lbctl.lab import netns
from tests.netns.failover.keepalived import Keepalived, instance, keepalived
from tests.netns.failover.switched import (
    VIP6_LOCAL,
    Address,
    Switched,
    address,
    link_local,
    switched,
)
from tests.netns.failover.waiting import readable

pytestmark = pytest.mark.kernel

OURS, THEIRS = address("a"), address("b")
PASSWORD = "s3cr3t01"  # noqa: S105
V2 = Instance("web", version=2)
V3 = Instance("web")
UNICAST = replace(V3, peers=(THEIRS,))


@pytest.fixture(scope="module")
def wire() -> Iterator[Switched]:
    with switched("st-wire") as made:
        yield made


@dataclass(frozen=True)
class Case:
    """One virtual router, with its own VRID and VIP: how we are set, and how keepalived is."""

    name: str
    ours: Instance
    theirs: Callable[..., str]  # given vips, name, vrid, priority
    kind: str = ""  # of the problem that it makes
    family: int = 4
    source: Address = OURS


def theirs(**settings: object) -> Callable[..., str]:
    """A keepalived instance that is set so; what is given later goes first."""

    def text(vips: tuple[Address | str, ...], **more: object) -> str:
        return instance(vips, **(settings | more))  # type: ignore[arg-type]

    return text


def unicast(family: int = 4, **settings: object) -> Callable[..., str]:
    return theirs(source=address("b", family), peers=[address("a", family)], **settings)


def v2(**settings: object) -> Callable[..., str]:
    return theirs(version=2, **settings)


def unicast_v2(**settings: object) -> Callable[..., str]:
    return unicast(version=2, **settings)


def more_vips(vips: tuple[Address, ...], **settings: object) -> str:
    return theirs()(("10.73.7.7", *vips), **settings)


def other_vrid(vips: tuple[Address, ...], vrid: int, **settings: object) -> str:
    return theirs()(vips, vrid=vrid + 100, **settings)


PASS, AH = {"auth": ("PASS", PASSWORD)}, {"auth": ("AH", PASSWORD)}
OURS_PASS = replace(V2, authentication=Authentication.PASSWORD, password=PASSWORD)
OURS_HMAC = replace(V3, authentication=Authentication.HMAC)
OURS_AH = replace(V2, authentication=Authentication.AH, password=PASSWORD)
AS_V2 = replace(V3, checksum=Checksum.V2)
KEEPALIVED_AS_V2 = theirs(more=["v3_checksum_as_v2"])

ALIKE = [
    Case("v3", V3, theirs()),
    Case("v3_unicast", UNICAST, unicast()),
    Case("v3_as_v2", AS_V2, KEEPALIVED_AS_V2),
    Case("v3_vmac", replace(V3, virtual_mac=True), theirs()),
    Case("v6", V3, theirs(), family=6, source=link_local("a")),
    Case("v6_vmac", replace(V3, virtual_mac=True), theirs(), family=6, source=link_local("a")),
    Case(
        "v6_unicast",
        replace(V3, peers=(address("b", 6),)),
        unicast(6),
        family=6,
        source=address("a", 6),
    ),
    Case("v2", V2, v2()),
    Case("v2_unicast", replace(V2, peers=(THEIRS,)), unicast_v2()),
    Case("v2_pass", OURS_PASS, v2(**PASS)),
    Case("v2_ah", OURS_AH, v2(**AH)),
    Case("v2_ah_unicast", replace(OURS_AH, peers=(THEIRS,)), unicast_v2(**AH)),
]

UNLIKE = [
    Case("v2_for_v3", V3, v2(), "version"),
    Case("v3_for_v2", V2, theirs(), "version"),
    Case("pass_for_none", V2, v2(**PASS), "authentication"),
    Case("none_for_pass", OURS_PASS, v2(), "authentication"),
    Case("ah_for_none", V2, v2(**AH), "authentication"),
    Case("ah_for_v3", V3, v2(**AH), "version"),
    Case("other_pass", OURS_PASS, v2(auth=("PASS", "other")), "authentication"),
    Case("other_ah", OURS_AH, v2(auth=("AH", "other")), "authentication"),
    Case("none_for_hmac", OURS_HMAC, theirs(), "authentication"),
    Case("multicast", UNICAST, theirs(), "addressing"),
    Case("unicast", V3, unicast(), "addressing"),
    Case("as_v2", V3, KEEPALIVED_AS_V2, "checksum"),
    Case("not_as_v2", AS_V2, theirs(), "checksum"),
    Case("stranger", replace(V3, peers=(address("client"),)), unicast(), "source"),
    Case("ttl", UNICAST, unicast(more=["unicast_ttl 64"]), "ttl"),
    Case("faster", V3, theirs(interval_s=0.1), "interval"),
    Case("slower_v2", V2, theirs(version=2, interval_s=2), "interval"),
    Case("more_vips", V3, more_vips, "vips"),
    Case("other_vrid", V3, other_vrid, "vrid"),
    Case("owner", replace(V3, priority=OWNER), theirs(), "priority"),
]


def router(case: Case, vrid: int) -> VirtualRouter:
    vips: tuple[Address, ...] = (ip_address(f"10.73.1.{vrid}"),)
    if case.family == 6:
        vips = (ip_address(f"fd73::1:{vrid:x}"),)
        vips = vips if case.ours.peers else (VIP6_LOCAL, *vips)
    return VirtualRouter(
        case.name, replace(case.ours, vrid=vrid), "eth0", case.family, vips, case.name
    )


@contextlib.contextmanager
def channels(
    wire: Switched, cases: list[Case]
) -> Iterator[dict[str, tuple[VirtualRouter, Channel]]]:
    """Ours, open with the block."""
    with contextlib.ExitStack() as stack, netns.inside(wire.name("a")):
        opened = {}
        for vrid, case in enumerate(cases, 1):
            of = router(case, vrid)
            channel = Channel(of, case.source, b"k" * 32)
            stack.callback(channel.close)
            opened[case.name] = of, channel
        yield opened


def configuration(cases: list[Case], **settings: object) -> list[str]:
    return [
        case.theirs(router(case, vrid).vips, name=case.name, vrid=vrid, **settings)
        for vrid, case in enumerate(cases, 1)
    ]


def hear(channel: Channel, timeout_s: float = 60) -> list[Advert | Refusal]:
    """What comes first."""
    end = time.monotonic() + timeout_s
    while not (found := channel.receive()):
        left = end - time.monotonic()
        assert left > 0, "nothing was heard"
        readable(channel.sockets, left)
    return found


def keep_down(ours: dict[str, tuple[VirtualRouter, Channel]], peer: Keepalived) -> list[str]:
    """Send as a master does, for longer than keepalived waits for one; those of its instances that
    were not BACKUP all the while.
    """
    for _, channel in ours.values():
        channel.receive()
    before = {name: peer.states(name) for name in ours}
    end = time.monotonic() + 4.5  # it gives up after 3.6
    while time.monotonic() < end:
        for _, channel in ours.values():
            channel.send(200)
        time.sleep(0.01)
    return [
        name
        for name, states in before.items()
        if peer.states(name) != (states or ["BACKUP"]) or peer.states(name)[-1] != "BACKUP"
    ]


def test_keepalived_and_we_understand_each_other(wire: Switched) -> None:
    """It stays BACKUP while it hears us, and we hear it as it is set."""
    with (
        channels(wire, ALIKE) as ours,
        keepalived(wire.name("b"), *configuration(ALIKE, priority=100)) as peer,
    ):
        # Again if this process stood still: who hears nobody has to be master.
        for _ in range(10):
            if not (not_down := keep_down(ours, peer)):
                break
        assert not_down == [], peer.log()
        for _, channel in ours.values():
            assert channel.receive() == []
            channel.send(0)
        for case in ALIKE:
            of, channel = ours[case.name]
            heard = hear(channel)[0]
            assert isinstance(heard, Advert), f"{case.name}: {heard}"
            assert heard.priority == 100
            assert heard.vips == of.vips
            assert problems(of, case.source, 200, heard) == (), case.name
        peer.stop()
        for name, (_, channel) in ours.items():
            last = hear(channel)[-1]
            while isinstance(last, Advert) and last.priority:  # there are others before it
                last = hear(channel)[-1]
            assert isinstance(last, Advert), f"{name}: {last}"


def test_every_mismatch_with_keepalived_is_named(wire: Switched) -> None:
    with (
        channels(wire, UNLIKE) as ours,
        keepalived(wire.name("b"), *configuration(UNLIKE, priority=OWNER, state="MASTER")) as peer,
    ):
        for case in UNLIKE:
            peer.wait_state("MASTER", case.name)
            of, channel = ours[case.name]
            heard = hear(channel)[0]
            found = problems(of, case.source, case.ours.priority, heard)
            assert [problem.kind for problem in found] == [case.kind], f"{case.name}: {heard}"
            assert found[0].source == THEIRS
            assert PASSWORD not in found[0].text
