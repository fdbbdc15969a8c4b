"""QUIC: who has moved to another address is known by the connection id
(draft-ietf-quic-load-balancers, the plaintext algorithm).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.model import AdminState, Backend, DownFlows, Forward, Protocol
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6, random_clients
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

LENGTHS = pytest.mark.parametrize("length", range(1, 9))
REST = bytes(range(0x80, 0x98))  # of the connection id, packet number, what is encrypted


def id_of(number: int, length: int) -> bytes:
    """A server id that differs from others in its first byte and in its last."""
    return bytes([number]) if length == 1 else bytes([number]) + bytes(length - 2) + bytes([number])


def short(server_id: bytes, first: int = 0x40, rotation: int = 0, rest: bytes = REST) -> bytes:
    """A packet with a short header (RFC 9000, section 17.3)."""
    return bytes([first, rotation << 5 | len(server_id)]) + server_id + rest


def long(server_id: bytes) -> bytes:
    """An Initial whose destination id looks like one of ours (section 17.2)."""
    connection = bytes([len(server_id)]) + server_id + REST[:8]
    return b"\xc0\x00\x00\x00\x01" + bytes([len(connection)]) + connection + REST


def members(length: int, count: int = 4, **fields: object) -> list[Backend]:
    return [
        backend(f"b{n}", f"10.1.0.{n + 1}", quic_server_id=id_of(n + 1, length), **fields)
        for n in range(count)
    ]


def serve(rig: Rig, backends: list[Backend], length: int = 4, vip: str = VIP4, **more) -> None:
    down = more.pop("down", ())
    rig.serve(
        service(*backends, vip=vip, port=443, protocol=Protocol.UDP, quic_id_bytes=length, **more),
        down=down,
    )


def packet(payload: bytes, port: int = 40_000, vip: str = VIP4, client: str = "") -> Packet:
    client = client or (CLIENT4 if vip == VIP4 else CLIENT6)
    return Packet(client, vip, port, 443, payload, None)


def taken(rig: Rig, payload: bytes, **where) -> str:
    return rig.backend_of(packet(payload, **where).frame())


@LENGTHS
@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_a_short_header_goes_to_the_server_that_it_names(hooked: Rig, length: int, vip: str):
    serve(hooked, members(length), length, vip)
    for address, port in random_clients(1, 20, ipv6=vip == VIP6):
        for n in range(4):
            payload = short(id_of(n + 1, length), rotation=n % 7)
            assert taken(hooked, payload, port=port, vip=vip, client=str(address)) == f"b{n}"


@LENGTHS
def test_only_the_bytes_of_the_id_decide(hooked: Rig, length: int):
    serve(hooked, members(length), length)
    for n, rest in enumerate((b"\0" * 20, b"\xff" * 20, REST), 1000):
        assert taken(hooked, short(id_of(2, length), rest=rest), port=n) == "b1"
        assert taken(hooked, short(id_of(2, length), 0x7F, rest=rest), port=n + 10) == "b1"


def test_a_connection_that_moves_is_recorded_where_it_went(rig: Rig):
    serve(rig, members(4))
    start = packet(long(bytes(4)))
    first = rig.backend_of(start.frame())
    other = next(n for n in range(4) if f"b{n}" != first)
    moved = packet(short(id_of(other + 1, 4)), port=50_000)
    assert rig.backend_of(moved.frame()) == f"b{other}"
    slot = rig.slot(CLIENT4, 50_000, port=443)
    assert slot is not None
    assert slot.backend_id == rig.backend_id(f"b{other}")
    assert rig.backend_of(replace(moved, payload=long(b"any!")).frame()) == f"b{other}"
    assert rig.counts(f"b{other}").opened == 1


def test_a_flow_whose_packets_name_another_server_goes_there(rig: Rig):
    """The port of a client was another client's before, behind the same NAT."""
    serve(rig, members(4))
    assert taken(rig, short(id_of(1, 4))) == "b0"
    assert taken(rig, short(id_of(3, 4))) == "b2"
    assert taken(rig, short(id_of(3, 4))) == "b2"
    assert (rig.counts("b0").opened, rig.counts("b0").closed) == (1, 1)
    assert (rig.counts("b2").opened, rig.counts("b2").closed) == (1, 0)
    assert rig.tables.flows.astype(bool).sum() == 1


UNNAMED = {
    "long": long(id_of(1, 4)),
    "unknown": short(b"none"),
    "rotation": short(id_of(1, 4), rotation=7),
    "not-fixed": short(id_of(1, 4), first=0x00),
    "other-length": bytes([0x40, 4]) + id_of(1, 4)[:3] + b"\xee" + REST,
    "cut": short(id_of(1, 4))[:5],
    "cut-at-the-id": short(id_of(1, 4))[:2],
    "one-byte": b"\x40",
    "empty": b"",
}


