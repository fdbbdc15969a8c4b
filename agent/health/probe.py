"""Probes one server once, on a short connection of its own, and describes the outcome."""

from __future__ import annotations

import ssl
import time

import aiohttp

from agent.health import outcome
from agent.health.patience import Patience
from agent.health.prober import KINDS, Prober, Server
from agent.health.rules import ProbeResult
from agent.health.talks import TALKS, FullError, Line
from agent.model import Address, CheckKind, HealthCheck

# These checks take the time of some work at the server, not of a round trip.
_WORKS = (CheckKind.COMPLETION, CheckKind.EXEC)


async def probe(
    check: HealthCheck, address: Address, default_port: int, patience: Patience
) -> ProbeResult:
    """Check ``address`` once, within the check's timeout, which ``patience`` may extend.

    Whatever the server or the network does is a result. NetworkError is raised only if this host
    could not ask at all (out of file descriptors, memory or ports).
    """
    if check.kind in KINDS:
        prober = Prober(patience)
        with prober.running():
            return await prober.ask(Server(check, address, default_port))
    port = check.port or default_port
    limit_s = check.answer_within_s if check.kind is CheckKind.COMPLETION else check.timeout_s
    started = time.monotonic()
    line = Line()

    def took_ms() -> float | None:
        return None if check.kind in _WORKS else (time.monotonic() - started) * 1000

    busy = False
    try:
        async with patience.timeout(limit_s) as wait:
            ok, detail = await TALKS[check.kind](check, address, port, line)
    except FullError as error:
        ok, detail, busy = False, str(error), True
    except TimeoutError:
        return outcome.unanswered(limit_s, wait.granted_s, line.is_connected(), took_ms())
    except ssl.SSLError as error:
        ok, detail = False, outcome.tls_words(error)
    except aiohttp.ServerDisconnectedError:
        ok, detail = False, "connection closed before an answer"
    except OSError as error:  # also aiohttp's ClientConnectorError and ClientOSError
        return outcome.failed(error, took_ms())
    except aiohttp.ClientError:
        ok, detail = False, "the answer is not HTTP"
    return ProbeResult(
        ok,
        detail,
        took_ms(),
        busy=busy,
        vague=line.vague,
        certificate_until=line.certificate_until,
    )
