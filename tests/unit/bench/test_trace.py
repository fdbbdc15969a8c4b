"""Lengths and arrivals of the AI benchmark."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench.ai import trace


def test_generated_lengths_have_the_published_quantiles() -> None:
    pairs = trace.generated(20_000).pairs
    prompts, answers = pairs[:, 0], pairs[:, 1]
    assert prompts.mean() == pytest.approx(1155, rel=0.05)
    assert answers.mean() == pytest.approx(211, rel=0.1)
    assert np.percentile(prompts, (50, 90, 99)) == pytest.approx([1020, 2735, 4142], rel=0.05)
    assert np.percentile(answers, (50, 90, 99)) == pytest.approx([129, 424, 601], rel=0.05)


def test_a_trace_is_read_as_pairs(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,374,44\n…,10,0\n"
    (tmp_path / "AzureLLMInferenceTrace_conv.csv").write_text(text)
    read = trace.lengths(place=tmp_path)
    assert read.pairs.tolist() == [[374, 44], [10, 1]]


def test_without_a_trace_lengths_are_generated(tmp_path: Path) -> None:
    assert "generated" in trace.lengths(place=tmp_path).source


@pytest.mark.parametrize("cv", [trace.TRACE_CV, trace.BURSTY_CV])
def test_arrivals_have_the_rate_and_the_burstiness(cv: float) -> None:
    gaps = trace.gaps(np.random.default_rng(5), 200_000, 20.0, cv)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_the_same_seed_gives_the_same_requests() -> None:
    of = trace.generated(100)
    one, other = (trace.requests(of, 500, 10.0, 1.09, seed=4) for _ in range(2))
    assert one == other
    assert one[-1].at_s == pytest.approx(50.0)
    assert all(a.at_s <= b.at_s for a, b in pairwise(one))


# -- conversations

TALK = trace.Conversations(200, 5.0, turns=4, think_s=10, system_tokens=100, tenants=3)


def test_each_prompt_repeats_all_that_was_said() -> None:
    found = trace.conversations(trace.generated(500), TALK, seed=1)
    assert [one.at_s for one in found] == sorted(one.at_s for one in found)
    by_key: dict[object, list[trace.Request]] = {}
    for one in found:
        by_key.setdefault(one.kept_as, []).append(one)
    assert 2.5 < len(found) / len(by_key) < 4.5
    for turns in by_key.values():
        first = turns[0]
        assert len(first.prefixes) == 1
        assert len({one.source for one in turns}) == 1
        for before, after in pairwise(turns):
            said = before.prompt_tokens + before.answer_tokens
            assert after.prefixes[1] == (after.kept_as, said)
            assert said < after.prompt_tokens <= TALK.most_tokens


def test_the_same_conversations_each_time_and_users_share_addresses() -> None:
    of = trace.generated(500)
    one, other = (trace.conversations(of, TALK, seed=2) for _ in range(2))
    assert one == other
    shared = trace.conversations(of, replace(TALK, users_each=50), seed=2)
    assert {request.source for request in shared} <= set(range(4))
    assert [request.prompt_tokens for request in shared] == [r.prompt_tokens for r in one]
