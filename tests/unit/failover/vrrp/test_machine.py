"""What one virtual router does, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.failover.model import HANDED_OVER, LEAVING, OWNER, PROMOTED, Mode, Role
from agent.failover.vrrp import machine
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.machine import (
    Announce,
    Claim,
    Drop,
    Due,
    Effect,
    Event,
    Fitness,
    Follow,
    Heard,
    Operator,
    Send,
    Settings,
    Start,
    State,
    Stop,
    Take,
)

OWN, LESS, MORE = (IPv4Address(f"10.73.0.{last}") for last in (5, 4, 6))
V3 = Settings(OWN, priority=100, interval_s=1.0)
V2 = replace(V3, version=2)
SKEW_S = 156 / 256
DOWN_S = 3 + SKEW_S


def advert(priority: int, source: IPv4Address = MORE, interval_s: float = 1.0) -> Heard:
    return Heard(Advert(3, 51, priority, interval_s, (), source))


class Router:
    """Steps one after the other; remembers the last step's effects."""

    def __init__(self, settings: Settings = V3, mode: Mode = Mode.NORMAL) -> None:
        self.settings = settings
        self.state: State = machine.initial(settings, mode, 0.0)
        self.effects: tuple[Effect, ...] = ()
        self.now = 0.0

    def tell(self, event: Event, now: float | None = None) -> Router:
        self.now = self.now if now is None else now
        self.state, self.effects = machine.step(self.settings, self.state, event, self.now)
        return self

    @property
    def role(self) -> Role:
        return self.state.role

    def kinds(self) -> list[str]:
        """Effects in short: an advert as its priority."""
        return [
            str(effect.priority) if isinstance(effect, Send) else type(effect).__name__
            for effect in self.effects
        ]


def backup(settings: Settings = V3, master: int = 200) -> Router:
    return Router(settings).tell(Start()).tell(advert(master), 1.0)


def master(settings: Settings = V3) -> Router:
    return Router(settings).tell(Start()).tell(Due(), 10.0)


@pytest.mark.parametrize(
    ("settings", "wait_s"),
    [
        (V3, DOWN_S),
        (V2, DOWN_S),
        (replace(V3, interval_s=0.01), 0.01 * DOWN_S),
        (replace(V2, interval_s=2.0), 6 + SKEW_S),
    ],
)
def test_a_backup_waits_three_intervals_and_a_skew(settings: Settings, wait_s: float) -> None:
    router = Router(settings).tell(Start())
    assert (router.role, router.effects) == (Role.BACKUP, ())
    assert router.state.due_s == pytest.approx(wait_s)


def test_who_still_has_the_vips_waits_for_one_advert_of_another_only() -> None:
    router = Router().tell(Start(inherited=True))
    assert (router.role, router.effects) == (Role.BACKUP, ())
    assert router.state.due_s == pytest.approx(1 + SKEW_S)
    assert router.tell(Due(), 1 + SKEW_S).kinds() == ["Take", "100"]
    heard = Router().tell(Start(inherited=True)).tell(advert(200), 0.5)
    assert heard.state.due_s == pytest.approx(0.5 + DOWN_S)


def test_a_backup_that_hears_nobody_becomes_master_and_advertises_each_interval() -> None:
    router = Router().tell(Start()).tell(Due(), DOWN_S)
    assert router.kinds() == ["Take", "100"]
    assert router.effects[0] == Take("no other node was heard")
    assert router.state.due_s == DOWN_S + 1
    assert router.tell(Due(), DOWN_S + 1).effects == (Send(100),)
    assert router.state.due_s == DOWN_S + 2


def test_a_backup_says_who_was_not_heard_for_how_long() -> None:
    router = backup().tell(Due(), 1 + DOWN_S)
    assert router.state.why == "10.73.0.6 was not heard for 3.61 s"


def test_version_3_waits_in_the_masters_rhythm_and_version_2_in_its_own() -> None:
    for settings, interval_s in ((V3, 5.0), (V2, 1.0)):
        router = Router(settings).tell(Start()).tell(advert(200, interval_s=5.0), 1.0)
        wait_s = 3 * interval_s + SKEW_S * interval_s
        assert router.state.due_s == pytest.approx(1 + wait_s)


def test_a_master_sends_in_its_own_rhythm_again() -> None:
    router = Router().tell(Start()).tell(advert(200, interval_s=5.0), 1.0).tell(Due(), 100.0)
    assert router.role is Role.MASTER
    assert router.state.due_s == 101.0


def test_an_advert_whose_interval_is_nothing_makes_no_loop() -> None:
    router = Router().tell(Start()).tell(advert(200, interval_s=0.0), 1.0)
    assert router.state.due_s == pytest.approx(1 + DOWN_S)


