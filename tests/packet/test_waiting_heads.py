"""Heads that cannot be read, under TLS and where only acknowledgements pass: of the sizes that the
agent has found they are no answer at any time, and what comes before answers is noted for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.abi import HeadKind
from agent.model import Forward
from tests.packet.harness import Rig
from tests.packet.pauses import undisturbed
from tests.packet.talks import ANSWER, HEAD, LATE_MS, MODES, POST, Wire, opened
from tests.packet.tls import DATA, FINISHED_13, HELLO, REQUEST, record

TLS_HEAD = record(DATA, 185)
TOKEN = record(DATA, 300)


@dataclass(frozen=True)
class Note:
    kind: HeadKind
    size: int
    is_first: bool
    us: int
    pause: int
    upto: int


def row(rig: Rig) -> np.ndarray:
    return rig.tables.service_heads[rig.service_id()]


def heads(rig: Rig, *ranges: tuple[int, int], first: bool = False) -> None:
    """As the agent tells what it has found."""
    for i, ends in enumerate(ranges):
        row(rig)["first" if first else "later"][i] = ends


def notes(rig: Rig) -> list[Note]:
    """Oldest first, as far as they are still there."""
    heads = row(rig)
    count = int(heads["samples"])
    found = [heads["sample"][n % abi.HEAD_SAMPLES] for n in range(count)][-abi.HEAD_SAMPLES :]
    return [
        Note(HeadKind(int(one["kind"])), int(one["bytes"]), bool(one["is_first"]), int(one["us"]),
             int(one["pause"]), int(one["upto"]))
        for one in found
    ]  # fmt: skip


def probing(rig: Rig, mask: int = 0) -> None:
    row(rig)["probes"], row(rig)["probe_mask"] = 1, mask


def tls(rig: Rig, forward: Forward) -> Wire:
    """A TLS connection whose second request waits."""
    wire = opened(rig, forward).ask(HELLO)
    wire.gets(record(0x16, 1200))
    wire.ask(FINISHED_13).ask(REQUEST)
    wire.after(LATE_MS).gets(record(DATA, 2000))
    assert (wire.waiting, wire.answers) == (0, 1)
    return wire.ask(REQUEST)


@MODES
def test_a_head_of_a_known_size_is_no_answer_however_late(hooked: Rig, forward: Forward):
    """vLLM sends it after tokenizing: 160 ms for a prompt of 60 kB, whose token took 25 s."""
    wire = tls(hooked, forward)
    heads(hooked, (181, 189))
    wire.after(5000).gets(TLS_HEAD)
    assert (wire.waiting, wire.answers) == (len(REQUEST), 1)
    wire.after(25_000).gets(TOKEN)
    assert (wire.waiting, wire.answers) == (0, 2)
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 190))
    assert (wire.waiting, wire.answers) == (0, 3), "another size"


@pytest.mark.parametrize(
    ("size", "is_head"), [(180, 0), (181, 1), (189, 1), (190, 0), (40, 1), (90, 0)]
)
def test_any_of_the_sizes_counts(hooked: Rig, size: int, *, is_head: bool):
    wire = tls(hooked, Forward.DSR)
    heads(hooked, (181, 189), (500, 500), (700, 710), (31, 40))
    wire.after(LATE_MS).gets(bytes(size))
    assert bool(wire.waiting) == bool(is_head)


def test_sizes_add_up(hooked: Rig):
    """A server's WINDOW_UPDATE of 35 bytes, and then its head."""
    wire = tls(hooked, Forward.NAT)
    heads(hooked, (35, 35), (220, 220))
    wire.after(LATE_MS).gets(record(DATA, 35))
    wire.after(LATE_MS).gets(TLS_HEAD)
    assert wire.waiting
    wire.after(LATE_MS).gets(TLS_HEAD)
    assert not wire.waiting


@MODES
@undisturbed
def test_the_first_answer_of_a_connection_has_sizes_of_its_own(hooked: Rig, forward: Forward):
    """Session tickets come before it."""
    wire = opened(hooked, forward).ask(HELLO)
    wire.gets(record(0x16, 1200))
    wire.ask(FINISHED_13).ask(REQUEST)
    heads(hooked, (181, 189))
    heads(hooked, (755, 763), first=True)
    wire.after(LATE_MS).gets(record(DATA, 759))
    assert (wire.waiting, wire.answers) == (len(REQUEST), 0)
    wire.gets(TOKEN)
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 759))
    assert (wire.waiting, wire.answers) == (0, 2)


@MODES
@undisturbed
def test_behind_a_known_head_the_answer_may_be_early(hooked: Rig, forward: Forward):
    wire = tls(hooked, forward)
    heads(hooked, (185, 185))
    wire.after(1).gets(TLS_HEAD)
    wire.gets(record(DATA, 100))
    assert (wire.waiting, wire.answers) == (0, 2)


