"""Decides a node's effective priority, and whether it may be master at all. Pure.

The data plane goes on when the agent dies, so the node stays master; once the agent has been away
for long, the priority drops. The agent's last heartbeat counts until the next one arrives, even
across a restart of the failover process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.failover.model import OWNER, Instance, Method, TrackedScript
from agent.failover.times import RESTARTED_S
from agent.failover.vrrp.states import Fitness

LEAST, MOST = 1, 254
UNHEARD = "the agent has not reported yet"


@dataclass(frozen=True, slots=True)
class AgentHeartbeat:
    """What the agent reports with every heartbeat."""

    attached: bool
    why: str = ""  # if it is not attached
    services: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # backends up, all
    ready: bool = True  # to preempt a master that is well, or to have the VIPs announced
    waits_for: str = ""  # why it is not ready
    cut_off: bool = False  # it reaches neither a backend nor another balancer
    hands_over: bool = False  # it hands over if this process asks for that before it stops
    # By virtual router: the last time, on the monotonic clock, at which another node was master of
    # it, and well, according to flow sync. It changes with every heartbeat, and no priority depends
    # on it.
    vouchers: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class ScriptState:
    """The state of a tracked script; ``ok`` is None until it has ended once."""

    ok: bool | None = None
    run: int = 0  # results in a row that contradict ``ok``
    detail: str = ""  # the last result: exit status 1, no answer within 1 s, …


@dataclass(frozen=True, slots=True)
class Observations:
    """What is known now.

    An interface that is missing here does not exist; a script that is missing has not ended yet.
    """

    interfaces: Mapping[str, bool] = field(default_factory=dict)  # up, with carrier
    scripts: Mapping[str, ScriptState] = field(default_factory=dict)
    word: AgentHeartbeat | None = None  # the agent's last heartbeat, even from before a restart
    agent_away_s: float = 0.0  # since that heartbeat, or since this process started
    program: bool | None = None  # the agent's XDP programs are where they were; None: not known


@dataclass(frozen=True, slots=True)
class Judgement:
    """A node's fitness for the state machine, with the reasons for the operator."""

    fitness: Fitness
    reasons: tuple[str, ...]  # why the priority is not the configured one, or why it is in FAULT
    # What the node waits for. Until then it does not preempt a master of lower priority, and does
    # not begin to announce its VIPs. Empty: it waits for nothing.
    waits_for: str = ""

    @property
    def may_preempt(self) -> bool:
        """Whether the node may preempt a master of lower priority."""
        return not self.waits_for


def judged(script: TrackedScript, before: ScriptState, ok: bool, detail: str) -> ScriptState:
    """Return the state of a script after one more result.

    The first result decides; later on a change takes ``rise`` or ``fall`` results in a row.
    """
    if before.ok is None or before.ok is ok:
        return ScriptState(ok, 0, detail)
    run = before.run + 1
    if run >= (script.rise if ok else script.fall):
        return ScriptState(ok, 0, detail)
    return ScriptState(before.ok, run, detail)


def fitness(
    instance: Instance, interface: str, services: Iterable[str], observed: Observations
) -> Judgement:
    """Judge a node for one virtual router, whose ``interface`` and ``services`` these are."""
    found = [
        *_interfaces(instance, interface, observed),
        *_scripts(instance, observed),
        *_services(instance, services, observed),
        *_reach(instance, observed),
        *_agent(instance, observed),
    ]
    faults = tuple(dict.fromkeys(why for weight, why in found if not weight))
    if instance.priority == OWNER:
        return Judgement(Fitness(OWNER, "; ".join(faults)), faults)
    priority = instance.priority + sum(weight for weight, _ in found)
    changes = tuple(f"{why}: {weight:+d}" for weight, why in found if weight)
    effective = Fitness(max(LEAST, min(MOST, priority)), "; ".join(faults))
    return Judgement(effective, faults + changes)


# Findings: by how much each changes the priority (0: it is a fault), and a description.
type Found = Iterator[tuple[int, str]]


def _interfaces(instance: Instance, interface: str, observed: Observations) -> Found:
    weights = {tracked.name: -abs(tracked.weight) for tracked in instance.track.interfaces}
    for name, weight in {**weights, interface: 0}.items():
        if name not in observed.interfaces:
            yield weight, f"there is no {name}"
        elif not observed.interfaces[name]:
            yield weight, f"{name} is down"


def _scripts(instance: Instance, observed: Observations) -> Found:
    for script in instance.track.scripts:
        state = observed.scripts.get(script.name, ScriptState())
        if state.ok is False and script.weight <= 0:
            detail = f" ({state.detail})" if state.detail else ""
            yield script.weight, f"script {script.name} fails{detail}"
        elif state.ok and script.weight > 0:
            yield script.weight, f"script {script.name} succeeds"


def _services(instance: Instance, services: Iterable[str], observed: Observations) -> Found:
    if observed.word is None or not instance.track.services:
        return
    counts = observed.word.services
    known = {name: counts[name] for name in services if name in counts and counts[name][1]}
    if not known or any(up for up, _ in known.values()):
        return
    names = ", ".join(sorted(known))
    who = f"service {names} has" if len(known) == 1 else f"services {names} have"
    # Without elections a lower priority has no effect, so this is a fault: other nodes serve.
    weight = 0 if instance.method is Method.ANNOUNCE else -instance.track.services
    yield weight, f"{who} no backend up"


def _reach(instance: Instance, observed: Observations) -> Found:
    """Yield a finding that puts a node that is cut off behind all others.

    When the network is whole again, the clients stay with the node that they reached meanwhile.
    """
    is_asked = instance.track.services and instance.method is Method.VRRP
    if is_asked and observed.word is not None and observed.word.cut_off:
        yield -MOST, "neither a backend nor another balancer is reached"


def _agent(instance: Instance, observed: Observations) -> Found:
    track, word = instance.track, observed.word
    if track.dataplane:
        if word is None:
            yield 0, UNHEARD
        elif not word.attached:
            yield 0, "the agent's program is not attached" + (f": {word.why}" if word.why else "")
        elif observed.program is False:
            yield 0, "the agent's XDP program is gone"
    unheard = track.dataplane and word is None  # this is a fault already, which is worse
    grace_s = max(track.agent_grace_s, RESTARTED_S)  # the agent is not away between two heartbeats
    if track.agent and not unheard and observed.agent_away_s >= grace_s:
        yield -track.agent, f"the agent has been away for more than {grace_s:g} s"
