"""The file of alerts, with all that happens to log files, and what is blocked because of them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import alerts
from agent.alerts import LONGEST_LINE, READ_BYTES, Alerts, Follower
from agent.dataplane.abi import FlowState
from agent.errors import RequestError
from agent.model import Address, Forward, Network, Suricata, Tables
from agent.state.blocks import Block
from agent.state.desired import desired
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.state.test_alerts import REQUEST
from tests.unit.state.world import A, all_up, surroundings, web


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def eve(tmp_path: Path) -> Path:
    path = tmp_path / "eve.json"
    path.touch(mode=0o644)
    return path


def test_only_what_is_added_is_read(eve: Path) -> None:
    append(eve, b"old")
    follower = Follower(eve)
    assert follower.lines() == []
    append(eve, b"one", b"", b"two")
    assert follower.lines() == [b"one", b"two"]
    assert follower.lines() == []


def test_a_file_that_appears_later_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "eve.json"
    follower = Follower(path)
    assert follower.lines() == []
    assert follower.problem == f"{path}: No such file or directory"
    append(path, b"one")
    assert follower.lines() == [b"one"]
    assert follower.problem == ""


def test_a_line_that_is_not_whole_yet_waits(eve: Path) -> None:
    follower = Follower(eve)
    follower.lines()
    with eve.open("ab", buffering=0) as file:
        file.write(b"on")
        assert follower.lines() == []
        file.write(b"e\ntw")
        assert follower.lines() == [b"one"]
        file.write(b"o\n")
        assert follower.lines() == [b"two"]


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(eve: Path) -> None:
    follower = Follower(eve)
    follower.lines()
    append(eve, b"one")
    eve.rename(eve.with_suffix(".1"))
    assert follower.lines() == [b"one"]
    append(eve.with_suffix(".1"), b"two")  # until Suricata opens the new file
    assert follower.lines() == [b"two"]
    append(eve, b"three")
    assert [*follower.lines(), *follower.lines(), *follower.lines()] == [b"three"]


def test_a_truncated_file_is_read_from_its_start(eve: Path) -> None:
    follower = Follower(eve)
    follower.lines()
    append(eve, b"one one one")
    follower.lines()
    eve.write_bytes(b"two\n")
    assert follower.lines() == [b"two"]


def test_a_line_without_an_end_is_left_out_and_takes_no_memory(eve: Path) -> None:
    follower = Follower(eve)
    follower.lines()
    append(eve, b"x" * 3 * READ_BYTES, b"one")
    found = [line for _ in range(9) for line in follower.lines()]
    assert found == [b"one"]
    append(eve, b"y" * (LONGEST_LINE + 1), b"two")
    assert follower.lines() == [b"two"]


def test_one_look_reads_a_bounded_part(eve: Path) -> None:
    follower = Follower(eve)
    follower.lines()
    append(eve, *[b"%09d" % number for number in range(100_000)])
    looks = [follower.lines() for _ in range(9)]
    assert max(map(len, looks)) <= READ_BYTES / 10 + 1
    assert [int(line) for look in looks for line in look] == [*range(100_000)]


def test_with_far_too_much_the_newest_is_read(eve: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "BEHIND_BYTES", 1 << 20)
    follower = Follower(eve)
    follower.lines()
    append(eve, *[b"%09d" % number for number in range(200_000)])
    found = [int(line) for _ in range(9) for line in follower.lines()]
    assert found == [*range(found[0], 200_000)]
    assert follower.skipped_bytes == 2_000_000 - READ_BYTES


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=12), st.data()
)
def test_lines_do_not_depend_on_how_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("eve") / "eve.json"
    path.touch(mode=0o644)
    follower = Follower(path)
    follower.lines()
    text, found = b"".join(line + b"\n" for line in lines), list[bytes]()
    with path.open("ab", buffering=0) as file:
        while text:
            size = data.draw(st.integers(1, len(text)))
            file.write(text[:size])
            text = text[size:]
            found += follower.lines()
    follower.close()
    assert found == [line for line in lines if line]


def test_what_anybody_could_write_is_not_read(eve: Path) -> None:
    eve.chmod(0o646)
    follower = Follower(eve)
    follower.lines()
    assert follower.problem == f"{eve}: any user of this host can write to it: chmod o-w {eve}"
    eve.chmod(0o644)
    eve.parent.chmod(0o1777)
    follower.lines()
    assert follower.problem.endswith(f"chmod o-w {eve.parent}")
    eve.parent.chmod(0o755)
    follower.lines()
    assert follower.problem == ""


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "eve.json", 0o600)
    follower = Follower(tmp_path / "eve.json")
    assert follower.lines() == []
    assert "not a regular file" in follower.problem


CLIENT, OTHER = "10.9.0.2", "10.9.0.4"


class World:
    """A flow table, a file of alerts, and everybody whom they have blocked."""

    def __init__(self, eve: Path, suricata: Suricata) -> None:
        service = web(A, forward=Forward.NAT, trusted=("known",), vip="10.9.0.1")
        self.situation = all_up(service)
        self.configure(suricata)
        self.tables = FakeTables(Tables(flows=1024, services=8, backends=32, ring_slots=101))
        self.blocks: dict[Network, Block] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.refusal, self.sources, self.eve = "", 0, eve
        plane = SimpleNamespace(
            tables=self.tables, keys=KEYS, clock=CLOCK, now_jiffies=lambda: 1_000_000
        )
        self.alerts = Alerts(
            plane, lambda: self.blocks, self._lists_of, lambda: self.sources, self._block
        )
        self.look()

    def configure(self, suricata: Suricata) -> None:
        config = replace(self.situation.config, suricata=suricata)
        self.situation = replace(self.situation, config=config)

    def _lists_of(self, address: Address) -> tuple[str, ...]:
        return self.lists.get(str(address), ())

    async def _block(self, new: tuple[Block, ...]) -> None:
        if self.refusal:
            raise RequestError(self.refusal)
        self.blocks |= {each.prefix: each for each in new}

    def flow(self, client: str, state: FlowState = FlowState.ESTABLISHED) -> None:
        (service,) = self.situation.config.services
        record(
            self.tables, five(client, 32956, vip="10.9.0.1"),
            service=self.situation.ids.service_id(service),
            salt=self.situation.ids.salt(service),
            backend=self.situation.ids.backend_id(service, service.backends[0]),
            state=state, jiffies=1_000_000, start=999_000,
        )  # fmt: skip

    def alert(self, client: str = CLIENT) -> None:
        append(self.eve, REQUEST.replace(b"10.9.0.2", client.encode()))

    def look(self) -> list[dict]:
        """One look; the log lines."""
        config, ids = self.situation.config, self.situation.ids
        contents = desired(config, ids, surroundings(config))
        with capture_logs() as lines:
            assert self.alerts._is_on(self.situation)
            asyncio.run(self.alerts._look(self.situation, contents))
        return lines

    @property
    def outcomes(self) -> dict[str, int]:
        return {each.outcome.value: each.count for each in self.alerts.view().recent}


@pytest.fixture
def world(eve: Path) -> World:
    return World(eve, Suricata(eve, block_severity=3, block_for_s=90))


def test_the_client_of_a_recorded_connection_is_blocked(world: World) -> None:
    world.flow(CLIENT)
    world.alert()
    lines = world.look()
    (block,) = world.blocks.values()
    assert block.prefix == ip_network(CLIENT)
    assert block.until - block.since == 90
    assert [line["event"] for line in lines] == ["alert", "blocked a source"]
    assert (world.outcomes, world.alerts.view().blocked) == ({"blocked": 1}, 1)
    world.alert()  # Suricata sees what a blocked source sends
    assert world.look() == []
    assert (world.outcomes, world.alerts.view().blocked) == ({"blocked": 2}, 1)


@pytest.mark.parametrize("state", [None, FlowState.EMBRYONIC])
def test_nobody_is_blocked_whose_handshake_is_not_complete(
    world: World, state: FlowState | None
) -> None:
    if state is not None:
        world.flow(CLIENT, state)
    world.alert()
    world.look()
    assert (world.blocks, world.outcomes) == ({}, {"unproven": 1})


@pytest.mark.parametrize(
    "state", [FlowState.ACKED, FlowState.CLOSING, FlowState.ESTABLISHED_AWAITING]
)
def test_every_state_after_the_handshake_proves_the_address(world: World, state: FlowState) -> None:
    world.flow(CLIENT, state)
    world.alert()
    world.look()
    assert world.outcomes == {"blocked": 1}


def test_sources_on_lists_that_the_service_trusts_are_spared(world: World) -> None:
    world.flow(CLIENT)
    world.lists[CLIENT] = ("known",)
    world.alert()
    world.look()
    assert (world.blocks, world.outcomes) == ({}, {"spared": 1})


def test_a_signature_that_fires_for_all_blocks_five_and_a_twentieth_of_many(world: World) -> None:
    for last in range(100):
        world.flow(f"10.8.0.{last}")
        world.alert(f"10.8.0.{last}")
    world.look()
    assert (len(world.blocks), world.outcomes) == (5, {"blocked": 5, "bounded": 95})
    world.sources = 200
    for last in range(100):
        world.alert(f"10.8.0.{last}")
    world.look()
    assert len(world.blocks) == 10


def test_a_block_that_fails_is_said_once_and_tried_again(world: World) -> None:
    world.flow(CLIENT)
    world.refusal = "65536 prefixes are blocked already"
    world.alert()
    assert [line["event"] for line in world.look()] == ["alert", "alerts are not acted on"]
    assert world.alerts.view().problem.endswith(world.refusal)
    world.alert()
    assert world.look() == []
    assert (world.outcomes, world.alerts.view().blocked) == ({"failed": 2}, 0)
    world.refusal = ""
    world.alert()
    assert "blocked a source" in [line["event"] for line in world.look()]
    assert world.alerts.view().problem == ""
    assert world.outcomes == {"failed": 2, "blocked": 1}


def test_whoever_is_in_a_blocked_prefix_gets_no_block_of_his_own(world: World) -> None:
    """He has proved nothing: his packets end at the block, and his connection may be forged."""
    prefix = ip_network("10.9.0.0/24")
    world.blocks[prefix] = Block(prefix, "by hand", 0, 1e12)
    world.alert()
    world.look()
    assert [*world.blocks] == [prefix]
    assert (world.outcomes, world.alerts.view().blocked) == ({"blocked": 1}, 0)


def test_a_file_that_cannot_be_read_is_said_and_so_is_that_it_can_again(world: World) -> None:
    world.eve.rename(world.eve.with_suffix(".1"))
    world.configure(replace(world.situation.config.suricata, eve=world.eve.with_suffix(".2")))
    (line,) = world.look()
    assert line["event"] == "alerts are not acted on"
    assert world.look() == []
    world.eve.with_suffix(".2").touch(mode=0o644)
    (line,) = world.look()
    assert line["event"] == "alerts are read again"


def test_lines_of_something_else_are_counted(world: World) -> None:
    append(world.eve, b"what", REQUEST[:-9], b'{"event_type":"flow"}')
    world.look()
    view = world.alerts.view()
    assert (view.unreadable, view.recent) == (2, ())


def test_without_a_file_nothing_is_read(eve: Path) -> None:
    world = World(eve, Suricata(eve))
    world.configure(Suricata())
    assert not world.alerts._is_on(world.situation)
    assert world.alerts.view().path is None