@pytest.mark.parametrize("payload", UNNAMED.values(), ids=UNNAMED)
def test_anything_else_goes_by_the_addresses(hooked: Rig, payload: bytes):
    serve(hooked, members(4))
    ports = range(1000, 1060)
    found = [taken(hooked, payload, port=n) for n in ports]
    assert len(set(found)) == 4
    assert found == [taken(hooked, payload, port=n) for n in ports], "and stays there"


def test_an_id_longer_than_what_is_read_is_not_taken_for_a_shorter_one(rig: Rig):
    """Behind its end a key holds zeros."""
    serve(rig, [backend("a", "10.1.0.1", quic_server_id=b"\7"), *members(1, 3)[1:]], 1)
    assert {taken(rig, short(b"\7", rest=bytes([n] * 20)), port=n) for n in range(1, 40)} == {"a"}


def test_two_services_have_ids_of_their_own(rig: Rig):
    one = service(*members(4), name="one", port=443, protocol=Protocol.UDP, quic_id_bytes=4)
    swapped = [backend(f"c{n}", f"10.2.0.{n}", quic_server_id=id_of(5 - n, 4)) for n in range(1, 5)]
    two = service(*swapped, name="two", port=444, protocol=Protocol.UDP, quic_id_bytes=4)
    rig.serve(one, two)
    asked = packet(short(id_of(1, 4)))
    assert rig.backend_of(asked.frame()) == "b0"
    assert rig.backend_of(replace(asked, dport=444).frame()) == "c4"


def test_a_service_that_names_no_ids_reads_none(rig: Rig):
    rig.serve(service(*members(4), port=443, protocol=Protocol.UDP))
    found = {taken(rig, short(id_of(1, 4)), port=n) for n in range(1000, 1060)}
    assert len(found) == 4


@pytest.mark.parametrize("how", ["down", "maintenance", "gone"])
def test_the_id_of_a_server_that_has_given_up_its_flows_goes_by_the_addresses(rig: Rig, how: str):
    some = members(4)
    serve(rig, some, down_flows=DownFlows.REROUTE)
    before = taken(rig, short(id_of(1, 4)))
    assert before == "b0"
    if how == "maintenance":
        some[0] = replace(some[0], admin=AdminState.MAINTENANCE)
    elif how == "gone":
        some = some[1:]
    serve(rig, some, down_flows=DownFlows.REROUTE, down=("b0",) if how == "down" else ())
    found = [taken(rig, short(id_of(1, 4)), port=n) for n in range(1000, 1060)]
    assert set(found) == {"b1", "b2", "b3"}
    assert found == [taken(rig, short(id_of(1, 4)), port=n) for n in range(1000, 1060)]
    assert len(rig.reasons()) == 0


@pytest.mark.parametrize("how", ["down", "drain", "weight"])
def test_a_server_that_only_takes_no_new_flows_keeps_those_that_name_it(rig: Rig, how: str):
    some = members(4)
    if how == "drain":
        some[0] = replace(some[0], admin=AdminState.DRAIN)
    elif how == "weight":
        some[0] = replace(some[0], weight=0)
    serve(rig, some, down=("b0",) if how == "down" else ())
    assert {taken(rig, short(id_of(1, 4)), port=n) for n in range(1000, 1020)} == {"b0"}
    assert "b0" not in {taken(rig, long(b"new!"), port=n) for n in range(2000, 2060)}


@pytest.mark.parametrize("forward", list(Forward))
def test_it_is_so_in_every_way_to_a_server(rig: Rig, forward: Forward):
    serve(rig, members(4), forward=forward)
    for n in range(4):
        assert taken(rig, short(id_of(n + 1, 4)), port=1000 + n) == f"b{n}"


def test_behind_ip_options_and_tags_the_id_is_found(rig: Rig):
    serve(rig, members(4))
    asked = replace(packet(short(id_of(3, 4))), ip_options=bytes((7, 39, 4)).ljust(40, b"\0"))
    assert rig.name_of_mac(rig.send(asked.frame(tags=((0x88A8, 1), (0x8100, 2)))).data[:6]) == "b2"


def test_nobody_left_is_no_backend(rig: Rig):
    serve(rig, members(4), down=("b0", "b1", "b2", "b3"), down_flows=DownFlows.REROUTE)
    assert rig.verdict(packet(short(id_of(1, 4))).frame()) == Verdict.DROP
    assert rig.reasons() == {"no-backend": 1}
