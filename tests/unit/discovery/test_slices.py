"""EndpointSlices of a Service: which targets they name, and what no API server should send."""

from __future__ import annotations

import contextlib
import copy
import random
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.discovery import slices
from agent.discovery.answer import Answer, Refused
from agent.discovery.slices import from_slices
from agent.errors import DiscoveryError
from agent.model import AdminState, Target

WHERE = "kubernetes default/vllm"
READY = {"ready": True, "serving": True, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}

type Json = dict[str, Any]


def endpoint(address: str, pod: str | None = None, **others: object) -> Json:
    """An endpoint as the controller of Kubernetes writes it."""
    data: Json = {"addresses": [address], "conditions": READY, **others}
    if pod is not None:
        data["targetRef"] = {"kind": "Pod", "namespace": "default", "name": pod, "uid": "1"}
    return data


def port(number: int | None = 8000, name: str | None = "http", protocol: str = "TCP") -> Json:
    return {"name": name, "port": number, "protocol": protocol}


def piece(*endpoints: Json, ports: Any = None, kind: str = "IPv4", name: str = "vllm-1") -> Json:
    return {
        "metadata": {"name": name, "resourceVersion": "1"},
        "addressType": kind,
        "ports": [port()] if ports is None else ports,
        "endpoints": list(endpoints),
    }


def read(*objects: object, family: int = 4, port_name: str | None = None) -> Answer:
    return from_slices(objects, family, port_name, WHERE)


def no_answer(*objects: object, **others: Any) -> str:
    with pytest.raises(DiscoveryError) as caught:
        read(*objects, **others)
    assert caught.value.where == WHERE
    assert caught.value.remedy
    return caught.value.message


def target(address: str, number: int | None = 8000, **others: Any) -> Target:
    return Target(ip_address(address), number, **others)


# -- endpoints


def test_a_ready_pod_is_a_target_with_its_name_and_zone():
    found = read(piece(endpoint("10.1.0.5", "vllm-7d9f-x2x", zone="EU-West-1a", nodeName="n1")))
    assert found == Answer((target("10.1.0.5", name="vllm-7d9f-x2x", zone="eu-west-1a"),))


@pytest.mark.parametrize(
    ("conditions", "admin"),
    [
        (READY, AdminState.ACTIVE),
        ({"ready": True, "serving": False, "terminating": True}, AdminState.ACTIVE),
        ({}, AdminState.ACTIVE),
        (None, AdminState.ACTIVE),
        ({"ready": None, "serving": None, "terminating": None}, AdminState.ACTIVE),
        (TERMINATING, AdminState.DRAIN),
        ({"ready": False, "serving": True, "terminating": False}, None),
        ({"ready": False, "serving": True}, None),
        ({"ready": False, "serving": False, "terminating": True}, None),
        ({"ready": False, "terminating": True}, None),
        ({"ready": False}, None),
    ],
)
def test_conditions_become_a_state(conditions: Json | None, admin: AdminState | None):
    found = read(piece(endpoint("10.1.0.5", conditions=conditions)))
    assert found == Answer(() if admin is None else (target("10.1.0.5", admin=admin),))


def test_only_addresses_of_the_asked_family_are_taken():
    both = (
        piece(endpoint("10.1.0.5")),
        piece(endpoint("2001:db8::5"), kind="IPv6"),
        piece(endpoint("gpu.example.org"), kind="FQDN"),
    )
    assert read(*both) == Answer((target("10.1.0.5"),))
    assert read(*both, family=6) == Answer((target("2001:db8::5"),))


def test_only_the_first_address_of_an_endpoint_counts():
    found = read(piece({"addresses": ["10.1.0.5", "10.1.0.6"]}))
    assert found == Answer((target("10.1.0.5"),))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "127.0.0.1 is a loopback address, not the unicast address of one host"),
        ("169.254.1.1", "169.254.1.1 is a link-local address, not the unicast address of one host"),
        ("2001:db8::5", "it is not an IPv4 address"),
        ("gpu-5", "it is not an IPv4 address"),
    ],
)
def test_an_unusable_address_is_refused_and_the_others_are_used(address: str, why: str):
    found = read(piece(endpoint(address), endpoint("10.1.0.5")))
    assert found == Answer((target("10.1.0.5"),), (Refused(address, why),))


def test_an_endpoint_that_does_not_serve_is_not_reported_as_refused():
    assert read(piece(endpoint("127.0.0.1", conditions={"ready": False}))) == Answer(())


@pytest.mark.parametrize("pod", ["a" * 65, "Vllm-1"])
def test_a_pod_whose_name_a_backend_cannot_have_is_taken_without_it(pod: str):
    assert read(piece(endpoint("10.1.0.5", pod))) == Answer((target("10.1.0.5"),))