@pytest.mark.parametrize(("priority", "listens"), [(101, True), (100, True), (99, False)])
def test_a_preempting_backup_does_not_listen_to_a_lower_master(
    priority: int, listens: bool
) -> None:
    router = Router().tell(Start()).tell(advert(priority), 1.0)
    assert router.state.due_s == pytest.approx(DOWN_S + (1.0 if listens else 0.0))


def test_a_lower_master_is_replaced_before_it_stops() -> None:
    router = Router().tell(Start()).tell(advert(50), 3.0).tell(Due(), DOWN_S)
    assert router.kinds() == ["Take", "100"]
    assert router.state.why == "10.73.0.6 has the lower priority 50"
    assert router.state.due_s == DOWN_S + 1


def test_vips_taken_from_a_living_master_are_announced_again() -> None:
    """It may have answered for them until it heard of the new one."""
    router = Router().tell(Start()).tell(advert(50), 3.0).tell(Due(), DOWN_S)
    assert router.tell(Due(), DOWN_S + 1).kinds() == ["100", "Announce"]
    assert router.tell(Due(), DOWN_S + 2).kinds() == ["100"]


def test_without_preempt_a_lower_master_stays() -> None:
    router = Router(replace(V3, preempt=False)).tell(Start()).tell(advert(50), 1.0)
    assert router.state.due_s == pytest.approx(1 + DOWN_S)


def test_preempt_delay_counts_from_the_first_advert_of_a_lower_master() -> None:
    router = Router(replace(V3, preempt_delay_s=10.0)).tell(Start())
    for now in range(1, 11):
        router.tell(advert(50), now)
        assert router.state.due_s == pytest.approx(now + DOWN_S)
    router.tell(advert(50), 11.5)
    assert router.state.due_s == pytest.approx(10 + DOWN_S)


def test_a_better_master_in_between_begins_preempt_delay_anew() -> None:
    router = Router(replace(V3, preempt_delay_s=10.0)).tell(Start()).tell(advert(50), 1.0)
    router.tell(advert(200), 2.0).tell(advert(50), 10.0).tell(advert(50), 12.0)
    assert router.state.due_s == pytest.approx(12 + DOWN_S)


def test_preempt_delay_does_not_keep_a_backup_from_a_dead_master() -> None:
    router = Router(replace(V3, preempt_delay_s=100.0)).tell(Start()).tell(advert(50), 1.0)
    assert router.tell(Due(), 1 + DOWN_S).role is Role.MASTER


def test_a_master_that_leaves_is_replaced_after_the_skew() -> None:
    router = backup().tell(advert(LEAVING), 1.5)
    assert router.state.due_s == pytest.approx(1.5 + SKEW_S)
    router.tell(Due(), 1.5 + SKEW_S)
    assert (router.kinds(), router.state.why) == (["Take", "100"], "10.73.0.6 has left")


def test_who_was_not_master_may_leave_unnoticed() -> None:
    router = backup().tell(advert(LEAVING, LESS), 1.5)
    assert router.state.due_s == pytest.approx(1 + DOWN_S)


def test_a_loser_that_speaks_once_more_is_not_taken_for_the_master() -> None:
    settings = replace(V3, preempt=False)
    state = backup(settings).state
    assert backup(settings).tell(advert(50, LESS, 40.0), 1.5).state == state


def test_a_lower_one_is_the_master_once_the_better_one_has_missed_two_adverts() -> None:
    settings = replace(V3, preempt=False)
    just_before = backup(settings).tell(advert(50, LESS), 1.0 + 1.9)
    assert just_before.state.master.priority == 200
    after = backup(settings).tell(advert(50, LESS), 1.0 + 2.1)
    assert after.state.master.priority == 50


@pytest.mark.parametrize("heard", [advert(99), advert(1), advert(100, LESS)])
def test_a_master_answers_a_lower_one_at_once_and_announces_twice(heard: Heard) -> None:
    router = master().tell(heard, 10.4)
    assert router.kinds() == ["100", "Announce"]
    assert router.state.due_s == pytest.approx(11.4)
    assert router.tell(Due(), 11.4).kinds() == ["100", "Announce"]
    assert router.tell(Due(), 12.4).kinds() == ["100"]


def test_a_master_announces_when_another_one_leaves() -> None:
    assert master().tell(advert(LEAVING), 10.4).kinds() == ["100", "Announce"]


@pytest.mark.parametrize("heard", [advert(101, LESS), advert(100, MORE), advert(255)])
def test_a_master_gives_way_to_a_higher_one_and_tells_it_so(heard: Heard) -> None:
    router = master().tell(heard, 10.4)
    assert router.role is Role.BACKUP
    assert router.effects == (Drop(router.state.why), Send(100))
    assert router.state.due_s == pytest.approx(10.4 + DOWN_S)
    assert router.state.master == heard.advert


