"""The life of an agent: in which order its parts start and end, whatever happens meanwhile.

The signals are real ones; the parts only note what they are told.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from structlog.testing import capture_logs

from agent import daemon as module
from agent.config.load import parse
from agent.config.store import LoadedRunning
from agent.errors import ConfigError, DataplaneError, SteelyardError
from agent.journal import Journal
from agent.model import Config, Target
from agent.state.sources import Placed, SourceState

NAME = "st-daemon"


class Parts:
    """The parts of an agent. ``told``: what happened, in order; ``running``: it is ready."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.running = asyncio.Event()
        self.config = Config(NAME, "eth0", services=(), state_dir=folder)
        self.core = mock.MagicMock(config=self.config)
        self.core.tasks.return_value = {}
        self.control, self.locks = mock.MagicMock(fleet=None), mock.MagicMock()
        self.control.keep_saved = forever
        self.control.tasks.return_value = {}
        self.control.reload = mock.AsyncMock()
        self.server, self.page, self.notifier = (mock.MagicMock() for _ in range(3))
        self.page.keep = forever
        self.server.put_back = mock.AsyncMock()
        self.locks.put_back.return_value = ()
        for whose, name, words, waits in (
            (self.server, "listen", "listens", False),
            (self.core, "load", "loaded", True),
            (self.core, "start", "balances", True),
            (self.server, "start", "answers", True),
            (self.notifier, "stopping", "stopping", False),
            (self.core, "say_goodbye", "said goodbye", True),
            (self.server, "stop", "", True),
            (self.page, "stop", "", True),
            (self.core.dataplane, "undo_load", "undone what was not attached", False),
            (self.locks, "release", "locks released", False),
        ):
            setattr(whose, name, self._noting(words, waits=waits))
        self.notifier.ready = self._is_ready
        made = {
            "boot": SimpleNamespace(store=None, loaded=LoadedRunning(self.config, self.config, "")),
            "InstanceLocks": self.locks, "Core": self.core, "AgentControl": self.control,
            "ApiServer": self.server, "PageServer": self.page,
        }  # fmt: skip
        for name, part in made.items():
            monkeypatch.setattr(module, name, mock.MagicMock(return_value=part))
        monkeypatch.setattr(module.Notifier, "from_environment", lambda *_: self.notifier)
        monkeypatch.setattr(module, "settle", mock.AsyncMock())
        monkeypatch.setattr(module, "feed_watchdog", forever)
        monkeypatch.setattr(module, "require_root", lambda: None)
        monkeypatch.setattr(module, "check_host", lambda _: None)
        monkeypatch.setattr(module, "driver_name", lambda _: "veth")
        monkeypatch.setattr(module, "status_line", lambda _: "all is well")
        monkeypatch.setattr(module, "_LOOK_S", 0.01)

    def _noting(self, words: str, *, waits: bool) -> Callable[..., object]:
        def note(*_: object) -> None:
            if words:
                self.told.append(words)

        return mock.AsyncMock(side_effect=note) if waits else mock.MagicMock(side_effect=note)

    def _is_ready(self, _text: str) -> None:
        self.told.append("ready")
        self.running.set()


async def forever(*_: object) -> None:
    """What runs until it is cancelled."""
    await asyncio.Event().wait()


type Story = Callable[[Parts, "asyncio.Task[None]"], Awaitable[None]]
type Live = Callable[[Story], None]


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Live:
    """Runs an agent, and a story beside it, until the agent ends."""

    def run(story: Story) -> None:
        async def both() -> None:
            parts = Parts(tmp_path, monkeypatch)
            agent = asyncio.create_task(module.run(tmp_path / "agent.yaml"))
            async with asyncio.timeout(180):
                await story(parts, agent)

        asyncio.run(both())

    return run


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def ended(agent: asyncio.Task[None]) -> None:
    """Wait until an agent has ended by itself: a cancelled one could look as if it had."""
    done, _ = await asyncio.wait([agent], timeout=90)
    assert done
    agent.result()


