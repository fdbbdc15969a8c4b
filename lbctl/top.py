"""Decides what ``lbctl top`` shows, and what its keys do. Pure: no terminal, no agent.

A person is at a place, which is a stack of views: of services, of the backends of one, of one
backend, of its flows. The agent's answers for the top view come in as ``Answers``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.text import Text

from agent import humanise
from lbctl import views
from lbctl.layout import Cell, Column, Table, lines

type Row = Mapping[str, Any]

SORTS = ("state", "new", "flows", "waiting", "first-byte", "name")
SHOWN_EVENTS = 4
SHOWN_PROBLEMS = 3
MIN_HEIGHT_FOR_EVENTS = 20
MIN_WIDTH, MIN_HEIGHT = 40, 8
MIN_WHY = 30
SPARK = 16  # samples in a sparkline of a table
KEPT = 60
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Kind(enum.Enum):
    """The subject of a view."""

    SERVICES = "services"
    BACKENDS = "backends"
    BACKEND = "backend"
    FLOWS = "flows"
    EVENTS = "events"
    HELP = "help"


_LISTS = (Kind.SERVICES, Kind.BACKENDS)


@dataclass(frozen=True, slots=True)
class View:
    """``of``: a service, or SERVICE/BACKEND; empty: all. ``first``: the first row on the screen."""

    kind: Kind
    of: str = ""
    selected: str = ""  # the row's name; it keeps the cursor when the order changes
    cursor: int = 0
    first: int = 0
    match: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the person is. ``typing``: keys go into the filter."""

    stack: tuple[View, ...] = (View(Kind.SERVICES),)
    sort: str = "state"
    typing: bool = False
    paused: bool = False

    @property
    def view(self) -> View:
        """The top view."""
        return self.stack[-1]

    def with_view(self, **fields: Any) -> Place:
        """Return the same place with the top view changed."""
        return replace(self, stack=(*self.stack[:-1], replace(self.view, **fields)))

    def into(self, kind: Kind, of: str = "") -> Place:
        """Return the place with one more view on top."""
        return replace(self, stack=(*self.stack, View(kind, of)))

    def back(self) -> Place:
        """Return the place without the top view, if there is another one below it."""
        return replace(self, stack=self.stack[:-1] or self.stack) if self.stack[1:] else self


class History:
    """The last samples of each row that was shown, for sparklines. One thread adds to it while
    another one draws.
    """

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], tuple[float, ...]] = {}

    def add(self, name: str, figure: str, value: float | None) -> None:
        """Add a sample of a row's figure; None adds nothing."""
        before = self._samples.get((name, figure), ())
        self._samples[name, figure] = (*before[-KEPT + 1 :], value or 0.0)

    def of(self, name: str, figure: str) -> Sequence[float]:
        """Return the samples, oldest first."""
        return self._samples.get((name, figure), ())


