"""Where the balancer hooks in, by what is configured: compiled for it, swapped there, and alone.

What each hook does with programs is in test_hooks.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.dataplane import attach, helpers, libbpf, pins, program, running
from agent.dataplane.compile import Compiled
from agent.dataplane.hooks.tc import TcPlace
from agent.dataplane.hooks.xdp import XdpPlace
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.program import Dataplane, remove_instance
from agent.errors import DataplaneError, NetworkError
from agent.model import Config, Hook
from tests.packet import harness
from tests.packet.frames import VIP4, VIP6, tcp
from tests.packet.harness import Rig, backend, service

pytestmark = pytest.mark.usefixtures("network")


def on_interface(name: str) -> libbpf.XdpAttachment:
    return libbpf.xdp_query(attach.interface_index(name))


HOOKS = (Hook.NATIVE, Hook.TC, Hook.GENERIC, Hook.EXTERNAL)
MOST = (
    Hook.NATIVE,
    Hook.TC,
    pytest.param(Hook.GENERIC, marks=pytest.mark.soak),
    pytest.param(Hook.EXTERNAL, marks=pytest.mark.soak),
)


def start(
    instance: str, interface: str = "here", mode: Hook = Hook.NATIVE, *services, more=()
) -> Dataplane:
    config = Config(instance, interface, backend_interfaces=more, hook=mode, tables=harness.SMALL)
    dataplane = harness.load(config, services or (service(),))
    dataplane.attach()
    return dataplane


def stranger(interface: str) -> int:
    """Somebody else's program on an interface."""
    fd = libbpf.load_pass_program()
    libbpf.xdp_attach(attach.interface_index(interface), fd, libbpf.XDP_SKB_MODE)
    os.close(fd)
    return on_interface(interface).id


def test_auto_takes_native_where_the_driver_has_it(instance: str):
    subprocess.run(["ip", "tuntap", "add", "card", "mode", "tap"], check=True)
    dataplane = start(instance, "card", Hook.AUTO)
    assert dataplane.attachment.mode is Hook.NATIVE
    assert dataplane.attachment.reason == "the fastest"
    assert on_interface("card").native == dataplane.program.info.id
    assert dataplane.is_attached()


@pytest.mark.parametrize(
    "names", [("here",), ("lo", "there")], ids=["its only interface", "one of two"]
)
def test_auto_takes_tc_on_a_veth_and_says_why(instance: str, names: tuple[str, ...]):
    interface, *more = names
    dataplane = start(instance, interface, Hook.AUTO, more=tuple(more))
    assert {there.mode for there in dataplane.attachments} == {Hook.TC}
    assert f"{names[-1]} is a veth" in dataplane.attachment.reason
    assert [on_interface(name).id for name in names] == [0] * len(names)
    again = start(instance, interface, Hook.AUTO, more=tuple(more))
    assert "is a veth" in again.attachment.reason, "after a restart, too"


def test_auto_leaves_native_on_a_veth_and_moves_no_flow(instance: str):
    """As after an upgrade from a release whose ``auto`` took native XDP there."""
    web = service(backend("a"), backend("b"))
    rig = Rig(start(instance, "here", Hook.NATIVE, web))
    rig.serve(web)
    before = {port: rig.backend_of(tcp("S", client_port=port)) for port in range(2000, 2010)}
    again = start(instance, "here", Hook.AUTO, web)
    assert (again.attachment.mode, on_interface("here").id) == (Hook.TC, 0)
    rig.dataplane = again
    sent = {port: rig.send(tcp("A", client_port=port)).data for port in before}
    assert {port: rig.name_of_mac(frame[:6]) for port, frame in sent.items()} == before


def test_generic_is_taken_when_asked_for(instance: str):
    dataplane = start(instance, "here", Hook.GENERIC)
    assert (dataplane.attachment.mode, dataplane.attachment.reason) == (
        Hook.GENERIC,
        "configured",
    )
    assert on_interface("here").generic == dataplane.program.info.id


