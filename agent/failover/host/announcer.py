"""Owns the announcements of a master: some now, some a little later, and then one regularly.

Nothing here raises when frames cannot be sent: ``problem`` says why, and it is logged once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from agent.failover.host.frames import ETH_P_ARP, ETH_P_IPV6, MAC_BYTES, announcement
from agent.failover.model import Announcements
from agent.failover.times import ANNOUNCE_GAP_S
from agent.logs import get_logger
from agent.model import Address

log = get_logger()

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1
_SO_SNDBUFFORCE = 32  # the same on x86 and arm; the socket module has no name for it
_SEND_BUFFER_BYTES = 4 << 20


class Announcer:
    """Announces VIPs on one interface, by default with that interface's own MAC.

    Call ``start`` when the node becomes master and whenever neighbours may have learned another
    MAC, and ``stop`` when it is no longer master. The running event loop keeps the schedule.
    """

    def __init__(
        self,
        interface: str,
        vips: Iterable[Address],
        announcements: Announcements,
        source_mac: bytes | None = None,
    ) -> None:
        self._interface = interface
        self._vips = tuple(vips)
        self._plan = announcements
        self._source_mac = source_mac
        self._timers: list[asyncio.TimerHandle] = []
        self._refresh: asyncio.TimerHandle | None = None
        self.sent = 0  # frames
        self.problem = ""  # why frames of the last round could not be sent; empty: all were sent
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: receives nothing
        self._socket.setblocking(False)
        with contextlib.suppress(PermissionError):  # in a user namespace; the default has to do
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)

    def start(self) -> None:
        """Announce at once, and go on as configured; if it is running already, start over."""
        self.stop()
        self.burst()
        loop = asyncio.get_running_loop()
        if self._plan.delay_s > 0 and self._plan.repeat:
            self._timers.append(loop.call_later(self._plan.delay_s, self.burst))
        self._schedule_refresh()

    def burst(self) -> None:
        """Send ``repeat`` frames for each VIP: the first before this returns, the others soon."""
        if self._plan.repeat:
            self._announce()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._timers = [timer for timer in self._timers if timer.when() > now_s]
        for turn in range(1, self._plan.repeat):
            self._timers.append(loop.call_later(turn * ANNOUNCE_GAP_S, self._announce))

    def stop(self) -> None:
        """Stop announcing."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None

    def close(self) -> None:
        """Stop, and close the socket."""
        self.stop()
        self._socket.close()

    def _schedule_refresh(self) -> None:
        if self._plan.refresh_s > 0:
            loop = asyncio.get_running_loop()
            self._refresh = loop.call_later(self._plan.refresh_s, self._refresh_now)

    def _refresh_now(self) -> None:
        self._announce()
        self._schedule_refresh()

    def _announce(self) -> None:
        # MAC and forwarding are read each time, as both may change while this node is master.
        try:
            mac = self._source_mac or interface_mac(self._interface)
        except OSError as error:
            self._note(error)
            return
        failure: OSError | None = None
        router = any(vip.version == 6 for vip in self._vips) and forwards(self._interface)
        for vip in self._vips:
            protocol = ETH_P_ARP if vip.version == 4 else ETH_P_IPV6
            try:
                self._socket.sendto(
                    announcement(mac, vip, router=router), (self._interface, protocol)
                )
            except OSError as error:
                failure = error
            else:
                self.sent += 1
        self._note(failure)

    def _note(self, failure: OSError | None) -> None:
        """Record and log the result of a round."""
        problem = ""
        if failure is not None:
            why = failure.strerror or failure
            problem = f"VIPs cannot be announced on {self._interface} ({why}): neighbours may go on"
            problem += " sending to the node that had them before"
        if problem and problem != self.problem:
            log.warning("announcements", interface=self._interface, problem=problem)
        elif self.problem and not problem:
            log.info("announcements are sent again", interface=self._interface)
        self.problem = problem


def interface_mac(interface: str) -> bytes:
    """Return the MAC of an Ethernet interface; raises OSError if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
    kind, mac = struct.unpack(f"=16xH{MAC_BYTES}s16x", answer)
    if kind != _ARPHRD_ETHER:
        raise OSError(f"{interface} is no Ethernet interface")
    return bytes(mac)


def forwards(interface: str) -> bool:
    """Return whether this host is an IPv6 router on that interface."""
    try:
        setting = Path(f"/proc/sys/net/ipv6/conf/{interface}/forwarding").read_text()
    except OSError:  # no IPv6
        return False
    return setting.strip() != "0"
