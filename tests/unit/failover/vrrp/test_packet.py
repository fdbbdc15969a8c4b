"""Adverts as bytes: those of keepalived, and every way to be refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from agent.failover.model import Checksum, Instance
from agent.failover.vrrp import packet
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.headers import Datagram, virtual_mac
from agent.failover.vrrp.replay import Guard
from agent.model import Address
from tests.unit.failover.vrrp import frames
from tests.unit.failover.vrrp.frames import PRIORITY, THERE, VARIANTS, VRID, Variant, datagram

BY_NAME = {variant.name: variant for variant in VARIANTS}
HERE = frames.HERE[4]


def sent(
    instance: Instance, *, by: str = "10.73.0.1", to: str = "224.0.0.18", counter: int = 0
) -> Datagram:
    """What a node set up so would send."""
    own = frames.own(instance, here={4: ip_address(by)})
    return frames.heard(packet.ip_packet(own, PRIORITY, ip_address(to), counter=counter))


def guard(before: dict[Address, int] | None = None) -> Guard:
    """For a clock that has just begun: no counter is of long ago."""
    return Guard(before or {}, clock_ns=lambda: 0)


def refusal(own: packet.Own, heard: Datagram, last: int = -1) -> Refusal:
    found = packet.decode(own, heard, guard({THERE[4]: last}))
    assert isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_adverts_are_keepaliveds_byte_for_byte(variant: Variant) -> None:
    for frame, priority in [*((each, PRIORITY) for each in variant.adverts), (variant.leaving, 0)]:
        wire, heard = frames.ip_bytes(frame), datagram(frame)
        counter = int.from_bytes(heard.payload[8:12]) if heard.protocol == 51 else 0
        ours = packet.ip_packet(
            variant.there(frame),
            priority,
            heard.destination,
            counter=counter,
            identifier=int.from_bytes(wire[4:6]),
        )
        if variant.family == 4:
            assert ours.hex() == wire.hex()
        else:  # keepalived's kernel adds a flow label, and for unicast a hop limit of 64
            assert ours[40:].hex() == wire[40:].hex()
            assert ours[:1] + ours[4:7] == wire[:1] + wire[4:7]
            assert (ours[1] & 0xF0, ours[7]) == (wire[1] & 0xF0, 255)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_keepaliveds_adverts_are_understood(variant: Variant) -> None:
    for frame, priority in [*((each, PRIORITY) for each in variant.adverts), (variant.leaving, 0)]:
        heard = datagram(frame)
        found = packet.decode(variant.here(), heard, guard())
        assert isinstance(found, Advert), found
        instance = variant.instance
        assert found == Advert(
            version=instance.version,
            vrid=VRID,
            priority=priority,
            interval_s=instance.interval_s,
            vips=variant.vips,
            source=heard.source,
            counter=found.counter,
        )
        assert bool(found.counter) is (variant.instance == frames.V2_AH)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_any_changed_byte_of_an_advert_is_noticed(variant: Variant) -> None:
    heard = datagram(variant.adverts[0])
    for at in range(len(heard.payload)):
        changed = bytearray(heard.payload)
        changed[at] ^= 0x01
        found = packet.decode(variant.here(), replace(heard, payload=bytes(changed)), guard())
        assert not isinstance(found, Advert), f"byte {at}"


def test_shorter_and_longer_adverts_are_refused() -> None:
    for variant in VARIANTS:
        heard = datagram(variant.adverts[0])
        for size in range(len(heard.payload)):
            cut = replace(heard, payload=heard.payload[:size])
            assert not isinstance(packet.decode(variant.here(), cut, guard()), Advert)
        longer = replace(heard, payload=heard.payload + b"\0")
        assert isinstance(packet.decode(variant.here(), longer, guard()), Refusal)


def test_adverts_that_came_through_a_router_are_refused() -> None:
    for variant in VARIANTS:
        heard = replace(datagram(variant.adverts[0]), hops=254)
        assert refusal(variant.here(), heard).reason is Reason.TTL


def test_only_unicast_ipv6_of_a_peer_may_have_keepaliveds_hop_limit() -> None:
    unicast = BY_NAME["v3_ip6_ucast"]
    heard = datagram(unicast.adverts[0])
    assert heard.hops == 64
    assert isinstance(packet.decode(unicast.here(), heard, guard()), Advert)
    stranger = replace(heard, source=ip_address("fd73::66"))
    assert refusal(unicast.here(), stranger).reason is Reason.TTL
    multicast = BY_NAME["v3_ip6"]
    heard = replace(datagram(multicast.adverts[0]), hops=64)
    assert refusal(multicast.here(), heard).reason is Reason.TTL


@pytest.mark.parametrize(
    ("ours", "theirs", "reason", "words"),
    [
        (frames.V3, frames.V2, Reason.VERSION, ("version 2", "version 3")),
        (frames.V2, frames.V3, Reason.VERSION, ("version 3", "version 2")),
        (frames.V2, frames.V2_PASSWORD, Reason.AUTHENTICATION, ("a password", "no auth")),
        (frames.V2_PASSWORD, frames.V2, Reason.AUTHENTICATION, ("no auth", "a password")),
        (frames.V2, frames.V2_AH, Reason.AUTHENTICATION, ("AH", "no auth")),
        (frames.V2_AH, frames.V2_PASSWORD, Reason.AUTHENTICATION, ("a password", "AH")),
        (
            frames.V2_AH,
            replace(frames.V2_AH, password="an0ther!"),
            Reason.AUTHENTICATION,
            ("another password",),
        ),
        (
            frames.V2_PASSWORD,
            replace(frames.V2_PASSWORD, password="an0ther!"),
            Reason.AUTHENTICATION,
            ("another password",),
        ),
        (frames.V3, frames.V3_HMAC, Reason.AUTHENTICATION, ("hmac", "no auth")),
        (frames.V3_HMAC, frames.V3, Reason.AUTHENTICATION, ("no auth", "hmac")),
        (frames.V3, frames.V3_AS_V2, Reason.CHECKSUM, ("without", "with ")),
        (frames.V3_AS_V2, frames.V3, Reason.CHECKSUM, ("with the", "without")),
        (frames.V2, replace(frames.V2, interval_s=3), Reason.INTERVAL, ("3 s", "1 s")),
    ],
)
def test_what_the_other_side_is_set_to_is_named(
    ours: Instance, theirs: Instance, reason: Reason, words: tuple[str, ...]
) -> None:
    found = refusal(frames.own(ours), sent(theirs, counter=5))
    assert found.reason is reason
    assert found.source == THERE[4]
    assert str(THERE[4]) in found.text
    for word in words:
        assert word in found.text
    assert "s3cr3t01" not in found.text
    assert "an0ther!" not in found.text


def test_the_checksum_of_old_keepaliveds_unicast_is_named() -> None:
    own = frames.own(frames.V3, peers=THERE)
    found = refusal(own, datagram(frames.OLD_UNICAST))
    assert found.reason is Reason.CHECKSUM
    assert "of multicast" in found.text


def test_multicast_against_unicast_is_named() -> None:
    unicast = frames.own(frames.V3, peers=THERE)
    found = refusal(unicast, sent(frames.V3))
    assert found.reason is Reason.ADDRESSING
    assert "multicast adverts; this node is set to unicast" in found.text
    found = refusal(frames.own(frames.V3), sent(frames.V3, to=str(HERE)))
    assert found.reason is Reason.ADDRESSING
    assert "unicast adverts; this node is set to multicast" in found.text


def test_multicast_of_others_does_not_matter_to_a_unicast_pair_unless_it_has_our_vips() -> None:
    unicast = frames.own(frames.V3, peers=THERE)
    found = refusal(unicast, sent(frames.V3, by="10.73.0.66"))
    assert found.reason is Reason.ADDRESSING
    assert "10.73.0.100 by multicast" in found.text
    stranger = {4: ip_address("10.73.0.66")}
    elsewhere = frames.own(frames.V3, vips=(ip_address("10.73.0.200"),), here=stranger)
    heard = frames.heard(packet.ip_packet(elsewhere, PRIORITY, ip_address("224.0.0.18")))
    assert packet.decode(unicast, heard, guard()) is None


def test_who_is_no_peer_is_not_listened_to() -> None:
    unicast = frames.own(frames.V3, peers=THERE)
    found = refusal(unicast, sent(frames.V3, by="10.73.0.66", to=str(HERE)))
    assert found.reason is Reason.SOURCE
    assert "10.73.0.66" in found.text
    assert "10.73.0.1" in found.text


def test_who_uses_our_own_address_is_not_listened_to() -> None:
    found = refusal(frames.own(frames.V3), sent(frames.V3, by=str(HERE)))
    assert found.reason is Reason.SOURCE
    assert "own address" in found.text


def test_other_virtual_routers_are_none_of_ours_unless_they_have_our_vips() -> None:
    own = frames.own(frames.V3)
    other = replace(frames.V3, vrid=52)
    assert refusal(own, sent(other)).reason is Reason.VRID
    elsewhere = frames.own(other, vips=(ip_address("10.73.0.200"),), here=THERE)
    heard = frames.heard(packet.ip_packet(elsewhere, PRIORITY, ip_address("224.0.0.18")))
    assert packet.decode(own, heard, guard()) is None
    local = frames.own(other, vips=(frames.SIX[0], ip_address("fd73::200")), here=frames.THERE)
    heard = frames.heard(packet.ip_packet(local, PRIORITY, ip_address("ff02::12")))
    assert packet.decode(frames.own(frames.V3, vips=frames.SIX), heard, guard()) is None


def test_hundreds_of_vips_of_others_are_looked_through_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [[ip_address(f"10.{half}.{n}.1") for n in range(200)] for half in (1, 2)]
    other = frames.own(replace(frames.V3, vrid=52), vips=tuple(many[1]), here=THERE)
    heard = frames.heard(packet.ip_packet(other, PRIORITY, ip_address("224.0.0.18")))
    compared = 0
    equal = IPv4Address.__eq__

    def counted(one: IPv4Address, another: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, another)

    own = frames.own(frames.V3, vips=tuple(many[0]))
    with monkeypatch.context() as counting:
        counting.setattr(IPv4Address, "__eq__", counted)
        assert packet.decode(own, heard, guard()) is None
    assert compared < 1000


def test_ipsec_of_others_is_none_of_ours() -> None:
    heard = datagram(BY_NAME["v2_mcast_ah"].adverts[0])
    tcp = replace(heard, payload=b"\x06" + heard.payload[1:])
    assert packet.decode(frames.own(frames.V2_AH), tcp, guard()) is None
    assert packet.decode(frames.own(frames.V2_AH), replace(heard, payload=b""), guard()) is None


def test_replayed_adverts_are_refused() -> None:
    for instance in (frames.V2_AH, frames.V3_HMAC):
        own = frames.own(instance)
        heard = sent(instance, counter=1000)
        assert isinstance(packet.decode(own, heard, guard({THERE[4]: 999})), Advert)
        assert refusal(own, heard, last=1000).reason is Reason.REPLAY
        assert refusal(own, heard, last=1001).reason is Reason.REPLAY
        assert isinstance(packet.decode(own, heard, guard({HERE: 5000})), Advert), (
            "of another sender"
        )


def test_hmac_covers_the_addresses_and_every_byte() -> None:
    own, heard = frames.own(frames.V3_HMAC), sent(frames.V3_HMAC, counter=7)
    assert len(heard.payload) == 12 + 8 + 32
    assert isinstance(packet.decode(own, heard, guard()), Advert)
    moved = replace(heard, source=ip_address("10.73.0.3"))
    assert isinstance(packet.decode(own, moved, guard()), Refusal)
    for at in range(len(heard.payload)):
        changed = bytearray(heard.payload)
        changed[at] ^= 0x80
        found = packet.decode(own, replace(heard, payload=bytes(changed)), guard())
        assert not isinstance(found, Advert), f"byte {at}"
    stranger = replace(own, key=b"another key")
    assert refusal(stranger, heard).reason is Reason.AUTHENTICATION


@pytest.mark.parametrize("kind", [0, 2, 15])
def test_other_types_of_vrrp_are_refused(kind: int) -> None:
    heard = sent(frames.V3)
    other = bytes((0x30 | kind,)) + heard.payload[1:]
    assert refusal(frames.own(frames.V3), replace(heard, payload=other)).reason is Reason.DAMAGED


def test_an_advert_without_vips_or_interval_is_refused() -> None:
    own = frames.own(frames.V3)
    nothing = frames.own(frames.V3, here=THERE)
    empty = replace(nothing, router=replace(nothing.router, vips=()))
    heard = frames.heard(packet.ip_packet(empty, PRIORITY, ip_address("224.0.0.18")))
    assert refusal(own, heard).reason is Reason.DAMAGED
    assert refusal(own, sent(replace(frames.V3, interval_s=0))).reason is Reason.DAMAGED


def test_the_longest_interval_and_the_shortest_go_over_the_wire() -> None:
    for interval_s in (0.01, 0.29, 40.95):
        instance = replace(frames.V3, interval_s=interval_s)
        found = packet.decode(frames.own(instance), sent(instance), guard())
        assert isinstance(found, Advert)
        assert found.interval_s == interval_s


def test_more_vips_than_an_advert_can_name_are_cut_alike_on_both_nodes() -> None:
    many = tuple(ip_address(f"fd73::{number:x}") for number in range(1, 200))
    local = (ip_address("fe80::73:100"),)
    own = frames.own(frames.V3, vips=(*local, *many))
    other = frames.own(frames.V3, vips=(*local, *reversed(many)))
    named = packet.advertised(own.router)
    assert named == packet.advertised(other.router)
    assert named[:1] == local
    assert 40 + 8 + 16 * len(named) + 40 <= 1280
    few = frames.own(frames.V3, vips=tuple(itertools.islice(reversed(many), 20)))
    assert packet.advertised(few.router) == few.router.vips


def test_the_checksum_variant_is_for_ipv4_alone() -> None:
    instance = replace(frames.V3, checksum=Checksum.V2)
    variant = replace(BY_NAME["v3_ip6"], instance=instance)
    assert isinstance(packet.decode(variant.here(), datagram(variant.adverts[0]), guard()), Advert)


def test_a_virtual_mac_names_family_and_vrid() -> None:
    assert virtual_mac(4, 51).hex(":") == "00:00:5e:00:01:33"
    assert virtual_mac(6, 255).hex(":") == "00:00:5e:00:02:ff"
