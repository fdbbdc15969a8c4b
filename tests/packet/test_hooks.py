"""Every hook with programs of a few instructions: who sits where, in whose place, and what comes
back when one refuses.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.dataplane import attach, libbpf, pins
from agent.dataplane.hooks.external import EntryPlace
from agent.dataplane.hooks.own import Owned
from agent.dataplane.hooks.tc import HANDLE, PRIORITY, TcPlace
from agent.dataplane.libbpf import ProgramType
from agent.errors import DataplaneError
from agent.model import Hook
from lbctl.doctor import bpf
from lbctl.doctor.facts import Entry
from tests.packet.programs import PASS, Maker, maker

pytestmark = pytest.mark.usefixtures("network")

HOOKS = (Hook.NATIVE, Hook.TC, Hook.GENERIC, Hook.EXTERNAL)


@pytest.fixture
def mine(instance: str) -> pins.Pins:
    return pins.pins_of(instance)


@pytest.fixture
def program(mine: pins.Pins) -> Iterator[Maker]:
    with maker(mine) as made:
        yield made


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interfaces are taken for network cards: there is none here with native XDP."""
    monkeypatch.setattr(attach, "is_veth", lambda _interface: False)


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def index(name: str) -> int:
    return attach.interface_index(name)


def found(mine: pins.Pins, *interfaces: str) -> dict[str, int]:
    """Programs by place, where there is one."""
    programs = {}
    for name in interfaces or ("here",):
        for hook in (Hook.NATIVE, Hook.TC, Hook.GENERIC):
            programs[f"{name} {hook.value}"] = attach.place(hook, index(name), mine).current()
    programs["external"] = EntryPlace(mine.entry).current()
    return {where: ident for where, ident in programs.items() if ident}


def put(
    mine: pins.Pins, program: Callable[[ProgramType], int], wanted: Hook, *interfaces: str
) -> tuple[attach.Attachment, ...]:
    return attach.attach(interfaces or ("here",), wanted, mine, program)


def occupy_tc(interface: str) -> None:
    """A filter of another kind at our priority: the kernel takes none of ours there."""
    sh(f"tc qdisc add dev {interface} clsact")
    sh(
        f"tc filter add dev {interface} ingress prio {PRIORITY} protocol all "
        "u32 match u32 0 0 flowid 1:1"
    )


def stranger(interface: str, mode: int = libbpf.XDP_DRV_MODE) -> int:
    fd = libbpf.load_pass_program()
    libbpf.xdp_attach(index(interface), fd, mode)
    os.close(fd)
    return libbpf.xdp_query(index(interface)).id


def where(hook: Hook, interface: str = "here") -> str:
    return "external" if hook is Hook.EXTERNAL else f"{interface} {hook.value}"


# -- one interface


@pytest.mark.parametrize("hook", HOOKS)
def test_a_program_goes_where_it_was_asked_for_and_nowhere_else(
    mine: pins.Pins, program: Maker, hook: Hook
):
    (attachment,) = put(mine, program, hook)
    assert (attachment.interface, attachment.mode) == ("here", hook)
    assert attachment.reason.startswith("configured")
    assert found(mine) == {where(hook): program.last}
    assert attach.sits(attachment, {program.last}, mine)
    assert not attach.sits(attachment, {program.last + 1}, mine)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_next_program_takes_the_place_of_the_last(mine: pins.Pins, program: Maker, hook: Hook):
    put(mine, program, hook)
    (attachment,) = put(mine, program, hook)
    assert found(mine) == {where(hook): program.last}
    if hook is not Hook.EXTERNAL:
        assert attachment.reason == "took the place of the last program"


@pytest.mark.parametrize("second", HOOKS)
@pytest.mark.parametrize("first", HOOKS)
def test_a_change_of_the_hook_leaves_nothing_at_the_old_one(
    mine: pins.Pins, program: Maker, first: Hook, second: Hook
):
    put(mine, program, first)
    put(mine, program, second)
    assert found(mine) == {where(second): program.last}


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("held", [Hook.NATIVE, Hook.TC, Hook.GENERIC])
def test_auto_keeps_the_hook_of_the_last_program(mine: pins.Pins, program: Maker, held: Hook):
    put(mine, program, held)
    program.asked.clear()
    (attachment,) = put(mine, program, Hook.AUTO)
    assert attachment.mode is held
    assert len(program.asked) == 1, "compiled for that hook alone"


@pytest.mark.usefixtures("cards")
def test_auto_after_external_takes_the_best(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.EXTERNAL)
    (attachment,) = put(mine, program, Hook.AUTO)
    assert (attachment.mode, attachment.reason) == (Hook.NATIVE, "the fastest")
    assert found(mine) == {where(Hook.NATIVE): program.last}


def test_auto_goes_to_tc_where_the_driver_has_no_xdp_and_says_so(mine: pins.Pins, program: Maker):
    (attachment,) = put(mine, program, Hook.AUTO, "lo")
    assert attachment.mode is Hook.TC
    assert attachment.reason == "native: the driver has no native XDP"
    assert program.asked == [ProgramType.XDP, ProgramType.SCHED_CLS]


