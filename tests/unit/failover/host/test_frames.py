"""The announcements' bytes: those that keepalived 2.3.3 was seen to send."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Ether

from agent.failover.host.frames import announcement, answer, claim, question

MAC = bytes.fromhex("027300000001")
VMAC = bytes.fromhex("00005e000133")
SEEN = {
    "gratuitous ARP is a request": (
        MAC,
        "10.73.0.100",
        False,
        "ffffffffffff027300000001080600010800060400010273000000010a490064ffffffffffff0a490064",
    ),
    "by a virtual MAC": (
        VMAC,
        "10.73.0.100",
        False,
        "ffffffffffff00005e0001330806000108000604000100005e0001330a490064ffffffffffff0a490064",
    ),
    "forwarding means nothing to ARP": (
        MAC,
        "10.73.0.100",
        True,
        "ffffffffffff027300000001080600010800060400010273000000010a490064ffffffffffff0a490064",
    ),
    "link-local neighbour advertisement": (
        MAC,
        "fe80::73:100",
        False,
        (
            "33330000000102730000000186dd6000000000203afffe800000000000000000000000730100"
            "ff0200000000000000000000000000018800544420000000fe800000000000000000000000730100"
            "0201027300000001"
        ),
    ),
    "neighbour advertisement": (
        MAC,
        "fd73::100",
        False,
        (
            "33330000000102730000000186dd6000000000203afffd730000000000000000000000000100"
            "ff0200000000000000000000000000018800574420000000fd730000000000000000000000000100"
            "0201027300000001"
        ),
    ),
    "neighbour advertisement of a router": (
        MAC,
        "fd73::100",
        True,
        (
            "33330000000102730000000186dd6000000000203afffd730000000000000000000000000100"
            "ff0200000000000000000000000000018800d743a0000000fd730000000000000000000000000100"
            "0201027300000001"
        ),
    ),
}


@pytest.mark.parametrize(("mac", "vip", "router", "frame"), SEEN.values(), ids=SEEN)
def test_an_announcement_is_keepalived_s_byte_for_byte(
    mac: bytes, vip: str, router: bool, frame: str
) -> None:
    assert announcement(mac, ip_address(vip), router=router).hex() == frame


VIPS = frozenset(ip_address(vip) for vip in ("10.73.0.100", "fd73::100"))
WHO_HAS = bytes.fromhex(
    "ffffffffffff027300000009080600010800060400010273000000090a4900090000000000000a490064"
)
SOLICITATION = bytes.fromhex(
    "3333ff00010002730000000986dd6000000000203afffd730000000000000000000000000009"
    "ff0200000000000000000001ff00010087000000000000"
    "00fd7300000000000000000000000001000101027300000009"
)
PROBE = SOLICITATION.replace(ip_address("fd73::9").packed, bytes(16))


def test_who_asks_by_arp_is_answered() -> None:
    told = answer(WHO_HAS, MAC, VIPS, router=False)
    assert told is not None
    assert told.hex() == (
        "027300000009027300000001080600010800060400020273000000010a4900640273000000090a490009"
    )


def test_who_asks_by_neighbour_discovery_is_answered() -> None:
    told = answer(SOLICITATION, MAC, VIPS, router=True)
    assert told is not None
    assert told[:12].hex() == "027300000009027300000001"
    assert told[22:54] == ip_address("fd73::100").packed + ip_address("fd73::9").packed
    assert told[58:62].hex() == "e0000000"  # router, solicited, override


def test_who_wants_the_address_itself_is_told_with_everybody() -> None:
    unsolicited = announcement(MAC, ip_address("fd73::100"), router=False)
    assert answer(PROBE, MAC, VIPS, router=False) == unsolicited


@pytest.mark.parametrize(
    "frame",
    [
        WHO_HAS.replace(bytes.fromhex("0a490064"), bytes.fromhex("0a490065")),
        WHO_HAS.replace(bytes.fromhex("06040001"), bytes.fromhex("06040002")),
        announcement(VMAC, ip_address("10.73.0.100"), router=False),
        announcement(VMAC, ip_address("fd73::100"), router=False),
        SOLICITATION.replace(ip_address("fd73::100").packed, ip_address("fd73::101").packed),
        SOLICITATION.replace(bytes.fromhex("203aff"), bytes.fromhex("203a40")),
    ],
    ids=["other address", "reply", "gratuitous", "advertisement", "other target", "from afar"],
)
def test_what_is_no_question_for_a_vip_is_not_answered(frame: bytes) -> None:
    assert answer(frame, MAC, VIPS, router=False) is None


@given(frame=st.binary(max_size=120))
def test_no_frame_is_a_disaster(frame: bytes) -> None:
    answer(frame, MAC, VIPS, router=False)
    answer(SOLICITATION[:54] + frame, MAC, VIPS, router=False)
    answer(WHO_HAS[:20] + frame, MAC, VIPS, router=False)


def test_who_else_has_an_ipv4_address_is_asked_by_a_probe() -> None:
    """RFC 5227: nobody's neighbours change, as the sender has no address."""
    made = Ether(question(MAC, ip_address("10.73.0.100")))
    assert (made.dst, made.src) == ("ff:ff:ff:ff:ff:ff", "02:73:00:00:00:01")
    probe = made[ARP]
    assert (probe.op, probe.hwsrc, probe.psrc) == (1, made.src, "0.0.0.0")
    assert (probe.hwdst, probe.pdst) == ("00:00:00:00:00:00", "10.73.0.100")


def test_who_else_has_an_ipv6_address_is_asked_as_before_it_is_taken() -> None:
    """RFC 4862, section 5.4.2."""
    made = Ether(question(MAC, ip_address("fd73::12:3456")))
    assert (made.dst, made.src) == ("33:33:ff:12:34:56", "02:73:00:00:00:01")
    assert (made[IPv6].src, made[IPv6].dst, made[IPv6].hlim) == ("::", "ff02::1:ff12:3456", 255)
    assert made[ICMPv6ND_NS].tgt == "fd73::12:3456"
    check = made[ICMPv6ND_NS].cksum
    del made[ICMPv6ND_NS].cksum
    assert Ether(bytes(made))[ICMPv6ND_NS].cksum == check


@pytest.mark.parametrize("vip", ["10.73.0.100", "fd73::100"])
def test_whoever_says_that_it_has_an_address_is_heard(vip: str) -> None:
    """In answer to whoever asks; ARP announcements are for neighbours, and tell who has it now."""
    address = ip_address(vip)
    asked = question(VMAC, address)
    reply = answer(_by_somebody(asked), MAC, {address}, router=False)
    assert reply is not None
    assert claim(reply[14:], MAC) == (address, MAC)
    assert claim(asked[14:], VMAC) is None
    told = announcement(MAC, address, router=False)
    assert claim(told[14:], MAC) == (None if address.version == 4 else (address, MAC))


def _by_somebody(asked: bytes) -> bytes:
    """A probe as a question: with the asker's own address in ARP."""
    return asked if asked[12:14] == b"\x86\xdd" else asked[:28] + b"\x0a\x49\x00\x01" + asked[32:]


@given(st.binary(max_size=80))
def test_whatever_comes_is_a_claim_or_none(packet: bytes) -> None:
    found = claim(packet, MAC)
    assert found is None or len(found[1]) == 6
