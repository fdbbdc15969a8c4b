"""The agent's client: what is asked arrives, and every failure says what to do."""

from __future__ import annotations

import socket

import pytest

from agent.api.client import ApiNotFoundError, ApiRefusedError, Client
from agent.errors import AgentUnreachableError, ApiError


def test_parameters_arrive_and_none_is_left_out(agent):
    answer = Client(agent.socket).get(
        "/v1/flows", {"client": "2001:db8::/32", "limit": 5, "x": None}
    )
    assert answer["matched"] == 1
    assert agent.queries == [("/v1/flows", {"client": "2001:db8::/32", "limit": "5"})]


def test_body_arrives(agent):
    Client(agent.socket).post("/v1/edit", {"op": "x", "dry_run": True})
    assert agent.edits == [{"op": "x", "dry_run": True}]


def test_no_socket_says_how_to_start_the_agent(tmp_path):
    with pytest.raises(AgentUnreachableError) as caught:
        Client(tmp_path / "none.sock").get("/v1/status")
    assert caught.value.where == str(tmp_path / "none.sock")
    assert "systemctl start" in caught.value.remedy


def test_dead_agent_is_told_from_no_agent(tmp_path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(AgentUnreachableError, match="is gone"):
        Client(path).get("/v1/status")


def test_permission_denied_names_sudo_and_the_group(agent, monkeypatch):
    def denied(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("agent.api.client._UnixConnection.connect", lambda self: denied(self, ""))
    with pytest.raises(AgentUnreachableError, match="permission denied") as caught:
        Client(agent.socket).get("/v1/status")
    assert "sudo" in caught.value.remedy
    assert "socket_group" in caught.value.remedy


def test_silent_agent_is_given_up_on(tmp_path):
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AgentUnreachableError, match="did not answer within"):
            Client(path, timeout_s=0.05).get("/v1/status")
        with pytest.raises(AgentUnreachableError, match="may still carry out the request") as order:
            Client(path, timeout_s=0.05).post("/v1/reload")
        assert "lbctl events" in order.value.remedy


def test_something_else_on_the_socket_is_noticed(agent):
    agent.raw = b"<html>hello</html>"
    with pytest.raises(ApiError, match="no JSON object"):
        Client(agent.socket).get("/v1/status")


def test_refusal_carries_message_where_and_remedy(agent):
    agent.refuse_edits = (
        400,
        {
            "error": {
                "message": "weight 2000 is out of range",
                "where": "chat",
                "remedy": "0 to 1000",
            }
        },
    )
    with pytest.raises(ApiRefusedError) as caught:
        Client(agent.socket).post("/v1/edit", {})
    error = caught.value
    assert (error.message, error.where, error.remedy, error.status) == (
        "weight 2000 is out of range",
        "chat",
        "0 to 1000",
        400,
    )


def test_refusal_without_a_reason_still_says_the_status(agent):
    agent.refuse_edits = (502, {})
    with pytest.raises(ApiRefusedError, match="HTTP 502"):
        Client(agent.socket).post("/v1/edit", {})


def test_unknown_service_has_its_own_error(agent):
    with pytest.raises(ApiNotFoundError):
        Client(agent.socket).get("/v1/services/nobody")
