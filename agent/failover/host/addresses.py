"""Owns the VIPs on interfaces: adds them, removes them, and notices when something else does.

Every address is marked with our own number (IFA_PROTO). So addresses that an operator or another
program has added can be told from ours, and are never touched. All calls are synchronous and take
some ten microseconds for each VIP.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from agent.failover.host import rtnetlink
from agent.failover.host.kernel import RECEIVE_BYTES, Kernel, Request, index_of, open_socket
from agent.failover.host.rtnetlink import Entry
from agent.model import Address

# "V"; free in rt_addrprotos. The agent uses another number, so neither removes the other's.
PROTO = 0x56

_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call for some VIPs. A VIP that needed no change is in none of the fields."""

    changed: tuple[Address, ...] = ()  # added or removed by this call
    theirs: tuple[Address, ...] = ()  # added by an operator or another program, and left alone
    failed: tuple[tuple[Address, str], ...] = ()  # with the reason and the remedy


class Addresses:
    """The VIPs of one virtual router, on one interface.

    ``fileno`` becomes readable when addresses of this host have changed. ``lost`` then returns the
    VIPs that something else has removed.
    """

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._kernel = Kernel()
        self._events = open_socket(_GROUPS)
        self._wanted: frozenset[Address] = frozenset()
        self._put: set[Address] = set()  # what we added: kernels before 5.18 keep no IFA_PROTO
        self._one = threading.Lock()  # retries run in a thread
        self.turn = 0  # counts the calls that change something

    def again(self, turn: int, on: bool, vips: Iterable[Address]) -> Outcome:
        """Take or drop these once more, unless another call came since ``turn``.

        This may be called from any thread.
        """
        with self._one:
            if turn != self.turn:
                return Outcome()
            return self._take(vips) if on else self._drop(vips)

    def take(self, vips: Iterable[Address]) -> Outcome:
        """Put these on the interface, and watch over them."""
        with self._one:
            self.turn += 1
            return self._take(vips)

    def drop(self, vips: Iterable[Address]) -> Outcome:
        """Take those of these off the interface that are ours."""
        with self._one:
            self.turn += 1
            return self._drop(vips)

    def _take(self, vips: Iterable[Address]) -> Outcome:
        wanted = tuple(dict.fromkeys(vips))
        self._wanted |= frozenset(wanted)
        ifindex = index_of(self._interface)
        if not ifindex:
            return self._failed(wanted, self._reason(errno.ENODEV))
        try:
            present = self._present(ifindex)
            missing = [vip for vip in wanted if vip not in present]
            errors = self._kernel.change(missing, _adding(ifindex))
        except OSError as error:
            return self._failed(wanted, str(error))
        # EEXIST: something else has added it since we looked.
        theirs = {vip for vip in wanted if errors.get(vip) == errno.EEXIST}
        theirs |= {vip for vip in wanted if not present.get(vip, True)}
        self._put |= {vip for vip, error in errors.items() if not error}
        return self._outcome(errors, theirs, harmless=errno.EEXIST)

    def _drop(self, vips: Iterable[Address]) -> Outcome:
        unwanted = tuple(dict.fromkeys(vips))
        self._wanted -= frozenset(unwanted)
        ifindex = index_of(self._interface)
        if not ifindex:
            return Outcome()
        try:
            present = self._present(ifindex)
            ours = [vip for vip in unwanted if present.get(vip)]
            errors = self._kernel.change(ours, _removing(ifindex))
        except OSError as error:
            return self._failed(unwanted, str(error))
        theirs = {vip for vip in unwanted if not present.get(vip, True)}
        self._put -= {vip for vip, error in errors.items() if not error}
        return self._outcome(errors, theirs, harmless=errno.EADDRNOTAVAIL)

    def lost(self) -> tuple[Address, ...]:
        """Read all events, and return the taken VIPs that are no longer on the interface.

        They are to be taken again.
        """
        if not self._wanted.intersection(self._removed()):
            return ()
        if not self._one.acquire(blocking=False):
            return ()  # a retry is running
        try:
            ifindex = index_of(self._interface)
            present = self._present(ifindex) if ifindex else {}
        except OSError:
            present = {}  # to take VIPs that are present already does no harm
        finally:
            self._one.release()
        return tuple(sorted(self._wanted - present.keys(), key=_order))

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return self._events.fileno()

    def close(self) -> None:
        """Close the sockets; addresses on the interface stay."""
        with self._one:
            self.turn += 1
            self._events.close()
            self._kernel.close()

    def _removed(self) -> Iterable[Address]:
        removed: set[Address] = set()
        while True:
            try:
                data = self._events.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return removed
            except OSError:  # events were lost, so any VIP may have been removed
                removed |= self._wanted
            else:
                found = rtnetlink.parse(data)
                removed |= {e.address for e in found if isinstance(e, Entry) and e.removed}

    def _present(self, ifindex: int) -> dict[Address, bool]:
        """Return the interface's addresses, each with whether it is ours."""
        present: dict[Address, bool] = {}
        for entry in self._kernel.addresses(ifindex):
            # An IPv4 address can be present twice with different masks, and one of them be ours.
            ours = _is_ours(entry) or entry.address in self._put
            present[entry.address] = present.get(entry.address, False) or ours
        return present

    def _outcome(self, errors: dict[Address, int], theirs: set[Address], harmless: int) -> Outcome:
        return Outcome(
            changed=tuple(vip for vip, error in errors.items() if not error),
            theirs=tuple(sorted(theirs, key=_order)),
            failed=tuple(
                (vip, self._reason(error))
                for vip, error in errors.items()
                if error not in (0, harmless)
            ),
        )

    def _failed(self, vips: Iterable[Address], why: str) -> Outcome:
        return Outcome(failed=tuple((vip, why) for vip in vips))

    def _reason(self, error: int) -> str:
        return rtnetlink.reason(error, self._interface)


