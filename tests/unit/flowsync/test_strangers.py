"""What strangers, other versions and a network that lies get from the flow sync."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.errors import ListenError
from agent.failover.syncstatus import LinkState
from agent.flowsync import handshake, records, sockets
from agent.flowsync.framing import HEADER, TAG_BYTES
from agent.flowsync.handshake import PREFIX
from agent.flowsync.link import Link
from tests.unit.flowsync.pairs import HIGH, LOW, Node, nodes, running, until

STRANGER = "127.0.0.3"
BEHIND = ip_address("127.0.0.4")  # where the second node is, if somebody is between them


async def say(node: Node, data: bytes, source: str = STRANGER) -> bytes:
    """Connect from an address, say it; all that is answered until the other side closes."""
    reader, writer = await asyncio.open_connection(
        str(node.settings.listen), node.settings.port, local_addr=(source, 0)
    )
    writer.write(data)
    writer.write_eof()
    answer = b""
    with contextlib.suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    return answer


def test_a_stranger_is_refused_before_it_says_anything() -> None:
    async def run() -> None:
        one, two = nodes()
        async with running(one, two):
            for _ in range(3):
                answer = await say(two, b"")
                assert answer == handshake.pack_refusal(handshake.Why.STRANGER)
            assert two.sync
            assert two.sync.strangers == {"stranger": 3}
            assert two.is_connected

    asyncio.run(run())


def test_a_stranger_is_said_once_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        _, two = nodes()
        async with running(two, connected=False):
            for _ in range(3):
                await say(two, b"")

    asyncio.run(run())
    assert capsys.readouterr().out.count("refused a connection") == 1


@pytest.mark.parametrize("is_connected", [True, False])
def test_hellos_of_ever_new_versions_are_said_once_in_the_log(
    capsys: pytest.CaptureFixture[str], is_connected: bool
) -> None:
    """From the peer's host, where anybody may run something."""

    async def run() -> None:
        one, two = nodes()
        async with running(*(one, two) if is_connected else (two,), connected=is_connected):
            capsys.readouterr()
            for number in range(50):
                body = json.dumps({"project": f"9.{number}" + "x" * 500}).encode()
                hello = PREFIX.pack(b"STEELYHI", 99, len(body)) + body
                await say(two, hello, str(LOW))
            assert two.sync
            (peer,) = two.sync.status()
            assert peer.refused["protocol"] == 50

    asyncio.run(run())
    lines = [line for line in capsys.readouterr().out.splitlines() if "speak protocols" in line]
    assert len(lines) == 1
    assert "x" * 40 not in lines[0]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 5000,
        b"\xff" * 3,
        PREFIX.pack(b"STEELYHI", 1, 900),
        PREFIX.pack(b"STEELYHI", 1, 2) + b"{}",
        PREFIX.pack(b"STEELYHI", 1, 34) + b'{"project": "0", "records": 1e999}',
        PREFIX.pack(b"STEELYOK", 0, 32) + b"x" * 32,
    ],
)
def test_garbage_from_the_peers_host_harms_nothing(garbage: bytes) -> None:
    async def run() -> None:
        one, two = nodes()
        async with running(one, two):
            one.table.flows = {1: 1}
            await say(two, garbage, str(LOW))
            await until("counted", lambda: two.peer.last_error != "")
            await until("told", lambda: two.table.heard == {1: 1})
            assert two.is_connected
            assert two.peer.connections == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "hello",
    [PREFIX.pack(b"STEELYHI", 1, 34) + b'{"project": "0", "records": 1e999}', b"\0" * 99],
    ids=["infinity", "zeros"],
)
def test_garbage_at_the_peers_port_ends_nothing(hello: bytes) -> None:
    async def run() -> None:
        one, two = nodes()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(hello)
            await reader.read()
            writer.close()

        server = await asyncio.start_server(answer, str(HIGH), two.settings.port)
        async with running(one, connected=False):
            await until("refused", lambda: one.peer.refused.get("garbage", 0) > 1)
            server.close()
            async with running(two):
                await until("they meet", lambda: one.is_connected)

    asyncio.run(run())


def test_a_defect_with_one_peer_does_not_end_the_balancing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(link: Link) -> None:
        monkeypatch.undo()
        link._writer.close()
        raise RuntimeError("a defect")

    monkeypatch.setattr(Link, "run", broken)

    async def run() -> None:
        one, two = nodes()
        one.table.flows, two.table.flows = {1: 1}, {2: 2}
        async with running(one, two, connected=False):
            await until("told", lambda: two.table.heard == {1: 1} and one.table.heard == {2: 2})

    asyncio.run(run())


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.flowsync.greet.GREETING_S", 0.05)

    async def run() -> None:
        _, two = nodes()
        async with running(two, connected=False):
            reader, writer = await asyncio.open_connection(
                str(HIGH), two.settings.port, local_addr=(str(LOW), 0)
            )
            assert await asyncio.wait_for(reader.read(), 120) == b""
            writer.close()

    asyncio.run(run())


