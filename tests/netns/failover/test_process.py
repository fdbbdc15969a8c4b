"""The failover process as a whole: takes over, lets go, and stands what hosts do to it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from agent.errors import ApiError
from lbctl.lab import netns
from tests.netns.failover import keepalived
from tests.netns.failover.node import Ours, ours
from tests.netns.failover.switched import VIP, VIP6, Switched, mac, switched
from tests.netns.site import wait_until

pytestmark = pytest.mark.kernel

BOTH = {"vips": [str(VIP), str(VIP6)]}
HIGH, LOW = {"priority": 150}, {"priority": 100}
# For tests in which nobody may be master by mistake: a process of a busy host may stand still.
PATIENT = {"advert_interval": "200ms"}


@pytest.fixture(scope="module")
def net() -> Iterator[Switched]:
    with switched("st-process") as made:
        yield made


@contextlib.contextmanager
def pair(net: Switched, common: dict[str, object] | None = None) -> Iterator[tuple[Ours, Ours]]:
    """The first is master, the second is backup."""
    with ours(net, "a", "b") as (first, second):
        first.configure(HIGH | (common or {}))
        second.configure(LOW | (common or {}))
        first.start()
        first.await_role("master")
        second.start()
        second.await_role("backup")
        yield first, second


@contextlib.contextmanager
def one(net: Switched, *instances: dict[str, object]) -> Iterator[Ours]:
    """One that is master."""
    with ours(net, "a") as (alone,):
        alone.configure(*instances)
        alone.start()
        alone.await_role("master")
        yield alone


def test_the_vip_is_where_the_master_is_whatever_becomes_of_it(net: Switched) -> None:
    with pair(net) as (first, second):
        # On a busy host the second is master for a moment when the first one stands still.
        first.await_vip(True)
        second.await_vip(False)

        first.end(signal.SIGTERM)
        assert not net.has("a", VIP)
        second.await_role("master")
        first.start()
        first.await_role("master")
        second.await_role("backup")

        net.cut("a")
        second.await_role("master")
        first.await_role("fault")
        first.await_vip(False)
        net.mend("a")
        first.await_role("master")
        second.await_role("backup")

        first.tell(signal.SIGSTOP)
        second.await_role("master")
        first.tell(signal.SIGCONT)
        second.await_role("backup")
        second.await_vip(False)
        first.await_vip(True)
        assert first.router()["problems"] == second.router()["problems"] == []


def test_a_keepalived_takes_over_and_is_taken_over_from(net: Switched) -> None:
    other = keepalived.instance([VIP], priority=120, interval_s=0.02)
    with one(net, HIGH) as alone, keepalived.keepalived(net.name("b"), other) as peer:
        peer.wait_state("BACKUP")
        alone.end(signal.SIGTERM)
        peer.wait_state("MASTER")
        alone.start()
        alone.await_role("master")
        peer.wait_state("BACKUP")
        wait_until("keepalived has taken the VIP off", lambda: not net.has("b", VIP))

        alone.reload(LOW)
        alone.await_role("backup")
        alone.await_vip(False)
        wait_until("it knows the master", lambda: alone.router()["master"] == "10.73.0.2")
        peer.kill()
        alone.await_role("master")
        assert alone.router()["problems"] == []


def sleeps_as_a_backup(first: Ours, second: Ours) -> bool:
    """Stop the second for a while; whether it was a backup all the time."""
    roles, sent = second.roles(), first.router()["adverts_sent"]
    second.tell(signal.SIGSTOP)
    wait_until("adverts", lambda: first.router()["adverts_sent"] > sent + 20)
    second.tell(signal.SIGCONT)
    heard = second.router()["adverts_received"]
    wait_until("adverts", lambda: second.router()["adverts_received"] > heard + 5)
    return (second.role(), second.roles()) == ("backup", roles)


def test_a_frozen_backup_does_not_take_its_sleep_for_the_masters(net: Switched) -> None:
    with pair(net, PATIENT) as (first, second):
        # Again if the first one stood still, too: then the second has to be master.
        wait_until("it sleeps as a backup", lambda: sleeps_as_a_backup(first, second))
        assert first.roles() == ["backup", "master"]


def test_one_that_was_killed_and_comes_back_soon_was_never_away(net: Switched) -> None:
    with ours(net, "a") as (alone,):
        alone.configure({"advert_interval": "500ms"})
        alone.start()
        alone.await_role("master")
        alone.end(signal.SIGKILL)
        assert net.has("a", VIP)
        alone.start()
        again = ["backup", "master", "backup", "master"]
        has_it = True

        def is_back() -> bool:
            nonlocal has_it
            has_it &= net.has("a", VIP)  # nobody else is heard
            return alone.roles() == again

        wait_until("it is master again", is_back)
        assert has_it
        assert net.has("a", VIP)


def test_one_that_was_killed_lets_go_when_it_hears_the_new_master(net: Switched) -> None:
    with pair(net) as (first, second):
        # Below the other's, because on a busy host an advert may come later than the three that are
        # waited for: then this one is master for a moment, and must not stay it.
        first.configure({"priority": 50})
        first.end(signal.SIGKILL)
        second.await_role("master")
        assert net.has("a", VIP)
        announced = second.router()["announcements"]
        first.start()
        first.await_role("backup")
        first.await_vip(False)
        # The new master heard of it, and told the segment again.
        wait_until("announcements", lambda: second.router()["announcements"] > announced)


def test_vips_of_a_former_process_that_nobody_wants_any_more_are_removed(net: Switched) -> None:
    with one(net) as alone:
        alone.end(signal.SIGKILL)
        alone.configure({"vips": ["10.73.0.101"]})
        alone.start()
        alone.await_role("master")
        alone.await_vip(False)
        alone.await_vip(True, "10.73.0.101")
        alone.end(signal.SIGKILL)
        alone.path.write_text("failover: 3\n")
        alone.start()
        assert alone.process is not None
        assert alone.process.wait(60) == 1
        assert "remedy" in alone.log()
        assert not net.has("a", ip_address("10.73.0.101"))


def test_only_one_process_runs_in_a_namespace(net: Switched) -> None:
    with one(net) as first, ours(net, "a") as (second,):
        second.configure()
        second.start()
        assert second.process is not None
        assert second.process.wait(60) == 1
        assert "another failover process runs it" in second.log()
        assert first.role() == "master"
        assert net.has("a", VIP)


def test_interfaces_and_addresses_that_come_and_go(net: Switched) -> None:
    with one(net, BOTH) as alone:
        netns.ip(["link del eth0"], net.name("a"))
        alone.await_role("fault")
        assert "eth0" in alone.router("web/ipv4")["why"]
        net.cable("a")
        alone.await_role("master")
        alone.await_vip(True)
        alone.await_vip(True, VIP6)

        netns.ip(["link set eth0 down", "link set eth0 name other"], net.name("a"))
        alone.await_role("fault")
        netns.ip(["link set other name eth0", "link set eth0 up"], net.name("a"))
        alone.await_role("master")
        alone.await_vip(True, VIP6)

        netns.ip(["address del 10.73.0.1/24 dev eth0"], net.name("a"))
        alone.await_role("fault")
        netns.ip(["address add 10.73.0.77/24 dev eth0"], net.name("a"))
        alone.await_role("master")
        assert alone.router("web/ipv4")["master"] == "10.73.0.77"
        netns.ip(
            ["address add 10.73.0.1/24 dev eth0", "address del 10.73.0.77/24 dev eth0"],
            net.name("a"),
        )
    netns.ip(["address replace 10.73.0.1/24 dev eth0"], net.name("a"))


def test_a_vip_that_somebody_removes_is_put_back(net: Switched) -> None:
    with one(net) as alone:
        netns.ip([f"address del {VIP}/32 dev eth0"], net.name("a"))
        alone.await_vip(True)
        assert alone.roles() == ["backup", "master"]


def test_vips_that_are_not_accepted_are_answered_for_where_the_master_is(net: Switched) -> None:
    def is_known(node: str, vip: object) -> bool:
        # Asked each time: what was asked while nobody was master is not asked again by itself.
        assert not net.answers(vip)
        return mac(node) in net.run("client", "ip", "neighbour", "show", str(vip))

    def resolves_to(node: str, *vips: object) -> None:
        for vip in vips:
            net.run("client", "ip", "neighbour", "flush", "to", str(vip))
            wait_until(f"{node} answers for {vip}", partial(is_known, node, vip))

    def nobody_has(vip: object) -> None:
        net.run("client", "ip", "neighbour", "flush", "to", str(vip))
        net.answers(vip)
        assert "lladdr" not in net.run("client", "ip", "neighbour", "show", str(vip))

    for node in ("a", "b"):  # a keepalived that was killed leaves its VIP
        netns.ip([f"address flush dev eth0 to {VIP}"], net.name(node))
    silent = BOTH | {"accept": False}
    with ours(net, "a", "b") as (first, second):
        first.configure(silent | HIGH)
        second.configure(silent | LOW)
        first.start()
        first.await_role("master")
        second.start()
        second.await_role("backup")
        assert not net.has("a", VIP)
        resolves_to("a", VIP, VIP6)
        first.end()
        second.await_role("master")
        resolves_to("b", VIP, VIP6)
        second.reload(silent | LOW | {"vips": [str(VIP6), "10.73.0.101"]})
        resolves_to("b", "10.73.0.101", VIP6)
        nobody_has(VIP)
        second.reload(BOTH | LOW)
        second.await_vip(True)
        net.await_answer(VIP)
        second.reload(silent | LOW)
        second.await_vip(False)
        second.await_vip(False, VIP6)
        resolves_to("b", VIP, VIP6)
        second.end()
        nobody_has(VIP)


def test_a_vip_that_a_killed_process_left_goes_if_the_host_shall_not_have_it(net: Switched) -> None:
    for changed in ({"accept": False}, {"virtual_mac": True}):
        with one(net) as alone:
            assert net.has("a", VIP)
            alone.end(signal.SIGKILL)
            alone.configure(changed)
            alone.start()
            alone.await_role("master")
            assert f" {VIP}/" not in net.run("a", "ip", "-o", "address", "show", "dev", "eth0")


def test_a_reload_changes_what_differs_and_nothing_else(net: Switched) -> None:
    other = {"name": "other", "vrid": 52, "vips": ["10.73.0.102"]}
    with one(net, HIGH, other) as alone:
        together = {"group": "both"}
        alone.reload(HIGH | together, other | HIGH | together | {"interface": "none"})
        alone.await_role("fault")
        alone.reload(HIGH | together)  # the one that held it back is gone
        alone.await_role("master")
        alone.reload(HIGH, other)
        alone.await_role("master")
        before = alone.router()["transitions"]

        more = HIGH | {"vips": [str(VIP), "10.73.0.101"]}
        alone.reload(more, other | LOW)
        alone.await_vip(True, "10.73.0.101")
        assert alone.router("other")["priority"] == 100
        assert alone.router()["transitions"] == before

        alone.reload({"vips": ["10.73.0.101"]})
        alone.await_vip(False)
        alone.await_vip(False, "10.73.0.102")
        assert alone.router()["transitions"] == before

        alone.path.write_text("failover: 3\n")
        with pytest.raises(ApiError):
            alone.ask(do="reload")
        assert "interface" in alone.ask(do="status")["config_problem"]
        assert alone.role() == "master"

        alone.configure({"vips": ["10.73.0.101"], "vrid": 53})
        alone.tell(signal.SIGHUP)
        wait_until("the other vrid", lambda: alone.router()["vrid"] == 53)
        alone.await_role("master")
        assert alone.ask(do="status")["config_problem"] == ""


def test_modes_move_the_vip_and_outlive_a_restart(net: Switched) -> None:
    with pair(net) as (first, second):
        first.ask(do="mode", mode="handed-over", instance="web")
        second.await_role("master")
        first.await_role("backup")
        first.end()
        first.start()
        first.await_role("backup")
        assert first.router()["mode"] == "handed-over"
        assert first.router()["priority"] == 1
        first.ask(do="mode", mode="normal")
        first.await_role("master")
        second.await_role("backup")
        second.ask(do="mode", mode="promoted")
        second.await_role("master")
        assert second.router()["priority"] == 254


def test_the_agents_word_decides_and_is_kept_over_a_restart(net: Switched) -> None:
    with ours(net, "a") as (alone,):
        alone.configure({"track": {"services": 50}})
        alone.start()
        alone.await_role("fault")
        assert "has not reported" in alone.router()["why"]
        alone.ask(do="agent", attached=True, why="", services={})
        alone.await_role("master")
        wait_until("its word is on disk", lambda: '"attached": true' in alone.saved())
        alone.end(signal.SIGKILL)
        alone.start()
        alone.await_role("master")
        alone.ask(do="agent", attached=False, why="by hand", services={})
        alone.await_role("fault")
        assert "by hand" in alone.router()["why"]


def test_an_announced_vip_is_on_while_the_node_is_fit(net: Switched) -> None:
    announced = {"method": "announce", "track": {"agent": 0}}
    with ours(net, "a") as (alone,):
        alone.configure(announced | {"vips": [str(VIP), str(VIP6)]})
        alone.start()
        alone.await_role("fault")
        alone.ask(do="agent", attached=True)
        alone.await_role("master")
        assert f"{VIP}/32" in net.run("a", "ip", "address", "show", "dev", "lo")
        assert f"{VIP6}/128" in net.run("a", "ip", "address", "show", "dev", "lo")
        alone.ask(do="mode", mode="handed-over")
        alone.await_role("backup")
        assert not net.has("a", VIP)
        alone.ask(do="mode", mode="normal")
        alone.ask(do="agent", attached=True)  # it says so twice a second
        alone.await_vip(True)
        alone.end()
        assert not net.has("a", VIP)
