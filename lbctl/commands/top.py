"""``lbctl top``: a full-screen view, drawn by curses, which only sends what has changed."""

from __future__ import annotations

import contextlib
import curses
import itertools
import locale
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from agent.errors import AgentUnreachableError, SteelyardError
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options

if TYPE_CHECKING:
    from rich.text import Text

    from lbctl.top import Answers, History, Place, Size, View

type Query = dict[str, str | int | None]

SLOW_S = 2.0  # between two queries about the balancer as a whole, and about events
FLOWS_S = 5.0  # reading a large flow table takes the agent a while
KEPT_EVENTS = 500
_LOOK_S = 0.1
_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_LEFT: "left",
    curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
}
_CHARACTERS = {"\n": "enter", "\r": "enter", "\t": "tab", "\x1b": "esc", "\x7f": "backspace",
               "\b": "backspace"}  # fmt: skip
_COLOURS = {
    "red": curses.COLOR_RED,
    "green": curses.COLOR_GREEN,
    "yellow": curses.COLOR_YELLOW,
    "blue": curses.COLOR_BLUE,
    "cyan": curses.COLOR_CYAN,
}


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two refreshes. The agent counts once a second.",
)
@agent_options
@pass_environment
def top(env: Environment, interval_s: float) -> None:
    """Show services, backends and flows on a full screen, as they change.

    The worst come first. Enter opens a service or a backend, escape goes back, ? shows all keys.
    It changes nothing.

    \b
    Examples:
      lbctl top
      lbctl top --interval 0.5
    """
    if env.width is None or not env.interactive:
        raise click.UsageError(
            "top needs a terminal; `lbctl backend list --watch` needs none",
            click.get_current_context(),
        )
    from lbctl.top import Place

    asker = Asker(env, interval_s)
    asker.first()  # a missing agent is an error like any other
    locale.setlocale(locale.LC_ALL, "")
    os.environ.setdefault("ESCDELAY", "100")
    try:
        curses.setupterm()
        if not curses.tigetstr("cup"):
            raise curses.error("its cursor cannot be moved")
        curses.wrapper(lambda window: Screen(env, window, asker).run(Place()))
    except KeyboardInterrupt:
        pass  # another usual end
    except curses.error as error:
        raise click.UsageError(
            f"top cannot draw on this terminal ({error}); TERM says which one it is",
            click.get_current_context(),
        ) from error
    finally:
        asker.stop()


