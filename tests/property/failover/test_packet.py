"""Adverts survive the wire, and bytes of whatever kind are never more than refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.failover.model import Authentication, Checksum, Instance
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import headers, packet
from agent.failover.vrrp.advert import Advert, Refusal
from agent.failover.vrrp.headers import Datagram
from agent.failover.vrrp.replay import Guard
from agent.model import Address
from tests.examples import examples

AUTHENTICATIONS = {
    2: (Authentication.NONE, Authentication.PASSWORD, Authentication.AH),
    3: (Authentication.NONE, Authentication.HMAC),
}
HOSTS: dict[int, tuple[Address, Address]] = {
    4: (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
    6: (IPv6Address("fe80::1"), IPv6Address("fe80::2")),
}


@st.composite
def routers(draw: st.DrawFn) -> VirtualRouter:
    """As both nodes are set: any variant."""
    version = draw(st.sampled_from((2, 3)))
    family = 4 if version == 2 else draw(st.sampled_from((4, 6)))
    addresses = st.ip_addresses(v=family)
    instance = Instance(
        "web",
        vrid=draw(st.integers(1, 255)),
        version=version,
        interval_s=(
            float(draw(st.integers(1, 255))) if version == 2 else draw(st.integers(1, 4095)) / 100
        ),
        authentication=draw(st.sampled_from(AUTHENTICATIONS[version])),
        password=draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=12)),
        checksum=draw(st.sampled_from(Checksum)),
        peers=HOSTS[family] if draw(st.booleans()) else (),
    )
    vips = tuple(draw(st.lists(addresses, min_size=1, max_size=30, unique=True)))
    return VirtualRouter("web", instance, "eth0", family, vips, "web")


def carried(router: VirtualRouter, priority: int, counter: int) -> tuple[packet.Own, Datagram]:
    """The listener, and what comes to it from the other node."""
    there, here = HOSTS[router.family]
    to = here if router.instance.peers else headers.group(router.family)
    sender = packet.Own(router, there, b"key")
    data = packet.ip_packet(sender, priority, to, counter=counter, identifier=1)
    if router.family == 4:
        heard = headers.parse_ipv4(data)
        assert heard is not None
    else:
        heard = Datagram(there, to, data[7], data[40:])
    return packet.Own(router, here, b"key"), heard


@settings(max_examples=examples(150), deadline=None)
@given(routers(), st.integers(0, 255), st.integers(1, 2**32 - 1))
def test_adverts_survive_the_wire(router: VirtualRouter, priority: int, counter: int) -> None:
    own, heard = carried(router, priority, counter)
    instance = router.instance
    sealed = instance.authentication in (Authentication.AH, Authentication.HMAC)
    assert packet.decode(own, heard, Guard(clock_ns=lambda: 0)) == Advert(
        version=instance.version,
        vrid=instance.vrid,
        priority=priority,
        interval_s=instance.interval_s,
        vips=router.vips,
        source=heard.source,
        counter=counter if sealed else 0,
    )


@settings(max_examples=examples(150), deadline=None)
@given(routers(), st.data())
def test_damage_is_never_listened_to(router: VirtualRouter, data: st.DataObject) -> None:
    own, heard = carried(router, 100, 9)
    at = data.draw(st.integers(0, len(heard.payload) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(heard.payload)
    changed[at] ^= 1 << bit
    found = packet.decode(own, replace(heard, payload=bytes(changed)), Guard(clock_ns=lambda: 0))
    assert not isinstance(found, Advert)


@settings(max_examples=examples(200), deadline=None)
@given(routers(), st.binary(max_size=120), st.sampled_from((51, 112)))
def test_any_bytes_are_refused_or_let_be(router: VirtualRouter, data: bytes, protocol: int) -> None:
    own, heard = carried(router, 100, 9)
    for payload in (data, heard.payload[:2] + data, heard.payload[: len(data)] + data):
        found = packet.decode(
            own, replace(heard, payload=payload, protocol=protocol), Guard(clock_ns=lambda: 0)
        )
        assert found is None or isinstance(found, Refusal)