@pytest.mark.usefixtures("cards")
def test_auto_goes_to_tc_where_packets_are_too_large_for_xdp(mine: pins.Pins, program: Maker):
    sh("ip link set here mtu 9000; ip link set there mtu 9000")
    (attachment,) = put(mine, program, Hook.AUTO)
    assert attachment.mode is Hook.TC
    assert "MTU" in attachment.reason


@pytest.mark.parametrize("held", [None, Hook.NATIVE, Hook.TC, Hook.EXTERNAL])
def test_auto_goes_to_tc_on_a_veth_and_says_why(mine: pins.Pins, program: Maker, held: Hook | None):
    if held is not None:
        put(mine, program, held)
    (attachment,) = put(mine, program, Hook.AUTO)
    assert attachment.mode is Hook.TC
    if held is not Hook.TC:
        assert attachment.reason.startswith("native: here is a veth, where native XDP loses")
    assert found(mine) == {where(Hook.TC): program.last}


def test_auto_goes_to_generic_at_last_and_tells_both_refusals(mine: pins.Pins, program: Maker):
    occupy_tc("lo")
    (attachment,) = put(mine, program, Hook.AUTO, "lo")
    assert attachment.mode is Hook.GENERIC
    assert attachment.reason == (
        "native: the driver has no native XDP; "
        f"tc: another kind of filter has priority {PRIORITY} at tc ingress"
    )


def test_a_program_that_does_not_load_for_tc_is_a_refusal_of_auto(mine: pins.Pins, program: Maker):
    def picky(kind: ProgramType) -> int:
        if kind is ProgramType.SCHED_CLS:
            raise DataplaneError("the verifier refuses")
        return program(kind)

    (attachment,) = put(mine, picky, Hook.AUTO, "lo")
    assert attachment.mode is Hook.GENERIC
    assert "tc: the verifier refuses" in attachment.reason
    with pytest.raises(DataplaneError, match="the verifier refuses"):
        put(mine, picky, Hook.TC, "lo")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Hook.NATIVE, "the driver takes no XDP program .native: the driver has no native XDP."),
        (Hook.TC, "no hook takes the program .tc: another kind of filter has priority"),
    ],
)
def test_a_hook_that_refuses_leaves_what_ran(
    mine: pins.Pins, program: Maker, wanted: Hook, message: str
):
    put(mine, program, Hook.GENERIC, "lo")
    before = found(mine, "lo")
    occupy_tc("lo")
    with pytest.raises(DataplaneError, match=message) as caught:
        put(mine, program, wanted, "lo")
    assert "hook:" in caught.value.remedy
    assert found(mine, "lo") == before


def test_a_program_that_was_taken_off_is_missed_and_put_back(mine: pins.Pins, program: Maker):
    (attachment,) = put(mine, program, Hook.TC)
    sh("tc qdisc del dev here clsact")
    assert not attach.sits(attachment, {program.last}, mine)
    put(mine, program, Hook.TC)
    assert found(mine) == {where(Hook.TC): program.last}


# -- several interfaces


@pytest.mark.usefixtures("cards")
def test_every_interface_gets_the_program(mine: pins.Pins, program: Maker):
    both = put(mine, program, Hook.AUTO, "here", "there")
    assert [(a.interface, a.mode) for a in both] == [
        ("here", Hook.NATIVE),
        ("there", Hook.NATIVE),
    ]
    assert found(mine, "here", "there") == {
        "here native": program.last,
        "there native": program.last,
    }
    put(mine, program, Hook.AUTO, "here", "there")
    assert set(found(mine, "here", "there").values()) == {program.last}


@pytest.mark.usefixtures("cards")
def test_one_hook_serves_all_so_the_best_that_all_accept_is_taken(mine: pins.Pins, program: Maker):
    both = put(mine, program, Hook.AUTO, "here", "lo")
    assert {a.mode for a in both} == {Hook.TC}
    assert both[0].reason == "native: lo: the driver has no native XDP"
    assert found(mine, "here", "lo") == {"here tc": program.last, "lo tc": program.last}


def test_an_interface_that_joins_gets_the_hook_of_the_others(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.GENERIC, "here")
    both = put(mine, program, Hook.AUTO, "here", "there")
    assert {a.mode for a in both} == {Hook.GENERIC}


def test_one_interface_that_refuses_changes_none(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.GENERIC, "here", "lo")
    before = found(mine, "here", "lo")
    with pytest.raises(DataplaneError, match="native: lo: the driver has no native XDP"):
        put(mine, program, Hook.NATIVE, "here", "lo")
    assert found(mine, "here", "lo") == before


def test_an_interface_that_is_no_longer_named_is_left(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.NATIVE, "here", "there")
    put(mine, program, Hook.NATIVE, "there")
    assert found(mine, "here", "there") == {"there native": program.last}


@pytest.mark.parametrize("hook", HOOKS)
def test_detaching_takes_it_off_everywhere(mine: pins.Pins, program: Maker, hook: Hook):
    put(mine, program, hook, "here", "there")
    assert attach.detach(mine)
    assert found(mine, "here", "there") == {}
    assert not attach.detach(mine)


