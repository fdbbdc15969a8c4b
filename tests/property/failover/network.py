"""A simulated network of nodes with VRRP: packets that get lost, late, doubled and out of order.

Time is simulated. Every node has a clock of its own, and may be frozen, killed, stopped and
started. All along it is checked who holds the VIPs, and to whom the clients send.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from agent.failover.model import HANDED_OVER, LEAVING, OWNER, Mode, Role
from agent.failover.vrrp import groups, machine, timers
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.states import (
    Announce,
    Drop,
    Due,
    Effect,
    Event,
    Fitness,
    Heard,
    Send,
    Settings,
    Start,
    State,
    Stop,
    Take,
)
from tests.property.failover import keepalived

EPSILON_S = 1e-6


class Network:
    """``delay_s`` is the longest that a packet takes; ``doubled`` and ``lost`` are shares."""

    def __init__(self, delay_s: float, seed: int = 0, doubled: float = 0.0) -> None:
        self.delay_s, self.seed, self.doubled, self.lost = delay_s, seed, doubled, 0.0
        self.random = random.Random(seed)
        self.now = 0.0
        self.calm_since: float | None = None
        self.nodes: list[Node] = []
        self.blocked: set[tuple[int, int, str]] = set()  # from, to, router
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.overlaps: dict[tuple[int, int, str], float] = {}
        self.nobody: dict[str, list[tuple[float, float]]] = {}
        self.nobody_since: dict[str, float] = {}

    def __repr__(self) -> str:
        """Short enough to read when a law is broken."""
        nodes = [
            (node.index, node.ours, node.rate, node.offset, *set(map(repr, node.settings.values())))
            for node in self.nodes
        ]
        return f"Network({self.delay_s}, {self.seed}, {self.doubled}, {nodes})"

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (when, self.count, what))

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            when, _, what = heapq.heappop(self.queue)
            assert when >= self.now
            self.now = when
            what()
        self.now = until

    def carry(self, source: Node, router: str, advert: Advert) -> None:
        for node in self.nodes:
            if node is source or (source.index, node.index, router) in self.blocked:
                continue
            if self.lost and self.random.random() < self.lost:
                continue
            copies = 2 if self.doubled and self.random.random() < self.doubled else 1
            for _ in range(copies):
                late = self.random.random() * self.delay_s
                self.at(self.now + late, lambda to=node: to.receive(router, advert))

    def calm(self) -> None:
        """From now on everybody runs and hears everybody; what was killed stays dead."""
        self.run(self.now + EPSILON_S)
        self.blocked.clear()
        self.lost = 0.0
        self.calm_since = self.now
        for node in self.nodes:
            node.thaw()

    def holders(self, router: str) -> list[Node]:
        return [node for node in self.nodes if node.running and router in node.held]

    def held_changed(self, router: str) -> None:
        """Who holds a router's VIPs has changed: time how long two do, or nobody."""
        holders = [node.index for node in self.holders(router)]
        pairs = {(a, b, router) for a in holders for b in holders if a < b}
        for pair in [pair for pair in self.overlaps if pair[2] == router and pair not in pairs]:
            self.judge_overlap(pair, self.overlaps.pop(pair))
        for pair in pairs:
            self.overlaps.setdefault(pair, self.now)
        if not holders:
            self.nobody_since.setdefault(router, self.now)
        elif router in self.nobody_since:
            gap = (self.nobody_since.pop(router), self.now)
            self.nobody.setdefault(router, []).append(gap)

    def judge_overlap(self, pair: tuple[int, int, str], since: float) -> None:
        """Two that hear each other never both hold a VIP for longer than an interval."""
        if self.calm_since is None:
            return
        a, b, router = pair
        longest = max(self.nodes[i].settings[router].interval_s for i in (a, b)) * 1.02
        took = self.now - max(since, self.calm_since)
        assert took <= longest + 2 * self.delay_s + EPSILON_S, f"{pair} both for {took}"

    def gaps_after(self, router: str, when: float) -> list[tuple[float, float]]:
        """Times in which nobody held the VIPs."""
        found = list(self.nobody.get(router, []))
        if router in self.nobody_since:
            found.append((self.nobody_since[router], self.now))
        return [(max(a, when), b) for a, b in found if b > when and b - max(a, when) > 0]


