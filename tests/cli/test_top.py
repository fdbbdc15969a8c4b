"""``lbctl top``: what keys do, what is shown, and both on a terminal that is not ours."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.top import (
    SORTS,
    Answers,
    History,
    Kind,
    Place,
    Size,
    View,
    pressed,
    room_for_rows,
    screen,
    settled,
    sparkline,
)
from tests.cli.conftest import FLOW, STATUS, FakeAgent, backend_view, service_view
from tests.cli.terminal import Terminal

EVENT = {
    "number": 7,
    "at": "2026-01-02T03:04:05.000Z",
    "level": "warning",
    "event": "backend",
    "service": "chat",
    "backend": "chat/gpu-3",
    "fields": {"old": "up", "new": "down", "why": "connection refused"},
}
KEYS = ("up", "down", "left", "right", "enter", "esc", "tab", "home", "end", "page up",
        "page down", "s", "S", "/", "f", "e", "p", "?", "backspace", "x")  # fmt: skip
WIDE, NARROW = Size(200, 50), Size(80, 24)


def answers_of(view: View, count: int = 60) -> Answers:
    """The agent's answer for a view, with so many backends in all."""
    rows: list[dict[str, Any]] = []
    if view.kind is Kind.SERVICES:
        rows = [service_view() | {"name": f"chat-{n}"} for n in range(count)]
    elif view.kind is Kind.BACKENDS:
        rows = [backend_view(f"gpu-{n}", f"10.0.0.{n}") for n in range(count)]
    elif view.kind is Kind.BACKEND:
        rows = [backend_view("gpu-1", "10.0.0.21")]
    elif view.kind is Kind.FLOWS:
        rows = [dict(FLOW)]
    found = [row for row in rows if view.match in row.get("name", "")]
    return Answers(view, STATUS, tuple(found[view.first :]), len(found), len(rows), (EVENT,))


def answered(place: Place, size: Size = NARROW) -> tuple[Place, Answers]:
    """A place with its answer, the cursor where it belongs."""
    answers = answers_of(place.view)
    return settled(place, answers, room_for_rows(answers, size)), answers


def after(*keys: str, place: Place | None = None) -> Place:
    """The place that some keys lead to."""
    place, answers = answered(place or Place())
    for key in keys:
        found = pressed(place, key, answers, room_for_rows(answers, NARROW))
        assert found is not None
        place, answers = answered(found)
    return place


# -- keys


def test_enter_goes_in_and_escape_comes_back():
    assert after("enter").view == replace(View(Kind.BACKENDS, "chat-0"), selected="chat/gpu-0")
    assert after("enter", "down", "enter").view == View(Kind.BACKEND, "chat/gpu-1")
    assert after("enter", "enter", "f").view == View(Kind.FLOWS, "chat/gpu-0")
    assert after("enter", "down", "f").view == View(Kind.FLOWS, "chat/gpu-1")
    assert after("enter", "enter", "f", "esc", "esc", "esc", "esc").view.kind is Kind.SERVICES
    assert after("tab").view.kind is Kind.BACKENDS
    assert after("tab", "tab").view.kind is Kind.SERVICES


def test_q_leaves_but_not_out_of_a_filter():
    place, answers = answered(Place())
    assert pressed(place, "q", answers, 9) is None
    assert after("/", "q").view.match == "q"


def test_a_filter_is_typed_kept_and_dropped():
    assert after("/", "7").view.match == "7"
    kept = after("/", "5", "7", "enter")
    assert (kept.typing, kept.view.match, kept.view.selected) == (False, "57", "chat-57")
    assert after("/", "5", "7", "backspace").view.match == "5"
    assert after("/", "5", "esc").view.match == ""
    assert after("esc", place=kept).view.match == ""
    assert after("/", "z").view.selected == ""
    assert after("/", "z", "enter", "enter").view.kind is Kind.SERVICES, "there is nothing to enter"