def test_a_router_does_not_listen_to_itself() -> None:
    router = master()
    assert router.tell(advert(200, OWN), 10.4).effects == ()
    assert router.role is Role.MASTER


def test_an_advert_overtaken_by_a_lower_one_does_not_undo_the_takeover() -> None:
    """Else the new master stops for the old one, which stops for the new one."""
    router = backup().tell(Claim(), 1.1).tell(advert(HANDED_OVER), 1.2)
    assert router.role is Role.MASTER
    assert router.tell(advert(200), 1.3).effects == ()
    assert router.tell(advert(200), 1.8).role is Role.BACKUP


def test_an_owner_is_master_at_once() -> None:
    router = Router(replace(V3, priority=OWNER)).tell(Start())
    assert router.kinds() == ["Take", "255"]


def test_a_stopped_master_leaves() -> None:
    router = master().tell(Stop(), 10.4)
    assert (router.role, router.kinds(), router.state.due_s) == (Role.INIT, ["0", "Drop"], None)
    assert backup().tell(Stop()).effects == ()


def test_a_fault_ends_mastership_and_its_end_begins_anew() -> None:
    router = master().tell(Fitness(100, "eth0 is down"), 10.4)
    assert (router.role, router.kinds()) == (Role.FAULT, ["0", "Drop"])
    assert (router.state.why, router.state.due_s) == ("eth0 is down", None)
    assert router.tell(advert(50), 11).effects == ()
    router.tell(Fitness(100), 12)
    assert (router.role, router.effects) == (Role.BACKUP, ())
    assert router.state.due_s == pytest.approx(12 + DOWN_S)


def test_the_rhythm_of_a_master_long_gone_is_forgotten() -> None:
    router = Router().tell(Fitness(100, "a fault")).tell(Start())
    router.tell(advert(200, interval_s=5.0), 1.0).tell(Fitness(100), 100.0)
    assert router.state.due_s == pytest.approx(100 + DOWN_S)


def test_a_router_may_start_with_a_fault() -> None:
    router = Router().tell(Fitness(100, "the agent has not reported yet")).tell(Start())
    assert (router.role, router.effects) == (Role.FAULT, ())


def test_a_master_says_at_once_that_its_priority_has_changed() -> None:
    router = master().tell(Fitness(50), 10.4)
    assert router.effects == (Send(50),)
    assert router.state.due_s == pytest.approx(11.4)
    assert router.tell(Fitness(50), 10.5).effects == ()


def test_a_master_announces_once_what_lowered_its_priority_is_over() -> None:
    """It may have been cut off, and a keepalived that was master meanwhile gives up in silence."""
    router = master().tell(Fitness(50), 10.4).tell(Fitness(100), 12)
    assert router.kinds() == ["100", "Announce"]
    assert "Announce" not in router.tell(Operator(Mode.HANDED_OVER), 13).kinds()


def test_a_frozen_master_sends_one_advert_for_all_it_has_missed() -> None:
    router = master().tell(Due(), 1000.0)
    assert (router.effects, router.state.due_s) == ((Send(100),), 1001.0)


def test_promoted_takes_over_from_a_better_master_and_keeps_it() -> None:
    router = backup(replace(V3, preempt=False)).tell(Operator(Mode.PROMOTED), 1.5)
    assert router.kinds() == ["Take", str(PROMOTED)]
    router.tell(advert(200), 3.0)
    assert router.role is Role.MASTER
    assert router.tell(Operator(Mode.NORMAL), 4).effects == (Send(100),)


def test_promoted_survives_a_restart() -> None:
    settings = replace(V3, preempt=False, preempt_delay_s=60)
    router = Router(settings, Mode.PROMOTED).tell(Start()).tell(advert(200), 1.0)
    assert router.state.due_s == pytest.approx(3 + 2 / 256)


def test_promoted_is_no_way_around_an_owner_or_a_fault() -> None:
    router = backup(master=OWNER).tell(Operator(Mode.PROMOTED), 1.5)
    assert router.role is Role.BACKUP
    router = master().tell(Operator(Mode.PROMOTED)).tell(Fitness(100, "a fault"))
    assert router.role is Role.FAULT


def test_a_handed_over_master_keeps_the_vips_until_another_is_heard() -> None:
    router = master().tell(Operator(Mode.HANDED_OVER), 10.4)
    assert (router.role, router.effects) == (Role.MASTER, (Send(HANDED_OVER),))
    router.tell(advert(50), 10.9)
    assert (router.role, router.kinds()) == (Role.BACKUP, ["Drop", "1"])


