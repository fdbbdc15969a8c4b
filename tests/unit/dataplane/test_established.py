"""New flows: taken from the ring in batches, from that of the program that runs now."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import numpy as np
import pytest

from agent.dataplane import established
from agent.dataplane.established import BATCH, Established


class FakeRing:
    """A ring in memory; its descriptor is readable while it holds something."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self.samples: list[bytes] = []
        self.closed = False
        self.failure: OSError | None = None

    def put(self, *slots: int) -> None:
        if not self.samples:
            os.write(self._write, b"x")
        self.samples += [slot.to_bytes(4, "little") for slot in slots]

    def take(self, limit: int) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        taken, self.samples = self.samples[:limit], self.samples[limit:]
        if taken and not self.samples:
            os.read(self.fd, 1)
        return taken

    def close(self) -> None:
        self.closed = True
        os.close(self.fd)
        os.close(self._write)


class World:
    """The rings of programs, by the descriptors that stand for them."""

    def __init__(self) -> None:
        self.running: tuple[int, int] | None = (1, 11)
        self.rings: dict[int, FakeRing] = {}
        self.told: list[list[int]] = []
        self.failure: Exception | None = None
        self.flows = Established(lambda: self.running, self._tell, self._open)

    def _tell(self, slots: np.ndarray) -> None:
        if self.failure is not None:
            raise self.failure
        self.told.append(slots.tolist())

    def _open(self, fd: int) -> FakeRing:
        self.rings[fd] = FakeRing()
        return self.rings[fd]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (there is nothing to wait for)
            await asyncio.sleep(0.001)


def test_slots_are_told_as_they_come_and_in_their_order() -> None:
    async def run() -> None:
        world = World()
        world.flows.refresh()
        ring = world.rings[11]
        ring.put(7, 5, 70_000)
        await until(lambda: world.told == [[7, 5, 70_000]])
        world.flows.refresh()
        ring.put(8)
        await until(lambda: world.told[1:] == [[8]])
        world.flows.close()
        assert ring.closed

    asyncio.run(run())


def test_a_flood_is_taken_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop has its turn between two."""
    monkeypatch.setattr(established, "PAUSE_S", 0.001)

    async def run() -> None:
        world = World()
        world.flows.refresh()
        world.rings[11].put(*range(2 * BATCH + 10))
        await until(lambda: sum(map(len, world.told)) == 2 * BATCH + 10)
        assert [len(each) for each in world.told] == [BATCH, BATCH, 10]
        world.flows.close()

    asyncio.run(run())


def test_another_program_has_another_ring() -> None:
    async def run() -> None:
        world = World()
        world.flows.refresh()
        world.running = (2, 22)
        world.flows.refresh()
        assert world.rings[11].closed
        world.rings[22].put(3)
        await until(lambda: world.told == [[3]])
        world.running = None
        world.flows.refresh()
        assert world.rings[22].closed

    asyncio.run(run())


@pytest.mark.parametrize("where", ["ring", "tell"])
def test_a_defect_ends_the_reading_until_it_is_begun_again(where: str) -> None:
    async def run() -> None:
        world = World()
        world.flows.refresh()
        broken = world.rings[11]
        if where == "ring":
            broken.failure = OSError(5, "no")
        else:
            world.failure = ValueError("a defect")
        broken.put(1)
        await until(lambda: broken.closed)
        world.failure = None
        world.flows.refresh()
        world.rings[11].put(2)
        await until(lambda: world.told == [[2]])
        world.flows.close()

    asyncio.run(run())


def test_a_ring_that_cannot_be_opened_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        world = World()
        opens, failures = world._open, [OSError(12, "no memory")]

        def once(fd: int) -> FakeRing:
            if failures:
                raise failures.pop()
            return opens(fd)

        monkeypatch.setattr(world.flows, "_open_ring", once)
        world.flows.refresh()
        assert not world.rings
        world.flows.refresh()
        world.rings[11].put(4)
        await until(lambda: world.told == [[4]])
        world.flows.close()

    asyncio.run(run())
