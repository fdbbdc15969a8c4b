"""Watches, on a balancer, whether the servers of a service accept SYN cookies.

If one of them does not, clients are challenged instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from agent.companion import page
from agent.companion.keys import Keys, packed, read_keys, wall_ahead_ns
from agent.dataplane.program import Dataplane
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.model import Address, BackendRef, Config, Service
from agent.network.netlink import Netlink
from agent.state.eligibility import Eligibility
from agent.telemetry.fetch import failure_words

log = get_logger()

EVERY_S = 2.0
TIMEOUT_S = 2.0
_UNREAD = "the key file has not been read yet"
AT_ONCE = 32
MISSES = 3  # requests in a row without an answer until a companion counts as gone
INTERNET_MTU = 1500
# After a start, a service that gave cookies goes on for this long, or until its companions answer.
ADOPTED_S = 10.0


@dataclass(frozen=True, slots=True)
class _Heard:
    """An answer. ``apart_s``: how far the companion's clock is ahead of ours, at least."""

    status: page.Status
    apart_s: float

    @property
    def verdict(self) -> tuple[object, ...]:
        """The parts that decide whether cookies are given: not the time while it is right."""
        status, is_apart = self.status, abs(self.apart_s) > page.CLOCKS_APART_S
        return status.keys, status.vips, status.problem, is_apart


type Answer = _Heard | str  # or why there is no answer


