"""When sources are asked, what outlives the agent, and what people see of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.config.load import parse
from agent.discovery import kubernetes, sources
from agent.discovery import run as discovery
from agent.discovery.answer import Answer, Refused
from agent.discovery.run import Discovery, Flows, Found
from agent.errors import ConfigError, ConflictError, DiscoveryError, NotFoundError
from agent.model import Discover, Service, Target

TEXT = """\
interface: eth0
services:
  - {{name: chat, vip: 10.0.0.10, port: 80, discover: {{{chat}}}}}
  - {{name: copy, vip: 10.0.0.11, port: 80, discover: {{{copy}}}}}
"""
DNS = "dns: gpu.example.org, interval: 1h"


class Fake:
    """A source, the agent that takes its targets, and the flows that those have."""

    def __init__(self, path: Path, chat: str = DNS, copy: str = "") -> None:
        self.services: tuple[Service, ...] = ()
        self.serve(chat, copy)
        self.answers: dict[str, Answer | DiscoveryError] = {}
        self.asked: list[tuple[str, int]] = []
        self.taken: list[Found] = []
        self.refusal: ConfigError | None = None
        self.flows: dict[Target, int] = {}
        self.surveys = 0
        self.path = path
        self.discovery = self.anew()

    def anew(self) -> Discovery:
        states = discovery.read(self.path)
        return Discovery(self.path, states, lambda: self.services, self.apply, self.flows_at)

    def serve(self, chat: str, copy: str = "") -> None:
        self.services = parse(TEXT.format(chat=chat, copy=copy), "agent.yaml").services

    async def ask(self, discover: Discover, family: int) -> Answer:
        self.asked.append((discover.source, family))
        answer = self.answers.get(discover.source, DiscoveryError("no answer within 10s"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch(self, discover: Discover, family: int) -> AsyncIterator[Answer]:
        """A source that says what is new by itself, and breaks off at an error."""
        last: Answer | None = None
        while True:
            answer = await self.ask(discover, family)
            if answer is not last:
                yield answer
            last = answer
            await asyncio.sleep(0.01)

    async def apply(self, found: Found) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append(found)

    async def flows_at(self) -> Flows:
        self.surveys += 1
        return lambda _service, target: self.flows.get(target, 0)

    def names(self, service: str = "chat") -> list[str]:
        """Where the targets are that the agent has taken last."""
        last = self.taken[-1].get(service, ()) if self.taken else ()
        return [str(each.target.address) for each in last if each.left is None]


def answer(*addresses: str, **more: object) -> Answer:
    return Answer(tuple(Target(ip_address(address)) for address in addresses), **more)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path / "default.discovery.json")
    monkeypatch.setattr(sources, "ask", fake.ask)
    monkeypatch.setattr(kubernetes, "answers", fake.watch)
    monkeypatch.setattr(discovery, "TICK_S", 0.01)
    monkeypatch.setattr(discovery, "RETRY_S", 0.01)
    monkeypatch.setattr(discovery, "SWEEP_S", 0.01)
    return fake


def during(fake: Fake, work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` while the sources are asked."""

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(fake.discovery.run())
            try:
                async with asyncio.timeout(30):
                    await work()
            finally:
                running.cancel()

    asyncio.run(both())


def until(holds: Callable[[], object]) -> Coroutine[None, None, None]:
    async def wait() -> None:
        while not holds():  # noqa: ASYNC110 (what is waited for is any state)
            await asyncio.sleep(0.005)

    return wait()


def test_targets_are_taken_and_kept_over_a_restart_without_the_source(fake: Fake):
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1", "10.0.0.2")

    async def work() -> None:
        await until(lambda: fake.names() == ["10.0.0.1", "10.0.0.2"])
        await until(fake.path.exists)

    during(fake, work)
    fake.answers.clear()
    again = fake.anew()
    assert [str(p.target.address) for p in again.states["chat"].placed] == ["10.0.0.1", "10.0.0.2"]
    fake.discovery = again
    taken = len(fake.taken)

    async def fails() -> None:
        await until(lambda: fake.discovery.problems())
        await until(lambda: len(fake.asked) > 3)

    during(fake, fails)
    assert len(fake.taken) == taken, "nothing has changed"
    (problem,) = fake.discovery.problems()
    assert problem == (
        "service chat: dns gpu.example.org: no answer within 10s; its targets stay as they are"
    )


