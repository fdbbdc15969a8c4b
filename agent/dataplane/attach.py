"""Decides and performs the attachment: which hook is used, and which program is replaced. A program
that is not ours is never replaced.

All interfaces of an instance use the same hook. ``hooks`` has one file for each hook.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, replace

from agent.dataplane import instance, libbpf
from agent.dataplane.driver import is_veth
from agent.dataplane.hooks.external import EntryPlace
from agent.dataplane.hooks.own import Owned
from agent.dataplane.hooks.place import PROGRAM_TYPES, Place
from agent.dataplane.hooks.tc import HANDLE, PRIORITY, TcPlace
from agent.dataplane.hooks.xdp import FLAGS as XDP_FLAGS
from agent.dataplane.hooks.xdp import XdpPlace, explain
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.pins import Pins
from agent.errors import DataplaneError, NetworkError
from agent.logs import get_logger
from agent.model import Hook

log = get_logger()

BEST_FIRST = (Hook.NATIVE, Hook.TC, Hook.GENERIC)  # the order in which `auto` tries them
# Native XDP on a veth loses every packet that it sends, unless the far end has a program too and
# senders compute full checksums. This end sees none of that, and on a veth tc is cheaper.
VETH_BEST_FIRST = (Hook.TC, Hook.GENERIC)
_XDP = (Hook.NATIVE, Hook.GENERIC)


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where the program is attached on one interface, and why there."""

    interface: str
    ifindex: int
    mode: Hook
    reason: str


@dataclass(frozen=True, slots=True)
class _Spot:
    """An interface to which the program is to be attached."""

    name: str
    ifindex: int


class _RefusedError(Exception):
    """A hook does not accept the program on one of the interfaces."""


def with_reason(new: Attachment, before: Attachment | None) -> Attachment:
    """Return the new attachment with the reason for which its hook was first chosen."""
    if before is None or before.mode is not new.mode:
        return new
    return replace(new, reason=before.reason)


