"""The doctor on hooks: who else sits there, and what each needs."""

from __future__ import annotations

import dataclasses

import pytest

from lbctl.doctor.facts import (
    Entry,
    Filter,
    Program,
)
from tests.cli.doctor_facts import (
    BALANCER,
    CARD,
    HOST,
    RUNNING,
    TAGGED,
    facts,
    verdicts,
    with_hook,
)


def test_tc_takes_large_packets_any_driver_and_hidden_tags():
    link = dataclasses.replace(
        CARD, mtu=9000, xdp_features=frozenset(), filters=(Filter(10, "bpf", "balancer", 42),)
    )
    assert verdicts(with_hook("tc", link, TAGGED)) == {}


def test_hook_that_is_only_configured_counts_until_one_is_used():
    agent = dataclasses.replace(RUNNING, config={"services": [], "hook": "tc"})
    assert "mtu" not in verdicts(facts(dataclasses.replace(CARD, mtu=9000), agent=agent))


OTHER = Program(7, "other", "native")


def test_with_tc_and_external_another_xdp_program_is_no_problem():
    link = dataclasses.replace(CARD, program=OTHER, filters=())
    assert verdicts(with_hook("tc", link)) == {}
    called = Entry("/x/edge-1/entry", 42, ("steelyard",))
    assert verdicts(with_hook("external", link, entry=called)) == {}
    fix = verdicts(facts(link))["other XDP"].fix
    assert "hook: external" in fix
    assert "hook: tc" in fix


@pytest.mark.parametrize(
    ("entry", "root", "verdict", "fix"),
    [
        (None, True, "problem", "restart lb-agent"),
        (Entry("/x/edge-1/entry", 0, ()), True, "problem", "restart lb-agent"),
        (None, False, "unknown", "sudo"),
        (Entry("/x/edge-1/entry", 42, ()), True, "warning", "--pin-path /x/edge-1 "),
    ],
)
def test_external_needs_a_program_in_the_slot_and_a_caller(entry, root, verdict, fix):
    found = with_hook("external", entry=entry, host=dataclasses.replace(HOST, root=root))
    finding = verdicts(found)["external"]
    assert finding.verdict.value == verdict
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("filters", "verdict"),
    [
        ((), None),
        ((Filter(10, "bpf", "balancer", 42), Filter(49152, "u32", "")), None),
        ((Filter(1, "bpf", "cil_from_netdev", 9),), "warning"),
        ((Filter(10, "flower", ""),), "problem"),
        ((Filter(10, "bpf", "theirs", 9),), "problem"),
        (None, "unknown"),
    ],
)
def test_filters_before_ours_are_told_of(filters, verdict):
    found = with_hook("tc", dataclasses.replace(CARD, filters=filters))
    finding = verdicts(found).get("tc")
    assert (finding and finding.verdict.value) == verdict


def test_every_interface_of_the_agent_is_examined():
    second = dataclasses.replace(CARD, name="eth1", up=False)
    ask = dataclasses.replace(BALANCER, others=("eth1",))
    finding = verdicts(facts(CARD, second), ask)["interface"]
    assert finding.message == "eth1: eth1 is down"


def test_native_xdp_between_interfaces_needs_drivers_that_send():
    sends = dataclasses.replace(CARD, xdp_features=frozenset({"basic", "ndo-xmit"}))
    second = dataclasses.replace(CARD, name="eth1")
    ask = dataclasses.replace(BALANCER, others=("eth1",))
    assert "out on eth1 with" in verdicts(facts(sends, second), ask)["redirect"].message
    able = dataclasses.replace(sends, name="eth1")
    assert "redirect" not in verdicts(facts(sends, able), ask)
    assert "redirect" not in verdicts(with_hook("tc", sends, second), ask)


@pytest.mark.parametrize(
    ("ident", "pinned", "root", "verdict"),
    [
        (42, frozenset(), True, None),  # the running agent's
        (7, frozenset({7}), True, None),  # left by an agent that is stopped
        (7, frozenset(), True, "problem"),
        (7, frozenset(), False, "unknown"),
    ],
)
def test_only_a_strangers_program_is_a_problem(ident, pinned, root, verdict):
    link = dataclasses.replace(CARD, program=Program(ident, "other", "native"))
    found = facts(link, host=dataclasses.replace(HOST, root=root), pinned=pinned)
    finding = verdicts(found).get("other XDP")
    assert (finding and finding.verdict.value) == verdict