def test_services_with_the_same_question_ask_once(fake: Fake):
    fake.serve(f"{DNS}, min: 1", f"{DNS}, min: 2")
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")

    async def work() -> None:
        await until(lambda: fake.names("chat") and fake.discovery.problems())

    during(fake, work)
    assert fake.asked == [("dns gpu.example.org", 4)]
    assert fake.names("copy") == []
    assert "min is 2" in fake.discovery.problems()[0]


def test_new_limits_judge_the_answer_that_is_known(fake: Fake):
    fake.serve(f"{DNS}, min: 2")
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")

    async def work() -> None:
        await until(lambda: fake.discovery.problems())
        fake.serve(f"{DNS}, min: 1")
        await until(lambda: fake.names() == ["10.0.0.1"])

    during(fake, work)
    assert len(fake.asked) == 1


def test_a_held_answer_is_used_when_somebody_accepts_it(fake: Fake):
    source = "dns gpu.example.org"
    fake.serve("dns: gpu.example.org, interval: 1s")
    fake.answers[source] = answer(*(f"10.0.0.{n}" for n in range(1, 6)))

    async def work() -> None:
        await until(lambda: len(fake.names()) == 5)
        with pytest.raises(ConflictError, match="no answer that waits"):
            await fake.discovery.accept("chat")
        fake.answers[source] = answer("10.0.0.1", refused=(Refused("a:b", "it is no address"),))
        await until(lambda: fake.discovery.problems())
        (view,) = fake.discovery.views()
        assert view.state.held is not None
        assert view.refused == (Refused("a:b", "it is no address"),)
        await fake.discovery.accept("chat")
        assert fake.names() == ["10.0.0.1"]
        with pytest.raises(NotFoundError, match="no service copy with a source"):
            await fake.discovery.accept("copy")

    during(fake, work)


