"""Owns the HAProxy of a tier: its files, its process, and what is said to it.

It runs in master-worker mode, and outlives this process: a reload asks the master for a new worker,
which takes the listening sockets over, and the old one answers its open requests to their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import re
import resource
import shutil
import signal
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError, SteelyardError
from agent.files import write_atomically
from agent.logs import get_logger
from agent.model import Network

log = get_logger()

_ANSWER_S = 10.0
_OLD_ANSWER_S = 0.5  # it is no matter for those who ask the newest worker
_RELOAD_S = 60.0  # 10,000 certificates take a while
_START_S = 10.0
_SILENT_S = 0.5  # a master refuses connections at its start and in each reload, for some 50 ms
_MOST_BYTES = 64 << 20
_MAP_LINES = 500  # entries in one command; HAProxy's buffer is 64 KiB
_PEM_BYTES = 60_000
_OWN_DESCRIPTORS = 500  # sockets that listen, and what its threads need


class ProxyError(SteelyardError):
    """HAProxy does not answer, or refuses a command."""


class ProxyAbsentError(ProxyError):
    """There is no HAProxy at the socket."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where everything of one tier's HAProxy is."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration that runs, or is to run."""
        return self.folder / "haproxy.cfg"

    @property
    def certificates(self) -> Path:
        """The folder of copies of the certificates that are served."""
        return self.folder / "certificates"

    @property
    def worker(self) -> Path:
        """The socket on which the newest worker takes commands."""
        return self.folder / "haproxy.sock"

    @property
    def master(self) -> Path:
        """The socket of the master, which outlives workers."""
        return self.folder / "master.sock"

    @property
    def control(self) -> Path:
        """The socket on which `lb-agent tier` itself is asked."""
        return self.folder / "tier.sock"

    def of_map(self, name: str) -> Path:
        """Return where a map is."""
        return self.folder / f"{name}.map"

    def of_certificate(self, name: str) -> Path:
        """Return where the copy of a certificate is."""
        return self.certificates / f"{name}.pem"

    def make(self) -> None:
        """Make the folders: HAProxy's keys are in them, so they are root's alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.certificates.mkdir(mode=0o700, exist_ok=True)
        (self.folder / "empty").mkdir(mode=0o755, exist_ok=True)  # HAProxy's chroot


def program() -> str:
    """Return the path of HAProxy. Raises SteelyardError."""
    found = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SteelyardError(
            "HAProxy is not installed", where="haproxy", remedy="apt-get install haproxy"
        )
    return found