@pytest.mark.parametrize("hook", HOOKS)
def test_the_program_is_of_the_type_that_its_hook_takes(instance: str, hook: Hook):
    dataplane = start(instance, "here", hook)
    kind = ProgramType.SCHED_CLS if hook is Hook.TC else ProgramType.XDP
    assert (dataplane.program.kind, dataplane.program.info.type) == (kind, kind)
    assert dataplane.attachment.mode is hook
    assert dataplane.is_attached()


def test_auto_goes_to_tc_and_says_why(instance: str):
    dataplane = start(instance, "lo", Hook.AUTO)
    assert dataplane.attachment.mode is Hook.TC
    assert dataplane.program.info.type == ProgramType.SCHED_CLS
    assert "no native XDP" in dataplane.attachment.reason


def test_after_a_restart_it_is_compiled_once_and_for_the_hook_it_has(instance: str):
    start(instance, "lo", Hook.AUTO)
    config = Config(instance, "lo", tables=harness.SMALL)
    again = harness.load(config, (service(),))
    assert again.takes_over
    loaded = again.program
    again.attach()
    assert again.program is loaded
    assert again.attachment.mode is Hook.TC


def test_native_alone_is_refused_where_the_driver_has_none(instance: str):
    with pytest.raises(DataplaneError, match="takes no XDP program") as caught:
        start(instance, "lo", Hook.NATIVE)
    assert "hook: tc" in caught.value.remedy
    assert on_interface("lo").id == 0


def test_an_interface_that_is_not_there_is_named_with_those_that_are(instance: str):
    with pytest.raises(NetworkError) as caught:
        start(instance, "eth99")
    assert "eth99" in caught.value.where
    assert "here, lo, there" in caught.value.remedy


def test_a_strangers_program_is_refused_and_stays(instance: str):
    theirs = stranger("here")
    with pytest.raises(DataplaneError, match="another XDP program is attached") as caught:
        start(instance)
    assert str(theirs) in str(caught.value)
    assert on_interface("here").id == theirs
    assert not pins.pins_of(instance).folder.exists(), "nothing was made"


def test_a_stranger_that_came_while_we_compiled_is_refused_too(instance: str):
    config = Config(instance, "here", hook=Hook.NATIVE, tables=harness.SMALL)
    dataplane = harness.load(config, (service(),))
    theirs = stranger("here")
    with pytest.raises(DataplaneError, match="another XDP program is attached"):
        dataplane.attach()
    assert on_interface("here").id == theirs


def test_a_restart_takes_the_place_of_the_last_program_and_moves_no_flow(instance: str):
    web = service(backend("a"), backend("b"))
    rig = Rig(start(instance, "here", Hook.NATIVE, web))
    rig.serve(web)
    before = {port: rig.backend_of(tcp("S", client_port=port)) for port in range(2000, 2050)}
    pins.pins_of(instance).table(running.TABLE).unlink()  # as if it were another program
    again = start(instance, "here", Hook.NATIVE, web)
    assert on_interface("here").id == again.program.info.id != rig.dataplane.program.info.id
    assert again.attachment.reason.startswith("took the place of the last program")
    assert not rig.dataplane.is_attached()
    rig.dataplane = again
    after = {port: rig.backend_of(tcp("A", client_port=port)) for port in before}
    assert after == before
    assert rig.counts("a").opened + rig.counts("b").opened == 50


def test_the_program_outlives_its_agent(instance: str):
    child = os.fork()
    if child == 0:
        try:
            start(instance)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ident = on_interface("here").id
    assert ident
    assert libbpf.program_info(libbpf.object_get(pins.pins_of(instance).program)).id == ident


@pytest.mark.parametrize("first", [Hook.NATIVE, Hook.GENERIC])
def test_another_mode_after_a_restart_is_taken(instance: str, first: Hook):
    second = Hook.GENERIC if first is Hook.NATIVE else Hook.NATIVE
    start(instance, "here", first)
    again = start(instance, "here", second)
    found = on_interface("here")
    assert found.id == again.program.info.id
    assert bool(found.native) == (second is Hook.NATIVE)


