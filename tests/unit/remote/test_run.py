"""Where `lb-agent api` listens is what the agent says, and who gets in is what the files say."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from agent import guarded
from agent.errors import AgentUnreachableError
from agent.remote import run as remotes
from tests.pki import Authority, Pair, client_context
from tests.unit.fleet.conftest import runs
from tests.unit.remote.conftest import FakeAgent, client, get, served

type Logged = list[tuple[str, dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@runs
async def test_it_waits_for_the_agent_and_for_settings(
    agent: FakeAgent, authority: Authority, alice: Pair, logged: Logged
) -> None:
    address = agent.api.pop("address")
    async with served(agent, started=False) as remote:
        assert remote.port is None
        await remote.look()
        assert [event for event, _ in logged] == ["the API is not served as it should be"]
        await agent.start()
        await remote.look()
        assert remote.port is None
        agent.api["address"] = address
        await remote.look()
        await get(remote, alice, authority)
        assert logged[-1][0] == "the API is served over TLS"


@pytest.mark.parametrize("status", [403, 404])
@runs
async def test_it_stops_when_the_agent_does_not_know_it_any_more(
    agent: FakeAgent, authority: Authority, alice: Pair, status: int
) -> None:
    async with served(agent) as remote:
        await get(remote, alice, authority)
        agent.status = status
        await remote.look()
        assert remote.port is None
        agent.status = 200
        await remote.look()
        await get(remote, alice, authority)


@runs
async def test_it_stops_when_it_may_not_open_the_socket_any_more(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiohttp

    async with served(agent) as remote:
        assert remote.port is not None

        def denied(*_: object, **__: object) -> Any:
            key: Any = None
            raise aiohttp.ClientConnectorError(key, PermissionError(13, "denied"))

        monkeypatch.setattr(remote._forwarder.session, "get", denied)
        await remote.look()
        assert remote.port is None


@runs
async def test_it_follows_to_another_port_and_stays_where_that_is_taken(
    agent: FakeAgent, authority: Authority, alice: Pair, logged: Logged
) -> None:
    async with served(agent) as remote:
        first = remote.port
        agent.api["port"] = free_port()
        await remote.look()
        assert remote.port == agent.api["port"] != first
        await get(remote, alice, authority)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            before, agent.api["port"] = remote.port, taken.getsockname()[1]
            logged.clear()
            await remote.look()
            await remote.look()
            assert remote.port == before
            await get(remote, alice, authority)
        assert len(logged) == 1
        assert "cannot listen for the API" in logged[0][1]["problem"]


@runs
async def test_it_leaves_the_other_addresses_when_it_shall_have_one(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    """With the same port: the kernel gives it to nobody else while it is everywhere."""
    agent.api |= {"address": "0.0.0.0", "port": free_port()}
    async with served(agent) as remote:
        await get(remote, alice, authority)
        agent.api["address"] = "127.0.0.1"
        await remote.look()
        await get(remote, alice, authority)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", agent.api["port"]), 60)


def tells(error: AgentUnreachableError, words: str) -> bool:
    """Whether an error says why; the kernel may have dropped the alert with the connection."""
    return words in error.message or "broke off" in error.message


@runs
async def test_strangers_are_refused_and_the_log_says_why_once(
    agent: FakeAgent, authority: Authority, alice: Pair, tmp_path: Path, logged: Logged
) -> None:
    other = Authority(tmp_path / "other")
    stranger = other.issue("alice", "/CN=alice")
    expired = authority.issue("expired", "/CN=alice", expired=True)
    of_server = authority.issue("wrong", "/CN=alice", "extendedKeyUsage=serverAuth")
    async with served(agent) as remote:
        logged.clear()
        for pair, words in (
            (stranger, "unknown ca"),
            (expired, "certificate expired"),
            (of_server, "certificate"),
        ):
            with pytest.raises(AgentUnreachableError) as caught:
                await get(remote, pair, authority)
            assert tells(caught.value, words), caught.value.message
        with pytest.raises(AgentUnreachableError, match="server's certificate is refused"):
            await asyncio.to_thread(client(remote, alice, other).get, "/v1/status")
        await get(remote, alice, authority)
        (event, details) = logged[0]
        assert (event, details["source"]) == ("a client was refused", "127.0.0.1")
        assert "its certificate is refused" in details["why"]
        assert len(logged) == 1, "more is counted, and not logged"
    assert len(agent.asked) == 1


@runs
async def test_tls_1_2_and_clients_without_a_certificate_are_refused(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    def says(context: ssl.SSLContext) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), 60) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
        ):
            sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(1000)

    async with served(agent) as remote:
        port = remote.port
        without, old = client_context(authority), client_context(authority, alice)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        for context in (without, old):
            try:
                answer = await asyncio.to_thread(says, context)
            except OSError:
                continue
            assert answer == b""
    assert agent.asked == []


def settings(own: Authority) -> dict[str, str]:
    """Those of a server that an authority of its own has signed, with the authority's list."""
    of_server = own.issue("server", "/CN=lb1", "subjectAltName=IP:127.0.0.1")
    return {
        "certificate": str(of_server.certificate),
        "key_file": str(of_server.key),
        "client_ca": str(own.certificate),
        "crl_file": str(own.revoked()),
    }


