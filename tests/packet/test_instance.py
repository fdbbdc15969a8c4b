"""What is attached is known again by what it keeps, when pins are gone or the name is another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.dataplane import instance, libbpf, pins
from agent.dataplane import running as running_program
from agent.dataplane.attach import interface_index
from agent.dataplane.compile import compile_program
from agent.dataplane.pins import Pins
from agent.dataplane.program import Dataplane, remove_instance
from agent.dataplane.tables import shapes
from agent.errors import DataplaneError
from agent.model import Config, Hook, Tables
from agent.takeover import move_tables
from tests.packet.harness import close, instance_name, load, service
from tests.packet.test_swap import CALLER

pytestmark = pytest.mark.usefixtures("network")

SERVICES = (service(),)


@pytest.fixture
def config(instance: str) -> Config:
    return Config(instance, "here", hook=Hook.NATIVE, tables=Tables(1024, 16, 32, 101))


@pytest.fixture
def renamed(config: Config) -> Iterator[Config]:
    name = instance_name("renamed")
    pins.remove(pins.pins_of(name))
    yield replace(config, name=name)
    pins.remove(pins.pins_of(name))


def running(config: Config) -> Dataplane:
    dataplane = load(config, SERVICES)
    dataplane.attach()
    return dataplane


def end(dataplane: Dataplane) -> None:
    """As when the agent's process ends."""
    close(dataplane)


def unpin(found: Pins) -> None:
    """As ``rm -r /sys/fs/bpf/steelyard/NAME``."""
    for path in found.folder.iterdir():
        path.unlink()
    found.folder.rmdir()
    found.folder.parent.rmdir()


def map_id(path: Path) -> int:
    fd = libbpf.object_get(path)
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)


def map_ids(found: Pins) -> dict[str, int]:
    """Of all tables but the note of what the program is made of, which is written anew."""
    others = {found.program, found.table(running_program.TABLE)}
    return {path.name: map_id(path) for path in found.folder.iterdir() if path not in others}


def test_pins_that_went_under_a_running_agent_come_back_and_a_restart_finds_its_own(
    config: Config,
) -> None:
    first = running(config)
    first.tables.flows[7] = 4711
    before, keys, program = map_ids(first.pins), first.keys, first.program.info.id
    assert before.keys() == {*shapes(first.size), instance.TABLE}
    assert not first.lacks_pins
    unpin(first.pins)
    assert first.lacks_pins
    assert first.keep_pins() == ""
    assert map_ids(first.pins) == before
    assert not first.lacks_pins

    unpin(first.pins)  # and nobody is there who would notice
    end(first)
    again = load(config, SERVICES)
    assert again.takes_over, "the program that is attached is its own"
    assert again.keys == keys, "or no flow would be found again"
    used = {name: ident for name, ident in map_ids(again.pins).items() if before[name] == ident}
    assert used.keys() >= {"flows", "backends", "services4", "rings", "settings", instance.TABLE}
    assert again.tables.flows[7] == 4711
    again.attach()
    assert again.is_attached()
    assert again.program.info.id != program

    unpin(again.pins)
    end(again)
    assert remove_instance(config.name), "it is found to be taken off, too"
    assert libbpf.xdp_query(interface_index("here")).id == 0
    assert not again.pins.folder.exists()


def test_some_pins_that_are_gone_are_pinned_again_before_another_program_is_compiled(
    config: Config,
) -> None:
    dataplane = running(config)
    before = map_ids(dataplane.pins)
    for name in ("flows", "settings", instance.TABLE):
        dataplane.pins.table(name).unlink()
    dataplane.ensure_features((*SERVICES, service(name="six", vip="2001:db8::1")))
    assert map_ids(dataplane.pins) == before
    assert dataplane.is_attached()
    end(dataplane)


def test_a_renamed_instance_is_told_who_is_there_and_takes_it_over(
    config: Config, renamed: Config
) -> None:
    first = running(config)
    first.tables.flows[7] = 4711
    keys = first.keys
    end(first)
    for hook in (Hook.NATIVE, Hook.TC):
        with pytest.raises(DataplaneError, match=f"of the instance '{config.name}'") as refused:
            Dataplane(replace(renamed, hook=hook)).load(SERVICES)
        assert f"lb-agent take-over --from {config.name}" in refused.value.remedy
    move_tables(config.name, renamed.name)
    assert not pins.pins_of(config.name).folder.parent.exists()
    again = load(renamed, SERVICES)
    assert again.takes_over
    assert again.keys == keys
    assert again.tables.flows[7] == 4711
    assert instance.owner_of(again.program.info.id) == renamed.name
    again.attach()
    end(again)


def test_only_what_is_there_is_taken_over_and_never_over_what_has_tables(
    config: Config, renamed: Config
) -> None:
    with pytest.raises(DataplaneError, match="has left anything"):
        move_tables("nobody-of-that-name", renamed.name)
    for one in (config, renamed):
        pins.pins_of(one.name).folder.mkdir(parents=True)
    with pytest.raises(DataplaneError, match="tables of its own"):
        move_tables(config.name, renamed.name)


def test_an_instance_of_that_name_elsewhere_on_the_host_is_left_alone(config: Config) -> None:
    """A container may have one, on its own interfaces and with its own BPF file system."""
    theirs = running(config)
    theirs.tables.flows[7] = 4711
    before = map_ids(theirs.pins)
    unpin(theirs.pins)  # as seen from another BPF file system
    ours = load(replace(config, interface="there"), SERVICES)
    assert not ours.takes_over
    assert not before.items() & map_ids(ours.pins).items()
    assert ours.tables.flows[7] == 0
    end(ours)
    end(theirs)


def test_a_caller_finds_the_program_again_though_its_entry_was_unpinned(config: Config) -> None:
    dataplane = running(replace(config, hook=Hook.EXTERNAL))
    entry = dataplane.pins.entry
    caller = compile_program(CALLER.replace("PATH", str(entry)), "caller", {})
    libbpf.xdp_attach(interface_index("here"), caller.fd, libbpf.XDP_SKB_MODE)
    before = map_id(entry)
    entry.unlink()
    assert dataplane.lacks_pins
    assert dataplane.keep_pins() == ""
    assert map_id(entry) == before, "the caller has opened that one"
    entry.unlink()
    unpin(dataplane.pins)
    end(dataplane)
    again = load(replace(config, hook=Hook.EXTERNAL), SERVICES)
    assert again.takes_over
    again.attach()
    assert map_id(entry) == before
    end(again)
    caller.close()