class Companions:
    """Our key, and the companions of all servers of services with ``syn_cookies``."""

    def __init__(self, dataplane: Dataplane, wake: Callable[[], None]) -> None:
        self._dataplane = dataplane
        self._wake = wake
        self._config: Config | None = None
        self._keys: Keys | None = None
        self._key_problem = _UNREAD
        self._answers: dict[Address, Answer] = {}
        self._misses: dict[Address, int] = {}
        self._adopted: frozenset[str] = frozenset()
        self._adopted_until = 0.0
        self._problems: dict[str, str] = {}  # by service: why it gives no cookies
        self._changed = asyncio.Event()

    def adopt(self, services: frozenset[str]) -> None:
        """Let services that gave cookies when the agent started go on with that for a while."""
        self._adopted = services
        self._adopted_until = time.monotonic() + ADOPTED_S

    def aim(self, config: Config) -> None:
        """Watch the servers of this configuration."""
        self._config = config
        wanted = self._addresses()
        self._answers = {a: answer for a, answer in self._answers.items() if a in wanted}
        self._misses = {a: misses for a, misses in self._misses.items() if a in wanted}
        self._changed.set()

    def problem(self, service: Service, found: Mapping[BackendRef, Eligibility]) -> str:
        """Return why clients of a service are challenged instead; empty: it can give cookies."""
        if self._keys is None:
            return self._key_problem or _UNREAD
        return "; ".join(
            f"{backend.name}: {why}"
            for backend in service.backends
            if found[BackendRef(service.name, backend.name)].usable
            and (why := self._lacks(backend.address, service.key.vip))
        )

    def problem_of(self, service: Service) -> str:
        """Return the problem of a service as of the last pass."""
        return self._problems.get(service.name, "") if service.gives_cookies else ""

    def key_names(self, service: Service) -> tuple[str, ...]:
        """Return the names of our keys for a service's cookies, the signing key first."""
        return self._keys.names if self._keys and service.gives_cookies else ()

    def _lacks(self, address: Address, vip: Address) -> str:
        answer = self._answers.get(address, "its companion has not been asked yet")
        if isinstance(answer, str):
            return answer
        signing = self._keys.names[0] if self._keys else ""
        return page.lacking(answer.status, signing, vip, answer.apart_s)

    def ready(self, config: Config, found: Mapping[BackendRef, Eligibility]) -> frozenset[str]:
        """Return the services whose usable servers all accept our cookies."""
        adopted = self._adopted if time.monotonic() < self._adopted_until else frozenset()
        ready = set()
        for service in config.services:
            if not service.gives_cookies:
                continue
            problem = self.problem(service, found)
            if service.name in adopted and problem and not self._all_asked(service):
                problem = ""
            self._set_problem(service.name, problem)
            if not problem:
                ready.add(service.name)
        return frozenset(ready)

    def _all_asked(self, service: Service) -> bool:
        return all(backend.address in self._answers for backend in service.backends)

    def _set_problem(self, name: str, problem: str) -> None:
        if self._problems.get(name) == problem:
            return
        if problem:
            log.warning("no SYN cookies: clients are challenged", service=name, problem=problem)
        elif name in self._problems:
            log.info("SYN cookies can be given", service=name)
        self._problems[name] = problem

    async def run(self) -> None:
        """Ask all companions every two seconds, while there are any to ask."""
        while True:
            try:
                await self._round()
            except Exception:  # this task's root
                log.exception("asking companions broke")
            if self._addresses():
                await asyncio.sleep(EVERY_S)
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _round(self) -> None:
        config = self._config
        wanted = self._addresses()
        if config is None or not wanted:
            return
        before = (self._keys, dict(self._answers))
        keys = self._read_keys(config)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        # The connector's limit is not used, because the wait for a turn would count towards the
        # timeout, and dead servers would make others look dead too.
        turns = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def ask(address: Address) -> Answer:
                async with turns:
                    return await self._ask(session, address, config.companion_port)

            answers = await asyncio.gather(*map(ask, wanted))
        mtu = await _mtu(config.interface)
        # All at once, because a pass may come while we ask: a server that took a new key since it
        # was last asked would seem to lack it.
        self._keys = keys
        for address, answer in zip(wanted, answers, strict=True):
            self._take(address, answer)
        row = packed(keys, wall_ahead_ns(), mtu)
        self._dataplane.tables.cookie_secret.view("u1")[:] = bytearray(row)
        if _verdicts(before[1]) != _verdicts(self._answers) or before[0] != self._keys:
            self._wake()

    def _read_keys(self, config: Config) -> Keys | None:
        """Return the keys in the file, or the last good ones, as it may be half written."""
        path, keys, problem = config.companion_key_file, self._keys, ""
        try:
            keys = read_keys(path) if path else None
        except SteelyardError as error:
            problem = str(error)
        if problem and problem != self._key_problem:
            log.error("the key of SYN cookies", problem=problem)
        self._key_problem = problem
        return keys

    async def _ask(self, session: aiohttp.ClientSession, address: Address, port: int) -> Answer:
        host = f"[{address}]" if address.version == 6 else str(address)
        sent_s = time.time()
        try:
            url = f"http://{host}:{port}{page.PATH}"
            async with session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    return f"port {port} answers {response.status}, so it is not a companion"
                status = page.parsed(await _body(response))
                return _Heard(status, _apart_s(status.time_s, sent_s, time.time()))
        except ValueError:
            return f"what answers at port {port} is not a companion"
        except TimeoutError:
            return f"no companion answers at port {port}: no answer in {TIMEOUT_S:g} s"
        except aiohttp.ClientError as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            return f"no companion answers at port {port}: {failure_words(cause)}"

    def _take(self, address: Address, answer: Answer) -> None:
        if isinstance(answer, _Heard):
            self._misses[address] = 0
            self._answers[address] = answer
            return
        misses = self._misses[address] = self._misses.get(address, MISSES - 1) + 1
        if misses >= MISSES:
            self._answers[address] = answer

    def _addresses(self) -> list[Address]:
        if self._config is None:
            return []
        return list(
            dict.fromkeys(
                backend.address
                for service in self._config.services
                if service.gives_cookies
                for backend in service.backends
            )
        )


def _apart_s(theirs_s: float, sent_s: float, came_s: float) -> float:
    """Return how far a clock is ahead of ours at least (negative: behind).

    It was read between these two times of ours. Either host may have stood still meanwhile, so a
    time between them is no difference.
    """
    return theirs_s - min(max(theirs_s, sent_s), came_s)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Return the whole body; raises ValueError if it is longer than any companion's page."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > page.MOST_BYTES:
            raise ValueError("too long")
    return bytes(body)


def _verdicts(answers: Mapping[Address, Answer]) -> dict[Address, object]:
    return {
        address: answer if isinstance(answer, str) else answer.verdict
        for address, answer in answers.items()
    }


async def _mtu(interface: str) -> int:
    """Return the MTU of an interface, at most ``INTERNET_MTU``; 0 if there is no such interface."""
    async with Netlink() as netlink:
        link = await netlink.link(interface)
    return min(link.mtu, INTERNET_MTU) if link else 0
