"""The process as a whole: what is left when it cannot start."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent import main
from agent.errors import SteelyardError
from agent.failover.process import realtime
from agent.failover.process import run as module
from agent.failover.process.realtime import Standing


@pytest.fixture(autouse=True)
def unchanged_signals() -> Iterator[None]:
    hangup, mask = signal.getsignal(signal.SIGHUP), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.signal(signal.SIGHUP, hangup)
    if signal.SIGTERM in signal.sigpending():
        signal.sigwait({signal.SIGTERM})
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Lock:
    def release(self) -> None:
        pass


@pytest.mark.parametrize("netlink", ["answers", "does not"])
def test_whatever_keeps_it_from_starting_no_vip_stays(
    monkeypatch: pytest.MonkeyPatch, netlink: str
) -> None:
    removed: list[str] = []

    async def fails(*_: object, **__: object) -> Any:
        raise MemoryError("no child")

    def remove() -> tuple[()]:
        removed.append("all")
        if netlink == "does not":
            raise TimeoutError
        return ()

    monkeypatch.setattr(module, "FailoverLock", Lock)
    monkeypatch.setattr(module, "read_orders", fails)
    monkeypatch.setattr(module, "remove_stale", remove)
    with pytest.raises(MemoryError):
        asyncio.run(module.run(Path("x"), Standing(False, False)))
    assert removed == ["all"]


def test_who_is_stopped_while_it_starts_ends_in_good_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The VIPs that a killed process has left would stay else."""
    blocked: list[bool] = []

    def claim() -> Standing:
        blocked.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise SteelyardError("enough")

    async def handled() -> bool:
        signals = module._signals()
        async with asyncio.timeout(120):
            return await signals.stop.wait()

    monkeypatch.setattr(realtime, "claim", claim)
    path = tmp_path / "agent.yaml"
    path.touch()
    CliRunner().invoke(main.cli, ["failover", "--config", str(path)])
    assert blocked == [True]
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other threads do not block it
    assert asyncio.run(handled())