@runs
async def test_a_revoked_certificate_is_refused_from_the_next_look_on(
    agent: FakeAgent, tmp_path: Path, server: Pair
) -> None:
    """Also one whose connection is open: that is ended."""
    own = Authority(tmp_path / "own")
    alice, bob = own.issue("alice", "/CN=alice"), own.issue("bob", "/CN=bob")
    agent.api |= settings(own)
    async with served(agent) as remote:
        await get(remote, alice, own)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", remote.port, ssl=client_context(own, alice)
        )
        own.revoked(alice)
        await remote.look()
        with pytest.raises(AgentUnreachableError) as caught:
            await get(remote, alice, own)
        assert tells(caught.value, "revoked"), caught.value.message
        assert await reader.read() == b"", "its connection is ended"
        writer.close()
        await get(remote, bob, own)


@runs
async def test_clients_that_are_coming_in_are_served_while_a_list_is_renewed(
    agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were cut off: those in the handshake, and those that had not sent their request yet."""
    answered = asyncio.Event()

    async def close_later(entrance: Any) -> None:
        await answered.wait()  # on a busy host the two seconds that they have may not do
        await entrance.close()

    monkeypatch.setattr(guarded, "_close_later", close_later)
    own = Authority(tmp_path / "own")
    alice = own.issue("alice", "/CN=alice")
    agent.api |= settings(own)
    request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
    trusting = client_context(own, alice)
    async with served(agent) as remote:
        reader, writer = await asyncio.open_connection("127.0.0.1", remote.port, ssl=trusting)
        with socket.create_connection(("127.0.0.1", remote.port)) as raw:  # has sent no hello yet
            own.revoked()
            await remote.look()
            late = await asyncio.open_connection(
                sock=raw, ssl=trusting, server_hostname="127.0.0.1"
            )
            for read, write in ((reader, writer), late):
                write.write(request)
                assert (await read.readline()).startswith(b"HTTP/1.1 200 ")
            answered.set()
            for read, write in ((reader, writer), late):
                await read.read()  # they end
                write.close()
        await get(remote, alice, own)


@runs
async def test_another_certificate_is_taken_and_a_broken_one_leaves_the_former(
    agent: FakeAgent, authority: Authority, alice: Pair, tmp_path: Path, logged: Logged
) -> None:
    mine = tmp_path / "server.pem"
    shutil.copy(agent.api["certificate"], mine)
    agent.api["certificate"] = str(mine)
    async with served(agent) as remote:
        await get(remote, alice, authority)
        logged.clear()
        mine.write_text("junk")
        await remote.look()
        await remote.look()
        assert [event for event, _ in logged] == ["the API is not served as it should be"]
        await get(remote, alice, authority)
        new = authority.issue("new", "/CN=lb2", "subjectAltName=IP:127.0.0.1")
        mine.write_bytes(new.certificate.read_bytes())
        agent.api["key_file"] = str(new.key)
        await remote.look()
        await get(remote, alice, authority)


@runs
async def test_handshakes_that_never_end_keep_nobody_out_for_long(
    agent: FakeAgent, authority: Authority, alice: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "HEAD_S", 0.3)
    monkeypatch.setattr(remotes, "LIMITS", guarded.Limits(8, 8, None, awaits_head=False))
    async with served(agent) as remote:
        silent = [await asyncio.open_connection("127.0.0.1", remote.port) for _ in range(20)]
        while True:
            try:
                await get(remote, alice, authority)
            except AgentUnreachableError:
                await asyncio.sleep(0.05)
            else:
                break
        for _, writer in silent:
            writer.close()


@runs
async def test_it_serves_until_it_is_told_to_stop(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, authority: Authority, alice: Pair
) -> None:
    monkeypatch.setattr(remotes, "LOOK_S", 0.02)
    agent.api["port"] = free_port()
    await agent.start()
    running = asyncio.create_task(remotes.run(agent.path))
    try:
        before = len(agent.asked)
        while True:
            await asyncio.sleep(0.02)
            try:
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", agent.api["port"], ssl=client_context(authority, alice)
                )
            except OSError:
                continue
            writer.close()
            break
        assert len(agent.asked) == before
        os.kill(os.getpid(), 15)
        await running
    finally:
        running.cancel()
        await agent.stop()
