"""Draws the README's two pictures as SVG, for light and for dark screens. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

CONTENDERS = ("HAProxy leastconn", "nginx least_conn", "Steelyard")
_STYLE = """\
<style>
  text { font: 14px system-ui, sans-serif; fill: #1f2328 }
  .small { font-size: 12px; fill: #59636e }
  .bold { font-weight: 600 }
  .line { stroke: #59636e; stroke-width: 1.5; fill: none }
  .grid { stroke: #d1d9e0 }
  .box { fill: #f6f8fa; stroke: #59636e }
  .kernel { fill: #ddf4ff; stroke: #0969da }
  .c0 { fill: #afb8c1 } .c1 { fill: #8c959f } .c2 { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .line { stroke: #9198a1 }
    .grid { stroke: #3d444d } .box { fill: #161b22; stroke: #9198a1 }
    .kernel { fill: #121d2f; stroke: #4493f8 }
    .c0 { fill: #656c76 } .c1 { fill: #9198a1 } .c2 { fill: #4493f8 }
  }
</style>"""


def _svg(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">\n'
        "<!-- Made from bench/ by `make docs`; do not edit. -->\n"
        f"<title>{escape(title)}</title>\n{_STYLE}\n{body}\n</svg>\n"
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{named} text-anchor="{anchor}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>'
    )


# -- times to first token

_WIDTH, _LEFT, _RIGHT = 820, 290, 60
_BAR, _GAP, _TOP = 16, 18, 64


def first_token(cases: Mapping[str, Sequence[float]]) -> str:
    """Return bars of the ms to the first token, by case, in the order of ``CONTENDERS``."""
    most = max(max(times) for times in cases.values())
    step = 10 ** math.floor(math.log10(most))
    step = step / 2 if most / step < 3 else step
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    group = len(CONTENDERS) * _BAR + _GAP
    height = _TOP + len(cases) * group + 10

    def parts() -> Iterator[str]:
        yield _text(16, 24, "Time to first token, 95th percentile, ms: less is better", "bold")
        for n, name in enumerate(CONTENDERS):
            yield f'<rect x="{16 + 190 * n}" y="36" width="12" height="12" class="c{n}"/>'
            yield _text(34 + 190 * n, 47, name, "small")
        for n in range(1, int(most / step) + 1):
            x = _LEFT + n * step * scale
            yield f'<path d="M{x:.1f} {_TOP}V{height - 14}" class="grid"/>'
        for row, (case, times) in enumerate(cases.items()):
            y = _TOP + row * group
            yield _text(_LEFT - 10, y + group / 2 - 4, case, "", "end")
            for n, ms in enumerate(times):
                top = y + n * _BAR
                yield (
                    f'<rect x="{_LEFT}" y="{top}" width="{ms * scale:.1f}" height="{_BAR - 3}" '
                    f'class="c{n}"/>'
                )
                yield _text(_LEFT + ms * scale + 5, top + 11, f"{ms:,.0f}", "small")

    return _svg(_WIDTH, height, "Time to first token beside HAProxy and nginx", parts())


# -- the way of packets


def paths() -> str:
    """Return what is on the way of a packet, and what only keeps the tables right."""

    def parts() -> Iterator[str]:
        yield (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" class="c1"/></marker></defs>'
        )
        yield _box(16, 70, 110, 46)
        yield _text(71, 98, "clients", "bold", "middle")
        yield _box(200, 16, 400, 190)
        yield _text(214, 38, "balancer", "bold")
        yield _box(216, 52, 368, 62, "kernel")
        yield _text(230, 75, "kernel: XDP program", "bold")
        yield _text(230, 96, "service → guard → flow → backend → new frame", "small")
        yield _box(216, 138, 368, 54)
        yield _text(230, 160, "lb-agent: health, GPU load, failover, API", "bold")
        yield _text(230, 180, "may stop, crash or be upgraded: packets go on", "small")
        yield '<path d="M400 136V118" class="line" marker-end="url(#a)"/>'
        yield _text(410, 131, "shared tables", "small")
        for n in range(3):
            yield _box(690, 30 + 58 * n, 114, 40)
            yield _text(747, 55 + 58 * n, f"gpu-{n + 1}", "bold", "middle")
            yield f'<path d="M586 83L686 {50 + 58 * n}" class="line" marker-end="url(#a)"/>'
        yield '<path d="M128 83H212" class="line" marker-end="url(#a)"/>'
        yield _text(170, 74, "VIP", "small", "middle")
        yield '<path d="M747 190V232H71V120" class="line" marker-end="url(#a)"/>'
        words = "answers go straight to the client (dsr, ipip, gue), or back through the balancer"
        yield _text(409, 250, words, "small", "middle")

    return _svg(820, 262, "The way of a packet through the balancer", parts())
