"""Owns the adverts of one virtual router: sends its own, and decodes those from the listener."""

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

_COUNTED = (Authentication.AH, Authentication.HMAC)  # with these a repeated packet is a replay


class Channel:
    """The channel of one virtual router, in the network namespace of the caller.

    Opening and sending raise OSError if there is no such interface, no permission, or the link is
    down. After the interface has been created anew, open another channel. ``guard`` holds the
    counters that earlier channels have heard, so that those adverts cannot be replayed.
    ``listener`` may be shared with other channels; without it, the channel opens its own. ``wake``
    is called when there is something for ``taken`` to return.
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
        # Unicast leaves from the interface's own MAC, because the kernel resolves the peer's MAC.
        virtual = instance.virtual_mac and not router.peers
        self._frame_head = headers.ethernet_header(router.family, instance.vrid) if virtual else b""
        self._identifier = 0
        self._guard = Guard() if guard is None else guard
        # Peers remember our counters as we do theirs. If a clock was once far ahead, all of them
        # continue from there.
        self._counter = max(self._guard.to_save().values(), default=0)
        self._found: list[Advert | Refusal] = []
        # The last datagram, and what it was decoded to.
        self._last: tuple[Datagram | None, Advert | Refusal | None] = (None, None)
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
        """The sockets on which it receives, with other channels if the listener is shared."""
        return self._listener.sockets

    def close(self) -> None:
        """Stop receiving and sending."""
        self._opened.close()

    def send(self, priority: int) -> None:
        """Send one advert to the group, or to each peer even if sending to one of them fails."""
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
        """Read the sockets, and return what has come for this virtual router."""
        self._listener.read()
        return self.taken()

    def taken(self) -> list[Advert | Refusal]:
        """Return what has been read for this virtual router since the last call."""
        found, self._found = self._found, []
        return found

    def hear(self, heard: Datagram) -> bool | None:
        """Decode a datagram, and keep the result for ``taken``; see ``listener.Member``."""
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
        """Open the socket that sends whole packets; it receives nothing."""
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
