"""The socket of the failover process, from both ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.api.listen import listen_unix
from agent.api.peer import Access, access
from agent.errors import AgentUnreachableError, ApiError, RequestError, SteelyardError
from agent.failover import client
from agent.failover.fitness import AgentHeartbeat
from agent.failover.model import Mode
from agent.failover.process import control


@dataclass
class Handler:
    """Writes down what was asked for."""

    done: list[object] = field(default_factory=list)

    def status(self) -> dict[str, Any]:
        return {"pid": 1}

    def agent_says(self, word: AgentHeartbeat) -> None:
        self.done.append(word)

    async def set_mode(self, mode: Mode, instance: str | None) -> None:
        if instance == "nix":
            raise RequestError("there is none", where="failover", remedy="name another")
        self.done.append((mode, instance))

    def claim(self, instance: str | None) -> None:
        self.done.append(("claim", instance))

    def excuse(self) -> None:
        self.done.append("excuse")

    async def reload(self) -> None:
        self.done.append("reload")


def answer(line: str, handler: Handler) -> dict[str, Any]:
    return asyncio.run(control.answer_to(line.encode(), handler))


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ('{"do": "status"}', []),
        ('{"do": "reload"}', ["reload"]),
        ('{"do": "claim", "instance": "web"}', [("claim", "web")]),
        ('{"do": "claim"}', [("claim", None)]),
        ('{"do": "leave"}', ["excuse"]),
        ('{"do": "mode", "mode": "promoted", "instance": null}', [(Mode.PROMOTED, None)]),
        ('{"do": "mode", "mode": "handed-over", "instance": "w"}', [(Mode.HANDED_OVER, "w")]),
        (
            '{"do": "agent", "attached": true, "why": "", "services": {"web": [2, 3]}}',
            [AgentHeartbeat(True, "", {"web": (2, 3)})],
        ),
        (
            '{"do": "agent", "attached": true, "ready": false, "cut_off": true}',
            [AgentHeartbeat(True, ready=False, cut_off=True)],
        ),
        (
            '{"do": "agent", "attached": true, "hands_over": true}',
            [AgentHeartbeat(True, hands_over=True)],
        ),
        ('{"do": "agent", "attached": false, "why": "off"}', [AgentHeartbeat(False, "off")]),
    ],
)
def test_every_request_is_done_and_answered_with_the_status(line: str, done: list[object]) -> None:
    handler = Handler()
    assert answer(line, handler) == {"pid": 1}
    assert handler.done == done


@pytest.mark.parametrize(
    ("told", "taken"),
    [
        ({"web": 7.5, "api": 8.5}, {"web": 7.5, "api": 8.5}),
        ({"web": 7, "api": True, "dns": None}, {}),
        ([], {}),
        (None, {}),
    ],
)
def test_vouchers_that_make_no_sense_vouch_for_nobody(told: object, taken: object) -> None:
    handler = Handler()
    answer(json.dumps({"do": "agent", "attached": True, "vouchers": told}), handler)
    (word,) = handler.done
    assert isinstance(word, AgentHeartbeat)
    assert word.vouchers == taken
    assert word == AgentHeartbeat(True), "no priority depends on it"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        '"status"',
        "{",
        "{}",
        '{"do": 3}',
        '{"do": "agent"}',
        '{"do": "agent", "attached": 1}',
        '{"do": "agent", "attached": true, "services": [1]}',
        '{"do": "agent", "attached": true, "services": {"web": ["a", 2]}}',
        '{"do": "agent", "attached": true, "services": {"web": [1, 2, 3]}}',
        '{"do": "mode", "mode": "king"}',
        '{"do": "mode", "mode": "normal", "instance": 7}',
        '{"do": "claim", "instance": ["web"]}',
        '{"do": "mode", "mode": "normal", "instance": "nix"}',
        "[" * 100_000,
    ],
)
def test_what_makes_no_sense_is_refused_with_a_message(line: str) -> None:
    handler = Handler()
    error = answer(line, handler)["error"]
    assert error["message"]
    assert not handler.done


def test_a_request_that_fails_is_answered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Handler()
    monkeypatch.setattr(handler, "claim", lambda _: {}["a bug"])
    assert "KeyError" in answer('{"do": "claim"}', handler)["error"]["message"]


def serving(path: Path, handler: Handler, who: Access, work: Callable[[], Awaitable[Any]]) -> Any:
    async def both() -> Any:
        control_socket = control.ControlSocket(listen_unix(path, None), who)
        task = asyncio.create_task(control.serve(control_socket, handler))
        try:
            return await work()
        finally:
            task.cancel()
            control_socket.listener.close()

    return asyncio.run(both())


def test_the_client_gets_the_answer_of_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"

    async def work() -> Any:
        one = await client.ask_async(path, {"do": "status"})
        return one, await asyncio.to_thread(client.ask, path, {"do": "status"})

    assert serving(path, Handler(), access(None), work) == ({"pid": 1}, {"pid": 1})


def test_the_client_raises_what_the_socket_refuses(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"

    async def work() -> None:
        request = {"do": "mode", "mode": "normal", "instance": "nix"}
        await client.ask_async(path, request)

    with pytest.raises(ApiError, match="there is none") as raised:
        serving(path, Handler(), access(None), work)
    assert (raised.value.where, raised.value.remedy) == ("failover", "name another")


def test_one_connection_serves_for_many_requests(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"

    async def work() -> list[bytes]:
        reader, writer = await asyncio.open_unix_connection(path)
        found = []
        for _ in range(3):
            writer.write(b'{"do": "status"}\n')
            found.append(await reader.readline())
        writer.close()
        return found

    assert serving(path, Handler(), access(None), work) == [b'{"pid": 1}\n'] * 3


def test_a_stranger_is_told_why_and_nothing_is_done(tmp_path: Path) -> None:
    path, handler = tmp_path / "f.sock", Handler()

    async def work() -> None:
        await client.ask_async(path, {"do": "reload"})

    with pytest.raises(ApiError, match="may not talk"):
        serving(path, handler, Access(frozenset({4_000_000})), work)
    assert not handler.done


def test_a_line_without_end_harms_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"

    async def work() -> Any:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"x" * (control.MAX_LINE_BYTES + 10))
        answered = await client.ask_async(path, {"do": "status"})
        writer.close()
        return answered

    assert serving(path, Handler(), access(None), work) == {"pid": 1}


def test_a_client_beyond_the_limit_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"

    async def work() -> tuple[dict[str, Any], Any]:
        held = [await asyncio.open_unix_connection(path) for _ in range(control.MAX_CLIENTS)]
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"do": "status"}\n')
        refused = json.loads(await reader.readline())
        held[0][1].write(b'{"do": "status"}\n')
        first = json.loads(await held[0][0].readline())
        for _, each in [*held, (reader, writer)]:
            each.close()
        return refused, first

    refused, first = serving(path, Handler(), access(None), work)
    assert "error" in refused
    assert first == {"pid": 1}


def test_nobody_there_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(AgentUnreachableError, match="no such socket"):
        client.ask(tmp_path / "none", {"do": "status"})
    with pytest.raises(AgentUnreachableError, match="no such socket"):
        asyncio.run(client.ask_async(tmp_path / "none", {"do": "status"}))


def test_a_dead_socket_is_told_from_none(tmp_path: Path) -> None:
    path = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with pytest.raises(AgentUnreachableError, match="is gone"):
        client.ask(path, {"do": "status"})


def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(AgentUnreachableError, match="did not answer"):
            client.ask(path, {"do": "status"}, timeout_s=0.01)
        with pytest.raises(AgentUnreachableError, match="did not answer"):
            asyncio.run(client.ask_async(path, {"do": "status"}, timeout_s=0.01))


def test_a_socket_that_somebody_removes_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LOOK_S", 0.001)
    path = tmp_path / "failover.sock"

    async def work() -> Any:
        path.unlink()
        async with asyncio.timeout(60):
            while True:
                # The file is there a moment before anybody listens.
                with contextlib.suppress(SteelyardError):
                    return await asyncio.to_thread(client.ask, path, {"do": "status"})
                await asyncio.sleep(0.001)

    assert serving(path, Handler(), access(None), work) == {"pid": 1}