def test_a_handed_over_master_leaves_for_those_that_do_not_preempt_but_stays() -> None:
    router = master().tell(Operator(Mode.HANDED_OVER), 10.0)
    sent = []
    while (due_s := router.state.due_s) is not None and due_s < 25:
        sent += [(due_s, kind) for kind in router.tell(Due(), due_s).kinds()]
    left = 10 + 2 * (3 + 255 / 256)
    assert [(due_s, kind) for due_s, kind in sent if kind == "0"] == [(left, "0")]
    after = [(due_s, kind) for due_s, kind in sent if due_s > left]
    assert after[0] == (left + 2, "1"), "silent for longer than a skew"
    assert after[1] == (left + 3, "1")
    assert router.role is Role.MASTER
    assert "no other node" in router.state.why


def test_a_backup_takes_over_from_a_handed_over_master_after_the_skew() -> None:
    router = backup().tell(advert(HANDED_OVER), 1.5).tell(advert(HANDED_OVER), 1.7)
    assert router.state.due_s == pytest.approx(1.5 + SKEW_S)
    router.tell(Due(), 1.5 + SKEW_S)
    assert router.kinds() == ["Take", "100"]
    assert router.state.why == "10.73.0.6 is handed over"


def test_a_handed_over_backup_lets_a_handed_over_master_be() -> None:
    router = backup().tell(Operator(Mode.HANDED_OVER)).tell(advert(HANDED_OVER), 2.0)
    assert router.state.due_s == pytest.approx(2 + 3 + 255 / 256)


def test_a_claim_waits_until_the_master_is_lower() -> None:
    router = backup(replace(V3, preempt=False)).tell(Claim(), 1.2)
    assert (router.role, router.effects) == (Role.BACKUP, ())
    router.tell(advert(HANDED_OVER), 2.0)
    assert router.kinds() == ["Take", "100"]


def test_a_claim_is_forgotten_after_a_while() -> None:
    router = backup(replace(V3, preempt=False)).tell(Claim(), 1.2)
    for now in range(2, 20):
        router.tell(advert(200), now)
    assert router.tell(advert(HANDED_OVER), 20).role is Role.BACKUP


def test_a_claim_on_a_lower_master_takes_it_at_once() -> None:
    router = backup(replace(V3, preempt=False), master=50).tell(Claim(), 1.2)
    assert router.kinds() == ["Take", "100"]


def test_a_member_of_a_group_wishes_before_it_is_master() -> None:
    router = Router(replace(V3, grouped=True)).tell(Start()).tell(Due(), DOWN_S)
    assert (router.role, router.effects, router.state.due_s) == (Role.BACKUP, (), None)
    assert router.state.wish == "no other node was heard"
    assert router.tell(Follow(Role.MASTER, "")).kinds() == ["Take", "100"]
    assert router.state.why == "no other node was heard"


def test_a_wish_ends_when_a_master_is_heard() -> None:
    router = Router(replace(V3, grouped=True)).tell(Start()).tell(Due(), DOWN_S)
    router.tell(advert(200), DOWN_S + 0.1)
    assert router.state.wish == ""
    assert router.state.due_s == pytest.approx(DOWN_S + 0.1 + DOWN_S)


def test_a_member_follows_out_of_mastership_so_that_another_takes_or_announces() -> None:
    router = master().tell(Follow(Role.BACKUP, "v4 is no longer master"), 10.4)
    assert (router.role, router.kinds()) == (Role.BACKUP, ["Drop", "100", "0"])


def test_a_group_fault_and_its_own_are_two() -> None:
    router = master().tell(Follow(Role.FAULT, "v4: down"), 10.4)
    assert (router.role, router.kinds()) == (Role.FAULT, ["0", "Drop"])
    router.tell(Fitness(100, "own")).tell(Follow(Role.BACKUP, "over"))
    assert (router.role, router.state.why) == (Role.FAULT, "own")
    assert router.tell(Fitness(100)).role is Role.BACKUP


def test_a_master_announces_for_every_reason_but_not_without_end() -> None:
    """A network that lets only one of two masters hear the other stays so for long."""
    settings = replace(V3, interval_s=0.01)
    router, announced = master(settings), []
    for tick in range(100):
        now = 10 + tick * 0.01
        for event in (advert(50, interval_s=0.01), Due()):
            announced += [now for e in router.tell(event, now).effects if isinstance(e, Announce)]
    assert 20 <= len(announced) <= 4 * 11
    last = router.state.due_s
    while router.state.announcing.due_s is not None:
        assert last is not None
        announced += [last for e in router.tell(Due(), last).effects if isinstance(e, Announce)]
        last = router.state.due_s
    assert announced[-1] >= 10 + 0.99


@pytest.mark.parametrize("event", [advert(50), Due(), Claim(), Follow(Role.MASTER, "x")])
def test_nothing_happens_before_the_start(event: Event) -> None:
    router = Router()
    before = router.state
    assert router.tell(event).effects == ()
    assert router.state == before
