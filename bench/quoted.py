"""Makes the figures that the README and docs/benchmarks.md quote, and the README's pictures, from
the committed runs. No figure in these places is typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import pictures

_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / "bench" / "results"
MODES = ("dsr", "ipip", "gue", "nat", "fullnat")
OURS = "least-load, telemetry and learned"
_PEERS = ("nftables dnat", "nginx stream", "haproxy", "floor: router")
_AI = (
    ("HAProxy leastconn", "HAProxy leastconn"),
    ("nginx least_conn", "nginx least_conn"),
    ("Steelyard, waiting bytes alone", "least-load, waiting bytes"),
    ("Steelyard, telemetry and learned", OURS),
)
CASES = {
    "trace": "arrivals of the Azure trace",
    "bursty": "bursty (cv 3.6)",
    "keep-alive": "connections kept for 60 s",
    "bypass": "half of the load bypasses the balancer",
    "throttled": "a fast server throttled 3 times",
}
_OUTAGES = {
    "kill": "killed", "stop": "clean stop", "cut": "cable cut", "freeze": "frozen",
    "partition": "partitioned",
}  # fmt: skip

type Json = Mapping[str, Any]


def _results(name: str) -> Json:
    found: Json = json.loads((_RESULTS / f"{name}.json").read_text())
    return found


def _table(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [header, ["-", *["-:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# -- packets

_PACKET_ROWS = (
    ("established flow, IPv4", "v4 {}: established"),
    ("established flow, IPv6", "v6 {}: established"),
    ("bytes of a request, counted, IPv4", "v4 {}: request bytes, counted"),
    ("the backend's answers, IPv4", "v4 {}: the backend's answers"),
    ("every packet a new flow, full table of 1M slots", "v4 {}: all new flows, table full"),
    ("the same, 4M slots, IPv4", "v4 {}: all new flows, table full, 4M slots"),
    ("the same, 4M slots, IPv6", "v6 {}: all new flows, table full, 4M slots"),
    ("1,048,576 flows, 4M slots, IPv4", "v4 {}: 1,048,576 flows, 4M slots"),
    ("the same, IPv6", "v6 {}: 1,048,576 flows, 4M slots"),
    (
        "every packet a new flow, `least-load` with 8 draws",
        "v4 {}, least-load: all new flows (SYN flood)",
    ),
    ("not a VIP, IPv4", "v4: not a VIP"),
    ("not a VIP, IPv6", "v6: not a VIP"),
)


def packets() -> str:
    """Return the table of nanoseconds a packet, by mode. Bold: above its target."""
    found = {each["case"]: each for each in _results("latest")["packets"]}

    def cell(pattern: str, mode: str) -> str:
        each = found.get(pattern.format(mode))
        if each is None or ("{}" not in pattern and mode != MODES[0]):
            return ""
        median, target = each["all_features"]["median_ns"], each["target_ns"]
        text = f"{median:.0f}"
        if target is None:
            return text
        return f"{text} (≤ {target:.0f})" if median <= target else f"**{text}** (≤ {target:.0f})"

    rows = ((name, *(cell(pattern, mode) for mode in MODES)) for name, pattern in _PACKET_ROWS)
    return _table(("median ns a packet (target)", *(f"`{mode}`" for mode in MODES)), [*rows])


# -- beside other programs


def _contenders() -> dict[str, Json]:
    return {each["name"]: each for each in _results("peers")["contenders"]}


def peers() -> str:
    """Return the table of CPU time beside other programs."""
    found = _contenders()
    names = (*(f"steelyard {mode}" for mode in MODES), *_PEERS)
    heads = (*(f"`{mode}`" for mode in MODES), "nftables", "nginx stream", "HAProxy", "router")
    rows = [
        (title, *(f"{found[name][key]['median']:.{digits}f}" for name in names))
        for title, key, digits in (
            ("µs per short connection", "short_us", 1),
            ("the same at 4,000/s", "paced_us", 0),
            ("CPU s per GB, upload", "up_s_per_gb", 2),
            ("CPU s per GB, download", "down_s_per_gb", 2),
        )
    ]
    return _table(("median", *heads), rows)


# -- first tokens


def first_tokens() -> dict[tuple[str, str], Mapping[str, float]]:
    """Return the seconds to the first token at percentiles, by contender and case."""
    return {
        (each["contender"], each["case"]): each["first_token_s"] for each in _results("ai")["real"]
    }


def ai() -> str:
    """Return the table of times to first token."""
    found = first_tokens()

    def cell(contender: str, case: str) -> str:
        times = found[contender, case]
        return f"{times['p95'] * 1000:.0f} / {times['p99'] * 1000:.0f}"

    rows = [(title, *(cell(name, case) for _, name in _AI)) for case, title in CASES.items()]
    return _table(("ms at p95 / p99", *(title for title, _ in _AI)), rows)


# -- failover


def _outages(pairing: str) -> dict[str, Json]:
    rows = _results("failover")["outages"]["rows"]
    return {
        each["case"]: each
        for each in rows
        if each["pairing"] == pairing and each["variant"] == "v3-10ms"
    }


def failover() -> str:
    """Return the table of outages."""

    def row(title: str, pairing: str) -> Sequence[str]:
        found = _outages(pairing)
        times = (found[case]["outage"] for case in _OUTAGES)
        healed = found["partition"]
        holes = f"{healed['black_holed']} of {healed['repetitions']}"
        return (title, *(f"{each['median']:.1f} ({each['worst']:.1f})" for each in times), holes)

    version = str(_results("failover")["outages"]["keepalived"]).removeprefix("v")
    return _table(
        ("ms, median (worst)", *_OUTAGES.values(), "black-holed after it healed"),
        [row("Steelyard", "steelyard"), row(f"keepalived {version}", "keepalived")],
    )


def glance() -> str:
    """Return the README's table: each of our figures with those beside it, of the same run."""
    lines = {
        each["case"]: each["all_features"]["median_ns"] for each in _results("latest")["packets"]
    }
    modes = [lines[f"v4 {mode}: established"] for mode in MODES]
    found, times = _contenders(), first_tokens()
    short = {name: each["short_us"]["median"] for name, each in found.items()}
    own = [short[f"steelyard {mode}"] for mode in MODES]

    def first_ms(contender: str, case: str) -> str:
        return f"{times[contender, case]['p95'] * 1000:,.0f} ms"

    def others_ms(case: str) -> str:
        haproxy, nginx = first_ms(_AI[0][1], case), first_ms(_AI[1][1], case)
        return f"HAProxy {haproxy}, nginx {nginx}"

    others = ("nftables dnat", "nginx stream", "haproxy")
    outages = _outages("steelyard")["kill"], _outages("keepalived")["kill"]
    rows = [
        ("a packet of an established flow", f"{min(modes):.0f} to {max(modes):.0f} ns", ""),
        (
            "the balancer's CPU for a short connection",
            f"{min(own):.1f} to {max(own):.1f} µs",
            "nftables {:.1f}, nginx {:.1f}, HAProxy {:.1f} µs".format(*(short[o] for o in others)),
        ),
        *(
            (
                f"first token, p95: {CASES[case]}",
                first_ms(OURS, case),
                others_ms(case),
            )
            for case in ("trace", "throttled")
        ),
        (
            "no answer after a balancer was killed",
            f"{outages[0]['outage']['median']:.0f} ms",
            f"keepalived {outages[1]['outage']['median']:.0f} ms",
        ),
    ]
    return _table(("", "Steelyard", "in the same run"), rows)


# -- files

BLOCKS: dict[str, Callable[[], str]] = {
    "glance": glance, "packets": packets, "peers": peers, "ai": ai, "failover": failover,
}  # fmt: skip
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "benchmarks.md")
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with every block of figures written anew. KeyError: there is no such block."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", text)


def files() -> dict[Path, str]:
    """Return the text of each file that holds figures."""
    found = first_tokens()
    bars = {
        title: [
            found[name, case]["p95"] * 1000
            for name in ("HAProxy leastconn", "nginx least_conn", OURS)
        ]
        for case, title in CASES.items()
    }
    return {page: filled(page.read_text()) for page in PAGES} | {
        _ROOT / "docs" / "first-token.svg": pictures.first_token(bars),
        _ROOT / "docs" / "paths.svg": pictures.paths(),
    }