def test_sorting_goes_round_and_starts_at_the_top():
    assert [after(*["s"] * n).sort for n in range(len(SORTS) + 1)] == [*SORTS, SORTS[0]]
    assert after("S").sort == SORTS[-1]
    assert after("end", "s").view.cursor == 0


def test_the_cursor_stays_on_its_row_when_the_order_changes():
    place, answers = answered(after("down", "down"))
    other = replace(answers, rows=tuple(reversed(answers.rows)))
    moved = settled(place, other, 10)
    assert (moved.view.selected, moved.view.cursor) == ("chat-2", 57)
    assert moved.view.first <= 57 < moved.view.first + 10
    gone = settled(place, replace(answers, rows=answers.rows[:2], matched=2), 10)
    assert (gone.view.selected, gone.view.cursor) == ("chat-1", 1)
    assert settled(place, replace(answers, rows=(), matched=0), 10).view.selected == ""


@given(st.lists(st.sampled_from(KEYS), max_size=30), st.sampled_from([NARROW, WIDE, Size(40, 8)]))
def test_whatever_is_pressed_the_screen_is_whole(keys: list[str], size: Size):
    place, answers = answered(Place(), size)
    for key in keys:
        room = room_for_rows(answers, size)
        further = pressed(place, key, answers, room)
        assert further is not None
        place, answers = answered(further, size)
        shown = screen(place, answers, size)
        assert len(shown) == size.height
        assert all(len(line.plain) <= size.width for line in shown)
        if place.view.kind in (Kind.SERVICES, Kind.BACKENDS) and answers.matched:
            view = place.view
            assert view.first <= view.cursor < view.first + room_for_rows(answers, size)
            chosen = [n for n, line in enumerate(shown) if line.style == "reverse"]
            assert len(chosen) == 2, "the title, and the row with the cursor"
            assert view.selected.rpartition("/")[2] in shown[chosen[1]].plain


# -- the screen


def text_of(place: Place, answers: Answers, size: Size) -> str:
    return "\n".join(line.plain for line in screen(place, answers, size))


@pytest.mark.parametrize("size", [NARROW, WIDE])
def test_services_problems_and_events_are_on_one_screen(size: Size):
    place, answers = answered(Place(), size)
    answers = replace(answers, status=STATUS | {"unserved": [
        {"service": "chat", "since_s": 7.0, "reason": "none of 3 backends is up", "clients": "drop"}
    ]})  # fmt: skip
    shown = text_of(place, answers, size)
    assert "edge-1: balancing on eth0" in shown
    assert "service chat serves nobody for 7s" in shown
    assert "services   60 of 60   by state" in shown
    assert "chat-0" in shown
    assert "chat/gpu-3  up → down: connection refused" in shown
    assert "q quit" in shown


def test_an_agent_that_is_away_is_said_above_what_it_said_last():
    place, answers = answered(Place())
    shown = text_of(
        place, replace(answers, problem="the agent does not answer; trying again"), NARROW
    )
    assert "does not answer" in shown
    assert "chat-0" in shown


def test_one_backend_is_shown_in_full_with_its_trends():
    place = Place((View(Kind.BACKEND, "chat/gpu-1"),))
    history = History()
    for value in (1.0, 5.0, 10.0):
        history.add("chat/gpu-1", "new", value)
        history.add("chat/gpu-1", "queue", None)
    shown = text_of(place, replace(answers_of(place.view), history=history), Size(120, 50))
    assert "backend chat/gpu-1" in shown
    assert "287ms/1.9s" in shown
    assert "▁▅█" in shown
    assert "queue" not in shown, "nothing was reported"
    gone = replace(answers_of(place.view), rows=())
    assert "this backend was removed" in text_of(place, gone, NARROW)


def test_a_terminal_that_is_too_small_is_told_so():
    place, answers = answered(Place())
    assert "too small" in text_of(place, answers, Size(39, 24))
    assert len(screen(place, answers, Size(30, 2))) == 2


