"""Owns what runs on the balancer that is measured: Steelyard, or keepalived with IPVS, or nothing.

``stop`` may be called at any time, whatever was started: the clean-up does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from ipaddress import IPv4Address

from vagrant.peers import configuration
from vagrant.peers.configuration import STATE, Ground
from vagrant.peers.plan import FOLDER, MODES, MODULES, READY_S, UNIT, Mode
from vagrant.smoke import balancers, bounds
from vagrant.smoke.machines import wait
from vagrant.smoke.stage import UNITS, Stage

_AGENT_YAML, _KEEPALIVED_CONF = f"{FOLDER}/agent.yaml", f"{FOLDER}/keepalived.conf"
_SETTINGS = f"{FOLDER}/settings"  # the kernel settings as they were
_DROP_IN = f"/run/systemd/system/{{}}.service.d/{UNIT}.conf"
_COMMANDS = {"lb-agent": "run", "lb-agent-failover": "failover"}


def put(stage: Stage, machine: str, path: str, text: str) -> None:
    """Write a file in a machine, with the folders above it."""
    script = 'mkdir -p "${1%/*}" && cat >"$1"'
    stage.machines.ssh.run(machine, "sh", "-c", script, "sh", path, text=text)


def shell(stage: Stage, machine: str, script: str, timeout_s: float = bounds.COMMAND_S) -> str:
    """What a script wrote in a machine, as root; it ends at the first command that fails."""
    return stage.machines.ssh.run(machine, "sh", "-eu", text=script, timeout_s=timeout_s)


class Contender(ABC):
    """One way to balance the services of the comparison on one machine."""

    name: str

    def __init__(self, stage: Stage, machine: str, ground: Ground) -> None:
        self._stage = stage
        self._machine = machine
        self._ground = ground

    @property
    @abstractmethod
    def configuration(self) -> str:
        """The file that it is started with."""

    @abstractmethod
    def start(self) -> None:
        """Start it; returns when it has the VIP and all backends are up."""

    @abstractmethod
    def stop(self) -> None:
        """Take all of it off the machine."""

    @abstractmethod
    def way(self, mode: Mode) -> str:
        """How it calls a way of forwarding."""

    def _await(self, what: str) -> None:
        wait(f"{self.name} {what}", self.lacking, READY_S, self._stage.progress)

    @abstractmethod
    def lacking(self) -> str | None:
        """What it does not have yet."""


class Steelyard(Contender):
    """The units as they are installed, with another file."""

    name = "Steelyard"

    @property
    def configuration(self) -> str:
        return configuration.agent_yaml(self._ground)

    def way(self, mode: Mode) -> str:
        return mode.steelyard

    def start(self) -> None:
        put(self._stage, self._machine, _AGENT_YAML, self.configuration)
        for unit, command in _COMMANDS.items():
            drop_in = (
                "[Service]\nExecStart=\n"
                f"ExecStart=/usr/local/bin/lb-agent {command} --config {_AGENT_YAML}\n"
            )
            put(self._stage, self._machine, _DROP_IN.format(unit), drop_in)
        script = f"mkdir -p {STATE}\nsystemctl daemon-reload\nsystemctl start {' '.join(UNITS)}\n"
        shell(self._stage, self._machine, script, bounds.RESTART_S)
        self._await("finds its backends")

    def stop(self) -> None:
        files = " ".join(_DROP_IN.format(unit) for unit in UNITS)
        script = f"""\
[ -e {_AGENT_YAML} ] || exit 0
systemctl stop {" ".join(UNITS)}
rm -f {files}
rmdir --ignore-fail-on-non-empty /run/systemd/system/*.service.d 2>/dev/null || true
systemctl daemon-reload
lb-agent detach --config {_AGENT_YAML}
rm -rf {STATE} {_AGENT_YAML}
"""
        shell(self._stage, self._machine, script)

    def lacking(self) -> str | None:
        view = self._stage.view(self._machine)
        if view is not None and view.role != "master":
            return f"it is {view.role}"
        return balancers.lacking({self._machine: view})


class Ipvs(Contender):
    """keepalived as a unit of its own, and what the kernel needs beside it."""

    name = "keepalived + IPVS"

    @property
    def configuration(self) -> str:
        return configuration.keepalived_conf(self._ground)

    @property
    def settings(self) -> dict[str, int]:
        """The kernel settings that IPVS' documentation asks for: nat's packets are routed."""
        return {
            "net.ipv4.ip_forward": 1,
            # Else the kernel tells backends of a shorter way to the client, past the balancer.
            f"net.ipv4.conf.{self._ground.config.interface}.send_redirects": 0,
        }

    def way(self, mode: Mode) -> str:
        return mode.ipvs

    def start(self) -> None:
        put(self._stage, self._machine, _KEEPALIVED_CONF, self.configuration)
        run = f"keepalived --dont-fork --log-console --use-file {_KEEPALIVED_CONF}"
        pids = " ".join(f"--{what} {FOLDER}/{what}" for what in ("pid", "vrrp_pid", "checkers_pid"))
        script = f"""\
lsmod | awk '{{print $1}}' >{FOLDER}/modules
sysctl {" ".join(self.settings)} >{_SETTINGS}
sysctl -q -w {" ".join(f"{name}={value}" for name, value in self.settings.items())}
systemd-run --quiet --collect --unit {UNIT} {run} {pids}
"""
        shell(self._stage, self._machine, script)
        self._await("finds its backends")

    def stop(self) -> None:
        unload = "\n".join(
            f"grep -qx {module} {FOLDER}/modules || modprobe -r {module} || true"
            for module in reversed(MODULES)
        )
        script = f"""\
[ -e {_KEEPALIVED_CONF} ] || exit 0
systemctl stop {UNIT} 2>/dev/null || true
if [ -e /proc/net/ip_vs ]; then ipvsadm --clear; fi
if [ -e {_SETTINGS} ]; then sysctl -q -p {_SETTINGS}; fi
if [ -e {FOLDER}/modules ]; then
{unload}
fi
rm -rf {_KEEPALIVED_CONF} {_SETTINGS} {FOLDER}/modules {FOLDER}/*pid
"""
        shell(self._stage, self._machine, script)

    def lacking(self) -> str | None:
        interface = self._ground.config.interface
        script = (
            f"systemctl is-active {UNIT}\n"
            f"ip -o -4 address show dev {interface}\necho\nipvsadm --list --numeric\n"
        )
        addresses, _, table = shell(self._stage, self._machine, script).partition("\n\n")
        if f" {self._ground.vip}/32 " not in addresses:
            return "it does not have the VIP"
        return missing_servers(table, self._ground.vip, len(self._ground.backends))


def missing_servers(table: str, vip: IPv4Address, backends: int) -> str | None:
    """Which services of `ipvsadm --list --numeric` have fewer servers; None: none."""
    found: dict[str, int] = {}
    service = ""
    for words in map(str.split, table.splitlines()):
        if words[:1] == ["TCP"]:
            service = words[1]
            found[service] = 0
        elif words[:1] == ["->"] and words[1][0].isdecimal() and int(words[3]) > 0:
            found[service] += 1
    for mode in MODES:
        has = found.get(f"{vip}:{mode.port}", 0)
        if has != backends:
            return f"{mode.ipvs} has {has} of {backends} backends"
    return None