@dataclass(frozen=True, slots=True)
class Stale:
    """An address of ours that is no longer wanted."""

    interface: str
    address: Address
    problem: str = ""  # why it could not be removed


def remove_stale(keep: Collection[tuple[str, Address]] = ()) -> tuple[Stale, ...]:
    """Remove our addresses from all interfaces except those in ``keep``, and return them.

    They were left by a failover process that was killed, or the configuration no longer names them.
    """
    kernel = Kernel()
    try:
        removed: list[Stale] = []
        for entry in kernel.addresses():
            interface = _name(entry.ifindex)
            if not _is_ours(entry) or (interface, entry.address) in keep:
                continue
            error = kernel.change([entry.address], _removing(entry.ifindex))[entry.address]
            gone = error in (0, errno.EADDRNOTAVAIL, errno.ENODEV)
            problem = "" if gone else rtnetlink.reason(error, interface)
            removed.append(Stale(interface, entry.address, problem))
        return tuple(removed)
    finally:
        kernel.close()


def left_behind(places: Collection[tuple[str, Address]]) -> frozenset[tuple[str, Address]]:
    """Return those of ``places`` that have an address of ours, left by an earlier process."""
    kernel = Kernel()
    try:
        entries = [entry for entry in kernel.addresses() if _is_ours(entry)]
    finally:
        kernel.close()
    return frozenset(places) & {(_name(entry.ifindex), entry.address) for entry in entries}


def _adding(ifindex: int) -> Request[Address]:
    return lambda sequence, vip: rtnetlink.add_address(sequence, ifindex, vip, PROTO)


def _removing(ifindex: int) -> Request[Address]:
    return lambda sequence, vip: rtnetlink.remove_address(sequence, ifindex, vip)


def _is_ours(entry: Entry) -> bool:
    return entry.proto == PROTO and entry.prefix_length == entry.address.max_prefixlen


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:  # it has just been removed
        return f"interface {ifindex}"


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)
