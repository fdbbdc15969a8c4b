"""Owns the packet sockets of health checks that take the way of clients' packets.

The answers are addressed to this host and come from the VIP, which this host may have itself, so
its TCP would not accept them. So the SYN is made here, and its answer is read from packet sockets
for IPv4 and IPv6. These get only what the packet path and tc leave to the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from agent import sockfilter
from agent.errors import NetworkError
from agent.logs import get_logger
from agent.model import Address, Config, NextHop, Protocol
from agent.network.reset import RawSender
from agent.sockfilter import JEQ, JGE, JGT, JSET, LD_B, LD_H, LD_H_X, LDX_LENGTH, RET, Step
from agent.state.desired import outer_source
from agent.state.segment import ACK, RST, SYN, Segment
from agent.state.way import (
    FIRST_PORT,
    LAST_PORT,
    Answer,
    Frames,
    Way,
    full_size,
    padding,
    refusal,
)

log = get_logger()

_SO_RCVBUFFORCE = 33  # the socket module does not name it
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_ENOUGH = 128  # bytes read of a packet: its headers
_BUFFER_BYTES = 1 << 20
_MOST_FRAMES = 1 << 16
_ONE_TURN = 64  # packets read before other tasks get their turn

_DPORT, _ACK = 2, 8  # offsets in the TCP header


@dataclass(slots=True)
class _Ask:
    way: Way
    port: int
    answer: asyncio.Future[Segment]


class Paths:
    """Asks backends for connections to their VIPs while ``run`` runs.

    ``hop(address)`` returns the next hop to a backend, ``config()`` the running configuration.
    """

    def __init__(self, hop: Callable[[Address], NextHop], config: Callable[[], Config]) -> None:
        self._hop = hop
        self._config = config
        self._asks: dict[int, _Ask] = {}  # by the acknowledgement number that is expected
        self._frames: dict[Way, Frames] = {}
        self._sender: RawSender | None = None
        # The upper half of every expected acknowledgement number. The socket filter passes nothing
        # else, so senders that have not seen our SYNs cannot fill the sockets.
        self._secret = secrets.randbits(16)
        self._count = itertools.count(secrets.randbits(16))

    async def run(self) -> None:
        """Read answers until cancelled. Without packet sockets no backend is asked, and that is
        logged.
        """
        try:
            await self._run()
        except NetworkError as error:
            log.error("health checks do not go by the VIP", problem=str(error))
            await asyncio.Event().wait()  # the agent's tasks run until it ends

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as opened:
            sender = opened.enter_context(RawSender())
            for version in (4, 6):
                heard = opened.enter_context(_listening(version, self._secret))
                loop.add_reader(heard, self._read, heard, version)
                opened.callback(loop.remove_reader, heard)
            self._sender = sender
            try:
                await asyncio.Event().wait()  # for ever
            finally:
                self._sender = None

    async def ask(self, way: Way, size: int = 0) -> Answer | None:
        """Send a SYN of ``size`` bytes (0: a small one) to the backend's VIP, and wait for the
        answer.

        None: it cannot be asked, because there is no next hop, no address of ours that it could
        answer to, or no interface that is up. Other checks report these.
        """
        hop, config, sender = self._hop(way.backend), self._config(), self._sender
        outer, ours = outer_source(config, way.backend, hop), hop.source
        if sender is None or hop.mac is None or ours in (None, way.vip) or outer is None:
            return None
        frames = self._frames_of(way, hop, outer, config.gue_port)
        count = next(self._count)
        expected = self._secret << 16 | count % 2**16
        # Ports are used in turn. A server that gets two SYNs from one port, at once or because our
        # RST was lost, resets the second connection because of the first.
        port = FIRST_PORT + count % (LAST_PORT - FIRST_PORT + 1)
        ask = self._asks[expected] = _Ask(way, port, asyncio.get_running_loop().create_future())
        try:
            # A server may not use the data of a SYN before it has the connection (RFC 9293).
            seq, data = (expected - 1) % 2**32, padding(way, size) if size else 0
            syn = frames.frame(port, seq, SYN, data)
            sender.frame(hop.ifindex, syn)
            answer = await ask.answer
            if answer.flags & RST:
                return Answer(refusal(way))
            # End the half-open connection.
            sender.frame(hop.ifindex, frames.frame(port, expected, RST))
        except NetworkError:
            return None
        finally:
            del self._asks[expected]
        return Answer(full=full_size(way, hop.mtu, answer.mss))

    def _frames_of(self, way: Way, hop: NextHop, outer: Address, gue_port: int) -> Frames:
        """Return what makes the frames by a way, as long as its next hop stays the same."""
        frames = self._frames.get(way)
        if frames is None or frames.basis != (hop, outer, gue_port):
            if len(self._frames) >= _MOST_FRAMES:  # mostly of ways that are no longer in use
                self._frames.clear()
            frames = self._frames[way] = Frames(way, hop, outer, gue_port)
        return frames

    def _read(self, heard: socket.socket, version: int) -> None:
        for _ in range(_ONE_TURN):
            try:
                data = heard.recv(_ENOUGH)
            except OSError:  # there is no more, or the interface has gone
                return
            segment = Segment.read(data, version)
            ask = self._asks.get(segment.ack) if segment is not None else None
            if segment is None or ask is None or not segment.flags & ACK:
                continue
            sent = ask.way.vip, ask.way.port, ask.port
            if (segment.source, segment.source_port, segment.to_port) != sent:
                continue
            if segment.flags & (SYN | RST) and not ask.answer.done():
                ask.answer.set_result(segment)


def _filter(version: int, secret: int) -> list[Step]:
    """Return a filter that passes TCP segments to our ports that acknowledge one of our numbers.

    Offsets count from the start of the IP header.
    """
    if version == 4:
        # Code, operand, and the required outcome if it is a test.
        steps = [(LD_B, 9, None), (JEQ, Protocol.TCP.number, True)]
        steps += [(LD_H, 6, None), (JSET, 0x1FFF, False)]  # not a later fragment
        steps += [(LDX_LENGTH, 0, None)]
        load, start = LD_H_X, 0  # relative to the end of the IP header
    else:
        steps = [(LD_B, 6, None), (JEQ, Protocol.TCP.number, True)]
        load, start = LD_H, 40
    steps += [(load, start + _DPORT, None), (JGE, FIRST_PORT, True), (JGT, LAST_PORT, False)]
    steps += [(load, start + _ACK, None), (JEQ, secret, True)]
    made = []
    for at, (code, operand, wanted) in enumerate(steps):
        away = len(steps) - at  # jumps past the step that accepts
        jumps = (0, 0) if wanted is None else (0, away) if wanted else (away, 0)
        made.append((code, *jumps, operand))
    return [*made, (RET, 0, 0, _ENOUGH), (RET, 0, 0, 0)]


def _listening(version: int, secret: int) -> socket.socket:
    """Open a packet socket on all interfaces, because an answer may come by another way than the
    SYN went, or with VLAN tags.
    """
    try:
        heard = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE[version])
        )
    except OSError as error:
        raise NetworkError(
            f"no packet socket: {error}",
            where="health checks by the VIP",
            remedy="run the agent as root, or with CAP_NET_RAW",
        ) from error
    heard.setblocking(False)
    sockfilter.attach(heard, _filter(version, secret))
    with contextlib.suppress(BlockingIOError):
        while True:  # discard what arrived before the filter was attached
            heard.recv(1)
    with contextlib.suppress(PermissionError):  # in a user namespace the default has to suffice
        heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    return heard