class Asker:
    """Queries the agent for the data of the view, in its own thread, so that keys work even if
    the agent hangs.
    """

    def __init__(self, env: Environment, interval_s: float) -> None:
        from lbctl.top import Answers, History, Place

        self._env = env
        self._interval_s = interval_s
        self._place, self._rows = Place(), 50
        self._history: History = History()
        self._wake = threading.Condition()
        self._wanted = True
        self._ended = False
        self._status: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []
        self._slow_at = self._flows_at = -FLOWS_S
        self.answers: Answers = Answers(self._place.view)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def first(self) -> None:
        """Wait for the first answer. Raises the agent's error."""
        self.answers = self._ask(self._place)
        self._wanted = False
        self._thread.start()

    def want(self, place: Place, rows: int) -> None:
        """Set the place where the person is, and how many rows the screen shows."""
        with self._wake:
            asks_else = _question(place, rows) != _question(self._place, self._rows)
            if place.view.kind is not self._place.view.kind or place.view.of != self._place.view.of:
                self._slow_at = self._flows_at = -FLOWS_S
            self._place, self._rows = place, rows
            if asks_else:
                self._wanted = True
                self._wake.notify()

    def stop(self) -> None:
        """Stop querying, without waiting for a query in progress."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._wanted:
                    self._wake.wait(self._interval_s)
                if self._ended:
                    return
                place, wanted, self._wanted = self._place, self._wanted, False
            if place.paused and not wanted:
                continue
            try:
                self.answers = self._ask(place)
            except AgentUnreachableError:
                self.answers = replace(
                    self.answers, problem="the agent does not answer; trying again"
                )
            except SteelyardError as error:
                self.answers = replace(self.answers, problem=str(error).splitlines()[0])

    def _ask(self, place: Place) -> Answers:
        from lbctl.top import SHOWN_EVENTS, Answers, Kind

        agent, view, now = self._env.agent(5.0), place.view, time.monotonic()
        if now - self._slow_at >= SLOW_S:
            self._slow_at = now
            self._status = agent.get("/v1/status")
            self._history.add("", "new", self._status["rates"]["new_flows_per_s"])
            count = KEPT_EVENTS if view.kind is Kind.EVENTS else SHOWN_EVENTS
            self._events = agent.get("/v1/events", {"limit": count})["events"]
        answers = Answers(
            view,
            self._status,
            events=tuple(self._events),
            history=self._history,
        )
        if view.kind in (Kind.SERVICES, Kind.BACKENDS):
            return self._list(answers, place)
        if view.kind is Kind.BACKEND:
            return self._backend(answers, view)
        if view.kind is Kind.FLOWS:
            return self._flows(answers, view, now)
        return answers

    def _list(self, answers: Answers, place: Place) -> Answers:
        view = place.view
        found = self._env.agent(5.0).get(
            f"/v1/list/{view.kind.value}",
            {
                "sort": place.sort,
                "limit": self._rows,
                "offset": view.first or None,
                "service": view.of or None,
                "match": view.match or None,
            },
        )
        rows = tuple(found[view.kind.value])
        self._note(rows)
        return replace(answers, rows=rows, matched=found["matched"], total=found["total"])

    def _backend(self, answers: Answers, view: View) -> Answers:
        service, _, backend = view.of.partition("/")
        query: Query = {"service": service, "backend": backend, "limit": 1}
        rows = tuple(self._env.agent(5.0).get("/v1/list/backends", query)["backends"])
        self._note(rows)
        mine: Query = {"backend": view.of, "limit": 10}
        events = self._env.agent(5.0).get("/v1/events", mine)["events"]
        return replace(answers, rows=rows, events=tuple(events))

    def _flows(self, answers: Answers, view: View, now: float) -> Answers:
        if now - self._flows_at < FLOWS_S and self.answers.view == view:
            return replace(answers, rows=self.answers.rows, matched=self.answers.matched)
        self._flows_at = now
        service, _, backend = view.of.partition("/")
        query: Query = {"service": service, "backend": backend, "hottest": "true"}
        query["limit"] = self._rows
        found = self._env.agent(5.0).get("/v1/flows", query)
        return replace(answers, rows=tuple(found["flows"]), matched=found["matched"])

    def _note(self, rows: tuple[dict[str, Any], ...]) -> None:
        from lbctl.top import name_of

        for row in rows:
            name = name_of(row)
            self._history.add(name, "new", row["rates"]["new_flows_per_s"])
            if "service" not in row:
                continue
            self._history.add(name, "waiting", row["waiting_bytes"])
            minute = (row["first_byte"] or {}).get("last_minute", {})
            self._history.add(name, "first byte", minute.get("p99_ms"))
            reported = row["reported"] or {}
            self._history.add(name, "queue", reported.get("requests_waiting"))


def _question(place: Place, rows: int) -> tuple[object, ...]:
    """Return the parts of a place that determine the query to the agent."""
    view = place.view
    return view.kind, view.of, view.first, view.match, place.sort, place.paused, rows


class Screen:
    """Draws the screen, and reads keys."""

    def __init__(self, env: Environment, window: curses.window, asker: Asker) -> None:
        self._window, self._asker = window, asker
        self._unicode = "utf" in locale.nl_langinfo(locale.CODESET).lower()
        self._styles = {"bold": curses.A_BOLD, "dim": curses.A_DIM, "reverse": curses.A_REVERSE}
        if curses.has_colors():
            curses.use_default_colors()  # otherwise all would be white on black
        if env.colour and curses.has_colors():
            for number, (name, colour) in enumerate(_COLOURS.items(), 1):
                curses.init_pair(number, colour, -1)
                self._styles[name] = curses.color_pair(number)
        with contextlib.suppress(curses.error):  # some terminals cannot hide it
            curses.curs_set(0)
        window.timeout(int(_LOOK_S * 1000))

    def run(self, place: Place) -> None:
        """Draw and react to keys until the person quits."""
        from lbctl.top import pressed, room_for_rows, screen, settled

        drawn: tuple[Place, Answers, Size] | None = None
        while True:
            answers, size = self._asker.answers, self._size()
            room = room_for_rows(answers, size)
            place = settled(place, answers, room)
            self._asker.want(place, room)
            if drawn is None or drawn[1] is not answers or drawn[::2] != (place, size):
                self._draw(screen(place, answers, size), size)
                drawn = place, answers, size
            key = self._key()
            if key:
                further = pressed(place, key, answers, room)
                if further is None:
                    return
                place = further

    def _size(self) -> Size:
        from lbctl.top import Size

        height, width = self._window.getmaxyx()
        return Size(width, height, self._unicode)

    def _key(self) -> str:
        """Return the name of the next key; empty: none was pressed."""
        try:
            got = self._window.get_wch()
        except curses.error:
            return ""
        if isinstance(got, int):
            if got == curses.KEY_RESIZE:
                curses.update_lines_cols()
            return _KEYS.get(got, "")
        return _CHARACTERS.get(got, got)

    def _draw(self, shown: list[Text], size: Size) -> None:
        self._window.erase()
        for number, line in enumerate(shown[: size.height]):
            self._line(number, line)
        self._window.refresh()

    def _line(self, number: int, line: Text) -> None:
        at = 0
        for text, style in _pieces(line):
            if not self._unicode:
                text = text.encode("ascii", "replace").decode()
            attributes = 0
            for word in style.split():
                attributes |= self._styles.get(word, 0)
            try:
                self._window.addstr(number, at, text, attributes)
            except curses.error:
                return  # the last cell of the screen, or a terminal that is just being resized
            at += len(text)


def _pieces(line: Text) -> list[tuple[str, str]]:
    """Split a line into parts of one style each."""
    plain = line.plain
    cuts = sorted(
        {0, len(plain), *(n for span in line.spans for n in (span.start, span.end))}
        & set(range(len(plain) + 1))
    )
    pieces = []
    for start, end in itertools.pairwise(cuts):
        styles = [str(line.style), *(str(s.style) for s in line.spans if s.start <= start < s.end)]
        pieces.append((plain[start:end], " ".join(filter(None, styles))))
    return pieces
