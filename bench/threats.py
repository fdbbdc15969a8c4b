"""``python -m bench.threats``: what detection finds, how soon, and whom it suspects wrongly.

A simulation of the flow table: requests with the lengths of the Azure trace, from clients of which
few ask much and many little (Zipf), with and without gateways that many users share, and eight
attacks on top in three strengths. Each look of the agent is taken as agent.state.threats takes it,
with the blocks that would follow. What happens in the kernel, and how real tools attack, is tested
elsewhere (tests/netns/test_threats.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from agent.model import Network
from agent.state import threats
from agent.state.threats import Crowd, Held, Sign, Watch
from bench.ai import trace

PAGE = Path(__file__).parent / "results" / "threats.md"
LOOK_S = 2.0
ATTACK_AT_S, ATTACK_S = 900.0, 120.0
HOURS = 4.0
TOKEN_S = 0.05  # of an answer
PREFILL_S = 0.231e-3  # a token of a prompt, on an A100 (Splitwise)
KEPT_S = 60.0  # that a connection stays open after its answer
NEVER = np.inf
_APART = 3 / 4  # of what a source has at four servers is not at the one that has most of it

type Floats = npt.NDArray[np.float64]
type Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flows:
    """Flows, by the time when they begin. ``first_s``: when the answer begins; ``unused``: nothing
    is sent.
    """

    start_s: Floats
    first_s: Floats
    end_s: Floats
    sent: Floats  # request bytes
    source: Ints
    unused: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, *parts: Flows) -> Flows:
        """Return the flows of all parts."""
        start_s = np.concatenate([each.start_s for each in parts])
        order = np.argsort(start_s, kind="stable")

        def all_of(name: str) -> npt.NDArray[np.generic]:
            return np.concatenate([getattr(each, name) for each in parts])[order]

        return cls(*(all_of(name) for name in cls.__slots__))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Honest traffic. ``gateways``: that many sources have a tenth of all requests each."""

    name: str
    per_s: float
    users: int
    gateways: int = 0

    def flows(self, seconds: float, seed: int = 1) -> Flows:
        """Return the flows of these users for a time."""
        count = round(self.per_s * seconds)
        asked = trace.requests(trace.lengths(), count, self.per_s, trace.TRACE_CV, seed)
        rng = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, self.users + 1)
        source = rng.choice(self.users, count, p=weights / weights.sum()) + self.gateways
        behind = rng.random(count) < self.gateways / 10
        source[behind] = rng.integers(0, max(self.gateways, 1), int(behind.sum()))
        start_s = np.array([each.at_s for each in asked])
        first_s = start_s + 0.05 + PREFILL_S * np.array([each.prompt_tokens for each in asked])
        end_s = first_s + TOKEN_S * np.array([each.answer_tokens for each in asked])
        kept = source % 2 == 0  # half of the clients keep their connections
        return Flows(
            start_s,
            first_s,
            np.where(kept, end_s + KEPT_S, end_s),
            np.array([float(each.prompt_bytes) for each in asked]),
            source,
            np.zeros(count, dtype=np.bool_),
        )


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack that opens flows for two minutes.

    ``held``: each source opens so many in ten seconds and keeps them; ``per_s``: each opens so many
    a second, and they last 0.2 s. ``answered``: whether the server answers.
    """

    name: str
    sources: int = 1
    held: int = 0
    per_s: float = 0.0
    sent: float = 200.0
    answered: bool = True

    def flows(self, first_source: int) -> Flows:
        """Return the flows of the attack; its sources have the numbers from ``first_source``."""
        each = self.held or round(self.per_s * ATTACK_S)
        within_s = 10.0 if self.held else ATTACK_S
        start_s = ATTACK_AT_S + np.tile(np.linspace(0, within_s, each), self.sources)
        end_s = np.full(len(start_s), ATTACK_AT_S + ATTACK_S) if self.held else start_s + 0.2
        return Flows(
            start_s,
            start_s + 0.1 if self.answered and self.sent else np.full(len(start_s), NEVER),
            end_s,
            np.full(len(start_s), self.sent),
            np.repeat(np.arange(self.sources) + first_source, each),
            np.full(len(start_s), not self.sent),
        )


@dataclass(slots=True)
class Found:
    """What the looks have found: when a source was named and blocked first, by its number."""

    named_s: dict[int, float] = field(default_factory=dict)
    blocked_s: dict[int, float] = field(default_factory=dict)


def network(source: int) -> Network:
    """Return the address that stands for a source."""
    return ip_network((int(ip_network("10.0.0.0/8").network_address) + source, 32))


def run(flows: Flows, seconds: float, active_s: float = 150.0) -> Found:
    """Look at the flows as the agent does, and block as it would.

    ``active_s``: no flow of honest clients lasts longer.
    """
    found, watch = Found(), Watch()
    count = int(flows.source.max()) + 1
    networks = [network(number) for number in range(count)]
    numbers = {each: number for number, each in enumerate(networks)}
    blocked = np.zeros(count)  # until when
    at_s = LOOK_S
    while at_s < seconds:
        first, last = np.searchsorted(flows.start_s, (at_s - active_s, at_s), side="right")
        part = slice(int(first), int(last))
        crowd = _crowd(flows, part, at_s, blocked, networks)
        watch = threats.looked(watch, {"all": crowd}, at_s, lambda _service, _source: False)
        for each in watch.threats.values():
            found.named_s.setdefault(numbers[each.source], at_s)
        free = [each for each in watch.going_on if blocked[numbers[each.source]] <= at_s]
        now_blocked = int(np.count_nonzero(blocked > at_s))
        for each in threats.chosen(free, crowd.sources, now_blocked):
            blocked[numbers[each.source]] = at_s + threats.BLOCK_S
            found.blocked_s.setdefault(numbers[each.source], at_s)
        at_s += LOOK_S
    return found


def _crowd(
    flows: Flows, part: slice, at_s: float, blocked: Floats, networks: Sequence[Network]
) -> Crowd:
    start_s, source, count = flows.start_s[part], flows.source[part], len(networks)
    served = blocked[source] <= at_s
    is_open = served & (flows.end_s[part] > at_s)
    is_new = served & (start_s > at_s - LOOK_S)
    waits = is_open & (flows.first_s[part] > at_s) & ~flows.unused[part]
    age_s = at_s - start_s
    is_slow = waits & (age_s >= threats.SLOW_AFTER_S)

    def summed(chosen: npt.NDArray[np.bool_], each: Floats | None = None) -> Floats:
        weights = None if each is None else each[chosen]
        return np.bincount(source[chosen], weights, count).astype(float)

    values = {
        Sign.OPEN: summed(is_open),
        Sign.NEW: summed(is_new) / LOOK_S,
        Sign.UNUSED: summed(is_open & flows.unused[part] & (age_s >= threats.UNUSED_AFTER_S)),
        Sign.SLOW: _APART * summed(is_slow),
        Sign.WAITING: _APART * summed(waits, flows.sent[part]),
    }
    slow = summed(is_slow)
    active = np.flatnonzero((values[Sign.OPEN] > 0) | (values[Sign.NEW] > 0))
    return threats.crowd_of(
        [
            Held(
                networks[number],
                {sign: float(each[number]) for sign, each in values.items()},
                float(slow[number]),
            )
            for number in active.tolist()
        ]
    )


TRAFFIC = (
    Traffic("6 requests a second, 300 clients", 6, 300),
    Traffic("6 a second, 3 gateways with 10 % each", 6, 300, gateways=3),
    Traffic("60 a second, 3000 clients", 60, 3000),
    Traffic("60 a second, 3 gateways with 10 % each", 60, 3000, gateways=3),
)
_WEAK, _MIDDLE, _STRONG = range(3)
ATTACKS: tuple[tuple[Attack, Attack, Attack], ...] = (
    tuple(Attack("opens connections and keeps them", held=n) for n in (50, 200, 800)),
    tuple(Attack("opens and closes connections", per_s=n) for n in (20, 100, 500)),
    tuple(Attack("connects and sends nothing", held=n, sent=0.0) for n in (50, 100, 400)),
    tuple(Attack("begins heads (slowloris)", held=n, answered=False) for n in (50, 200, 800)),
    tuple(
        Attack("sends 64 kB that are not answered", held=n, sent=65536.0, answered=False)
        for n in (8, 32, 128)
    ),
    tuple(Attack("20 sources keep connections", 20, held=n) for n in (50, 200, 800)),
    tuple(Attack("20 sources open and close", 20, per_s=n) for n in (20, 100, 500)),
    tuple(Attack("500 sources ask once a second", n, per_s=1) for n in (125, 250, 500)),
)  # type: ignore[assignment]


def alarm(traffic: Traffic) -> str:
    """Return the row of honest traffic alone."""
    seconds = HOURS * 3600
    found = run(traffic.flows(seconds), seconds)
    gateways = sum(number < traffic.gateways for number in found.named_s)
    named = f"{len(found.named_s) - gateways}"
    if traffic.gateways:
        named += f", and {gateways} of {traffic.gateways} gateways"
    return f"| {traffic.name} | {HOURS:.0f} | {named} | {len(found.blocked_s)} |"


def attacked(job: tuple[Traffic, Attack]) -> str:
    """Return a cell: when attackers are named, how many are blocked, and who else is."""
    traffic, attack = job
    seconds, first = ATTACK_AT_S + ATTACK_S, traffic.users + traffic.gateways
    found = run(Flows.joined(traffic.flows(seconds), attack.flows(first)), seconds)
    named = [at_s for number, at_s in found.named_s.items() if number >= first]
    honest = sum(number < first for number in found.blocked_s)
    if not named:
        text = "not found"
    else:
        blocked = sum(number >= first for number in found.blocked_s)
        text = f"{min(named) - ATTACK_AT_S:.0f} s"
        if attack.sources > 1:
            text += f", {blocked} of {attack.sources} blocked"
    return f"{text}, {honest} honest" if honest else text


def lines(workers: int | None = None) -> Iterator[str]:
    """Yield the lines of the page."""
    with ProcessPoolExecutor(workers) as pool:
        alarms = [pool.submit(alarm, each) for each in TRAFFIC]
        jobs = [[pool.submit(attacked, (TRAFFIC[2], each)) for each in row] for row in ATTACKS]
        yield "# What detection finds\n"
        yield f"`make bench-threats`, a simulation with a look every {LOOK_S:.0f} s. Requests:"
        yield f"{trace.lengths().source}. What is compared: [guard](../../docs/guard.md#threats).\n"
        yield "| honest traffic | hours | clients that were named | blocked |"
        yield "|-|-|-|-|"
        yield from (each.result() for each in alarms)
        yield f"\nAttacks of two minutes, beside {TRAFFIC[2].name}. The time is from the beginning"
        yield "of the attack until its first source is named, and, with `block`, blocked.\n"
        yield "| attack | weak | middle | strong |"
        yield "|-|-|-|-|"
        for row, cells in zip(ATTACKS, jobs, strict=True):
            strengths = ", ".join(_strength(each) for each in row)
            cells_ = " | ".join(each.result() for each in cells)
            yield f"| {row[_STRONG].name}: {strengths} | {cells_} |"


def _strength(attack: Attack) -> str:
    if attack.held:
        return str(attack.held)
    return f"{attack.per_s:.0f}/s" if attack.per_s > 1 else str(attack.sources)


@click.command()
@click.option("--print-only", is_flag=True, help="Write no file.")
def main(*, print_only: bool) -> None:
    """Measure detection in a simulation, and write bench/results/threats.md."""
    text = "\n".join(lines()) + "\n"
    click.echo(text)
    if not print_only:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