# -- strangers


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("mode", [libbpf.XDP_DRV_MODE, libbpf.XDP_SKB_MODE])
@pytest.mark.parametrize("wanted", [Hook.AUTO, Hook.NATIVE, Hook.GENERIC])
def test_anothers_xdp_program_is_refused_with_the_ways_out(
    mine: pins.Pins, program: Maker, wanted: Hook, mode: int
):
    theirs = stranger("there", mode)
    with pytest.raises(DataplaneError, match=f"'steelyard_pass', id {theirs}") as caught:
        put(mine, program, wanted, "here", "there")
    assert caught.value.where == "interface there"
    assert "hook: external" in caught.value.remedy
    assert "hook: tc" in caught.value.remedy
    assert libbpf.xdp_query(index("there")).id == theirs
    assert libbpf.xdp_query(index("here")).id == 0


@pytest.mark.parametrize("wanted", [Hook.TC, Hook.EXTERNAL])
def test_behind_anothers_xdp_program_it_runs_at_tc_or_is_called(
    mine: pins.Pins, program: Maker, wanted: Hook
):
    theirs = stranger("here")
    put(mine, program, wanted)
    assert libbpf.xdp_query(index("here")).native == theirs
    assert found(mine)[where(wanted)] == program.last
    attach.detach(mine)
    assert libbpf.xdp_query(index("here")).native == theirs


def test_another_instance_s_filter_is_refused(mine: pins.Pins, program: Maker):
    second = pins.pins_of(f"{mine.folder.parent.name}-two")
    try:
        with maker(second) as theirs:
            put(second, theirs, Hook.TC)
            with pytest.raises(DataplaneError, match="our place at tc ingress: 'ours'") as caught:
                put(mine, program, Hook.TC)
            assert f"handle {HANDLE:#x}" in caught.value.remedy
            assert TcPlace(index("here")).current() == theirs.last
    finally:
        pins.remove(second)


def test_filters_of_others_stay_before_and_behind_ours(mine: pins.Pins, program: Maker):
    sh("tc qdisc add dev here clsact")
    for priority in (1, 49_152):
        sh(f"tc filter add dev here ingress prio {priority} u32 match u32 0 0 flowid 1:1")
    put(mine, program, Hook.TC)
    put(mine, program, Hook.TC)
    shown = sh("tc filter show dev here ingress")
    assert [line.split()[4] for line in shown.splitlines() if "direct-action" in line] == [
        str(PRIORITY)
    ]
    attach.detach(mine)
    left = sh("tc filter show dev here ingress")
    assert "bpf" not in left
    assert {"pref 1 ", "pref 49152 "} <= {p for p in ("pref 1 ", "pref 49152 ") if p in left}


def test_our_own_are_known_by_the_tables_they_use(mine: pins.Pins, program: Maker):
    ours = program(ProgramType.XDP)
    theirs = libbpf.load_pass_program()
    owned = Owned(mine)
    assert libbpf.program_info(ours).id in owned
    assert libbpf.program_info(theirs).id not in owned
    assert 0 not in owned
    os.close(theirs)
    older = Owned(pins.Pins(mine.folder.parent / "abi99"))
    assert libbpf.program_info(ours).id in older, "of another ABI, but of this instance"


# -- external


def test_the_entry_stays_the_same_for_those_who_opened_it(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.EXTERNAL)
    opened = libbpf.object_get(mine.entry)
    first = libbpf.map_info(opened).id
    for hook in (Hook.EXTERNAL, Hook.NATIVE, Hook.EXTERNAL):
        put(mine, program, hook)
    assert libbpf.map_info(opened).id == first
    assert libbpf.map_lookup(opened, bytes(4), 4) == program.last.to_bytes(4, "little")
    os.close(opened)


def test_the_entry_goes_with_the_instance_and_not_with_an_abi(mine: pins.Pins, program: Maker):
    put(mine, program, Hook.EXTERNAL)
    older = pins.Pins(mine.folder.parent / "abi1")
    older.folder.mkdir()
    pins.remove(older)
    assert mine.entry.exists()
    pins.remove(mine)
    assert not Path(mine.folder.parent).exists()


def test_the_doctor_sees_what_is_in_the_entry_and_who_can_call_it(mine: pins.Pins, program: Maker):
    assert bpf.entry(mine.entry) is None
    put(mine, program, Hook.EXTERNAL)
    assert bpf.entry(mine.entry) == Entry(str(mine.entry), program.last, ())
    caller = Maker(libbpf.object_get(mine.entry), PASS)
    caller(ProgramType.XDP)
    assert bpf.entry(mine.entry) == Entry(str(mine.entry), program.last, ("ours",))
    caller.close()
    attach.detach(mine)
    assert bpf.entry(mine.entry) == Entry(str(mine.entry), 0, ())


@pytest.mark.parametrize("hook", HOOKS)
def test_the_doctor_knows_our_program_by_its_pin(mine: pins.Pins, program: Maker, hook: Hook):
    put(mine, program, hook)
    assert bpf.pinned_program_id(mine.program) == program.last
    assert bpf.pinned_program_id(mine.table("flows")) is None
