"""Owns the TCP connections between balancers: opens, accepts and tunes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

from agent.errors import ListenError, NetworkError
from agent.failover.model import Address, FlowSync
from agent.failover.times import CONNECT_S, KEEPALIVE_S, SILENCE_S

_PROBES = 3  # unanswered keepalive probes after which the peer's kernel counts as dead
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, KEEPALIVE_S),
    (socket.TCP_KEEPINTVL, KEEPALIVE_S),
    (socket.TCP_KEEPCNT, _PROBES),
)
_READ_BYTES = 256 * 1024  # reading from the socket pauses when twice as much is buffered
_WRITE_BYTES = 512 * 1024  # sending pauses when this much is buffered
_BACKLOG = 64

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Met = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def own_address(config: FlowSync, peer: Address) -> Address:
    """Return the address by which the peer sees us: `listen`, or else what the routes say.

    NetworkError if there is no route to the peer.
    """
    if config.listen is not None and config.listen.version == peer.version:
        return config.listen
    with socket.socket(_family(peer), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_place(peer, config.port))
        except OSError as error:
            raise NetworkError(
                f"there is no route to the peer: {error.strerror or error}",
                where=str(peer),
                remedy="check the address in 'peers' and the routes (`ip route get`)",
            ) from error
        return ip_address(sock.getsockname()[0])


async def connect(config: FlowSync, peer: Address) -> Streams:
    """Connect to the peer. Raises OSError, TimeoutError."""
    listen = config.listen
    local = None
    if listen is not None and listen.version == peer.version:
        local = (str(listen), 0)
    async with asyncio.timeout(CONNECT_S):
        streams = await asyncio.open_connection(
            str(peer), config.port, local_addr=local, limit=_READ_BYTES
        )
    tune(streams[1])
    return streams


def listen(address: Address, port: int) -> socket.socket:
    """Listen on an address. ListenError if that is not possible."""
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if isinstance(address, IPv6Address):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(_place(address, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen for other balancers: {error.strerror or error}",
            where=f"{address} port {port}",
            remedy="set 'listen' to an address of this host and 'port' to a free one",
        ) from error
    return sock


async def serve(sock: socket.socket, met: Met) -> asyncio.Server:
    """Accept connections and pass each to ``met``."""
    return await asyncio.start_server(met, sock=sock, limit=_READ_BYTES, backlog=_BACKLOG)


def addresses_to_listen_at(config: FlowSync) -> tuple[Address, ...]:
    """Return the configured address, or the wildcard of each address family that the peers have."""
    if not config.peers:
        return ()
    if config.listen is not None:
        return (config.listen,)
    anywhere = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
    return tuple(anywhere[version] for version in sorted({p.version for p in config.peers}))


def peer_address(writer: asyncio.StreamWriter) -> Address:
    """Return the address of the other end. OSError if it is gone already."""
    name = writer.get_extra_info("peername")
    if not name:
        raise OSError("the connection is gone")
    return ip_address(name[0])


def tune(writer: asyncio.StreamWriter) -> None:
    """Have the kernel notice a dead peer within seconds, and send small frames at once."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SILENCE_S * 1000))
    writer.transport.set_write_buffer_limits(high=_WRITE_BYTES)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _place(address: Address, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if isinstance(address, IPv6Address):
        scope = socket.if_nametoindex(address.scope_id) if address.scope_id else 0
        return str(address).partition("%")[0], port, 0, scope
    return str(address), port
