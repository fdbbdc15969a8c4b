"""Owns what one virtual router says and hears: its adverts out, and from the listener those in."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from agent.errors import NetworkError
from agent.failover.model import Authentication
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import auth, headers, packet
from agent.failover.vrrp.advert import Advert, Refusal
from agent.failover.vrrp.headers import Datagram
from agent.failover.vrrp.listener import Listener
from agent.failover.vrrp.replay import Guard
from agent.model import Address

_COUNTED = (Authentication.AH, Authentication.HMAC)  # a repeated packet is none of theirs


class Channel:
    """Of one virtual router, in the network namespace of the caller.

    Opening and sending raise OSError: no such interface, no permission, the link is down. After
    the interface was made anew, open another one. ``guard`` knows what an earlier channel heard,
    for as long as somebody may repeat it. ``listener`` is shared with others; without one, it has
    its own. ``wake`` is called when there is something to be ``taken``.
    """

    def __init__(
        self,
        router: VirtualRouter,
        source: Address,
        key: bytes | None = None,
        guard: Guard | None = None,
        listener: Listener | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        instance = router.instance
        if instance.authentication is Authentication.HMAC and not key:
            raise NetworkError(
                "adverts cannot be authenticated without a key",
                where=f"virtual router {router.name}",
                remedy="set `failover.key_file`, the same on both nodes",
            )
        self.own = packet.Own(router, source, key or b"")
        self._kind = instance.authentication
        destinations = router.peers or (headers.group(router.family),)
        self._destinations = tuple((each, (str(each), 0)) for each in destinations)
        # Unicast comes from the interface's own MAC: which one a peer has, the kernel knows.
        virtual = instance.virtual_mac and not router.peers
        self._frame_head = headers.ethernet_header(router.family, instance.vrid) if virtual else b""
        self._identifier = 0
        self._guard = Guard() if guard is None else guard
        # The others remember us as we do them: if a clock was once far ahead, all go on from there
        self._counter = max(self._guard.to_save().values(), default=0)
        self._found: list[Advert | Refusal] = []
        self._last: tuple[Datagram | None, Advert | Refusal | None] = (None, None)  # and what it is
        self._wake = wake
        self._opened = contextlib.ExitStack()
        try:
            self._out = self._open_out()
            if listener is None:
                listener = Listener(router.interface, router.family)
                self._opened.callback(listener.close)
            self._listener = listener
            self._opened.callback(listener.leave, self)
            listener.join(self)
        except BaseException:
            self._opened.close()
            raise

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """By which it hears, with others if the listener is shared."""
        return self._listener.sockets

    def close(self) -> None:
        """Hear and send no more."""
        self._opened.close()

    def send(self, priority: int) -> None:
        """One advert: to the group, or to each peer, also if one of them cannot be sent to."""
        failed: OSError | None = None
        for destination, target in self._destinations:
            self._identifier = self._identifier % 0xFFFF + 1  # 0 would have the kernel choose
            self._counter = auth.next_counter(self._kind, self._counter, time.time_ns())
            data = packet.ip_packet(
                self.own,
                priority,
                destination,
                counter=self._counter,
                identifier=self._identifier,
            )
            try:
                if self._frame_head:
                    self._out.send(self._frame_head + data)
                else:
                    self._out.sendto(data, target)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def receive(self) -> list[Advert | Refusal]:
        """All that has come since, adverts of other virtual routers left out."""
        self._listener.read()
        return self.taken()

    def taken(self) -> list[Advert | Refusal]:
        """What was read for it since."""
        found, self._found = self._found, []
        return found

    def hear(self, heard: Datagram) -> bool | None:
        """Decode it, for ``taken``."""
        if heard is not self._last[0] or self._kind in _COUNTED:
            self._last = heard, packet.decode(self.own, heard, self._guard)
        found = self._last[1]
        if found is None:
            return None
        is_advert = isinstance(found, Advert)
        if isinstance(found, Advert) and found.counter:
            self._guard.accept(found.source, found.counter)
            self._counter = max(self._counter, found.counter)
        self._found.append(found)
        if len(self._found) == 1:
            self._wake()
        return is_advert

    def _open(self, family: int, kind: int, protocol: int) -> socket.socket:
        opened = self._opened.enter_context(socket.socket(family, kind, protocol))
        opened.setblocking(False)
        return opened

    def _open_out(self) -> socket.socket:
        """Sends whole packets, and hears nothing."""
        interface = self.own.router.interface
        if self._frame_head:
            out = self._open(socket.AF_PACKET, socket.SOCK_RAW, 0)
            out.bind((interface, 0))
            return out
        if self.own.router.family == 4:
            out = self._open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            out = self._open(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        return out
