"""Runs etcd and the API server on loopback, and talks to them as an administrator does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.kubernetes.install import ETCD, KUBECTL, SERVER

RBAC = Path(__file__).resolve().parents[2] / "deploy/kubernetes/rbac.yaml"
ADMIN = "admin-token"  # tokens are in server/main.go
_START_S = 60.0

type Json = dict[str, Any]


class Cluster:
    """One etcd and one API server, with their data in ``folder``.

    ``enter`` is put before each command, for a network namespace of their own.
    """

    def __init__(self, folder: Path, enter: Sequence[str] = ()) -> None:
        self._folder, self._enter = folder, enter
        self._etcd, peer, self._port = _free_ports(3)
        client = f"http://127.0.0.1:{self._etcd}"
        self._processes = [
            self._started(
                ETCD,
                *("--data-dir", folder / "etcd", "--log-level", "error"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            )
        ]
        self._wait_for(lambda: self._ask_etcd("maintenance/status", {}))

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://127.0.0.1:{self._port}"

    def start_server(self) -> None:
        """Start the API server, and wait until it is ready."""
        process = self._started(
            SERVER,
            *("-etcd", f"http://127.0.0.1:{self._etcd}", "-port", str(self._port)),
            *("-certs", self._folder / "certs", "-rbac", RBAC),
        )
        self._processes.append(process)
        self._wait_for(lambda: self.kubectl("get", "--raw", "/readyz"))

    def stop_server(self) -> None:
        """Kill the API server, so that it cannot end its watches in an orderly way."""
        _end(self._processes.pop())

    def stop(self) -> None:
        """Kill all processes."""
        for process in reversed(self._processes):
            _end(process)

    def kubectl(self, *words: str, given: str | None = None, token: str = ADMIN) -> str:
        """Return what kubectl prints."""
        command = [
            *(KUBECTL, "--server", self.url, "--token", token),
            *("--certificate-authority", self._folder / "certs/apiserver.crt", *words),
        ]
        return self._run(command, given)

    def apply(self, *objects: Json) -> None:
        """Create or replace objects."""
        text = "\n---\n".join(json.dumps(each) for each in objects)
        how = ("--server-side", "--force-conflicts", "--validate=false")
        self.kubectl("apply", *how, "-f", "-", given=text)

    def kubeconfig(self, token: str) -> Path:
        """Write a kubeconfig by the commands of docs/kubernetes.md."""
        path = self._folder / f"{token}.kubeconfig"
        ca = self._folder / "certs/apiserver.crt"
        for words in (
            ("set-cluster", "gpu", "--server", self.url, "--embed-certs",
             "--certificate-authority", str(ca)),
            ("set-credentials", "steelyard", "--token", token),
            ("set-context", "gpu", "--cluster", "gpu", "--user", "steelyard"),
            ("use-context", "gpu"),
        ):  # fmt: skip
            self._run([KUBECTL, "config", "--kubeconfig", path, *words])
        return path

    def compact(self) -> None:
        """Make etcd forget all earlier states."""
        revision = self._ask_etcd("maintenance/status", {})["header"]["revision"]
        self._ask_etcd("kv/compaction", {"revision": revision, "physical": True})

    def _ask_etcd(self, path: str, body: Json) -> Json:
        url = f"http://127.0.0.1:{self._etcd}/v3/{path}"
        command = ["curl", "-sS", "--fail", "--max-time", "10", "--json", json.dumps(body), url]
        found: Json = json.loads(self._run(command))
        return found

    def _started(self, *command: object) -> subprocess.Popen[bytes]:
        name = Path(str(command[0])).name
        with (self._folder / f"{name}.log").open("ab") as log:
            words = [str(word) for word in (*self._enter, *command)]
            return subprocess.Popen(words, stdout=log, stderr=log)

    def _run(self, command: list[Any], given: str | None = None) -> str:
        environment = {"HOME": str(self._folder), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [str(word) for word in (*self._enter, *command)], input=given, env=environment,
            timeout=60, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def _wait_for(self, attempt: Any) -> None:
        end = time.monotonic() + _START_S
        while True:
            try:
                attempt()
            except (RuntimeError, OSError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
            else:
                return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, all different."""
    ends = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [end.getsockname()[1] for end in ends]
    finally:
        for end in ends:
            end.close()
