"""Changes of the host come one after the other, and none undoes a later one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from agent.model import Address, Config, Hook, Protocol, Service, ServiceKey
from agent.network import host as module
from agent.network.host import Host
from agent.state.claims import Claim, Owner

ONE, TWO = (ip_address(f"10.0.0.{n}") for n in (1, 2))


def serving(*vips) -> Config:
    keys = [ServiceKey(vip, 80, Protocol.TCP) for vip in vips]
    return Config("t", "eth0", services=tuple(Service(f"s{key.vip}", key) for key in keys))


class Interface:
    """Stands for VIPs, tags and guard; a change takes until it is let go on."""

    refused: frozenset = frozenset()

    def __init__(self) -> None:
        self.vips: frozenset = frozenset()
        self.at_work = 0
        self.go_on = asyncio.Event()

    async def sync(self, wanted: object = None) -> None:
        if not isinstance(wanted, frozenset):
            return
        self.at_work += 1
        assert self.at_work == 1, "one change of the host at a time"
        await self.go_on.wait()
        self.vips = wanted
        self.at_work -= 1


def test_a_sync_on_its_way_does_not_put_back_what_an_edit_has_removed() -> None:
    async def story() -> None:
        there = Interface()
        host = Host(serving(), lambda: None, lambda _: None)
        host._vips = host._tags = host._guard = there  # type: ignore[assignment]
        config = serving(ONE, TWO)

        def wanted() -> tuple[Config, Hook]:
            return config, Hook.TC

        on_its_way = asyncio.create_task(host.sync(wanted))
        behind = asyncio.create_task(host.sync(wanted))
        await asyncio.sleep(0)
        config = replace(config, services=serving(ONE).services)
        edit = asyncio.create_task(host.sync(wanted))
        await asyncio.sleep(0)
        there.go_on.set()
        await asyncio.gather(on_its_way, behind, edit)
        assert there.vips == {ONE}

    asyncio.run(story())


def test_the_guard_stands_though_vips_cannot_be_put_on_and_does_not_hold_them_up() -> None:
    order: list[str] = []

    class Part:
        refused: frozenset = frozenset()

        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error = name, error

        async def sync(self, *_: object) -> None:
            order.append(self.name)
            if self.error is not None:
                raise self.error

    host = Host(serving(), lambda: None, lambda _: None)
    host._vips = Part("vips", OSError("refused"))  # type: ignore[assignment]
    host._guard = Part("guard")  # type: ignore[assignment]
    with pytest.raises(OSError, match="refused"):
        asyncio.run(host.sync(lambda: (serving(ONE), Hook.TC)))
    assert order == ["vips", "guard"]


class Held(Interface):
    """VIPs of which others have some."""

    async def sync(self, wanted: object = None) -> None:
        pass


def test_a_vip_that_another_host_has_is_told_and_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.001)

    async def story() -> None:
        again = asyncio.Event()
        host = Host(serving(ONE), again.set, lambda _: Owner("10.0.0.9", is_balancer=True))
        there = Held()
        host._vips = host._tags = host._guard = there  # type: ignore[assignment]
        there.refused = frozenset({Claim(ONE, "02:00:00:00:00:09")})
        with capture_logs() as said:
            for _ in range(2):
                again.clear()
                await host.sync(lambda: (serving(ONE), Hook.TC))
                await asyncio.wait_for(again.wait(), 60)
            (told,) = host.problems()
            there.refused = frozenset()
            await host.sync(lambda: (serving(ONE), Hook.TC))
        assert told.startswith(
            "10.0.0.1 is not put on eth0: 02:00:00:00:00:09 (balancer 10.0.0.9) answers for it."
        )
        assert host.problems() == ()
        assert [each["event"] for each in said] == [
            "a VIP is not taken",
            "a VIP is free now, or wanted no more",
        ]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("owner", "kept"),
    [(None, {ONE}), (Owner("10.0.0.9", is_balancer=True), {ONE}), (Owner("gpu-1"), set())],
)
def test_a_backend_that_is_not_silent_keeps_no_vip_from_the_balancer(
    owner: Owner | None, kept: set, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def found(_ifname: str, vips: Collection[Address]) -> dict[Address, str]:
        return dict.fromkeys(vips, "02:00:00:00:00:09")

    monkeypatch.setattr(module, "holders", found)
    host = Host(serving(), lambda: None, lambda _: owner)
    assert asyncio.run(host._holders({ONE})).keys() == kept
