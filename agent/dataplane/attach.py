"""Decides and does the XDP attachment: which mode, in whose place, never over a stranger."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.dataplane import libbpf
from agent.dataplane.pins import Pins
from agent.errors import DataplaneError, NetworkError
from agent.model import XdpMode

_FLAGS = {XdpMode.NATIVE: libbpf.XDP_DRV_MODE, XdpMode.GENERIC: libbpf.XDP_SKB_MODE}


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where the program sits, and why there."""

    ifindex: int
    mode: XdpMode
    reason: str


def interface_index(name: str) -> int:
    """The index of an interface; NetworkError names those that exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        there = ", ".join(sorted(other for _, other in socket.if_nameindex()))
        raise NetworkError(
            "there is no such interface",
            where=f"interface {name}",
            remedy=f"choose one of: {there}",
        ) from error


@contextlib.contextmanager
def _pinned_program(pins: Pins) -> Iterator[dict[int, int]]:
    """Ids and descriptors of the programs that this instance has pinned, of whatever ABI."""
    fds: dict[int, int] = {}
    folders = (pins, *pins.of_other_versions())
    try:
        for path in (p for one in folders for p in (one.program, one.next_program)):
            if path.exists():
                fd = libbpf.object_get(path)
                fds[libbpf.program_info(fd).id] = fd
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def _refuse_stranger(interface: str, ident: int) -> None:
    fd = libbpf.program_fd(ident)
    try:
        name = libbpf.program_info(fd).name
    finally:
        os.close(fd)
    raise DataplaneError(
        f"another XDP program is attached: {name!r}, id {ident}",
        where=f"interface {interface}",
        remedy=f"`bpftool prog show id {ident}` tells whose it is; if nobody needs it, "
        f"`ip link set dev {interface} xdp off; ip link set dev {interface} xdpgeneric off` "
        "removes it",
    )


def check_free(interface: str, pins: Pins) -> bool:
    """Refuse an interface on which somebody else's XDP program sits; true if ours does."""
    current = libbpf.xdp_query(interface_index(interface)).id
    with _pinned_program(pins) as ours:
        if current and current not in ours:
            _refuse_stranger(interface, current)
    return current != 0


def attach(interface: str, fd: int, wanted: XdpMode, pins: Pins) -> Attachment:
    """Put the program on the interface, atomically in the place of our last one.

    ``auto`` keeps the mode of our last one; on a free interface it tries native first. The
    program is pinned before it is attached, so that it is known as ours whenever we die.
    """
    ifindex = interface_index(interface)
    _pin_next(fd, pins, libbpf.xdp_query(ifindex).id)
    with _pinned_program(pins) as ours:
        current = libbpf.xdp_query(ifindex)
        if current.id and current.id not in ours:
            _refuse_stranger(interface, current.id)
        held = XdpMode.NATIVE if current.native else XdpMode.GENERIC
        if current.id and wanted in (XdpMode.AUTO, held):
            libbpf.xdp_attach(ifindex, fd, _FLAGS[held], ours[current.id])
            attachment = Attachment(ifindex, held, "took the place of the last program")
        else:
            if current.id:  # the kernel takes one mode at a time
                libbpf.xdp_attach(ifindex, -1, _FLAGS[held])
            try:
                attachment = _attach_first(interface, ifindex, fd, wanted)
            except DataplaneError:
                if current.id:  # refused: what ran goes on
                    libbpf.xdp_attach(ifindex, ours[current.id], _FLAGS[held])
                raise
    pins.next_program.rename(pins.program)
    return attachment


def _ident(pin: Path) -> int:
    fd = libbpf.object_get(pin)
    try:
        return libbpf.program_info(fd).id
    finally:
        os.close(fd)


def _pin_next(fd: int, pins: Pins, attached: int) -> None:
    if pins.next_program.exists():
        if _ident(pins.next_program) == attached:  # an agent was killed before the renaming
            pins.next_program.rename(pins.program)
        else:
            pins.next_program.unlink()
    libbpf.object_pin(fd, pins.next_program)


def _attach_first(interface: str, ifindex: int, fd: int, wanted: XdpMode) -> Attachment:
    order = (XdpMode.NATIVE, XdpMode.GENERIC) if wanted is XdpMode.AUTO else (wanted,)
    refusals = []
    for mode in order:
        try:
            libbpf.xdp_attach(ifindex, fd, _FLAGS[mode] | libbpf.XDP_UPDATE_IF_NOEXIST)
        except OSError as error:
            refusals.append(f"{mode.value}: {_explain(error)}")
        else:
            reason = "; ".join(refusals) or ("configured" if len(order) == 1 else "the fastest")
            return Attachment(ifindex, mode, reason)
    raise DataplaneError(
        "the driver takes no XDP program (" + "; ".join(refusals) + ")",
        where=f"interface {interface}",
        remedy="`xdp_mode: generic` works with every driver; `lbctl doctor` tells what the "
        "driver needs",
    )


def _explain(error: OSError) -> str:
    known = {
        errno.EOPNOTSUPP: "the driver has no native XDP",
        errno.EBUSY: "another program came first",
        errno.EEXIST: "another program came first",
        errno.EINVAL: "refused, often because of the MTU (native XDP wants one page a packet)",
        errno.ERANGE: "the MTU is too large",
        errno.ENOMEM: "too few queues or too little memory",
    }
    return known.get(error.errno or 0, os.strerror(error.errno or 0))


def detach(interface: str, pins: Pins) -> bool:
    """Take our program off the interface; true if it was there. A stranger's stays."""
    ifindex = interface_index(interface)
    current = libbpf.xdp_query(ifindex)
    with _pinned_program(pins) as ours:
        if current.id not in ours:
            return False
        mode = XdpMode.NATIVE if current.native else XdpMode.GENERIC
        libbpf.xdp_attach(ifindex, -1, _FLAGS[mode])
        return True


def attach_helper(interface: str, fd: int) -> XdpMode:
    """Attach a program that needs no tables (pass, decap) and stays after we exit.

    Replaces only a program of the same name.
    """
    ifindex = interface_index(interface)
    current = libbpf.xdp_query(ifindex).id
    name = libbpf.program_info(fd).name
    if current:
        old = libbpf.program_fd(current)
        try:
            if libbpf.program_info(old).name != name:
                _refuse_stranger(interface, current)
        finally:
            os.close(old)
    for mode in (XdpMode.NATIVE, XdpMode.GENERIC):
        try:
            libbpf.xdp_attach(ifindex, fd, _FLAGS[mode])
        except OSError as error:
            problem = error
        else:
            return mode
    raise DataplaneError(_explain(problem), where=f"interface {interface}")