def test_in_dsr_heads_of_plain_http_are_told_by_their_size_too(hooked: Rig):
    wire = opened(hooked, Forward.DSR).ask(POST)
    heads(hooked, (len(HEAD), len(HEAD)))
    wire.after(700).gets(HEAD)
    assert wire.waiting == len(POST)
    wire.gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@undisturbed
def test_what_came_before_an_answer_is_noted(hooked: Rig, forward: Forward):
    wire = tls(hooked, forward)
    before = len(notes(hooked))
    wire.after(10).gets(TLS_HEAD)
    wire.warm_set("request_jiffies", (hooked.dataplane.now_jiffies() - 50) % 2**32)
    wire.warm_set("request", wire.at_ns - 400_000_000)
    wire.gets(TOKEN)
    (note,) = notes(hooked)[before:]
    assert (note.kind, note.size, note.is_first) == (HeadKind.FOLLOWED, 185, False)
    assert note.upto == 185 + len(TOKEN)
    assert 400_000 <= note.us < 500_000
    assert 50 <= note.pause < 60


@MODES
def test_where_it_is_not_known_an_answer_at_once_is_noted_and_not_learned_from(
    hooked: Rig, forward: Forward
):
    wire = tls(hooked, forward)
    row(hooked)["is_known"] = 0
    before, latency = len(notes(hooked)), hooked.tables.backend_latency[hooked.backend_id("a")]
    learned = int(latency["samples"])
    wire.after(LATE_MS).gets(record(DATA, 1400))
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 600))
    both = [(HeadKind.NONE, 1400), (HeadKind.NONE, 600)]
    assert [(n.kind, n.size) for n in notes(hooked)[before:]] == both
    assert (latency["samples"], wire.answers) == (learned, 3)
    row(hooked)["is_known"] = 1
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 1400))
    assert len(notes(hooked)) == before + 2, "long ones tell nothing new"
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 600))
    assert len(notes(hooked)) == before + 3
    assert (latency["samples"], wire.answers) == (learned + 2, 5)


@MODES
@undisturbed
def test_what_was_all_of_an_answer_is_noted_when_the_client_goes_on(hooked: Rig, forward: Forward):
    wire = tls(hooked, forward)
    before = len(notes(hooked))
    wire.after(1).gets(TLS_HEAD)
    wire.ask(REQUEST)
    wire.after(1).gets(TLS_HEAD)
    wire.client("FA")
    assert [(n.kind, n.size) for n in notes(hooked)[before:]] == [(HeadKind.ALONE, 185)] * 2


def test_what_can_be_read_is_not_noted(hooked: Rig):
    wire = opened(hooked, Forward.NAT).ask(POST)
    row(hooked)["is_known"] = 0
    wire.after(1).gets(HEAD)
    wire.gets(b"5\r\nhello\r\n")
    wire.ask(POST).gets(HEAD)
    wire.ask(POST)
    assert not notes(hooked)
    assert hooked.tables.backend_latency[hooked.backend_id("a")]["samples"] == 1


@MODES
def test_of_some_requests_the_first_few_bytes_are_taken_for_a_head(hooked: Rig, forward: Forward):
    wire = tls(hooked, forward)
    probing(hooked)
    before = len(notes(hooked))
    wire.after(LATE_MS).gets(record(DATA, 185))
    assert wire.waiting == len(REQUEST)
    wire.after(LATE_MS).gets(record(DATA, 185))
    assert not wire.waiting, "once"
    assert [(n.kind, n.size) for n in notes(hooked)[before:]] == [(HeadKind.FOLLOWED, 185)]
    wire.ask(REQUEST).after(LATE_MS).gets(record(DATA, 1025))
    assert not wire.waiting, "more than any head"


def test_one_of_so_many_is_probed(hooked: Rig):
    wire = tls(hooked, Forward.DSR)
    probing(hooked, 3)
    wire.after(LATE_MS).gets(record(DATA, 2000))
    probed = 0
    for n in range(200):
        wire.ask(record(DATA, 100 + n)).after(LATE_MS).gets(TLS_HEAD)
        probed += bool(wire.waiting)
        wire.gets(record(DATA, 1400))
    assert 20 < probed < 90


@MODES
def test_a_new_service_begins_with_nothing(hooked: Rig, forward: Forward):
    opened(hooked, forward)
    heads(hooked, (1, 1000))
    row(hooked)["samples"] = 7
    hooked.reset()
    opened(hooked, forward)
    assert not row(hooked)["later"]["most"].any()
    assert row(hooked)["samples"] == 0