def test_only_pods_give_names():
    node = endpoint("10.1.0.5", targetRef={"kind": "Node", "name": "n1"})
    assert read(piece(node)) == Answer((target("10.1.0.5"),))


def test_a_name_that_two_targets_have_is_used_for_neither():
    found = read(piece(endpoint("10.1.0.5", "a"), endpoint("10.1.0.6", "a")))
    assert found == Answer((target("10.1.0.5"), target("10.1.0.6")))


def test_a_zone_that_is_no_name_of_ours_is_left_out():
    found = read(piece(endpoint("10.1.0.5", zone="zone one"), endpoint("10.1.0.6", zone="")))
    assert found == Answer((target("10.1.0.5"), target("10.1.0.6")))


# -- several slices


def test_slices_are_merged_and_sorted():
    found = read(
        piece(endpoint("10.1.0.9"), name="vllm-2"),
        piece(endpoint("10.1.0.10"), endpoint("10.1.0.2"), name="vllm-1"),
    )
    assert [str(each.address) for each in found.targets] == ["10.1.0.2", "10.1.0.9", "10.1.0.10"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_entries_for_an_address_the_better_state_wins(order: int):
    both = [
        piece(endpoint("10.1.0.5", "a", conditions=TERMINATING), name="vllm-1"),
        piece(endpoint("10.1.0.5", "a", zone="east"), name="vllm-2"),
    ][::order]
    assert read(*both) == Answer((target("10.1.0.5", name="a", zone="east"),))


def test_more_endpoints_than_a_service_can_have_are_no_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slices, "MOST_TARGETS", 2)
    two = piece(endpoint("10.1.0.5"), endpoint("10.1.0.6"))
    assert len(read(two).targets) == 2
    assert no_answer(two, piece(endpoint("10.1.0.7"))) == "the Service has more than 2 endpoints"


def test_a_service_without_slices_is_an_empty_answer():
    assert read() == Answer(())


def test_the_empty_slice_of_a_service_that_is_scaled_to_zero_says_nothing_about_ports():
    """The controller leaves one without ports: ``endpoints: null, ports: null``."""
    empty = piece() | {"endpoints": None, "ports": None}
    assert read(empty, port_name="http") == Answer(())
    assert read(empty, piece(endpoint("10.1.0.5")), port_name="http").targets


# -- ports


def test_the_port_with_the_name_is_used():
    ports = [port(8000, "http"), port(9000, "metrics")]
    found = read(piece(endpoint("10.1.0.5"), ports=ports), port_name="metrics")
    assert found == Answer((target("10.1.0.5", 9000),))


def test_several_ports_without_a_name_to_choose_by_are_no_answer():
    ports = [port(8000, "http"), port(9000, "metrics"), port(1, "sctp", "SCTP")]
    assert (
        no_answer(piece(endpoint("10.1.0.5"), ports=ports))
        == "the endpoints have several ports: http, metrics"
    )


def test_a_port_name_that_no_slice_has_is_no_answer():
    known = piece(endpoint("10.1.0.5"), ports=[port(), port(9000, "metrics")])
    assert no_answer(known, port_name="grpc") == (
        "no endpoint has a port with the name grpc; the ports are http, metrics"
    )
    assert no_answer(piece(endpoint("10.1.0.5"), ports=[]), port_name="grpc") == (
        "no endpoint has a port with the name grpc; the endpoints have no ports"
    )


def test_udp_is_a_port_and_sctp_is_none():
    ports = [port(443, "h3", "UDP"), port(9, "sctp", "SCTP")]
    assert read(piece(endpoint("10.1.0.5"), ports=ports)).targets[0].port == 443


@pytest.mark.parametrize("ports", [[{}], [port(None, None)], []])
def test_without_a_number_the_target_has_every_port(ports: list[Json]):
    assert read(piece(endpoint("10.1.0.5"), ports=ports)) == Answer((target("10.1.0.5", None),))


def test_pods_may_have_different_numbers_for_one_name():
    found = read(
        piece(endpoint("10.1.0.5"), ports=[port(8000)]),
        piece(endpoint("10.1.0.6"), ports=[port(8001)]),
    )
    assert [each.port for each in found.targets] == [8000, 8001]


def test_an_endpoint_whose_slice_lacks_the_port_is_refused():
    found = read(
        piece(endpoint("10.1.0.5")),
        piece(endpoint("10.1.0.6"), ports=[port(9000, "metrics")]),
        port_name="http",
    )
    assert found.targets == (target("10.1.0.5"),)
    assert found.refused == (Refused("10.1.0.6", "its slice has no port http"),)


