"""Draws two kinds of plots as SVG, without a package: bars of percentiles, and tails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_FONT = "font-family='system-ui, sans-serif'"
_INK, _FAINT, _PAPER = "#24292f", "#d8dee4", "#ffffff"
# Steelyard's series in blue to green, the others in warm colours and grey.
COLOURS = (
    "#c0392b", "#e59866", "#8e44ad", "#c39bd3", "#7f8c8d", "#a6acaf", "#b7950b", "#d4ac0d",
    "#85c1e9", "#2e86c1", "#1b4f72", "#58d68d", "#1e8449",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Frame:
    """The area of the page that the data takes."""

    left: float
    top: float
    width: float
    height: float


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' "
        f"fill='{_INK}' {_FONT}>{escape(words)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = _FAINT) -> str:
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
        f"stroke='{colour}' stroke-width='1'/>"
    )


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' "
        f"width='{width:.0f}' height='{height:.0f}'>"
        f"<rect width='{width:.0f}' height='{height:.0f}' fill='{_PAPER}'/>"
        + "".join(parts)
        + "</svg>\n"
    )


def bars(title: str, values: Mapping[str, Mapping[str, float]], most: float) -> str:
    """Draw shares of the reference, ``values[group][series]``: a panel per group, a bar per series.

    The line at 1 is the reference; a bar longer than ``most`` is cut off and labelled.
    """
    row, label, gap, columns = 17.0, 226.0, 30.0, 2
    series = list(next(iter(values.values())))
    panel_width, panel_height = 400.0, 22 + row * len(series)
    rows = math.ceil(len(values) / columns)
    width = label + columns * (panel_width - 60) + gap
    height = 44 + rows * (panel_height + gap)
    parts = [_text(12, 24, title, 15)]
    for number, (group, found) in enumerate(values.items()):
        left = label + (number % columns) * (panel_width - 60 + gap / 2)
        top = 50 + (number // columns) * (panel_height + gap)
        plot = _Frame(left, top + 8, panel_width - 90, row * len(series))
        parts.append(_text(plot.left, top, group, 13))
        for tick in (0.0, 0.5, 1.0, 1.5, 2.0):
            if tick <= most:
                x = plot.left + plot.width * tick / most
                strong = _INK if tick == 1.0 else _FAINT
                parts.append(_line(x, plot.top, x, plot.top + plot.height, strong))
                parts.append(_text(x, plot.top + plot.height + 12, f"{tick:g}", 10, "middle"))
        for index, name in enumerate(series):
            y = plot.top + row * index
            value = found[name]
            long = plot.width * min(value, most) / most
            colour = COLOURS[index % len(COLOURS)]
            parts.append(
                f"<rect x='{plot.left:.1f}' y='{y + 2:.1f}' width='{long:.1f}' "
                f"height='{row - 4:.1f}' fill='{colour}'/>"
            )
            inside = long > plot.width - 40
            at = plot.left + long + (-4 if inside else 4)
            said = _text(at, y + row - 5, f"{value:.2f}", 10, "end" if inside else "start")
            parts.append(said.replace(_INK, _PAPER) if inside else said)
            if number % columns == 0:
                parts.append(_text(plot.left - 8, y + row - 5, name, 11, "end"))
    return _page(width, height, parts)


def tails(title: str, waits_s: Mapping[str, Sequence[float]]) -> str:
    """Draw for each series the share of requests that waited longer; both axes are logarithmic."""
    plot = _Frame(64, 44, 560, 320)
    least, most = 0.1, max(2.0, *(max(values) for values in waits_s.values()))
    lowest = 1e-3

    def x(wait_s: float) -> float:
        along = math.log(max(wait_s, least) / least) / math.log(most / least)
        return plot.left + plot.width * along

    def y(share: float) -> float:
        return plot.top + plot.height * math.log(1 / max(share, lowest)) / math.log(1 / lowest)

    parts = [_text(12, 24, title, 15)]
    for share, name in ((1.0, "all"), (0.1, "10 %"), (0.01, "1 %"), (0.001, "0.1 %")):
        parts.append(_line(plot.left, y(share), plot.left + plot.width, y(share)))
        parts.append(_text(plot.left - 6, y(share) + 4, name, 11, "end"))
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        if tick <= most:
            parts.append(_line(x(tick), plot.top, x(tick), plot.top + plot.height))
            parts.append(_text(x(tick), plot.top + plot.height + 16, f"{tick:g} s", 11, "middle"))
    below = plot.top + plot.height + 36
    parts.append(
        _text(plot.left, below, "time to first token; share of requests that waited longer")
    )
    for index, (name, values) in enumerate(waits_s.items()):
        ordered = sorted(values)
        count = len(ordered)
        # A hundred points per power of ten look like all of them.
        ranks = sorted({int(count * 10 ** (-step / 100)) for step in range(301)}, reverse=True)
        points = " ".join(
            f"{x(ordered[count - max(rank, 1)]):.1f},{y(max(rank, 1) / count):.1f}"
            for rank in ranks
        )
        colour = _TAILS[index % len(_TAILS)]
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>"
        )
        at = plot.top + 14 + 18 * index
        right = plot.left + plot.width + 16
        parts.append(_line(right, at - 4, right + 24, at - 4, colour))
        parts.append(_text(right + 30, at, name, 12))
    return _page(880, below + 16, parts)


_TAILS = ("#c0392b", "#e59866", "#7f8c8d", "#85c1e9", "#2e86c1", "#1e8449")
