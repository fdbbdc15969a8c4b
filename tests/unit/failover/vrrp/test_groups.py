"""How the routers of a group move together."""

from __future__ import annotations

from ipaddress import IPv4Address

from agent.failover.model import HANDED_OVER, Mode, Role
from agent.failover.vrrp import groups, machine
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.states import (
    Drop,
    Due,
    Event,
    Fitness,
    Heard,
    Send,
    Settings,
    Start,
    State,
    Take,
)

OWN, OTHER = IPv4Address("10.73.0.1"), IPv4Address("10.73.0.2")
SETTINGS = dict.fromkeys(("v4", "v6"), Settings(OWN, 100, 1.0, grouped=True))


def advert(priority: int) -> Heard:
    return Heard(Advert(3, 51, priority, 1.0, (), OTHER))


class Group:
    def __init__(self) -> None:
        self.states: dict[str, State] = {
            name: machine.initial(one, Mode.NORMAL, 0.0) for name, one in SETTINGS.items()
        }
        self.effects: tuple[tuple[str, object], ...] = ()
        for name in SETTINGS:
            self.tell(name, Start(), 0.0)

    def tell(self, name: str, event: Event, now: float) -> Group:
        self.states, self.effects = groups.step(SETTINGS, self.states, name, event, now)
        return self

    def roles(self) -> list[Role]:
        return [state.role for state in self.states.values()]


def masters() -> Group:
    return Group().tell("v4", Due(), 4.0).tell("v6", Due(), 4.0)


def test_all_become_master_once_all_would() -> None:
    group = Group().tell("v4", Due(), 4.0)
    assert (group.roles(), group.effects) == ([Role.BACKUP] * 2, ())
    group.tell("v6", Due(), 4.1)
    assert group.roles() == [Role.MASTER] * 2
    why = "no other node was heard"
    assert sorted(group.effects, key=lambda row: row[0]) == [
        ("v4", Take(why)),
        ("v4", Send(100)),
        ("v6", Take(why)),
        ("v6", Send(100)),
    ]


def test_one_that_is_not_heard_does_not_move_the_group() -> None:
    group = Group()
    for now in range(1, 30):
        group.tell("v6", advert(200), now)
        if (due_s := group.states["v4"].due_s) is not None and due_s <= now:
            group.tell("v4", Due(), now)
    assert group.roles() == [Role.BACKUP] * 2


def test_all_have_their_vips_before_the_old_master_hears_of_the_first() -> None:
    group = Group()
    for name in SETTINGS:
        group.tell(name, advert(HANDED_OVER), 1.0)
    group.tell("v4", Due(), 1.7).tell("v6", Due(), 1.7)
    kinds = [type(effect) for _, effect in group.effects]
    assert kinds == [Take, Take, Send, Send]


def test_all_stop_when_one_gives_way() -> None:
    group = masters().tell("v4", advert(200), 5.0)
    assert group.roles() == [Role.BACKUP] * 2
    kinds = [type(effect) for _, effect in group.effects]
    assert kinds == [Drop, Drop, Send, Send, Send]
    assert group.states["v6"].why.startswith("v4 is no longer master: 10.73.0.2 is master")


def test_a_fault_of_one_is_one_of_all_until_it_is_over() -> None:
    group = masters().tell("v4", Fitness(100, "eth0 is down"), 5.0)
    assert group.roles() == [Role.FAULT] * 2
    assert group.states["v6"].why == "v4: eth0 is down"
    group.tell("v6", Fitness(100, "no carrier"), 6.0)
    group.tell("v4", Fitness(100), 7.0)
    assert group.roles() == [Role.FAULT] * 2
    assert (group.states["v4"].why, group.states["v6"].why) == ("v6: no carrier", "no carrier")
    group.tell("v6", Fitness(100), 8.0)
    assert group.roles() == [Role.BACKUP] * 2


def test_a_group_of_owners_starts_as_master() -> None:
    group = masters().tell("v4", Fitness(255, "down"), 5.0).tell("v6", Fitness(255), 5.0)
    assert group.tell("v4", Fitness(255), 6.0).roles() == [Role.MASTER] * 2


def test_a_router_of_its_own_needs_nobody() -> None:
    alone = {"v4": Settings(OWN, 100, 1.0)}
    states = {"v4": machine.initial(alone["v4"], Mode.NORMAL, 0.0)}
    for event, now in ((Start(), 0.0), (Due(), 4.0)):
        states, effects = groups.step(alone, states, "v4", event, now)
    assert [effect for _, effect in effects] == [Take("no other node was heard"), Send(100)]