def test_a_hook_that_the_driver_refuses_leaves_the_last_program_where_it_was(instance: str):
    running = start(instance, "lo", Hook.AUTO)
    with pytest.raises(DataplaneError, match="takes no XDP program"):
        start(instance, "lo", Hook.NATIVE)
    assert running.is_attached()


def test_auto_keeps_the_mode_that_our_last_program_had(instance: str):
    start(instance, "lo", Hook.GENERIC)
    assert start(instance, "lo", Hook.AUTO).attachment.mode is Hook.GENERIC


@pytest.mark.parametrize("hook", MOST)
def test_a_new_feature_swaps_the_program_under_the_same_tables(instance: str, hook: Hook):
    web = service(backend("a"))
    rig = Rig(start(instance, "here", hook, web, more=("there",)))
    rig.serve(web)
    rig.send(tcp("S"))
    old = rig.dataplane.program.info
    assert not rig.dataplane.ensure_features((web,))
    assert rig.dataplane.ensure_features((web, service(name="six", vip=VIP6)))
    assert rig.dataplane.attachment.reason.startswith("configured")  # still
    new = rig.dataplane.program.info
    assert (new.type, new.id != old.id) == (old.type, True)
    assert rig.dataplane.is_attached()
    assert {attachment.mode for attachment in rig.dataplane.attachments} == {hook}
    rig.send(tcp("A"))
    assert (rig.counts("a").opened, rig.counts("a").packets) == (1, 2)


@pytest.mark.parametrize("hook", [Hook.NATIVE, Hook.TC])
def test_the_last_program_is_attached_until_another_one_is(
    monkeypatch: pytest.MonkeyPatch, instance: str, hook: Hook
):
    """Whoever asks at any moment of a swap: a master that says otherwise gives its VIPs up."""
    web = service(backend("a"))
    dataplane = start(instance, "here", hook, web, more=("there",))
    found: list[bool] = []

    def asked(module: object, name: str) -> None:
        work = getattr(module, name)

        def around(*arguments: object) -> object:
            found.append(dataplane.is_attached())
            done = work(*arguments)
            found.append(dataplane.is_attached())
            return done

        monkeypatch.setattr(module, name, around)

    asked(program, "load_program")
    asked(attach, "attach")
    asked(TcPlace if hook is Hook.TC else XdpPlace, "put")
    before = dataplane.program.info.id
    assert dataplane.ensure_features((web, service(name="six", vip=VIP6)))
    assert dataplane.program.info.id != before
    assert len(found) >= 6
    assert all(found)
    assert dataplane.is_attached()


def test_a_swap_that_failed_leaves_the_last_program_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, instance: str
):
    web, six = service(backend("a")), service(name="six", vip=VIP6)
    dataplane = start(instance, "here", Hook.NATIVE, web)
    with monkeypatch.context() as broken:
        broken.setattr(XdpPlace, "put", refusing)
        with pytest.raises(DataplaneError):
            dataplane.ensure_features((web, six))
    assert dataplane.is_attached(), "the last one"
    assert on_interface("here").id != dataplane.program.info.id
    assert dataplane.ensure_features((web, six))
    assert on_interface("here").id == dataplane.program.info.id
    assert dataplane.is_attached()
    assert not dataplane.ensure_features((web, six))


def refusing(*_: object) -> None:
    raise OSError(errno.EBUSY, "busy")


def test_a_program_that_somebody_took_off_is_missed(instance: str):
    dataplane = start(instance)
    subprocess.run(["ip", "link", "set", "here", "xdp", "off"], check=True)
    assert not dataplane.is_attached()
    dataplane.attach()
    assert dataplane.is_attached()


