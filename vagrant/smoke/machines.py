"""Owns the virtual machines: brings them up, cuts their power, and leaves nothing running."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vagrant.smoke import bounds, children, needs
from vagrant.smoke.children import VagrantError
from vagrant.smoke.ssh import Ssh

FOLDER = Path(__file__).parents[1]
RUNNING = "running"
BOX = "STEELYARD_VM_BOX"  # what the Vagrantfile takes instead of the box of build-box
_LIBVIRT = ("virsh", "--connect", "qemu:///system")
# How the power of a machine is cut, and given back: provider -> (off, on), with its id at the end.
_POWER: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "libvirt": ((*_LIBVIRT, "destroy", "{id}"), (*_LIBVIRT, "start", "{id}")),
    "virtualbox": (
        ("VBoxManage", "controlvm", "{id}", "poweroff"),
        ("VBoxManage", "startvm", "{id}", "--type", "headless"),
    ),
}

type Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class State:
    """What Vagrant says of a machine."""

    name: str
    provider: str
    state: str


def states(status: str) -> tuple[State, ...]:
    """The machines in what `vagrant status --machine-readable` says."""
    found: dict[str, dict[str, str]] = {}
    for line in status.splitlines():
        _, name, kind, *values = [*line.split(","), "", ""]
        if name and kind in {"provider-name", "state"}:
            found.setdefault(name, {})[kind] = values[0]
    return tuple(
        State(name, said.get("provider-name", ""), said.get("state", ""))
        for name, said in found.items()
    )


def provider(environment: Mapping[str, str], installed: Callable[[str], bool]) -> str:
    """Who runs the machines, as the Vagrantfile chooses: libvirt, unless VirtualBox is all."""
    if chosen := environment.get("VAGRANT_DEFAULT_PROVIDER"):
        return chosen
    return "virtualbox" if not installed("virsh") and installed("VBoxManage") else "libvirt"


def power_command(provider: str, identity: str, *, on: bool) -> list[str]:
    """The command that cuts the power of a machine, or gives it back."""
    if provider not in _POWER:
        raise VagrantError(
            f"the power of machines of {provider or 'no provider'} cannot be cut",
            remedy=f"use one of: {', '.join(_POWER)}",
        )
    return [word.format(id=identity) for word in _POWER[provider][on]]


def named(names: Iterable[str], prefix: str) -> tuple[str, ...]:
    """The machines of a role, in their order: lb1, lb2."""
    mine = [name for name in names if name.startswith(prefix)]
    return tuple(sorted(mine, key=lambda name: (len(name), name)))


def _installed(program: str) -> bool:
    # Not everybody has the administrator's programs in the search path.
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


def require() -> None:
    """Raises VagrantError for all that this host lacks; before anything is begun."""
    needs.require(provider(os.environ, _installed), _installed, builds_box=BOX not in os.environ)


class Machines:
    """The machines of the Vagrantfile, from ``up`` to ``down``."""

    def __init__(self, scratch: Path, progress: Progress) -> None:
        """``scratch``: a folder for logs and sockets."""
        self.scratch = scratch
        self.log = scratch / "vagrant.log"
        self._progress = progress
        self._provider = provider(os.environ, _installed)
        self._states: tuple[State, ...] = ()
        self._ssh: Ssh | None = None
        self._found_running = False

    @property
    def ssh(self) -> Ssh:
        """The way into them."""
        if self._ssh is None:
            raise VagrantError("the machines are not up")
        return self._ssh

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(state.name for state in self._states)

    @property
    def client(self) -> str:
        """The machine that asks."""
        return named(self.names, "client")[0]

    @property
    def balancers(self) -> tuple[str, ...]:
        """The machines with the VIPs."""
        return named(self.names, "lb")

    @property
    def backends(self) -> tuple[str, ...]:
        """The machines with the servers."""
        return named(self.names, "be")

    @property
    def found_running(self) -> bool:
        """Whether somebody else had brought them all up: then they are not ours to remove."""
        return self._found_running

    def up(self) -> None:
        """Bring up what does not run: the box, libvirt and the machines."""
        self._libvirt("start")
        self._look()
        self._found_running = bool(self._states) and all(s.state == RUNNING for s in self._states)
        if self._found_running:
            self._progress(f"{', '.join(self.names)} run already; they are left up at the end")
        else:
            if self._provider == "libvirt" and BOX not in os.environ:
                self._progress(f"a box, if there is none (log: {self.log})")
                children.run([FOLDER / "build-box"], bounds.BOX_S, cwd=FOLDER, log=self.log)
            self._progress(f"vagrant up: {', '.join(self.names)}; without KVM it takes a while")
            self._vagrant("up", timeout_s=bounds.UP_S)
            self._look()
        self._ssh = Ssh(self.scratch, self._told("ssh-config"))

    def leave(self) -> None:
        """Close the connections; the machines stay."""
        if self._ssh is not None:
            self._ssh.close()

    def down(self) -> None:
        """Remove the machines, and stop libvirt if we started it. May be called at any time."""
        self.leave()
        self._progress("removing the machines")
        try:
            self._libvirt("start")  # without it Vagrant does not even say that there are none
            self._vagrant("destroy", "--force", timeout_s=bounds.DOWN_S)
        finally:
            self._libvirt("stop")

    def power_off(self, machine: str) -> None:
        """Cut the power: no goodbye, nothing is written to its disk any more."""
        self._power(machine, on=False)
        self.ssh.forget(machine)

    def power_on(self, machine: str) -> None:
        """Press the button."""
        self._power(machine, on=True)

    def boot_id(self, machine: str) -> str | None:
        """What names the present boot of a machine; None: it cannot be reached."""
        found = self.ssh.try_run(
            machine, "cat", "/proc/sys/kernel/random/boot_id", timeout_s=2 * bounds.CONNECT_S
        )
        return found.strip() if found else None

    def reboot(self, machine: str) -> str | None:
        """Ask a machine to boot again; returns what named the boot that ends."""
        before = self.boot_id(machine)
        self.ssh.try_run(machine, "systemctl", "--no-block", "reboot")
        self.ssh.forget(machine)
        return before

    def await_boot(self, machine: str, before: str | None) -> None:
        """Wait until a machine has another boot than the one before, and can be reached."""

        def lacking() -> str | None:
            now = self.boot_id(machine)
            if now is None:
                return "it cannot be reached"
            return "it has not gone down" if now == before else None

        wait(f"{machine} boots", lacking, bounds.BOOT_S)

    def _look(self) -> None:
        self._states = states(self._told("status", "--machine-readable"))

    def _power(self, machine: str, *, on: bool) -> None:
        provider = next(s.provider for s in self._states if s.name == machine)
        identity = (FOLDER / ".vagrant/machines" / machine / provider / "id").read_text().strip()
        children.run(power_command(provider, identity, on=on), bounds.POWER_S)

    def _libvirt(self, verb: str) -> None:
        if self._provider == "libvirt":
            children.run([FOLDER / "libvirt", verb], bounds.VAGRANT_S, cwd=FOLDER, log=self.log)

    def _vagrant(self, *words: str, timeout_s: float) -> None:
        children.run(("vagrant", *words, "--no-color"), timeout_s, cwd=FOLDER, log=self.log)

    def _told(self, *words: str) -> str:
        return children.run(("vagrant", *words, "--no-color"), bounds.VAGRANT_S, cwd=FOLDER)


def wait(
    what: str,
    lacking: Callable[[], str | None],
    bound_s: float,
    progress: Progress | None = None,
) -> None:
    """Look again and again until nothing is lacking; raises VagrantError with what still is."""
    began = told = time.monotonic()
    while (why := lacking()) is not None:
        now = time.monotonic()
        if now > began + bound_s:
            raise VagrantError(f"not within {bound_s:.0f} s: {what}: {why}")
        if progress and now > told + bounds.TELL_S:
            told = now
            progress(f"until {what}: {why}")
        time.sleep(bounds.POLL_S)
