"""What small frames say, and what they cannot say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest

from agent.failover.model import Method, Role
from agent.flowsync import messages
from agent.flowsync.framing import Fault, FrameError, Kind, Sealer, most_bytes
from agent.flowsync.messages import Ack, Answer, Ask, Heartbeat
from agent.model import BackendRef
from agent.weights.speeds import Learned
from tests.unit.failover.samples import WORD

OTHER = replace(WORD, method=Method.ANNOUNCE, role=Role.FAULT, family=0, well=False, vouched=True)
SAMPLES: list[tuple[Any, Callable[[bytes], Any]]] = [
    (Ack(7, 5, {"no-room": 2}), messages.unpack_ack),
    (Heartbeat(1.5, None, 0.0, None), messages.unpack_heartbeat),
    (Heartbeat(1.5, 0.25, 0.125, 3.5), messages.unpack_heartbeat),
    (Heartbeat(1.5, 0.25, 0.125, 3.5, takes_blocks=True), messages.unpack_heartbeat),
    (Heartbeat(1.5, 0.25, 0.125, 3.5, takes_speeds=True), messages.unpack_heartbeat),
    (Heartbeat(1.5, 0.25, 0.1, 3.5, audit_head=f"7:{'a' * 64}"), messages.unpack_heartbeat),
    (Heartbeat(1.5, None, 0.0, None, ()), messages.unpack_heartbeat),
    (Heartbeat(1.5, None, 0.0, None, ("api", "web")), messages.unpack_heartbeat),
    (Heartbeat(1.5, None, 0.0, None, ("web",), (WORD, OTHER), 0.25), messages.unpack_heartbeat),
    (Ask(1), messages.unpack_ask),
    (Ask(2, "web"), messages.unpack_ask),
    (Answer(2, True, "taken"), messages.unpack_answer),
]

BEAT = {"sent_s": 1.5, "echo_s": None, "kept_s": 0, "lag_s": None}
ROW = [getattr(value, "value", value) for value in astuple(WORD)]
MANY = [str(number) for number in range(99)]


@pytest.mark.parametrize(("message", "unpack"), SAMPLES)
def test_messages_come_out_as_they_went_in(message: Any, unpack: Callable[[bytes], Any]) -> None:
    assert unpack(messages.pack(message)) == message


@pytest.mark.parametrize("unpack", list(dict.fromkeys(unpack for _, unpack in SAMPLES)))
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"{}", b"[]", b"null", b"7", b"\xff", b"[" * 15_000),
        b'{"sequence": -1, "installed": 0, "dropped": {}}',
        b'{"sequence": 1, "installed": true, "dropped": {}}',
        json.dumps({"sequence": 1, "installed": 0, "dropped": dict.fromkeys(MANY, 1)}).encode(),
        b'{"sent_s": NaN, "echo_s": null, "kept_s": 0, "lag_s": null}',
        b'{"sent_s": 1, "echo_s": null, "kept_s": 0, "lag_s": null, "instances": "web"}',
        json.dumps(BEAT | {"instances": ["web"] * 129}).encode(),
        json.dumps(BEAT | {"routers": [["web", 4]]}).encode(),
        json.dumps(BEAT | {"routers": {"web": 4}}).encode(),
        json.dumps(BEAT | {"routers": [ROW] * 129}).encode(),
        json.dumps(BEAT | {"routers": [], "routers_age_s": "now"}).encode(),
        b'{"id": 1.5, "instance": null}',
        b'{"id": "1", "done": true, "text": ""}',
    ],
)
def test_what_makes_no_sense_ends_the_stream(
    payload: bytes, unpack: Callable[[bytes], Any]
) -> None:
    with pytest.raises(FrameError) as caught:
        unpack(payload)
    assert caught.value.fault is Fault.CONTENT


@pytest.mark.parametrize("head", [7, None, "", "7", "x:y", f"7:{'a' * 65}", f"7:{'A' * 64}", [1]])
def test_a_head_that_is_none_is_left_out_and_ends_nothing(head: object) -> None:
    payload = json.dumps(BEAT | {"audit_head": head}).encode()
    assert messages.unpack_heartbeat(payload).audit_head == ""


def test_words_of_a_peer_cannot_write_to_a_terminal() -> None:
    told = messages.unpack_answer(messages.pack(Answer(1, False, "no\x1b[2J\nroot: fine")))
    assert told.text == "no?[2J?root: fine"


def test_the_longest_answer_fits_its_frame() -> None:
    told = messages.pack(Answer(1, False, "\x00" * 100_000))
    assert len(told) < most_bytes(Kind.ANSWER)
    Sealer(b"k" * 32).seal(Kind.ANSWER, told)


def test_a_balancer_of_before_does_not_tell_its_instances() -> None:
    heard = messages.unpack_heartbeat(json.dumps(BEAT).encode())
    assert (heard.instances, heard.routers) == (None, None)


def test_a_later_version_may_say_more_of_its_virtual_routers() -> None:
    later = [*ROW, "more"]
    unknown = [*ROW[:3], "resting", *ROW[4:]]
    told = json.dumps(BEAT | {"routers": [later, unknown], "more": 1}).encode()
    assert messages.unpack_heartbeat(told).routers == (WORD,)


def test_virtual_routers_that_have_no_room_are_not_told() -> None:
    names = tuple(f"{number:064}" for number in range(128))
    routers = tuple(replace(WORD, instance=name) for name in names)
    beat = messages.pack(Heartbeat(1.5, None, 0.0, None, names, routers))
    assert len(beat) < most_bytes(Kind.HEARTBEAT)
    assert messages.unpack_heartbeat(beat).routers is None
    assert messages.unpack_heartbeat(beat).instances == names
    beat = messages.pack(Heartbeat(1.5, None, 0.0, None, names[:60], routers[:60]))
    assert messages.unpack_heartbeat(beat).routers == routers[:60]


def test_as_many_instances_are_told_as_a_heartbeat_has_room_for() -> None:
    names = [f"{number:064}" for number in range(129)]
    assert messages.tellable(names) is None
    told = messages.tellable(names[:128])
    beat = messages.pack(Heartbeat(1.5, None, 0.0, None, told))
    assert len(beat) < most_bytes(Kind.HEARTBEAT)
    assert messages.unpack_heartbeat(beat).instances == told


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b'{"blocks": 1}', b'{"blocks": [{}]}', b'{"blocks": [{"prefix": "x"}]}',
     b'{"blocks": [{"prefix": "192.0.2.0/24", "why": "", "since": "0", "until": 1}]}',
     b'{"blocks": [{"prefix": "192.0.2.7/24", "why": "", "since": 0, "until": 1}]}'],
)  # fmt: skip
def test_blocks_that_make_no_sense_end_the_stream(payload: bytes) -> None:
    with pytest.raises(FrameError):
        messages.unpack_blocks(payload)


def test_of_blocks_only_text_is_shown() -> None:
    row = {"prefix": "192.0.2.7", "why": "\x1b[2J" + "x" * 5000, "since": 0, "until": 1}
    (block,) = messages.unpack_blocks(json.dumps({"blocks": [row]}).encode()).values()
    assert block.why.isprintable()
    assert len(block.why) <= 1000


SPEEDS = {
    BackendRef("chat", "gpu-1"): Learned(0.8123456789, 320, 0.0),
    BackendRef("chat", "gpu-2"): Learned(4.0, None, 0.0),
}


def test_what_was_learned_comes_back_exactly() -> None:
    assert messages.unpack_speeds(messages.pack_speeds(SPEEDS)) == SPEEDS


def test_what_was_learned_is_within_bounds_and_later_versions_may_say_more() -> None:
    rows = [["chat", "a", 1e9, None, "new"], ["chat", "b", -1, 1]]
    found = messages.unpack_speeds(json.dumps({"speeds": rows}).encode())
    assert [one.weight_share for one in found.values()] == [4.0, 0.25]


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b'{"speeds": 1}', b'{"speeds": [[]]}', b'{"speeds": [["a", "b", "1", null]]}',
     b'{"speeds": [["a", "b", NaN, null]]}', b'{"speeds": [["a", "b", 1, 0]]}',
     b'{"speeds": [["a", "b", 1, -5]]}', b'{"speeds": [["a", "b", 1, 1.5]]}'],
)  # fmt: skip
def test_speeds_that_make_no_sense_end_the_stream(payload: bytes) -> None:
    with pytest.raises(FrameError):
        messages.unpack_speeds(payload)
