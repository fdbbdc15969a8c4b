"""Owns the program on servers that turns SYN cookies into connections, and its attachment."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from agent.companion.keys import Keys, packed, wall_ahead_ns
from agent.dataplane import libbpf, sources
from agent.dataplane.attach import interface_index, program_name
from agent.dataplane.compile import Compiled, compile_calling
from agent.dataplane.hooks.tc import TcPlace
from agent.dataplane.libbpf import ProgramType
from agent.errors import DataplaneError
from agent.model import Address

NAME = "companion"
PRIORITY = 11  # after the balancer's program, if a host has both
# The number of a helper that no kernel has; the call of the kernel function replaces it.
_PLACEHOLDER = 0x7FFFFF01
_ASSIGN = "bpf_sk_assign_tcp_reqsk"
_FIRST = (0).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of our SYN cookies.

    They were ``made`` into connections, ``refused`` by the kernel, or ``alone`` as no socket
    listened.
    """

    made: int
    refused: int
    alone: int


class Program:
    """The loaded program; it stays attached when this process ends."""

    def __init__(self, vips: Iterable[Address]) -> None:
        try:
            libbpf.kernel_function(_ASSIGN)
        except OSError as error:
            raise DataplaneError(
                f"the kernel has no {_ASSIGN}, so it accepts no SYN cookies of other hosts",
                where=f"Linux {os.uname().release}",
                remedy="use Linux 6.8 or later on this server, or `syn_cookies: false`: clients "
                "are challenged then, which needs nothing on servers",
            ) from error
        self._compiled: Compiled = compile_calling(
            sources.joined("companion.c"),
            NAME,
            {"LB_ASSIGN_REQSK": f"{_PLACEHOLDER:#x}"},
            ProgramType.SCHED_CLS,
            {_PLACEHOLDER: _ASSIGN},
        )
        for vip in vips:
            table = self._compiled.tables["companion_vips"]
            libbpf.map_update(table, vip.packed.ljust(16, b"\0"), b"\1")

    @property
    def fd(self) -> int:
        return self._compiled.fd

    def take(self, keys: Keys) -> None:
        """Accept cookies that were made with these keys, and write the present time."""
        libbpf.map_update(
            self._compiled.tables["cookie_secret"], _FIRST, packed(keys, wall_ahead_ns())
        )

    def attach(self, interfaces: Iterable[str]) -> None:
        """Attach to tc ingress of these interfaces, in place of an earlier program of ours."""
        for interface in interfaces:
            place = _place(interface)
            before = place.current()
            if before == self._compiled.info.id:
                continue
            name = program_name(before) if before else NAME
            if name != NAME:
                raise DataplaneError(
                    f"another program has priority {PRIORITY} at tc ingress: {name!r}",
                    where=f"interface {interface}",
                    remedy=f"`tc filter show dev {interface} ingress`; remove it, if nobody needs "
                    "it",
                )
            try:
                place.put(self.fd, before)
            except OSError as error:
                raise DataplaneError(place.why(error), where=f"interface {interface}") from error

    def is_attached(self, interfaces: Iterable[str]) -> bool:
        """Return whether it is still attached to all of these interfaces."""
        try:
            return all(_place(name).current() == self._compiled.info.id for name in interfaces)
        except (OSError, DataplaneError):
            return False

    @property
    def counts(self) -> Counts:
        """The counts since the program was loaded."""
        size = 3 * 8
        row = libbpf.map_lookup(self._compiled.tables["companion_count"], _FIRST, size)
        return Counts(*struct.unpack("=3Q", row or bytes(size)))


def remove(interfaces: Iterable[str]) -> bool:
    """Detach our program from these interfaces, and return whether there was one."""
    found = False
    for interface in interfaces:
        place = _place(interface)
        ident = place.current()
        if ident and program_name(ident) == NAME:
            place.clear(ident)
            found = True
    return found


def _place(interface: str) -> TcPlace:
    return TcPlace(interface_index(interface), PRIORITY, NAME)
