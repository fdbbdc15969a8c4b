"""Which sources are unlike the others, for how long they are threats, and which are blocked."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Forward, Network, Protocol, Service, ServiceKey
from agent.state import threats
from agent.state.threats import (
    LEARN_S,
    LEAST,
    LOOKS,
    MOST_SHARE,
    Crowd,
    Evidence,
    Held,
    Sign,
    Threat,
    Watch,
    begun,
    chosen,
    crowd_of,
    is_proven,
    sentence,
    why,
)


def has(
    of: Network,
    flows: float = 0,
    unused: float = 0,
    waiting: float = 0,
    new_per_s: float = 0,
    slow: float = 0,
) -> Held:
    values = {
        Sign.OPEN: flows,
        Sign.NEW: new_per_s,
        Sign.UNUSED: unused,
        Sign.SLOW: slow,
        Sign.WAITING: waiting,
    }
    return Held(of, values, slow)


def signs(held: list[Held]):
    return threats.signs(crowd_of(held))


def looked(before: Watch, held: dict[str, list[Held]], now_s: float) -> Watch:
    crowds: dict[str, Crowd] = {service: crowd_of(each) for service, each in held.items()}
    return threats.looked(before, crowds, now_s, lambda _service, source: source == OFFICE)


def source(number: int) -> Network:
    return ip_network(f"198.51.{number // 256}.{number % 256}/32")


def usual(count: int = 40, seed: int = 1) -> list[Held]:
    draw = random.Random(seed)
    return [
        has(source(n), draw.randint(1, 12), draw.randint(0, 2), draw.randint(0, 90_000),
             draw.uniform(0, 4))
        for n in range(count)
    ]  # fmt: skip


ATTACKER = ip_network("203.0.113.66/32")
OFFICE = ip_network("203.0.113.1/32")
LONG_AGO = Watch(begun_s={"chat": -LEARN_S, "embed": -LEARN_S})  # nothing is learned at first


@pytest.mark.parametrize(
    ("held", "sign"),
    [
        (has(ATTACKER, flows=900), Sign.OPEN),
        (has(ATTACKER, flows=9, new_per_s=400.0), Sign.NEW),
        (has(ATTACKER, flows=9, waiting=40 << 20), Sign.WAITING),
        (has(ATTACKER, flows=200, unused=190), Sign.UNUSED),
        (has(ATTACKER, flows=90, slow=88), Sign.SLOW),
    ],
)
def test_one_that_is_far_from_all_others_shows_it(held: Held, sign: Sign):
    found = signs([*usual(), held])
    assert found.keys() >= {(ATTACKER, sign)}
    assert {key[0] for key in found} == {ATTACKER}


def test_ordinary_clients_show_nothing():
    for seed in range(30):
        assert signs(usual(60, seed)) == {}


def test_behind_a_gateway_nobody_is_unlike_the_others():
    gateway = has(ATTACKER, flows=5000, waiting=90 << 20, new_per_s=900.0)
    assert signs([gateway]) == {}
    assert signs([gateway, *usual(10)]) == {}


def test_unused_connections_need_no_comparison():
    assert signs([has(ATTACKER, flows=100, unused=99)]).keys() == {(ATTACKER, Sign.UNUSED)}
    assert signs([has(ATTACKER, flows=60, unused=60)]) == {}
    assert signs([has(ATTACKER, flows=500, unused=100)]) == {}


def test_where_all_have_the_same_a_little_more_is_not_far():
    same = [has(source(n), flows=100) for n in range(40)]
    assert signs([*same, has(ATTACKER, flows=290)]) == {}
    assert signs([*same, has(ATTACKER, flows=400)]).keys() == {(ATTACKER, Sign.OPEN)}


def test_a_threat_begins_after_three_looks_and_ends_after_four_without():
    watch, loud = LONG_AGO, [*usual(), has(ATTACKER, flows=900)]
    counts = []
    for now, held in enumerate([loud] * 4 + [usual()] * 5):
        watch = looked(watch, {"chat": held}, float(now))
        counts.append(len(watch.threats))
    assert counts == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_one_loud_moment_is_no_threat():
    watch = LONG_AGO
    for now in range(20):
        held = [*usual(), has(ATTACKER, flows=900)] if now % 4 < 2 else usual()
        watch = looked(watch, {"chat": held}, float(now))
        assert watch.threats == {}


def test_a_threat_says_of_which_service_and_since_when():
    watch = LONG_AGO
    for now in range(LOOKS):
        held = {"chat": [*usual(), has(ATTACKER, flows=900 + now)], "embed": usual()}
        watch = looked(watch, held, 100.0 + now)
    (threat,) = watch.threats.values()
    assert (threat.service, threat.source, threat.since_s) == ("chat", ATTACKER, 102.0)
    assert threat.evidence.value == 903
    assert threat.evidence.others == 40


def test_a_trusted_source_is_never_suspected():
    watch = LONG_AGO
    for now in range(LOOKS):
        watch = looked(watch, {"chat": [*usual(), has(OFFICE, flows=900)]}, float(now))
    assert not watch.threats


@pytest.mark.parametrize("large", [has(ATTACKER, 90, slow=88), has(ATTACKER, 90, waiting=9 << 20)])
def test_where_the_service_is_slow_nobody_is_to_blame(large: Held):
    assert signs([*usual(), large])
    slow = [has(source(n), flows=10, slow=4) for n in range(40)]
    assert signs([*slow, large]) == {}


def test_a_client_that_has_few_slow_requests_among_many_is_like_the_others():
    assert signs([*usual(), has(ATTACKER, flows=99, slow=36)]) == {}


def test_when_nobody_looks_anymore_threats_are_over():
    watch = LONG_AGO
    for now in range(LOOKS):
        watch = looked(watch, {"chat": [*usual(), has(ATTACKER, flows=900)]}, float(now))
    assert watch.threats
    assert not looked(watch, {}, 9.0).threats


def test_what_is_new_is_told_once():
    before, told = LONG_AGO, []
    for now in range(9):
        after = looked(before, {"chat": [*usual(), has(ATTACKER, flows=900)]}, float(now))
        told += begun(before, after)
        before = after
    assert [each.source for each in told] == [ATTACKER]


def spent(seconds: int, held: list[Held], watch: Watch = LONG_AGO, every_s: int = 2) -> Watch:
    """What is known after so many seconds in which every look shows the same."""
    first = watch.at_s
    for passed in range(every_s, seconds + 1, every_s):
        watch = looked(watch, {"chat": held}, first + passed)
    return watch


def test_at_first_nobody_stands_out_by_amount():
    loud = [*usual(), has(ATTACKER, flows=900, new_per_s=300.0, waiting=1 << 30)]
    assert not spent(int(LEARN_S) - 2, loud, Watch()).threats


def test_where_nobody_was_nobody_is_known_when_they_come():
    watch = spent(3600, usual(10), LONG_AGO, every_s=60)
    assert not spent(60, [*usual(), has(ATTACKER, flows=900)], watch).threats


@pytest.mark.parametrize("held", [has(ATTACKER, flows=90, unused=90), has(ATTACKER, 90, slow=90)])
def test_unused_and_slow_need_no_time_to_learn(held: Held):
    assert spent(8, [*usual(), held], Watch()).threats


def test_the_largest_customer_is_known_as_such():
    customer = has(ATTACKER, flows=900)
    watch = spent(900, [*usual(), customer], Watch())
    assert not watch.threats
    assert not spent(600, [*usual(), has(ATTACKER, flows=1600)], watch).threats
    (found,) = spent(8, [*usual(), has(ATTACKER, flows=2000)], watch).threats.values()
    assert 850 < found.evidence.own <= 1000
    assert sentence(found.evidence).endswith(f", and it usually has {found.evidence.own:.0f}")


def test_after_a_weekend_a_customer_is_still_known():
    watch = spent(900, [*usual(), has(ATTACKER, flows=900)], Watch())
    watch = looked(watch, {"chat": usual()}, watch.at_s + 60 * 3600)
    assert not spent(60, [*usual(), has(ATTACKER, flows=900)], watch).threats
    watch = looked(watch, {"chat": usual()}, watch.at_s + 30 * 86400)
    assert not watch.own
    assert spent(60, [*usual(), has(ATTACKER, flows=900)], watch).threats


def test_an_attack_does_not_soon_become_usual():
    watch = spent(10, [*usual(), has(ATTACKER, flows=900)])
    watch = spent(3600, [*usual(), has(ATTACKER, flows=900)], watch, every_s=60)
    assert watch.threats
    assert not spent(9 * 3600, [*usual(), has(ATTACKER, flows=900)], watch, every_s=60).threats


def test_what_is_known_of_sources_has_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threats, "_MOST_KNOWN", 10)
    customer = has(OFFICE, flows=5000)
    watch = spent(600, [*usual(), customer])
    many = [has(source(n), flows=LEAST[Sign.OPEN]) for n in range(100, 400)]
    watch = spent(60, [*many, customer], watch)
    assert len(watch.own) == 10
    assert ("chat", OFFICE, Sign.OPEN) in watch.own


def threat(number: int, value: float, sign: Sign = Sign.OPEN) -> Threat:
    return Threat("chat", source(number), Evidence(sign, value, 2.0, 99), 0.0)


def test_only_a_share_of_the_sources_is_blocked_the_farthest_first():
    found = [threat(n, 1000.0 * n) for n in range(1, 9)]
    few = chosen(found, active=60, blocked=0)
    assert [each.source for each in few] == [source(8), source(7), source(6)]
    assert [each.source for each in chosen(found, 58, 2)] == [source(8)]
    assert chosen(found, 57, 3) == ()
    assert chosen(found, 19, 0) == (), "one of few may be the proxy of all clients"
    assert len(chosen(found, 20, 0)) == 1


def test_a_source_with_two_signs_is_blocked_once():
    both = [threat(1, 500.0), threat(1, 300.0, Sign.NEW), threat(2, 400.0)]
    assert [each.evidence.value for each in chosen(both, 100, 0)] == [500.0, 400.0]


@pytest.mark.parametrize(
    ("forward", "protocol", "proven"),
    [
        (Forward.NAT, Protocol.TCP, True),
        (Forward.FULLNAT, Protocol.TCP, True),
        (Forward.FULLNAT, Protocol.UDP, False),
        (Forward.DSR, Protocol.TCP, False),
        (Forward.GUE, Protocol.TCP, False),
    ],
)
def test_where_an_address_can_be_forged(forward: Forward, protocol: Protocol, proven: bool):
    key = ServiceKey(ip_address("192.0.2.1"), 80, protocol)
    assert is_proven(Service("chat", key, forward)) is proven


@pytest.mark.parametrize(
    ("sign", "value", "usual_value", "text"),
    [
        (Sign.OPEN, 900, 2.0, "900 open flows; the median of 40 other sources is 2"),
        (Sign.NEW, 4000, 0.4, "4.0k new flows a second; the median of 40 other sources is 0"),
        (Sign.UNUSED, 64, 0.0, "64 connections without a request"),
        (Sign.SLOW, 40, 0.0, "40 requests that do not end"),
        (
            Sign.WAITING,
            5e6,
            0.0,
            "5.0 MB of requests that wait; the median of 40 other sources is 0 B",
        ),
    ],
)
def test_the_evidence_in_words(sign: Sign, value: float, usual_value: float, text: str):
    found = Evidence(sign, value, usual_value, 40)
    assert sentence(found) == text
    reason = why(Threat("chat", ATTACKER, found, 0.0))
    assert reason == f"detected: chat: {text}"
    assert threats.is_ours(reason)


held_sources = st.lists(
    st.builds(
        has,
        of=st.integers(0, 500).map(source),
        flows=st.integers(0, 10_000),
        unused=st.integers(0, 100),
        waiting=st.integers(0, 1 << 30),
        new_per_s=st.floats(0, 10_000),
    ),
    max_size=80,
    unique_by=lambda each: each.source,
)


@given(held_sources)
def test_most_sources_are_never_unlike_most_sources(held: list[Held]):
    """More than half of them cannot be far from the median, whatever they hold."""
    found = signs(held)
    for sign in (Sign.OPEN, Sign.NEW, Sign.WAITING):
        assert sum(key[1] is sign for key in found) <= len(held) / 2


@given(st.lists(held_sources, max_size=8), st.integers(0, 40))
def test_never_more_than_the_share_is_blocked(looks: list[list[Held]], blocked: int):
    watch = LONG_AGO
    for now, held in enumerate(looks):
        watch = looked(watch, {"chat": held}, float(now))
        few = chosen(watch.threats.values(), len(held), blocked)
        assert len(few) + blocked <= max(blocked, MOST_SHARE * (len(held) + blocked))
        assert len({each.source for each in few}) == len(few)
