"""Owns how etcd is reached: which member is asked, TLS, the user's token, and what errors mean.

A request goes to one member after the other, to each at most once, until one gives an answer. The
next request begins with the member that answered. The members are asked by etcd's JSON gateway,
which is part of etcd 3.4 and later.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp

from agent.discovery.reading import http_words
from agent.errors import (
    CompactedError,
    ConfigError,
    LeaseLostError,
    StoreError,
    UncertainError,
)
from agent.files import read_private
from agent.model import Etcd

CONNECT_S = 1.5  # for a connection: name, TCP and TLS
# For a member's answer. An election takes 1 to 2 s, and members hold requests for so long; what was
# sent to a leader just before it died is lost, and never answered.
ANSWER_S = 2.5
CALL_S = 6.0  # for a request, over all members
MOST_BYTES = 64 << 20  # of an answer, and of one message of a watch
_LARGE = 1 << 16  # bytes; decoding more than this would hold up the event loop
_PIECE = 1 << 16
_MOST_PASSWORD_BYTES = 4096
_MOST_SHOWN = 200  # characters of a message of etcd
# With these codes of gRPC, the cause lies with the member or its connections to the others:
# cancelled, unknown, deadline exceeded, internal, unavailable.
_MEMBER_CODES = frozenset((1, 2, 4, 13, 14))
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
_NO_LEADER = "no leader"  # etcd says so before it proposes anything to the other members
_LEASE_LOST = "requested lease not found"
# What an answer raises that has another shape than those of etcd.
_MISFITS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

_QUORUM = "check that most of etcd's members run and reach each other: etcdctl endpoint health"
_REMEDIES = {
    "CommonName of client": (
        "issue a client certificate without a CN, or use 'user' and 'password_file' instead of it"
    ),
    "permission denied": (
        "grant the role of our user the prefix:"
        " etcdctl role grant-permission ROLE readwrite PREFIX --prefix"
    ),
    "database space exceeded": (
        "free space in etcd: etcdctl compact, etcdctl defrag, then etcdctl alarm disarm"
    ),
    "user name is empty": "set 'user' and 'password_file': etcd has authentication enabled",
    "authentication failed": "correct 'user', or the password in 'password_file'",
    "authentication is not enabled": (
        "enable it: etcdctl auth enable; or remove 'user' and 'password_file'"
    ),
    "request is too large": "make the change smaller, or raise etcd's --max-request-bytes",
    "received message larger than max": (
        "make the change smaller, or raise etcd's --max-request-bytes"
    ),
    "too many operations": "make the change smaller, or raise etcd's --max-txn-ops",
    "too many requests": "find what else writes to etcd so often",
    "bad certificate": "etcd's own certificate must be valid for clients too (clientAuth)",
    _NO_LEADER: _QUORUM,
    "timed out": _QUORUM,
    "deadline exceeded": _QUORUM,
    "leader changed": _QUORUM,
}

type Json = dict[str, Any]


class _MemberError(Exception):
    """One member has no usable answer, and another may have one.

    ``was_sent``: the member may have received the request.
    """

    def __init__(self, problem: str, remedy: str, *, was_sent: bool = True) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.was_sent = problem, remedy, was_sent


class _StaleTokenError(Exception):
    """etcd no longer accepts our token."""


class Gateway:
    """Sends requests to the members of one etcd cluster; ``first`` is the member to begin with."""

    def __init__(self, etcd: Etcd, first: int = 0) -> None:
        self._etcd = etcd
        self._turn = first
        self._tls = _Tls(etcd)
        self._token: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def call[T](
        self, path: str, body: Json, read: Callable[[Json], T], *, is_repeatable: bool = True
    ) -> T:
        """Return what ``read`` makes of the first answer.

        Raises StoreError if there is none. A request that is not repeatable goes to no second
        member once one may have received it, and is an UncertainError then.
        """

        async def ask(member: str) -> T:
            async with await self._post(member, path, body) as response:
                return await _result(await _body(response, member), member, read)

        return await self._first(ask, is_repeatable=is_repeatable)

    async def watch[T](self, body: Json, read: Callable[[Json], T]) -> AsyncGenerator[T]:
        """Yield what ``read`` makes of the messages of a watch.

        Raises StoreError when it ends, and CompactedError if etcd no longer has its beginning.
        """

        async def begin(member: str) -> tuple[str, aiohttp.ClientResponse, AsyncGenerator[bytes]]:
            # Without the header, a member that the others cannot reach would stay silent.
            headers = {"Grpc-Metadata-hasleader": "true"}
            response = await self._post(member, "watch", body, headers)
            try:
                lines = _lines(response, member)
                await _next_message(lines, member, lambda created: created)
            except BaseException:
                response.close()
                raise
            return member, response, lines

        member, response, lines = await self._first(begin)
        async with response, aclosing(lines):
            try:
                while True:
                    yield await _next_message(lines, member, read)
            except _MemberError as error:
                self._skip(member)
                raise _store_error(member, error) from error
            except _StaleTokenError as error:
                raise StoreError(
                    "etcd has ended the watch, because our token is no longer valid",
                    where=member,
                    remedy="nothing: the next request logs in again",
                ) from error
            except (aiohttp.ClientError, OSError) as error:
                self._skip(member)
                raise _store_error(member, _told(error, member)) from error

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- members

    async def _first[T](
        self, ask: Callable[[str], Awaitable[T]], *, is_repeatable: bool = True
    ) -> T:
        """Return the answer of the first member that has one."""
        clock = asyncio.get_running_loop().time
        end, failures = clock() + CALL_S, list[tuple[str, _MemberError]]()
        members = self._etcd.endpoints
        turn = self._turn
        for member in (members[(turn + place) % len(members)] for place in range(len(members))):
            left_s = end - clock()
            if left_s <= 0:
                break
            try:
                return await self._ask(member, ask, min(ANSWER_S, left_s))
            except _MemberError as error:
                self._skip(member)
                if error.was_sent and not is_repeatable:
                    raise UncertainError(
                        f"it is not known whether the change was written: {error.problem}",
                        where=member,
                        remedy="look whether it was written before you repeat it",
                    ) from error
                failures.append((member, error))
        member, last = failures.pop()
        raise _store_error(member, last, failures) from last

    def _skip(self, member: str) -> None:
        """Begin the next request with the member after this one."""
        self._turn = self._etcd.endpoints.index(member) + 1

    async def _ask[T](self, member: str, ask: Callable[[str], Awaitable[T]], limit_s: float) -> T:
        """Return the member's answer; log in if there is no token, or etcd has forgotten it."""
        is_sending = False
        try:
            async with asyncio.timeout(limit_s):
                for _ in range(2):
                    token = self._token = await self._logged_in(member)
                    is_sending = True
                    try:
                        return await ask(member)
                    except _StaleTokenError:
                        is_sending = False
                        if self._token == token:  # another request may have renewed it
                            self._token = None
        except (aiohttp.ClientError, OSError) as error:
            raise _told(error, member, is_sending=is_sending) from error
        raise StoreError(
            "etcd accepts our password, but not the token that it has issued for it",
            where=member,
            remedy="check that all members have the same --auth-token",
        )

    # -- requests

    async def _post(
        self, member: str, path: str, body: Json, headers: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """Return a response with status 200; its body is still to be read."""
        if self._session is None:
            self._session = _session()
        response = await self._session.post(
            f"{member.rstrip('/')}/v3/{path}",
            json=body,
            headers={**(headers or {}), **({"Authorization": self._token} if self._token else {})},
            ssl=await self._tls.context(member),
            allow_redirects=False,
        )
        if response.status == 200:
            return response
        async with response:
            if 300 <= response.status < 400:
                raise _MemberError(
                    f"it redirects to another address (HTTP status {response.status})",
                    "set the endpoint to the URL at which etcd itself listens for clients",
                )
            raise _refusal(response.status, await _body(response, member), member)

    async def _logged_in(self, member: str) -> str | None:
        """Return the token of our user; None if no user is set."""
        user, path = self._etcd.user, self._etcd.password_file
        if user is None or path is None or self._token is not None:
            return self._token
        password = await asyncio.to_thread(_password, path, member)
        body = {"name": user, "password": password}
        async with await self._post(member, "auth/authenticate", body) as response:
            return await _result(
                await _body(response, member), member, lambda answer: str(answer["token"])
            )


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=aiohttp.ThreadedResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_connect=None),
        auto_decompress=False,
        headers={"User-Agent": "steelyard", "Accept-Encoding": "identity"},
    )


