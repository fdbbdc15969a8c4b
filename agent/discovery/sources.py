"""Asks a source of backends once: a file, a page by HTTP, DNS, or the API server of Kubernetes.

Whatever goes wrong with a source is a DiscoveryError. What an answer means is decided by
``agent.discovery.answer``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from agent.discovery.answer import (
    Answer,
    SrvRecord,
    from_addresses,
    from_srv,
    parse_targets,
    record_type,
)
from agent.discovery.groups import MOST_BYTES, too_long
from agent.discovery.kubernetes import answers
from agent.discovery.reading import bearer, http_session, http_words, read_file, read_token
from agent.errors import DiscoveryError
from agent.health.outcome import duration
from agent.model import Discover

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.name
    import dns.resolver

MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 1 << 16
_NAMES_AT_ONCE = 16

type Stamp = tuple[int, ...]


async def ask(discover: Discover, family: int) -> Answer:
    """Ask the source once. ``family``, 4 or 6, is the IP version of the addresses to ask for.

    A DNS name is taken as absolute: the search list of /etc/resolv.conf is not applied.
    Raises DiscoveryError if there is no usable answer.
    """
    where = discover.source
    if discover.file is not None:
        return await asyncio.to_thread(_from_file, discover.file, discover, where)
    if discover.http is not None:
        body = await _ask_http(discover, discover.http, where)
        return await asyncio.to_thread(_parsed, body, discover, where)
    if discover.dns is not None:
        return await _ask_dns(discover, discover.dns, family, where)
    if discover.kubernetes is not None:
        async with aclosing(answers(discover, family)) as found:
            return await anext(found)
    raise DiscoveryError("no source is configured", remedy="set file, http, dns or kubernetes")


# -- a file


def stamp(path: Path) -> Stamp | None:
    """Return a value that changes when the file, or the file behind its links, changes.

    None: it cannot be found. The value includes the inode's change time, because some tools set
    the modification time themselves.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def _from_file(path: Path, discover: Discover, where: str) -> Answer:
    body = read_file(path, MOST_BYTES, "the file", where)
    if len(body) > MOST_BYTES:
        too_long(where)
    return _parsed(body, discover, where)


def _parsed(body: bytes, discover: Discover, where: str) -> Answer:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise DiscoveryError(
            f"the answer is not UTF-8 (byte {error.start + 1})",
            where=where,
            remedy="save it as UTF-8 text",
        ) from error
    return parse_targets(text, where, discover.match)


# -- HTTP


async def _ask_http(discover: Discover, address: str, where: str) -> bytes:
    remedy = "check the URL, and that the source answers: curl -v URL"
    try:
        async with asyncio.timeout(discover.timeout_s):
            return await _fetch(discover, URL(address), where)
    except TimeoutError as error:
        message = f"no complete answer within {duration(discover.timeout_s)}"
        raise DiscoveryError(message, where=where, remedy=remedy) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise DiscoveryError(http_words(error), where=where, remedy=remedy) from error


async def _fetch(discover: Discover, url: URL, where: str) -> bytes:
    """Return the body of the answer.

    Redirects are followed here, because the token may only go to the origin of the first URL.
    """
    async with http_session() as session:
        origin, token = url.origin(), await _token(discover.token_file, where)
        for _ in range(MOST_REDIRECTS + 1):
            headers = token if url.origin() == origin else {}
            tls = await _tls(discover.ca_file, where) if url.scheme == "https" else True
            async with session.get(
                url, headers=headers, ssl=tls, allow_redirects=False
            ) as response:
                if response.status not in _REDIRECTS:
                    return await _body(response, where)
                url = _redirected(url, response, where)
    raise DiscoveryError(
        f"more than {MOST_REDIRECTS} redirects",
        where=where,
        remedy="set 'http' to the URL that they lead to",
    )


async def _token(path: Path | None, where: str) -> dict[str, str]:
    """Return the header that holds the token. It is read each time, because tokens are rotated."""
    if path is None:
        return {}
    return bearer(await asyncio.to_thread(read_token, path, where))


async def _tls(ca_file: Path | None, where: str) -> ssl.SSLContext:
    """Return a context with the CA certificates as they are now; they may have been renewed."""
    try:
        return await asyncio.to_thread(ssl.create_default_context, cafile=ca_file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, ssl.SSLError):
            reason = "it holds no valid certificate"
        raise DiscoveryError(
            f"the CA file {ca_file or 'of the system'} cannot be used: {reason}",
            where=where,
            remedy="name a readable file that holds the CA's certificate in PEM format",
        ) from error


def _redirected(url: URL, response: aiohttp.ClientResponse, where: str) -> URL:
    location = response.headers.get("Location")
    if not location:
        raise DiscoveryError(
            f"HTTP {response.status} without a Location", where=where, remedy="correct the source"
        )
    to = url.join(URL(location))
    if to.scheme not in ("http", "https") or (url.scheme == "https" and to.scheme != "https"):
        raise DiscoveryError(
            f"it redirects from {url.scheme} to {to.scheme}",
            where=where,
            remedy="only a redirect to https, or from http to http, is followed",
        )
    return to


