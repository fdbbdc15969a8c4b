"""A first configuration: what is proposed, what is refused, and that the result is valid."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import draft as drafts
from agent.config.advice import HostFacts
from agent.config.draft import Draft, Seen, Server
from agent.config.load import parse
from agent.model import CheckKind, Forward, TelemetryKind

FIXTURES = Path(__file__).parents[2] / "fixtures"
HERE = HostFacts(
    frozenset({"eth0", "lo"}), frozenset({ip_address("10.0.0.1")}),
    frozenset({ip_network("10.0.0.0/24")}),
)  # fmt: skip


def server(number: int, port: int | None = None, name: str | None = None) -> Server:
    return Server(ip_address(f"10.0.0.{number}"), port, name)


def draft(**more: object) -> Draft:
    given = {
        "interface": "eth0", "vip": ip_address("10.0.0.10"), "port": 80,
        "servers": (server(21), server(22)), "forward": Forward.FULLNAT, "health": "/health",
    }  # fmt: skip
    return Draft(**given | more)


@pytest.mark.parametrize(
    ("page", "engine"),
    [
        (b"# HELP x\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n",
         TelemetryKind.VLLM),
        (b"llamacpp:requests_processing 0\n", TelemetryKind.LLAMACPP),
        (b"# TYPE nv_inference_count counter\n", TelemetryKind.TRITON),
        (b"dynamo_component_x 1\nvllm:num_requests_running 1\n", TelemetryKind.DYNAMO),
        (b"sglang:num_running_reqs 3\n", TelemetryKind.SGLANG),
        (b"process_cpu_seconds_total 1\n", None),
        (b"<html>vllm: the page</html>", None),
        (b"", None),
    ],
)  # fmt: skip
def test_an_engine_is_known_by_its_metrics(page: bytes, engine: TelemetryKind | None) -> None:
    assert drafts.engine_of(page) is engine


def test_the_port_is_that_of_the_engines_if_it_is_the_same() -> None:
    assert drafts.proposed_port([Seen(8000), Seen(8000), Seen()]) == 8000
    assert drafts.proposed_port([Seen(8000), Seen(8080)]) == 80
    assert drafts.proposed_port([Seen()]) == 80


@pytest.mark.parametrize(
    ("servers", "mode"),
    [
        ((server(21),), Forward.FULLNAT),
        ((server(21, 8000),), Forward.FULLNAT),
        ((Server(ip_address("2001:db8::1")),), Forward.IPIP),
    ],
)
def test_the_mode_with_the_least_setup_is_proposed(servers, mode: Forward) -> None:
    assert drafts.proposed_forward(ip_address("10.0.0.10"), 80, servers)[0] is mode


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, ""),
        ({"vip": ip_address("10.0.0.1")}, "is an address of this host itself"),
        ({"vip": ip_address("10.0.0.21")}, "is a server's own address"),
        ({"forward": Forward.DSR}, ""),
        ({"forward": Forward.DSR, "servers": (server(21, 8000),)}, "and dsr changes no port"),
        ({"forward": Forward.DSR, "servers": (Server(ip_address("10.9.0.1")),)},
         "is in no network of this host"),
    ],
)  # fmt: skip
def test_what_can_only_be_a_mistake_is_refused(more, says: str) -> None:
    objection = drafts.objection(draft(**more), HERE)
    assert says in objection
    assert bool(says) is bool(objection)


def test_the_file_says_what_was_answered() -> None:
    servers = (server(21, 8000), server(22, 80, "big"))
    (chat,) = parse(
        drafts.text(draft(servers=servers, engine=TelemetryKind.VLLM)), "agent.yaml"
    ).services
    assert [(b.name, b.port) for b in chat.backends] == [("gpu-1", 8000), ("big", None)]
    assert chat.telemetry.kind is TelemetryKind.VLLM
    assert (chat.health.kind, chat.health.path) == (CheckKind.HTTP, "/health")
    (chat,) = parse(drafts.text(draft(health=None)), "agent.yaml").services
    assert chat.health.kind is CheckKind.TCP


def test_servers_of_dsr_have_a_command_to_run() -> None:
    assert drafts.on_servers(draft()) == ()
    (command,) = drafts.on_servers(draft(forward=Forward.DSR))
    assert command.endswith("backend-setup.sh up dsr --persist 10.0.0.10")


V4 = st.integers(1, 250).map(lambda n: ip_address(f"10.1.0.{n}"))
V6 = st.integers(1, 250).map(lambda n: ip_address(f"2001:db8::{n:x}"))


@given(st.data(), st.sampled_from([V4, V6]), st.sampled_from(Forward), st.integers(1, 65535))
def test_whatever_is_answered_the_file_is_valid(data, addresses, forward, port) -> None:
    found = data.draw(
        st.lists(
            st.builds(Server, addresses, st.none() | st.integers(1, 65535)),
            min_size=1, max_size=4, unique_by=lambda each: each.address,
        )
    )  # fmt: skip
    vip = data.draw(addresses.filter(lambda a: a not in {s.address for s in found}))
    made = draft(
        vip=vip, port=port, servers=tuple(found), forward=forward,
        health=data.draw(st.none() | st.just("/health")),
        engine=data.draw(st.none() | st.sampled_from([TelemetryKind.VLLM, TelemetryKind.TRITON])),
    )  # fmt: skip
    (chat,) = parse(drafts.text(made), "agent.yaml").services
    assert [backend.address for backend in chat.backends] == [each.address for each in found]