def _password(path: Path, member: str) -> str:
    """Return the first line of the password file. It is read each time, because it may change."""
    make = f"`(umask 077; cat > {path})`, then type the password and Ctrl-D"
    try:
        content = read_private(path, "the password for etcd", _MOST_PASSWORD_BYTES, make=make)
    except ConfigError as error:
        message = f"{error.message}: {path}"
        raise StoreError(message, where=member, remedy=error.remedy) from error
    password = content.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")
    if not password:
        raise StoreError(f"the password file {path} is empty", where=member, remedy=make)
    return password


# -- TLS


class _Tls:
    """Makes the TLS context, and makes it again when one of its files has changed."""

    def __init__(self, etcd: Etcd) -> None:
        self._ca, self._certificate, self._key = etcd.ca_file, etcd.cert_file, etcd.key_file
        self._stamps: object = None
        self._context: ssl.SSLContext | None = None

    async def context(self, member: str) -> ssl.SSLContext | bool:
        """Return the context for a member's URL; True, aiohttp's default, if it has no TLS."""
        if not member.startswith("https:"):
            return True
        stamps = [_stamp(path) for path in (self._ca, self._certificate, self._key)]
        if self._context is None or stamps != self._stamps:
            self._context = await asyncio.to_thread(self._made, member)
            self._stamps = stamps
        return self._context

    def _made(self, member: str) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"the CA file {self._ca or 'of the system'} cannot be used: {_file_words(error)}",
                where=member,
                remedy="name a readable file that holds the CA's certificate in PEM format",
            ) from error
        # Python 3.13 refuses CA certificates without a key identifier, and many are made so.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self._certificate is not None:
            try:
                # Without a password, OpenSSL would ask at the terminal if the key is encrypted.
                context.load_cert_chain(self._certificate, self._key, password="")
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"the client certificate {self._certificate} with the key"
                    f" {self._key or self._certificate} cannot be used: {_file_words(error)}",
                    where=member,
                    remedy="name a certificate and its key in PEM format, without a password",
                ) from error
        return context


