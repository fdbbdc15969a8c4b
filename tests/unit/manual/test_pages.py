"""The manual pages: each command, option and key is in one, and nothing is taken for a request."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from agent.config.reference import SECTIONS
from agent.main import cli as agent_cli
from lbctl.main import COMMANDS, cli
from lbctl.reference import children, options
from manual import roff
from manual.__main__ import main
from manual.pages import YAML, pages

REQUESTS = {".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".EX", ".EE"}
REQUESTS |= {".br", ".nh", ".hy"}
ESCAPES = {r"\e", r"\-", r"\&", r"\(aq", r"\(ga", r"\(ha", r"\(ti", r"\(dq", r"\(bu"}
ESCAPES |= {r"\fB", r"\fI", r"\fR"}


@pytest.fixture(scope="module")
def made():
    return {page.path: page.text for page in pages("2026-01-02")}


def below(ctx):
    yield ctx
    for child in children(ctx, ctx.command):
        yield from below(child)


def test_there_is_a_page_for_each_command(made):
    wanted = {f"man1/lbctl-{command.name}.1" for command in COMMANDS}
    assert made.keys() == {*wanted, "man1/lbctl.1", "man8/lb-agent.8", f"man5/{YAML}.5"}


def named(page, heading):
    """The names of options that a part of a page describes."""
    lines = page.splitlines()
    at = lines.index(heading) + 1
    end = next(n for n in range(at, len(lines)) if lines[n].startswith((".SH", ".SS")))
    labels = [lines[n + 1] for n in range(at, end) if lines[n] == ".TP"]
    bold = [label.removeprefix(r"\fB").partition(r"\fR")[0] for label in labels]
    return {name for label in bold for name in re.split(", | / ", label.replace(r"\-", "-"))}


def given(ctx):
    return {name for one in options(ctx.command) for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("top", [command.name for command in COMMANDS])
def test_every_command_and_option_of_lbctl_is_in_its_page(made, top):
    page = made[f"man1/lbctl-{top}.1"]
    root = click.Context(cli, info_name="lbctl")
    (ctx,) = (child for child in children(root, cli) if child.info_name == top)
    assert named(page, roff.section("options")) == given(ctx) | {"-h", "--help"}
    for each in below(ctx):
        assert roff.bold(each.command_path) in page, "the synopsis"
        if each is not ctx:
            assert named(page, roff.subsection(each.command_path)) == given(each)


def test_the_page_of_lbctl_names_its_options_and_every_other_page(made):
    page = made["man1/lbctl.1"]
    root = click.Context(cli, info_name="lbctl")
    assert named(page, roff.section("options")) == given(root) | {"-h", "--help"}
    for command in COMMANDS:
        assert f"{roff.bold(f'lbctl-{command.name}')}(1)" in page


def test_every_command_and_option_of_the_agent_is_in_its_page(made):
    page = made["man8/lb-agent.8"]
    root = click.Context(agent_cli, info_name="lb-agent")
    for each in children(root, agent_cli):
        assert named(page, roff.subsection(each.command_path)) == given(each)


def test_every_key_of_the_configuration_is_in_its_page(made):
    lines = made[f"man5/{YAML}.5"].splitlines()
    for title, section in SECTIONS[1:-1]:
        at = lines.index(roff.section(title))
        end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith(".SH"))
        for name in section.model_fields:
            assert any(line.startswith(roff.bold(name)) for line in lines[at:end]), (title, name)


def test_nothing_is_taken_for_a_request_or_an_escape(made):
    for path, page in made.items():
        lines = page.splitlines()
        assert {line.split()[0] for line in lines if line.startswith(".")} <= REQUESTS, path
        assert not [line for line in lines if line.startswith("'")], path
        escapes = re.findall(r"\\(?:\(..|f.|.)", page)
        assert set(escapes) <= ESCAPES, path


def test_hyphens_of_options_can_be_searched_for_and_copied(made):
    for path, page in made.items():
        assert not re.search(r"(?<![\w\\-])--?[a-z]", page), path


def test_pages_are_written_where_man_finds_them(tmp_path):
    assert main([str(tmp_path)]) == 0
    assert "lbctl\\-doctor" in Path(tmp_path, "man1", "lbctl-doctor.1").read_text()
    assert main([]) == 2


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_mandoc_finds_nothing_to_warn_of(made, tmp_path):
    main([str(tmp_path)])
    found = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *map(str, tmp_path.glob("*/*"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")
