"""A real etcd cluster in network namespaces, and what can happen to its members."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.model import Etcd
from lbctl.lab import netns
from tests.netns.site import wait_until
from tests.pki import Authority

_NUMBERS = itertools.count()  # of the clusters that a process has started
CLIENT_PORT, PEER_PORT = 2379, 2380
LOOPBACK = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
_START_S = 120.0  # ends a test that would wait for ever; a start takes 2 s

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None, reason="etcd is not installed: apt install etcd-server"
)


class Cluster:
    """Members on the addresses ``hosts`` of a namespace, with their data in ``folder``.

    Members are numbered from 0. With ``tls``, a folder of certificates (``certificates``), clients
    have to present one of them.
    """

    def __init__(
        self,
        folder: Path,
        namespace: str,
        hosts: Sequence[str] = LOOPBACK,
        tls: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.namespace = namespace
        self._folder, self._hosts, self._tls = folder, tuple(hosts), tls
        self._options = tuple(options)  # further ones of each member
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The members' URLs for clients."""
        return tuple(map(self._client_url, self._hosts))

    @property
    def etcd(self) -> Etcd:
        """What the configuration of a client says."""
        if self._tls is None:
            return Etcd(endpoints=self.endpoints)
        return Etcd(
            endpoints=self.endpoints,
            ca_file=self._tls / "ca.pem",
            cert_file=self._tls / "client.pem",
            key_file=self._tls / "client.key",
        )

    # -- what happens to members

    def start(self, *numbers: int) -> None:
        """Start these members, or all that do not run, and wait until all know a leader."""
        for number in numbers or self.missing():
            self._start(number)
        self.wait()

    def stop(self, *numbers: int) -> None:
        """End these members, or all, in an orderly way."""
        for number in numbers or tuple(self._processes):
            self._signal(number, signal.SIGTERM)
        for number in numbers or tuple(self._processes):
            self._processes.pop(number).wait(_START_S)

    def kill(self, *numbers: int) -> None:
        """Kill these members, or all."""
        for number in numbers or tuple(self._processes):
            self._signal(number, signal.SIGKILL)
            self._processes.pop(number).wait(_START_S)

    def pause(self, number: int) -> None:
        """Let a member hang: the kernel still accepts connections for it.

        On a busy host its threads go on for a while after the signal was sent.
        """
        self._signal(number, signal.SIGSTOP)
        os.waitid(os.P_PID, self._processes[number].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, number: int) -> None:
        """Let a member go on that hangs."""
        self._signal(number, signal.SIGCONT)

    def missing(self) -> tuple[int, ...]:
        """Return the members that do not run."""
        return tuple(set(range(len(self._hosts))) - self._processes.keys())

    def clear(self) -> None:
        """Kill all members and forget their data."""
        self.kill()
        for number in range(len(self._hosts)):
            shutil.rmtree(self._folder / f"e{number}", ignore_errors=True)

    # -- what an administrator does

    def leader(self) -> int:
        """Return the number of the leader."""
        found: list[int] = []

        def is_found() -> bool:
            statuses = ((number, self._status(number)) for number in self._processes)
            found[:] = [
                number
                for number, status in statuses
                if status and status.get("leader") == status["header"]["member_id"]
            ]
            return len(found) == 1  # it may go to another one meanwhile

        wait_until("a member is the leader", is_found)
        return found[0]

    def compact(self) -> int:
        """Make etcd forget all earlier states; return the revision of the oldest that is left."""
        statuses: list[dict[str, Any]] = []

        def is_told() -> bool:
            status = self._status(self.leader())
            statuses.extend([] if status is None else [status])  # it may not answer in time
            return bool(statuses)

        wait_until("the leader tells the revision", is_told)
        revision: int = statuses[0]["header"]["revision"]
        self.etcdctl("compaction", str(revision))
        return revision

    def etcdctl(self, *words: str) -> str:
        """Return what etcdctl prints that asks all members which run."""
        endpoints = [self._client_url(self._hosts[number]) for number in self._processes]
        done = self._etcdctl(endpoints, "60s", words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self) -> None:
        """Wait until each member that runs knows a leader."""
        end = time.monotonic() + _START_S
        for number in self._processes:
            while not (self._status(number) or {}).get("leader"):
                assert time.monotonic() < end, self._log(number)
                assert self._processes[number].poll() is None, self._log(number)
                time.sleep(0.05)

    # -- inside

    def _start(self, number: int) -> None:
        host, name = self._hosts[number], f"e{number}"
        members = ",".join(
            f"e{each}=http://{at}:{PEER_PORT}" for each, at in enumerate(self._hosts)
        )
        peer = f"http://{host}:{PEER_PORT}"
        command = [
            *netns.entering(self.namespace),
            "etcd", "--name", name, "--data-dir", str(self._folder / name),
            "--listen-client-urls", self._client_url(host),
            "--advertise-client-urls", self._client_url(host),
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", members, "--log-level", "error",
            "--unsafe-no-fsync",  # a disk that is busy must not lead to elections
            *self._options,
        ]  # fmt: skip
        if self._tls is not None:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self._tls / "ca.pem")]
            command += ["--cert-file", str(self._tls / "server.pem")]
            command += ["--key-file", str(self._tls / "server.key")]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def _signal(self, number: int, what: signal.Signals) -> None:
        self._processes[number].send_signal(what)

    def _client_url(self, host: str) -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{CLIENT_PORT}"

    def _status(self, number: int) -> dict[str, Any] | None:
        """Return what a member says of itself; None: it does not answer."""
        words = ("endpoint", "status", "--write-out", "json")
        done = self._etcdctl([self._client_url(self._hosts[number])], "5s", words)
        if done.returncode:
            return None
        (answer,) = json.loads(done.stdout)
        status: dict[str, Any] = answer["Status"]
        return status

    def _etcdctl(
        self, endpoints: Sequence[str], timeout: str, words: Sequence[str]
    ) -> subprocess.CompletedProcess[str]:
        options = ["--endpoints", ",".join(endpoints), "--command-timeout", timeout]
        if self._tls is not None:
            options += ["--cacert", str(self._tls / "ca.pem")]
            options += ["--cert", str(self._tls / "client.pem")]
            options += ["--key", str(self._tls / "client.key")]
        command = [*netns.entering(self.namespace), "etcdctl", *options, *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_START_S
        )

    def _log(self, number: int) -> str:
        return (self._folder / f"e{number}.log").read_text(errors="replace")


