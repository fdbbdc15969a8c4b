"""The figures that pages quote, and the README's pictures: from committed runs, never typed."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bench import pictures, quoted

SVG = "{http://www.w3.org/2000/svg}"
CASES = {"one <fast> & slow": [400.0, 200.0, 100.0], "two": [2400.0, 1.0, 800.0]}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def read(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 (it is our own)


def test_a_block_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError):
        quoted.filled("<!-- figures: speed -->\n<!-- end of figures -->")


def test_the_readme_has_no_figure_that_was_typed() -> None:
    blocks = r"<!-- figures.*?end of figures -->"
    text = re.sub(blocks, "", quoted.PAGES[0].read_text(), flags=re.DOTALL)
    assert not re.findall(r"\d[\d.,]* ?(?:ns|µs|ms)\b", text)


@pytest.mark.parametrize("name", quoted.BLOCKS)
def test_tables_have_as_many_cells_in_each_row(name: str) -> None:
    rows = cells(quoted.BLOCKS[name]())
    assert len(rows) > 2
    assert {len(row) for row in rows} == {len(rows[0])}


def test_a_median_above_its_target_is_bold() -> None:
    rows = {row[0]: row for row in cells(quoted.packets())}
    measured = {each["case"]: each for each in quoted._results("latest")["packets"]}
    for title, pattern in quoted._PACKET_ROWS:
        each = measured[pattern.format("dsr")] if "answers" not in title else None
        if each is not None and each["target_ns"] is not None:
            is_above = each["all_features"]["median_ns"] > each["target_ns"]
            assert ("**" in rows[title][1]) is is_above


def test_bars_are_as_long_as_their_figures() -> None:
    tree = read(pictures.first_token(CASES))
    bars = [one for one in tree.iter(f"{SVG}rect") if one.get("x") == f"{pictures._LEFT}"]
    widths = [float(one.get("width", "")) for one in bars]
    wanted = [ms for times in CASES.values() for ms in times]
    assert len(widths) == len(wanted)
    scale = max(widths) / max(wanted)
    assert all(abs(width - ms * scale) < 0.1 for width, ms in zip(widths, wanted, strict=True))
    words = {one.text for one in tree.iter(f"{SVG}text")}
    assert {"one <fast> & slow", "2,400", "1", *pictures.CONTENDERS} <= words


@pytest.mark.parametrize("made", [pictures.first_token(CASES), pictures.paths()])
def test_pictures_stay_within_their_frame_and_say_what_they_show(made: str) -> None:
    tree = read(made)
    _, _, width, height = map(float, tree.get("viewBox", "").split())
    assert tree.get("aria-label") == tree.findtext(f"{SVG}title")
    for one in tree.iter(f"{SVG}rect"):
        x, y, wide, high = (float(one.get(key, "")) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert x + wide <= width
        assert y >= 0
        assert y + high <= height
