"""What has come from a peer: in which order it is installed, and how much may wait."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agent.flowsync.flows import Installed
from agent.flowsync.framing import (
    IDENTITIES_BYTES,
    RECORDS_BYTES,
    Fault,
    Frame,
    FrameError,
    Kind,
)
from agent.flowsync.incoming import Incoming
from agent.flowsync.messages import Ack
from agent.flowsync.tally import Tally
from agent.flowsync.window import CREDIT_BYTES

DONE = Installed(2, 0, 1, {"no-room": 1}, lambda: None)
MOST = CREDIT_BYTES + RECORDS_BYTES + IDENTITIES_BYTES


class Table:
    """A flow table that installs when it is let."""

    def __init__(self) -> None:
        self.did: list[tuple[str, bytes]] = []
        self.may = threading.Event()
        self.may.set()

    def meet(self, identities: bytes) -> None:
        self.did.append(("meet", identities))

    def begin_full(self) -> None:
        self.did.append(("begin", b""))

    def end_full(self) -> Installed:
        self.did.append(("end", b""))
        return DONE

    def install(self, records: bytes) -> Installed:
        assert self.may.wait(60)
        if records == b"nonsense":
            raise ValueError("records of an unknown length")
        self.did.append(("install", records))
        return DONE


class Receiving:
    """The receiving half at work; ``acks`` are what the peer is told."""

    def __init__(self) -> None:
        self.table, self.tally = Table(), Tally()
        self.acks: list[Ack] = []
        flows: Any = self.table
        self.incoming = Incoming(flows, self.tally, self.acks.append)
        self.count = 0

    def gets(self, kind: Kind, payload: bytes = b"") -> None:
        self.count += 1
        self.incoming.put(Frame(kind, self.count, payload))

    async def until_acknowledged(self, sequence: int) -> None:
        async with asyncio.timeout(60):
            while not self.acks or self.acks[-1].sequence < sequence:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


def playing(story: Any) -> Receiving:
    async def run() -> Receiving:
        here = Receiving()
        working = asyncio.create_task(here.incoming.run())
        try:
            await story(here, working)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        return here

    return asyncio.run(run())


def test_all_is_installed_in_its_order_and_acknowledged() -> None:
    async def story(here: Receiving, _: object) -> None:
        here.gets(Kind.IDENTITIES, b"names")
        here.gets(Kind.FULL_BEGIN)
        here.gets(Kind.RECORDS, b"flows")
        here.gets(Kind.FULL_END)
        await here.until_acknowledged(4)

    here = playing(story)
    assert here.table.did == [
        ("meet", b"names"), ("begin", b""), ("install", b"flows"), ("end", b""),
    ]  # fmt: skip
    assert [ack.sequence for ack in here.acks] == [1, 2, 3, 4]
    assert here.acks[2].dropped == {"no-room": 1}
    assert (here.tally.flows_installed, here.tally.full_received) == (2, 1)


def test_records_that_wait_together_are_installed_together() -> None:
    async def story(here: Receiving, _: object) -> None:
        here.table.may.clear()
        here.gets(Kind.RECORDS, b"first")
        await asyncio.sleep(0.05)
        for part in (b"a", b"b", b"c"):
            here.gets(Kind.RECORDS, part)
        here.gets(Kind.IDENTITIES, b"names")
        here.gets(Kind.RECORDS, b"d")
        here.table.may.set()
        await here.until_acknowledged(6)

    here = playing(story)
    assert here.table.did == [
        ("install", b"first"), ("install", b"abc"), ("meet", b"names"), ("install", b"d"),
    ]  # fmt: skip
    assert [ack.sequence for ack in here.acks] == [1, 4, 5, 6]


def test_a_peer_that_does_not_wait_for_its_turn_is_refused() -> None:
    async def story(here: Receiving, _: object) -> None:
        here.table.may.clear()
        large = bytes(RECORDS_BYTES)

        def goes_on() -> None:
            for _ in range(MOST // RECORDS_BYTES + 2):
                here.gets(Kind.RECORDS, large)

        with pytest.raises(FrameError, match="does not wait") as refused:
            goes_on()
        assert refused.value.fault is Fault.WINDOW
        here.table.may.set()

    playing(story)


def test_one_that_waits_may_send_without_end() -> None:
    async def story(here: Receiving, _: object) -> None:
        large = bytes(RECORDS_BYTES)
        for number in range(1, 3 * MOST // RECORDS_BYTES):
            here.gets(Kind.RECORDS, large)
            await here.until_acknowledged(number)

    playing(story)


def test_records_that_make_no_sense_end_the_stream() -> None:
    async def story(here: Receiving, working: asyncio.Task[None]) -> None:
        here.gets(Kind.RECORDS, b"nonsense")
        with pytest.raises(FrameError, match="make no sense") as ended:
            await asyncio.wait_for(working, 60)
        assert ended.value.fault is Fault.CONTENT

    playing(story)
