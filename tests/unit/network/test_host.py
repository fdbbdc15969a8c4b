"""Changes of the host come one after the other, and none undoes a later one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import Config, Hook, Protocol, Service, ServiceKey
from agent.network.host import Host

ONE, TWO = (ip_address(f"10.0.0.{n}") for n in (1, 2))


def serving(*vips) -> Config:
    keys = [ServiceKey(vip, 80, Protocol.TCP) for vip in vips]
    return Config("t", "eth0", services=tuple(Service(f"s{key.vip}", key) for key in keys))


class Interface:
    """Stands for VIPs, tags and guard; a change takes until it is let go on."""

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
        host = Host(serving(), lambda: None)
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
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name, self.error = name, error

        async def sync(self, *_: object) -> None:
            order.append(self.name)
            if self.error is not None:
                raise self.error

    host = Host(serving(), lambda: None)
    host._vips = Part("vips", OSError("refused"))  # type: ignore[assignment]
    host._guard = Part("guard")  # type: ignore[assignment]
    with pytest.raises(OSError, match="refused"):
        asyncio.run(host.sync(lambda: (serving(ONE), Hook.TC)))
    assert order == ["vips", "guard"]
