"""The versions of a fleet: how they are made from each other, and how they are stored."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StoreError
from agent.fleet.versions import (
    ACTIVE,
    SNAPSHOT_EVERY,
    Active,
    Documents,
    Ended,
    FleetVersion,
    Log,
    Rollout,
    digest_of,
    entry_of,
    log_key,
    number_of,
    outcomes,
    pack_entry,
    pack_snapshot,
    read_active,
    read_entry,
    read_snapshot,
    snapshot_key,
    write_active,
)


def made(number: int, base: int, before: Documents, after: Documents) -> FleetVersion:
    return entry_of(
        number,
        base,
        before,
        after,
        at=1.5,
        node="lb1",
        how="edit",
        who="anna",
        message="why",
        changes=[f"change {n}" for n in range(30)],
    )


def service(name: str, weight: int) -> dict[str, object]:
    return {"name": name, "vip": "192.0.2.1", "weight": weight}


NAMES = st.sampled_from("abcdef")
STATES = st.dictionaries(NAMES, st.integers(1, 5), max_size=6).map(
    lambda weights: {name: service(name, weight) for name, weight in weights.items()}
)


@given(before=STATES, after=STATES)
def test_a_version_makes_its_services_of_those_of_its_base(
    before: Documents, after: Documents
) -> None:
    entry = made(7, 6, before, after)
    assert entry.applied(before) == after
    assert read_entry(log_key(7), pack_entry(entry)) == entry
    unchanged = {name for name in before if before[name] == after.get(name)}
    assert not unchanged & (entry.changed.keys() | set(entry.removed))


@given(states=st.lists(STATES, min_size=1, max_size=12), data=st.data())
def test_each_version_has_its_services_wherever_reading_begins(
    states: list[Documents], data: st.DataObject
) -> None:
    """Some versions were aborted: others are made from the one before."""
    entries: list[FleetVersion] = []
    known: dict[int, Documents] = {0: {}}
    stable = 0
    for number, state in enumerate(states, 1):
        entries.append(made(number, stable, known[stable], state))
        known[number] = state
        if data.draw(st.booleans(), label=f"{number} is taken"):
            stable = number
    log = Log()
    for entry in data.draw(st.permutations(entries)):
        log.add(entry)
    for number, state in known.items():
        assert log.documents(number) == state
    later = Log(stable, known[stable])
    for entry in entries:
        if entry.number > stable:
            later.add(entry)
    log.forget_before(stable)
    for number in range(stable, len(states) + 1):
        assert later.documents(number) == log.documents(number) == known[number]


@given(
    orders=st.lists(st.sampled_from(["edit", "promoted", "aborted", "trying"]), max_size=12),
    most=st.integers(1, 12),
)
def test_what_became_of_each_version_is_known_from_the_newest_ones(
    orders: list[str], most: int
) -> None:
    active, entries, wanted = Active(), [], {}
    for number, order in enumerate(orders, 1):
        entries.append(made(number, active.stable, {}, {}))
        active = active.with_version(
            number, None if order == "edit" else Rollout(number, ("lb3",), 1.0)
        )
        wanted[number] = {"aborted": "aborted", "trying": "trying"}.get(order, "")
        if order == "trying":
            break
        if order in ("promoted", "aborted"):
            active = getattr(active, order)("why", "root", 2.0)
    if active.stable:
        wanted[active.stable] = "stable"
    newest = entries[::-1][:most]
    assert outcomes(newest, active) == {each.number: wanted[each.number] for each in newest}
    later = made(active.newest + 1, active.stable, {}, {})  # it was written after that was heard
    assert outcomes([later, *newest], active)[later.number] == ""


def test_a_version_whose_base_is_missing_is_not_known() -> None:
    log = Log()
    log.add(made(3, 2, {}, {}))
    log.add(made(5, 5, {}, {}))  # made from itself: nobody writes that
    assert log.documents(3) is None
    assert log.documents(5) is None
    assert log.documents(9) is None


def test_only_the_first_changes_are_stored_with_their_number() -> None:
    entry = made(1, 0, {}, {})
    assert len(entry.changes) == 20
    assert entry.changes_count == 30


def test_during_a_rollout_some_run_another_version() -> None:
    active = Active(stable=4, newest=4)
    assert active.of("lb1") == 4
    tried = active.with_version(5, Rollout(5, ("lb3",), 1.0, 60.0))
    assert (tried.of("lb1"), tried.of("lb3"), tried.newest) == (4, 5, 5)
    assert tried.promoted("well", "root", 2.0) == Active(
        5, 5, 0, None, Ended(5, "promoted", "well", "root", 2.0)
    )
    aborted = tried.aborted("bad", "root", 2.0)
    assert (aborted.stable, aborted.newest, aborted.of("lb3")) == (4, 5, 4)
    # The next version gets a number of its own, and is made from the stable one.
    assert aborted.with_version(6, None).stable == 6


def test_now_and_then_a_version_is_stored_whole_but_none_that_is_tried() -> None:
    active = Active(stable=SNAPSHOT_EVERY - 1, newest=SNAPSHOT_EVERY - 1)
    assert active.with_version(SNAPSHOT_EVERY, None).snapshot == SNAPSHOT_EVERY
    trial = Rollout(SNAPSHOT_EVERY, ("lb3",), 1.0)
    tried = active.with_version(SNAPSHOT_EVERY, trial)
    assert tried.snapshot == 0
    after = tried.aborted("", "", 0.0).with_version(SNAPSHOT_EVERY + 1, None)
    assert after.snapshot == SNAPSHOT_EVERY + 1


@given(
    active=st.builds(
        Active,
        st.integers(0, 99),
        st.integers(0, 99),
        st.integers(0, 99),
        st.none() | st.builds(Rollout, st.integers(1, 9), st.tuples(NAMES), st.floats(0, 9)),
        st.none() | st.builds(Ended, st.integers(1, 9), NAMES, NAMES, NAMES, st.floats(0, 9)),
    )
)
def test_what_is_active_is_read_as_it_was_written(active: Active) -> None:
    assert read_active(write_active(active)) == active


@given(state=STATES)
def test_a_snapshot_is_read_as_it_was_written_and_the_digest_knows_no_order(
    state: Documents,
) -> None:
    assert read_snapshot(snapshot_key(1), pack_snapshot(state)) == state
    turned = {name: dict(reversed(state[name].items())) for name in reversed(state)}
    assert digest_of(turned) == digest_of(state)


def test_keys_are_sorted_as_their_numbers_are() -> None:
    assert log_key(9) < log_key(10) < log_key(10_000)
    assert number_of(log_key(77)) == 77


NEWER = zlib.compress(json.dumps({"format": 2, "base": 1}).encode())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"<html>", "it is not compressed"),
        (b"", "it is cut off"),
        (zlib.compress(b"{}" * 10)[:-3], "it is cut off"),
        (zlib.compress(b"{" * 100_000), "it is not JSON"),
        (zlib.compress(b"[]"), "it is not an object"),
        (zlib.compress(b'{"format": 1}'), "it has not the shape of a version"),
        (NEWER, "a newer release has written it"),
        (
            zlib.compress(
                b'{"format":1,"base":0,"at":1,"node":"","how":"","who":"","message":"",'
                b'"changes":[],"changes_count":0,"set":[3],"removed":[]}'
            ),
            "a service in it has no name",
        ),
        (zlib.compress(bytes(70 << 20)), "much too large"),
    ],
)
def test_what_is_no_version_is_refused_in_words(value: bytes, says: str) -> None:
    with pytest.raises(StoreError, match=log_key(3)) as refused:
        read_entry(log_key(3), value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"7",
        b'{"format":1,"stable":"1","newest":1,"snapshot":0}',
        b'{"format":1,"stable":1,"newest":1,"snapshot":0,"rollout":7}',
        b'{"format":1,"stable":1,"newest":1,"snapshot":0,"ended":{}}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_active_is_refused_in_words(value: bytes) -> None:
    with pytest.raises(StoreError, match=ACTIVE):
        read_active(value)


def test_a_key_without_a_number_is_refused() -> None:
    with pytest.raises(StoreError, match="not a number"):
        number_of("versions/log/x7")


def test_a_version_that_etcd_would_refuse_is_refused_with_the_remedy() -> None:
    import random

    noise = random.Random(1)
    many = {f"s{n}": {"name": f"s{n}", "x": f"{noise.getrandbits(4000):x}"} for n in range(4000)}
    with pytest.raises(StoreError, match="let `discover` name the backends"):
        pack_entry(replace(made(1, 0, {}, {}), changed=many))