def test_a_port_number_out_of_range_is_refused():
    found = read(piece(endpoint("10.1.0.5"), ports=[port(70_000)]))
    assert found.refused == (Refused("10.1.0.5", "port 70000 is not from 1 to 65535"),)


# -- what no API server should send


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": None}, "metadata is missing"),
        ({"metadata": {}}, "name is missing"),
        ({"metadata": {"name": 5}}, "name is not a string"),
        ({"addressType": None}, "addressType is missing"),
        ({"endpoints": {}}, "endpoints is not a list"),
        ({"endpoints": ["10.1.0.5"]}, "its endpoints are not mappings"),
        ({"endpoints": [{}]}, "addresses is missing"),
        ({"endpoints": [{"addresses": []}]}, "an endpoint has no address"),
        ({"endpoints": [{"addresses": [5]}]}, "an endpoint has no address"),
        ({"endpoints": [endpoint("a", conditions=[])]}, "conditions is not a mapping"),
        ({"endpoints": [endpoint("a", conditions={"ready": "no"})]}, "ready is not true or false"),
        ({"endpoints": [endpoint("a", zone=5)]}, "zone is not a string"),
        ({"endpoints": [endpoint("a", targetRef="a")]}, "targetRef is not a mapping"),
        ({"ports": "http"}, "ports is not a list"),
        ({"ports": [port(True)]}, "port is not a whole number"),
        ({"ports": [port(8000.0)]}, "port is not a whole number"),  # type: ignore[arg-type]
        ({"ports": [port(), port(8001)]}, "two ports have the name http"),
    ],
)
def test_a_malformed_slice_is_no_answer(change: Json, words: str):
    message = no_answer(piece(endpoint("10.1.0.5")) | change)
    assert message.startswith("the EndpointSlice ")
    assert message.endswith(f"is not as the API promises: {words}")


@pytest.mark.parametrize("data", [None, 5, "a", []])
def test_what_is_no_object_is_no_answer(data: object):
    assert no_answer(data).endswith("it is not a mapping")


# -- properties

addresses = st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3", "127.0.0.1", "x"])
states = st.sampled_from([READY, TERMINATING, {"ready": False}, {}])
endpoints = st.builds(
    endpoint, addresses, st.sampled_from([None, "a", "b", "UPPER"]), conditions=states,
    zone=st.sampled_from([None, "east", "WEST"]),
)  # fmt: skip
pieces = st.builds(
    lambda items, ports, kind: piece(*items, ports=ports, kind=kind),
    st.lists(endpoints, max_size=5),
    st.sampled_from([[port()], [port(8001)], [port(), port(9000, "metrics")]]),
    st.sampled_from(["IPv4", "IPv4", "IPv6"]),
)


@given(st.lists(pieces, max_size=4), st.randoms(use_true_random=False))
def test_order_has_no_influence(objects: list[Json], order: random.Random):
    mixed = copy.deepcopy(objects)
    order.shuffle(mixed)
    for each in mixed:
        order.shuffle(each["endpoints"])
        order.shuffle(each["ports"])
    assert read(*mixed, port_name="http") == read(*objects, port_name="http")


@given(st.lists(pieces, max_size=4))
def test_targets_are_unique_in_address_and_name(objects: list[Json]):
    found = read(*objects, port_name="http").targets
    names = [each.name for each in found if each.name is not None]
    assert len({(each.address, each.port) for each in found}) == len(found)
    assert len(set(names)) == len(names)


KEYS = st.sampled_from(
    ["metadata", "name", "addressType", "ports", "port", "protocol", "endpoints", "addresses",
     "conditions", "ready", "serving", "terminating", "zone", "targetRef", "kind", "other"]
)  # fmt: skip
WORDS = st.sampled_from(["IPv4", "IPv6", "FQDN", "TCP", "Pod", "10.1.0.5", "::1", "\ud800", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), WORDS
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)


@given(st.lists(ANYTHING, max_size=3), st.sampled_from([4, 6]), st.sampled_from([None, "http"]))
def test_arbitrary_json_is_an_answer_or_no_answer(
    objects: list[object], family: int, port_name: str | None
):
    with contextlib.suppress(DiscoveryError):
        read(*objects, family=family, port_name=port_name)


@given(pieces, st.data())
def test_a_slice_with_one_wrong_part_is_an_answer_or_no_answer(whole: Json, data: st.DataObject):
    """Unlike arbitrary JSON, this reaches every part of a slice."""
    paths = list(_paths(whole))
    path = data.draw(st.sampled_from(paths))
    whole = copy.deepcopy(whole)
    place: Any = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = data.draw(ANYTHING)
    with contextlib.suppress(DiscoveryError):
        read(whole)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for step, inner in items:
        yield (*before, step)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*before, step))
