"""Owns the way into the machines: OpenSSH, one connection to each that all commands share.

`vagrant ssh -c` starts Ruby for every command; here Vagrant is asked once where its machines are.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from pathlib import Path

from vagrant.smoke import bounds, children
from vagrant.smoke.children import VagrantError

CONFIG, SOCKETS = "ssh_config", "ssh-%C"
_MASTER = (
    ("ControlMaster", "auto"),
    ("ControlPersist", "yes"),
    ("ConnectTimeout", str(bounds.CONNECT_S)),
    # A machine that was cut off is noticed, one that is only busy is not given up.
    ("ServerAliveInterval", "15"),
    ("ServerAliveCountMax", "8"),
    ("BatchMode", "yes"),
    ("LogLevel", "ERROR"),
)


class Ssh:
    """Runs commands in machines, as root."""

    def __init__(self, folder: Path, config: str) -> None:
        """``folder``: short-lived and ours; ``config``: what `vagrant ssh-config` says."""
        self._folder = folder
        self._used: set[str] = set()
        (folder / CONFIG).write_text(config)

    def command(self, machine: str, *words: str, root: bool = True) -> list[str]:
        """The command line that runs words in a machine."""
        self._used.add(machine)
        inside = shlex.join(("sudo", "-n", *words) if root else words)
        return [*self._base(), machine, "--", inside]

    def run(
        self,
        machine: str,
        *words: str,
        timeout_s: float = bounds.COMMAND_S,
        text: str | None = None,
    ) -> str:
        """What a command wrote; raises VagrantError if it fails."""
        command = self.command(machine, *words)
        return children.run(command, timeout_s, text=text, shown=shlex.join(words), where=machine)

    def try_run(self, machine: str, *words: str, timeout_s: float = bounds.COMMAND_S) -> str | None:
        """What a command wrote; None if it failed, or the machine cannot be reached."""
        try:
            return self.run(machine, *words, timeout_s=timeout_s)
        except VagrantError:
            return None

    def forget(self, machine: str) -> None:
        """Leave the connection to a machine that goes down: it would not notice by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                [*self._base(), "-O", "exit", machine],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=bounds.CONNECT_S,
            )

    def close(self) -> None:
        """Leave all connections."""
        for machine in self._used:
            self.forget(machine)

    def _base(self) -> list[str]:
        options = (*_MASTER, ("ControlPath", str(self._folder / SOCKETS)))
        return [
            "ssh", "-F", str(self._folder / CONFIG),
            *(word for key, value in options for word in ("-o", f"{key}={value}")),
        ]  # fmt: skip
