"""Every time of failover, pair and flow sync stands in one module, with its unit and a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from agent.failover import reference, times

ROOT = Path(__file__).parents[3]
NAMES = sorted(name for name in vars(times) if name.isupper())
# Calls that wait as long as they are told to.
WAITS = {"sleep", "timeout", "call_later", "settimeout", "wait_for"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in ("failover", "pair", "flowsync"):
        for path in sorted((ROOT / "agent" / package).rglob("*.py")):
            if path.name != "times.py":
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def numbers(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.Constant) and isinstance(each.value, int | float) and each.value
        for each in ast.walk(node)
    )


def test_a_time_has_a_unit_and_a_sentence():
    assert sorted(name for _, name, _ in reference.rows()) == NAMES
    for _, name, text in reference.rows():
        assert re.search(r"_(S|INTERVALS|DOWNS)$", name), name
        assert text.endswith("."), name
        assert getattr(times, name) > 0, name


def test_no_time_stands_anywhere_else():
    """Fields of the configuration's model have defaults, which is another matter."""
    found = []
    for path, module in sources():
        for node in module.body:
            if isinstance(node, ast.Assign) and numbers(node.value):
                names = [n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)]
                is_time = (re.search(r"_(S|INTERVALS)$", n) and "PER_S" not in n for n in names)
                found += [f"{path}: {node.lineno}"] * any(is_time)
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and any(map(numbers, node.args)):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                found += [f"{path}: {node.lineno}"] * (called in WAITS)
    assert not found


def test_every_time_is_used():
    used = {
        alias.name
        for package in ("agent", "lbctl")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "agent.failover.times"
        for alias in node.names
    }
    assert sorted(used) == NAMES
