"""Which alerts block whom, from lines that Suricata 7.0.10 wrote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import (
    ANY_PORT,
    Backend,
    Config,
    Forward,
    Nat,
    Network,
    Protocol,
    Service,
    ServiceKey,
    Suricata,
)
from agent.state import alerts
from agent.state.alerts import (
    FEWEST,
    MOST_RECENT,
    Alert,
    Connections,
    Outcome,
    Scene,
    judge,
    noted,
    read,
    room,
)
from agent.state.queries import FiveTuple

# Rules: content of any packet (1000001), and of a request's URI (1000002); curl; a forged packet in
# an open connection, with wrong sequence numbers.
REQUEST = rb"""{"timestamp":"2026-12-04T02:44:59.172225+0000","flow_id":963159754484241,"in_iface":"v0","event_type":"alert","src_ip":"10.9.0.2","src_port":32956,"dest_ip":"10.9.0.1","dest_port":80,"proto":"TCP","pkt_src":"wire/pcap","tx_id":0,"alert":{"action":"allowed","gid":1,"signature_id":1000002,"rev":1,"signature":"request for secrets","category":"","severity":3,"xff":"8.8.8.8"},"http":{"hostname":"10.9.0.1","url":"/etc/passwd?evil","http_user_agent":"curl/8.14.1","xff":"9.9.9.9, 8.8.8.8","http_content_type":"text/html","http_method":"GET","protocol":"HTTP/1.1","status":404,"length":0},"app_proto":"http","direction":"to_server","flow":{"pkts_toserver":4,"pkts_toclient":3,"bytes_toserver":394,"bytes_toclient":391,"start":"2026-12-04T02:44:59.158717+0000","src_ip":"10.9.0.2","dest_ip":"10.9.0.1","src_port":32956,"dest_port":80}}"""  # noqa: E501
GUESSED = rb"""{"timestamp":"2026-12-04T02:44:59.172225+0000","flow_id":963159754484241,"in_iface":"v0","event_type":"alert","src_ip":"10.9.0.2","src_port":32956,"dest_ip":"10.9.0.1","dest_port":80,"proto":"TCP","pkt_src":"wire/pcap","tx_id":0,"tx_guessed":true,"alert":{"action":"allowed","gid":1,"signature_id":1000001,"rev":1,"signature":"any packet evil","category":"","severity":3,"xff":"8.8.8.8"},"http":{"hostname":"10.9.0.1","url":"/etc/passwd?evil","http_user_agent":"curl/8.14.1","xff":"9.9.9.9, 8.8.8.8","http_content_type":"text/html","http_method":"GET","protocol":"HTTP/1.1","status":404,"length":0},"app_proto":"http","direction":"to_server","flow":{"pkts_toserver":4,"pkts_toclient":3,"bytes_toserver":394,"bytes_toclient":391,"start":"2026-12-04T02:44:59.158717+0000","src_ip":"10.9.0.2","dest_ip":"10.9.0.1","src_port":32956,"dest_port":80}}"""  # noqa: E501
ANSWER = rb"""{"timestamp":"2026-12-04T02:44:59.172248+0000","flow_id":963159754484241,"in_iface":"v0","event_type":"alert","src_ip":"10.9.0.1","src_port":80,"dest_ip":"10.9.0.2","dest_port":32956,"proto":"TCP","pkt_src":"wire/pcap","tx_id":0,"alert":{"action":"allowed","gid":1,"signature_id":1000003,"rev":1,"signature":"bad answer","category":"","severity":3,"xff":"8.8.8.8"},"http":{"hostname":"10.9.0.1","url":"/etc/passwd?evil","http_user_agent":"curl/8.14.1","xff":"9.9.9.9, 8.8.8.8","http_content_type":"text/html","http_method":"GET","protocol":"HTTP/1.1","status":404,"length":0},"app_proto":"http","direction":"to_client","flow":{"pkts_toserver":4,"pkts_toclient":4,"bytes_toserver":394,"bytes_toclient":792,"start":"2026-12-04T02:44:59.158717+0000","src_ip":"10.9.0.2","dest_ip":"10.9.0.1","src_port":32956,"dest_port":80}}"""  # noqa: E501
FORGED = rb"""{"timestamp":"2026-12-04T02:44:59.385932+0000","flow_id":1094048346595381,"in_iface":"v0","event_type":"alert","src_ip":"10.9.0.2","src_port":32970,"dest_ip":"10.9.0.1","dest_port":80,"proto":"TCP","pkt_src":"wire/pcap","alert":{"action":"allowed","gid":1,"signature_id":1000001,"rev":1,"signature":"any packet evil","category":"","severity":3},"app_proto":"http","direction":"to_server","flow":{"pkts_toserver":4,"pkts_toclient":2,"bytes_toserver":309,"bytes_toclient":140,"start":"2026-12-04T02:44:59.385799+0000","src_ip":"10.9.0.2","dest_ip":"10.9.0.1","src_port":32970,"dest_port":80}}"""  # noqa: E501

CLIENT, VIP, PROXY = ip_address("10.9.0.2"), ip_address("10.9.0.1"), ip_address("10.9.0.3")
BACKEND = Backend("a", ip_address("10.9.1.7"), port=8000)
WEB = Service(
    "web", ServiceKey(VIP, 80, Protocol.TCP), forward=Forward.NAT, backends=(BACKEND,)
)  # fmt: skip
ALL = Suricata(Path("/eve"), block_severity=255)
AT = "10.9.0.2/32"


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(line) | fields).encode()


def test_a_request_is_read_with_its_client_and_what_a_proxy_says() -> None:
    assert read(REQUEST) == Alert(
        1000002, "request for secrets", 3, CLIENT, 32956, VIP, 80, ip_address("8.8.8.8"), True
    )


def test_an_alert_about_an_answer_is_about_the_client() -> None:
    alert = read(ANSWER)
    assert alert is not None
    assert (alert.client, alert.server, alert.is_request) == (CLIENT, VIP, True)


@pytest.mark.parametrize("line", [GUESSED, FORGED, changed(REQUEST, proto="UDP")])
def test_what_others_may_have_sent_is_no_request(line: bytes) -> None:
    alert = read(line)
    assert alert is not None
    assert not alert.is_request


@pytest.mark.parametrize(
    ("xff", "address"),
    [
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),  # as from a proxy with one socket for both families
        ("evil", None),
        ("", None),
        (7.5, None),
    ],
)
def test_what_is_no_address_names_nobody(xff: object, address: str | None) -> None:
    event = json.loads(REQUEST)
    event["alert"]["xff"] = xff
    alert = read(json.dumps(event).encode())
    assert alert is not None
    assert alert.forwarded_for == (ip_address(address) if address else None)


def test_a_packet_without_ports_is_read() -> None:
    line = b"""{"event_type":"alert","src_ip":"10.9.0.2","dest_ip":"10.9.0.1","proto":"ICMP",
    "alert":{"signature_id":1,"signature":"ping\\u001b[2J","severity":2},
    "flow":{"src_ip":"10.9.0.2","dest_ip":"10.9.0.1"}}"""
    alert = read(line)
    assert alert is not None
    assert (alert.client_port, alert.is_request, alert.text) == (0, False, "ping?[2J")


@pytest.mark.parametrize(
    "line",
    [
        b'{"event_type":"flow","src_ip":"10.9.0.2"}',
        b'{"event_type":"stats","stats":{"detect":{"alert":7}}}',
    ],
)
def test_other_events_are_none(line: bytes) -> None:
    assert read(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        REQUEST[:-7],
        b'["alert"]',
        b'{"event_type":"alert","alert":7}',
        b'{"alert":7}',
        b'{"event_type":"alert","alert":' + b"[" * 50_000,
        changed(REQUEST, flow=7),
        changed(REQUEST, flow={}, src_ip="nobody"),
        changed(REQUEST, flow={}, src_port=70_000),
        changed(REQUEST, alert={"signature_id": 1, "signature": "x", "severity": 900}),
        changed(REQUEST, alert={"signature_id": True, "signature": "x", "severity": 1}),
        changed(REQUEST, alert={"signature_id": 1, "signature": None, "severity": 1}),
    ],
)
def test_a_line_that_is_none_of_suricatas_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever is wrong, it is one line less)
        read(line)


@given(st.binary(max_size=60), st.integers(0, len(REQUEST)), st.integers(0, 60))
def test_no_line_breaks_the_reader(noise: bytes, at: int, less: int) -> None:
    with contextlib.suppress(ValueError):
        read(REQUEST[:at] + noise + REQUEST[at + less :])


def scene(
    suricata: Suricata = ALL,
    *services: Service,
    flows: Callable[[FiveTuple], bool] = lambda _flow: True,
    trusted: str = "",
    blocked: str = "",
) -> Scene:
    config = Config("x", "eth0", services=services or (WEB,), nat=Nat((ip_address("10.9.0.9"),)))

    def is_trusted(_service: Service, source: Network) -> bool:
        return str(source) == trusted

    return Scene(
        suricata, Connections(config), flows, is_trusted, lambda source: str(source) == blocked
    )


def request(**changes: object) -> Alert:
    found = read(REQUEST)
    assert found is not None
    return replace(found, **changes)


def outcome(alert: Alert, seen: Scene) -> tuple[str, str]:
    found, source = judge(alert, seen)
    return found.value, str(source)


def test_a_request_of_a_recorded_connection_blocks_its_client() -> None:
    asked: list[FiveTuple] = []
    seen = scene(flows=lambda flow: bool(asked.append(flow)) or True)
    assert outcome(request(), seen) == ("blocked", AT)
    assert asked == [FiveTuple(Protocol.TCP, CLIENT, 32956, VIP, 80)]


def test_the_flow_is_looked_up_by_its_vip_when_it_was_seen_on_the_way_to_the_backend() -> None:
    asked: list[FiveTuple] = []
    seen = scene(flows=lambda flow: bool(asked.append(flow)) or True)
    inside = request(server=BACKEND.address, server_port=8000)
    assert outcome(inside, seen) == ("blocked", AT)
    assert asked == [FiveTuple(Protocol.TCP, CLIENT, 32956, VIP, 80)]
    elsewhere = request(server=BACKEND.address, server_port=8001)
    assert outcome(elsewhere, seen) == ("unproven", AT)


@pytest.mark.parametrize(
    ("suricata", "expected"),
    [
        (Suricata(Path("/eve")), "logged"),
        (Suricata(Path("/eve"), block_severity=2), "logged"),
        (Suricata(Path("/eve"), block_severity=3), "blocked"),
        (Suricata(Path("/eve"), block_signatures=(1000002,)), "blocked"),
        (Suricata(Path("/eve"), block_severity=3, log_signatures=(1000002,)), "logged"),
    ],
)
def test_severity_and_signature_decide_what_blocks(suricata: Suricata, expected: str) -> None:
    assert outcome(request(), scene(suricata)) == (expected, AT)


@pytest.mark.parametrize("line", [GUESSED, FORGED])
def test_forged_packets_block_nobody_even_within_a_connection(line: bytes) -> None:
    alert = read(line)
    assert alert is not None
    assert outcome(alert, scene()) == ("unproven", AT)


@pytest.mark.parametrize("forward", [Forward.DSR, Forward.IPIP, Forward.GUE])
def test_where_the_answers_are_not_seen_nothing_is_proven(forward: Forward) -> None:
    assert outcome(request(), scene(ALL, replace(WEB, forward=forward))) == ("unproven", AT)


def test_a_connection_that_the_table_does_not_have_is_unproven() -> None:
    assert outcome(request(), scene(flows=lambda _flow: False)) == ("unproven", AT)


def test_a_connection_to_something_else_on_this_host_is_unproven() -> None:
    assert outcome(request(server_port=22), scene()) == ("unproven", AT)
    assert outcome(request(server=ip_address("10.9.0.77")), scene()) == ("unproven", AT)


def test_ranges_any_port_and_prefixes_are_services() -> None:
    spans = replace(WEB, key=ServiceKey(VIP, 79, Protocol.TCP, port_last=81))
    every = replace(WEB, key=ServiceKey(VIP, ANY_PORT, Protocol.TCP))
    below = replace(WEB, key=ServiceKey(ip_address("10.9.0.0"), 80, Protocol.TCP, vip_bits=28))
    for each in (spans, every, below):
        found = Connections(Config("x", "eth0", services=(each,))).of(request())
        assert found == [(each, FiveTuple(Protocol.TCP, CLIENT, 32956, VIP, 80))]
        inside = request(server=BACKEND.address, server_port=8000)
        assert not Connections(Config("x", "eth0", services=(each,))).of(inside)


def test_trusted_sources_and_our_own_addresses_are_spared() -> None:
    assert outcome(request(), scene(trusted=AT)) == ("spared", AT)
    for own in (VIP, BACKEND.address, ip_address("10.9.0.9")):
        assert outcome(request(client=own), scene())[0] == "spared"


def test_who_is_blocked_already_counts_as_blocked_although_his_flows_are_gone() -> None:
    assert outcome(request(), scene(blocked=AT, flows=lambda _flow: False)) == ("blocked", AT)


def test_only_a_proxy_is_believed_in_what_it_says_of_clients() -> None:
    proxied = replace(ALL, proxies=(ip_network("10.9.0.3/32"),))
    asks = request(client=PROXY)
    # A proxy's own connection needs no record: there is none in dsr.
    dsr = replace(WEB, forward=Forward.DSR)
    seen = scene(proxied, dsr, flows=lambda _flow: False)
    assert outcome(asks, seen) == ("blocked", "8.8.8.8/32")
    assert outcome(replace(asks, forwarded_for=None), seen) == ("spared", "10.9.0.3/32")
    assert outcome(replace(asks, forwarded_for=PROXY), seen) == ("spared", "10.9.0.3/32")
    assert outcome(replace(asks, forwarded_for=VIP), seen)[0] == "spared"
    assert outcome(replace(asks, is_request=False), seen) == ("unproven", "8.8.8.8/32")
    assert outcome(replace(asks, server_port=22), seen) == ("unproven", "8.8.8.8/32")
    assert outcome(request(), scene(proxied)) == ("blocked", AT)


def test_of_ipv6_half_an_address_is_blocked() -> None:
    proxied = replace(ALL, proxies=(ip_network("10.9.0.3/32"),))
    asks = request(client=PROXY, forwarded_for=ip_address("2001:db8:0:7::42"))
    assert outcome(asks, scene(proxied)) == ("blocked", "2001:db8:0:7::/64")
    own = ip_address("2001:db8:0:7::1")
    beside = replace(ALL, proxies=(ip_network("10.9.0.3/32"), ip_network(f"{own}/128")))
    assert outcome(asks, scene(beside)) == ("spared", "2001:db8:0:7::/64")
    config = Config("x", "eth0", services=(WEB,), nat=Nat(sources_v6=(own,)))
    found = replace(scene(proxied), connections=Connections(config))
    assert outcome(asks, found) == ("spared", "2001:db8:0:7::/64")


def test_alerts_block_a_share_of_the_sources_or_five() -> None:
    assert room(ALL, 0, 0) == FEWEST
    assert room(ALL, 3, FEWEST) == 0
    assert room(ALL, 1000, 0) == 50
    assert room(ALL, 950, 50) == 0
    assert room(replace(ALL, most_blocked=1.0), 1000, 10) == 1000
    assert room(replace(ALL, most_blocked=0.0), 1000, 0) == 0


def test_a_block_says_which_alert_it_is_of() -> None:
    block = alerts.block(request(), ip_network(AT), replace(ALL, block_for_s=60), 1000.0)
    assert block.why == "suricata: 1000002 request for secrets"
    assert (block.since, block.until) == (1000, 1060)
    assert alerts.is_ours(block.why)
    assert not alerts.is_ours("detected: web: 7 open flows")


def test_alerts_are_counted_by_signature_and_outcome_and_the_latest_are_kept() -> None:
    seen = noted({}, request(), Outcome.LOGGED, ip_network(AT), 1.0)
    seen = noted(seen, request(), Outcome.LOGGED, ip_network("10.9.0.7/32"), 2.0)
    (one,) = seen.values()
    assert (one.count, one.last, str(one.source), one.server) == (2, 2.0, "10.9.0.7", "10.9.0.1:80")
    for number in range(MOST_RECENT):
        seen = noted(seen, request(signature=number), Outcome.SPARED, ip_network(AT), 3.0 + number)
    assert len(seen) == MOST_RECENT
    assert (1000002, Outcome.LOGGED) not in seen
    inside = request(server=ip_address("fd00::7"))
    (one,) = noted({}, inside, Outcome.LOGGED, ip_network(AT), 1.0).values()
    assert one.server == "[fd00::7]:80"