def interface_index(name: str) -> int:
    """Return the index of an interface; NetworkError names those that exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        existing = ", ".join(sorted(other for _, other in socket.if_nameindex()))
        raise NetworkError(
            "there is no such interface",
            where=f"interface {name}",
            remedy=f"choose one of: {existing}",
        ) from error


def place(hook: Hook, ifindex: int, pins: Pins) -> Place:
    """Return the place of a hook on an interface; the external hook has one place for all."""
    if hook is Hook.EXTERNAL:
        return EntryPlace(pins.entry)
    return TcPlace(ifindex) if hook is Hook.TC else XdpPlace(ifindex, hook)


def sits(attachment: Attachment, idents: Container[int], pins: Pins) -> bool:
    """Return whether a program with one of these ids is still where it was attached."""
    try:
        return place(attachment.mode, attachment.ifindex, pins).current() in idents
    except OSError:  # the interface is gone
        return False


def check_free(interfaces: Iterable[str], wanted: Hook, pins: Pins) -> Hook | None:
    """Raise DataplaneError if another program is in the way; return the hook of ours, if any."""
    spots = _spots(interfaces)
    owned = Owned(pins)
    held = _held(spots, owned, pins)
    _refuse_siblings(spots, owned, pins)
    _refuse_others(spots, order(wanted, held, veth_among(spot.name for spot in spots))[0], owned)
    return held


def attach(
    interfaces: Iterable[str],
    wanted: Hook,
    pins: Pins,
    program: Callable[[ProgramType], int],
) -> tuple[Attachment, ...]:
    """Put the program on all interfaces, atomically replacing our last one.

    ``auto`` keeps the hook of our last program if that is one that it would try at all; on free
    interfaces it takes the best hook that all of them accept. ``program`` returns the descriptor of
    the program of a type. If no hook accepts it, the last program keeps running, and DataplaneError
    says why each hook refused.
    """
    spots = _spots(interfaces)
    owned = Owned(pins)
    held = _held(spots, owned, pins)
    veth = veth_among(spot.name for spot in spots)
    refusals: list[str] = []
    for hook in order(wanted, held, veth):
        _refuse_others(spots, hook, owned)
        try:
            fd = program(PROGRAM_TYPES[hook])
            _put_everywhere(spots, hook, fd, owned, pins)
        except (_RefusedError, DataplaneError) as refusal:
            if isinstance(refusal, DataplaneError) and wanted is not Hook.AUTO:
                raise
            refusals.append(f"{hook.value}: {refusal}")
            continue
        _clear_elsewhere(spots, hook, owned, pins)
        pin(fd, pins)
        reason = _reason(hook, wanted, held, refusals, pins)
        if veth and wanted is Hook.AUTO:
            reason = _veth_reason(veth, refusals)
        return tuple(Attachment(spot.name, spot.ifindex, hook, reason) for spot in spots)
    raise _all_refused(spots, wanted, refusals)


def detach(pins: Pins) -> bool:
    """Detach our program from every interface of this network namespace, and from the array through
    which other programs call it; return whether it was attached anywhere.

    Programs that are not ours stay.
    """
    return _clear_elsewhere([], None, Owned(pins), pins)


def attached_to(interfaces: Iterable[str]) -> frozenset[int]:
    """Return the ids of all programs on these interfaces, ours or not."""
    found: set[int] = set()
    for name in interfaces:
        with contextlib.suppress(OSError):  # the interface is gone
            ifindex = socket.if_nametoindex(name)
            found.add(TcPlace(ifindex).current())
            attached = libbpf.xdp_query(ifindex)
            found |= {attached.native, attached.generic, attached.offloaded}
    return frozenset(found - {0})


def _spots(interfaces: Iterable[str]) -> list[_Spot]:
    return [_Spot(name, interface_index(name)) for name in interfaces]


def _held(spots: list[_Spot], owned: Owned, pins: Pins) -> Hook | None:
    for hook in (*BEST_FIRST, Hook.EXTERNAL):
        if any(place(hook, spot.ifindex, pins).current() in owned for spot in spots):
            return hook
    return None


def veth_among(interfaces: Iterable[str]) -> str:
    """Return the first of the interfaces that is a veth; empty if none is.

    One veth is enough, because all interfaces get the same hook.
    """
    return next(filter(is_veth, interfaces), "")


def order(wanted: Hook, held: Hook | None, veth: str = "") -> tuple[Hook, ...]:
    """Return the hooks to try, best first; ``veth`` names a veth among the interfaces, if any."""
    if wanted is not Hook.AUTO:
        return (wanted,)
    best = VETH_BEST_FIRST if veth else BEST_FIRST
    if held is None or held not in best:
        return best
    return (held, *(hook for hook in best if hook is not held))


def _reason(hook: Hook, wanted: Hook, held: Hook | None, refusals: list[str], pins: Pins) -> str:
    if hook is Hook.EXTERNAL:
        return f"configured: other programs call {pins.entry}"
    if hook is held:
        return "took the place of the last program"
    if refusals:
        return "; ".join(refusals)
    return "the fastest" if wanted is Hook.AUTO else "configured"


def _veth_reason(veth: str, refusals: list[str]) -> str:
    why = (
        f"native: {veth} is a veth, where native XDP loses what it sends unless the far end is "
        "prepared"
    )
    return "; ".join((why, *refusals))


def _all_refused(spots: list[_Spot], wanted: Hook, refusals: list[str]) -> DataplaneError:
    names = ", ".join(spot.name for spot in spots)
    details = "; ".join(refusals)
    if wanted is Hook.NATIVE:
        message = f"the driver takes no XDP program ({details})"
        remedy = "`hook: tc` works with every driver, and so does `hook: generic`"
    else:
        message = f"no hook takes the program ({details})"
        remedy = "`hook: auto` takes the best that works"
    return DataplaneError(
        message,
        where=f"interface {names}",
        remedy=f"{remedy}; `lbctl doctor` says what each needs",
    )


# -- programs that are not ours


def _refuse_others(spots: list[_Spot], hook: Hook, owned: Owned) -> None:
    for spot in spots:
        if hook in _XDP:
            ident = libbpf.xdp_query(spot.ifindex).id
            if ident and ident not in owned:
                raise _xdp_occupied(spot.name, ident)
        elif hook is Hook.TC:
            ident = TcPlace(spot.ifindex).current()
            if ident and ident not in owned:
                raise _tc_occupied(spot.name, ident)


def _refuse_siblings(spots: list[_Spot], owned: Owned, pins: Pins) -> None:
    """Raise DataplaneError if any hook of the interfaces has a program of another instance of this
    host, or of this instance under its former name.
    """
    for spot in spots:
        for hook in BEST_FIRST:
            ident = place(hook, spot.ifindex, pins).current()
            owner = instance.owner_of(ident) if ident and ident not in owned else None
            if owner is not None:
                raise DataplaneError(
                    f"the program of the instance {owner!r} is attached",
                    where=f"interface {spot.name}",
                    remedy="if this instance had that name before, run `lb-agent take-over --from "
                    f"{owner} --config FILE`, which costs no connection; if it is another "
                    "instance, stop its agent, then run `lb-agent detach` with its configuration",
                )


def _xdp_occupied(interface: str, ident: int) -> DataplaneError:
    return DataplaneError(
        f"another XDP program is attached: {program_name(ident)!r}, id {ident}",
        where=f"interface {interface}",
        remedy="`hook: external` lets it call the balancer (docs/hooks.md, behind a "
        "dispatcher), `hook: tc` runs after it; "
        f"`bpftool prog show id {ident}` shows what it is; if nobody needs it, "
        f"`ip link set dev {interface} xdp off; ip link set dev {interface} xdpgeneric off` "
        "removes it",
    )


def _tc_occupied(interface: str, ident: int) -> DataplaneError:
    return DataplaneError(
        f"another program has our place at tc ingress: {program_name(ident)!r}, id {ident}",
        where=f"interface {interface}",
        remedy=f"`bpftool prog show id {ident}` shows what it is; if nobody needs it, `tc filter "
        f"del dev {interface} ingress pref {PRIORITY} handle {HANDLE:#x} bpf` removes it",
    )


def program_name(ident: int) -> str:
    """Return the name of a loaded program."""
    with _program(ident) as fd:
        return libbpf.program_info(fd).name


# -- changes


def _put_everywhere(spots: list[_Spot], hook: Hook, fd: int, owned: Owned, pins: Pins) -> None:
    """Attach to all interfaces or to none: if one refuses, the others get back what they had."""
    ident = libbpf.program_info(fd).id
    with contextlib.ExitStack() as opened, contextlib.ExitStack() as undo:
        for spot in spots:
            where = place(hook, spot.ifindex, pins)
            before = where.current()
            if before == ident:
                continue
            try:
                if isinstance(where, XdpPlace):
                    _make_way(where.other, owned, opened, undo)
                old = opened.enter_context(_program(before))
                where.put(fd, before)
            except OSError as error:
                why = where.why(error)
                raise _RefusedError(why if len(spots) == 1 else f"{spot.name}: {why}") from error
            undo.callback(_put_back, where, old, before, ident)
        undo.pop_all()


def _make_way(
    other: XdpPlace, owned: Owned, opened: contextlib.ExitStack, undo: contextlib.ExitStack
) -> None:
    ident = other.current()
    if ident in owned:
        old = opened.enter_context(_program(ident))
        other.clear(ident)
        undo.callback(_put_back, other, old, ident, 0)


@contextlib.contextmanager
def _program(ident: int) -> Iterator[int]:
    """Yield a descriptor of a loaded program, which keeps it alive while it is detached; -1 for id
    0.
    """
    fd = libbpf.program_fd(ident) if ident else -1
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _put_back(where: Place, old: int, before: int, ident: int) -> None:
    with contextlib.suppress(OSError):  # the interface is gone
        if before:
            where.put(old, ident)
        else:
            where.clear(ident)


def _clear_elsewhere(spots: list[_Spot], hook: Hook | None, owned: Owned, pins: Pins) -> bool:
    """Detach our programs from everywhere but ``hook`` of these interfaces; return whether there
    were any.

    A change of the hook or of the interfaces thus leaves nothing behind.
    """
    kept = {spot.ifindex for spot in spots}
    cleared = False
    for ifindex, name in socket.if_nameindex():
        for other in BEST_FIRST:
            if other is hook and ifindex in kept:
                continue
            cleared |= _clear(place(other, ifindex, pins), owned, f"{name}, {other.value}")
    if hook is not Hook.EXTERNAL:
        cleared |= _clear(EntryPlace(pins.entry), owned, str(pins.entry))
    return cleared


def _clear(where: Place, owned: Owned, name: str) -> bool:
    with contextlib.suppress(OSError):  # the interface is gone
        ident = where.current()
        if ident in owned:
            where.clear(ident)
            log.info("taken off", where=name, program=ident)
            return True
    return False


def pin(fd: int, pins: Pins) -> None:
    """Pin the program, so that people and `lbctl doctor` see which one is this instance's."""
    pins.next_program.unlink(missing_ok=True)
    libbpf.object_pin(fd, pins.next_program)
    pins.next_program.rename(pins.program)


def attach_helper(interface: str, fd: int) -> Hook:
    """Attach a program that needs no tables (pass, decap) and stays attached after we exit.

    It replaces only a program of the same name.
    """
    ifindex = interface_index(interface)
    current = libbpf.xdp_query(ifindex).id
    if current and program_name(current) != libbpf.program_info(fd).name:
        raise DataplaneError(
            f"another XDP program is attached: {program_name(current)!r}, id {current}",
            where=f"interface {interface}",
            remedy=f"`ip link set dev {interface} xdp off; ip link set dev {interface} xdpgeneric "
            "off` removes it, if nobody needs it",
        )
    for mode in _XDP:
        try:
            libbpf.xdp_attach(ifindex, fd, XDP_FLAGS[mode])
        except OSError as error:
            problem = error
        else:
            return mode
    raise DataplaneError(explain(problem), where=f"interface {interface}")


def detach_named(interface: str, names: Collection[str]) -> tuple[str, ...]:
    """Detach the XDP programs of these names from an interface; return the names of those found."""
    found = []
    for mode in _XDP:
        there = XdpPlace(interface_index(interface), mode)
        ident = there.current()
        if ident and (name := program_name(ident)) in names:
            there.clear(ident)
            found.append(name)
    return tuple(found)
