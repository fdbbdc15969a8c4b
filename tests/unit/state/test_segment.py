"""The bytes of the agent's own segments, as another implementation reads them."""

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from agent.state.segment import ACK, RST, Segment, checksum


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