def test_a_target_stays_until_its_flows_have_ended(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent.state.sources.SETTLE_S", 0.0)
    source = "dns gpu.example.org"
    fake.serve("dns: gpu.example.org, interval: 1s")
    fake.answers[source] = answer("10.0.0.1", "10.0.0.2")
    fake.flows = {Target(ip_address("10.0.0.2")): 1}

    async def work() -> None:
        await until(lambda: len(fake.names()) == 2)
        assert fake.surveys == 0, "nothing drains"
        fake.answers[source] = answer("10.0.0.1")
        await until(lambda: fake.names() == ["10.0.0.1"])
        assert len(fake.taken[-1]["chat"]) == 2, "the other one drains"
        fake.flows.clear()
        await until(lambda: len(fake.taken[-1]["chat"]) == 1)

    during(fake, work)


def test_a_file_is_read_again_when_it_changes(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()
    monkeypatch.setattr(discovery, "TICK_S", 0.01)
    path = tmp_path / "gpu.json"
    fake.serve(f"file: {path}")

    async def work() -> None:
        await until(lambda: fake.discovery.problems())
        assert "No such file" in fake.discovery.problems()[0]
        path.write_text('[{"targets": ["10.0.0.1"]}]')
        await until(lambda: fake.names() == ["10.0.0.1"])
        other = tmp_path / "new"
        other.write_text('[{"targets": ["10.0.0.1", "10.0.0.2"]}]')
        other.replace(path)
        await until(lambda: len(fake.names()) == 2)

    during(fake, work)


def test_a_source_that_is_watched_is_not_asked_but_followed(fake: Fake):
    source = "kubernetes default/vllm"
    fake.serve("kubernetes: default/vllm, interval: 1h")
    fake.answers[source] = answer("10.0.0.1")

    async def work() -> None:
        await until(lambda: fake.names() == ["10.0.0.1"])
        fake.answers[source] = answer("10.0.0.1", "10.0.0.2")
        await until(lambda: len(fake.names()) == 2)
        fake.answers[source] = DiscoveryError("the API server does not answer")
        await until(lambda: fake.discovery.problems())
        assert len(fake.names()) == 2
        fake.answers[source] = answer("10.0.0.1", "10.0.0.2", "10.0.0.3")
        await until(lambda: len(fake.names()) == 3)
        assert not fake.discovery.problems()

    during(fake, work)


def test_targets_that_cannot_be_used_are_said_once_and_tried_again(fake: Fake):
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")
    fake.refusal = ConfigError("5 backends do not fit", where="service chat")

    async def work() -> None:
        await until(lambda: "service chat: 5 backends do not fit" in fake.discovery.problems())
        with pytest.raises(ConflictError):
            await fake.discovery.accept("chat")
        fake.refusal = None
        await until(lambda: fake.names() == ["10.0.0.1"])
        await until(lambda: not fake.discovery.problems())

    with capture_logs() as logs:
        during(fake, work)
    assert [log["event"] for log in logs] == ["discovered backends cannot be used"]


def test_problems_of_a_source_are_logged_when_they_begin_and_end(fake: Fake):
    async def work() -> None:
        await until(lambda: len(fake.asked) > 3)
        fake.answers["dns gpu.example.org"] = answer("10.0.0.1")
        await until(lambda: fake.names())

    with capture_logs() as logs:
        during(fake, work)
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("warning", "the answer of a source is not used; its targets stay"),
        ("info", "a source is in order again"),
    ]


@pytest.mark.parametrize(
    "source", ["dns: gpu.example.org, interval: 1h", "kubernetes: default/vllm"]
)
def test_a_defect_of_a_source_or_of_the_agent_ends_nothing(fake: Fake, source: str):
    name = "dns gpu.example.org" if source.startswith("dns") else "kubernetes default/vllm"
    fake.serve(source)
    fake.answers[name] = ZeroDivisionError("oops")  # type: ignore[assignment]

    async def work() -> None:
        await until(lambda: "a defect of the agent" in str(fake.discovery.problems()))
        fake.refusal = ZeroDivisionError("again")  # type: ignore[assignment]
        fake.answers[name] = answer("10.0.0.1")
        await until(lambda: not fake.discovery.problems())
        fake.refusal = None
        await until(lambda: fake.names() == ["10.0.0.1"])

    with capture_logs() as logs:
        during(fake, work)
    assert {"a source broke", "discovery broke; backends stay as they are"} <= {
        log["event"] for log in logs
    }


def test_what_a_service_without_a_source_had_is_forgotten(fake: Fake):
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")

    async def work() -> None:
        await until(lambda: fake.names() == ["10.0.0.1"])
        fake.serve("")
        await until(lambda: fake.taken[-1] == {})
        await until(lambda: json.loads(fake.path.read_text()) == {})

    during(fake, work)
    assert not fake.discovery.views()


def test_a_service_with_another_name_keeps_what_its_source_said(fake: Fake):
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")

    async def work() -> None:
        await until(lambda: fake.names() == ["10.0.0.1"])
        fake.answers.clear()
        (chat, copy) = fake.services
        fake.services = (dataclasses.replace(chat, name="talk"), copy)
        await until(lambda: fake.names("talk") == ["10.0.0.1"])
        await until(lambda: "chat" not in fake.taken[-1])

    during(fake, work)
    assert not any(found.keys() == set() for found in fake.taken), "it never had none"


@pytest.mark.parametrize("text", ["", "[]", '{"chat": {}}', '{"chat": 1}', "\0"])
def test_a_damaged_file_is_logged_and_costs_nothing_else(tmp_path: Path, text: str):
    path = tmp_path / "default.discovery.json"
    path.write_text(text)
    with capture_logs() as logs:
        assert discovery.read(path) == {}
    assert str(path) in logs[0]["problem"]


def test_a_disk_that_is_full_is_logged_once(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    fake.answers["dns gpu.example.org"] = answer("10.0.0.1")

    def full(path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(discovery, "write_atomically", full)

    async def work() -> None:
        await until(lambda: fake.names() == ["10.0.0.1"])
        await asyncio.sleep(0.1)

    with capture_logs() as logs:
        during(fake, work)
    assert [log["event"] for log in logs] == ["what sources said cannot be saved"]
