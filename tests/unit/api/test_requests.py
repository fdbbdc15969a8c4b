"""What requests are taken for, and what is refused."""

from ipaddress import ip_address, ip_network

import pytest

from agent.api import requests
from agent.api.requests import ChangeOptions
from agent.config.edit import Edit, EditOp
from agent.errors import NotFoundError, RequestError
from agent.model import Protocol
from agent.state.events import EventKind, TraceQuery
from agent.state.queries import FiveTuple, FlowQuery

DECISIONS = frozenset({EventKind.DROP, EventKind.PICK, EventKind.ANSWER, EventKind.CLOSE})
EXPLAIN = {
    "protocol": "tcp",
    "client": "192.0.2.7",
    "client_port": "1234",
    "vip": "10.0.0.10",
    "port": "80",
}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("limits", "1")], "there is no parameter"),
        ([("limit", "1"), ("limit", "2")], "more than once"),
        ([("limit", "")], "empty"),
    ],
)
def test_parameters_that_are_refused(pairs, message):
    with pytest.raises(RequestError, match=message) as caught:
        requests.parameters(pairs, requests.FLOW_PARAMETERS)
    assert caught.value.where == f"parameter {pairs[0][0]}"
    assert caught.value.remedy


def test_flow_query_without_filters_asks_for_a_hundred(config):
    assert requests.flow_query({}, config) == FlowQuery(limit=100)


def test_flow_query_with_every_filter(config):
    given = {
        "service": "chat",
        "backend": "gpu-1",
        "client": "192.0.2.7/24",
        "state": "closing",
        "limit": "5",
    }
    assert requests.flow_query(given, config) == FlowQuery(
        "chat", "gpu-1", ip_network("192.0.2.0/24"), "closing", 5
    )


def test_single_client_address_is_a_prefix_of_one(config):
    query = requests.flow_query({"client": "2001:db8::7"}, config)
    assert query.client == ip_network("2001:db8::7/128")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client", "192.0.2.0/33"),
        ("client", "localhost"),
        ("client", "fe80::1%eth0"),
        ("state", "open"),
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "1e3"),
        ("limit", "10001"),
        ("limit", "٣"),
        ("limit", "9" * 5000),
    ],
)
def test_flow_filters_that_are_refused(config, name, value):
    with pytest.raises(RequestError) as caught:
        requests.flow_query({name: value}, config)
    assert caught.value.where == f"parameter {name}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"service": "chta"}, "did you mean 'chat'?"),
        ({"service": "zzzzzzzz"}, "use one of chat, dns"),
        ({"backend": "gpu1"}, "did you mean 'gpu-1'?"),
        ({"service": "dns", "backend": "gpu-1"}, "use one of ns-1"),
    ],
)
def test_flow_filters_for_what_does_not_exist(config, given, remedy):
    with pytest.raises(NotFoundError) as caught:
        requests.flow_query(given, config)
    assert caught.value.remedy == remedy


def test_five_tuple():
    assert requests.five_tuple(EXPLAIN) == FiveTuple(
        Protocol.TCP, ip_address("192.0.2.7"), 1234, ip_address("10.0.0.10"), 80
    )


@pytest.mark.parametrize("missing", list(EXPLAIN))
def test_five_tuple_needs_every_parameter(missing):
    given = {name: value for name, value in EXPLAIN.items() if name != missing}
    with pytest.raises(RequestError, match="is missing") as caught:
        requests.five_tuple(given)
    assert caught.value.where == f"parameter {missing}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocol", "sctp"),
        ("client", "10.0.0.0/8"),
        ("client", "2001:db8::1"),
        ("client", "fe80::1%eth0"),
        ("client_port", "0"),
        ("client_port", "65536"),
        ("vip", "chat"),
        ("port", "any"),
        ("port", "http"),
    ],
)
def test_five_tuples_that_are_refused(name, value):
    with pytest.raises(RequestError) as caught:
        requests.five_tuple(EXPLAIN | {name: value})
    assert caught.value.where == f"parameter {name}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_bodies_that_are_refused(body):
    with pytest.raises(RequestError) as caught:
        requests.json_object(body)
    assert caught.value.where == "request body"
    assert len(caught.value.message) < 200


