"""Decides the order of measurements and takes them: both sides in turn, round after round."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from vagrant.peers import accounting
from vagrant.peers.accounting import GUEST_QUESTION, Cost, Host, Moment, Spent
from vagrant.peers.contenders import Contender
from vagrant.peers.plan import MODES, REQUEST_TIMEOUT_S, Mode, Plan
from vagrant.peers.setting import Setting
from vagrant.smoke import bounds
from vagrant.smoke.children import VagrantError
from vagrant.smoke.machines import FOLDER as VAGRANT

CLOCKS = 0.05  # by which those of guest and host may differ
_SOURCE = Path(__file__).with_name("generator.py")


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of the client's connections."""

    begun: int
    left_out: int  # the client could not keep the pace
    seconds: float
    answers: dict[str, int]  # backend -> answers
    failures: dict[str, int]  # why -> connections

    @property
    def failed(self) -> int:
        """Connections without a whole answer."""
        return sum(self.failures.values())


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of forwarding of one side in one round."""

    contender: str
    mode: str  # as Steelyard calls it
    way: str  # as this side calls it
    round: int
    asked: Asked
    idle: Spent
    loaded: Spent

    @property
    def cost(self) -> Cost:
        """Of 10,000 connections."""
        return accounting.cost(self.idle, self.loaded, self.asked.begun)

    def others_share(self, cpus: int) -> float:
        """Which part of the host's processors was somebody else's, at the worst."""
        return max(s.others_s / (s.wall_s * cpus) for s in (self.idle, self.loaded))

    @property
    def held_up(self) -> bool:
        """Whether the guest's clock stood still for a while, or ran after the host's."""
        return any(
            abs(s.guest_wall_s - s.wall_s) > CLOCKS * s.wall_s for s in (self.idle, self.loaded)
        )


def order(contenders: tuple[Contender, ...], number: int) -> tuple[Contender, ...]:
    """Who comes in which order in a round: each round begins with another one."""
    shift = number % len(contenders)
    return (*contenders[shift:], *contenders[:shift])


class Rounds:
    """Takes measurements on machines that are prepared."""

    def __init__(self, setting: Setting, plan: Plan) -> None:
        self._setting = setting
        self._plan = plan
        identities = {name: _identity(name) for name in setting.stage.machines.names}
        self._host = Host(setting.balancer, identities)

    def run(self, number: int) -> list[Measurement]:
        """One round of both sides and all ways of forwarding."""
        taken: list[Measurement] = []
        for contender in order(self._setting.contenders, number):
            self._setting.stage.progress(f"round {number + 1}: {contender.name} starts")
            contender.start()
            # Everything is translated and known before anything is measured.
            for mode in MODES:
                self._warm_up(contender, mode)
            taken += [self._measure(contender, mode, number) for mode in MODES]
            contender.stop()
        return taken

    def _warm_up(self, contender: Contender, mode: Mode) -> None:
        asked = self._ask(mode, self._plan.warm_up_s)
        if not asked.answers:
            raise VagrantError(
                f"{contender.name}, {contender.way(mode)}: nobody answers: {asked.failures}",
                where=self._setting.stage.machines.client,
            )

    def _measure(self, contender: Contender, mode: Mode, number: int) -> Measurement:
        first = self._now()
        time.sleep(self._plan.seconds)
        second = self._now()
        asked = self._ask(mode, self._plan.seconds)
        third = self._now()
        found = Measurement(
            contender=contender.name,
            mode=mode.steelyard,
            way=contender.way(mode),
            round=number,
            asked=asked,
            idle=accounting.between(first, second),
            loaded=accounting.between(second, third),
        )
        cost = found.cost
        self._setting.stage.progress(
            f"round {number + 1}: {contender.name}, {found.way}: {asked.begun} connections,"
            f" {asked.failed} failed; of 10,000 the guest says {cost.guest_s:.1f} s, the host"
            f" {cost.vcpu_s:.1f} s"
        )
        return found

    def _now(self) -> Moment:
        return self._host.now(self._setting.stage.run(self._setting.balancer, *GUEST_QUESTION))

    def _ask(self, mode: Mode, seconds: float) -> Asked:
        machines = self._setting.stage.machines
        said = machines.ssh.run(
            machines.client,
            *("python3", "-", "--target", self._setting.ground.target(mode)),
            *("--rate", f"{self._plan.rate_per_s:g}", "--seconds", f"{seconds:g}"),
            *("--timeout", f"{REQUEST_TIMEOUT_S:g}"),
            text=_SOURCE.read_text(),
            timeout_s=seconds + bounds.COMMAND_S,
        )
        return Asked(**json.loads(said))


def _identity(machine: str) -> str:
    path = VAGRANT / ".vagrant/machines" / machine / "libvirt/id"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise VagrantError(
            f"{machine} is no machine of libvirt: {error.strerror}",
            where=str(path),
            remedy="the comparison reads the clocks of libvirt's machines: use that provider",
        ) from error
