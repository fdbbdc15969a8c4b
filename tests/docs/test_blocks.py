"""Every block of the documentation says what it is, and its commands and settings exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent.config.load import parse, parse_document
from agent.config.schema import DocumentSection
from agent.config.service_schema import ServiceSection
from agent.errors import ConfigError
from agent.tier.settings import Tier
from tests.docs.commandline import wrong_with
from tests.docs.pages import (
    PAGES,
    ROOT,
    Block,
    every_block,
    is_generated,
    our_commands,
    prose,
    shown,
)

BLOCKS = every_block()
INFOS = {"sh", "console", "text", "yaml", "json", "ini", "c", "python", "promql"}
SERVICE = {
    "name": "chat", "vip": "203.0.113.10", "port": 80,
    "backends": [{"name": "gpu-1", "address": "203.0.113.21"}], "telemetry": {"type": "vllm"},
}  # fmt: skip


def ids(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_holds(page: Path) -> None:
    for block in BLOCKS:
        if block.page != page:
            continue
        assert block.info in INFOS, f"{block.place}: name what it holds: {', '.join(INFOS)}"
        if block.info in ("sh", "console") and not is_generated(page):
            assert block.mark in ("run", "not run"), (
                f"{block.place}: say above it whether tests/docs runs it: <!-- run --> or "
                "<!-- not run: REASON -->"
            )
            assert block.mark == "run" or block.reason, f"{block.place}: not run, but why?"


def test_a_block_without_a_mark_is_found(tmp_path: Path) -> None:
    from tests.docs.pages import blocks

    page = tmp_path / "page.md"
    page.write_text("<!-- not run: why -->\n```sh\na\n```\n\n```sh\nb\n```\n  ```\n  c\n  ```\n")
    found = [(block.line, block.info, block.mark, block.lines) for block in blocks(page)]
    assert found == [(2, "sh", "not run", ("a",)), (6, "sh", "", ("b",)), (9, "", "", ("c",))]


# -- links


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), target


# -- commands


COMMANDS = [
    (f"{block.page.relative_to(ROOT)}:{each.line}", words)
    for block in BLOCKS
    for each in shown(block)
    for words in our_commands(each.text)
]


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 150
    assert ["lbctl", "lab", "down"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_a_command_of_a_block_exists_with_its_options(place: str, words: list[str]) -> None:
    assert wrong_with(words) == "", f"{place}: {' '.join(words)}"


def mentions(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the commands in a page's prose, of which arguments may be left out."""
    text = prose(page)
    for found in re.finditer(r"`((?:sudo )?(?:lbctl|lb-agent) [^`]*)`", text):
        before = text[: found.start()]
        if before.endswith("Usage: ") or re.match(r"\S+ (…|\.\.\.)", found[1]):
            continue  # made by click itself; or any command is meant
        plain = " ".join(word for word in found[1].split() if word not in ("…", "..."))
        for words in our_commands(plain):
            yield before.count("\n") + 1, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_that_prose_mentions_exist(page: Path) -> None:
    wrong = {
        f"{page.name}:{line}: {' '.join(words)}": what
        for line, words in mentions(page)
        if (what := wrong_with(words, whole=False))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("lbctl backend weight chat/a 3", "no such command 'weight'"),
        ("lbctl events --since 1d", "'1d' is not a time"),
        ("lbctl backend list --stat up", "No such option"),
        ("lbctl explain tcp", "Missing argument"),
        ("lb-agent --config x", "No such option"),
        ("lbctl lab down up", "unexpected: up"),
        ("lbctl backend list --state upp", "is not one of"),
        ("lbctl guard", "needs a command"),
        ("sudo lbctl --socket /x backend list | less", ""),
        ("lbctl lab exec client -- curl -sN --any", ""),
    ],
)
def test_what_is_wrong_with_a_command_is_said(line: str, what: str) -> None:
    (words,) = our_commands(line)
    said = wrong_with(words)
    assert what in said
    assert bool(what) == bool(said)


# -- settings


SETTINGS = [block for block in BLOCKS if block.info == "yaml" and block.mark != "not ours"]
DATA = [block for block in BLOCKS if block.info == "json"]


LEAST_OF_A_TIER = {
    "listen": ["192.0.2.1:443"], "engines": "192.0.2.2:80", "certificates": "/tls"
}  # fmt: skip


def whole(block: Block) -> dict[str, object]:
    """Return the document of a block, with what it leaves out for brevity."""
    given = yaml.safe_load(block.text)
    if block.page.name == "tier.md":
        return LEAST_OF_A_TIER | given
    if not set(given) <= set(DocumentSection.model_fields):
        given = {"services": [given]}
        assert set(given["services"][0]) <= set(ServiceSection.model_fields), "unknown keys"
    services = [SERVICE | each for each in given.get("services", []) if each != "…"]
    return {"interface": "eth0"} | given | {"services": services}


@pytest.mark.parametrize("block", SETTINGS, ids=ids)
def test_settings_are_taken_by_the_agent(block: Block) -> None:
    try:
        if block.page.name == "tier.md":
            parse_document(Tier, yaml.safe_dump(whole(block)), block.place, lambda _: ())
            return
        parse(yaml.safe_dump(whole(block)), block.place)
    except ConfigError as error:
        pytest.fail("\n".join(str(problem) for problem in error.problems))


@pytest.mark.parametrize("block", DATA, ids=ids)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text.replace(", …", "").replace("…", "text"))
