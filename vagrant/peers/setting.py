"""Owns what the comparison makes of the machines, and that they are as before afterwards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from vagrant.peers import configuration
from vagrant.peers.configuration import Ground
from vagrant.peers.contenders import Contender, Ipvs, Steelyard, put, shell
from vagrant.peers.plan import FOLDER, MODES, RULE_PRIORITY, UNIT
from vagrant.smoke import bounds
from vagrant.smoke.children import VagrantError
from vagrant.smoke.stage import UNITS, Stage

AGENT_YAML = "/etc/steelyard/agent.yaml"
_NGINX_CONF = f"{FOLDER}/nginx.conf"
# What has to be the same before and after, sorted, for counters and numbers of programs change.
_SNAPSHOT = f"""\
ip -o address | sed 's/ *\\(valid_lft\\|preferred_lft\\).*//; s/^[0-9]*: //'
ip rule
ip -o link show dev eth1 | grep -o ' xdp[a-z]*' || true
sysctl net.ipv4.ip_forward net.ipv4.conf.all.send_redirects net.ipv4.conf.eth1.send_redirects
for unit in {" ".join(UNITS)} keepalived nginx steelyard-backend {UNIT}; do
	echo "$unit $(systemctl is-active $unit) $(systemctl is-enabled $unit 2>/dev/null)"
done
find {FOLDER} /run/systemd/system /etc/keepalived /etc/nginx -type f 2>/dev/null || true
ls /sys/fs/bpf/steelyard 2>/dev/null || true
"""


class Setting:
    """The machines in use: the balancer that is measured, and the others, which do not move."""

    def __init__(self, stage: Stage) -> None:
        """The stage is settled."""
        self.stage = stage
        self.balancer = stage.master
        text = stage.run(self.balancer, "cat", AGENT_YAML)
        self.ground: Ground = configuration.read(text, f"{self.balancer}:{AGENT_YAML}")
        settings = (stage, self.balancer, self.ground)
        self.contenders: tuple[Contender, ...] = (Steelyard(*settings), Ipvs(*settings))
        self._before = self._snapshot()

    def undone_by(self, undo: ExitStack) -> None:
        """What the end has to do, in whatever state it finds the machines."""
        undo.callback(self._compare)
        undo.callback(self.stage.settle)
        undo.callback(self._start_units)
        for backend in self.stage.machines.backends:
            undo.callback(self._clean_backend, backend)
        for contender in self.contenders:
            undo.callback(contender.stop)

    def prepare(self) -> None:
        """Servers on the backends, and nothing on the balancers."""
        for backend in self.stage.machines.backends:
            self._prepare_backend(backend)
        # The others first: so nobody takes the VIPs over.
        for balancer in (*self.stage.others, self.balancer):
            shell(self.stage, balancer, f"systemctl stop {' '.join(UNITS)}\n", bounds.RESTART_S)
        shell(self.stage, self.balancer, "lb-agent detach\n")

    def _prepare_backend(self, backend: str) -> None:
        stage = self.stage
        put(stage, backend, _NGINX_CONF, configuration.nginx_conf(backend))
        run = f"systemd-run --quiet --collect --unit {UNIT} /usr/sbin/nginx -c {_NGINX_CONF}"
        shell(stage, backend, f"{run}\n")
        rules = json.loads(stage.run(backend, "ip", "-json", "rule"))
        # Answers of nat go by the balancer, by the rule that the provisioned servers have.
        if table := nat_table(rules, self.ground.nat_port):
            (port,) = (mode.port for mode in MODES if mode.steelyard == "nat")
            rule = f"ipproto tcp sport {port} lookup {table}"
            shell(stage, backend, f"ip rule add priority {RULE_PRIORITY} {rule}\n")

    def _clean_backend(self, backend: str) -> None:
        script = f"""\
systemctl stop {UNIT} 2>/dev/null || true
while ip rule del priority {RULE_PRIORITY} 2>/dev/null; do :; done
rm -rf {FOLDER}
"""
        shell(self.stage, backend, script)

    def _start_units(self) -> None:
        balancers = (self.balancer, *self.stage.others)
        for balancer in balancers:
            # All at once: each compiles its program.
            script = f"rm -rf {FOLDER}\nsystemctl start --no-block {' '.join(UNITS)}\n"
            shell(self.stage, balancer, script)

    def _snapshot(self) -> dict[str, list[str]]:
        machines = self.stage.machines
        names = (*machines.balancers, *machines.backends)
        return {name: sorted(shell(self.stage, name, _SNAPSHOT).splitlines()) for name in names}

    def _compare(self) -> None:
        after = self._snapshot()
        changed = [
            f"{name}: {line}"
            for name, before in self._before.items()
            for line in differences(before, after[name])
        ]
        if changed:
            raise VagrantError(
                f"the machines are not as before: {'; '.join(changed)}",
                remedy="reboot them: nothing of the comparison outlives that",
            )


def nat_table(rules: list[dict[str, Any]], port: int) -> str | None:
    """The routing table of answers that come from a port; None: no rule, so the default route."""
    for rule in rules:
        if str(rule.get("sport", "")) == str(port):
            return str(rule["table"])
    return None


def differences(before: list[str], after: list[str]) -> list[str]:
    """The lines that one of the two lacks, marked as in a diff."""
    gone = [f"-{line}" for line in before if line not in after]
    return gone + [f"+{line}" for line in after if line not in before]
