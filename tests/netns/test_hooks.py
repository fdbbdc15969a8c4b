"""The whole agent at each hook: what it says, and changes of the program under load."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import attach, libbpf
from agent.dataplane.compile import compile_program
from agent.model import Forward, Hook
from lbctl.lab import processes
from tests.netns import peers
from tests.netns.segment import inside
from tests.netns.site import Site, assert_unharmed, site, wait_until
from tests.packet.test_swap import CALLER


def status(on: Site) -> Any:
    return on.get("/v1/status")["dataplane"]


def attached_xdp(on: Site) -> int:
    return on.xdp_program_id()


def filters(on: Site) -> list[dict[str, Any]]:
    shown = on.run(on.balancer.name, "tc", "-j", "filter", "show", "dev", "eth0", "ingress")
    return [entry["options"] for entry in json.loads(shown.stdout) if entry.get("options")]


def doctor(on: Site) -> dict[str, Any]:
    command = processes.program("lbctl", "lbctl.main")
    socket = str(on.lab.socket(on.balancer))
    done = on.run(on.balancer.name, *command, "--socket", socket, "doctor", "-o", "json")
    return {one["check"]: one for one in json.loads(done.stdout)["findings"]}


def another_feature(on: Site) -> None:
    """Services that need what the running program lacks."""
    document = on.config()
    document["services"] += peers.unasked()
    before = status(on)["program_id"]
    on.reload(document)
    assert status(on)["program_id"] != before
    assert "quic" in status(on)["features"]


def take_through(on: Site) -> None:
    """A new feature, a kill, a restart: no request fails."""
    with on.load(rate=200) as load:
        another_feature(on)
        on.stop_agent(signal.SIGKILL)
        on.start_agent()
    assert_unharmed(load)
    assert status(on)["attached"]


def check_hook(on: Site, hook: Hook) -> None:
    told = status(on)
    assert (told["hook"], told["hook_reason"]) == (hook.value, "configured")
    assert bool(filters(on)) == (hook is Hook.TC)
    assert bool(attached_xdp(on)) == (hook is not Hook.TC)


def detach(on: Site) -> None:
    done = on.agent("detach", "--config", str(on.lab.config_path(on.balancer)))
    assert done.returncode == 1, "an agent runs"
    on.stop_agent(signal.SIGTERM)
    done = on.agent("detach", "--config", str(on.lab.config_path(on.balancer)))
    assert done.returncode == 0, done.stderr


# Native is where every lab of test_agent is, and generic XDP runs its program.
@pytest.mark.soak
@pytest.mark.parametrize("hook", [Hook.TC, Hook.NATIVE, Hook.GENERIC])
def test_the_agent_is_at_the_hook_that_is_configured(hook: Hook) -> None:
    with site(name="st-hook", backends=2, hook=hook) as on:
        check_hook(on, hook)
        take_through(on)
        detach(on)
        assert (filters(on), attached_xdp(on)) == ([], 0)


@pytest.mark.soak  # tests/packet/test_attach.py has each step of it
def test_a_program_that_somebody_took_off_at_tc_is_put_back_and_behind_a_caller_is_none() -> None:
    with site(name="st-hook", backends=2, hook=Hook.TC) as on:
        check_hook(on, Hook.TC)
        on.signal_agent(signal.SIGSTOP)  # or it may be back before we look
        try:
            on.run(on.balancer.name, "tc", "qdisc", "del", "dev", "eth0", "clsact")
            assert filters(on) == []
        finally:
            on.signal_agent(signal.SIGCONT)
        wait_until("the filter is back", lambda: bool(filters(on)))
        wait_until("attached", lambda: status(on)["attached"])
        on.stop_agent(signal.SIGTERM)
        on.write_config(on.config() | {"hook": "external"})
        on.start_agent()
        told = status(on)
        assert (told["hook"], told["attached"]) == ("external", True)
        entry = Path("/sys/fs/bpf/steelyard", on.balancer.namespace, "entry")
        assert str(entry) in told["hook_reason"]
        assert (filters(on), attached_xdp(on)) == ([], 0)
        caller = compile_program(CALLER.replace("PATH", str(entry)), "caller", {})
        with inside(on.balancer.namespace):
            libbpf.xdp_attach(attach.interface_index("eth0"), caller.fd, libbpf.XDP_SKB_MODE)
        theirs = attached_xdp(on)
        wait_until("the backends are up", lambda: on.get("/v1/services/web")["backends_up"] == 2)
        take_through(on)
        assert attached_xdp(on) == theirs == caller.info.id
        assert doctor(on)["external"]["verdict"] == "ok"
        detach(on)
        assert (filters(on), attached_xdp(on)) == ([], theirs)


@pytest.mark.soak
@pytest.mark.parametrize("hook", [Hook.NATIVE, Hook.TC])
def test_two_interfaces_carry_the_two_directions_of_nat(hook: Hook) -> None:
    with site(name="st-hook", backends=2, forward=Forward.NAT, arms=2, hook=hook) as on:
        assert status(on)["backend_interfaces"] == ["eth1"]
        take_through(on)
        assert on.backend("web", "be1")["reply_packets_total"] > 0
