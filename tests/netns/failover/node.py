"""One of our failover processes in a namespace of ``switched``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ApiError
from agent.failover import client
from lbctl.lab import netns
from tests.netns.failover.switched import VIP, Switched
from tests.netns.site import wait_until

ROOT = Path(__file__).resolve().parents[3]
UNTRACKED = {"dataplane": False, "agent": 0}  # no agent runs beside it


class Ours:
    """The process, and what befalls it."""

    def __init__(self, net: Switched, name: str, folder: Path) -> None:
        self.net = net
        self.name = name
        self.folder = folder
        self.path = folder / f"{name}.yaml"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, *instances: dict[str, Any], **settings: Any) -> None:
        """Write the file; each instance on top of what these tests have in common."""
        common: dict[str, Any] = {"name": "web", "vips": [str(VIP)], "track": UNTRACKED}
        elected: dict[str, Any] = {"vrid": 51, "advert_interval": "20ms"}
        written = [
            common | ({} if each.get("method") == "announce" else elected) | each
            for each in instances or ({},)
        ]
        document = {
            "name": self.name,
            "interface": "eth0",
            "metrics": "off",
            "socket": str(self.folder / f"{self.name}.sock"),
            "state_dir": str(self.folder / self.name),
            "failover": {"instances": written},
        }
        self.path.write_text(yaml.safe_dump(document | settings))

    def start(self) -> None:
        # As the unit has it: else a busy host takes seconds for the start.
        command = [*netns.entering(self.net.name(self.name)), "nice", "-n", "-20"]
        command += [sys.executable, "-m", "agent.main"]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "failover", "--config", str(self.path)], stderr=log, cwd=ROOT
            )

    def ask(self, **request: Any) -> Any:
        return client.ask(self.folder / f"{self.name}-failover.sock", request, timeout_s=60)

    def reload(self, *instances: dict[str, Any]) -> None:
        self.configure(*instances)
        self.ask(do="reload")

    def router(self, name: str = "web") -> Any:
        (found,) = (each for each in self.ask(do="status")["routers"] if each["name"] == name)
        return found

    def role(self) -> str | None:
        """That of all its routers; None: it does not answer, or they differ."""
        try:
            roles = {router["role"] for router in self.ask(do="status")["routers"]}
        except ApiError:
            return None
        return roles.pop() if len(roles) == 1 else None

    def await_role(self, role: str) -> None:
        try:
            wait_until(f"{self.name} is {role}", lambda: self.role() == role)
        except AssertionError as error:
            error.add_note(self.log())
            raise

    def await_vip(self, there: bool, vip: object = VIP) -> None:
        def so() -> bool:
            return (f" {vip}/" in self.net.run(self.name, "ip", "-o", "address")) is there

        wait_until(f"{self.name} has the VIP {vip}: {there}", so)

    def tell(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        self.tell(number)
        assert self.process is not None
        self.process.wait(60)

    def saved(self) -> str:
        """What it has written down for its next start; empty: nothing yet."""
        path = self.folder / self.name / f"{self.name}.failover.json"
        return path.read_text() if path.exists() else ""

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def roles(self) -> list[str]:
        """All that it became, by its log."""
        lines = map(json.loads, self.log().splitlines())
        return [line["new"] for line in lines if line["event"] == "role"]


@contextlib.contextmanager
def ours(net: Switched, *names: str) -> Iterator[list[Ours]]:
    """Processes that are started by the block, and ended with it."""
    with tempfile.TemporaryDirectory(prefix=f"st-ours-{os.getpid()}-") as folder:
        made = [Ours(net, name, Path(folder)) for name in names]
        try:
            yield made
        finally:
            for each in made:
                if each.process is not None and each.process.poll() is None:
                    each.tell(signal.SIGCONT)
                    each.end(signal.SIGKILL)
