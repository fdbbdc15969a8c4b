"""Decides and does the attachment: which hook, in whose place, never over a stranger.

One hook for all interfaces of an instance. What a hook can do is in ``hooks``, one file each.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Container, Iterable, Iterator
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

BEST_FIRST = (Hook.NATIVE, Hook.TC, Hook.GENERIC)  # what `auto` tries
# Native XDP on a veth loses every packet that it sends, unless the far end has a program, too,
# and senders make whole checksums. None of this shows at this end, and tc costs less there.
VETH_BEST_FIRST = (Hook.TC, Hook.GENERIC)
_XDP = (Hook.NATIVE, Hook.GENERIC)


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where the program sits on one interface, and why there."""

    interface: str
    ifindex: int
    mode: Hook
    reason: str


@dataclass(frozen=True, slots=True)
class _Spot:
    """An interface that is to get the program."""

    name: str
    ifindex: int


class _RefusedError(Exception):
    """A hook does not take the program on one of the interfaces."""


def with_reason(new: Attachment, before: Attachment | None) -> Attachment:
    """The new one, with the reason why the hook was taken in the first place."""
    if before is None or before.mode is not new.mode:
        return new
    return replace(new, reason=before.reason)


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


def place(hook: Hook, ifindex: int, pins: Pins) -> Place:
    """The place of a hook on an interface; the external one is the same for all."""
    if hook is Hook.EXTERNAL:
        return EntryPlace(pins.entry)
    return TcPlace(ifindex) if hook is Hook.TC else XdpPlace(ifindex, hook)


def sits(attachment: Attachment, idents: Container[int], pins: Pins) -> bool:
    """Whether a program with one of these ids is where it was put."""
    try:
        return place(attachment.mode, attachment.ifindex, pins).current() in idents
    except OSError:  # the interface is gone
        return False


def check_free(interfaces: Iterable[str], wanted: Hook, pins: Pins) -> Hook | None:
    """Refuse what somebody else's program occupies; the hook at which ours sits, if it does."""
    spots = _spots(interfaces)
    owned = Owned(pins)
    held = _held(spots, owned, pins)
    _refuse_siblings(spots, owned, pins)
    _refuse_strangers(spots, order(wanted, held, veth_among(spot.name for spot in spots))[0], owned)
    return held


def attach(
    interfaces: Iterable[str],
    wanted: Hook,
    pins: Pins,
    program: Callable[[ProgramType], int],
) -> tuple[Attachment, ...]:
    """Put the program on all interfaces, atomically in the place of our last one.

    ``auto`` keeps the hook of our last one, if it would take that hook at all; on free interfaces
    it takes the best that all of them accept. ``program`` gives the descriptor of the program of a
    type. When no hook takes it, what ran goes on, and DataplaneError tells what each refused.
    """
    spots = _spots(interfaces)
    owned = Owned(pins)
    held = _held(spots, owned, pins)
    veth = veth_among(spot.name for spot in spots)
    refusals: list[str] = []
    for hook in order(wanted, held, veth):
        _refuse_strangers(spots, hook, owned)
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
    """Take our program off every interface of this network namespace, and from those that call
    it; true if it was anywhere. A stranger's stays.
    """
    return _clear_elsewhere([], None, Owned(pins), pins)


def attached_to(interfaces: Iterable[str]) -> frozenset[int]:
    """The ids of all programs on these interfaces, whosever they are."""
    found: set[int] = set()
    for name in interfaces:
        with contextlib.suppress(OSError):  # it is gone
            ifindex = socket.if_nametoindex(name)
            found.add(TcPlace(ifindex).current())
            there = libbpf.xdp_query(ifindex)
            found |= {there.native, there.generic, there.offloaded}
    return frozenset(found - {0})


def _spots(interfaces: Iterable[str]) -> list[_Spot]:
    return [_Spot(name, interface_index(name)) for name in interfaces]


def _held(spots: list[_Spot], owned: Owned, pins: Pins) -> Hook | None:
    for hook in (*BEST_FIRST, Hook.EXTERNAL):
        if any(place(hook, spot.ifindex, pins).current() in owned for spot in spots):
            return hook
    return None


def veth_among(interfaces: Iterable[str]) -> str:
    """The first of the interfaces that is a veth; one is enough, as all get the same hook."""
    return next(filter(is_veth, interfaces), "")


