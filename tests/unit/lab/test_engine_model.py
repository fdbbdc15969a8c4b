"""What the stand-in engine does with its batch, its queue and its KV cache."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.lab.engine.model import A100, H100, Engine, Hardware, Job, Step

TINY = dataclasses.replace(H100, max_batch=4, token_budget=100, kv_tokens=200)


def job(prompt: int = 10, output: int = 3, arrived_s: float = 0.0) -> Job:
    return Job(prompt, output, arrived_s)


def engine_with(*jobs: Job, hardware: Hardware = H100, slow: float = 1.0) -> Engine:
    engine = Engine(hardware, slow)
    for each in jobs:
        engine.add(each)
    return engine


def run(engine: Engine, until: int = 100_000) -> list[Step]:
    """Iterate until there is nothing to do."""
    steps: list[Step] = []
    now_s = 0.0
    while (step := engine.begin()) and len(steps) < until:
        now_s += step.duration_s
        engine.end(step, now_s)
        steps.append(step)
    return steps


@pytest.mark.parametrize("hardware", [H100, A100])
def test_an_iteration_takes_what_was_measured(hardware: Hardware) -> None:
    engine = engine_with(job(1000, 5), hardware=hardware)
    step = engine.begin()
    assert step is not None
    expected = hardware.step_s + hardware.step_s_per_request
    expected += 1000 * (hardware.prefill_s_per_token + hardware.step_s_per_context_token)
    assert step.duration_s == pytest.approx(expected)
    engine.end(step, 1.0)
    decode = engine.begin()
    assert decode is not None
    expected = hardware.step_s + hardware.step_s_per_request
    assert decode.duration_s == pytest.approx(expected + 1001 * hardware.step_s_per_context_token)


def test_a_throttled_engine_takes_longer_from_its_next_iteration_on() -> None:
    engine, same = engine_with(job()), engine_with(job())
    engine.slow = 3.0
    slow, fast = engine.begin(), same.begin()
    assert slow is not None
    assert fast is not None
    assert slow.duration_s == pytest.approx(3 * fast.duration_s)


def test_the_first_token_comes_with_the_prompt_and_the_last_ends_the_job() -> None:
    one = job(output=3)
    engine = engine_with(one)
    steps = run(engine)
    assert [step.first for step in steps] == [(one,), (), ()]
    assert [step.finished for step in steps] == [(), (), (one,)]
    assert one.first_token_s == pytest.approx(steps[0].duration_s)
    assert one.done_s == pytest.approx(sum(step.duration_s for step in steps))
    assert (one.generated, engine.running, engine.kv_usage) == (3, 0, 0.0)
    assert engine.begin() is None


def test_one_token_is_first_and_last() -> None:
    one = job(output=1)
    (step,) = run(engine_with(one))
    assert step.first == step.finished == (one,)


def test_a_request_that_comes_while_others_run_joins_the_next_iteration() -> None:
    old, new = job(output=4), job(output=2)
    engine = engine_with(old)
    step = engine.begin()
    engine.add(new)
    assert (engine.running, engine.waiting) == (1, 1)
    assert step is not None
    engine.end(step, 1.0)
    second = engine.begin()
    assert second is not None
    assert (second.first, second.tokens) == ((new,), 2)


def test_prompts_begin_within_the_token_budget_and_a_longer_one_alone() -> None:
    jobs = [job(60), job(60), job(150), job(10)]
    roomy = dataclasses.replace(TINY, kv_tokens=10_000)
    steps = run(engine_with(*jobs, hardware=roomy))
    assert [step.first for step in steps[:4]] == [(jobs[0],), (jobs[1],), (jobs[2],), (jobs[3],)]


def test_the_batch_has_an_end_and_the_rest_waits_in_order() -> None:
    jobs = [job(1, output=2) for _ in range(6)]
    engine = engine_with(*jobs, hardware=TINY)
    steps = run(engine)
    assert steps[0].first == tuple(jobs[:4])
    assert steps[2].first == tuple(jobs[4:])


def test_what_outgrows_the_cache_is_preempted_and_computed_again() -> None:
    old, young = job(90, output=30), job(90, output=30)
    engine = engine_with(old, hardware=TINY)
    engine.add(young)
    steps = run(engine)
    assert (old.preemptions, young.preemptions, engine.preemptions) == (0, 1, 1)
    assert old.generated == young.generated == 30
    assert sum(young in step.first for step in steps) == 1, "its first token came only once"
    again = steps[[old in step.finished for step in steps].index(True) + 1]
    prefill_s = 95 * TINY.prefill_s_per_token  # its prompt and the tokens that it had
    assert again.duration_s > TINY.step_s + TINY.step_s_per_request + prefill_s
    assert engine.prompt_tokens == 180, "counted once each"
    assert engine.generation_tokens == 60


def test_a_prompt_larger_than_the_cache_runs_alone() -> None:
    big, small = job(500, output=2), job(10, output=2)
    engine = engine_with(big, small, hardware=TINY)
    step = engine.begin()
    assert step is not None
    assert (step.first, engine.kv_usage) == ((big,), 1.0)


def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    running, waiting, stranger = job(50, output=9), job(50), job()
    engine = engine_with(running, waiting)
    step = engine.begin()
    assert step is not None
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(stranger)
    engine.end(step, 1.0)
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)
    assert running.first_token_s is None
    assert engine.begin() is None


@given(
    st.lists(
        st.tuples(st.integers(1, 150), st.integers(1, 60), st.booleans()), min_size=1, max_size=30
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_every_job_gets_its_tokens_whatever_comes_and_goes(
    wanted: list[tuple[int, int, bool]], random: object, chunked: bool
) -> None:
    engine = Engine(dataclasses.replace(TINY, chunked=chunked))
    jobs = [Job(prompt, output, 0.0, tag=leaves) for prompt, output, leaves in wanted]
    left: set[Job] = set()
    coming = list(jobs)
    tokens, now_s = 0, 0.0
    for turn in range(10_000):
        if coming and random.random() < 0.5:  # type: ignore[attr-defined]
            engine.add(coming.pop(0))
        step = engine.begin()
        if step is None:
            if not coming:
                break
            continue
        assert 1 <= engine.running <= TINY.max_batch
        assert chunked or step.tokens == engine.running
        leaving = [one for one in engine.jobs if one.tag]
        if leaving and turn % 7 == 0:
            engine.cancel(leaving[0])
            left.add(leaving[0])
        now_s += step.duration_s
        before = engine.generation_tokens
        engine.end(step, now_s)
        tokens += engine.generation_tokens - before
        told = [engine.generated(one) for one in engine.jobs]
        least = 0 if chunked else 1  # a prompt in pieces has no token yet
        assert all(
            least <= count <= one.output_tokens
            for count, one in zip(told, engine.jobs, strict=True)
        )
    assert not coming
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)
    for one in jobs:
        assert one in left or (one.generated == one.output_tokens and one.done_s is not None)
    assert tokens == sum(one.generated for one in jobs)


def test_a_long_prompt_in_pieces_lets_others_have_their_tokens_meanwhile() -> None:
    roomy = dataclasses.replace(TINY, kv_tokens=10_000, chunked=True)
    runs, long, short = job(prompt=20, output=10), job(prompt=250, output=2), job(prompt=20)
    engine = engine_with(runs, hardware=roomy)
    engine.end(engine.begin(), 1.0)  # type: ignore[arg-type]
    for each in (long, short):
        engine.add(each)
    firsts = []
    for now_s in (2.0, 3.0, 4.0):
        step = engine.begin()
        assert step is not None
        spent = step.duration_s - roomy.step_s - roomy.step_s_per_request * step.tokens
        spent -= roomy.step_s_per_context_token * engine.kv_usage * roomy.kv_tokens
        assert spent / roomy.prefill_s_per_token <= 99.01  # with the token of the one that runs
        engine.end(step, now_s)
        firsts.append(step.first)
    assert engine.generated(runs) == 4
    # 99 + 99 + 52 tokens of the long one; the short one has what is left of the third iteration.
    assert firsts == [(), (), (long, short)]
    assert (engine.generated(long), engine.generated(short)) == (1, 1)


def test_one_that_leaves_in_mid_prompt_frees_its_place() -> None:
    engine = engine_with(hardware=dataclasses.replace(TINY, chunked=True))
    long = job(prompt=150)
    engine.add(long)
    step = engine.begin()
    assert step is not None
    assert step.tokens == 0
    engine.cancel(long)
    engine.end(step, 1.0)
    assert (engine.running, engine.kv_usage, engine.begin()) == (0, 0.0, None)


# -- the prefix cache

CACHING = dataclasses.replace(TINY, prefix_tokens=300, token_budget=10_000, kv_tokens=10_000)


def served(engine: Engine, *jobs: Job) -> float:
    """The seconds until all have their answers."""
    for job in jobs:
        engine.add(job)
    now_s = 0.0
    while step := engine.begin():
        now_s += step.duration_s
        engine.end(step, now_s)
    return now_s


def turn(said: int, new: int, name: str = "c") -> Job:
    """A prompt that repeats all that was said, and 10 tokens of an answer."""
    return Job(said + new, 10, 0.0, prefixes=((name, said),) if said else (), kept_as=name)


def test_what_a_server_has_worked_through_costs_nothing_again() -> None:
    engine = Engine(CACHING)
    first, again = turn(0, 100), turn(110, 20)
    served(engine, first)
    cold_s, warm_s = served(Engine(CACHING), turn(110, 20)), served(engine, again)
    assert (first.cached_tokens, again.cached_tokens) == (0, 110)
    assert cold_s - warm_s == pytest.approx(110 * TINY.prefill_s_per_token)
    assert (engine.prompt_tokens, engine.cached_tokens) == (230, 110)
    assert (engine.running, engine.kv_usage) == (0, 0.0)


def test_a_prompt_that_is_all_there_has_its_last_token_computed() -> None:
    engine = Engine(CACHING)
    served(engine, turn(0, 100))
    same = turn(100, 0)
    served(engine, same)
    assert same.cached_tokens == 99


def test_what_was_not_asked_for_longest_gives_way() -> None:
    engine = Engine(CACHING)
    for name in "ab":
        served(engine, turn(0, 90, name))
    served(engine, turn(100, 10, "a"), turn(0, 90, "c"))
    found = {name: turn(100, 10, name) for name in "abc"}
    for job in found.values():
        served(engine, job)
    assert found["a"].cached_tokens == 100
    assert found["b"].cached_tokens == 0


def test_there_is_no_cache_unless_it_is_wanted() -> None:
    engine, again = Engine(TINY), turn(20, 5)
    served(engine, turn(0, 10))
    served(engine, again)
    assert again.cached_tokens == engine.cached_tokens == 0
