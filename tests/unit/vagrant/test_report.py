"""What is printed and kept of a run."""

from __future__ import annotations

import json

from bench.machine import Machine
from lbctl.lab.judge import Outcome
from vagrant.smoke import report
from vagrant.smoke.report import Guests, Result

HOST = Machine("cpu", 2, "L2", "yes", "Linux", "on", "none", "3.13", "abc", "2026-01-01")
NAMES = ("client", "lb1", "lb2", "be1")


def guests(virtualization: str = "qemu") -> Guests:
    return Guests(HOST, virtualization, "Linux 6.12", 3584, NAMES, 240.0)


def result(*problems: str, name: str = "drain") -> Result:
    outcome = Outcome(problems=list(problems))
    outcome.say("120 requests | none failed")
    outcome.count("requests failed", 0)
    outcome.count("out of use after", 2.345, "s")
    return Result.of(name, "a backend is drained", 61.24, outcome)


def test_the_last_line_names_the_first_row_that_failed() -> None:
    assert report.conclusion([result()], 130.0) == "vagrant: ok (1 rows in 2 min)"
    found = [result(name="dsr-ipv4"), result("it broke\nhere", "and there"), result("too")]
    line = report.conclusion(found, 130.0)
    assert line == "vagrant: FAILED: drain: it broke here; and there (and 1 more rows)"


def test_a_row_prints_what_it_found() -> None:
    assert list(report.lines(result("it broke"))) == [
        "drain: FAILED: a backend is drained (61 s)",
        "  120 requests | none failed",
        "  not as it should be: it broke",
    ]


def test_the_table_has_every_figure() -> None:
    assert list(report.table([result()])) == [
        "drain  requests failed     0",
        "       out of use after  2.3  s",
    ]


def test_the_page_is_made_of_what_is_kept() -> None:
    document = report.document(guests(), [result(), result("it broke")], 600.0)
    page = report.markdown(json.loads(report.as_json(document)))
    assert page == report.markdown(document)
    assert "| drain | ok: a backend is drained | 120 requests \\| none failed |" in page
    assert "FAILED: a backend is drained | **it broke**<br>120 requests" in page
    assert not document["ok"]


def test_the_page_says_when_processors_were_software() -> None:
    assert "Emulated" in report.markdown(report.document(guests(), [result()], 600.0))
    real = report.markdown(report.document(guests("kvm"), [result()], 600.0))
    assert "Emulated" not in real
    assert "kvm" in real
