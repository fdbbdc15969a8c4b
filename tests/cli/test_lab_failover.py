"""What the lab says of balancers that take each other's place: no root, no network."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lbctl.lab import failover, topology, wiring
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({}, None),
        ({"lab/ipv4": "master", "lab/ipv6": "master"}, "master"),
        ({"lab/ipv4": "master", "lab/ipv6": "fault"}, "lab/ipv4 master, lab/ipv6 fault"),
    ],
)
def test_a_balancer_has_one_role_if_its_virtual_routers_agree(
    roles: dict[str, str], said: str | None
) -> None:
    assert failover.summary(roles) == said


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(topology, "RUN_ROOT", tmp_path)
    made = Lab(balancers=2)
    made.run_dir.mkdir()
    return made


def test_a_balancer_without_a_failover_process_has_no_role(lab: Lab) -> None:
    assert failover.roles(lab, lab.node("lb1")) == {}
    with pytest.raises(LabError, match="lb1 should be master and is not answering") as caught:
        failover.await_role(lab, lab.node("lb1"), failover.MASTER, timeout_s=0.0)
    assert "lb1-failover.log" in caught.value.remedy


def test_the_secret_of_the_balancers_is_a_good_one_and_nobody_elses(lab: Lab) -> None:
    failover.make_key(lab)
    assert stat.S_IMODE(lab.key_file.stat().st_mode) == 0o600
    assert len(lab.key_file.read_text().strip()) >= 32


@pytest.mark.parametrize("balancers", [1, 2])
def test_frames_of_a_dead_balancer_are_not_flooded_to_the_one_beside_it(balancers: int) -> None:
    commands = wiring.switch_commands(Lab(balancers=balancers))
    quiet = {command.split()[2] for command in commands if command.endswith("flood off")}
    assert quiet == ({"lb1", "lb2"} if balancers == 2 else set())
