"""The bytes of the agent's own segments, as another implementation reads them."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from agent.state.segment import ACK, RST, SYN, Segment, checksum


@pytest.mark.parametrize(
    ("source", "to", "layer"),
    [("198.51.100.1", "203.0.113.10", IP), ("2001:db8::c", "2001:db8:1::10", IPv6)],
)
@pytest.mark.parametrize("flags", [RST, ACK])
def test_a_segment_is_read_as_it_was_meant(source: str, to: str, layer: type, flags: int):
    made = Segment(ip_address(source), 43210, ip_address(to), 80, 2**32 - 1, 7, flags).packet()
    read = layer(made)
    assert (read.src, read.dst, len(made)) == (source, to, len(read))
    assert (read[TCP].sport, read[TCP].dport, int(read[TCP].flags)) == (43210, 80, flags)
    assert (read[TCP].seq, read[TCP].ack) == (2**32 - 1, 7)
    sums = read[TCP].chksum, getattr(read, "chksum", None)
    del read[TCP].chksum
    if layer is IP:
        del read.chksum
    again = layer(bytes(read))
    assert sums == (again[TCP].chksum, getattr(again, "chksum", None))


def test_a_sum_that_is_right_comes_out_as_zero():
    assert checksum(bytes.fromhex("0001f203f4f5f6f7220d")) == 0


@given(st.binary(max_size=80), st.sampled_from([4, 6]))
def test_whatever_comes_is_a_segment_or_none(data: bytes, version: int):
    found = Segment.read(data, version)
    assert found is None or found.source.version == version


@pytest.mark.parametrize("ends", [("198.51.100.1", "203.0.113.10"), ("2001:db8::c", "fd09::10")])
@given(
    ports=st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)),
    numbers=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    flags=st.integers(0, 255),
    options=st.sampled_from([0, 4, 40]),
)
def test_what_was_made_is_read(
    ends: tuple[str, str],
    ports: tuple[int, int],
    numbers: tuple[int, int],
    flags: int,
    options: int,
):
    source, to = (ip_address(end) for end in ends)
    made = Segment(source, ports[0], to, ports[1], *numbers, flags)
    packet = made.packet()
    assert Segment.read(packet, source.version) == made
    if source.version == 4:  # IP options go before it
        packet = bytes([0x45 + options // 4]) + packet[1:20] + bytes(options) + packet[20:]
        assert Segment.read(packet, 4) == made
    assert Segment.read(packet[:-1], source.version) is None
    assert Segment.read(packet, 10 - source.version) is None
    other = bytearray(packet)
    other[9 if source.version == 4 else 6] = 17
    assert Segment.read(bytes(other), source.version) is None


@pytest.mark.parametrize(
    ("source", "to", "layer"),
    [("198.51.100.1", "203.0.113.10", IP), ("2001:db8::c", "2001:db8:1::10", IPv6)],
)
@pytest.mark.parametrize("padding", [1, 1440, 8941])
def test_a_padded_segment_has_so_many_bytes_of_zeros(source, to, layer, padding: int):
    made = Segment(ip_address(source), 43210, ip_address(to), 80, 9, 0, SYN, padding).packet()
    read = layer(made)
    assert bytes(read[TCP].payload) == bytes(padding)
    wanted = read[TCP].chksum
    del read[TCP].chksum
    assert layer(bytes(read))[TCP].chksum == wanted


@pytest.mark.parametrize(
    ("options", "mss"),
    [([], 0), ([("MSS", 1460)], 1460), ([("NOP", None), ("WScale", 7), ("MSS", 8960)], 8960),
     ([("SAckOK", b""), ("Timestamp", (1, 2))], 0), ([("EOL", None), ("MSS", 1460)], 0)],
)  # fmt: skip
def test_the_announced_size_is_read_among_other_options(options, mss: int):
    packet = IP(src="203.0.113.10", dst="198.51.100.1") / TCP(flags="SA", options=options)
    found = Segment.read(bytes(packet), 4)
    assert found is not None
    assert found.mss == mss


@given(st.binary(max_size=40), st.integers(5, 15))
def test_whatever_options_come_have_a_size_or_none(options: bytes, words: int):
    head = bytes(IP(src="203.0.113.10", dst="198.51.100.1") / TCP(flags="SA"))
    data = bytearray(head + options)
    data[32] = words << 4
    found = Segment.read(bytes(data), 4)
    assert found is not None
    assert 0 <= found.mss < 2**16
