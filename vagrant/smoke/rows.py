"""Owns what the smoke test does to the machines, row by row; ``judge`` decides what it showed."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from lbctl.lab import figures
from lbctl.lab.judge import Outcome
from vagrant.smoke import bounds, judge, load
from vagrant.smoke.children import VagrantError
from vagrant.smoke.load import TREE, Load
from vagrant.smoke.stage import UNITS, Stage

FORWARDS, FAMILIES = ("dsr", "ipip", "nat", "fullnat"), ("ipv4", "ipv6")
SERVER = "steelyard-backend.service"
_DROP_IN = f"/run/systemd/system/{SERVER}.d/stays-dead.conf"
_VERSION_FILE = f"{TREE}/agent/__init__.py"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: its name, what it is about, and what is done."""

    name: str
    about: str
    act: Callable[[Stage], Outcome]


def _mode(forward: str, family: str) -> Row:
    return Row(
        f"{forward}-{family}",
        f"{bounds.REQUESTS_A_MODE} requests by {forward} over {family}",
        lambda stage: mode(stage, forward, family),
    )


def mode(stage: Stage, forward: str, family: str) -> Outcome:
    """Requests through one service only."""
    found = [s for s in stage.services if (s.forward, s.family) == (forward, family)]
    if not found:
        raise VagrantError(f"no service is forwarded by {forward} over {family}")
    targets = [service.target for service in found]
    pace = replace(stage.pace, keep_alive=0)
    with load.running(stage.machines, f"{forward}-{family}", targets, pace) as running:
        running.await_requests(bounds.REQUESTS_A_MODE)
        end_s = running.now_s()
    return judge.traffic(running.window(0.0, end_s), found[0].backends)


def kill_server(stage: Stage) -> Outcome:
    """Kill a backend's server, and start it again once it is out of use."""
    backend = stage.machines.backends[0]
    with stage.load("kill-server") as running:
        running.await_requests(bounds.AFTERWARDS)
        with _staying_dead(stage, backend):
            start_s = running.now_s()
            stage.run(backend, "systemctl", "kill", "--signal", "KILL", SERVER)
            stage.await_backend(backend, up=False, running=running)
            out_s = running.now_s()
            running.await_requests(bounds.AFTERWARDS)
            revived_s = running.now_s()
        stage.await_backend(backend, up=True, running=running)
        back_s = stage.first_answer_s(backend, revived_s, running)
        running.await_requests(bounds.AFTERWARDS)
        end_s = running.now_s()
    return judge.backend_lost(running.window(start_s, end_s), backend, out_s, back_s)


@contextlib.contextmanager
def _staying_dead(stage: Stage, backend: str) -> Iterator[None]:
    """While entered, systemd does not start the server again when it dies; afterwards it runs."""
    folder = _DROP_IN.rpartition("/")[0]
    arm = f"mkdir -p {folder} && printf '[Service]\\nRestart=no\\n' >{_DROP_IN}"
    stage.run(backend, "sh", "-c", f"{arm} && systemctl daemon-reload")
    try:
        yield
    finally:
        again = f"rm {_DROP_IN} && systemctl daemon-reload && systemctl start {SERVER}"
        stage.run(backend, "sh", "-c", again)


def reboot_backend(stage: Stage) -> Outcome:
    """Reboot a backend; it has to come back as it was, by itself."""
    backend = stage.machines.backends[1]
    with stage.load("reboot-backend") as running:
        running.await_requests(bounds.AFTERWARDS)
        start_s = running.now_s()
        before = stage.machines.reboot(backend)
        stage.await_backend(backend, up=False, running=running)
        out_s = running.now_s()
        stage.machines.await_boot(backend, before)
        stage.await_backend(backend, up=True, running=running)
        back_s = stage.first_answer_s(backend, out_s, running)
        running.await_requests(bounds.AFTERWARDS)
        end_s = running.now_s()
    return judge.backend_lost(running.window(start_s, end_s), backend, out_s, back_s)