@pytest.mark.parametrize("hook", [Hook.NATIVE, Hook.TC])
def test_an_interface_that_goes_is_missed_and_found_again(instance: str, hook: Hook):
    dataplane = start(instance, "here", hook)
    subprocess.run(["ip", "link", "del", "here"], check=True)
    assert not dataplane.is_attached()
    with pytest.raises(NetworkError, match="no such interface"):
        dataplane.attach()
    pair = ["ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]
    subprocess.run(pair, check=True)
    dataplane.attach()
    assert dataplane.is_attached()
    assert dataplane.ifindex == attach.interface_index("here")


def test_one_interface_without_the_program_is_missed(instance: str):
    dataplane = start(instance, "here", Hook.NATIVE, more=("there",))
    assert [attachment.interface for attachment in dataplane.attachments] == ["here", "there"]
    subprocess.run(["ip", "link", "set", "there", "xdp", "off"], check=True)
    assert not dataplane.is_attached()
    dataplane.attach()
    assert dataplane.is_attached()
    assert on_interface("here").id == on_interface("there").id == dataplane.program.info.id


@pytest.mark.parametrize("hook", MOST)
def test_removing_an_instance_leaves_neither_program_nor_pins(instance: str, hook: Hook):
    dataplane = start(instance, "here", hook, more=("there",))
    assert remove_instance(instance)
    assert not dataplane.is_attached()
    assert [on_interface(name).id for name in ("here", "there")] == [0, 0]
    assert not pins.pins_of(instance).folder.parent.exists()
    assert not remove_instance(instance)


def test_removing_an_instance_leaves_a_stranger_alone(instance: str):
    dataplane = start(instance)
    libbpf.xdp_attach(dataplane.ifindex, -1, libbpf.XDP_DRV_MODE)
    theirs = stranger("here")
    remove_instance(instance)
    assert on_interface("here").id == theirs


def test_two_instances_do_not_share_an_interface(instance: str):
    start(instance)
    other = harness.instance_name("two")
    try:
        with pytest.raises(
            DataplaneError, match=f"program of the instance '{instance}' is attached"
        ):
            start(other)
    finally:
        pins.remove(pins.pins_of(other))


# -- the programs beside the balancer


def test_pass_and_decap_attach_and_replace_only_themselves():
    assert helpers.attach_pass("there") is Hook.NATIVE
    assert helpers.attach_pass("there") is Hook.NATIVE
    with pytest.raises(DataplaneError, match="another XDP program is attached"):
        helpers.attach_decap("there", (ip_address(VIP4),))
    vips = (ip_address(VIP4), ip_address(VIP6))
    assert helpers.attach_decap("lo", vips) is Hook.GENERIC
    first = on_interface("lo").id
    assert helpers.attach_decap("lo", vips) is Hook.GENERIC
    assert on_interface("lo").id != first


# -- tables and memory


def test_no_rings_for_zones_are_a_size_like_any_other(instance: str):
    tables = replace(harness.SMALL, zone_rings=0)
    web = service(backend("a"))
    rig = Rig(harness.load(Config(instance, "lo", tables=tables), (web,)))
    rig.config = replace(rig.config, tables=tables)
    rig.serve(web)
    assert rig.backend_of(tcp("S")) == "a"


def test_memory_that_the_kernel_does_not_have_is_said_with_sizes_and_keys(
    instance: str, monkeypatch: pytest.MonkeyPatch
):
    make = libbpf.array_create

    def short(name: str, *rest: int) -> int:
        if name == "flows_cold":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name)
        return make(name, *rest)

    def refuse(*_: object) -> Compiled:
        raise DataplaneError("the program does not compile or load: Failed to compile BPF module")

    monkeypatch.setattr("agent.dataplane.tables.libbpf.array_create", short)
    monkeypatch.setattr("agent.dataplane.program.load_program", refuse)
    config = Config(instance, "lo", tables=replace(harness.SMALL, flows=2**20))
    with pytest.raises(DataplaneError, match=r"not so much left: tables\.flows 143 MB") as caught:
        harness.load(config, (service(),))
    assert "lower tables.flows" in caught.value.remedy
    monkeypatch.setattr("agent.dataplane.tables.libbpf.array_create", make)
    pins.remove(pins.pins_of(instance))
    with pytest.raises(DataplaneError, match="does not compile or load"):
        harness.load(config, (service(),))
