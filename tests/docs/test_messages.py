"""The commands that our own messages, remedies and help texts name exist, with their options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent.main import cli as agent_cli
from lbctl.main import cli as lbctl_cli
from tests.docs.pages import ROOT

PROGRAMS: dict[str, click.Command] = {"lbctl": lbctl_cli, "lb-agent": agent_cli}
MENTION = re.compile(r"\b(?:lbctl|lb-agent) (?:[^`\n;|()]|\\\n)*")
OPTION = re.compile(r"(?<!\S)--[a-z][a-z0-9-]*")
FILES = sorted(path for top in ("agent", "lbctl") for path in (ROOT / top).rglob("*.py"))


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module, with their lines; a value in an f-string is ``X``."""
    tree = ast.parse(source)
    parts = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = (v.value if isinstance(v, ast.Constant) else "X" for v in node.values)
            yield node.lineno, "".join(map(str, pieces))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            yield node.lineno, node.value


def unknown_options(mention: str) -> list[str]:
    """Return the options of a mention that its command does not have."""
    program, *words = mention.split()
    if words[:1] in (["..."], ["…"]):
        return []  # any command is meant
    command = PROGRAMS[program]
    context = click.Context(command)
    known = set(_options(command))
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            child = command.get_command(context, word)
            if child is None:
                break
            command, context = child, click.Context(child, parent=context)
            known |= set(_options(command))
        if word == "--":
            break
    own, _, _others = mention.partition(" -- ")  # after it, options are those of another program
    return [each for each in OPTION.findall(own) if each not in known]


def _options(command: click.Command) -> Iterator[str]:
    yield "--help"
    for param in command.params:
        if isinstance(param, click.Option):
            yield from (*param.opts, *param.secondary_opts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_that_messages_name_exist(path: Path) -> None:
    wrong = {
        f"{path.name}:{line}: {found.group()}": unknown
        for line, text in texts(path.read_text())
        for found in MENTION.finditer(text)
        if (unknown := unknown_options(found.group()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("mention", "unknown"),
    [
        ("lbctl service set X --health-type http --health-path /x", ["--health-type"]),
        ("lbctl service set X --health http", []),
        ("lbctl lab up --balancers 2 and --nothing", ["--nothing"]),
        ("lbctl lab exec client -- curl --any", []),
        ("lb-agent run --config FILE", []),
    ],
)
def test_options_that_do_not_exist_are_found(mention: str, unknown: list[str]) -> None:
    assert unknown_options(mention) == unknown