async def _body(response: aiohttp.ClientResponse, where: str) -> bytes:
    if response.status != 200:
        denied = response.status in (401, 403)
        raise DiscoveryError(
            f"HTTP status {response.status} instead of 200",
            where=where,
            remedy="check 'token_file'" if denied else "the source's own log says why",
        )
    encoding = response.headers.get("Content-Encoding") or "identity"
    if encoding.lower() != "identity":
        raise DiscoveryError(
            f"the answer is compressed ({encoding[:20]}), although that was not accepted",
            where=where,
            remedy="switch compression off at the source",
        )
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        body += piece
        if len(body) > MOST_BYTES:
            too_long(where)
    return bytes(body)


# -- DNS


class _NoRecordsError(Exception):
    """A name server has answered that there are no such records."""


async def _ask_dns(discover: Discover, name: str, family: int, where: str) -> Answer:
    import dns.exception
    import dns.name

    remedy = "check the name, and 'server' or /etc/resolv.conf: dig NAME TYPE"
    try:
        async with asyncio.timeout(discover.timeout_s):
            asked, resolver = dns.name.from_text(name), _resolver(discover)
            if name.startswith("_"):
                return await _ask_srv(resolver, asked, family, where)
            found = await _look_up(resolver, asked, record_type(family))
            ttl_s = found.chaining_result.minimum_ttl
            return from_addresses([rdata.address for rdata in found], discover.port, where, ttl_s)
    except (TimeoutError, dns.exception.Timeout) as error:
        message = f"no answer from a name server within {duration(discover.timeout_s)}"
        raise DiscoveryError(message, where=where, remedy=remedy) from error
    except (_NoRecordsError, dns.exception.DNSException, OSError, ValueError) as error:
        raise DiscoveryError(_dns_words(error), where=where, remedy=remedy) from error


def _resolver(discover: Discover) -> dns.asyncresolver.Resolver:
    import dns.asyncresolver
    import dns.nameserver

    resolver = dns.asyncresolver.Resolver(configure=discover.server is None)
    if discover.server is not None:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*discover.server)]
    resolver.lifetime = discover.timeout_s
    return resolver


async def _look_up(
    resolver: dns.asyncresolver.Resolver, name: dns.name.Name, kind: str
) -> dns.resolver.Answer:
    """Return the records of a name. The resolver repeats a truncated query over TCP."""
    import dns.resolver

    try:
        return await resolver.resolve(name, kind)
    except dns.resolver.NXDOMAIN as error:
        raise _NoRecordsError(f"the name {_name_text(name)} does not exist") from error
    except dns.resolver.NoAnswer as error:
        raise _NoRecordsError(f"the name {_name_text(name)} has no {kind} records") from error


async def _ask_srv(
    resolver: dns.asyncresolver.Resolver, name: dns.name.Name, family: int, where: str
) -> Answer:
    """Ask for SRV records, and for target addresses that the additional section lacks."""
    import dns.name
    import dns.rdatatype

    answer = await _look_up(resolver, name, "SRV")
    kind, turns = record_type(family), asyncio.Semaphore(_NAMES_AT_ONCE)
    targets = {record.target for record in answer if record.target != dns.name.root}
    ttls = [answer.chaining_result.minimum_ttl]
    addresses: dict[str, list[str]] = {}

    def learn(target: dns.name.Name, records: Iterable[Any], ttl_s: int) -> None:
        addresses[_name_text(target)] = [record.address for record in records]
        ttls.append(ttl_s)

    async def complete(target: dns.name.Name) -> None:
        async with turns:
            with suppress(_NoRecordsError):
                found = await _look_up(resolver, target, kind)
                learn(target, found, found.chaining_result.minimum_ttl)

    for rrset in answer.response.additional:
        if rrset.name in targets and dns.rdatatype.to_text(rrset.rdtype) == kind:
            targets.remove(rrset.name)
            learn(rrset.name, rrset, rrset.ttl)
    # Without the targets that could not be looked up, the answer would remove their backends.
    for failure in await asyncio.gather(*map(complete, targets), return_exceptions=True):
        if failure is not None:
            raise failure
    records = [
        SrvRecord(record.priority, record.weight, record.port, _name_text(record.target))
        for record in answer
    ]
    return from_srv(records, addresses, family, where, min(ttls))


def _name_text(name: dns.name.Name) -> str:
    return name.canonicalize().to_text(omit_final_dot=True)


def _dns_words(error: Exception) -> str:
    import dns.resolver

    if not isinstance(error, dns.resolver.NoNameservers):
        return str(error)
    # Each entry holds a server, whether TCP was used, the port, and an error or the name of a code.
    reasons = {
        entry[3] if isinstance(entry[3], str) else str(entry[3]) or type(entry[3]).__name__
        for entry in error.kwargs["errors"]
    }
    return f"the name server cannot answer: {', '.join(sorted(reasons))}"