def _file_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return "its content is not valid, or certificate and key do not belong together"
    return (error.strerror or str(error)).lower()


def _stamp(path: Path | None) -> object:
    """Return what changes whenever the file is replaced or written."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return found and (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


# -- answers


async def _body(response: aiohttp.ClientResponse, member: str) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(_PIECE):
        body += piece
        if len(body) > MOST_BYTES:
            raise _too_long("the answer", member)
    return bytes(body)


def _too_long(what: str, member: str) -> StoreError:
    return StoreError(
        f"{what} is longer than {MOST_BYTES >> 20} MiB",
        where=member,
        remedy="check that the endpoint is etcd, and what is stored below the prefix",
    )


async def _result[T](body: bytes, member: str, read: Callable[[Json], T]) -> T:
    """Return what ``read`` makes of a complete answer, or of one message of a stream."""
    if len(body) > _LARGE:
        return await asyncio.to_thread(_understood, body, member, read)
    return _understood(body, member, read)


def _understood[T](body: bytes, member: str, read: Callable[[Json], T]) -> T:
    try:
        answer = json.loads(body)
        if "error" in answer:
            raise _refusal(200, body, member)
        result = answer.get("result", answer)
        if result.get("canceled"):
            raise _cancellation(result, member)
        result["header"].get("revision")
        return read(result)
    except _MISFITS as error:
        raise _MemberError(
            "it answers, but not as etcd does", "check that the endpoint is a client URL of etcd"
        ) from error


async def _lines(response: aiohttp.ClientResponse, member: str) -> AsyncGenerator[bytes]:
    """Yield the lines of a watch; an incomplete last one is dropped."""
    pieces, size = list[bytes](), 0  # of the line that is not complete yet
    async for received in response.content.iter_any():
        *ends, beginning = received.split(b"\n")
        for end in ends:
            yield b"".join((*pieces, end))
            pieces, size = [], 0
        pieces.append(beginning)
        size += len(beginning)
        if size > MOST_BYTES:
            raise _too_long("a message of the watch", member)


async def _next_message[T](
    lines: AsyncIterator[bytes], member: str, read: Callable[[Json], T]
) -> T:
    async for line in lines:
        if line.strip():
            return await _result(line, member, read)
    raise _MemberError("it has ended the watch", _reach(member))


# -- errors


def _refusal(status: int, body: bytes, member: str) -> Exception:
    """Return what an answer means that is not a result."""
    try:
        answer = json.loads(body)
        error = answer["error"] if isinstance(answer.get("error"), dict) else answer
        code, message = error.get("code", error.get("grpc_code")), error["message"]
        if isinstance(code, int) and isinstance(message, str):
            return _etcd_error(code, message, member)
    except _MISFITS:
        pass
    message = body[:_MOST_SHOWN].decode("utf-8", "replace").strip()
    if message.startswith("CommonName of client"):  # etcd sends this as plain text
        return _etcd_error(None, message, member)
    return _MemberError(
        f"it answers with HTTP status {status}, and not as etcd does",
        "check that the endpoint is a client URL of etcd, and not of a proxy or another program",
    )


def _cancellation(result: Json, member: str) -> Exception:
    """Return why etcd has ended a watch."""
    if oldest := int(result.get("compact_revision", 0)):
        return CompactedError(
            f"etcd has compacted its history up to revision {oldest}",
            where=member,
            remedy="nothing: what is stored now is read instead",
        )
    reason = str(result.get("cancel_reason", "")).rpartition("desc = ")[2]
    return _etcd_error(None, reason or "it has ended the watch", member)


def _etcd_error(code: int | None, message: str, member: str) -> Exception:
    """Return what an error in etcd's own words means; ``code``: of gRPC, None: not known."""
    if any(words in message for words in _STALE_TOKEN):
        return _StaleTokenError(message)
    text = message.removeprefix("etcdserver: ")[:_MOST_SHOWN]
    problem = f"etcd says: {text if text.isprintable() else repr(text)}"
    if _LEASE_LOST in message:
        return LeaseLostError(problem, where=member, remedy="grant a new lease")
    remedy = next((each for words, each in _REMEDIES.items() if words in message), "")
    if code in _MEMBER_CODES or _NO_LEADER in message:
        remedy = remedy or "etcd's own log says why"
        return _MemberError(problem, remedy, was_sent=_NO_LEADER not in message)
    return StoreError(problem, where=member, remedy=remedy or "etcd's own log says why")


def _told(error: Exception, member: str, *, is_sending: bool = True) -> _MemberError:
    """Return an error of the network, or the end of a time limit, in words."""
    problem, remedy = http_words(error), _reach(member)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        problem = f"no connection within {CONNECT_S:g} s"
    elif isinstance(error, TimeoutError):
        problem = "no complete answer in time"
    elif isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        remedy = "check 'ca_file', 'cert_file' and 'key_file', and the names in etcd's certificate"
    is_unsent = isinstance(
        error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
    )
    return _MemberError(problem, remedy, was_sent=is_sending and not is_unsent)


def _reach(member: str) -> str:
    return (
        "check that etcd runs there and can be reached from here:"
        f" etcdctl --endpoints {member} endpoint health"
    )


def _store_error(
    member: str, error: _MemberError, earlier: list[tuple[str, _MemberError]] | None = None
) -> StoreError:
    others = "".join(f"; {other}: {before.problem}" for other, before in earlier or ())
    return StoreError(f"{error.problem}{others}", where=member, remedy=error.remedy)
