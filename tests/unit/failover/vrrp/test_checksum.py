"""The Internet checksum, and what it covers."""

from __future__ import annotations

from ipaddress import ip_address

from agent.failover.model import Checksum
from agent.failover.vrrp.checksum import internet, of_advert, other_variant

THERE, GROUP = ip_address("10.73.0.1"), ip_address("224.0.0.18")
PLAIN = bytes.fromhex("31339601006400000a490064")


def test_it_is_that_of_rfc_1071() -> None:
    assert internet(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert internet(b"") == 0xFFFF
    assert internet(b"\x01") == internet(b"\x01\x00")
    assert internet(b"\xff" * 60000) == 0, "many carries"


def test_each_variant_of_version_3_is_known() -> None:
    us = ip_address("10.73.0.2")
    assert of_advert(PLAIN, 3, THERE, GROUP, Checksum.V3) == 0x42E1
    assert of_advert(PLAIN, 3, THERE, us, Checksum.V3) == 0x18A9
    assert other_variant(PLAIN, THERE, us, 0x18A9) == "with the pseudo-header"
    assert other_variant(PLAIN, THERE, us, 0x42E1) == "with the pseudo-header of multicast"
    bare = of_advert(PLAIN, 3, THERE, us, Checksum.V2)
    assert bare == of_advert(PLAIN, 2, THERE, GROUP, Checksum.V3)
    assert other_variant(PLAIN, THERE, us, bare) == "without the pseudo-header"
    assert other_variant(PLAIN, THERE, us, 0x1234) is None
