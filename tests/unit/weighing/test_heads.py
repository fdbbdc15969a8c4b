"""Notes of the packet path are read once each, and what they tell is written for it."""

from __future__ import annotations

from dataclasses import replace

from structlog.testing import capture_logs

from agent.dataplane import abi
from agent.dataplane.abi import HeadKind
from agent.model import Forward, Protocol
from agent.weighing.heads import Heads
from agent.weights.heads import KNOWN_FROM, FirstByte
from tests.unit.dataplane.fakes import CLOCK
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import World

PAUSE = CLOCK.hz // 2  # jiffies of half a second


class Here(World):
    """With heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin()

    def begin(self) -> None:
        """As an agent that starts."""
        self.heads = Heads(self.plane.tables, CLOCK.hz)
        self.heads.place(self.config, self.ids)

    @property
    def row(self):
        return self.plane.tables.service_heads[self.ids.service_id(self.service)]

    @property
    def is_(self) -> FirstByte | None:
        return self.heads.first_byte(self.service)

    def note(
        self, size: int, count: int = 1, kind: HeadKind = HeadKind.FOLLOWED, us: int = 600_000
    ):
        """As the packet path leaves them, one a second."""
        for _ in range(count):
            place = int(self.row["samples"]) % abi.HEAD_SAMPLES
            self.row["sample"][place] = (us, PAUSE, size, 0, kind, 0)
            self.row["samples"] += 1
            self.heads.sample()

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(int(one["least"]), int(one["most"])) for one in self.row["later"]]


def test_heads_that_are_found_are_told_to_the_packet_path():
    here = Here(web(A, B))
    assert (here.is_, here.row["probes"]) == (FirstByte.UNKNOWN, 0)
    here.note(185, 4)
    assert here.ranges == [(181, 189), (0, 0), (0, 0), (0, 0)]
    assert not here.row["is_known"]
    with capture_logs() as logs:
        here.note(185, KNOWN_FROM)
    assert (here.is_, here.row["is_known"], here.row["probes"]) == (FirstByte.TOKEN, 1, 0)
    assert [(entry["old"], entry["new"]) for entry in logs] == [("unknown", "token")]
    here.note(250, 300)
    assert here.ranges[0] == (246, 254), "another version of the engine"


def test_where_heads_differ_it_is_said_and_nothing_is_learned():
    here = Here(web(A, B))
    for size in range(100, 1000, 14):
        here.note(size)
    assert (here.is_, here.row["is_known"]) == (FirstByte.HEAD, 0)


def test_small_answers_of_one_size_are_looked_at_until_it_is_known_what_they_are():
    here = Here(web(A, B))
    here.note(185, 30, kind=HeadKind.NONE)
    assert (here.row["probes"], here.row["probe_mask"], here.row["is_known"]) == (1, 3, 0)
    here.note(185, 8)
    assert (here.row["probes"], here.row["is_known"], here.ranges[0]) == (0, 1, (181, 189))


def test_each_note_is_read_once_and_overwritten_ones_are_lost():
    here = Here(web(A, B))
    for size in range(40):
        here.row["sample"][size % abi.HEAD_SAMPLES] = (1, 0, 1, 0, HeadKind.NONE, 0)
    here.row["samples"] = 40
    here.heads.sample()
    here.heads.sample()
    assert here.is_ is FirstByte.UNKNOWN, "sixteen of them"


def test_a_note_that_is_being_written_is_left_out():
    here = Here(web(A, B))
    here.note(185, KNOWN_FROM, kind=HeadKind.UNWRITTEN)
    assert (here.is_, here.ranges[0]) == (FirstByte.UNKNOWN, (0, 0))


def test_an_agent_that_starts_keeps_what_the_last_one_found():
    here = Here(web(A, B))
    here.note(185, KNOWN_FROM)
    here.begin()
    assert (here.is_, here.ranges[0]) == (FirstByte.TOKEN, (181, 189))
    here.note(185, KNOWN_FROM - 1)
    assert (here.is_, here.ranges[0]) == (FirstByte.TOKEN, (181, 189))


def test_what_can_be_read_is_known_until_something_cannot():
    here = Here(web(A, forward=Forward.FULLNAT))
    assert (here.is_, here.row["is_known"]) == (FirstByte.TOKEN, 0)
    here.note(185)
    assert here.is_ is FirstByte.UNKNOWN


def test_services_whose_requests_are_not_followed_have_none():
    for service in (web(A, count_waiting=False),
                    replace(web(A), key=replace(web(A).key, protocol=Protocol.UDP))):  # fmt: skip
        assert Here(service).is_ is None
