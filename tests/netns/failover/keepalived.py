"""A real keepalived in a namespace, as the other side of ours."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from lbctl.lab import netns

type Address = IPv4Address | IPv6Address

_ENTERING = re.compile(r"\((\w+)\) Entering (\w+) STATE")


def instance(
    vips: Sequence[Address | str],
    *,
    name: str = "web",
    version: int = 3,
    vrid: int = 51,
    priority: int = 100,
    interval_s: float = 1,
    state: str = "BACKUP",  # at the start; MASTER is one at once if it is the owner
    source: Address | str | None = None,
    peers: Sequence[Address | str] = (),
    auth: tuple[str, str] | None = None,  # PASS or AH, and the password
    more: Sequence[str] = (),
) -> str:
    """The text of one ``vrrp_instance``."""
    lines = [
        f"state {state}",
        "interface eth0",
        f"version {version}",
        f"virtual_router_id {vrid}",
        f"priority {priority}",
        f"advert_int {interval_s}",
    ]
    if source is not None:
        lines.append(f"unicast_src_ip {source}" if peers else f"mcast_src_ip {source}")
    if peers:
        lines.append(_block("unicast_peer", peers))
    if auth:
        lines.append(_block("authentication", (f"auth_type {auth[0]}", f"auth_pass {auth[1]}")))
    lines += [_block("virtual_ipaddress", vips), *more]
    return _block(f"vrrp_instance {name}", lines)


def _block(head: str, lines: Sequence[object]) -> str:
    return "\n".join([f"{head} {{", *map(str, lines), "}"])


@dataclass(frozen=True)
class Keepalived:
    """One that runs; its log is kept until the end of its block."""

    process: subprocess.Popen[bytes]
    folder: Path

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def states(self, name: str = "web") -> list[str]:
        """Those that an instance went through: BACKUP, MASTER, FAULT."""
        return [state for of, state in _ENTERING.findall(self.log()) if of == name]

    def wait(self, text: str, *, timeout_s: float = 90) -> None:
        """Until its log has the text."""
        end = time.monotonic() + timeout_s
        while text not in self.log():
            assert time.monotonic() < end, f"no {text!r} in keepalived's log:\n{self.log()}"
            assert self.process.poll() is None, f"keepalived ended:\n{self.log()}"
            time.sleep(0.01)

    def wait_state(self, state: str, name: str = "web", *, timeout_s: float = 90) -> None:
        """Until an instance is in that state."""
        end = time.monotonic() + timeout_s
        while self.states(name)[-1:] != [state]:
            assert time.monotonic() < end, f"{name} is not {state}:\n{self.log()}"
            assert self.process.poll() is None, f"keepalived ended:\n{self.log()}"
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """To all its processes: SIGKILL, SIGSTOP, SIGCONT as well as SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it cleanly, with its last adverts."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)

    def kill(self) -> None:
        """End it at once; the kernel keeps its VIPs."""
        self.signal(signal.SIGKILL)
        self.process.wait(60)


@contextlib.contextmanager
def keepalived(
    namespace: str, *instances: str, globally: Sequence[str] = ()
) -> Iterator[Keepalived]:
    """Runs with the block, with the instances of the texts."""
    with tempfile.TemporaryDirectory(prefix="st-keepalived-") as made:
        folder = Path(made)
        head = _block("global_defs", ["router_id test", *globally])
        (folder / "conf").write_text("\n".join([head, *instances, ""]))
        command = [
            *netns.entering(namespace),
            "keepalived", "-n", "-P", "-l", "-D", "-G",
            "-f", folder / "conf", "-p", folder / "pid", "-r", folder / "vrrp.pid",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        runs = Keepalived(process, folder)
        try:
            runs.wait("STATE")
            yield runs
        finally:
            runs.signal(signal.SIGCONT)
            runs.stop()
            runs.kill()