@dataclass(frozen=True, slots=True)
class Answers:
    """What the agent has answered for a view: rows of a list, one backend, or flows.

    ``problem``: why it does not answer now; its last answer is still here.
    """

    view: View
    status: Row = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    matched: int = 0
    total: int = 0
    events: tuple[Row, ...] = ()
    history: History = field(default_factory=History)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the terminal; ``unicode``: it can show bars."""

    width: int
    height: int
    unicode: bool = True


def name_of(row: Row) -> str:
    """Return the name that distinguishes a row from all others of its list."""
    return f"{row['service']}/{row['name']}" if "service" in row else str(row["name"])


# -- keys


def pressed(place: Place, key: str, answers: Answers, room: int) -> Place | None:
    """Return the place that a key leads to; None: quit. ``room``: how many rows the screen has."""
    if place.typing:
        return _typed(place, key)
    view = place.view
    match key:
        case "q":
            return None
        case "esc" | "left" | "backspace":
            return place.with_view(match="") if view.match else place.back()
        case "?" | "h":
            return place.back() if view.kind is Kind.HELP else place.into(Kind.HELP)
        case "e":
            return place.back() if view.kind is Kind.EVENTS else place.into(Kind.EVENTS)
        case "p":
            return replace(place, paused=not place.paused)
        case "tab":
            other = Kind.BACKENDS if place.stack[0].kind is Kind.SERVICES else Kind.SERVICES
            return replace(place, stack=(View(other),))
    if view.kind in _LISTS:
        return _pressed_in_list(place, key, answers, room)
    if key == "f" and view.kind is Kind.BACKEND:
        return place.into(Kind.FLOWS, view.of)
    return place


def _pressed_in_list(place: Place, key: str, answers: Answers, room: int) -> Place:
    view = place.view
    moves = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -(1 << 30),
             "end": 1 << 30}  # fmt: skip
    if key in moves:
        return _moved(place, moves[key], answers, room)
    match key:
        case "s" | "S":
            step = 1 if key == "s" else -1
            sort = SORTS[(SORTS.index(place.sort) + step) % len(SORTS)]
            return replace(place, sort=sort).with_view(selected="", cursor=0, first=0)
        case "/":
            return replace(place, typing=True)
        case "enter" | "right" | "f" if view.selected:
            if view.kind is Kind.SERVICES:
                return place.into(Kind.BACKENDS, view.selected)
            return place.into(Kind.FLOWS if key == "f" else Kind.BACKEND, view.selected)
    return place


def _moved(place: Place, by: int, answers: Answers, room: int) -> Place:
    """Move the cursor some rows; if it leaves the screen, other rows are asked for."""
    view = place.view
    last = max(0, answers.matched - 1)
    cursor = min(max(view.cursor + by, 0), last)
    first = min(max(view.first, cursor - room + 1), cursor)
    at = cursor - answers.view.first
    there = (
        answers.rows[at] if 0 <= at < len(answers.rows) and answers.view.kind is view.kind else None
    )
    return place.with_view(cursor=cursor, first=first, selected=name_of(there) if there else "")


def _typed(place: Place, key: str) -> Place:
    view = place.view
    match key:
        case "enter":
            return replace(place, typing=False)
        case "esc":
            return replace(place, typing=False).with_view(match="", cursor=0, first=0, selected="")
        case "backspace":
            match_ = view.match[:-1]
        case _ if len(key) == 1 and key.isprintable():
            match_ = view.match + key
        case _:
            return place
    return place.with_view(match=match_, cursor=0, first=0, selected="")


def settled(place: Place, answers: Answers, room: int) -> Place:
    """Return the place after the agent's answer: the cursor stays on its row while that is shown,
    and within the list otherwise.
    """
    view = place.view
    if view.kind not in _LISTS or answers.view.kind is not view.kind or answers.view.of != view.of:
        return place
    names = [name_of(row) for row in answers.rows]
    if view.selected in names:
        cursor = answers.view.first + names.index(view.selected)
    else:
        cursor = min(view.cursor, max(0, answers.matched - 1))
    first = min(max(view.first, cursor - room + 1), cursor)
    at = cursor - answers.view.first
    selected = names[at] if 0 <= at < len(names) else ""
    return place.with_view(cursor=cursor, first=first, selected=selected)


# -- the screen


def room_for_rows(answers: Answers, size: Size) -> int:
    """Return how many rows of a list the screen has room for."""
    around = len(_head(answers, size)) + 2 + len(_foot(answers, size)) + 1  # title, header, keys
    return max(1, size.height - around)


def screen(place: Place, answers: Answers, size: Size) -> list[Text]:
    """Return the screen: as many lines as the terminal has, none too long."""
    if size.width < MIN_WIDTH or size.height < MIN_HEIGHT:
        small = f"this terminal is too small: {MIN_WIDTH} columns and {MIN_HEIGHT} lines are needed"
        return [Text(line) for line in _wrapped(small, size.width)][: size.height]
    head, foot = _head(answers, size), _foot(answers, size)
    if place.view.kind in (Kind.EVENTS, Kind.HELP):
        foot = []
    room = size.height - len(head) - 1 - len(foot) - 1
    body = _body(place, answers, size, room)[:room]
    body += [Text()] * (room - len(body))
    found = [*head, _title(place, answers, size), *body, *foot, _keys(place, size)]
    return [_cut(line, size.width) for line in found]


def _head(answers: Answers, size: Size) -> list[Text]:
    from agent.api.sentences import problems, tier_load
    from lbctl.commands.status import headline

    status = answers.status
    if not status:
        return [Text(answers.problem or "asking the agent", "bold red" if answers.problem else "")]
    agent, rates = status["agent"], status["rates"]
    line = headline(agent, status["dataplane"])
    line.append(f", up {humanise.age(agent['uptime_s'])}")
    found = [line]
    bar = sparkline(answers.history.of("", "new"), SPARK, unicode=size.unicode)
    table = status["dataplane"]["flow_table"]
    found.append(
        Text(
            f"{bar}  {views.rates_line(rates)}; {humanise.count(table['established'])} established,"
            f" {humanise.percent(table['used_share'])}% of the flow table in use"
        )
    )
    if (tier := status.get("tier")) and tier["load"]:
        found.append(Text(f"tier: {tier_load(tier['load'])}"))
    wrong = [Text(answers.problem, "bold red")] if answers.problem else []
    wrong += [Text(text, "bold red") for text in problems(status)]
    found += wrong[:SHOWN_PROBLEMS]
    if len(wrong) > SHOWN_PROBLEMS:
        found.append(Text(f"and {len(wrong) - SHOWN_PROBLEMS} more: lbctl status", "red"))
    return found


def _title(place: Place, answers: Answers, size: Size) -> Text:
    view = place.view
    of = "" if view.kind is Kind.BACKEND else "of "
    parts = [f"{view.kind.value} {of}{view.of}" if view.of else view.kind.value]
    if view.kind in _LISTS:
        parts.append(f"{humanise.exact(answers.matched)} of {humanise.exact(answers.total)}")
        parts.append(f"by {place.sort}")
    if view.match or place.typing:
        parts.append(f"/{view.match}{'_' if place.typing else ''}")
    if place.paused:
        parts.append("PAUSED")
    return Text(f" {'   '.join(parts)} ".ljust(size.width), "reverse")


def _body(place: Place, answers: Answers, size: Size, room: int) -> list[Text]:
    view = place.view
    if view.kind is Kind.HELP:
        return [Text(line) for line in HELP.splitlines()]
    if view.kind is Kind.EVENTS:
        return _events(answers.events, size, room)
    if answers.view.kind is not view.kind or answers.view.of != view.of:
        return [Text("asking the agent", "dim")]
    if view.kind is Kind.BACKEND:
        return _backend(answers, size)
    if view.kind is Kind.FLOWS:
        return _flows(answers, size)
    if not answers.rows:
        return [Text("nothing matches; esc shows all" if view.match else "there are none", "dim")]
    shown = answers.rows[max(0, view.first - answers.view.first) :]
    if view.kind is Kind.SERVICES:
        table = views.service_table(shown)
    else:
        table = views.backend_table(shown, with_service=not view.of)
    body = _one_line_each(_with_sparklines(table, shown, answers.history, size), size.width)
    at = 1 + view.cursor - view.first
    if 0 < at < len(body):
        body[at] = _reversed(body[at], size.width)
    return body


def _with_sparklines(table: Table, rows: Iterable[Row], history: History, size: Size) -> Table:
    at = next(n for n, column in enumerate(table.columns) if column.header == "NEW/S") + 1
    cells = []
    for row, shown in zip(rows, table.rows, strict=True):
        bar = sparkline(history.of(name_of(row), "new"), SPARK, unicode=size.unicode)
        cells.append((*shown[:at], Cell(bar, "cyan"), *shown[at:]))
    column = Column("".ljust(SPARK), drop=7)
    return replace(
        table, columns=(*table.columns[:at], column, *table.columns[at:]), rows=tuple(cells)
    )


def _one_line_each(table: Table, width: int) -> list[Text]:
    """Return one line per row: prose comes last, and less important columns make room for it."""
    prose = next((n for n, column in enumerate(table.columns) if column.prose), None)
    if prose is None:
        return lines(table, width)[0]
    others = replace(
        table,
        columns=(*table.columns[:prose], *table.columns[prose + 1 :]),
        rows=tuple((*row[:prose], *row[prose + 1 :]) for row in table.rows),
    )
    found, _ = lines(others, max(width - 2 - MIN_WHY, MIN_WIDTH))
    words = ["WHY", *(row[prose].text for row in table.rows)]
    start = max(len(line.plain) for line in found) + 2
    for line, text in zip(found, words, strict=True):
        line.append(" " * (start - len(line.plain)))
        line.append(text, "bold" if line is found[0] else "dim")
    return found


def _backend(answers: Answers, size: Size) -> list[Text]:
    from lbctl.commands.backend import facts_of

    if not answers.rows:
        return [Text("this backend was removed; esc goes back", "dim")]
    row = answers.rows[0]
    name = name_of(row)
    trends = [
        (label, sparkline(answers.history.of(name, figure), KEPT, unicode=size.unicode))
        for label, figure in (
            ("new flows", "new"), ("waiting", "waiting"), ("first byte", "first byte"),
            ("queue", "queue"),
        )
        if any(answers.history.of(name, figure))
    ]  # fmt: skip
    found = facts_of(size.width, row, answers.events)
    return found + [Text.assemble((f"{label:<14}", "bold"), (bar, "cyan")) for label, bar in trends]


def _flows(answers: Answers, size: Size) -> list[Text]:
    from lbctl.commands.flows import flow_table

    if not answers.rows:
        return [Text("no flow is recorded", "dim")]
    shown = lines(flow_table(answers.rows), size.width)[0]
    if answers.matched > len(answers.rows):
        more = f"the busiest {len(answers.rows)} of {humanise.exact(answers.matched)}"
        shown.insert(0, Text(more, "dim"))
    return shown


def _events(events: Sequence[Row], size: Size, room: int) -> list[Text]:
    from lbctl.commands.events import lines as event_lines

    return [_cut(line, size.width) for line in event_lines(events[-room:])]


def _foot(answers: Answers, size: Size) -> list[Text]:
    own = answers.view.kind is Kind.BACKEND  # this view shows its own events
    if size.height < MIN_HEIGHT_FOR_EVENTS or not answers.events or own:
        return []
    return _events(answers.events, size, SHOWN_EVENTS)


def _keys(place: Place, size: Size) -> Text:
    if place.typing:
        return Text("type a part of a name or an address; enter keeps it, esc drops it", "dim")
    keys = ["q quit"]
    keys += ["esc back"] if len(place.stack) > 1 or place.view.match else []
    if place.view.kind in _LISTS:
        keys += ["enter into", "s sort", "/ filter", "tab services or backends"]
    if place.view.kind in (Kind.BACKENDS, Kind.BACKEND):
        keys.append("f flows")
    keys += ["e events", "p pause", "? help"]
    text = "  ".join(keys)
    return Text(text if len(text) <= size.width else "q quit  esc back  ? help", "dim")


HELP = """\
up down pgup pgdn home end   move
enter, right                 into a service or a backend
esc, left                    back; takes a filter off first
tab                          all services, or all backends
s, S                         sort by the next figure, or the one before
/                            only names and addresses that contain a text
f                            flows of a backend, the busiest first
e                            all events
p                            pause, and go on
q                            quit

state sorts the worst first, the others the largest first.
The bars show the new flows of the last samples, since the row was first shown.
Nothing here changes anything; lbctl backend and lbctl server do.
"""


def sparkline(values: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """Return the last ``width`` values as bars; the largest value has the full height."""
    bars = _BARS if unicode else _ASCII_BARS
    shown = values[-width:]
    most = max(shown, default=0.0)
    if most <= 0:
        return (bars[0] * len(shown)).rjust(width)
    steps = (min(int(value / most * len(bars)), len(bars) - 1) for value in shown)
    return "".join(bars[max(0, step)] for step in steps).rjust(width)


def _reversed(line: Text, width: int) -> Text:
    return Text(line.plain.ljust(width), "reverse")


def _cut(line: Text, width: int) -> Text:
    """Cut the line to the width, with a mark if something is left out."""
    if len(line.plain) <= width:
        return line
    cut = line.copy()
    cut.truncate(width, overflow="ellipsis")
    return cut


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(1, width))
