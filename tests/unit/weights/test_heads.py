"""Heads are told from tokens by their sizes and by what followed them, as measured with engines."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.weights.heads import KEPT, KNOWN_FROM, NO_NOTES, FirstByte, Notes, judged, ranges

ROOM = 4
HEAD_S, TOKEN_S = 0.136, 0.66  # vLLM 0.16 behind nginx, four at a time


def notes(
    *sizes: int, before_s: float = HEAD_S, pause_s: float = TOKEN_S - HEAD_S, first: bool = False,
    followed: bool = True, head: bool = True, upto: int = 0,
) -> Notes:  # fmt: skip
    """Answers that began with so many bytes each."""
    n = len(sizes)
    return Notes(
        np.array(sizes, dtype=np.int64), np.full(n, upto), np.full(n, first), np.full(n, head),
        np.full(n, followed), np.full(n, before_s), np.full(n, pause_s),
    )  # fmt: skip


def at_once(count: int) -> Notes:
    """Answers that were there at once, of several segments."""
    return notes(*[1400] * count, before_s=1.0, pause_s=0.0, followed=False, head=False)


def test_few_answers_tell_nothing():
    assert judged(NO_NOTES, ROOM).first_byte is FirstByte.UNKNOWN
    few = notes(*[185] * (KNOWN_FROM - 1))
    assert judged(few, ROOM).first_byte is FirstByte.UNKNOWN
    assert judged(few, ROOM).later == ((181, 189),), "a head is one before that"


def test_heads_of_one_size_are_found():
    found = judged(notes(*[185, 186, 185, 184] * 10), ROOM)
    assert (found.later, found.first, found.first_byte) == (((180, 190),), (), FirstByte.TOKEN)


def test_the_first_answers_of_connections_are_a_kind_of_their_own():
    found = judged(notes(*[185] * 20).then(notes(*[759] * 5, first=True)), ROOM)
    assert (found.later, found.first) == (((181, 189),), ((755, 763),))


def test_sizes_are_named_in_the_order_of_their_number():
    seen = notes(*[185] * 9, *[35] * 20, *[220] * 12, *[500] * 5, *[90] * 6)
    found = judged(seen, ROOM)
    assert [least for least, _ in found.later] == [31, 216, 181, 86]


def test_a_head_is_one_though_other_answers_go_on_behind_it_at_once():
    """One server under TLS: chat, and /v1/responses with its first events right behind the head."""
    seen = notes(*[185] * 10).then(notes(*[185] * 20, before_s=0.01, pause_s=0.002))
    assert judged(seen, ROOM).later == ((181, 189),)


def test_tokens_that_come_one_by_one_are_no_heads():
    """An engine whose first event comes with its head: the time is before it, not behind."""
    found = judged(notes(*[420] * 30, before_s=0.4, pause_s=0.03), ROOM)
    assert (found.later, found.first_byte) == ((), FirstByte.TOKEN)


def test_what_is_longer_than_tickets_and_a_head_is_no_head():
    """Where acknowledgements tell, a client says how far it has come."""
    found = judged(notes(*[3000] * 30), ROOM)
    assert found.later == ()


def test_a_quick_token_with_a_late_one_behind_is_no_head():
    """llama.cpp through TLS, two at a time: head 790, and the first token up to 1370 bytes."""
    usual = notes(*[790] * 30, first=True, upto=1370)
    quick = notes(*[1370] * 10, before_s=0.05, pause_s=0.4, first=True, upto=1670)
    assert judged(usual.then(quick), ROOM).first == ((786, 794),)
    assert judged(quick.then(usual), ROOM).first == ((786, 794),)


def test_small_whole_answers_are_no_heads():
    """A health endpoint: the client goes on behind them."""
    found = judged(notes(*[160] * 30, before_s=0.0, pause_s=0.0, followed=False), ROOM)
    assert (found.later, found.first_byte) == ((), FirstByte.TOKEN)


def test_answers_that_come_at_once_have_no_heads():
    assert judged(at_once(KNOWN_FROM), ROOM).first_byte is FirstByte.TOKEN


def late(*sizes: int) -> Notes:
    """Few bytes that were taken for answers at once."""
    return notes(*sizes, before_s=0.2, pause_s=0.0, followed=False, head=False)


def test_many_small_answers_of_one_size_are_looked_at():
    """A server that is always busy: all of its heads are late."""
    seen = at_once(40).then(late(*[185] * 19))
    assert judged(seen, ROOM).first_byte is FirstByte.TOKEN
    seen = seen.then(late(186))
    assert (judged(seen, ROOM).suspects, judged(seen, ROOM).first_byte.value) == (True, "unknown")
    looked_at = seen.then(notes(*[185] * 8))
    assert judged(looked_at, ROOM).later == ((181, 189),)
    assert (judged(looked_at, ROOM).suspects, judged(looked_at, ROOM).first_byte.value) == (
        False,
        "token",
    )
    whole = seen.then(notes(*[185] * 8, followed=False))
    assert (judged(whole, ROOM).suspects, judged(whole, ROOM).later) == (False, ())


def test_small_answers_of_many_sizes_are_not_looked_at():
    assert not judged(late(*range(100, 900, 5)), ROOM).suspects
    assert not judged(late(*range(100, 900, 3)), ROOM).suspects
    assert not judged(late(*[1400] * 60), ROOM).suspects


def test_heads_of_all_sizes_cannot_be_told():
    draw = random.Random(1)
    found = judged(notes(*(draw.randrange(100, 900) for _ in range(60))), ROOM)
    assert found.first_byte is FirstByte.HEAD
    long_steps = notes(*range(100, 400, 3))
    assert judged(long_steps, ROOM).first_byte is FirstByte.HEAD


def test_more_sizes_than_there_is_room_for_are_said():
    seen = notes(*[100, 200, 300, 400, 500, 600, 700, 800] * 8)
    assert judged(seen, 4).first_byte is FirstByte.HEAD
    assert judged(seen, 8).first_byte is FirstByte.TOKEN


def test_a_few_heads_of_other_sizes_do_not_matter():
    seen = notes(*[185] * 40).then(notes(300, 411))
    assert judged(seen, ROOM).first_byte is FirstByte.TOKEN


def test_old_notes_are_forgotten():
    seen = notes(*[185] * 60).then(notes(*[240] * KEPT))
    assert len(seen) == KEPT
    assert judged(seen, ROOM).later == ((236, 244),)


@given(
    sizes=st.lists(st.integers(1, 1024), max_size=80),
    seed=st.integers(0, 999),
)
def test_what_is_called_a_head_was_seen_and_followed(sizes, seed):
    draw = random.Random(seed)
    seen = NO_NOTES
    for size in sizes:
        seen = seen.then(
            notes(size, before_s=draw.random(), pause_s=draw.random(), followed=draw.random() < 0.8)
        )
    for least, most in ranges(seen):
        inside = seen.of((seen.size >= least) & (seen.size <= most))
        assert least <= inside.size.min()
        assert inside.size.max() <= most
        assert inside.is_followed.any()
        assert most - least <= 40


@pytest.mark.parametrize("which", [False, True])
def test_ranges_of_one_kind_do_not_meet(which: bool):
    found = ranges(notes(*[100] * 5, *[109] * 5, first=which))
    assert sorted(found) == [(96, 104), (105, 113)]