def test_a_wrong_secret_is_said_on_both_nodes() -> None:
    async def run() -> None:
        one, two = nodes()
        two.key = b"the secret of somebody else"
        one.table.flows = {1: 1}
        async with running(one, two, connected=False):
            for node in (one, two):
                await until("refused", lambda node=node: node.peer.state is LinkState.REFUSED)
                assert "key_file" in node.peer.why
                assert node.peer.refused["key"] >= 1
            assert two.table.heard == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("module", "constant", "label"),
    [(handshake, "PROTOCOL", "protocol"), (records, "VERSION", "records")],
)
def test_other_versions_are_said_on_both_nodes(
    monkeypatch: pytest.MonkeyPatch, module: object, constant: str, label: str
) -> None:
    async def run() -> None:
        one, two = nodes()
        await one.start()
        monkeypatch.setattr(module, constant, 99)
        monkeypatch.setattr("agent.flowsync.sync.__version__", "9.9.9")
        async with running(two, connected=False):
            for node, theirs in ((one, "9.9.9"), (two, "")):
                await until("refused", lambda node=node: node.peer.state is LinkState.REFUSED)
                assert theirs in node.peer.why
                assert "upgrade the older" in node.peer.why
                assert node.peer.refused[label] >= 1
        await one.stop()

    asyncio.run(run())


def test_a_node_that_has_itself_as_peer_is_told() -> None:
    async def run() -> None:
        one, _ = nodes()
        one.settings = replace(one.settings, peers=(LOW,))
        async with running(one, connected=False):
            await until("refused", lambda: one.peer.state is LinkState.REFUSED)
            assert "itself" in one.peer.why

    asyncio.run(run())


def test_a_port_that_is_taken_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.flowsync.sync.LISTEN_RETRY_S", 0.02)

    async def run() -> None:
        one, two = nodes()
        taken = sockets.listen(HIGH, two.settings.port)
        await two.start()
        async with running(one, connected=False):
            assert two.sync
            await until("said", lambda: "in use" in two.sync.problem)  # type: ignore[union-attr]
            taken.close()
            await until("connected", lambda: one.is_connected and two.is_connected)
            assert two.sync.problem == ""
        await two.stop()

    asyncio.run(run())


def test_an_address_that_is_not_of_this_host_cannot_be_listened_at() -> None:
    with pytest.raises(ListenError) as caught:
        sockets.listen(ip_address("192.0.2.1"), 9118)
    assert "listen" in caught.value.remedy


type Pump = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


async def straight(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


async def handshake_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on a hello and a proof."""
    for _ in range(2):
        prefix = await reader.readexactly(PREFIX.size)
        writer.write(prefix + await reader.readexactly(PREFIX.unpack(prefix)[2]))


async def frame(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(HEADER.size)
    return header + await reader.readexactly(HEADER.unpack(header)[0] + TAG_BYTES)


@contextlib.asynccontextmanager
async def between(there: Pump) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes with somebody between them, who does ``there`` with what the first one says."""
    one, two = nodes()
    two.settings = replace(two.settings, listen=BEHIND)
    ends: list[asyncio.Task[None]] = []

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader2, writer2 = await asyncio.open_connection(
            str(BEHIND), two.settings.port, local_addr=(str(LOW), 0)
        )

        async def pump(work: Coroutine[None, None, None], sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError):
                await work
            sink.close()

        ends.append(asyncio.create_task(pump(there(reader, writer2), writer2)))
        ends.append(asyncio.create_task(pump(straight(reader2, writer), writer)))

    server = await asyncio.start_server(met, str(HIGH), one.settings.port)
    try:
        async with running(one, two, connected=False):
            yield one, two
    finally:
        server.close()
        for end in ends:
            end.cancel()


@pytest.mark.parametrize("what", ["flip", "replay", "skip", "cut"])
def test_a_stream_that_somebody_meddles_with_ends_and_installs_nothing(what: str) -> None:
    async def meddle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake_of(reader, writer)
        first, second = await frame(reader), await frame(reader)
        told = {
            "flip": first[:-1] + bytes([first[-1] ^ 1]),
            "replay": first + first,
            "skip": second,
            "cut": first[:-5],
        }[what]
        writer.write(told)
        if what == "cut":
            # To close it would reset the stream where something of the other end's is unread.
            writer.write_eof()
            while await reader.read(65_536):
                pass
            return
        await straight(reader, writer)

    label = {
        "flip": "authentication",
        "replay": "sequence",
        "skip": "sequence",
        "cut": "truncated",
    }[what]

    async def run() -> None:
        async with between(meddle) as (one, two):
            one.table.flows = {1: 1}
            await until("noticed", lambda: two.peer.refused.get(label, 0) >= 1)
            assert two.table.heard == {}

    asyncio.run(run())


def test_who_only_passes_on_what_is_said_learns_no_more_than_that() -> None:
    async def run() -> None:
        async with between(straight) as (one, two):
            one.table.flows = {1: 1}
            await until("told", lambda: two.table.heard == {1: 1})

    asyncio.run(run())


def test_a_peer_that_falls_silent_is_left_and_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet, and no end of the connection either: a host that is gone, a process that hangs."""
    monkeypatch.setattr("agent.flowsync.link.SILENCE_S", 0.2)
    monkeypatch.setattr("agent.flowsync.link.HEARTBEAT_S", 0.05)
    mute = [True]

    async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake_of(reader, writer)
        writer.write(await frame(reader))
        if mute.pop() if mute else False:
            await asyncio.sleep(60)
        await straight(reader, writer)

    async def run() -> None:
        async with between(falls_silent) as (one, two):
            await until("noticed", lambda: "said nothing" in two.peer.last_error)
            one.table.flows = {1: 1}
            await until("again", lambda: two.table.heard == {1: 1})

    asyncio.run(run())