def drain(stage: Stage) -> Outcome:
    """Drain the backend with the most open connections, on every balancer; then enable it."""
    with stage.load("drain") as running:
        running.await_requests(bounds.AFTERWARDS)
        start_s = running.now_s()
        backend = busiest(figures.open_at(running.held(), start_s).values())
        try:
            _everywhere(stage, "drain", backend)
            drained_s = running.now_s()
            running.await_requests(2 * bounds.AFTERWARDS)
            end_s = running.now_s()
        finally:
            _everywhere(stage, "enable", backend)
        back_s = stage.first_answer_s(backend, end_s, running)
    outcome = judge.drain(running.window(start_s, end_s), backend, drained_s)
    outcome.require(back_s is not None, f"{backend} was enabled again, but gets no requests")
    return outcome


def busiest(backends: Iterable[str]) -> str:
    """The backend that is named most often."""
    found = Counter(backends).most_common(1)
    if not found:
        raise VagrantError("no connection is held open")
    return found[0][0]


def _everywhere(stage: Stage, verb: str, backend: str) -> None:
    """A verb of `lbctl backend` for a backend of all services, on every balancer."""
    for balancer in stage.machines.balancers:
        script = "; ".join(
            f"lbctl backend {verb} {service.name}/{backend}" for service in stage.services
        )
        stage.run(balancer, "sh", "-e", "-c", script)


def upgrade(stage: Stage) -> Outcome:
    """Install another version over the running one and restart the units, as docs/upgrade.md
    says: the backup's first, and the failover process once the new agent is there to hand over.
    """
    with stage.load("upgrade") as running:
        running.await_requests(bounds.AFTERWARDS)
        start_s, counted = running.now_s(), Outcome()
        for balancer in (*stage.others, stage.master):
            version, install_s = _reinstall(stage, balancer)
            restart_s = _timed(partial(_restart, stage, balancer))
            stage.await_settled(running)
            counted.say(
                f"{balancer}: setup.sh took {install_s:.0f} s, the restart of its units"
                f" {restart_s:.0f} s"
            )
            counted.count(f"{balancer}: setup.sh", install_s, "s")
            counted.count(f"{balancer}: restart", restart_s, "s")
            view = stage.view(balancer)
            found = view.version if view else "nothing"
            counted.require(found == version, f"{balancer} runs {found}, installed was {version}")
        running.await_requests(bounds.AFTERWARDS)
        end_s = running.now_s()
    outcome = judge.undisturbed(running.window(start_s, end_s), "both balancers upgraded")
    return judge.joined(counted, outcome)


def _restart(stage: Stage, balancer: str) -> None:
    for unit in UNITS:
        stage.run(balancer, "systemctl", "restart", unit, timeout_s=bounds.RESTART_S)


def next_version(text: str, stamp: str) -> tuple[str, str]:
    """The source of the agent's version with another local part, and that version."""
    found = re.search(r'__version__ = "([^"+]+)[^"]*"', text)
    if found is None:
        raise VagrantError("the agent's version cannot be read", where=_VERSION_FILE)
    version = f"{found[1]}+smoke.{stamp}"
    return text.replace(found[0], f'__version__ = "{version}"'), version


def _reinstall(stage: Stage, balancer: str) -> tuple[str, float]:
    """Change the tree in a balancer and install it; the new version, and how long it took."""
    before = stage.run(balancer, "cat", _VERSION_FILE)
    after, version = next_version(before, time.strftime("%Y%m%d%H%M%S"))
    stage.machines.ssh.run(balancer, "tee", _VERSION_FILE, text=after)
    script = f"cd {TREE} && if [ -d /opt/wheels ]; then set -- --offline; fi"
    words = ("sh", "-c", f'{script} && exec deploy/setup.sh --service "$@"')
    return version, _timed(lambda: stage.run(balancer, *words, timeout_s=bounds.SETUP_S))


def _timed(act: Callable[[], object]) -> float:
    start_s = time.monotonic()
    act()
    return time.monotonic() - start_s


def kill_master(stage: Stage) -> Outcome:
    """Cut the master's power; give it back, and wait until it has its place again."""
    master, (successor, *_) = stage.master, stage.others
    with stage.load("kill-master") as running:
        running.await_requests(bounds.AFTERWARDS)
        before = stage.machines.boot_id(master)
        start_s = running.now_s()
        with _powerless(stage, master):
            stage.await_role(successor, "master", running)
            running.await_requests(2 * bounds.AFTERWARDS)
            middle_s = running.now_s()
        back_s = _await_return(stage, master, before, running)
        running.await_requests(bounds.AFTERWARDS)
        end_s = running.now_s()
    killed = judge.master_killed(running.window(start_s, middle_s), successor)
    back = judge.undisturbed(running.window(middle_s, end_s), "master back")
    back.say(f"{master} was master again {back_s - middle_s:.0f} s after its power was back")
    back.count("master again after", back_s - middle_s, "s")
    return judge.joined(killed, back, _as_installed(stage, master))


