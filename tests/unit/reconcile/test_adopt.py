"""What a restarted agent takes over."""

from dataclasses import replace
from ipaddress import ip_address

from agent.model import AdminState, BackendRef, Config, Forward, Health
from agent.reconcile.adopt import adopt
from agent.state.desired import desired
from agent.state.identities import assign, member_of
from agent.state.tables import TableContents
from tests.unit.state.world import TABLES, A, B, hop, surroundings, web


def held(config: Config, **around) -> TableContents:
    ids = assign(config, TableContents(), frozenset(), lambda: 77)
    return desired(config, ids, surroundings(config, **around))


def config(*backends, **fields) -> Config:
    return Config("test", "eth0", tables=TABLES, services=(web(*backends, **fields),))


def test_health_is_as_it_was_where_the_tables_tell_it():
    some = config(A, B)
    found = adopt(some, held(some), 5.0)
    assert {ref.backend: h.health for ref, h in found.health.items()} == {
        "a": Health.UP,
        "b": Health.UP,
    }
    drained = config(replace(A, admin=AdminState.DRAIN), B)
    assert set(adopt(drained, held(drained), 5.0).health) == {BackendRef("web", "b")}


def test_who_got_new_flows_is_known_to_have_been_up():
    some = config(A, B)
    found = adopt(some, held(some, health={"a": Health.DOWN}), 5.0)
    assert found.up == {member_of(some.services[0], B)}


def test_next_hops_are_taken_over_with_their_tags_and_source():
    some = config(A, forward=Forward.FULLNAT)
    tagged = hop("10.0.0.21", vlans=((0x8100, 7),), source=ip_address("10.0.0.3"))
    found = adopt(some, held(some, hops={"a": tagged}), 5.0).hops[A.address]
    assert (found.vlans, found.source) == (tagged.vlans, tagged.source)
    assert (found.mac, found.mtu) == (tagged.mac, tagged.mtu)


def test_a_backend_at_another_port_is_another_one():
    some, moved = config(replace(A, port=8080)), config(replace(A, port=8081))
    assert adopt(some, held(some), 5.0).health
    found = adopt(moved, held(some), 5.0)
    assert (found.health, found.hops, found.up) == ({}, {}, frozenset())


def test_empty_tables_tell_nothing():
    found = adopt(config(A, B), TableContents(), 5.0)
    assert (found.health, found.hops, found.up) == ({}, {}, frozenset())