@dataclass(eq=False, repr=False)
class Node:
    """One host: its kernel holds VIPs, its process runs our machine or is like keepalived."""

    network: Network
    index: int
    settings: Mapping[str, Settings]
    ours: bool = True
    offset: float = 0.0
    rate: float = 1.0  # of its clock
    mode: Mode = Mode.NORMAL
    fitness: dict[str, Fitness] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)  # of these, on since before a restart
    running: bool = False
    frozen: bool = False
    inbox: list[tuple[str, Event]] = field(default_factory=list)
    announced: dict[str, list[float]] = field(default_factory=dict)  # when
    dropped: dict[str, float] = field(default_factory=dict)  # when last
    changed: float = 0.0  # its role, last
    wakes: int = 0

    def __post_init__(self) -> None:
        self.network.nodes.append(self)

    def clock(self) -> float:
        return self.offset + self.rate * self.network.now

    def is_fit(self) -> bool:
        return self.running and not any(fitness.fault for fitness in self.fitness.values())

    def priority(self, router: str) -> int:
        return self.states[router].priority

    def role(self, router: str) -> Role:
        return self.states[router].role

    def start(self) -> None:
        if self.running:
            return
        self.running, self.frozen, self.inbox = True, False, []
        now = self.clock()
        for router in set(self.held):
            if self.ours:
                self.left.add(router)
                self.network.held_changed(router)
            else:
                self.drop(router)
        self.states = {n: machine.initial(s, self.mode, now) for n, s in self.settings.items()}
        for router in self.settings:
            if router in self.fitness:
                self.step(router, self.fitness[router])
        for router in self.settings:
            self.step(router, Start(inherited=router in self.left))

    def stop(self) -> None:
        if self.running:
            self.thaw()
            for router in self.settings:
                self.step(router, Stop())
                if router in self.left:
                    self.drop(router)
            self.running = False

    def kill(self) -> None:
        """The kernel keeps the VIPs."""
        self.running = False
        self.left.clear()
        self.wakes += 1
        for router in self.settings:
            self.network.held_changed(router)

    def freeze(self) -> None:
        self.frozen = self.running

    def thaw(self) -> None:
        if not self.frozen:
            return
        self.frozen = False
        inbox, self.inbox = self.inbox, []
        for router, event in inbox:
            self.step(router, event)
        self.wake(self.wakes)

    def jump(self, seconds: float) -> None:
        self.offset += seconds
        self.arm()

    def receive(self, router: str, advert: Advert) -> None:
        if self.running:
            self.tell(router, Heard(advert))

    def tell(self, router: str, event: Event) -> None:
        if isinstance(event, Fitness):
            self.fitness[router] = event
        if not self.running:
            return
        if self.frozen:
            self.inbox.append((router, event))
        else:
            self.step(router, event)

    def step(self, router: str, event: Event) -> None:
        if isinstance(event, Heard) and event.advert.priority and self.role(router) is Role.BACKUP:
            self.let_go(router, event.advert.priority)
        now = self.clock()
        before = self.states
        if self.ours:
            self.states, effects = groups.step(self.settings, before, router, event, now)
            self.check_group()
        else:
            state, found = keepalived.step(self.settings[router], before[router], event, now)
            self.states = before | {router: state}
            effects = tuple((router, effect) for effect in found)
        if any(self.states[name].role is not before[name].role for name in before):
            self.changed = self.network.now
        for name, effect in effects:
            self.do(name, effect)
        for name, state in self.states.items():
            if state.role is Role.FAULT:
                self.let_go(name)
            assert (name in self.held) == (state.role is Role.MASTER or name in self.left)
        self.arm()

    def check_group(self) -> None:
        roles = {state.role for state in self.states.values()} - {Role.INIT}
        assert len(roles) <= 1 or roles == {Role.BACKUP, Role.INIT}, roles

    def do(self, router: str, effect: Effect) -> None:
        network = self.network
        match effect:
            case Send(priority=priority):
                settings = self.settings[router]
                version, interval_s = settings.version, settings.interval_s
                advert = Advert(version, 51, priority, interval_s, (), settings.own)
                network.carry(self, router, advert)
            case Take():
                assert router not in self.held or router in self.left
                self.left.discard(router)
                self.held.add(router)
                self.announced.setdefault(router, []).append(network.now)
                network.held_changed(router)
            case Drop():
                assert router in self.held
                self.drop(router)
            case Announce():
                assert router in self.held
                self.announced[router].append(network.now)

    def let_go(self, router: str, priority: int = OWNER) -> None:
        """Another node is master, or this one may not be: as ``process.router`` does it."""
        if router in self.left:
            self.drop(router)
            self.do(router, Send(HANDED_OVER if priority > HANDED_OVER else LEAVING))

    def drop(self, router: str) -> None:
        self.held.discard(router)
        self.left.discard(router)
        self.dropped[router] = self.network.now
        self.network.held_changed(router)

    def arm(self) -> None:
        self.wakes += 1
        dues = [state.due_s for state in self.states.values() if state.due_s is not None]
        if dues and self.running:
            when = max(self.network.now, (min(dues) - self.offset) / self.rate + 1e-9)
            self.network.at(when, lambda wakes=self.wakes: self.wake(wakes))

    def wake(self, wakes: int) -> None:
        if wakes != self.wakes or self.frozen or not self.running:
            return
        for router in self.settings:
            due_s = self.states[router].due_s
            if due_s is not None and due_s <= self.clock():
                self.step(router, Due())
                due_s = self.states[router].due_s
                assert due_s is None or due_s > self.clock(), "a loop without an end"
        self.arm()


def address(index: int) -> IPv4Address:
    return IPv4Address("10.73.0.1") + index


def longest_wait_s(network: Network) -> float:
    """The longest master-down interval of any node, with a delay."""
    every = [settings for node in network.nodes for settings in node.settings.values()]
    longest = max(settings.interval_s for settings in every)
    waits = [timers.master_down_s(settings.version, 1, longest) for settings in every]
    return max(waits) * 1.02 + 2 * network.delay_s
