"""What the kernel says on netlink, on messages that kernel 6.18 was seen to send."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from agent.failover.host.rtnetlink import Answer, Entry, Link, add_address, parse, reason

DUMP = bytes.fromhex(
    "4c00000014000200070000008d6d0000020880fe01000000080001007f000001080002007f00000107000300"
    "6c6f0000080008008000000014000600ffffffffffffffff7c7224007c722400"
    "5400000014000200070000008d6d00000220800001000000080001000a4d0701080002000a4d070107000300"
    "6c6f000005000b0056000000080008008000000014000600ffffffffffffffff7d7224007d722400"
    "5000000014000200070000008d6d00000a4080000100000014000100fd770000000000000000000000000001"
    "14000600ffffffffffffffff7c7224007c722400080008008000000005000b0056000000"
)
END_OF_DUMP = bytes.fromhex("1400000003000200070000008d6d000000000000")
# eth0 with an XDP program, without the attributes that nobody reads.
LINK = bytes.fromhex(
    "4800000010000000070000008d6d00000000010003000000431001000000000009000300657468300000000"
    "01c002b00080005006300000005000200010000000800040063000000"
)
REFUSAL = bytes.fromhex("2400000002000001090000008d6d00009dffffff28000000150005000900000000000000")


def test_addresses_are_read_with_who_put_them_there() -> None:
    assert list(parse(DUMP)) == [
        Entry(1, ip_address("127.0.0.1"), 8, 0, usable=True, removed=False),
        Entry(1, ip_address("10.77.7.1"), 32, 0x56, usable=True, removed=False),
        Entry(1, ip_address("fd77::1"), 64, 0x56, usable=True, removed=False),
    ]


def test_an_address_under_duplicate_detection_is_not_usable() -> None:
    tentative = DUMP.replace(bytes.fromhex("0800080080000000"), bytes.fromhex("08000800c0000000"))
    assert [entry.usable for entry in parse(tentative) if isinstance(entry, Entry)] == [False] * 3


def test_the_end_of_a_dump_and_a_refusal_are_answers_to_their_requests() -> None:
    assert list(parse(END_OF_DUMP)) == [Answer(7, 0)]
    assert list(parse(REFUSAL)) == [Answer(9, errno.EADDRNOTAVAIL)]


def test_a_removed_address_says_so() -> None:
    event = bytes.fromhex(
        DUMP[0x4C : 0x4C + 0x54].hex().replace("54000000140002", "54000000150002")
    )
    assert list(parse(event)) == [
        Entry(1, ip_address("10.77.7.1"), 32, 0x56, usable=True, removed=True)
    ]


def test_an_interface_is_read_with_the_program_that_is_on_it() -> None:
    assert list(parse(LINK)) == [Link(7, 3, up=True, carrier=True, program=99)]
    down = LINK.replace(bytes.fromhex("43100100"), bytes.fromhex("02100000"))
    assert list(parse(down)) == [Link(7, 3, up=False, carrier=False, program=99)]
    without = bytes.fromhex("2c") + LINK[1:0x2C]
    assert list(parse(without)) == [Link(7, 3, up=True, carrier=True, program=0)]


@pytest.mark.parametrize("length", range(0, len(LINK), 3))
def test_an_interface_cut_short_is_no_disaster(length: int) -> None:
    whole_length = LINK[:length] + b"\0" * (len(LINK) - length)
    assert len(list(parse(LINK[:length]))) <= 1
    assert len(list(parse(whole_length))) <= 1


@pytest.mark.parametrize("length", range(0, len(DUMP), 3))
def test_a_message_cut_short_is_no_disaster(length: int) -> None:
    assert len(list(parse(DUMP[:length]))) <= 3
    assert len(list(parse(DUMP[:length] + b"\xff" * 40))) <= 4


def test_ipv6_comes_without_duplicate_detection_and_deprecated() -> None:
    request = add_address(1, 2, ip_address("fd77::1"), 0x56)
    assert bytes.fromhex("0800080002000000") in request  # IFA_F_NODAD
    assert bytes.fromhex("1400060000000000ffffffff") in request  # preferred for no time, for ever


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.EACCES, "net.ipv6.conf.eth0.disable_ipv6=0"),
        (errno.ENODEV, "eth0 does not exist"),
        (errno.ENOBUFS, "No buffer space available"),
    ],
)
def test_a_refusal_names_the_remedy(error: int, says: str) -> None:
    assert says in reason(error, "eth0")