def test_body_is_an_object():
    body = '{"op": "x", "values": {"ü": [1, 2.5, null, true]}}'.encode()
    assert requests.json_object(body) == {"op": "x", "values": {"ü": [1, 2.5, None, True]}}


def test_edit():
    body = {"op": "backend.add", "service": "s", "backend": "b", "values": {"address": "x"}}
    edit = Edit(EditOp.BACKEND_ADD, "s", "b", {"address": "x"})
    assert requests.edit_request(body) == ((edit,), ChangeOptions(dry_run=False, confirmed=False))
    told = requests.edit_request(body | {"dry_run": True, "confirmed": True})
    assert told == ((edit,), ChangeOptions(dry_run=True, confirmed=True))


def test_edit_fields_that_are_left_out_are_nothing():
    assert requests.edit_request({"op": "services.apply"}) == (
        (Edit(EditOp.SERVICES_APPLY, None, None, {}),),
        ChangeOptions(dry_run=False, confirmed=False),
    )


def test_a_reload_is_plain_unless_it_says_otherwise():
    assert requests.reload_request({}) == ChangeOptions(dry_run=False, confirmed=False)
    assert requests.reload_request({"confirmed": True}) == ChangeOptions(
        dry_run=False, confirmed=True
    )
    with pytest.raises(RequestError, match="no field"):
        requests.reload_request({"yes": True})


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "field op"),
        ({"op": None}, "field op"),
        ({"op": 7}, "field op"),
        ({"op": []}, "field op"),
        ({"op": "service.rename"}, "field op"),
        ({"op": "service.add", "dryrun": True}, "field dryrun"),
        ({"op": "service.add", "dry_run": "yes"}, "field dry_run"),
        ({"op": "service.add", "dry_run": None}, "field dry_run"),
        ({"op": "service.add", "values": []}, "field values"),
        ({"op": "service.add", "service": 7}, "field service"),
        ({"op": "backend.add", "backend": {}}, "field backend"),
    ],
)
def test_edits_that_are_refused(body, where):
    with pytest.raises(RequestError) as caught:
        requests.edit_request(body)
    assert caught.value.where == where
    assert caught.value.remedy


def test_trace_without_parameters_shows_decisions_and_no_packets(config):
    assert requests.trace_query({}, config) == TraceQuery(DECISIONS, None, 1024, None)


def test_trace_with_every_parameter(config):
    given = {
        "kind": "packet,reply",
        "service": "chat",
        "sample": "64",
        "filter": "backend gpu-1 and tcp",
    }
    query = requests.trace_query(given, config)
    assert query.kinds == {EventKind.PACKET, EventKind.REPLY}
    assert (query.service, query.sample) == ("chat", 64)
    assert query.matches is not None


def test_trace_of_one_service_by_its_filter_asks_the_data_plane_for_that_one_only(config):
    query = requests.trace_query({"filter": "service chat and port 80"}, config)
    assert query.service == "chat"


@pytest.mark.parametrize(
    ("given", "error", "remedy"),
    [
        ({"kind": "drop,pick,"}, RequestError, "use one of"),
        ({"kind": "drops"}, RequestError, "did you mean 'drop'?"),
        ({"sample": "0"}, RequestError, "from 1 to 65536"),
        ({"sample": "1000"}, RequestError, "use 1, 2, 4"),
        ({"service": "chta"}, NotFoundError, "did you mean 'chat'?"),
        ({"filter": "service chta"}, NotFoundError, "did you mean 'chat'?"),
        ({"filter": "backend gpu-7"}, NotFoundError, "did you mean"),
        ({"filter": "backend dns/gpu-1"}, NotFoundError, "use one of ns-1"),
        ({"filter": "prot 80"}, RequestError, "did you mean port?"),
    ],
)
def test_trace_that_would_show_nothing_is_refused(config, given, error, remedy):
    with pytest.raises(error) as caught:
        requests.trace_query(given, config)
    assert remedy in caught.value.remedy
    assert caught.value.where