async def soon(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (it has no event)
        await asyncio.sleep(0.001)


def test_it_starts_and_ends_in_order(live: Live) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        await parts.running.wait()
        send(signal.SIGTERM)
        await ended(agent)
        assert parts.told == [
            "listens", "loaded", "balances", "answers", "ready",
            "stopping", "said goodbye", "undone what was not attached", "locks released",
        ]  # fmt: skip

    live(story)


def test_garbage_is_collected_once_it_balances(live: Live) -> None:
    gc.disable()  # as `lb-agent run` does

    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        await parts.running.wait()
        assert gc.isenabled()
        send(signal.SIGTERM)
        await ended(agent)

    try:
        live(story)
    finally:
        gc.enable()


def test_a_socket_that_cannot_be_had_changes_nothing(live: Live) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        parts.server.listen.side_effect = ConfigError("taken", where="socket", remedy="another")
        with pytest.raises(ConfigError, match="taken"):
            await ended(agent)
        assert parts.told == ["locks released"]

    live(story)


def test_a_program_that_cannot_be_loaded_leaves_nothing_behind(live: Live) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        parts.core.load.side_effect = DataplaneError("no BPF", where="kernel", remedy="another")
        with pytest.raises(DataplaneError, match="no BPF"):
            await ended(agent)
        assert parts.told == ["listens", "undone what was not attached", "locks released"]
        parts.server.stop.assert_awaited()
        parts.page.stop.assert_awaited()

    live(story)


def test_sigterm_in_the_middle_of_a_start_ends_it_there(live: Live) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        parts.core.start = mock.AsyncMock(side_effect=forever)
        await soon(lambda: parts.core.start.await_count)
        send(signal.SIGTERM)
        await ended(agent)
        assert "ready" not in parts.told
        assert "answers" not in parts.told
        assert parts.told[-2:] == ["undone what was not attached", "locks released"]

    live(story)


def test_sighup_in_the_middle_of_a_start_is_a_reload_after_it(live: Live) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        going_on = asyncio.Event()

        async def start() -> None:
            await going_on.wait()

        parts.core.start = mock.AsyncMock(side_effect=start)
        await soon(lambda: parts.core.start.await_count)
        send(signal.SIGHUP)
        await asyncio.sleep(0.05)
        parts.control.reload.assert_not_awaited()
        going_on.set()
        await soon(lambda: parts.control.reload.await_count)
        assert "ready" in parts.told
        send(signal.SIGTERM)
        await ended(agent)
        parts.control.reload.assert_awaited_once()

    live(story)


@pytest.mark.parametrize(
    ("error", "is_defect"),
    [
        (ConfigError("bad", where="agent.yaml", remedy="mend it"), False),
        (OSError("no such file"), False),
        (ZeroDivisionError("oh"), True),
    ],
)
def test_a_reload_that_fails_costs_nothing_but_itself(
    live: Live, error: Exception, is_defect: bool
) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        await parts.running.wait()
        parts.control.reload.side_effect = error
        send(signal.SIGHUP)
        await soon(lambda: parts.control.reload.await_count == 1)
        send(signal.SIGHUP)
        await soon(lambda: parts.control.reload.await_count == 2)
        assert parts.control.met_defect.call_count in ((1, 2) if is_defect else (0,))
        assert not agent.done()
        send(signal.SIGTERM)
        await ended(agent)

    live(story)


def test_a_task_that_breaks_ends_the_agent_in_order(live: Live) -> None:
    """systemd starts it again; half an agent would look well and do nothing."""

    async def breaking() -> None:
        await broken.wait()
        raise ZeroDivisionError

    broken = asyncio.Event()

    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        parts.core.tasks.return_value = {"reconcile": breaking()}
        await parts.running.wait()
        broken.set()
        with pytest.raises(ExceptionGroup) as caught:
            await ended(agent)
        assert caught.group_contains(ZeroDivisionError)
        assert parts.told[-2:] == ["undone what was not attached", "locks released"]

    live(story)


def test_files_that_somebody_removes_are_put_back_and_what_prevents_it_is_said_once(
    live: Live,
) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        with capture_logs() as said:
            await parts.running.wait()
            parts.server.put_back.side_effect = SteelyardError("full", where="/run", remedy="space")
            await soon(lambda: parts.server.put_back.await_count > 5)
            assert [line["log_level"] for line in said if "put back" in line["event"]] == ["error"]
            parts.server.put_back.side_effect = None
            parts.locks.put_back.side_effect = [("/run/steelyard/st-daemon.lock",)] + [()] * 1000
            await soon(lambda: any("lock" in line.get("path", "") for line in said))
            parts.locks.put_back.side_effect = None
            send(signal.SIGTERM)
            await ended(agent)
        locks = [line["path"] for line in said if line["event"].startswith("a lock was removed")]
        assert locks == ["/run/steelyard/st-daemon.lock"]

    live(story)


@pytest.mark.parametrize("in_order", [True, False])
def test_an_agent_that_was_killed_is_told_of_by_the_next_one(live: Live, in_order: bool) -> None:
    async def story(parts: Parts, agent: asyncio.Task[None]) -> None:
        before = Journal(parts.config.state_dir, NAME)
        before.take("info", "ready", {})
        if in_order:
            before.take("info", "stopping", {})
        before.write()
        with capture_logs() as said:
            await parts.running.wait()
            send(signal.SIGTERM)
            await ended(agent)
        assert any("was killed" in line["event"] for line in said) is not in_order

    live(story)


def test_targets_that_no_longer_fit_do_not_keep_the_agent_from_starting() -> None:
    text = """\
interface: eth0
tables: {backends: %d}
services: [{name: chat, vip: 10.0.0.10, port: 80, discover: {file: /x}}]
"""
    targets = tuple(Placed(Target(ip_address(f"10.0.1.{n}"))) for n in range(1, 10))
    kept = {"chat": SourceState("file /x", targets)}
    config, sources = module._with_targets(parse(text % 100, "x"), kept)
    assert len(config.services[0].backends) == 9
    assert sources == kept
    with capture_logs() as logs:
        config, sources = module._with_targets(parse(text % 5, "x"), kept)
    assert config.services[0].backends == ()
    assert sources == {}, "or nothing could be changed"
    assert "9 backends do not fit" in logs[0]["problem"]


LARGE_BETWEEN_SMALL = """
import sys
from pathlib import Path
from agent.daemon import give_memory_back

def resident_mb():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024

if sys.argv[1] == "with":
    give_memory_back()
bytearray(30 << 20)  # glibc's limit rises to its size when it is freed
before, large, small = resident_mb(), [], []
for _ in range(50):
    large.append(bytearray(b"x") * (2 << 20))
    small.append(bytes(5000))
large.clear()
print(resident_mb() - before)
"""


def kept_mb(how: str) -> float:
    command = [sys.executable, "-c", LARGE_BETWEEN_SMALL, how]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ran.stdout)


def test_large_blocks_go_back_to_the_kernel():
    """With 10,000 backends, an agent had 750 MB after scrapes and edits instead of 550."""
    assert kept_mb("with") < 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps them")
def test_by_itself_the_c_library_keeps_them():
    assert kept_mb("without") > 80
