"""``lbctl server``: what is done to a machine, over all services."""

from __future__ import annotations

import pytest

from lbctl.servers import find, servers
from tests.cli.conftest import backend_view, service_view


def services() -> list[dict]:
    """chat and embed share gpu-1; gpu-2 has an address of each family."""
    chat, embed = service_view(), service_view() | {"name": "embed"}
    chat["backends"] = [
        backend_view("gpu-1", "10.0.0.21", state="down", reason="connection refused"),
        backend_view("gpu-2", "10.0.0.22", open_connections=500),
    ]
    embed["backends"] = [
        backend_view("gpu-1", "10.0.0.21", service="embed"),
        backend_view("gpu-2", "fd00::22", service="embed", waiting_bytes=None),
        backend_view("other", "10.0.0.23", service="embed"),
    ]
    return [chat, embed]


@pytest.fixture(autouse=True)
def _served(agent) -> None:
    agent.services = services()


def test_servers_are_listed_by_address_with_their_worst_state(run):
    out = run("server", "list").out.splitlines()
    assert out[0].split()[:5] == ["SERVER", "ADDRESS", "STATE", "SINCE", "WHY"]
    assert [line.split()[:3] for line in out[1:]] == [
        ["gpu-1", "10.0.0.21", "down"],
        ["gpu-2", "10.0.0.22", "up"],
        ["gpu-2", "fd00::22", "up"],
        ["other", "10.0.0.23", "up"],
    ]
    assert "connection refused" in out[1]
    assert "1/2" in out[1].split()


def test_lists_are_sorted_cut_and_filtered(run):
    lines = run("server", "list", "--sort", "connections", "--limit", "1").out.splitlines()
    assert lines[1].split()[:2] == ["gpu-1", "10.0.0.21"]
    assert lines[2] == "1 of 4 shown; omit --limit to see all"
    assert len(run("server", "list", "--state", "down").out.splitlines()) == 2
    assert run("server", "list", "--state", "drain").out == "no servers\n"
    data = run("server", "list", "--limit", "2", "-o", "json").json
    assert (len(data["servers"]), data["servers_total"]) == (2, 4)
    assert data["servers"][0]["backends"] == ["chat/gpu-1", "embed/gpu-1"]


def test_backends_and_services_are_sorted_cut_and_filtered_too(run):
    lines = run("backend", "list", "--sort", "name", "--limit", "2").out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["chat", "gpu-1"], ["chat", "gpu-2"]]
    assert lines[3] == "2 of 5 shown; omit --limit to see all"
    first = run("backend", "list", "--sort", "state").out.splitlines()[1]
    assert first.split()[:2] == ["chat", "gpu-1"]
    assert run("service", "list", "--state", "down").out == "no services\n"
    assert len(run("service", "list", "--limit", "1").out.splitlines()) == 3
    for sort in ("flows", "new", "waiting", "first-byte"):
        assert run("backend", "list", "--sort", sort).code == 0
    for sort in ("flows", "new", "waiting", "drops", "state", "name"):
        assert run("service", "list", "--sort", sort).code == 0


def test_a_mistyped_order_is_guessed(run):
    result = run("backend", "list", "--sort", "flow")
    assert (result.code, "did you mean flows?" in result.err) == (2, True)


def test_a_server_is_drained_everywhere_in_one_order(agent, run):
    result = run("server", "drain", "gpu-1", "10.0.0.23", "-m", "new driver")
    assert result.code == 0, result.err
    (order,) = agent.edits
    assert [(e["service"], e["backend"], e["values"]) for e in order["edits"]] == [
        ("chat", "gpu-1", {"state": "drain"}),
        ("embed", "gpu-1", {"state": "drain"}),
        ("embed", "other", {"state": "drain"}),
    ]
    assert (order["message"], order["dry_run"]) == ("new driver", False)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["enable", "gpu-1"], {"state": "active"}),
        (["disable", "gpu-1"], {"state": "maintenance"}),
        (["weight", "gpu-1", "50"], {"weight": 50}),
    ],
)
def test_the_other_verbs(agent, run, words, values):
    assert run("server", *words, "--dry-run").code == 0
    (order,) = agent.edits
    assert [each["values"] for each in order["edits"]] == [values, values]
    assert order["dry_run"] is True


def test_a_name_is_of_one_machine_of_both_families(agent, run):
    assert run("server", "drain", "gpu-2").code == 0
    (order,) = agent.edits
    assert [e["service"] for e in order["edits"]] == ["chat", "embed"]


def test_a_name_of_two_machines_is_refused_with_their_addresses(agent, run):
    agent.services[1]["backends"][1]["address"] = "10.0.0.99"
    result = run("server", "drain", "gpu-2")
    assert result.code == 1
    assert "gpu-2 is the name of backends on 2 servers" in result.err
    assert "10.0.0.22, 10.0.0.99" in result.err
    assert agent.edits == []
    assert run("server", "drain", "10.0.0.99").code == 0


def test_an_unknown_server_is_guessed_and_nothing_is_done(agent, run):
    result = run("server", "drain", "gpu-1", "gpu3")
    assert (result.code, agent.edits) == (1, [])
    assert "there is no server gpu3" in result.err
    assert "did you mean" in result.err


def test_drain_waits_until_the_last_flow_has_ended(agent, run):
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            for service in agent.services:
                for backend in service["backends"]:
                    backend["flows_established"] = 0

    result = run("server", "drain", "gpu-1", "--wait", sleep=wait)
    assert result.code == 0
    assert "embed/gpu-1 has no established flows" in result.err


def test_a_server_shows_its_backends(run):
    lines = run("server", "show", "10.0.0.21").out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["chat", "gpu-1"], ["embed", "gpu-1"]]


def test_several_reasons_are_counted():
    found = servers(services())
    assert find(found, "gpu-1")[0].reason == "connection refused"
    chat, embed = services()
    embed["backends"][0] |= {"state": "down", "reason": "HTTP 503"}
    assert servers([chat, embed])[0].reason == "connection refused; and 1 more"