async def check(files: Files, text: str) -> None:
    """Let HAProxy check a configuration. Raises ConfigError with what it says."""
    fresh = files.folder / "haproxy.cfg.checked"
    write_atomically(fresh, text)
    child = await asyncio.create_subprocess_exec(
        program(), "-c", "-f", str(fresh),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await child.communicate()
    if child.returncode != 0:
        raise ConfigError(
            f"HAProxy refuses the configuration: {_alerts(said.decode('utf-8', 'replace'))}",
            where=str(fresh),
            remedy="the last good one goes on; change what it names in the tier's file",
        )


def _alerts(said: str) -> str:
    """Return what HAProxy complains of, without its line of position and process."""
    found = re.findall(r"^\[ALERT\] +\(\d+\) : (.*)$", said, re.MULTILINE)
    return "; ".join(each.strip() for each in found[:3]) or said.strip()[-300:]


def check_descriptors(connections: int) -> None:
    """Raise ConfigError if a child of this process cannot open as many connections.

    HAProxy would not start, and say so in its own words only.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and 2 * connections + _OWN_DESCRIPTORS > most:
        raise ConfigError(
            f"max_connections: {connections} need {2 * connections + _OWN_DESCRIPTORS} file "
            f"descriptors, and {most} are allowed",
            where="ulimit -Hn",
            remedy=f"allow more (LimitNOFILE of systemd, ulimit -n), or set max_connections to "
            f"{(most - _OWN_DESCRIPTORS) // 2} or less",
        )


def sources_problem(sources: Iterable[Network]) -> str:
    """Return what is wrong with the addresses that sessions are sent from; empty: nothing."""
    for prefix in sources:
        try:
            for address in (prefix[0], prefix[-1]):
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.bind((str(address), 0))
        except OSError as error:
            remedy = f"ip route add local {prefix} dev lo"
            if prefix.version == 6:  # bind(2) looks for the address itself
                remedy += ", and sysctl net.ipv6.ip_nonlocal_bind=1"
            return (
                f"{prefix} of `affinity` is not this host's ({error.strerror}), so sessions are "
                f"not kept at their engines; remedy: {remedy}"
            )
    return ""


class Proxy:
    """HAProxy, as far as it can be asked and told."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._child: asyncio.subprocess.Process | None = None  # the master, if it was started here

    async def runs(self) -> bool:
        """Return whether HAProxy runs.

        Raises ProxyError if it does and its master does not answer: a second one must not start.
        """
        if await self._master() is not None:
            return True
        if (child := self._child_alive()) is not None:
            raise ProxyError(
                "HAProxy runs, but its master does not answer", where=str(self._files.master),
                remedy="it is asked again in a moment; see its log, and if it hangs, "
                f"kill -KILL {child}",
            )  # fmt: skip
        return False

    async def start(self) -> None:
        """Start HAProxy with the written configuration, in a session of its own.

        Raises ProxyError if it does not come up.
        """
        loop = asyncio.get_running_loop()
        child = self._child = await asyncio.create_subprocess_exec(
            program(), "-W", "-f", str(self._files.config),
            "-S", f"{self._files.master},mode,600",
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until_s = loop.time() + _START_S
        while loop.time() < until_s and child.returncode is None:
            with contextlib.suppress(ProxyError):
                await self.ask("show version")  # the worker, which is there before its master
                if await self._master() is not None:
                    return
            await asyncio.sleep(0.05)
        raise ProxyError(
            "HAProxy does not come up", where=str(self._files.config),
            remedy="its reason is in the log; is a port of `listen` taken, or its address "
            "missing on this host (sysctl net.ipv4.ip_nonlocal_bind=1)?",
        )  # fmt: skip

    async def stop(self, patience_s: float) -> None:
        """End HAProxy: it takes no new connections, and open requests have ``patience_s``."""
        master = self._child_alive() or await self._master()
        if master is None:
            return
        loop = asyncio.get_running_loop()
        for number, patience in ((signal.SIGUSR1, patience_s), (signal.SIGTERM, _START_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, number)
            until_s = loop.time() + patience
            while loop.time() < until_s:
                if not _is_alive(master):
                    return
                await asyncio.sleep(0.05)

    def _child_alive(self) -> int | None:
        """Return the process id of the master that was started here, while it lives."""
        child = self._child
        return child.pid if child is not None and child.returncode is None else None

    async def _master(self) -> int | None:
        """Return the process id of the master; None: none answers. Raises ProxyError."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + (_SILENT_S if self._files.master.exists() else 0)
        while True:
            try:
                said = await self._ask(self._files.master, "show proc")
                found = re.search(r"^(\d+)\s+master\b", said, re.MULTILINE)
                return None if found is None else int(found[1])
            except ProxyAbsentError:
                if loop.time() >= until_s:
                    return None
            except ProxyError:
                if loop.time() >= until_s:
                    raise
            await asyncio.sleep(0.05)

    async def leaving(self) -> tuple[int, ...]:
        """Return the connections of each worker that a reload has replaced, and that answers its
        open requests to their end. One that does not say how many it has is left out.
        """
        try:
            said = await self._ask(self._files.master, "show proc")
        except ProxyError:
            return ()
        _, _, old = said.partition("# old workers")
        found = []
        for pid in re.findall(r"^(\d+)\s+worker\b", old, re.MULTILINE):
            with contextlib.suppress(ProxyError):  # it has ended meanwhile, or hangs
                told = await self._ask(self._files.master, f"@!{pid} show info", _OLD_ANSWER_S)
                if (open_ := re.search(r"^CurrConns: (\d+)", told, re.MULTILINE)) is not None:
                    found.append(int(open_[1]))
        return tuple(found)

    async def reload(self) -> None:
        """Put a new worker in the place of the present one. Raises ProxyError if it refuses."""
        said = await self._ask(self._files.master, "reload", _RELOAD_S)
        if "Success=1" not in said:
            raise ProxyError(
                f"HAProxy refuses the reload: {_alerts(said)}", where=str(self._files.config),
                remedy="the worker of before goes on",
            )  # fmt: skip

    async def ask(self, command: str) -> str:
        """Return what the worker answers. Raises ProxyError."""
        return await self._ask(self._files.worker, command)

    async def exchange(self, path: Path, pem: bytes) -> None:
        """Serve another certificate in the place of one that is served; connections go on.

        Raises ProxyError; the one of before is served on, then.
        """
        if len(pem) > _PEM_BYTES:
            raise ProxyError("the certificate is too long for an exchange", where=str(path))
        text = "\n".join(line for line in pem.decode("ascii").splitlines() if line.strip())
        said = await self.ask(f"set ssl cert {path} <<\n{text}\n")
        if "ransaction" not in said:
            raise ProxyError(f"HAProxy refuses a certificate: {said.strip()}", where=str(path))
        said = await self.ask(f"commit ssl cert {path}")
        if "Success" not in said:
            await self.ask(f"abort ssl cert {path}")
            raise ProxyError(f"HAProxy refuses a certificate: {said.strip()}", where=str(path))

    async def fill(self, path: Path, entries: Mapping[str, str]) -> None:
        """Put other entries into a map, all at once. Raises ProxyError."""
        said = await self.ask(f"prepare map {path}")
        found = re.search(r"New version created: (\d+)", said)
        if found is None:
            raise ProxyError(f"HAProxy refuses a map: {said.strip()}", where=str(path))
        version, lines = found[1], [f"{key} {value}" for key, value in entries.items()]
        for at in range(0, len(lines), _MAP_LINES):
            block = "\n".join(lines[at : at + _MAP_LINES])
            said = await self.ask(f"add map @{version} {path} <<\n{block}\n")
            if said.strip():
                raise ProxyError(f"HAProxy refuses a map: {said.strip()}", where=str(path))
        said = await self.ask(f"commit map @{version} {path}")
        if said.strip():
            raise ProxyError(f"HAProxy refuses a map: {said.strip()}", where=str(path))

    async def counters(self) -> list[dict[str, str]]:
        """Return the rows of ``show stat``, without those of servers. Raises ProxyError."""
        text = (await self.ask("show stat -1 3 -1")).lstrip("# ")
        return list(csv.DictReader(line for line in text.splitlines() if line.strip()))

    async def usage(self) -> dict[str, dict[str, int]]:
        """Return for each key or client what the limits count. Raises ProxyError."""
        found = {}
        for line in (await self.ask("show table clients")).splitlines():
            fields = dict(re.findall(r"(\w+)(?:\(\d+\))?=(\S+)", line))
            if "key" in fields:
                found[fields["key"]] = {
                    "requests": int(fields.get("http_req_rate", 0)),
                    "tokens": int(fields.get("gpc0_rate", 0)),
                    "concurrent": int(fields.get("conn_cur", 0)),
                }
        return found

    async def _ask(self, path: Path, command: str, patience_s: float = _ANSWER_S) -> str:
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
                try:
                    writer.write(command.encode() + b"\n")
                    await writer.drain()
                    writer.write_eof()  # the master goes on listening until then
                    said = await reader.read(-1)
                finally:
                    writer.close()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ProxyAbsentError(
                "HAProxy is not running", where=str(path), remedy="see its log"
            ) from error
        except (OSError, TimeoutError) as error:
            raise ProxyError(
                f"HAProxy does not answer: {getattr(error, 'strerror', None) or 'too slow'}",
                where=str(path), remedy="it is asked again in a moment; see its log",
            ) from error  # fmt: skip
        return said.decode("utf-8", "replace")


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"
