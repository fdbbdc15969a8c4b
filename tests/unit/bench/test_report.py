"""The page that `make bench` writes: with Katran's columns where its program ran beside ours."""

from __future__ import annotations

import json

from bench.cases import Case, Result, Table
from bench.machine import Machine
from bench.report import Report, as_json, markdown
from bench.timing import Timing

MACHINE = Machine(*(["x"] * len(Machine.__dataclass_fields__)))  # type: ignore[arg-type]


def timing(ns: float) -> Timing:
    return Timing(ns, ns + 2, 20.0, 7, 1000)


def result(name: str, katran: Timing | None) -> Result:
    case = Case(name, b"", (), Table.EMPTY, target_ns=60.0, beside_katran=True)
    return Result(case, timing(50.0), timing(55.0), katran)


def test_without_katran_there_is_no_column_of_it():
    page = markdown(Report(MACHINE, (result("a", None),), ()))
    assert "Katran" not in page
    assert "| a    |  50 |     52 |                55 |     57 |   ≤ 60 |" in page


def test_beside_katran_ratios_are_of_one_run():
    measured = Report(MACHINE, (result("a", timing(110.0)), result("b", None)), ())
    rows = [line.split("|")[7:-1] for line in markdown(measured).splitlines() if "|" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["Katran: min", "median", "ratio of min", "of median"]
    assert cells[2:] == [["110", "112", "0.50", "0.51"], ["", "", "", ""]]
    data = json.loads(as_json(measured))
    assert data["packets"][0]["katran"]["min_ns"] == 110.0
    assert data["packets"][1]["katran"] is None
