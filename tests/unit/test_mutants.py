"""The breakages of ``make mutants`` can be made: their places are there, and so are their tests."""

from __future__ import annotations

import re

import pytest

from tests.mutants.__main__ import ROOT
from tests.mutants.catalogue import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_there_once_and_so_are_its_tests(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert [each for each in mutant.tests if not (ROOT / "tests" / each).exists()] == []


@pytest.mark.parametrize("name", ["Makefile", "CONTRIBUTING.md"])
def test_their_number_is_written_where_people_read_it(name: str) -> None:
    (found,) = re.findall(r"(\d+) breakages", (ROOT / name).read_text(encoding="utf-8"))
    assert int(found) == len(MUTANTS)


def test_names_are_told_apart() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
