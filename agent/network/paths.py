"""Owns the packet sockets of health checks that go the way of clients' packets.

What comes back is addressed to this host and says that it comes from the VIP, which this host may
have itself: its TCP takes no such packet. So the SYN is made here, and its answer is read from the
packet sockets of IPv4 and IPv6. They get only what the packet path and tc have left to the host.
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
    Way,
    frame,
    full_size,
    padding,
    refusal,
)

log = get_logger()

_SO_RCVBUFFORCE = 33  # the socket module does not name it
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_ENOUGH = 128  # bytes of a packet: its headers
_BUFFER_BYTES = 1 << 20
_ONE_TURN = 64  # packets; then others have theirs

_DPORT, _ACK = 2, 8  # places in the TCP header


@dataclass(slots=True)
class _Ask:
    way: Way
    port: int
    answer: asyncio.Future[Segment]


class Paths:
    """Asks backends for connections to their VIPs while ``run`` runs.

    ``hop(address)`` is the next hop to a backend, ``config()`` what the agent runs with.
    """

    def __init__(self, hop: Callable[[Address], NextHop], config: Callable[[], Config]) -> None:
        self._hop = hop
        self._config = config
        self._asks: dict[int, _Ask] = {}  # by the number that is acknowledged
        self._sender: RawSender | None = None
        # What is acknowledged begins with this, and the kernel gives us nothing else: strangers,
        # who see no SYN, cannot fill the sockets.
        self._secret = secrets.randbits(16)
        self._count = itertools.count(secrets.randbits(16))

    async def run(self) -> None:
        """Read answers until cancelled. Where there are no packet sockets for us, nobody is asked,
        which is logged.
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
        """Wait until the backend answers for its VIP a packet of ``size`` bytes; 0: a small one.

        None: it cannot be asked, for want of a next hop, of an address of ours that it could answer
        to, or of an interface that is up; others tell of these.
        """
        hop, config, sender = self._hop(way.backend), self._config(), self._sender
        outer, ours = outer_source(config, way.backend, hop), hop.source
        if sender is None or hop.mac is None or ours in (None, way.vip) or outer is None:
            return None

        def send(seq: int, flags: int, padding: int = 0) -> None:
            segment = Segment(ours, port, way.vip, way.port, seq, 0, flags, padding)
            data = frame(way, hop, segment.packet(), outer, config.gue_port)
            sender.frame(hop.ifindex, data)

        count = next(self._count)
        expected = self._secret << 16 | count % 2**16
        # In turn: a server that is asked twice at once from one port, or that has lost our RST,
        # resets the second connection for the first one's sake.
        port = FIRST_PORT + count % (LAST_PORT - FIRST_PORT + 1)
        ask = self._asks[expected] = _Ask(way, port, asyncio.get_running_loop().create_future())
        try:
            # A server may not use the data of a SYN before it has the connection (RFC 9293).
            send((expected - 1) % 2**32, SYN, padding(way, size) if size else 0)
            answer = await ask.answer
            if answer.flags & RST:
                return Answer(refusal(way))
            send(expected, RST)  # no connection comes of it
        except NetworkError:
            return None
        finally:
            del self._asks[expected]
        return Answer(full=full_size(way, hop.mtu, answer.mss))

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
    """TCP to our ports that acknowledges a number of ours; offsets are from the IP header on."""
    if version == 4:
        # Code, operand, and what the outcome of a test has to be.
        steps = [(LD_B, 9, None), (JEQ, Protocol.TCP.number, True)]
        steps += [(LD_H, 6, None), (JSET, 0x1FFF, False)]  # no later fragment
        steps += [(LDX_LENGTH, 0, None)]
        load, start = LD_H_X, 0  # by the length of the header
    else:
        steps = [(LD_B, 6, None), (JEQ, Protocol.TCP.number, True)]
        load, start = LD_H, 40
    steps += [(load, start + _DPORT, None), (JGE, FIRST_PORT, True), (JGT, LAST_PORT, False)]
    steps += [(load, start + _ACK, None), (JEQ, secret, True)]
    made = []
    for at, (code, operand, wanted) in enumerate(steps):
        away = len(steps) - at  # over the step that accepts
        jumps = (0, 0) if wanted is None else (0, away) if wanted else (away, 0)
        made.append((code, *jumps, operand))
    return [*made, (RET, 0, 0, _ENOUGH), (RET, 0, 0, 0)]


def _listening(version: int, secret: int) -> socket.socket:
    """On every interface: an answer may come by another way, or in a VLAN's tags."""
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
        while True:  # what came before the filter was there
            heard.recv(1)
    with contextlib.suppress(PermissionError):  # a user namespace: the default has to do
        heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    return heard
