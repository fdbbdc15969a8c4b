"""The typed client: every method asks for what its route's example asks for."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from agent.api import pyclient
from agent.api.routes import LINES, ROUTES, TEXT, Route
from steelyard import AgentUnreachableError, ApiNotFoundError, Client

JSON_ROUTES = [route for route in ROUTES if route.content_type != TEXT]


class Recorder(socketserver.ThreadingUnixStreamServer):
    """An agent that notes what it is asked, and answers the same to everybody."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Answer)
        self.asked: list[tuple[str, str, Any]] = []
        self.answer: tuple[int, object] = (200, {"well": True})


class Answer(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: object) -> None:
        self.server.asked.append((self.command, self.path, body))
        status, answer = self.server.answer
        text = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self) -> str:
        return "-"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Recorder]:
    with Recorder(tmp_path / "agent.sock") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def converted(route: Route, name: str, value: str) -> object:
    schema = next(each.schema for each in route.parameters if each.name == name)
    if schema.get("type") == "integer":
        return int(value)
    return value == "true" if pyclient._is_boolean(schema) else value


def placeholders(route: Route, path: str) -> list[str]:
    asked = zip(route.path.split("/"), path.split("/"), strict=True)
    return [unquote(given) for part, given in asked if part.startswith("{")]


@pytest.mark.parametrize("route", JSON_ROUTES, ids=lambda route: route.name)
def test_each_method_asks_what_its_example_asks(agent: Recorder, route: Route) -> None:
    example = urlsplit(route.example)
    query = dict(parse_qsl(example.query))
    client = Client(Path(str(agent.server_address)))
    call = getattr(client, pyclient._name(route.name))
    given: list[object] = [*placeholders(route, example.path)]
    if route.body is not None:
        given.append(route.sent or {})
    answer = call(*given, **{key: converted(route, key, value) for key, value in query.items()})
    if route.content_type == LINES:
        (answer,) = answer
    assert answer == {"well": True}
    ((method, target, body),) = agent.asked
    assert (method, urlsplit(target).path) == (route.method, example.path)
    assert dict(parse_qsl(urlsplit(target).query)) == query
    assert body == ((route.sent or {}) if route.method == "POST" else None)


def test_a_name_is_one_part_of_the_path(agent: Recorder) -> None:
    Client(Path(str(agent.server_address))).service("a/b?c")
    assert agent.asked == [("GET", "/v1/services/a%2Fb%3Fc", None)]


def test_refusals_and_silence_are_errors(agent: Recorder, tmp_path: Path) -> None:
    error = {"message": "no such service", "where": "chat", "remedy": "lbctl service list"}
    agent.answer = (404, {"error": error})
    with pytest.raises(ApiNotFoundError, match="no such service") as caught:
        Client(Path(str(agent.server_address))).service("chat")
    assert caught.value.remedy == "lbctl service list"
    with pytest.raises(AgentUnreachableError):
        Client(tmp_path / "nothing.sock").status()


def test_text_is_for_other_programs() -> None:
    left_out = {route.name for route in ROUTES} - {route.name for route in JSON_ROUTES}
    assert left_out == {"metrics", "healthz"}
