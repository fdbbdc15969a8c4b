"""Which hosts are taken to answer for our VIPs."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state.claims import (
    BELIEVED_ROUNDS,
    FORGOTTEN_ROUNDS,
    MOST,
    Claim,
    Claims,
    Owner,
    in_words,
    not_taken,
)

VIP, OTHER = ip_address("10.9.0.100"), ip_address("fd09::100")
THIEF = Claim(VIP, "02:00:00:00:00:21")


def test_who_is_heard_in_two_rounds_stands_and_falls_after_three_without_a_word():
    claims = Claims()
    claims.hear(THIEF)
    claims.hear(THIEF)  # an answer and an announcement in one round count once
    assert claims.next_round({VIP}) == (frozenset(), frozenset())
    assert claims.is_in_doubt
    claims.hear(THIEF)
    assert claims.next_round({VIP}) == ({THIEF}, frozenset())
    assert not claims.is_in_doubt
    assert claims.standing == {THIEF}
    for _ in range(FORGOTTEN_ROUNDS - 1):
        assert claims.next_round({VIP}) == (frozenset(), frozenset())
    assert claims.next_round({VIP}) == (frozenset(), {THIEF})
    assert not claims.standing


def test_a_vip_that_this_host_no_longer_has_is_nobodys_fault():
    """The last word of a balancer that hands it over, or of one that takes it."""
    claims = Claims()
    for _ in range(BELIEVED_ROUNDS):
        claims.hear(THIEF)
        claims.next_round({VIP, OTHER})
    assert claims.standing
    assert claims.next_round({OTHER}) == (frozenset(), {THIEF})


def test_a_host_that_claims_everything_fills_nothing():
    claims = Claims()
    for round_ in range(4):
        for number in range(10 * MOST):
            claims.hear(Claim(VIP, f"02:00:00:{round_:02x}:{number >> 8:02x}:{number & 255:02x}"))
            claims.hear(THIEF)
        claims.next_round({VIP})
        assert len(claims.standing) <= MOST
    assert THIEF in claims.standing, "who was there first has its place"


@given(st.lists(st.sets(st.integers(0, 3)), max_size=20))
def test_nobody_stands_who_was_heard_once_or_long_ago(rounds: list[set[int]]) -> None:
    claims, standing = Claims(), set()
    for number, heard in enumerate(rounds):
        for each in heard:
            claims.hear(Claim(VIP, str(each)))
        come, gone = claims.next_round({VIP})
        standing = (standing | come) - gone
        assert standing == claims.standing
        recent = rounds[max(0, number + 1 - FORGOTTEN_ROUNDS) : number + 1]
        for each in standing:
            assert any(int(each.mac) in one for one in recent)
            assert sum(int(each.mac) in one for one in rounds[: number + 1]) >= BELIEVED_ROUNDS


def test_a_vip_that_is_another_s_is_told_with_both_ways_out():
    said = not_taken(THIEF, Owner("gpu-1 (10.0.0.21)"), "eth0")
    assert said.startswith("10.9.0.100 is not put on eth0: 02:00:00:00:00:21 (backend gpu-1 (10.0")
    assert said.endswith("`ip address add 10.9.0.100/32 dev eth0`")
    assert "fd09::100/128" in not_taken(Claim(OTHER, THIEF.mac), None, "eth0")


@pytest.mark.parametrize(
    ("claim", "owner", "words"),
    [
        (THIEF, Owner("gpu-1 (10.0.0.21)"),
         "too: it is backend gpu-1 (10.0.0.21), which has to keep silent"),
        (Claim(OTHER, THIEF.mac), Owner("gpu-1"), "gpu-1, which has to have it on lo alone"),
        (THIEF, Owner("10.0.0.2", is_balancer=True), "it is balancer 10.0.0.2; lbctl failover"),
        (Claim(VIP, "00:00:5e:00:01:33"), None, "virtual MAC of VRRP router 51, whose master is"),
        (Claim(OTHER, "00:00:5e:00:02:01"), None, "virtual MAC of VRRP router 1, whose master is"),
        (THIEF, None, "02:00:00:00:00:21 answers for 10.9.0.100, too: it is no backend's"),
    ],
)  # fmt: skip
def test_who_it_is_is_said_and_what_has_to_be_done(claim: Claim, owner: Owner | None, words: str):
    assert words in in_words(claim, owner)
