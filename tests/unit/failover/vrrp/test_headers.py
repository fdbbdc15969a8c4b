"""What is around an advert on the wire."""

from __future__ import annotations

from agent.failover.vrrp import headers
from tests.unit.failover.vrrp import frames


def test_frames_of_a_virtual_mac_begin_as_keepaliveds() -> None:
    (vmac,) = (variant for variant in frames.VARIANTS if variant.name == "v2_vmac")
    assert headers.ethernet_header(4, 51) == bytes.fromhex(vmac.adverts[0])[:14]
    assert headers.ethernet_header(6, 51).hex() == "33330000001200005e00023386dd"


def test_packets_that_are_none_are_not_read() -> None:
    whole = frames.ip_bytes(frames.VARIANTS[0].adverts[0])
    for size in range(20):
        assert headers.parse_ipv4(whole[:size]) is None
    assert headers.parse_ipv4(b"\x44" + whole[1:]) is None, "a header of 16 bytes"
    assert headers.parse_ipv4(b"\x4f" + whole[1:40]) is None, "a header of 60 bytes in 40"


def test_options_in_the_ip_header_are_skipped() -> None:
    whole = frames.ip_bytes(frames.VARIANTS[0].adverts[0])
    found = headers.parse_ipv4(b"\x46" + whole[1:20] + b"\x94\x04\0\0" + whole[20:])
    assert found is not None
    assert found.payload == whole[20:]
    assert len(found.head) == 24