@contextlib.contextmanager
def _powerless(stage: Stage, machine: str) -> Iterator[None]:
    """While entered, a machine has no power."""
    stage.machines.power_off(machine)
    try:
        yield
    finally:
        stage.machines.power_on(machine)


def reboot_master(stage: Stage) -> Outcome:
    """Reboot the master in order; it has to come back and take its place by itself."""
    master, (successor, *_) = stage.master, stage.others
    with stage.load("reboot-master") as running:
        running.await_requests(bounds.AFTERWARDS)
        start_s = running.now_s()
        before = stage.machines.reboot(master)
        stage.await_role(successor, "master", running)
        running.await_requests(bounds.AFTERWARDS)
        left_s = running.now_s()
        back_s = _await_return(stage, master, before, running)
        running.await_requests(bounds.AFTERWARDS)
        end_s = running.now_s()
    left = judge.undisturbed(running.window(start_s, left_s), "master leaves")
    back = judge.undisturbed(running.window(left_s, end_s), "master back")
    back.say(f"{master} was master again {back_s - start_s:.0f} s after it was told to reboot")
    back.count("master again after", back_s - start_s, "s")
    return judge.joined(left, back, _as_installed(stage, master))


def _await_return(stage: Stage, master: str, before: str | None, running: Load) -> float:
    """Wait until a balancer has booted and all is settled; the moment."""
    stage.machines.await_boot(master, before)
    stage.await_settled(running)
    return running.now_s()


def _as_installed(stage: Stage, balancer: str) -> Outcome:
    """Whether a balancer is, after a boot, what its operator had made of it."""
    outcome = Outcome()
    for unit in UNITS:
        state = stage.run(balancer, "systemctl", "show", "--value", "-p", "ActiveState", unit)
        outcome.require(state.strip() == "active", f"{unit} is {state.strip()} on {balancer}")
    view = stage.view(balancer)
    hook = view.hook if view else "unknown"
    mode = stage.hook_mode(balancer, view.interface) if view else "none"
    outcome.say(f"{balancer}: {', '.join(UNITS)} active, program attached: {mode}")
    outcome.require(hook == mode, f"the agent of {balancer} says {hook}, the kernel {mode}")
    outcome.require(mode == "native", f"the program of {balancer} is attached: {mode}")
    return outcome


def doctor(stage: Stage) -> Outcome:
    """`lbctl doctor` on every balancer."""
    return judge.doctor({name: stage.findings(name) for name in stage.machines.balancers})


ROWS = (
    *(_mode(forward, family) for forward in FORWARDS for family in FAMILIES),
    Row("kill-server", "the server of a backend is killed, and started again", kill_server),
    Row("reboot-backend", "a backend is rebooted", reboot_backend),
    Row("drain", "a backend is drained under load", drain),
    Row("upgrade", "both balancers are upgraded under load", upgrade),
    Row("kill-master", "the master's power is cut, and given back", kill_master),
    Row("reboot-master", "the master is rebooted", reboot_master),
    Row("doctor", "lbctl doctor on every balancer", doctor),
)
GROUPS = {"modes": tuple(row.name for row in ROWS if row.name.rpartition("-")[2] in FAMILIES)}


def chosen(names: Iterable[str]) -> tuple[Row, ...]:
    """The rows of that name, or of a group, in the table's order; none named: all."""
    wanted: set[str] = set()
    for name in names:
        wanted |= set(GROUPS.get(name, (name,)))
    known = {row.name for row in ROWS}
    if unknown := sorted(wanted - known):
        raise VagrantError(
            f"there is no row {', '.join(unknown)}",
            remedy=f"choose from {', '.join((*GROUPS, *(row.name for row in ROWS)))}",
        )
    return tuple(row for row in ROWS if not wanted or row.name in wanted)