def test_sparklines_are_as_high_as_their_largest_value():
    assert sparkline([0, 1, 2, 4], 6) == "  ▁▃▅█"
    assert sparkline([0, 1, 2, 4], 3) == "▃▅█"
    assert sparkline([0, 0], 3) == " ▁▁"
    assert sparkline([], 2) == "  "
    assert sparkline([0, 8], 2, unicode=False) == "_#"


# -- the terminal


@contextlib.contextmanager
def terminal(
    agent: FakeAgent, *words: str, size: tuple[int, int] = (100, 30), **more: str
) -> Iterator[Terminal]:
    agent.events = [EVENT]
    with Terminal(str(agent.socket), *words, size=size, **more) as made:
        yield made


def test_keys_lead_through_services_backends_and_flows(agent: FakeAgent):
    with terminal(agent, "--interval", "0.2") as here:
        here.until("services   1 of 1   by state")
        here.until("connection refused")
        here.press("\n")
        here.until("backends of chat   3 of 3")
        here.press("\x1bOB")  # down
        here.press("\n")
        here.until("backend chat/gpu-2")
        here.until("drained by the operator")
        here.press("f")
        here.until("flows of chat/gpu-2")
        here.until("198.51.100.7")
        here.press("\x1b")
        here.press("\x1b")
        here.until("backends of chat")
        here.press("/3")
        here.until("1 of 3   by state   /3_")
        here.press("\x1b")
        here.until("3 of 3")
        here.press("?")
        here.until("Nothing here changes anything")
        here.press("q")
        assert here.end() == 0
    asked = [query for path, query in agent.queries if path == "/v1/list/backends"]
    assert {"service": "chat", "backend": "gpu-2", "limit": "1"} in asked
    assert any(query.get("match") == "3" for query in asked)


def test_it_follows_the_terminals_size_and_waits_for_an_agent_that_restarts(agent: FakeAgent):
    with terminal(agent, "--interval", "0.2", size=(200, 50)) as here:
        here.until("BIT/S")
        here.resize(60, 20)
        here.until(lambda: "BIT/S" not in here.text() and "STATE" in here.text())
        hidden = agent.socket.with_suffix(".away")
        agent.socket.rename(hidden)
        here.until("the agent does not answer")
        hidden.rename(agent.socket)
        here.until(lambda: "does not answer" not in here.text())
        here.process.send_signal(signal.SIGINT)
        assert here.end() == 0


def test_without_colours_and_bars_all_is_said(agent: FakeAgent):
    with terminal(agent, NO_COLOR="1", LC_ALL="C") as here:
        here.until("services   1 of 1")
        here.until("degraded")
        colours = {char.fg for line in here.shown.buffer.values() for char in line.values()}
        assert colours == {"default"}
        assert here.text().isascii()


@pytest.mark.parametrize("kind", ["vt100", "linux", "screen", "no-such-terminal", "dumb"])
def test_terminals_of_other_kinds_are_drawn_on_or_told_why_not(agent: FakeAgent, kind: str):
    with terminal(agent, TERM=kind) as here:
        if kind in ("vt100", "linux", "screen"):
            here.until("services   1 of 1")
            here.press("q")
            assert here.end() == 0
        else:
            assert here.end() == 2
            assert "cannot draw on this terminal" in here.text()


def test_a_backend_that_fails_is_red(agent: FakeAgent):
    with terminal(agent) as here:
        here.press("\t")

        def red() -> list[str]:
            lines = here.shown.buffer.items()
            found = [n for n, line in lines if any(char.fg == "red" for char in line.values())]
            return [here.shown.display[number] for number in found]

        here.until(lambda: any("gpu-3" in line and "down" in line for line in red()))


def test_no_terminal_and_no_agent_are_errors_that_say_what_to_do(run, agent: FakeAgent, tmp_path):
    refused = run("top")
    assert (refused.code, "needs a terminal" in refused.err) == (2, True)
    assert "--watch" in refused.err
    with terminal(FakeAgent(tmp_path / "nobody.sock")) as here:
        assert here.end() == 3
        assert "nobody.sock" in here.text()
