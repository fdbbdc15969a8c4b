"""Decides which columns of a table fit the available width, and formats its lines.

Names are never cut. Prose (the reason of a state) wraps, or moves to a line of its own
below the row; after that the least important columns are left out, and named.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len
from rich.text import Text

GAP = 2
MIN_PROSE = 22
MAX_PROSE_LINES = 2
MIN_PROSE_BELOW = 30


@dataclass(frozen=True, slots=True)
class Column:
    """``drop``: the higher, the sooner the column is left out; 0: never. ``prose``: at most one
    column.
    """

    header: str
    right: bool = False
    drop: int = 0
    prose: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Text and a rich style."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; ``prose_under`` names the column below which prose is placed."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    prose_under: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """The columns kept, by index, with their widths; ``below``: prose is on separate lines."""

    kept: tuple[int, ...]
    widths: dict[int, int]
    below: bool
    dropped: tuple[str, ...]


def fit(table: Table, width: int | None) -> Fit:
    """Return the fullest layout that the width allows."""
    natural = _natural_widths(table)
    every = tuple(range(len(table.columns)))
    if width is None or _total(every, natural) <= width:
        return Fit(every, natural, below=False, dropped=())
    prose = next((i for i in every if table.columns[i].prose), None)
    if prose is not None:
        room = width - (_total(every, natural) - natural[prose])
        if room >= MIN_PROSE and _prose_lines(table, prose, room) <= MAX_PROSE_LINES:
            return Fit(every, natural | {prose: room}, below=False, dropped=())
    kept = [i for i in every if i != prose]
    droppable = sorted(
        (i for i in kept if table.columns[i].drop), key=lambda i: table.columns[i].drop
    )
    dropped: list[int] = []
    while droppable and _total(tuple(kept), natural) > width:
        dropped.append(droppable.pop())
        kept.remove(dropped[-1])
    names = tuple(table.columns[i].header for i in sorted(dropped))
    return Fit(tuple(kept), natural, below=prose is not None, dropped=names)


def lines(table: Table, width: int | None) -> tuple[list[Text], tuple[str, ...]]:
    """Return the table as lines, header first, and the headers of the columns left out."""
    chosen = fit(table, width)
    output = [
        _line(table, chosen, [Cell(column.header, "bold") for column in table.columns], wrap=False)
    ]
    for row in table.rows:
        output.append(_line(table, chosen, list(row), wrap=True))
        if chosen.below:
            output.extend(_prose_below(table, chosen, row, width or 0))
    return [line for block in output for line in block.split("\n")], chosen.dropped


def _natural_widths(table: Table) -> dict[int, int]:
    return {
        i: max([cell_len(column.header), *(cell_len(row[i].text) for row in table.rows)])
        for i, column in enumerate(table.columns)
    }


def _total(kept: tuple[int, ...], widths: dict[int, int]) -> int:
    return sum(widths[i] for i in kept) + GAP * (len(kept) - 1)


def _prose_lines(table: Table, prose: int, room: int) -> int:
    return max((len(textwrap.wrap(row[prose].text, room)) for row in table.rows), default=0)


def _line(table: Table, chosen: Fit, cells: list[Cell], *, wrap: bool) -> Text:
    """Return one row; prose that wraps makes it several lines of one Text."""
    columns = [
        textwrap.wrap(cells[i].text, max(chosen.widths[i], 1)) or [""]
        if wrap and table.columns[i].prose
        else [cells[i].text]
        for i in chosen.kept
    ]
    rendered = []
    for texts in zip_longest(*columns, fillvalue=""):
        line = Text()
        for position, (i, text) in enumerate(zip(chosen.kept, texts, strict=True)):
            padding = " " * (chosen.widths[i] - cell_len(text))
            if table.columns[i].right:
                line.append(padding)
                padding = ""
            line.append(text, style=cells[i].style)
            if position < len(chosen.kept) - 1:
                line.append(padding + " " * GAP)
        line.rstrip()
        rendered.append(line)
    return Text("\n").join(rendered)


def _prose_below(table: Table, chosen: Fit, row: tuple[Cell, ...], width: int) -> list[Text]:
    prose = next(i for i, column in enumerate(table.columns) if column.prose)
    indent = 0
    for i in chosen.kept:
        if table.columns[i].header == table.prose_under:
            break
        indent += chosen.widths[i] + GAP
    if width - indent < MIN_PROSE_BELOW:
        indent = 4
    wrapped = textwrap.wrap(row[prose].text, max(width - indent, MIN_PROSE))
    return [Text.assemble(" " * indent, (part, "dim")) for part in wrapped]