def order(wanted: Hook, held: Hook | None, veth: str = "") -> tuple[Hook, ...]:
    """The hooks to try, the best first; ``veth`` names an interface that is one."""
    if wanted is not Hook.AUTO:
        return (wanted,)
    best = VETH_BEST_FIRST if veth else BEST_FIRST
    if held is None or held not in best:
        return best
    return (held, *(hook for hook in best if hook is not held))


def _reason(hook: Hook, wanted: Hook, held: Hook | None, refusals: list[str], pins: Pins) -> str:
    if hook is Hook.EXTERNAL:
        return f"configured: others call {pins.entry}"
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
    told = "; ".join(refusals)
    if wanted is Hook.NATIVE:
        message = f"the driver takes no XDP program ({told})"
        remedy = "`hook: tc` works with every driver, and so does `hook: generic`"
    else:
        message = f"no hook takes the program ({told})"
        remedy = "`hook: auto` takes the best that works"
    return DataplaneError(
        message,
        where=f"interface {names}",
        remedy=f"{remedy}; `lbctl doctor` tells what each needs",
    )


# -- strangers


def _refuse_strangers(spots: list[_Spot], hook: Hook, owned: Owned) -> None:
    for spot in spots:
        if hook in _XDP:
            ident = libbpf.xdp_query(spot.ifindex).id
            if ident and ident not in owned:
                raise _xdp_stranger(spot.name, ident)
        elif hook is Hook.TC:
            ident = TcPlace(spot.ifindex).current()
            if ident and ident not in owned:
                raise _tc_stranger(spot.name, ident)


def _refuse_siblings(spots: list[_Spot], owned: Owned, pins: Pins) -> None:
    """Another instance of this host, or this one under its former name, at whatever hook."""
    for spot in spots:
        for hook in BEST_FIRST:
            ident = place(hook, spot.ifindex, pins).current()
            owner = instance.owner_of(ident) if ident and ident not in owned else None
            if owner is not None:
                raise DataplaneError(
                    f"the program of the instance {owner!r} is attached",
                    where=f"interface {spot.name}",
                    remedy=f"if that is the former name of this one: `lb-agent take-over --from "
                    f"{owner} --config FILE`, which costs no connection; if it is another one: "
                    "stop its agent, then `lb-agent detach` with its configuration",
                )


def _xdp_stranger(interface: str, ident: int) -> DataplaneError:
    return DataplaneError(
        f"another XDP program is attached: {program_name(ident)!r}, id {ident}",
        where=f"interface {interface}",
        remedy="`hook: external` lets it call the balancer (docs/operations.md, behind a "
        "dispatcher), `hook: tc` goes behind it; "
        f"`bpftool prog show id {ident}` tells whose it is; if nobody needs it, "
        f"`ip link set dev {interface} xdp off; ip link set dev {interface} xdpgeneric off` "
        "removes it",
    )


def _tc_stranger(interface: str, ident: int) -> DataplaneError:
    return DataplaneError(
        f"another program has our place at tc ingress: {program_name(ident)!r}, id {ident}",
        where=f"interface {interface}",
        remedy=f"`bpftool prog show id {ident}` tells whose it is; if nobody needs it, `tc filter "
        f"del dev {interface} ingress pref {PRIORITY} handle {HANDLE:#x} bpf` removes it",
    )


def program_name(ident: int) -> str:
    """The name of a loaded program."""
    with _program(ident) as fd:
        return libbpf.program_info(fd).name


# -- changes


def _put_everywhere(spots: list[_Spot], hook: Hook, fd: int, owned: Owned, pins: Pins) -> None:
    """On all interfaces or on none: what was there before comes back when one refuses."""
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
    """A descriptor of a loaded program, which keeps it alive when it is taken off; of none, -1."""
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
    """Take our programs off wherever they sit but at ``hook`` of these interfaces.

    So a change of the hook or of the interfaces leaves nothing behind.
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
    """For people and `lbctl doctor`: which program is this instance's."""
    pins.next_program.unlink(missing_ok=True)
    libbpf.object_pin(fd, pins.next_program)
    pins.next_program.rename(pins.program)


def attach_helper(interface: str, fd: int) -> Hook:
    """Attach a program that needs no tables (pass, decap) and stays after we exit.

    Replaces only a program of the same name.
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
