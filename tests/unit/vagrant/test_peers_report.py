"""The figures of all rounds, the page, and what another run can be added to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.machine import Machine
from vagrant.peers import plan, report
from vagrant.peers.accounting import Spent
from vagrant.peers.report import Balancer, Kept
from vagrant.peers.rounds import Asked, Measurement
from vagrant.smoke.report import Guests

DOCS = Path(__file__).parents[3] / "docs"
HOST = Machine(
    "Some CPU", 2, "L1 32K", "yes", "Linux 6.1", "on", "none", "3.13", "abc", "2026-01-02"
)
GUESTS = Guests(HOST, "qemu", "Linux 6.12", 3584, ("client", "lb1"), None)
BALANCER = Balancer("Keepalived v2.3.3", "on", "Retpolines", 2, {"Steelyard": "name: peers"})
IDLE = Spent(
    wall_s=10,
    vcpu_s=1,
    vcpu_waited_s=0,
    device_s=0.2,
    others_s=1,
    guest_wall_s=10,
    guest_busy_s=1,
)


def measured(contender: str, mode: str, round_: int, vcpu_s: float, failed: int = 0) -> Measurement:
    """1,000 connections in 10 s that cost the processors so much above idling."""
    asked = Asked(1000, 0, 10.0, {"be1": 1000 - failed}, {"refused": failed} if failed else {})
    loaded = replace(IDLE, vcpu_s=1 + vcpu_s, guest_busy_s=1 + 2 * vcpu_s)
    return Measurement(contender, mode, mode.upper(), round_, asked, IDLE, loaded)


def kept(*taken: Measurement) -> Kept:
    return Kept(GUESTS, BALANCER, plan.EMULATED, taken)


TAKEN = (
    measured("Steelyard", "dsr", 0, 0.5),
    measured("IPVS", "dsr", 0, 1.0),
    measured("IPVS", "dsr", 1, 1.2, failed=3),
    measured("Steelyard", "dsr", 1, 0.7),
    measured("IPVS", "dsr", 2, 2.0),
    measured("Steelyard", "dsr", 2, 0.6),
)


def test_rounds_of_a_side_are_one_row() -> None:
    ours, theirs = report.rows(TAKEN)
    assert (ours.contender, ours.rounds, ours.connections, ours.failed) == ("Steelyard", 3, 3000, 0)
    assert ours.vcpu_s == pytest.approx((5.0, 7.0, 6.0))
    assert ours.guest_s == pytest.approx((10.0, 14.0, 12.0))
    assert theirs.failed == 3
    assert ours.idle_vcpu == pytest.approx(0.1)
    assert ours.rate_per_s == pytest.approx(100)


def test_the_ratio_is_that_of_the_medians_whoever_came_first() -> None:
    for taken in (TAKEN, TAKEN[::-1]):
        assert report.ratios(report.rows(taken))["dsr"] == pytest.approx((2.0, 2.0))


def test_one_side_alone_has_no_ratio() -> None:
    assert report.ratios(report.rows(TAKEN[:1])) == {}


def test_the_page_says_what_it_is_of() -> None:
    page = report.markdown(kept(*TAKEN))
    assert "| dsr (DSR) | Steelyard | 12.0 (10.0 to 14.0) | 6.0 (5.0 to 7.0) |" in page
    assert "3 rounds" in page
    assert "Emulated in software" in page
    assert "What emulation does" in page
    assert "Disturbed" in page
    assert "name: peers" in page


def test_rows_of_features_have_four_cells_and_name_documents_that_exist() -> None:
    page = report.markdown(kept(*TAKEN))
    table = page.split("## Features")[1].split("## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        assert len(row) == 4, row
        ours = row[3].rstrip(" |").split("; ")[0]
        for name in ours.split(", "):
            if not name.startswith("`") and name != "README":
                assert (DOCS / f"{name}.md").is_file(), row


def test_measurements_are_disturbed_by_others_on_the_host() -> None:
    # One second in ten of one of two processors, in either half.
    assert TAKEN[0].others_share(cpus=2) == pytest.approx(0.05)
    loud = replace(TAKEN[0], loaded=replace(IDLE, others_s=8))
    assert loud.others_share(cpus=2) == pytest.approx(0.4)
    assert not loud.held_up
    assert "1 of 1 measurements" in report.markdown(kept(loud))


def test_the_page_says_what_a_measurement_may_be_wrong_by() -> None:
    restless = replace(TAKEN[0], idle=replace(IDLE, vcpu_s=1.4))
    # The idling was 10 % and 14 % of a processor: 2 % to either side, of 10 s for 1,000.
    assert "2.0 s for Steelyard, 0.0 s for IPVS" in report.markdown(kept(*TAKEN, restless))


def test_a_guest_whose_clock_stood_still_disturbs_too() -> None:
    held_up = replace(TAKEN[0], idle=replace(IDLE, guest_wall_s=8))
    assert held_up.held_up
    assert "1 of 1 measurements" in report.markdown(kept(held_up))


def test_rounds_can_be_added_to_those_that_were_kept() -> None:
    text = report.as_json(kept(*TAKEN))
    assert report.measurements(text, plan.EMULATED) == TAKEN
    assert json.loads(text)["ipvs_by_steelyard"] == {"dsr": {"guest": 2.0, "host": 2.0}}


def test_rounds_of_another_plan_are_not_added() -> None:
    with pytest.raises(ValueError, match="plan"):
        report.measurements(report.as_json(kept(*TAKEN)), plan.REAL)
