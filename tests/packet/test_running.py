"""After a restart with nothing changed the program that runs is taken over as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.dataplane import attach, libbpf, pins
from agent.dataplane.compile import Origin
from agent.dataplane.program import Dataplane
from agent.model import Config, Hook, Protocol, Service, ServiceKey
from tests.packet import harness
from tests.packet.frames import VIP6, tcp
from tests.packet.harness import Rig, backend, service

pytestmark = pytest.mark.usefixtures("network")


def start(
    instance: str,
    *services: Service,
    hook: Hook = Hook.NATIVE,
    there: str = "here",
) -> Dataplane:
    config = Config(instance, there, hook=hook, tables=harness.SMALL)
    dataplane = harness.load(config, services or (service(),))
    dataplane.attach()
    return dataplane


def on_interface(name: str = "here") -> int:
    return libbpf.xdp_query(attach.interface_index(name)).id


@pytest.mark.parametrize("hook", [Hook.NATIVE, Hook.TC, Hook.GENERIC, Hook.EXTERNAL])
def test_what_runs_is_taken_over_and_not_swapped(instance: str, hook: Hook):
    first = start(instance, hook=hook)
    again = start(instance, hook=hook)
    third = start(instance, hook=hook)
    ident = first.program.info.id
    assert [one.program.info.id for one in (again, third)] == [ident, ident]
    assert again.program.origin is Origin.RUNNING
    assert again.takes_over
    assert again.is_attached()
    assert again.program.tables.keys() >= {"flows", "events"}
    assert again.program.layout == first.program.layout


def test_it_goes_on_with_its_flows_and_learns_new_services(instance: str):
    web = service(backend("a"), backend("b"))
    rig = Rig(start(instance, web))
    rig.serve(web)
    before = {port: rig.backend_of(tcp("S", client_port=port)) for port in range(2000, 2010)}
    again = start(instance, web)
    assert again.program.origin is Origin.RUNNING
    rig.dataplane = again
    assert {port: rig.backend_of(tcp("A", client_port=port)) for port in before} == before
    ident = again.program.info.id
    assert again.ensure_features((web, service(backend("a"), name="six", vip=VIP6)))
    assert again.program.info.id != ident
    assert again.is_attached()
    wider = start(instance, web, service(name="six", vip=VIP6))
    assert (wider.program.origin, wider.program.info.id) == (
        Origin.RUNNING,
        again.program.info.id,
    )


def test_it_is_put_where_it_is_wanted_now(instance: str):
    first = start(instance)
    again = start(instance, there="there")
    assert again.program.info.id == first.program.info.id
    assert (on_interface("here"), on_interface("there")) == (0, first.program.info.id)


def forget_the_note(instance: str) -> None:
    pins.pins_of(instance).table("made_of").unlink()


def other_table(instance: str) -> None:
    """Somebody removed the pin of a table and made one like it."""
    path = pins.pins_of(instance).table("quic_ids")
    fd = libbpf.object_get(path)
    path.unlink()
    libbpf.object_pin(libbpf.map_create(libbpf.map_info(fd)), path)


def other_program(instance: str) -> None:
    """One that was attached by an agent which makes no note."""
    path = pins.pins_of(instance).program
    path.unlink()
    libbpf.object_pin(libbpf.load_pass_program(), path)


@pytest.mark.parametrize("befalls", [forget_the_note, other_table, other_program])
def test_what_is_not_surely_the_same_is_loaded_anew(instance: str, befalls: Callable[[str], None]):
    quic = Service("q", ServiceKey(service().key.vip, 443, Protocol.UDP),
                   quic_id_bytes=4)  # fmt: skip
    first = start(instance, quic)
    befalls(instance)
    again = start(instance, quic)
    assert again.program.origin is Origin.KEPT
    assert on_interface() == again.program.info.id != first.program.info.id


def test_another_hook_takes_another_program(instance: str):
    first = start(instance)
    again = start(instance, hook=Hook.TC)
    assert again.program.info.id != first.program.info.id
    assert again.program.origin is not Origin.RUNNING
