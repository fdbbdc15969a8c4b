"""What has to wait until the open flows have ended, and what need not."""

from __future__ import annotations

import pytest

from agent.config.live import FlowBreak, flow_breaks, refuse_to_cut
from agent.errors import ConflictError
from agent.model import Config
from tests.unit.config.documents import backend, load, service


def config(forward: str = "dsr", nat: object = None, **values: object) -> Config:
    return load(service(forward=forward, backends=[backend(1)], **values), nat=nat)


@pytest.mark.parametrize("old", ["dsr", "ipip", "gue"])
@pytest.mark.parametrize("new", ["dsr", "ipip", "gue"])
def test_between_ways_that_only_the_client_s_packets_go_flows_go_on(old: str, new: str) -> None:
    assert flow_breaks(config(old), config(new)) == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [("dsr", "nat"), ("nat", "dsr"), ("gue", "fullnat"), ("nat", "fullnat"), ("fullnat", "nat")],
)
def test_into_out_of_and_between_nat_flows_would_be_cut(old: str, new: str) -> None:
    assert flow_breaks(config(old), config(new)) == (
        FlowBreak("chat", "forward", f"from {old} to {new}"),
    )


def test_what_stays_threatens_nothing() -> None:
    assert flow_breaks(config("nat"), config("nat", scheduler="maglev")) == ()
    assert flow_breaks(config("fullnat"), config("fullnat", slow_start="5s")) == ()


def test_another_name_is_the_same_service() -> None:
    found = flow_breaks(config("dsr"), config("nat", name="talk"))
    assert [threat.service for threat in found] == ["chat"]


def test_a_service_that_goes_or_moves_is_cut_on_purpose() -> None:
    assert flow_breaks(config("nat"), load()) == ()
    assert flow_breaks(config("nat"), config("dsr", vip="10.0.0.99")) == ()


def test_a_source_can_come_but_not_go_under_flows() -> None:
    one, two = {"sources_ipv4": ["192.0.2.1"]}, {"sources_ipv4": ["192.0.2.2", "192.0.2.1"]}
    assert flow_breaks(config("fullnat", one), config("fullnat", two)) == ()
    assert flow_breaks(config("fullnat", two), config("fullnat", one)) == (
        FlowBreak("chat", "nat.sources_ipv4", "of 192.0.2.2, 192.0.2.1 to 192.0.2.1"),
    )
    assert len(flow_breaks(config("fullnat"), config("fullnat", one))) == 1
    assert len(flow_breaks(config("fullnat", one), config("fullnat"))) == 1


def test_only_services_that_use_a_source_are_threatened_by_its_end() -> None:
    sources = {"sources_ipv4": ["192.0.2.1"]}
    assert flow_breaks(config("nat", sources), config("nat")) == ()
    other_family = {"sources_ipv6": ["fd00::1"]}
    assert flow_breaks(config("fullnat", other_family), config("fullnat")) == ()


def test_open_flows_are_counted_in_the_refusal() -> None:
    found = flow_breaks(config("dsr"), config("nat"))
    with pytest.raises(ConflictError) as caught:
        refuse_to_cut(found, {"chat": 1234, "other": 5})
    assert caught.value.message == (
        "forward: 1,234 open flows could not continue after the change from dsr to nat"
    )
    assert caught.value.where == "service chat"
    assert "lbctl backend drain --wait chat/" in caught.value.remedy


def test_every_service_is_named() -> None:
    found = (
        FlowBreak("a", "forward", "from dsr to nat"),
        FlowBreak("b", "forward", "from nat to dsr"),
    )
    with pytest.raises(ConflictError) as caught:
        refuse_to_cut(found, {"a": 1, "b": 2})
    assert [problem.where for problem in caught.value.problems] == ["service a", "service b"]
    assert caught.value.message.startswith("forward: 1 open flow could")


def test_without_open_flows_nothing_is_refused() -> None:
    refuse_to_cut(flow_breaks(config("dsr"), config("nat")), {"chat": 0})
    refuse_to_cut((), {"chat": 7})