@contextlib.contextmanager
def cluster(
    members: int = 3, tls: Path | None = None, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a cluster on the loopback addresses of a namespace of its own."""
    name = f"st-etcd-{os.getpid()}-{next(_NUMBERS)}"
    netns.ip([f"netns add {name}"])
    try:
        netns.ip(["link set lo up"], name)
        with cluster_in(name, LOOPBACK[:members], tls, options) as made:
            yield made
    finally:
        netns.ip([f"netns del {name}"])


@contextlib.contextmanager
def cluster_in(
    namespace: str, hosts: Sequence[str], tls: Path | None = None, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a cluster on addresses that a namespace has, such as that of a lab's host."""
    with tempfile.TemporaryDirectory(prefix="st-etcd-") as folder:
        made = Cluster(Path(folder), namespace, hosts, tls, options)
        try:
            made.start()
            yield made
        finally:
            made.kill()


def certificates(folder: Path, hosts: Sequence[str] = LOOPBACK) -> Path:
    """Make a CA, and signed by it: ``server``, ``client`` without a CN, ``named`` with a CN."""
    authority = Authority(folder)
    names = "subjectAltName=" + ",".join(f"IP:{host}" for host in hosts)
    for name, subject in (("server", "/O=etcd"), ("client", "/O=steelyard"), ("named", "/CN=root")):
        authority.issue(name, subject, names)
    return folder
