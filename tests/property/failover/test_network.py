"""Laws of failover in a network that does its worst, for every mix of nodes that is ours.

Each run is a storm, in which nothing is asked but that groups move together, and then a calm.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.failover.model import OWNER, Mode, Role
from agent.failover.times import ANNOUNCE_ROW_S
from agent.failover.vrrp.states import Claim, Fitness, Operator, Settings
from tests.examples import examples
from tests.property.failover.network import EPSILON_S, Network, Node, address, longest_wait_s

ROUTERS = ("v4", "v6")
NODE = st.integers(0, 3)
PRIORITY = st.sampled_from([1, 50, 100, 100, 150, 254])
UP_TO = st.floats(0, 1, allow_nan=False)

ACTIONS = st.one_of(
    st.tuples(st.just("cut"), NODE, NODE, st.sampled_from([*ROUTERS, "both"])),
    st.tuples(st.just("part"), NODE),
    st.tuples(st.just("heal")),
    st.tuples(st.just("lose"), st.sampled_from([0.0, 0.2, 0.6])),
    st.tuples(st.just("freeze"), NODE, st.floats(0, 20)),
    st.tuples(st.just("kill"), NODE),
    st.tuples(st.just("stop"), NODE),
    st.tuples(st.just("start"), NODE),
    st.tuples(st.just("jump"), NODE, st.floats(0, 100)),
    st.tuples(st.just("fitness"), NODE, st.sampled_from([*ROUTERS, "both", ""]), PRIORITY),
    st.tuples(st.just("mode"), NODE, st.sampled_from(list(Mode))),
    st.tuples(st.just("claim"), NODE),
)
STORMS = st.lists(st.tuples(st.floats(0, 6), ACTIONS), max_size=14)


@st.composite
def networks(draw: st.DrawFn, foreign: bool = True) -> Network:
    """Two to four nodes that have not started yet; ``foreign``: some may be like keepalived."""
    version = draw(st.sampled_from([3, 3, 2]))
    interval_s = 1.0 if version == 2 else draw(st.sampled_from([0.01, 1.0]))
    network = Network(
        delay_s=interval_s * draw(st.sampled_from([0.01, 0.1, 0.4])),
        seed=draw(st.integers(0, 1 << 16)),
        doubled=draw(st.sampled_from([0.0, 0.2])),
    )
    grouped = draw(st.booleans())
    foreign = foreign and not grouped
    delay_s = draw(st.sampled_from([0.0, 0.0, 5.0])) * interval_s
    for index in range(draw(st.integers(2, 4))):
        slower = draw(st.sampled_from([1, 1, 5])) if version == 3 else 1
        made = Settings(
            own=address(index),
            priority=draw(PRIORITY),
            interval_s=interval_s * slower,
            version=version,
            preempt=draw(st.sampled_from([True, True, False])),
            preempt_delay_s=delay_s,
            grouped=grouped,
        )
        Node(
            network,
            index,
            dict.fromkeys(ROUTERS if grouped else ROUTERS[:1], made),
            ours=not foreign or draw(st.sampled_from([True, True, False])),
            offset=draw(st.sampled_from([0.0, 1e6])),
            rate=draw(st.sampled_from([0.99, 1.0, 1.01])),
        )
    return network


def act(network: Network, action: tuple[Any, ...]) -> None:
    name, *rest = action
    if name == "heal":
        network.blocked.clear()
    elif name == "lose":
        network.lost = rest[0]
    elif name == "cut":
        routers = ROUTERS if rest[2] == "both" else (rest[2],)
        network.blocked |= {(rest[0], rest[1], router) for router in routers}
    elif rest[0] < len(network.nodes):
        act_on(network, network.nodes[rest[0]], name, rest)


def act_on(network: Network, node: Node, name: str, rest: list[Any]) -> None:
    interval_s = node.settings["v4"].interval_s
    match name:
        case "part":
            others = {other.index for other in network.nodes} - {node.index}
            network.blocked |= {(node.index, i, router) for i in others for router in ROUTERS}
            network.blocked |= {(i, node.index, router) for i in others for router in ROUTERS}
        case "freeze":
            node.freeze()
            network.at(network.now + rest[1] * interval_s, node.thaw)
        case "jump":
            node.jump(rest[1] * interval_s)
        case "fitness":
            for router in node.settings:
                faulty = node.ours and rest[1] in (router, "both")
                node.tell(router, Fitness(rest[2], "a fault" if faulty else ""))
        case "mode" if node.ours:
            node.mode = rest[1]
            for router in node.settings:
                node.tell(router, Operator(rest[1]))
        case "claim" if node.ours:
            for router in node.settings:
                node.tell(router, Claim())
        case "kill" | "stop" | "start":
            getattr(node, name)()


def weather(network: Network, storm: list[tuple[float, tuple[Any, ...]]]) -> None:
    interval_s = min(node.settings["v4"].interval_s for node in network.nodes)
    for node in network.nodes:
        node.start()
    for pause, action in storm:
        network.run(network.now + pause * interval_s)
        act(network, action)


@settings(max_examples=examples(90), deadline=None, derandomize=True)
@given(networks(), STORMS)
def test_after_a_storm_there_is_always_exactly_one_master(
    network: Network, storm: list[tuple[float, tuple[Any, ...]]]
):
    weather(network, storm)
    network.calm()
    began, wait_s = network.now, longest_wait_s(network)
    fit = [node for node in network.nodes if node.is_fit()]
    network.run(began + 12 * wait_s)
    for router in network.nodes[0].settings:
        judge(network, router, fit, began, wait_s)


def judge(network: Network, router: str, fit: list[Node], began: float, wait_s: float) -> None:
    holders = network.holders(router)
    masters = [node for node in fit if node.role(router) is Role.MASTER]
    assert holders == masters
    assert len(masters) == min(1, len(fit))
    if not fit:
        return
    (master,) = masters
    assert not network.gaps_after(router, began + wait_s), "nobody was master for a while"
    assert all(node.changed <= began + 10 * wait_s for node in fit), "it goes on and on"
    calm = {node.index: node.dropped.get(router, 0.0) for node in network.nodes if node.ours}
    last = max((when for i, when in calm.items() if i != master.index), default=0.0)
    if last >= began:
        assert master.announced[router][-1] >= last, "clients still send to the loser"
    if all(node.settings[router].preempt for node in fit) and len(master.settings) == 1:
        assert master.priority(router) == max(node.priority(router) for node in fit)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(networks(), UP_TO, UP_TO, st.booleans(), st.sampled_from([0.0, 0.0, 0.3]))
def test_a_planned_handover_never_leaves_nobody(
    network: Network, phase: float, lead: float, claims_first: bool, lost: float
):
    """In either order, to a node that preempts or not, of ours or not, with packets lost."""
    for node in network.nodes:
        node.start()
    wait_s = longest_wait_s(network)
    network.run(12 * wait_s)
    master = network.holders("v4")[0]
    if not master.ours:
        return
    other = next(node for node in network.nodes if node is not master)
    interval_s = master.settings["v4"].interval_s
    began = network.now + phase * interval_s
    network.run(began)
    network.lost = lost
    steps = [(master, Operator(Mode.HANDED_OVER)), (other, Claim())]
    for node, event in reversed(steps) if claims_first else steps:
        for router in node.settings:
            node.tell(router, event)
        network.run(network.now + lead * interval_s)
    network.run(began + 3 * wait_s)
    network.lost = 0.0
    network.run(began + 14 * wait_s)
    for router in network.nodes[0].settings:
        assert not network.gaps_after(router, began)
        assert len(network.holders(router)) == 1
    better = [node for node in network.nodes if node.priority("v4") > 1]
    if any(not lost or node.settings["v4"].preempt for node in better):
        assert network.holders("v4")[0] is not master


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(networks(), UP_TO)
def test_the_winner_of_a_split_brain_announces_once_the_loser_is_gone(
    network: Network, phase: float
):
    for node in network.nodes:
        node.start()
        act(network, ("part", node.index))
    wait_s = longest_wait_s(network)
    network.run((3 + phase) * wait_s)
    assert all(node.held == set(node.settings) for node in network.nodes)
    network.calm()
    began = network.now
    network.run(began + 12 * wait_s)
    for router in network.nodes[0].settings:
        (winner,) = network.holders(router)
        losers = [node for node in network.nodes if node is not winner]
        for node in losers:
            if node.ours:
                gone = node.dropped[router]
                assert gone >= began
                heard = [when for when in winner.announced[router] if when > gone]
                # At once, not at the next refresh nor with the next advert.
                wait_s = 2 * network.delay_s + (1.02 * ANNOUNCE_ROW_S if len(losers) > 1 else 0.0)
                assert heard
                assert heard[0] - gone <= wait_s + EPSILON_S


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(networks(), UP_TO, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.1, 3.0]))
def test_who_was_killed_and_comes_back_keeps_the_vips_only_if_no_other_has_them(
    network: Network, phase: float, away: float
):
    for node in network.nodes:
        node.start()
    wait_s = longest_wait_s(network)
    network.run(12 * wait_s)
    master = network.holders("v4")[0]
    if not master.ours:
        return
    network.run(network.now + phase * master.settings["v4"].interval_s)
    master.kill()
    network.run(network.now + away * wait_s)
    missed = bool(network.holders("v4"))
    network.calm()
    began = network.now
    master.start()
    assert master.held == set(master.settings), "until it hears another master"
    network.run(began + 12 * wait_s)
    for router in master.settings:
        assert len(network.holders(router)) == 1
        assert not master.left
        if not missed:
            assert not network.gaps_after(router, began), "it goes on as if it had not been away"


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(networks(foreign=False), st.sampled_from(ROUTERS))
def test_a_group_stays_where_it_is_while_one_router_is_not_heard(network: Network, mute: str):
    for node in network.nodes:
        node.start()
    wait_s = longest_wait_s(network)
    network.run(12 * wait_s)
    master = network.holders("v4")[0]
    if len(master.settings) == 1:
        return
    began = network.now
    network.blocked |= {(master.index, i, mute) for i in range(4)}
    network.run(began + 6 * wait_s)
    assert all(node.changed <= began for node in network.nodes)


@settings(max_examples=examples(10), deadline=None, derandomize=True)
@given(networks(foreign=False), NODE)
def test_an_owner_is_master_whatever_the_others_say(network: Network, which: int):
    for node in network.nodes:
        node.start()
        network.run(network.now + 0.1)
    owner = network.nodes[which % len(network.nodes)]
    for router in owner.settings:
        owner.tell(router, Fitness(OWNER))
        for node in network.nodes:
            if node is not owner:
                node.tell(router, Operator(Mode.PROMOTED))
    network.run(network.now + 12 * longest_wait_s(network))
    assert network.holders("v4") == [owner]
