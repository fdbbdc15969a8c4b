"""Formats a result in the form that the user asked for: a table, JSON or YAML."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbctl.environment import Environment, Output

if TYPE_CHECKING:
    from rich.text import Text

type Data = Mapping[str, Any]
# A piece of a page: a table, finished lines, or an aligned list of names and values.
type View[T] = Callable[[T], Sequence[object]]


def emit[T: Data](env: Environment, data: T, view: View[T]) -> None:
    """Write a result to standard output; ``view`` makes the pieces of the page for people."""
    env.write(render(env, data, view))


def render[T: Data](env: Environment, data: T, view: View[T]) -> str:
    """Return a result as text, in the format that the user chose."""
    if env.output is Output.JSON:
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if env.output is Output.YAML:
        return to_yaml(data)
    return page(env, view(data))


def to_yaml(data: object) -> str:
    """Return the data as YAML in block style, in the given order."""
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def page(env: Environment, pieces: Sequence[object]) -> str:
    """Return tables and lines as text, with as much colour as the terminal supports."""
    import textwrap

    from rich.console import Console
    from rich.text import Text

    from lbctl.layout import Table, lines

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=env.width or 10_000,
        force_terminal=env.colour,
        color_system="standard" if env.colour else None,
        no_color=not env.colour,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
    dropped: list[str] = []
    for piece in pieces:
        if isinstance(piece, Table):
            body, left_out = lines(piece, env.width)
            dropped.extend(left_out)
            for line in body:
                console.print(line)
        else:
            console.print(piece if isinstance(piece, Text) else Text(str(piece)))
    if dropped:
        names = ", ".join(dict.fromkeys(dropped))
        note = f"({env.width} columns: left out {names}; -o json has all)"
        for part in textwrap.wrap(note, env.width or len(note)):
            console.print(Text(part, "dim"))
    return buffer.getvalue()


def facts(env: Environment, pairs: Sequence[tuple[str, object]]) -> list[object]:
    """Return an aligned list of names and values; long values wrap under themselves."""
    return [*aligned(env.width, pairs)]


def aligned(width: int | None, pairs: Sequence[tuple[str, object]]) -> list[Text]:
    """Return such a list for a width; None: lines are as long as they need to be."""
    import textwrap

    from rich.text import Text

    left = max(len(name) for name, _ in pairs) + 2
    result: list[Text] = []
    for name, value in pairs:
        text = value if isinstance(value, Text) else Text(str(value))
        room = (width or 10_000) - left
        parts: list[Text] = []
        for line in text.split("\n"):
            if len(line) <= room or room < 20:
                parts.append(line)
            else:
                wrapped = textwrap.wrap(line.plain, room, break_on_hyphens=False)
                parts += [Text(part, text.style) for part in wrapped]
        for number, part in enumerate(parts):
            label = name if number == 0 else ""
            result.append(Text.assemble((f"{label:<{left}}", "bold"), part))
    return result


def watch(env: Environment, interval_s: float | None, once: Callable[[], str]) -> None:
    """Show the page once, or repeatedly until Ctrl-C; wait for an agent that restarts."""
    from agent.errors import AgentUnreachableError

    if interval_s is None:
        env.write(once())
        return
    seen = False
    try:
        while True:
            try:
                text, seen = once(), True
            except AgentUnreachableError as error:
                if not seen:
                    raise
                text = f"{error}\n(trying again every {interval_s:g} s; Ctrl-C ends)\n"
            # One write per frame, from the top, so that nothing flickers.
            on_screen = env.width is not None
            env.write(f"\x1b[H\x1b[2J{_cropped(env, text)}" if on_screen else _separated(env, text))
            env.sleep(interval_s)
    except KeyboardInterrupt:
        if env.width is not None:
            env.write("")


def _cropped(env: Environment, text: str) -> str:
    """Return as much as the screen has room for, and say how many lines are missing."""
    shown = text.splitlines(keepends=True)
    if env.height is None or len(shown) < env.height:
        return text
    room = max(1, env.height - 2)
    more = f"({len(shown) - room} more lines; --limit, --state and --sort choose)\n"
    return "".join([*shown[:room], more])


def _separated(env: Environment, text: str) -> str:
    """Separate frames in a pipe: as YAML documents, JSON documents, or tables with a blank line."""
    if env.output is Output.YAML:
        return f"---\n{text}"
    return text if env.output is Output.JSON else f"{text}\n"
